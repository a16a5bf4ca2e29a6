//! `orchestra templates test`: cases beside the templates (`NAME.test.yaml`), with recorded answers or live models.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value};

use super::program::{Common, Stopped, pretty, usage, world};
use super::template_run::{run_here, why};
use crate::ai::template::read_yaml;
use crate::ai::{Engine, Recorded};
use crate::config::Settings;
use crate::task::Failure;
use crate::text::closest;

/// Fields of a case.
const CASE: &[&str] = &["name", "params", "answers", "live", "expect"];
/// What a case may expect.
const EXPECT: &[&str] = &["equals", "contains", "matches", "json", "schema", "snapshot", "fails"];

/// Runs the cases.
#[derive(Debug, Args)]
pub(super) struct Test {
    /// Names of templates; without any all that have cases
    names: Vec<String>,
    /// Ask the models in all cases
    #[arg(long)]
    live: bool,
    /// Ask the models of cases without answers, and keep what they say beside the template
    #[arg(long)]
    record: bool,
    /// Keep the results as the new snapshots
    #[arg(long)]
    update: bool,
}

/// One case.
struct Case {
    name: String,
    params: Map<String, Value>,
    answers: Option<Map<String, Value>>,
    live: bool,
    expect: Map<String, Value>,
}

impl Test {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let settings = common.settings()?;
        let folder = settings.ai.templates.path().to_owned();
        let files = files(&folder, &self.names)?;
        let (mut good, mut bad) = (0, 0);
        for (template, file) in files {
            for case in cases(&file)? {
                let failures = self.case(&settings, &folder, &template, &case).await?;
                let name = format!("{template}: {}", case.name);
                if failures.is_empty() {
                    good += 1;
                    println!("ok    {name}");
                } else {
                    bad += 1;
                    println!("FAIL  {name}");
                    for failure in failures {
                        println!("      {}", failure.replace('\n', "\n      "));
                    }
                }
            }
        }
        println!("{good} passed, {bad} failed");
        if bad > 0 {
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What is wrong with a case.
    async fn case(
        &self,
        settings: &Settings,
        folder: &Path,
        template: &str,
        case: &Case,
    ) -> Result<Vec<String>, Stopped> {
        let kept = folder
            .join("recorded")
            .join(format!("{template}.{}.json", file_name(&case.name)));
        let (answers, only) = match (&case.answers, self.live || case.live) {
            (_, true) => (Map::new(), false),
            (Some(answers), false) => (answers.clone(), true),
            (None, false) if self.record => (Map::new(), false),
            (None, false) => match read_json(&kept)? {
                Some(Value::Object(answers)) => (answers, true),
                _ => {
                    return Ok(vec![
                        "it has no answers: write some, or record them with --record".into(),
                    ]);
                }
            },
        };
        let engine = Engine::load(&settings.ai)
            .map_err(usage)?
            .with_recorded(Recorded::new(answers, only));
        let result = run_here(&engine, template, case.params.clone(), None).await;
        if self.record && !only && result.is_ok() {
            let heard = engine.recorded().map(Recorded::heard).unwrap_or_default();
            write_json(&kept, &Value::Object(heard))?;
        }
        let snapshot = folder
            .join("snapshots")
            .join(format!("{template}.{}.json", file_name(&case.name)));
        self.expectations(case, &result, &snapshot)
    }

    fn expectations(
        &self,
        case: &Case,
        result: &Result<Value, Failure>,
        snapshot: &Path,
    ) -> Result<Vec<String>, Stopped> {
        let wanted = case.expect.get("fails").and_then(Value::as_str);
        let output = match (result, wanted) {
            (Ok(output), None) => output,
            (Ok(output), Some(wanted)) => return Ok(vec![format!("it should fail with {wanted}, and gave {output}")]),
            (Err(failure), Some(wanted)) => {
                let text = why(failure);
                let fits = text.contains(wanted);
                return Ok(if fits {
                    Vec::new()
                } else {
                    vec![format!("it should fail with {wanted}, and failed with {text}")]
                });
            }
            (Err(failure), None) => return Ok(vec![format!("it failed: {}", why(failure))]),
        };
        let text = match output {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut wrong = Vec::new();
        for (kind, expected) in &case.expect {
            match kind.as_str() {
                "equals" if output != expected => wrong.push(format!("expected {expected}\ngot      {output}")),
                "contains" => {
                    for part in several(expected) {
                        if !text.contains(&part) {
                            wrong.push(format!("{part:?} is not in {text:?}"));
                        }
                    }
                }
                "matches" => {
                    for pattern in several(expected) {
                        let pattern =
                            regex::Regex::new(&pattern).map_err(|error| usage(format!("matches: {error}")))?;
                        if !pattern.is_match(&text) {
                            wrong.push(format!("{pattern} does not match {text:?}"));
                        }
                    }
                }
                "json" => {
                    for (path, expected) in expected.as_object().into_iter().flatten() {
                        match look(output, path) {
                            Some(found) if found == expected => {}
                            Some(found) => wrong.push(format!("{path} is {found}, not {expected}")),
                            None => wrong.push(format!("{path} is not in {output}")),
                        }
                    }
                }
                "schema" => {
                    let validator =
                        jsonschema::validator_for(expected).map_err(|error| usage(format!("schema: {error}")))?;
                    wrong.extend(
                        validator
                            .iter_errors(output)
                            .map(|error| format!("{}: {error}", error.instance_path())),
                    );
                }
                "snapshot" => match read_json(snapshot)? {
                    Some(kept) if !self.update => {
                        if kept != *output {
                            let (kept, output) = (pretty(&kept), pretty(output));
                            wrong.push(format!(
                                "it is not what the snapshot has (--update keeps it)\nwas {kept}\nis  {output}"
                            ));
                        }
                    }
                    _ => write_json(snapshot, output)?,
                },
                _ => {}
            }
        }
        Ok(wrong)
    }
}

/// The files of cases, and the templates they are for.
fn files(folder: &Path, names: &[String]) -> Result<Vec<(String, PathBuf)>, Stopped> {
    let mut found = Vec::new();
    if names.is_empty() {
        let entries = std::fs::read_dir(folder).map_err(|error| usage(format!("{}: {error}", folder.display())))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(template) = name.strip_suffix(".test.yaml") {
                found.push((template.to_owned(), path.clone()));
            }
        }
        found.sort();
    }
    for name in names {
        let path = folder.join(format!("{name}.test.yaml"));
        if !path.is_file() {
            return Err(usage(format!(
                "{} is not there: it would have the cases of {name}",
                path.display()
            )));
        }
        found.push((name.clone(), path));
    }
    if found.is_empty() {
        return Err(usage(format!(
            "there are no cases (NAME.test.yaml) in {}",
            folder.display()
        )));
    }
    Ok(found)
}

fn cases(file: &Path) -> Result<Vec<Case>, Stopped> {
    let wrong = |text: String| usage(format!("{}: {text}", file.display()));
    let whole = read_yaml(file).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        usage(lines.join("\n"))
    })?;
    let Some(Value::Array(cases)) = whole.get("cases") else {
        return Err(wrong("it needs cases, a list".into()));
    };
    let read = cases.iter().enumerate().map(|(at, case)| {
        let Value::Object(case) = case else {
            return Err(wrong(format!("cases[{at}] must be a mapping")));
        };
        known(case, CASE).map_err(|text| wrong(format!("cases[{at}] {text}")))?;
        let object = |name: &str| match case.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object.clone())),
            Some(_) => Err(wrong(format!("cases[{at}].{name} must be a mapping"))),
        };
        let expect = object("expect")?.unwrap_or_default();
        known(&expect, EXPECT).map_err(|text| wrong(format!("cases[{at}].expect {text}")))?;
        let name = case.get("name").and_then(Value::as_str);
        Ok(Case {
            name: name.map_or_else(|| format!("case {}", at + 1), str::to_owned),
            params: object("params")?.unwrap_or_default(),
            answers: object("answers")?,
            live: case.get("live") == Some(&Value::Bool(true)),
            expect,
        })
    });
    read.collect()
}

fn known(given: &Map<String, Value>, names: &[&str]) -> Result<(), String> {
    let Some(odd) = given.keys().find(|name| !names.contains(&name.as_str())) else {
        return Ok(());
    };
    let meant = closest(odd, names.iter().copied()).map(|close| format!("did you mean {close}?"));
    Err(format!(
        "has no {odd}; {}",
        meant.unwrap_or_else(|| format!("there are {}", names.join(", ")))
    ))
}

fn several(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        one => vec![text(one)],
    }
}

/// The value at a path such as `$.rows[0].name`.
fn look<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let path = path.strip_prefix('$').unwrap_or(path);
    let mut found = value;
    for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
        found = match part.strip_suffix(']') {
            Some(index) => match index.trim_matches(['"', '\'']) {
                name if name != index => found.get(name)?,
                index => found.get(index.parse::<usize>().ok()?)?,
            },
            None => found.get(part)?,
        };
    }
    Some(found)
}

/// A name as that of a file.
fn file_name(name: &str) -> String {
    name.chars()
        .map(|char| if char.is_alphanumeric() { char } else { '-' })
        .collect()
}

fn read_json(path: &Path) -> Result<Option<Value>, Stopped> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let read = serde_json::from_slice(&bytes);
            read.map(Some)
                .map_err(|error| usage(format!("{}: is no JSON: {error}", path.display())))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(world(format!("{}: {error}", path.display()))),
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), Stopped> {
    let wrong = |error: std::io::Error| world(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(wrong)?;
    }
    std::fs::write(path, format!("{}\n", pretty(value))).map_err(wrong)?;
    println!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::look;

    #[test]
    fn paths_lead_to_values() {
        let value = json!({"rows": [{"name": "a"}, {"name": "b"}], "n": 1});
        assert_eq!(look(&value, "$.rows[1].name"), Some(&json!("b")));
        assert_eq!(look(&value, "n"), Some(&json!(1)));
        assert_eq!(look(&value, "$"), Some(&value));
        assert_eq!(look(&value, "$['n']"), Some(&json!(1)));
        assert_eq!(look(&value, "$.rows[2]"), None);
    }
}
