//! What is secret, by its name; and hiding it wherever arguments, settings and log fields are shown.
//!
//! The names belong to the process, as its log does: a place that shows something cannot forget to be given them.

use std::borrow::Cow;
use std::sync::OnceLock;

use regex::Regex;
use serde_json::{Map, Value};

/// What is shown instead of a secret; Celery's own word for it.
pub const HIDDEN: &str = "********";

/// Values under these names are secrets, also where another word stands before: `db_password`, `X-Api-Key`.
const NAMES: [&str; 15] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "secret_key",
    "token",
    "api_key",
    "access_key",
    "private_key",
    "authorization",
    "auth",
    "credential",
    "cookie",
    "jwt",
];

/// A text this long that may be JSON with secrets in it is looked into; a longer one is hidden as a whole.
const LOOKED_INTO: usize = 64 << 10;

struct Secrets {
    /// Without separators and in small letters.
    names: Vec<String>,
    /// Finds what may be the name of a secret, or a URL with a password, in a text.
    pattern: Option<Regex>,
}

static SECRETS: OnceLock<Secrets> = OnceLock::new();

/// Adds to the names of secrets, before anything was shown; one with `-` in front is none any more. Whether it was
/// early enough.
pub fn set(changes: &[String]) -> bool {
    let mut made = false;
    SECRETS.get_or_init(|| {
        made = true;
        Secrets::new(changes)
    });
    made || changes.is_empty()
}

fn secrets() -> &'static Secrets {
    SECRETS.get_or_init(|| Secrets::new(&[]))
}

impl Secrets {
    fn new(changes: &[String]) -> Self {
        let mut names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        for change in changes {
            match change.strip_prefix('-') {
                Some(name) => names.retain(|known| plain(known) != plain(name)),
                None => names.push(change.clone()),
            }
        }
        names.retain(|name| !plain(name).is_empty());
        let words = names.iter().map(|name| {
            let parts: Vec<String> = name.split(SEPARATORS).map(regex::escape).collect();
            parts.join("[-_. ]?")
        });
        // Names, and `scheme://user:password@`.
        let all: Vec<String> = words.chain([r"://[^@\s]*:\S*@".to_owned()]).collect();
        Self {
            pattern: Regex::new(&format!("(?i:{})", all.join("|"))).ok(),
            names: names.iter().map(|name| plain(name)).collect(),
        }
    }
}

const SEPARATORS: [char; 4] = ['-', '_', '.', ' '];

/// A name without separators, in small letters.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|char| !SEPARATORS.contains(char))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Whether what has this name is a secret: also a second one (`password2`), and several (`cookies`); but `tokens` are
/// mostly counted.
pub fn is_secret(name: &str) -> bool {
    ends_as_one(name, &secrets().names)
}

/// The same by the usual names alone: for who reads the settings, before [`set`] has had its say.
#[cfg(feature = "server")]
pub(crate) fn is_usually_secret(name: &str) -> bool {
    ends_as_one(name, &NAMES.map(plain))
}

fn ends_as_one(name: &str, names: &[String]) -> bool {
    let name = plain(name);
    let name = name.trim_end_matches(|char: char| char.is_ascii_digit());
    let one = name.strip_suffix('s').filter(|one| !one.ends_with("token"));
    names
        .iter()
        .any(|secret| name.ends_with(secret) || one.is_some_and(|one| one.ends_with(secret)))
}

/// Whether a secret may stand in this text: a quick look that may be wrong about a text without one.
pub fn may_hold_secret(text: &str) -> bool {
    secrets().pattern.as_ref().is_none_or(|pattern| pattern.is_match(text))
}

/// Hides what is secret in a value: under its name, beside it in a pair, in JSON inside of a text, and passwords in
/// URLs.
pub fn hide(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(hidden) = hidden_text(text) {
                *text = hidden;
            }
        }
        // `["Authorization", "Bearer …"]`: headers are written as pairs, too.
        Value::Array(items) => match &mut items[..] {
            [Value::String(name), secret] if is_secret(name) => *secret = HIDDEN.into(),
            items => items.iter_mut().for_each(hide),
        },
        Value::Object(map) => hide_members(map),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Hides what is secret in an object, such as keyword arguments.
pub fn hide_members(map: &mut Map<String, Value>) {
    for (name, value) in map {
        if is_secret(name) && !value.is_null() {
            *value = HIDDEN.into();
        } else {
            hide(value);
        }
    }
}

fn hidden_text(text: &str) -> Cow<'_, str> {
    if !may_hold_secret(text) {
        return text.into();
    }
    if text.starts_with(['{', '[']) {
        if text.len() > LOOKED_INTO {
            return HIDDEN.into();
        }
        if let Ok(mut value) = serde_json::from_str::<Value>(text) {
            hide(&mut value);
            return value.to_string().into();
        }
    }
    hide_passwords(text).map_or(text.into(), Cow::Owned)
}

/// A text without the passwords of the URLs in it; `None` when there are none.
pub fn hide_passwords(text: &str) -> Option<String> {
    let mut hidden = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        let end = end_of_url(after);
        let (url, more) = after.split_at(end);
        let url = hide_in_query(url);
        hidden.push_str(before);
        hidden.push_str("://");
        // A password may have a `/` or `@` in it, as people write them.
        let parts = url
            .rsplit_once('@')
            .and_then(|(who, place)| Some((who.split_once(':')?, place)));
        match parts {
            Some(((user, secret), place)) if !is_port_and_path(secret) => {
                hidden.push_str(&format!("{user}:{HIDDEN}@{place}"));
            }
            _ => hidden.push_str(&url),
        }
        rest = more;
    }
    hidden.push_str(rest);
    (hidden != text).then_some(hidden)
}

/// Where a URL ends: before a space, or before the next of a list, as in `redis://a;redis://b`. A `;` that no other
/// scheme follows may be part of a password.
fn end_of_url(text: &str) -> usize {
    let is_of_scheme = |char: char| char.is_ascii_alphanumeric() || "+-.".contains(char);
    let mut from = 0;
    // Each place is looked at once: texts of strangers may be long, and full of these.
    loop {
        let next = text[from..].find("://").map(|at| from + at);
        let part = &text[from..next.unwrap_or(text.len())];
        if let Some(space) = part.find(char::is_whitespace) {
            return from + space;
        }
        let Some(next) = next else { return text.len() };
        let scheme = part.trim_end_matches(is_of_scheme).len();
        let begins = part[scheme..].starts_with(|char: char| char.is_ascii_alphabetic());
        if begins && part[..scheme].ends_with([';', ',']) {
            return from + scheme - 1;
        }
        from = next + "://".len();
    }
}

/// A URL without the values of its query that are secrets by their names.
fn hide_in_query(url: &str) -> Cow<'_, str> {
    let Some((place, query)) = url.split_once('?') else {
        return url.into();
    };
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}={HIDDEN}"),
        _ => pair.to_owned(),
    };
    let pairs: Vec<String> = query.split('&').map(pair).collect();
    format!("{place}?{}", pairs.join("&")).into()
}

/// `8080/path` of a URL without credentials that has an `@` further on.
fn is_port_and_path(text: &str) -> bool {
    let port = text.split_once('/').map(|(port, _)| port);
    port.is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_known_by_their_names() {
        for name in [
            "password",
            "db_password",
            "X-Api-Key",
            "apiKey",
            "accessToken",
            "Authorization",
            "client.secret",
            "password2",
            "cookies",
            "AWS_Credentials_1",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "max_tokens",
            "tokens",
            "token_count",
            "author",
            "passenger",
            "keys",
            "prompt",
            "secretary",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn what_is_secret_is_hidden_wherever_it_stands() {
        let mut value = json!({
            "user": "bob", "password": "hunter2", "token": null,
            "deep": [{"headers": [["Authorization", "Bearer hunter2"], ["Accept", "*/*"]]}],
            "url": "redis://u:hunter2@h:1/0 and http://h/x",
            "text": "{\"api_key\": \"hunter2\", \"n\": 1}",
        });
        hide(&mut value);
        assert!(!value.to_string().contains("hunter2"), "{value}");
        assert_eq!(value["user"], "bob");
        assert_eq!(value["token"], Value::Null);
        assert_eq!(value["deep"][0]["headers"][1], json!(["Accept", "*/*"]));
        assert_eq!(value["url"], "redis://u:********@h:1/0 and http://h/x");
    }

    #[test]
    fn a_password_with_an_at_sign_is_hidden_whole() {
        assert_eq!(
            hide_passwords("amqp://me:p@ss/word@host//").as_deref(),
            Some("amqp://me:********@host//")
        );
        assert_eq!(hide_passwords("see http://host/a@b and http://host:80/@c"), None);
    }

    #[test]
    fn the_passwords_of_all_urls_of_a_list_are_hidden() {
        for between in [";", ","] {
            let hosts = format!("redis://h:6379/0{between}redis://u:pw@b:6379/0{between}rediss://:p;w@c");
            let hidden = format!("redis://h:6379/0{between}redis://u:********@b:6379/0{between}rediss://:********@c");
            assert_eq!(hide_passwords(&hosts), Some(hidden));
        }
        assert_eq!(hide_passwords("redis://h:6379/0;redis://b:6379/0"), None);
        // In no more than one pass: in one for each comma this takes minutes.
        for long in [",".repeat(1 << 20), "a://;".repeat(1 << 18)] {
            assert_eq!(hide_passwords(&format!("a://{long}")), None);
        }
    }

    #[test]
    fn a_secret_in_the_query_of_a_url_is_hidden() {
        assert_eq!(
            hide_passwords("at redis://h:1/0?db=1&password=hunter2@x&timeout=3 now").as_deref(),
            Some("at redis://h:1/0?db=1&password=********&timeout=3 now")
        );
        assert_eq!(hide_passwords("http://h/x?page=2&max_tokens=3&y"), None);
    }

    #[test]
    fn a_long_text_that_may_hold_a_secret_is_hidden_whole() {
        let text = |length| format!(r#"{{"api_key": "hunter2", "text": "{}"}}"#, "x".repeat(length));
        assert!(hidden_text(&text(1000)).contains("xxx"));
        assert_eq!(hidden_text(&text(LOOKED_INTO)), HIDDEN);
    }
}
