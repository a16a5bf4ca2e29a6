//! `orchestra templates` and `orchestra tasks`: files, checked and tried without a worker.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::program::{Common, Stopped, pretty, usage, world};
use super::{template_label, template_new, template_run, template_test};
use crate::ai::Engine;
use crate::ai::template::{Template, task_schema, template_schema};
use crate::task::{Entry, Failure, Registry};
use crate::text::count;

#[derive(Debug, Subcommand)]
pub(super) enum Templates {
    /// All templates and what they are for
    List {
        /// Print JSON
        #[arg(short = 'j', long)]
        json: bool,
    },
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
    /// Show how two versions differ; the exit code is 1 when they do
    Diff {
        /// One version: NAME@2, NAME@label
        old: String,
        /// The other; without it the newest
        new: Option<String>,
    },
    /// Let a label stand for a version; a rollback is the same with the version from before
    Label(template_label::Move),
    /// Show what a model would be asked
    Render {
        /// Name of the template
        name: String,
        #[command(flatten)]
        params: Params,
    },
    /// Run a template here, without broker and worker; what models say is shown as it comes
    Run(template_run::Run),
    /// Run the cases beside the templates (NAME.test.yaml)
    Test(template_test::Test),
    /// Write a template and a first case to begin with
    New(template_new::New),
    /// JSON Schema of a file format, for editors
    Schema {
        /// Which format
        #[arg(value_enum, default_value_t = Format::Template)]
        format: Format,
    },
}

/// Parameters of a command line.
#[derive(Debug, clap::Args)]
pub(super) struct Params {
    /// A parameter: JSON, or text if it is none; @FILE is the text of a file
    #[arg(short = 'p', long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
}

/// The file formats.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Format {
    /// templates/*.yaml
    Template,
    /// tasks/*.yaml
    Task,
}

impl Templates {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        match self {
            Self::List { json } => {
                let engine = common.engine()?;
                if json {
                    println!("{}", pretty(&listed(&engine)));
                    return Ok(ExitCode::SUCCESS);
                }
                let labels = engine.labels();
                for template in engine.templates() {
                    let name = match template.version() {
                        1 => template.name().to_owned(),
                        version => format!("{}@{version}", template.name()),
                    };
                    let labels = match template_label::of_version(&labels, &template) {
                        none if none.is_empty() => String::new(),
                        some => format!("[{}] ", some.join(", ")),
                    };
                    let about = template.description().unwrap_or_default();
                    println!("{name:<24} {} {labels}{about}", template.content());
                }
            }
            Self::Lint { files } => return lint(common, &files),
            Self::Show { name } => {
                let template = common.engine()?.template(&name).map_err(failure)?;
                println!("{}", pretty(&template.schema()));
            }
            Self::Diff { old, new } => return template_label::diff(common, &old, new.as_deref()),
            Self::Label(to) => return to.run(common),
            Self::Render { name, params } => {
                let template = common.engine()?.template(&name).map_err(failure)?;
                for (source, text) in template.preview(params.read()?).map_err(usage)? {
                    println!("--- {source}\n{text}");
                }
            }
            Self::Run(run) => return run.run(common).await,
            Self::Test(test) => return test.run(common).await,
            Self::New(new) => return new.run(common),
            Self::Schema { format } => {
                let schema = match format {
                    Format::Template => template_schema(),
                    Format::Task => task_schema(),
                };
                println!("{}", pretty(&schema));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Templates, versions and labels.
fn listed(engine: &Engine) -> Value {
    let labels = engine.labels();
    let one = |template: std::sync::Arc<Template>| {
        json!({
            "name": template.name(),
            "version": template.version(),
            "content": template.content(),
            "labels": template_label::of_version(&labels, &template),
            "description": template.description(),
        })
    };
    engine.templates().map(one).collect()
}

/// How many templates there are, which are all in order.
pub(super) fn in_order(engine: &Engine) -> String {
    match engine.templates().count() {
        1 => "1 template is in order".to_owned(),
        count => format!("{count} templates are in order"),
    }
}

fn lint(common: &Common, files: &[PathBuf]) -> Result<ExitCode, Stopped> {
    let mut problems: Vec<String> = Vec::new();
    if files.is_empty() {
        let options = common.settings()?.ai;
        match Engine::load(&options) {
            Ok(engine) if engine.templates().next().is_none() => {
                return Err(usage(format!(
                    "there is no template in {}; name files, or their folder with --templates",
                    options.templates.path().display()
                )));
            }
            Ok(engine) => println!("{}", in_order(&engine)),
            Err(error) => problems.extend(error.problems().iter().map(ToString::to_string)),
        }
    }
    for file in files {
        let found = Template::load(file).err().unwrap_or_default();
        problems.extend(found.iter().map(ToString::to_string));
    }
    if problems.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", problems.join("\n"));
    Err(world(count(problems.len(), "problem")))
}

/// `orchestra tasks`.
pub(super) fn tasks(common: &Common, json: bool) -> Result<ExitCode, Stopped> {
    let mut registry = Registry::new();
    common.engine()?.register(&mut registry).map_err(usage)?;
    if json {
        let task = |entry: &Entry| json!({"name": entry.name, "description": entry.description});
        println!("{}", pretty(&registry.entries().map(task).collect()));
        return Ok(ExitCode::SUCCESS);
    }
    for entry in registry.entries() {
        println!(
            "{:<24} {}",
            entry.name,
            entry.description.as_deref().unwrap_or_default()
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn failure(failure: Failure) -> Stopped {
    match failure {
        Failure::Fail(exception) => usage(exception.message()),
        other => usage(format!("{other:?}")),
    }
}

impl Params {
    /// The parameters as values.
    pub(super) fn read(&self) -> Result<Map<String, Value>, Stopped> {
        pairs(&self.params, "--param")
    }
}

/// `NAME=VALUE` as values by name.
pub(super) fn pairs(pairs: &[String], option: &str) -> Result<Map<String, Value>, Stopped> {
    let parameter = |pair: &String| {
        let (name, text) = pair
            .split_once('=')
            .ok_or_else(|| usage(format!("{option} {pair:?}: write NAME=VALUE")))?;
        let value = match text.strip_prefix('@') {
            Some(file) => {
                let read = std::fs::read_to_string(file);
                Value::String(read.map_err(|error| usage(format!("{option} {name}: {file}: {error}")))?)
            }
            None => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
        };
        Ok((name.to_owned(), value))
    };
    pairs.iter().map(parameter).collect()
}
