//! `execute_script`: an allowed program, or a script for one, in the run's own folder.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Field, Fields, Stop, Type, Wrong, text, value};
use crate::ai::permits::Permits;
use crate::ai::program::{self, Program};
use crate::ai::site::{Site, blocking};

/// Longest part of what a program printed that an error shows.
const EXCERPT: usize = 500;
/// How much of a script is looked at for the program that runs it.
const HEAD: usize = 256;

pub(super) const TYPE: Type = Type {
    name: "execute_script",
    about: "runs a program of ai_programs, or a script for one, in a folder of its own",
    fields: FIELDS,
    check,
    is_local: false,
};

const FIELDS: &[Field] = &[
    text("program", "a program"),
    text(
        "script",
        "a script whose first line names an allowed program (#!…): in what was cloned, or in ai_read_paths",
    ),
    value("args", "arguments: a list, or a text that is parted as a shell would"),
    value("env", "environment variables"),
    value("check", "false: an exit code other than 0 is no failure"),
];

fn check(_: &Map<String, Value>, names: &[&str]) -> Wrong {
    match (names.contains(&"program"), names.contains(&"script")) {
        (false, false) => vec![("type", "a step of type execute_script needs program or script".into())],
        (true, true) => vec![("program", "a step has program or script, not both".into())],
        _ => Vec::new(),
    }
}

pub(super) async fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let permits = site.engine.permits();
    let refused = |text: String| Stop::failed("ScriptError", text);
    let home = site
        .workspace
        .folder()
        .map_err(|error| refused(format!("no folder for the run: {error}")))?;
    let mut arguments = arguments(fields.take("args"))?;
    let path = match (fields.text("program"), fields.text("script")) {
        (Some(name), _) => permits.program(&name).map_err(refused)?,
        (None, Some(script)) => {
            let (permits, home) = (permits.clone(), home.to_owned());
            let clone = super::git_clone::clone_of(site);
            let named = blocking(move || interpreter(&permits, &home, clone.as_deref(), Path::new(&script))).await?;
            let (interpreter, script) = named.map_err(refused)?;
            arguments.insert(0, script);
            interpreter
        }
        (None, None) => return Err(Stop::wrong("script: is empty")),
    };
    let environment = match fields.take("env") {
        None => Vec::new(),
        Some(Value::Object(env)) => env.into_iter().map(|(name, value)| (name, shown(&value))).collect(),
        Some(_) => return Err(Stop::wrong("env: must be an object")),
    };
    let checked = fields.flag("check")?.unwrap_or(true);
    // A script runs where it was cloned to.
    let folder = super::git_clone::clone_of(site).unwrap_or_else(|| home.to_owned());
    let name = path.display().to_string();
    let program = Program {
        path,
        arguments,
        folder,
        home: home.to_owned(),
        environment,
    };
    let ended = program::run(program, permits.limits).await.map_err(refused)?;
    if checked && ended.code != Some(0) {
        let how = ended.code.map_or_else(
            || "was killed: did it take too much time or memory, or too many processes?".into(),
            |code| format!("ended with {code}"),
        );
        let said = if ended.stderr.trim().is_empty() {
            &ended.stdout
        } else {
            &ended.stderr
        };
        let end: Vec<char> = said.trim().chars().rev().take(EXCERPT).collect();
        let end: String = end.into_iter().rev().collect();
        return Err(refused(format!("{name} {how}: {end}")));
    }
    let json: Option<Value> = serde_json::from_str(&ended.stdout).ok();
    Ok(json!({"code": ended.code, "text": ended.stdout, "stderr": ended.stderr, "json": json, "truncated": ended.cut}))
}

fn arguments(given: Option<Value>) -> Result<Vec<String>, Stop> {
    match given {
        None => Ok(Vec::new()),
        Some(Value::String(line)) => program::words(&line).map_err(|error| Stop::wrong(format!("args: {error}"))),
        Some(Value::Array(items)) => Ok(items.iter().map(shown).collect()),
        Some(_) => Err(Stop::wrong("args: must be a text or a list")),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The allowed program that a script's first line names, and the script's path.
fn interpreter(
    permits: &Permits,
    home: &Path,
    clone: Option<&Path>,
    script: &Path,
) -> Result<(PathBuf, String), String> {
    let place: PathBuf = match clone {
        Some(folder) if script.is_relative() => folder.join(script),
        _ => script.to_owned(),
    };
    // The program runs elsewhere: a relative path would lead it somewhere else.
    let place = permits.place(&place, Some(home))?;
    let file = permits.open(&place, Some(home))?;
    let mut head = [0; HEAD];
    let count =
        std::io::Read::read(&mut { file }, &mut head).map_err(|error| format!("{}: {error}", script.display()))?;
    let head = String::from_utf8_lossy(&head[..count]);
    let line = head.lines().next().unwrap_or_default();
    let mut words = line.strip_prefix("#!").unwrap_or_default().split_whitespace();
    let named = match words.next() {
        Some(env) if env.ends_with("/env") => words.next(),
        other => other,
    };
    let named = named.ok_or_else(|| format!("{}: its first line names no program (#!/usr/bin/…)", script.display()))?;
    Ok((permits.program(named)?, place.display().to_string()))
}
