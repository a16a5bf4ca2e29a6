//! `orchestra events`: events as they come, a line each.

use std::collections::{HashMap, VecDeque};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::program::{Common, Stopped, world};
use crate::clock;
use crate::wire::{Heard, repr};

/// Tasks whose names are remembered: only the first event of a task has it.
const NAMES: usize = 10_000;

/// Patterns may have `*` for any characters; an event is shown when it fits one pattern of each kind that is given.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only these types, such as task-failed or worker-*
    #[arg(long = "type", value_name = "PATTERN", value_delimiter = ',')]
    types: Vec<String>,
    /// Only events of tasks with these names
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    task: Vec<String>,
    /// Only events of these workers and senders
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    worker: Vec<String>,
    /// Ask all workers to send task events first
    #[arg(short = 'e', long)]
    enable: bool,
    /// End after so many events
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<u64>,
    /// Print each event as a line of JSON
    #[arg(short = 'j', long, conflicts_with = "dump")]
    json: bool,
    /// Print all fields, in the form of `celery events --dump`
    #[arg(long)]
    dump: bool,
}

impl Events {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let client = common.sender().await?;
        let mut events = client
            .events(&common.settings()?.event_exchange())
            .await
            .map_err(world)?;
        if self.enable {
            client.cast("enable_events", &json!({}), None).await.map_err(world)?;
        }
        if self.dump {
            println!("-> evdump: starting capture...");
        }
        let mut names = Names::default();
        let mut left = self.limit.unwrap_or(u64::MAX);
        while left > 0
            && let Some(event) = events.next().await
        {
            names.learn(&event);
            if !self.is_wanted(&event, &names) {
                continue;
            }
            let line = if self.json {
                Value::Object(event.fields.clone()).to_string()
            } else if self.dump {
                dump(&event, &names)
            } else {
                line(&event, &names)
            };
            println!("{line}");
            left -= 1;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn is_wanted(&self, event: &Heard, names: &Names) -> bool {
        let fits = |patterns: &[String], text: &str| {
            patterns.is_empty() || patterns.iter().any(|pattern| crate::text::fits(pattern, text))
        };
        fits(&self.types, &event.name)
            && fits(&self.worker, &event.hostname)
            && (self.task.is_empty() || fits(&self.task, names.of(event).map_or("", |task| &task.name)))
    }
}

/// What is known of a task.
struct Task {
    name: String,
    /// As `celery events --dump` shows it.
    shown: String,
}

/// The tasks that were heard of last.
#[derive(Default)]
struct Names {
    tasks: HashMap<String, Task>,
    order: VecDeque<String>,
}

impl Names {
    fn learn(&mut self, event: &Heard) {
        if !matches!(event.name.as_str(), "task-received" | "task-sent") {
            return;
        }
        let text = |name: &str| event.fields.get(name).and_then(Value::as_str).unwrap_or_default();
        let (id, name) = (text("uuid"), text("name"));
        let task = Task {
            name: name.to_owned(),
            shown: format!(
                "{name}({id}) args={} kwargs={}",
                python(event.fields.get("args")),
                python(event.fields.get("kwargs"))
            ),
        };
        if self.tasks.insert(id.to_owned(), task).is_none() {
            self.order.push_back(id.to_owned());
        }
        if self.order.len() > NAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.tasks.remove(&oldest);
        }
    }

    fn of(&self, event: &Heard) -> Option<&Task> {
        self.tasks.get(event.fields.get("uuid")?.as_str()?)
    }
}

/// Python's `str` of a value.
fn python(value: Option<&Value>) -> String {
    match value {
        None => "None".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => repr(other),
    }
}

fn at(event: &Heard) -> Option<clock::Timestamp> {
    clock::from_epoch_seconds(event.fields.get("timestamp")?.as_f64()?)
}

/// The form of `celery.events.dumper`.
fn dump(event: &Heard, names: &Names) -> String {
    let mut fields: Vec<(&String, &Value)> = event.fields.iter().collect();
    let hidden = |name: &str| {
        let of_task = event.name.starts_with("task-") && name == "uuid";
        let of_first =
            matches!(event.name.as_str(), "task-received" | "task-sent") && matches!(name, "name" | "args" | "kwargs");
        matches!(name, "timestamp" | "type" | "hostname") || of_task || of_first
    };
    fields.retain(|(name, _)| !hidden(name));
    fields.sort_by_key(|(name, _)| *name);
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", python(Some(value))))
        .collect();
    let kind = match event.name.as_str() {
        "worker-online" => "started".to_owned(),
        "worker-offline" => "shutdown".to_owned(),
        "worker-heartbeat" => "heartbeat".to_owned(),
        other => other.to_lowercase().replace('-', " "),
    };
    let time = at(event).map_or_else(String::new, |at| clock::iso(at).replacen('T', " ", 1));
    let task = match (event.name.starts_with("task-"), names.of(event)) {
        (true, Some(task)) => format!("{} ", task.shown),
        (true, None) => " ".to_owned(),
        (false, _) => String::new(),
    };
    let colon = if fields.is_empty() { "" } else { ":" };
    let line = format!("{} [{time}] {kind}{colon} {task}{}", event.hostname, fields.join(", "));
    one_line(&line)
}

/// One line for people: when, what, which task, where, and what is worth knowing of it.
fn line(event: &Heard, names: &Names) -> String {
    let time = at(event).map_or_else(|| "-".to_owned(), clock::local_time);
    let mut line = format!("{time}  {:<16}", event.name);
    if let Some(id) = event.fields.get("uuid").and_then(Value::as_str) {
        let name = names.of(event).map_or("?", |task| &task.name);
        line.push_str(&format!("  {name}[{id}]"));
    }
    line.push_str(&format!("  {}", event.hostname));
    let more: Vec<String> = told(&event.fields);
    if !more.is_empty() {
        line.push_str(&format!("  {}", more.join(" ")));
    }
    one_line(&line)
}

/// What others send must not move the cursor.
fn one_line(line: &str) -> String {
    line.replace(char::is_control, " ")
}

fn told(fields: &Map<String, Value>) -> Vec<String> {
    const KNOWN: [&str; 17] = [
        "type",
        "timestamp",
        "hostname",
        "uuid",
        "name",
        "utcoffset",
        "pid",
        "clock",
        "freq",
        "sw_ident",
        "sw_ver",
        "sw_sys",
        "root_id",
        "parent_id",
        "traceback",
        "local_received",
        "routing_key",
    ];
    let nothing =
        |value: &Value| value.is_null() || matches!(value.as_str(), Some("" | "()" | "{}")) || *value == json!(0);
    let told = fields
        .iter()
        .filter(|(name, value)| !KNOWN.contains(&name.as_str()) && !nothing(value));
    told.map(|(name, value)| match (name.as_str(), value.as_f64()) {
        ("runtime", Some(seconds)) => format!("runtime={seconds:.3}s"),
        _ => format!("{name}={}", python(Some(value))),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(fields: Value) -> Heard {
        let Value::Object(fields) = fields else {
            panic!("no object")
        };
        let text = |name: &str| fields[name].as_str().unwrap().to_owned();
        Heard {
            name: text("type"),
            hostname: text("hostname"),
            pid: None,
            clock: None,
            fields,
        }
    }

    #[test]
    fn events_are_lines() {
        let received = heard(json!({
            "type": "task-received", "hostname": "w@h", "timestamp": 1.5, "uuid": "1", "name": "t", "args": "(2,)",
            "kwargs": "{}", "retries": 0, "eta": null,
        }));
        let failed = heard(json!({
            "type": "task-failed", "hostname": "w@h", "timestamp": 2, "uuid": "1", "exception": "ValueError('a\u{1b}')",
            "traceback": "long",
        }));
        let mut names = Names::default();
        names.learn(&received);
        assert!(
            line(&received, &names).ends_with("task-received     t[1]  w@h  args=(2,)"),
            "{}",
            line(&received, &names)
        );
        assert!(
            line(&failed, &names).ends_with("t[1]  w@h  exception=ValueError('a ')"),
            "{}",
            line(&failed, &names)
        );
        assert_eq!(
            dump(&received, &names),
            "w@h [1970-01-01 00:00:01.500000+00:00] task received: t(1) args=(2,) kwargs={} eta=None, retries=0"
        );
        let online = heard(json!({"type": "worker-online", "hostname": "w@h", "timestamp": 1.5, "freq": 2.0}));
        assert_eq!(
            dump(&online, &names),
            "w@h [1970-01-01 00:00:01.500000+00:00] started: freq=2.0"
        );
    }

    #[test]
    fn names_of_tasks_are_remembered_of_the_newest() {
        let received = |n: usize| {
            heard(
                json!({"type": "task-received", "hostname": "w@h", "timestamp": 1, "uuid": n.to_string(), "name": "t"}),
            )
        };
        let mut names = Names::default();
        for n in 0..NAMES + 5 {
            names.learn(&received(n));
        }
        assert_eq!((names.tasks.len(), names.order.len()), (NAMES, NAMES));
        assert!(names.of(&received(NAMES)).is_some() && names.of(&received(0)).is_none());
    }
}
