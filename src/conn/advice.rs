//! What a Redis does with what it confirmed, and whether it is one that we can use: read from what it says of itself,
//! where it lets us.

use std::collections::HashMap;
use std::time::Duration;

use redis::Value;

use super::Link;

/// What matters here of `CONFIG GET`.
const SETTINGS: [&str; 5] = [
    "appendonly",
    "appendfsync",
    "save",
    "maxmemory-policy",
    "min-replicas-to-write",
];

/// The oldest Redis that has all that is asked of it (docs/redis.md).
const OLDEST: [u32; 2] = [6, 2];

/// Lines about what can lose messages that were confirmed, worst first, after one about a server that is too old; none
/// about a server that does not say. A user without the rights to ask gets none.
pub async fn advice(link: &Link) -> Vec<String> {
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET");
    for name in SETTINGS {
        ask.arg(name);
    }
    // Servers before 7.0 take one name only, and an ACL or a hosting service none.
    let config = match link.query::<HashMap<String, String>>(&ask).await {
        Ok(config) => config,
        Err(_) => one_by_one(link).await,
    };
    // Two sections of it, which servers before 7.0 do not give together without the others.
    let info = link.query::<Value>(&redis::cmd("INFO")).await;
    judge(&config, &fields(info.ok()))
}

/// The same of the Redis of the results, where that is another one.
pub async fn advice_on_results(link: &Link) -> Vec<String> {
    let lines = advice(link).await.into_iter();
    lines.map(|line| format!("the result backend: {line}")).collect()
}

/// How long the server has been up, in whole seconds; `None` where it does not say, or not to this user.
pub async fn uptime(link: &Link) -> Option<Duration> {
    let info = link.query::<Value>(redis::cmd("INFO").arg("server")).await.ok();
    let seconds = fields(info).get("uptime_in_seconds")?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

async fn one_by_one(link: &Link) -> HashMap<String, String> {
    let mut config = HashMap::new();
    for name in SETTINGS {
        match link
            .query::<HashMap<String, String>>(redis::cmd("CONFIG").arg("GET").arg(name))
            .await
        {
            Ok(setting) => config.extend(setting),
            Err(_) => break,
        }
    }
    config
}

/// `name:value` lines.
fn fields(info: Option<Value>) -> HashMap<String, String> {
    let text = match info {
        Some(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
        Some(Value::VerbatimString { text, .. }) => text,
        _ => String::new(),
    };
    let pairs = text.lines().filter_map(|line| line.trim().split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn judge(config: &HashMap<String, String>, info: &HashMap<String, String>) -> Vec<String> {
    let setting = |name: &str| config.get(name).map(String::as_str);
    let mut lines = Vec::new();
    if let Some(version) = info.get("redis_version").filter(|version| is_too_old(version)) {
        lines.push(format!(
            "this Redis is of version {version}, and {}.{} or later is needed: some commands fail, and tasks with them",
            OLDEST[0], OLDEST[1]
        ));
    }
    match setting("maxmemory-policy") {
        Some(policy) if policy.starts_with("allkeys") => lines.push(format!(
            "Redis may delete whole queues, results and chords when its memory is full (maxmemory-policy is {policy}): set \
             it to noeviction"
        )),
        Some(policy) if policy.starts_with("volatile") => lines.push(format!(
            "Redis may delete results before they are read, and chords before they are counted, when its memory is full \
             (maxmemory-policy is {policy}): set it to noeviction"
        )),
        _ => {}
    }
    match (setting("appendonly"), setting("save"), setting("appendfsync")) {
        (Some("no"), Some(""), _) => lines.push(
            "Redis keeps nothing on disk: when it stops, all that waits and all results are gone; set appendonly to yes"
                .into(),
        ),
        (Some("no"), Some(_), _) => lines.push(
            "Redis keeps snapshots only: when it dies, all that came since the last one is gone; set appendonly to yes"
                .into(),
        ),
        (Some("yes"), _, Some("no")) => lines.push(
            "Redis leaves it to the system when its file is written (appendfsync is no): a power cut may take half a \
             minute of messages; set it to everysec or always"
                .into(),
        ),
        _ => {}
    }
    if info.get("role").is_some_and(|role| role == "slave") {
        lines.push("this Redis is a replica: nothing can be written to it; name its master".into());
    } else if info.get("connected_slaves").is_some_and(|count| count != "0")
        && setting("min-replicas-to-write") == Some("0")
    {
        lines.push(
            "Redis confirms before its replicas have it (min-replicas-to-write is 0): a failover loses what was not \
             replicated yet"
                .into(),
        );
    }
    lines
}

fn is_too_old(version: &str) -> bool {
    let parts: Option<Vec<u32>> = version.split('.').take(2).map(|part| part.parse().ok()).collect();
    parts.is_some_and(|parts| parts[..] < OLDEST[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_lose_messages_is_said_and_nothing_else() {
        let judged = |settings: &[(&str, &str)], info: &str| {
            let config = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            judge(&config.collect(), &fields(Some(Value::BulkString(info.into()))))
        };
        assert!(judged(&[], "").is_empty());
        let good = [
            ("appendonly", "yes"),
            ("appendfsync", "everysec"),
            ("save", ""),
            ("maxmemory-policy", "noeviction"),
            ("min-replicas-to-write", "0"),
        ];
        assert!(judged(&good, "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n").is_empty());
        let all = judged(
            &[
                ("appendonly", "no"),
                ("save", "3600 1"),
                ("maxmemory-policy", "allkeys-lru"),
                ("min-replicas-to-write", "0"),
            ],
            "role:master\r\nconnected_slaves:2\r\n",
        );
        let words = ["delete whole queues", "snapshots only", "before its replicas"];
        assert_eq!(all.len(), words.len());
        assert!(all.iter().zip(words).all(|(line, word)| line.contains(word)), "{all:?}");
        assert!(judged(&[("appendonly", "no"), ("save", "")], "")[0].contains("nothing on disk"));
        for (version, is_old) in [
            ("5.0.15", true),
            ("6.0.16", true),
            ("6.2.0", false),
            ("10.0", false),
            ("?", false),
        ] {
            let lines = judged(&[], &format!("redis_version:{version}\r\n"));
            assert_eq!(
                lines.iter().any(|line| line.contains("6.2 or later")),
                is_old,
                "{version}"
            );
        }
        assert!(judged(&[("maxmemory-policy", "volatile-ttl")], "role:slave")[1].contains("replica"));
    }
}
