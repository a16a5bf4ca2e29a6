//! Reading the file and the environment.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;

use super::table::{Given, SETTINGS};
use crate::beat;

pub(super) fn read<T: DeserializeOwned>(value: toml::Value) -> Result<T, String> {
    let shown = value.to_string();
    // TOML has integers and floats; Celery's seconds are both.
    let value = match value {
        toml::Value::Integer(number) => match T::deserialize(toml::Value::Integer(number)) {
            Ok(read) => return Ok(read),
            #[expect(
                clippy::cast_precision_loss,
                reason = "a setting beyond 2^53 is no number of seconds"
            )]
            Err(_) => toml::Value::Float(number as f64),
        },
        value => value,
    };
    T::deserialize(value).map_err(|error| {
        let error = error.to_string();
        // Names of Rust types mean nothing to whoever wrote the file.
        let error = ["usize", "u32", "u8"].iter().fold(error, |text, name| {
            text.replace(&format!("expected {name}"), "expected a whole number")
        });
        let error = error.replace("expected f64", "expected a number");
        format!("{shown} does not fit: {}", error.trim().replace('\n', " "))
    })
}

/// An entry of `beat_schedule`.
pub(super) fn entry(name: &str, value: &toml::Value, zone: &TimeZone) -> Result<beat::Entry, String> {
    let definition = beat::Definition::deserialize(value.clone());
    let definition = definition.map_err(|error| error.message().trim().replace('\n', " "))?;
    beat::Entry::new(name, definition, zone)
}

/// The entries of `beat_schedule` are checked where their lines are still known.
fn check_schedule(path: &Path, text: &str, line_of: impl Fn(usize) -> usize) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Only {
        #[serde(default)]
        beat_schedule: BTreeMap<String, Spanned<toml::Value>>,
    }
    // A schedule that is no table is reported as every other setting is.
    let Ok(only) = toml::from_str::<Only>(text) else {
        return Ok(());
    };
    for (name, value) in only.beat_schedule {
        let line = line_of(value.span().start);
        entry(&name, value.get_ref(), &TimeZone::UTC)
            .map_err(|error| format!("{}:{line}: beat_schedule.{name}: {error}", path.display()))?;
    }
    Ok(())
}

pub(super) fn read_file(given: &mut Given, path: &Path, text: &str) -> Result<(), String> {
    let line_of = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let table: BTreeMap<String, Spanned<toml::Value>> = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(span.start));
        format!("{}:{line}: {}", path.display(), error.message().replace('\n', " "))
    })?;
    for (name, value) in table {
        let line = line_of(value.span().start);
        given
            .set(&name, value.into_inner())
            .map_err(|error| format!("{}:{line}: {name}: {error}", path.display()))?;
    }
    check_schedule(path, text, line_of)
}

/// How a variable ends that names a file in which its value stands: secrets are mounted as files.
const IN_FILE: &str = "_FILE";

/// The value that stands in the file, if the variable is one that names a file: `ORCHESTRA_BROKER_URL_FILE`.
fn secret_file(variable: &str, path: &str) -> Result<Option<String>, String> {
    let name = variable
        .strip_prefix("ORCHESTRA_")
        .and_then(|name| name.strip_suffix(IN_FILE));
    let is_setting = |name: &str| SETTINGS.iter().any(|setting| setting.name == name);
    if !name.is_some_and(|name| is_setting(&name.to_ascii_lowercase())) {
        return Ok(None);
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
        Err(error) => Err(format!("environment variable {variable}: cannot read {path}: {error}")),
    }
}

/// Reads the environment. A variable that is no setting is no error: Kubernetes makes `ORCHESTRA_PORT` and others for a
/// service of that name. One that is nearly a setting is worth a warning.
pub(super) fn read_environment(
    given: &mut Given,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    let mut variables: Vec<(String, String)> = variables.filter(|(_, value)| !value.is_empty()).collect();
    // The general names first, so that ORCHESTRA_… wins.
    let rank = |name: &str| (name.starts_with("ORCHESTRA_"), name == "CELERY_BROKER_READ_URL");
    variables.sort_by_key(|(name, _)| rank(name));
    let of = |wanted: &str| {
        variables
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, url)| url.clone())
    };
    if let Some(write) = of("CELERY_BROKER_WRITE_URL")
        && of("CELERY_BROKER_READ_URL").or_else(|| of("CELERY_BROKER_URL")) != Some(write)
    {
        warnings.push(
            "environment variable CELERY_BROKER_WRITE_URL has no effect: what follows a task is sent to the broker that \
             the task came from, in one step with its end"
                .to_owned(),
        );
    }
    for (variable, text) in variables {
        let (variable, text) = match secret_file(&variable, &text)? {
            Some(secret) => (variable.trim_end_matches(IN_FILE).to_owned(), secret),
            None => (variable, text),
        };
        let name = match variable.as_str() {
            "CELERY_BROKER_URL" | "CELERY_BROKER_READ_URL" => "broker_url".to_owned(),
            "CELERY_RESULT_BACKEND" => "result_backend".to_owned(),
            "OLLAMA_HOST" => "ai_hosts".to_owned(),
            other => match other.strip_prefix("ORCHESTRA_") {
                Some(rest) => rest.to_ascii_lowercase(),
                None => continue,
            },
        };
        if !SETTINGS.iter().any(|setting| setting.name == name) {
            if let Some(close) = crate::text::closest(&name, SETTINGS.iter().map(|setting| setting.name)) {
                let meant = close.to_ascii_uppercase();
                warnings.push(format!(
                    "environment variable {variable} is no setting; did you mean ORCHESTRA_{meant}?"
                ));
            }
            continue;
        }
        let as_text = toml::Value::String(text.clone());
        let as_value = toml::from_str::<toml::Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut table| table.remove("value"));
        // `6379` may be meant as a text and `8` as a number: the setting's type decides.
        let first = as_value.unwrap_or_else(|| as_text.clone());
        given
            .set(&name, first)
            .or_else(|error| given.set(&name, as_text).map_err(|_| error))
            .map_err(|error| format!("environment variable {variable}: {error}"))?;
    }
    Ok(warnings)
}

pub(super) fn unknown(name: &str) -> String {
    match crate::text::closest(name, SETTINGS.iter().map(|setting| setting.name)) {
        Some(close) => format!("there is no such setting; did you mean {close}?"),
        None => "there is no such setting; `orchestra config --all` lists them".to_owned(),
    }
}
