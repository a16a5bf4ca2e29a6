//! Reading the file and the environment.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::celery::{self, Fate};
use super::places::{Places, field};
use super::table::{Given, SETTINGS};
use crate::beat;
use crate::wire::redact::{HIDDEN, hide_passwords, is_usually_secret};

pub(super) fn read<T: DeserializeOwned>(name: &str, value: toml::Value) -> Result<T, String> {
    let shown = shown(name, &value);
    let is_plain = shown == written(&value);
    // TOML has integers and floats; Celery's seconds are both.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a setting beyond 2^53 is no number of seconds"
    )]
    let float = value.as_integer().map(|number| toml::Value::Float(number as f64));
    let read = T::deserialize(value).or_else(|error| float.and_then(|float| T::deserialize(float).ok()).ok_or(error));
    read.map_err(|error| {
        let error = error.to_string();
        let error = if is_plain { error } else { without_values(&error) };
        // Names of Rust types mean nothing to whoever wrote the file.
        let error = ["usize", "u32", "u8"].iter().fold(error, |text, name| {
            text.replace(&format!("expected {name}"), "expected a whole number")
        });
        let error = error.replace("expected f64", "expected a number");
        format!("{shown} does not fit: {}", error.trim().replace('\n', " "))
    })
}

/// A value as it may be shown where it is wrong: there may be secrets in it.
fn shown(name: &str, value: &toml::Value) -> String {
    match value {
        toml::Value::Table(_) => "the table".to_owned(),
        toml::Value::Array(_) => "the list".to_owned(),
        _ if is_usually_secret(name) => HIDDEN.to_owned(),
        toml::Value::String(text) => {
            let hidden = hide_passwords(text);
            toml::Value::String(hidden.unwrap_or_else(|| text.clone())).to_string()
        }
        value => written(value),
    }
}

fn written(value: &toml::Value) -> String {
    match value {
        toml::Value::Float(float) => crate::text::number(*float),
        value => value.to_string(),
    }
}

/// What serde says of a value, without what it quotes from it.
fn without_values(error: &str) -> String {
    let mut rest = error;
    let mut text = String::new();
    while let Some((before, quoted)) = rest.split_once("string \"") {
        let mut escaped = false;
        let end = quoted.find(|char| {
            let ends = char == '"' && !escaped;
            escaped = char == '\\' && !escaped;
            ends
        });
        text.push_str(before);
        text.push_str("a text");
        rest = end.map_or("", |end| &quoted[end + 1..]);
    }
    text.push_str(rest);
    for kind in ["integer", "floating point", "boolean"] {
        while let Some(at) = text.find(&format!("{kind} `")) {
            let from = at + kind.len();
            let end = text[from + 2..].find('`').map_or(text.len(), |end| from + 2 + end + 1);
            text.replace_range(from..end, "");
        }
    }
    text
}

/// An entry of `beat_schedule`.
pub(super) fn entry(name: &str, value: &toml::Value, zone: &TimeZone) -> Result<beat::Entry, String> {
    let definition = beat::Definition::deserialize(value.clone());
    let definition = definition.map_err(|error| {
        let text = without_values(error.message()).trim().replace('\n', " ");
        match field(&error.to_string()) {
            Some(field) => format!("{field}: {text}"),
            None => text,
        }
    })?;
    beat::Entry::new(name, definition, zone)
}

/// Reads the file; gives back what has no effect.
///
/// # Errors
/// Everything that is wrong, a line each, with its place.
pub(super) fn read_file(given: &mut Given, path: &Path, text: &str) -> Result<Vec<String>, String> {
    let shown = path.display();
    let places = Places::of(text).map_err(|(line, error)| format!("{shown}:{line}: {error}"))?;
    let table: BTreeMap<String, toml::Value> = toml::from_str(text).map_err(|error| {
        let (line, name) = places.of_span(error.span());
        let what = match error.message() {
            large if large.contains("i128") || large.contains("overflowed") => "this number is too large".to_owned(),
            other => other.replace('\n', " "),
        };
        format!("{shown}:{line}: {name}: {what}")
    })?;
    let (mut wrong, mut warnings) = (Vec::new(), Vec::new());
    for (name, value) in &table {
        let name = name.as_str();
        let mut note = |at: &[&str], error: &str| {
            let line = places.line(at, error);
            wrong.push((line, format!("{shown}:{line}: {}: {error}", at.join("."))));
        };
        match celery::fate(name) {
            Some(Fate::Elsewhere(what)) => note(&[name], &format!("this is no setting here: {what}")),
            Some(Fate::WithoutEffect(why)) => {
                let line = places.line(&[name], "");
                warnings.push(format!("{shown}:{line}: {name} has no effect: {why}"));
            }
            None => {
                // The entries of a schedule are checked where their lines are still known.
                let entries = value
                    .as_table()
                    .filter(|_| name == "beat_schedule")
                    .into_iter()
                    .flatten();
                for (entry, value) in entries {
                    if let Err(error) = self::entry(entry, value, &TimeZone::UTC) {
                        note(&[name, entry], &error);
                    }
                }
                if let Err(error) = given.set(name, value.clone()) {
                    note(&[name], &error);
                }
            }
        }
    }
    if wrong.is_empty() {
        return Ok(warnings);
    }
    wrong.sort();
    let wrong: Vec<String> = wrong.into_iter().map(|(_, text)| text).collect();
    Err(wrong.join("\n"))
}

/// How a variable ends that names a file in which its value stands: secrets are mounted as files.
const IN_FILE: &str = "_FILE";

/// Whether a variable is that of a setting: `ORCHESTRA_BROKER_URL`.
fn names_setting(variable: &str) -> bool {
    let name = variable.strip_prefix("ORCHESTRA_").map(str::to_ascii_lowercase);
    name.is_some_and(|name| SETTINGS.iter().any(|setting| setting.name == name))
}

/// The environment, of which only what concerns us must be a text.
pub(super) fn environment() -> Result<Vec<(String, String)>, String> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_)
                if ["ORCHESTRA_", "CELERY_", "OLLAMA_HOST"]
                    .iter()
                    .any(|ours| name.starts_with(ours)) =>
            {
                return Err(format!("environment variable {name}: its value is no UTF-8"));
            }
            Err(_) => {}
        }
    }
    Ok(variables)
}

/// The value that stands in the file, if the variable is one that names a file: `ORCHESTRA_BROKER_URL_FILE`.
fn secret_file(variable: &str, path: &str) -> Result<Option<String>, String> {
    if !variable.strip_suffix(IN_FILE).is_some_and(names_setting) {
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
    if of("OLLAMA_HOST").is_some() && of("ORCHESTRA_AI_HOSTS").is_none() && given.ai_hosts.is_some() {
        warnings.push(
            "environment variable OLLAMA_HOST takes the place of ai_hosts in the settings file; unset it to use the file's"
                .to_owned(),
        );
    }
    for (name, _) in &variables {
        let twin = name.strip_suffix(IN_FILE).filter(|twin| of(twin).is_some());
        if let Some(twin) = twin.filter(|twin| names_setting(twin)) {
            return Err(format!(
                "environment variables {twin} and {name} say the same twice; unset one"
            ));
        }
    }
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
            Some(secret) => {
                let variable = variable.trim_end_matches(IN_FILE).to_owned();
                let name = variable.trim_start_matches("ORCHESTRA_").to_ascii_lowercase();
                given.files.insert(name, (text.into(), secret.clone()));
                (variable, secret)
            }
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
        // `6379` may be meant as a text and `8` as a number: the setting's type decides. A list is meant as one
        // where the setting takes lists: what takes a text in its place would take it apart at its commas.
        let is_list = matches!(as_value, Some(toml::Value::Array(_)));
        let first = as_value.unwrap_or_else(|| as_text.clone());
        given
            .set(&name, first)
            .or_else(
                |error| match is_list && given.set(&name, toml::Value::Array(Vec::new())).is_ok() {
                    true => Err(error),
                    false => given.set(&name, as_text).map_err(|_| error),
                },
            )
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
