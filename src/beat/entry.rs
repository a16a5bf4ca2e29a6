//! One line of the schedule (`celery.beat.ScheduleEntry`): which task, when, with what.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schedule::Schedule;
use crate::client::Call;
use crate::clock::{self, Timestamp};

/// Longest name of an entry, a task or a queue.
const LONGEST_NAME: usize = 255;

/// Largest entry as JSON, in bytes.
const LARGEST: usize = 1 << 20;

/// An entry as it is written, in files and in Redis: a value of Celery's `beat_schedule`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Name of the task.
    pub task: String,
    /// Seconds, a crontab line, the fields of a crontab, or an event of the sun.
    pub schedule: Value,
    /// Positional arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Value>,
    /// Keyword arguments.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub kwargs: Map<String, Value>,
    /// Options of `apply_async`.
    #[serde(default, skip_serializing_if = "CallOptions::is_empty")]
    pub options: CallOptions,
    /// An interval is due at full days, hours or minutes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relative: bool,
}

/// Options of `apply_async`, in Celery's names; times are in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "Celery's own names")]
pub struct CallOptions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub countdown: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_time_limit: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_result: Option<bool>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub headers: Map<String, Value>,
}

impl CallOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An entry that was read and understood.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// As it is written.
    pub definition: Definition,
    /// When it is due.
    pub schedule: Schedule,
}

impl Entry {
    /// Understands an entry; `zone` is that of crontabs that name none.
    ///
    /// # Errors
    /// What is wrong, in words for whoever wrote it.
    pub fn new(name: impl Into<String>, definition: Definition, zone: &TimeZone) -> Result<Self, String> {
        let name = name.into();
        let options = &definition.options;
        for (what, text) in [
            ("its name", &*name),
            ("task", &definition.task),
            ("options.queue", options.queue.as_deref().unwrap_or("none")),
        ] {
            if text.is_empty() || text.len() > LONGEST_NAME {
                return Err(format!("{what}: a name has 1 to {LONGEST_NAME} characters"));
            }
        }
        if options.priority.is_some_and(|priority| priority > 9) {
            return Err("options.priority: a priority is 0 to 9".into());
        }
        for (what, seconds) in [
            ("expires", options.expires),
            ("countdown", options.countdown),
            ("time_limit", options.time_limit),
            ("soft_time_limit", options.soft_time_limit),
        ] {
            duration(seconds).map_err(|error| format!("options.{what}: {error}"))?;
        }
        let schedule = Schedule::read(&definition.schedule, definition.relative, zone)
            .map_err(|error| format!("schedule: {error}"))?;
        Ok(Self {
            name,
            definition,
            schedule,
        })
    }

    /// Reads an entry from JSON.
    ///
    /// # Errors
    /// What is wrong, in words for whoever wrote it.
    pub fn parse(name: &str, text: &str, zone: &TimeZone) -> Result<Self, String> {
        if text.len() > LARGEST {
            return Err(format!("it is larger than {LARGEST} bytes"));
        }
        let definition = serde_json::from_str(text).map_err(|error| error.to_string())?;
        Self::new(name, definition, zone)
    }

    /// As it is kept in Redis.
    pub fn text(&self) -> String {
        // Made of texts, numbers and JSON values: there is nothing in it that could fail.
        serde_json::to_string(&self.definition).unwrap_or_default()
    }

    /// The call that is sent. Its headers say that it comes from beat, as Celery's do, and for which time: a task that
    /// runs late can tell what it is late for.
    pub fn call(&self, due_at: Option<Timestamp>) -> Call {
        let Definition {
            task,
            args,
            kwargs,
            options,
            ..
        } = &self.definition;
        let mut call = Call::new(task);
        // Without them it goes where routes and defaults say, as every other call.
        if let Some(queue) = &options.queue {
            call = call.queue(queue);
        }
        if let Some(priority) = options.priority {
            call = call.priority(priority);
        }
        call = args.iter().fold(call, Call::arg);
        call = kwargs.iter().fold(call, |call, (name, value)| call.kwarg(name, value));
        let headers = options.headers.iter();
        call = headers.fold(call, |call, (name, value)| call.header(name, value.clone()));
        call = call.header("celery_beat_task", true);
        if let Some(at) = due_at {
            call = call.header("orchestra_due_at", clock::iso(at));
        }
        // They were checked when the entry was read.
        let seconds = |seconds| duration(seconds).ok().flatten();
        if let Some(after) = seconds(options.expires) {
            call = call.expires(after);
        }
        if let Some(pause) = seconds(options.countdown) {
            call = call.countdown(pause);
        }
        if let Some(limit) = seconds(options.time_limit) {
            call = call.time_limit(limit);
        }
        if let Some(limit) = seconds(options.soft_time_limit) {
            call = call.soft_time_limit(limit);
        }
        if options.ignore_result == Some(true) {
            call = call.ignore_result();
        }
        call
    }
}

fn duration(seconds: Option<f64>) -> Result<Option<Duration>, String> {
    let read = |seconds| Duration::try_from_secs_f64(seconds).map_err(|_| format!("{seconds} is no number of seconds"));
    seconds.map(read).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Entry, String> {
        Entry::parse("e", text, &TimeZone::UTC)
    }

    #[test]
    fn an_entry_is_kept_as_it_was_written() {
        let text = r#"{"task":"a","schedule":{"minute":"*/5"},"args":[1],"kwargs":{"b":2},"options":{"queue":"q","expires":3.0}}"#;
        assert_eq!(parse(text).unwrap().text(), text);
        assert_eq!(
            parse(r#"{"task":"a","schedule":1}"#).unwrap().text(),
            r#"{"task":"a","schedule":1}"#
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("", "EOF"),
            (r#"{"task":"a"}"#, "missing field `schedule`"),
            (r#"{"task":"","schedule":1}"#, "task: a name has 1 to 255"),
            (r#"{"task":"a","schedule":"x"}"#, "schedule: a crontab has five fields"),
            (
                r#"{"task":"a","schedule":1,"options":{"priority":10}}"#,
                "options.priority: ",
            ),
            (
                r#"{"task":"a","schedule":1,"options":{"expires":-1}}"#,
                "options.expires: -1 is no number of seconds",
            ),
            (
                r#"{"task":"a","schedule":1,"options":{"exchange":"x"}}"#,
                "unknown field `exchange`",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn names_and_entries_are_bounded() {
        let named = |length| parse(&format!(r#"{{"task":"{}","schedule":1}}"#, "x".repeat(length)));
        assert!(named(LONGEST_NAME).is_ok());
        assert!(
            named(LONGEST_NAME + 1)
                .unwrap_err()
                .contains("task: a name has 1 to 255")
        );
        let large = |bytes| {
            parse(&format!(
                r#"{{"task":"a","schedule":1,"args":["{}"]}}"#,
                "x".repeat(bytes)
            ))
        };
        assert!(large(LARGEST - 100).is_ok());
        assert!(large(LARGEST).unwrap_err().contains("larger than 1048576 bytes"));
    }
}
