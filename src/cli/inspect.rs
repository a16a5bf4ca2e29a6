//! `orchestra status` and `orchestra inspect`: what `celery status` and `celery inspect` show, as tables.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::commands::{Audience, Kind, find, list};
use super::control::shown;
use super::doctor;
use super::out::{plain, plain_lines};
use super::program::{Common, Stopped, dead_queues, pretty, usage, world};
use super::table::{Table, cell};
use crate::clock;

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    audience: Audience,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// What to ask for; `list` shows what there is
    #[arg(required_unless_present = "list")]
    method: Option<String>,
    /// Its arguments, in the order of `celery inspect`
    arguments: Vec<String>,
    /// Show what there is
    #[arg(short = 'l', long)]
    list: bool,
    #[command(flatten)]
    audience: Audience,
}

impl Status {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let workers = self.audience.ask(common, "ping", &json!({})).await?;
        if self.audience.json {
            println!("{}", Value::Object(workers));
            return Ok(ExitCode::SUCCESS);
        }
        for worker in workers.keys() {
            println!("->  {}: OK", plain(worker));
        }
        let s = if workers.len() == 1 { "" } else { "s" };
        println!("\n{} node{s} online.", workers.len());
        let settings = common.settings()?;
        let broker = common.broker(&settings).await?;
        for queue in dead_queues(&broker, &settings).await.map_err(world)? {
            println!("{}", doctor::dead(&queue));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Inspect {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let method = self.method.filter(|_| !self.list).unwrap_or_else(|| "list".into());
        if method == "list" {
            println!("{}", list(Kind::Inspect));
            return Ok(ExitCode::SUCCESS);
        }
        let command = find(Kind::Inspect, &method).map_err(usage)?;
        let arguments = command.arguments(&self.arguments).map_err(usage)?;
        let answers = self.audience.ask(common, command.name, &arguments).await?;
        let failed = answers.values().any(|answer| answer.get("error").is_some());
        if self.audience.json {
            println!("{}", Value::Object(answers));
        } else {
            print!("{}", text(command.name, &answers));
        }
        Ok(ExitCode::from(u8::from(failed)))
    }
}

/// The answers of all workers, for people.
fn text(method: &str, answers: &Map<String, Value>) -> String {
    let (bad, good): (Vec<_>, Vec<_>) = answers.iter().partition(|(_, answer)| answer.get("error").is_some());
    let mut out = match method {
        "active" | "reserved" => table(&["WORKER", "TASK", "ID", "AGE", "ARGS", "KWARGS"], &good, requests),
        "scheduled" => table(&["WORKER", "TASK", "ID", "ETA", "ARGS", "KWARGS"], &good, scheduled),
        "active_queues" => table(&["WORKER", "QUEUE", "EXCHANGE", "TYPE", "ROUTING KEY"], &good, queues),
        "registered" => table(&["WORKER", "TASK"], &good, |answer| {
            items(answer, |task| vec![cell(Some(task))])
        }),
        "revoked" => table(&["WORKER", "ID"], &good, |answer| {
            items(answer, |id| vec![cell(Some(id))])
        }),
        "query_task" => table(&["WORKER", "ID", "STATE", "TASK"], &good, found),
        "clock" => table(&["WORKER", "CLOCK"], &good, |answer| {
            vec![vec![cell(answer.get("clock"))]]
        }),
        "ping" | "memsample" => table(&["WORKER", "ANSWER"], &good, |answer| {
            vec![vec![cell(answer.get("ok").or(Some(answer)))]]
        }),
        "stats" | "conf" => sections(&good, |answer| {
            let mut table = Table::new(&[]);
            flatten("", answer, &mut table);
            table.to_string()
        }),
        _ => sections(&good, |answer| match answer.get("ok").unwrap_or(answer) {
            Value::String(text) => format!("{}\n", plain_lines(text.trim_matches('\n'))),
            other => format!("{}\n", plain_lines(&pretty(other))),
        }),
    };
    for (worker, answer) in bad {
        out.push_str(&plain(&format!("{worker}: {}", shown(answer))));
        out.push('\n');
    }
    out
}

fn table(heading: &[&str], answers: &[(&String, &Value)], rows: impl Fn(&Value) -> Vec<Vec<String>>) -> String {
    let mut table = Table::new(heading);
    for (worker, answer) in answers {
        for row in rows(answer) {
            table.row(std::iter::once((*worker).clone()).chain(row));
        }
    }
    if table.is_empty() {
        let s = if answers.len() == 1 { "" } else { "s" };
        return format!("nothing on {} worker{s}\n", answers.len());
    }
    table.to_string()
}

fn sections(answers: &[(&String, &Value)], body: impl Fn(&Value) -> String) -> String {
    let section = |(worker, answer): &(&String, &Value)| format!("{}\n{}", plain(worker), indent(&body(answer)));
    answers.iter().map(section).collect::<Vec<_>>().join("\n")
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

fn items(answer: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    answer.as_array().into_iter().flatten().map(row).collect()
}

fn request(request: &Value, when: String) -> Vec<String> {
    let get = |name: &str| cell(request.get(name));
    vec![get("name"), get("id"), when, get("args"), get("kwargs")]
}

fn requests(answer: &Value) -> Vec<Vec<String>> {
    let now = clock::epoch_seconds(clock::now());
    items(answer, |one| {
        let since = one.get("time_start").and_then(Value::as_f64);
        request(one, since.map_or_else(|| "-".to_owned(), |since| age(now - since)))
    })
}

fn scheduled(answer: &Value) -> Vec<Vec<String>> {
    items(answer, |one| {
        request(one.get("request").unwrap_or(&Value::Null), cell(one.get("eta")))
    })
}

fn queues(answer: &Value) -> Vec<Vec<String>> {
    items(answer, |queue| {
        let exchange = queue.get("exchange");
        let of_exchange = |name: &str| cell(exchange.and_then(|exchange| exchange.get(name)));
        vec![
            cell(queue.get("name")),
            of_exchange("name"),
            of_exchange("type"),
            cell(queue.get("routing_key")),
        ]
    })
}

fn found(answer: &Value) -> Vec<Vec<String>> {
    let found = answer.as_object().into_iter().flatten();
    found
        .map(|(id, place)| {
            vec![
                id.clone(),
                cell(place.get(0)),
                cell(place.get(1).and_then(|info| info.get("name"))),
            ]
        })
        .collect()
}

/// `broker.hostname  127.0.0.1` and so on, one line for each value.
fn flatten(prefix: &str, value: &Value, table: &mut Table) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                let name = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&name, value, table);
            }
        }
        value => table.row([prefix.to_owned(), cell(Some(value))]),
    }
}

/// How long something takes already: `3.2s`, `2m05s`, `1h03m`.
pub(super) fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 60.0 {
        return format!("{seconds:.1}s");
    }
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "not below zero, and a cut age is far away"
    )]
    let whole = seconds as u64;
    match whole {
        0..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_tables() {
        let answers = json!({
            "w@h": [{"name": "t", "id": "1", "args": [1, "two\n"], "kwargs": {}, "time_start": null}],
            "x@h": {"error": "KeyError('active')"},
        });
        let text = text("active", answers.as_object().unwrap());
        assert!(text.contains("WORKER  TASK  ID  AGE  ARGS"), "{text}");
        assert!(text.contains("w@h     t     1   -    [1,\"two\\n\"]  {}"), "{text}");
        assert!(text.ends_with("x@h: error: KeyError('active')\n"), "{text}");
        assert_eq!(age(3.21), "3.2s");
        assert_eq!(age(125.0), "2m05s");
        assert_eq!(age(3784.0), "1h03m");
    }
}
