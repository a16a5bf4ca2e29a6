//! Log output: text for people, JSON for machines.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format;

/// Starts logging.
///
/// # Errors
/// One line: the level is unknown, or the file cannot be written.
pub(super) fn start(level: &str, file: Option<&Path>, json: bool) -> Result<(), String> {
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
    // The line says it in words already; the fields are there for machines.
    let words = format::debug_fn(|out, field, value| match field.name() {
        "message" => write!(out, "{value:?}"),
        name if name.contains('.') => Ok(()),
        name => write!(out, " {name}={value:?}"),
    });
    let builder = tracing_subscriber::fmt().with_max_level(level).with_target(false);
    match file {
        Some(path) => {
            let open = OpenOptions::new().create(true).append(true).open(path);
            let file = open.map_err(|error| format!("cannot write the log file {}: {error}", path.display()))?;
            let builder = builder.with_ansi(false).with_writer(Mutex::new(file));
            if json {
                builder.json().init()
            } else {
                builder.fmt_fields(words).init()
            }
        }
        None => {
            let builder = builder
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr);
            if json {
                builder.json().init()
            } else {
                builder.fmt_fields(words).init()
            }
        }
    }
    Ok(())
}
