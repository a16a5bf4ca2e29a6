//! Log output: text for people, JSON for machines. Every line that belongs to a task names it, also what the task
//! itself logs; what is secret by its name is not written.

use std::borrow::Cow;
use std::fmt;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::log_file::LogFile;
use super::program::Stopped;
use crate::clock;
use crate::task;
use crate::wire::redact::{HIDDEN, hide_passwords, is_secret};

/// What a program says of itself is kept whatever the level.
const SAID: &str = "said";

/// The fields that name a task.
const ID: &str = "task.id";
const NAME: &str = "task.name";
const ATTEMPT: &str = "run.attempt";

/// Where a program that goes on for long says what becomes of it. Clones say it in the same place.
#[derive(Clone)]
pub(super) struct Log {
    program: &'static str,
    json: bool,
    file: Option<LogFile>,
    detached: Arc<AtomicBool>,
}

impl Log {
    /// Says something of the program itself: a line for a person who looks on, and a line of the log where that is for
    /// machines or goes to a file.
    pub(super) fn say(&self, text: impl fmt::Display) {
        if self.is_kept() {
            tracing::info!(target: SAID, "{}: {text}", self.program);
        }
        self.show(text);
    }

    /// The same of what somebody should do something about.
    pub(super) fn warn(&self, text: impl fmt::Display) {
        if self.is_kept() {
            tracing::warn!(target: SAID, "{}: {text}", self.program);
        }
        self.show(text);
    }

    /// Says why the program ends, and with which code.
    pub(super) fn end(&self, stopped: Stopped) -> std::process::ExitCode {
        let Stopped { text, code } = stopped;
        if self.is_kept() {
            tracing::error!(target: SAID, "{}: {text}", self.program);
        }
        self.show(text);
        std::process::ExitCode::from(code)
    }

    /// Whether every line is for machines.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Opens the file again, which may have another name by now, and says so.
    pub(super) fn reopen(&self, why: &str) {
        let Some(file) = &self.file else {
            return self.say(format_args!(
                "{why}: there is no log file to open again; the program goes on"
            ));
        };
        match file.reopen() {
            Ok(()) => self.say(format_args!("{why}: the log goes on in {}", file.path().display())),
            Err(error) => self.warn(format_args!("{why}: {error}; the log goes on where it was")),
        }
    }

    /// What goes to stderr and stdout from now on goes to the file, or nowhere.
    ///
    /// # Errors
    /// One line.
    pub(super) fn leave_terminal(&self) -> Result<(), String> {
        self.detached.store(true, Ordering::Relaxed);
        match &self.file {
            Some(file) => file.take_output(),
            None => LogFile::open(Path::new("/dev/null"))?.take_output(),
        }
    }

    fn is_kept(&self) -> bool {
        self.json || self.file.is_some()
    }

    fn show(&self, text: impl fmt::Display) {
        // What has left the terminal writes to the file already, and lines between those of JSON are none.
        let is_there_already = self.is_kept() && self.detached.load(Ordering::Relaxed);
        let is_log = self.json && self.file.is_none();
        if !is_log && !is_there_already {
            eprintln!("{}: {text}", self.program);
        }
    }
}

/// Starts logging for the program of that name.
///
/// # Errors
/// One line: the level is unknown, or the file cannot be written.
pub(super) fn start(program: &'static str, level: &str, file: Option<&Path>, json: bool) -> Result<Log, String> {
    let level = match level.to_ascii_uppercase().as_str() {
        "DEBUG" => LevelFilter::DEBUG,
        "INFO" => LevelFilter::INFO,
        "WARNING" | "WARN" => LevelFilter::WARN,
        "ERROR" | "CRITICAL" | "FATAL" => LevelFilter::ERROR,
        "TRACE" => LevelFilter::TRACE,
        other => {
            return Err(format!(
                "unknown log level {other:?}: use DEBUG, INFO, WARNING, ERROR or CRITICAL"
            ));
        }
    };
    let builder = tracing_subscriber::fmt()
        // `wanted` decides.
        .with_max_level(level.max(LevelFilter::INFO))
        // It would say on stderr that it cannot write to stderr, and panic.
        .log_internal_errors(false);
    let wanted = Targets::new().with_default(level).with_target(SAID, LevelFilter::INFO);
    let file = file.map(LogFile::open).transpose()?;
    match file.clone() {
        Some(file) => builder
            .with_ansi(false)
            .event_format(Lines { json })
            .with_writer(move || file.clone())
            .finish()
            .with(wanted)
            .init(),
        None => builder
            .with_ansi(!json && has_colors())
            .event_format(Lines { json })
            .with_writer(std::io::stderr)
            .finish()
            .with(wanted)
            .init(),
    }
    Ok(Log {
        program,
        json,
        file,
        detached: Arc::default(),
    })
}

/// Whether colors are wanted: on a terminal that has some, by somebody who did not say no (no-color.org).
fn has_colors() -> bool {
    let is = |name: &str, test: fn(&std::ffi::OsStr) -> bool| std::env::var_os(name).is_some_and(|value| test(&value));
    std::io::stderr().is_terminal()
        && !is("NO_COLOR", |value| !value.is_empty())
        && !is("TERM", |value| value == "dumb")
}

/// One line for each event.
struct Lines {
    json: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        fields.name_task();
        if self.json {
            as_json(out, *event.metadata().level(), fields)
        } else {
            as_text(out, *event.metadata().level(), &fields)
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
    /// The task is named because the event happened inside of it, not by the event.
    is_inside: bool,
}

impl Fields {
    /// Names the task that the event happened in.
    fn name_task(&mut self) {
        if self.others.contains_key(ID) {
            return;
        }
        let Some(context) = task::current() else { return };
        self.is_inside = true;
        self.others.insert(ID.into(), context.id().into());
        self.others.insert(NAME.into(), context.name().into());
        self.others.insert(ATTEMPT.into(), context.retries().into());
        if let Some(trace) = &context.details().trace {
            let (trace, span) = trace.ids();
            self.others.insert("trace_id".into(), trace.into());
            self.others.insert("span_id".into(), span.into());
        }
    }

    fn add(&mut self, field: &Field, value: impl FnOnce() -> Value) {
        let name = field.name();
        let value = if is_secret(name) { HIDDEN.into() } else { value() };
        self.others.insert(name.to_owned(), value);
    }
}

fn without_passwords(text: String) -> String {
    if text.contains("://") {
        hide_passwords(&text).unwrap_or(text)
    } else {
        text
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = without_passwords(format!("{value:?}"));
        } else {
            self.add(field, || without_passwords(format!("{value:?}")).into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, || without_passwords(value.to_owned()).into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, || value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, || value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, || json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, || value.into());
    }
}

fn as_json(mut out: Writer<'_>, level: Level, fields: Fields) -> fmt::Result {
    let mut all = Map::new();
    all.insert("message".to_owned(), fields.message.into());
    all.extend(fields.others);
    let line = json!({"timestamp": clock::iso(clock::now()), "level": level.as_str(), "fields": all});
    writeln!(out, "{line}")
}

/// A text as a terminal may have it: names of tasks and queues come from outside, and must not clear the screen or look
/// like lines of the log. What has several lines has the others indented.
fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match char {
            '\n' => out.push_str("\n  "),
            '\t' => out.push(char),
            char if char.is_control() => out.extend(char.escape_default()),
            char => out.push(char),
        }
    }
    out.into()
}

/// What a line of the worker says of a task is in its words already; the fields that search needs are for machines, but
/// the attempt is shown, and the name of a task that logs by itself.
fn as_text(mut out: Writer<'_>, level: Level, fields: &Fields) -> fmt::Result {
    let (color, end) = match (out.has_ansi_escapes(), level) {
        (false, _) => ("", ""),
        (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
        (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
        (true, Level::INFO) => ("\x1b[32m", "\x1b[0m"),
        (true, _) => ("\x1b[34m", "\x1b[0m"),
    };
    write!(out, "{} {color}{level:>5}{end} ", clock::iso(clock::now()))?;
    let text = |name: &str| fields.others.get(name).and_then(Value::as_str).unwrap_or_default();
    if fields.is_inside {
        write!(out, "{}[{}]: ", harmless(text(NAME)), harmless(text(ID)))?;
    }
    out.write_str(&harmless(&fields.message))?;
    for (name, value) in &fields.others {
        match (name.as_str(), value) {
            (ATTEMPT, _) => write!(out, " attempt={value}")?,
            (name, _) if name.contains('.') || matches!(name, "trace_id" | "span_id") => {}
            (name, Value::String(text)) => write!(out, " {name}={}", harmless(text))?,
            (name, value) => write!(out, " {name}={value}")?,
        }
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn what_comes_from_outside_cannot_forge_a_line_or_move_the_cursor() {
        assert_eq!(harmless("plain\ttext"), "plain\ttext");
        assert_eq!(
            harmless("q\u{1b}[2J\0\r\n2026 INFO"),
            "q\\u{1b}[2J\\u{0}\\r\n  2026 INFO"
        );
    }
}
