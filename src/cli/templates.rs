//! `orchestra templates` and `orchestra tasks`: files, checked and tried without a worker.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Map, Value};

use super::program::{Common, Stopped, pretty, usage, world};
use crate::ai::template::Template;
use crate::task::Registry;

#[derive(Debug, Subcommand)]
pub(super) enum Templates {
    /// All templates and what they are for
    List,
    /// Check template files, or all files of the folders
    Lint {
        /// Files
        files: Vec<PathBuf>,
    },
    /// Show a template's parameters as JSON Schema
    Show {
        /// Name of the template
        name: String,
    },
    /// Show what a model would be asked
    Render {
        /// Name of the template
        name: String,
        /// A parameter: JSON, or text if it is none
        #[arg(short = 'p', long = "param", value_name = "NAME=VALUE")]
        params: Vec<String>,
    },
}

impl Templates {
    pub(super) fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        match self {
            Self::List => {
                for template in common.engine()?.templates() {
                    println!("{:<24} {}", template.name(), template.description().unwrap_or_default());
                }
            }
            Self::Lint { files } if files.is_empty() => {
                let engine = common.engine()?;
                println!("{} templates are in order", engine.templates().count());
            }
            Self::Lint { files } => {
                let problems: Vec<String> = files
                    .iter()
                    .filter_map(|file| Template::load(file).err())
                    .flatten()
                    .map(|problem| problem.to_string())
                    .collect();
                if !problems.is_empty() {
                    println!("{}", problems.join("\n"));
                    return Err(world(format!("{} problem(s)", problems.len())));
                }
            }
            Self::Show { name } => {
                let template = common.engine()?.template(&name).map_err(failure)?;
                println!("{}", pretty(&template.schema()));
            }
            Self::Render { name, params } => {
                let template = common.engine()?.template(&name).map_err(failure)?;
                for (source, text) in template.preview(parameters(&params)?).map_err(usage)? {
                    println!("--- {source}\n{text}");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `orchestra tasks`.
pub(super) fn tasks(common: &Common) -> Result<ExitCode, Stopped> {
    let mut registry = Registry::new();
    common.engine()?.register(&mut registry).map_err(usage)?;
    for entry in registry.entries() {
        println!(
            "{:<24} {}",
            entry.name,
            entry.description.as_deref().unwrap_or_default()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn failure(failure: crate::task::Failure) -> Stopped {
    match failure {
        crate::task::Failure::Fail(exception) => usage(exception.message()),
        other => usage(format!("{other:?}")),
    }
}

fn parameters(pairs: &[String]) -> Result<Map<String, Value>, Stopped> {
    let parameter = |pair: &String| {
        let (name, text) = pair
            .split_once('=')
            .ok_or_else(|| usage(format!("--param {pair:?}: write NAME=VALUE")))?;
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        Ok((name.to_owned(), value))
    };
    pairs.iter().map(parameter).collect()
}
