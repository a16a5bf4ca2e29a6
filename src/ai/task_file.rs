//! `tasks/*.yaml`: a Celery name for a template, with policy of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Engine;
use super::tasks::POLICY;
use super::template::{Fields, Mark, Problem, Problems, Template, read};
use crate::task::{Arguments, BoxFuture, Context, DynTask, Failure, Options, Parameter, RateLimit, Redact, Unique};

/// Fields of a task file, for the schema of the format.
pub(super) const FIELDS: &[(&str, &str, &str)] = &[
    ("name", "string", "the Celery name"),
    (
        "template",
        "string",
        "the template: its name, name@2 for one version, or name@label",
    ),
    (
        "description",
        "string",
        "one line for people; without it that of the template",
    ),
    (
        "params",
        "object",
        "parameters that are fixed here; callers give the others",
    ),
    ("time_limit", "number", "seconds after which a run is ended"),
    (
        "soft_time_limit",
        "number",
        "seconds after which a run is ended as SoftTimeLimitExceeded",
    ),
    ("max_retries", "integer", "how often a run is tried again"),
    ("default_retry_delay", "number", "seconds before it is tried again"),
    ("rate_limit", "string", "starts in a time: 10/s, 100/m, 1000/h"),
    ("acks_late", "boolean", "acknowledge after the run (true)"),
    ("track_started", "boolean", "store the state STARTED (true)"),
    ("ignore_result", "boolean", "store no result"),
    (
        "unique",
        "any",
        "calls with the same parameters are one run, the others get its result: true, or period (seconds) and states",
    ),
    (
        "redact",
        "any",
        "what of it is never shown: names of parameters, or all",
    ),
    ("schedule", "any", "when beat sends it"),
];

/// A template under a name of its own.
pub(super) struct FileTask {
    engine: Arc<Engine>,
    first: Arc<Binding>,
}

impl FileTask {
    /// The task of a file. When the file changes, the next run is of the new one; its limits stay.
    pub(super) fn new(engine: Arc<Engine>, first: &Arc<Binding>) -> Self {
        Self {
            engine,
            first: first.clone(),
        }
    }
}

/// A task file that was read and fits its template.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    path: PathBuf,
    name: String,
    template: String,
    description: Option<String>,
    params: Map<String, Value>,
    options: Options,
    /// Parameters a caller gives, in order.
    names: Vec<String>,
    /// Parameters whose values are never shown.
    hidden: Vec<String>,
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
        let mut problems = Problems::of(path);
        match Self::read(path, template, &mut problems) {
            Some(binding) if problems.is_empty() => Ok(binding),
            _ => Err(problems.into_vec()),
        }
    }

    fn read(path: &Path, template: impl Fn(&str) -> Option<Arc<Template>>, problems: &mut Problems) -> Option<Self> {
        let whole = read(problems)?;
        let mut fields = Fields::of("a task file", &whole, problems)?;
        let name = fields
            .need("name", problems)
            .and_then(|name| text(name, "name", problems));
        let called = fields
            .need("template", problems)
            .and_then(|name| text(name, "template", problems));
        let description = fields.text("description", problems);
        let params = match fields.take("params").map(|params| (params.at, params.to_value())) {
            None => Map::new(),
            Some((_, Value::Object(params))) => params,
            Some((at, _)) => {
                problems.add(at, "params must be a mapping of names");
                Map::new()
            }
        };
        let schedule = fields
            .take("schedule")
            .map(|schedule| (schedule.at, schedule.to_value()));
        let mut options = options(&mut fields, problems);
        let redact = fields.take("redact").map(|redact| (redact.at, redact.to_value()));
        let places = ["params", "template", "schedule"].map(|field| fields.place(field));
        fields.finish(problems);
        let (name, called) = (name?, called?);
        let Some(template) = template(&called) else {
            problems.add(places[1], format!("there is no template {called:?}, or it is broken"));
            return None;
        };
        for wrong in template.check_some(&params).err().unwrap_or_default() {
            problems.add(places[0], wrong);
        }
        let names = template
            .parameters()
            .map(|parameter| parameter.name.clone())
            .filter(|name| !params.contains_key(name))
            .collect();
        let mut hidden = Vec::new();
        match redact {
            None => {}
            Some((_, Value::String(all))) if all == "all" => options.redact = Redact::Everything,
            Some((at, Value::Array(named))) => {
                for name in named {
                    match name.as_str() {
                        Some(name) if template.parameters().any(|parameter| parameter.name == name) => {
                            hidden.push(name.to_owned());
                        }
                        _ => problems.add(at, format!("redact: the template has no parameter {name}")),
                    }
                }
            }
            Some((at, _)) => problems.add(at, "redact must be a list of parameters, or all"),
        }
        let scheduled = schedule.map(|(at, schedule)| Scheduled {
            name: name.clone(),
            schedule,
            place: place(path, at),
        });
        if scheduled.is_some() {
            let missing = template
                .parameters()
                .find(|parameter| parameter.required && !params.contains_key(&parameter.name));
            if let Some(missing) = missing {
                let hint = Some("give it one in params".to_owned());
                let text = format!("the parameter {:?} has no value", missing.name);
                problems.add_with(places[2], text, hint);
            }
        }
        Some(Self {
            path: path.to_owned(),
            name,
            template: called,
            description: description.or_else(|| template.description().map(str::to_owned)),
            params,
            options,
            names,
            hidden,
            scheduled,
        })
    }

    /// Its template, and the parameters of a call; `None` where they do not fit.
    pub(super) fn called_with(&self, args: &str, kwargs: &str) -> Option<(&str, Map<String, Value>)> {
        let arguments = Arguments {
            args: serde_json::from_str(args).ok()?,
            kwargs: serde_json::from_str(kwargs).ok()?,
        };
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let mut params = arguments.bind_names(&self.name, &names).ok()?;
        params.extend(self.params.clone());
        Some((&self.template, params))
    }

    /// When beat sends it.
    pub(super) fn scheduled(&self) -> Option<&Scheduled> {
        self.scheduled.as_ref()
    }

    /// Its Celery name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn place(path: &Path, at: Mark) -> String {
    format!("{}:{}", path.display(), at.line)
}

fn text(value: &super::template::Yaml, name: &str, problems: &mut Problems) -> Option<String> {
    let text = value.as_str().map(str::to_owned);
    if text.is_none() {
        problems.add(value.at, format!("{name} must be a text, not {}", value.what()));
    }
    text
}

fn options(fields: &mut Fields<'_>, problems: &mut Problems) -> Options {
    let rate_limit = fields
        .text("rate_limit", problems)
        .and_then(|text| match RateLimit::parse(&text) {
            Ok(limit) => limit,
            Err(error) => {
                problems.add(fields.place("rate_limit"), format!("rate_limit: {error}"));
                None
            }
        });
    let max_retries = fields.whole("max_retries", 0, problems);
    Options {
        time_limit: fields.seconds("time_limit", problems),
        soft_time_limit: fields.seconds("soft_time_limit", problems),
        max_retries: max_retries.map_or(POLICY.max_retries, |times| u32::try_from(times).ok()),
        default_retry_delay: fields
            .seconds("default_retry_delay", problems)
            .unwrap_or(POLICY.default_retry_delay),
        rate_limit,
        acks_late: fields.flag("acks_late", problems).unwrap_or(POLICY.acks_late),
        track_started: fields.flag("track_started", problems).unwrap_or(POLICY.track_started),
        ignore_result: fields.flag("ignore_result", problems).unwrap_or(POLICY.ignore_result),
        unique: unique(fields, problems),
        ..POLICY
    }
}

/// `unique: true`, or `unique: {period: 3600, states: [SUCCESS, FAILURE]}`.
fn unique(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Unique> {
    let given = fields.take("unique")?;
    let read = match given.to_value() {
        Value::Bool(given) => Ok(given.then_some(Unique::DEFAULT)),
        Value::Object(given) => of_fields(&given).map(Some),
        _ => Err("must be true, or period and states".to_owned()),
    };
    let at = given.at;
    read.unwrap_or_else(|error| {
        problems.add(at, format!("unique: {error}"));
        None
    })
}

fn of_fields(given: &Map<String, Value>) -> Result<Unique, String> {
    let mut unique = Unique::DEFAULT;
    for (name, value) in given {
        unique = match (&**name, value) {
            ("period", Value::Number(period)) => unique.with_period(period.as_f64().unwrap_or_default())?,
            ("states", Value::Array(states)) => {
                unique.with_states(states.iter().map(|state| state.as_str().unwrap_or("")))?
            }
            ("period", _) => return Err("period must be a number of seconds".into()),
            ("states", _) => return Err("states must be a list: SUCCESS, FAILURE".into()),
            (other, _) => return Err(format!("there is no field {other:?}; there are period and states")),
        };
    }
    Ok(unique)
}

impl DynTask for FileTask {
    fn name(&self) -> &str {
        self.first.name()
    }

    fn options(&self) -> Options {
        self.first.options.clone()
    }

    fn description(&self) -> Option<&str> {
        self.first.description.as_deref()
    }

    fn version(&self) -> Option<String> {
        let shelf = self.engine.shelf();
        let name = &shelf.binding(self.first.name()).unwrap_or(&self.first).template;
        let title = shelf.template(name)?.title();
        let canary = shelf.label(name).and_then(|(template, label)| {
            let (version, percent) = label.canary?;
            Some(format!(", {percent} % {}", shelf.version(template, version)?.title()))
        });
        Some(title + &canary.unwrap_or_default())
    }

    fn parameters(&self) -> Vec<Parameter> {
        let parameter = |name: &String| Parameter {
            name: name.clone(),
            secret: self.first.hidden.contains(name),
        };
        self.first.names.iter().map(parameter).collect()
    }

    fn run(&self, arguments: Arguments, context: Context) -> BoxFuture<'static, Result<Value, Failure>> {
        let engine = self.engine.clone();
        let binding = engine
            .shelf()
            .binding(self.first.name())
            .cloned()
            .unwrap_or_else(|| self.first.clone());
        Box::pin(async move {
            let names: Vec<&str> = binding.names.iter().map(String::as_str).collect();
            let mut params = arguments.bind_names(&binding.name, &names)?;
            params.extend(binding.params.clone());
            let template = engine.template_for(&binding.template, &context).await?;
            engine.run(&template, params, &context).await
        })
    }
}
