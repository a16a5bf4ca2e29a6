//! `orchestra models explain`: where the calls of a task went, and why there.

use std::fmt::Write as _;

use serde_json::Value;

use super::out::plain;
use super::program::{Stopped, pretty, world};
use crate::ai::ollama::Route;
use crate::client::Client;
use crate::wire::State;

/// A call of a model, from its record.
struct Call {
    step: String,
    model: String,
    host: String,
    route: Route,
}

/// Prints the calls of a task.
pub(super) async fn explain(client: &Client, id: &str, json: bool) -> Result<(), Stopped> {
    let entries = entries(client, id).await?;
    let of = |kind: &'static str| entries.iter().filter(move |entry| entry["type"] == kind).cloned();
    let mut calls: Vec<Value> = of("call").collect();
    if calls.is_empty() {
        calls.extend(result(client, id).await?);
    }
    if json {
        println!("{}", pretty(&Value::from(calls)));
        return Ok(());
    }
    let shown: Vec<Call> = calls.into_iter().filter_map(read).collect();
    for (at, call) in shown.iter().enumerate() {
        if at > 0 {
            println!();
        }
        words(call).lines().for_each(|line| println!("{}", plain(line)));
    }
    if !shown.is_empty() {
        return Ok(());
    }
    if let Some(waits) = of("limit").next_back() {
        println!(
            "no call was answered yet; it waits for a limit: {} ({} s)",
            waits["limit"].as_str().unwrap_or_default(),
            waits["wait_s"]
        );
        return Ok(());
    }
    let state = client.result(id).state().await.map_err(world)?;
    Err(world(if state == State::Pending && entries.is_empty() {
        format!("nothing is known of a task {id}: streams are kept for an hour, results for result_expires")
    } else {
        format!("task {id} ({}) has no answer of a model in its record", state.as_str())
    }))
}

/// All entries of a task's stream.
async fn entries(client: &Client, id: &str) -> Result<Vec<Value>, Stopped> {
    let task = client.result(id);
    let (mut entries, mut after) = (Vec::new(), "0".to_owned());
    loop {
        let more = task.stream(&after).await.map_err(world)?;
        let Some(last) = more.last() else {
            return Ok(entries);
        };
        after.clone_from(&last.id);
        // Tokens say nothing of the way.
        let told = more
            .iter()
            .filter_map(|entry| serde_json::from_str::<Value>(entry.entry.get()).ok());
        entries.extend(told.filter(|entry| entry["type"] != "token" && entry["type"] != "thinking"));
    }
}

/// The answer itself, which outlives the stream.
async fn result(client: &Client, id: &str) -> Result<Option<Value>, Stopped> {
    let task = client.result(id);
    if task.state().await.map_err(world)? != State::Success {
        return Ok(None);
    }
    let answer: Value = task.get(std::time::Duration::from_secs(5)).await.map_err(world)?;
    Ok(answer["route"].is_object().then_some(answer))
}

fn read(call: Value) -> Option<Call> {
    let text = |name: &str| call[name].as_str().unwrap_or_default().to_owned();
    Some(Call {
        step: text("step"),
        model: text("model"),
        host: text("host"),
        route: serde_json::from_value(call["route"].clone()).ok()?,
    })
}

fn words(call: &Call) -> String {
    let route = &call.route;
    let mut text = String::new();
    let step = if matches!(&*call.step, "" | "answer") {
        String::new()
    } else {
        format!("step {}: ", call.step)
    };
    let how = match (&*route.why, &*route.strategy) {
        ("cache", _) => "nobody was asked: the answer was in the cache".to_owned(),
        ("joined", _) => "nobody was asked: the same call ran already, and its answer was waited for".to_owned(),
        (why, strategy) => format!(
            "{why}, chosen by {}",
            if strategy.is_empty() { "warm-first" } else { strategy }
        ),
    };
    let _ = writeln!(text, "{step}{} answered on {}", call.model, call.host);
    let _ = writeln!(text, "  why     {how}");
    if let Some(from) = &route.downgraded_from {
        let _ = writeln!(text, "  instead of {from}, whose budget is used up");
    }
    if let Some(limited) = &route.limited {
        let _ = writeln!(text, "  limit   waited {:.1} s for {}", limited.waited_s, limited.by);
    }
    if route.waited_s >= 0.05 {
        let _ = writeln!(text, "  place   waited {:.1} s for it", route.waited_s);
    }
    for failed in &route.failed {
        let _ = writeln!(text, "  failed  {}: {}", failed.host, failed.fault);
    }
    for stood in &route.hosts {
        let mark = if stood.host == call.host { "*" } else { " " };
        let _ = writeln!(text, "  host  {mark} {:<32} {}", stood.host, stood.was);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_call_is_told_with_what_was_known_of_the_hosts() {
        let call = read(json!({
            "step": "summary", "model": "m", "host": "http://a:1",
            "route": {
                "why": "warm", "strategy": "least-busy", "waited_s": 0.3, "prompt_sha256": "x",
                "limited": {"by": "everything: 60 requests a minute", "waited_s": 2.0},
                "failed": [{"host": "http://b:1", "fault": "HTTP 503: busy"}],
                "hosts": [{"host": "http://a:1", "was": "in memory, 0 of 4 calls"}],
            },
        }));
        assert_eq!(
            words(&call.unwrap()),
            "step summary: m answered on http://a:1\n  why     warm, chosen by least-busy\n  \
             limit   waited 2.0 s for everything: 60 requests a minute\n  place   waited 0.3 s for it\n  \
             failed  http://b:1: HTTP 503: busy\n  host  * http://a:1                       in memory, 0 of 4 calls\n"
        );
    }
}
