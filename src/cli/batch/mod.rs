//! `orchestra batch`: a task or a template, once for every row of a file.

mod journal;
mod rows;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;

use super::out::{Out, plain};
use super::program::{Common, Stopped, pretty, world};
use crate::text::count;
use journal::{Line, read};

/// `orchestra batch run rows.jsonl --template summarize`.
#[derive(Debug, Subcommand)]
pub(super) enum Batch {
    /// Run every row, write the results to a file; the same command again goes on where it stopped
    Run(run::Run),
    /// List the rows whose last run failed
    Failed {
        /// File of results
        results: PathBuf,
        /// Print JSON, one row a line
        #[arg(short = 'j', long)]
        json: bool,
    },
    /// Write results as CSV to the standard output: the row number, the state, the inputs, the result or the error
    Export {
        /// File of results
        results: PathBuf,
    },
}

impl Batch {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        match self {
            Self::Run(run) => run.run(common).await,
            Self::Failed { results, json } => failed(&results, json),
            Self::Export { results } => export(&results),
        }
    }
}

fn failed(results: &std::path::Path, json: bool) -> Result<ExitCode, Stopped> {
    let lines = read(results).map_err(world)?;
    let failed: Vec<&Line> = lines.values().filter(|line| !line.succeeded()).collect();
    for line in &failed {
        if json {
            println!("{}", serde_json::to_string(line).map_err(world)?);
        } else {
            let error = line.error.as_deref().unwrap_or(&line.state);
            println!("{}", plain(&format!("row {} ({}): {error}", line.row, line.id)));
        }
    }
    if !json {
        println!("{} of {} failed", failed.len(), count(lines.len(), "row"));
    }
    Ok(ExitCode::SUCCESS)
}

/// A table has columns where the rows are objects: one for each name that any of them has.
fn export(results: &std::path::Path) -> Result<ExitCode, Stopped> {
    let lines = read(results).map_err(world)?;
    let input = |line: &Line| line.input.as_object().cloned();
    let result = |line: &Line| line.result.as_ref().and_then(Value::as_object).cloned();
    let (inputs, outputs) = (
        names(lines.values().filter_map(input)),
        names(lines.values().filter_map(result)),
    );
    let mut table = csv::Writer::from_writer(Out);
    let columns = |prefix: &str, names: &[String]| -> Vec<String> {
        match names {
            [] => vec![prefix.to_owned()],
            names => names.iter().map(|name| format!("{prefix}.{name}")).collect(),
        }
    };
    let mut head = vec!["row".to_owned(), "state".to_owned()];
    head.extend(columns("input", &inputs));
    head.extend(columns("result", &outputs));
    head.push("error".to_owned());
    table.write_record(head).map_err(world)?;
    for line in lines.values() {
        let mut record = vec![line.row.to_string(), line.state.clone()];
        record.extend(cells(Some(&line.input), &inputs));
        record.extend(cells(line.result.as_ref(), &outputs));
        record.push(line.error.clone().unwrap_or_default());
        table.write_record(record).map_err(world)?;
    }
    table.flush().map_err(world)?;
    Ok(ExitCode::SUCCESS)
}

fn names(objects: impl Iterator<Item = serde_json::Map<String, Value>>) -> Vec<String> {
    let mut names = Vec::new();
    for (name, _) in objects.flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn cells(value: Option<&Value>, names: &[String]) -> Vec<String> {
    let cell = |value: Option<&Value>| match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Array(_) | Value::Object(_))) => serde_json::to_string(value).unwrap_or_default(),
        Some(value) => pretty(value),
    };
    match names {
        [] => vec![cell(value)],
        names => names
            .iter()
            .map(|name| cell(value.and_then(|value| value.get(name))))
            .collect(),
    }
}
