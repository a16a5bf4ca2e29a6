//! `tasks/*.yaml`: a Celery name for a template, with policy of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Engine;
use super::tasks::POLICY;
use super::template::{Problem, Template, read};
use crate::task::{Arguments, BoxFuture, Context, DynTask, Failure, Options, Parameter, RateLimit, Redact};

/// What stands in a task file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    name: String,
    template: String,
    description: Option<String>,
    /// Parameters that are fixed here; callers cannot change them.
    #[serde(default)]
    params: Map<String, Value>,
    time_limit: Option<f64>,
    soft_time_limit: Option<f64>,
    max_retries: Option<u32>,
    default_retry_delay: Option<f64>,
    rate_limit: Option<String>,
    acks_late: Option<bool>,
    track_started: Option<bool>,
    ignore_result: Option<bool>,
    /// What of it is never shown: names of parameters, or `all`.
    redact: Option<Hidden>,
    /// When beat sends it.
    schedule: Option<Value>,
}

/// `redact: all`, or `redact: [card, address]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Hidden {
    All(All),
    Named(Vec<String>),
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum All {
    #[serde(rename = "all")]
    All,
}

/// A template under a name of its own.
pub(super) struct FileTask {
    engine: Arc<Engine>,
    template: Arc<Template>,
    binding: Binding,
}

/// A task file that was read and fits its template.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    file: TaskFile,
    options: Options,
    /// Parameters a caller gives, in order.
    names: Vec<String>,
    scheduled: Option<Scheduled>,
}

/// A task that beat sends.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// Its Celery name, which is that of the entry as well.
    pub name: String,
    /// When, as it is written.
    pub schedule: Value,
    /// Where that is written: file and line.
    pub place: String,
}

impl Binding {
    /// Reads a task file.
    pub(super) fn load(path: &Path, template: impl Fn(&str) -> Option<Arc<Template>>) -> Result<Self, Vec<Problem>> {
        let (text, file) = read::<TaskFile>(path)?;
        let at = |key: &str, what: String| vec![Problem::at(path, &text, &[key.into()], what)];
        let Some(template) = template(&file.template) else {
            return Err(at("template", format!("there is no template {:?}", file.template)));
        };
        template
            .check_some(&file.params)
            .map_err(|wrong| at("params", wrong.join("; ")))?;
        let options = options(&file).map_err(|(key, what)| at(key, what))?;
        let names = template
            .parameters()
            .map(|parameter| parameter.name.clone())
            .filter(|name| !file.params.contains_key(name))
            .collect();
        if let Some(Hidden::Named(hidden)) = &file.redact
            && let Some(unknown) = hidden
                .iter()
                .find(|name| template.parameters().all(|parameter| parameter.name != **name))
        {
            return Err(at("redact", format!("the template has no parameter {unknown:?}")));
        }
        let scheduled = match file.schedule.clone() {
            None => None,
            Some(schedule) => {
                let missing = template
                    .parameters()
                    .find(|parameter| parameter.required && !file.params.contains_key(&parameter.name));
                if let Some(missing) = missing {
                    let name = &missing.name;
                    return Err(at(
                        "schedule",
                        format!("the parameter {name:?} has no value; give it one in params"),
                    ));
                }
                let place = Problem::at(path, &text, &["schedule".into()], "").to_string();
                Some(Scheduled {
                    name: file.name.clone(),
                    schedule,
                    place: place.trim_end_matches([':', ' ']).to_owned(),
                })
            }
        };
        Ok(Self {
            file,
            options,
            names,
            scheduled,
        })
    }

    /// The task.
    pub(super) fn into_task(self, engine: Arc<Engine>) -> Option<FileTask> {
        let template = engine.template(&self.file.template).ok()?;
        Some(FileTask {
            engine,
            template,
            binding: self,
        })
    }

    /// When beat sends it.
    pub(super) fn scheduled(&self) -> Option<&Scheduled> {
        self.scheduled.as_ref()
    }

    /// Its Celery name.
    pub(super) fn name(&self) -> &str {
        &self.file.name
    }
}

fn options(file: &TaskFile) -> Result<Options, (&'static str, String)> {
    let seconds = |key, value: Option<f64>| {
        let duration = value.map(Duration::try_from_secs_f64).transpose();
        duration.map_err(|_| (key, "must be a number of seconds".to_owned()))
    };
    let rate_limit = match &file.rate_limit {
        Some(text) => RateLimit::parse(text).map_err(|error| ("rate_limit", error))?,
        None => None,
    };
    Ok(Options {
        time_limit: seconds("time_limit", file.time_limit)?,
        soft_time_limit: seconds("soft_time_limit", file.soft_time_limit)?,
        max_retries: file.max_retries.or(POLICY.max_retries),
        default_retry_delay: seconds("default_retry_delay", file.default_retry_delay)?
            .unwrap_or(POLICY.default_retry_delay),
        rate_limit,
        acks_late: file.acks_late.unwrap_or(POLICY.acks_late),
        track_started: file.track_started.unwrap_or(POLICY.track_started),
        ignore_result: file.ignore_result.unwrap_or(POLICY.ignore_result),
        redact: match file.redact {
            Some(Hidden::All(All::All)) => Redact::Everything,
            _ => POLICY.redact,
        },
        ..POLICY
    })
}

impl DynTask for FileTask {
    fn name(&self) -> &str {
        self.binding.name()
    }

    fn options(&self) -> Options {
        self.binding.options.clone()
    }

    fn description(&self) -> Option<&str> {
        self.binding.file.description.as_deref().or(self.template.description())
    }

    fn parameters(&self) -> Vec<Parameter> {
        let secret = |name: &String| match &self.binding.file.redact {
            Some(Hidden::Named(hidden)) => hidden.contains(name),
            _ => false,
        };
        let names = self.binding.names.iter();
        names
            .map(|name| Parameter {
                secret: secret(name),
                name: name.clone(),
            })
            .collect()
    }

    fn run(&self, arguments: Arguments, context: Context) -> BoxFuture<'static, Result<Value, Failure>> {
        let names: Vec<&str> = self.binding.names.iter().map(String::as_str).collect();
        let bound = arguments.bind_names(self.binding.name(), &names);
        let fixed = self.binding.file.params.clone();
        let (engine, template) = (self.engine.clone(), self.template.clone());
        Box::pin(async move {
            let mut params = bound?;
            params.extend(fixed);
            engine.run(&template, params, &context).await
        })
    }
}

/// The YAML files of a folder, by name.
pub(super) fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
