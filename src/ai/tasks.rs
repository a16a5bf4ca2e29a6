//! The built-in tasks, written as anyone could write them.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Engine;
use super::ask::{Question, ask};
use super::call::{Show, announce_attempt, cache_time, routing};
use super::ollama::{Answer, Kind};
use crate::clock;
use crate::task::{Context, Exception, Failure, Options, Resumption, Task};

/// How long the result of a task that failed is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Policy of AI tasks: a run costs minutes of a GPU, so it is not lost with a worker; it shows that it started, and
/// it writes to a token stream.
pub(super) const POLICY: Options = Options {
    acks_late: true,
    track_started: true,
    streams: true,
    ..Options::DEFAULT
};

/// A field that may be given. Boxed, since there are many and few are: ten thousand calls hold them all.
type Given = Option<Box<Value>>;

/// `orchestra.generate`: a prompt, and what a model makes of it (`POST /api/generate`).
#[derive(Debug, Deserialize, Serialize)]
pub struct Generate {
    model: String,
    prompt: String,
    #[serde(default)]
    system: Given,
    #[serde(default)]
    format: Given,
    #[serde(default)]
    options: Given,
    #[serde(default)]
    keep_alive: Given,
    #[serde(default)]
    think: Given,
    #[serde(default)]
    images: Given,
    #[serde(default)]
    raw: Given,
    #[serde(default)]
    template: Given,
    #[serde(default)]
    suffix: Given,
    #[serde(default)]
    context: Given,
    #[serde(default)]
    truncate: Given,
    #[serde(default)]
    shift: Given,
    #[serde(default)]
    logprobs: Given,
    #[serde(default)]
    top_logprobs: Given,
    #[serde(default, skip_serializing)]
    cache: Given,
    #[serde(default, skip_serializing)]
    routing: Given,
    #[serde(default = "yes", skip_serializing)]
    stream: bool,
}

/// `orchestra.chat`: the next message of a conversation (`POST /api/chat`).
#[derive(Debug, Deserialize, Serialize)]
pub struct Chat {
    model: String,
    messages: Value,
    #[serde(default)]
    tools: Given,
    #[serde(default)]
    format: Given,
    #[serde(default)]
    options: Given,
    #[serde(default)]
    keep_alive: Given,
    #[serde(default)]
    think: Given,
    #[serde(default)]
    truncate: Given,
    #[serde(default)]
    shift: Given,
    #[serde(default)]
    logprobs: Given,
    #[serde(default)]
    top_logprobs: Given,
    #[serde(default, skip_serializing)]
    cache: Given,
    #[serde(default, skip_serializing)]
    routing: Given,
    #[serde(default = "yes", skip_serializing)]
    stream: bool,
}

/// `orchestra.run`: any template, by name.
#[derive(Debug, Deserialize)]
pub struct RunTemplate {
    template: String,
    #[serde(default)]
    params: Option<Map<String, Value>>,
}

fn yes() -> bool {
    true
}

/// The fields of a request: those of the task, but for the model, which goes apart.
fn fields(task: &impl Serialize) -> Result<Map<String, Value>, Failure> {
    match serde_json::to_value(task)? {
        Value::Object(fields) => {
            let given = fields
                .into_iter()
                .filter(|(name, value)| name != "model" && !value.is_null());
            Ok(given.collect())
        }
        _ => Ok(Map::new()),
    }
}

impl Task for Generate {
    const NAME: &'static str = "orchestra.generate";
    const OPTIONS: Options = POLICY;
    const DESCRIPTION: Option<&'static str> = Some("asks a model to go on from a prompt");
    type Env = Arc<Engine>;
    type Output = Answer;

    async fn run(self, engine: Arc<Engine>, context: Context) -> Result<Answer, Failure> {
        announce_attempt(&context);
        let given = |field: &Given| field.as_deref().cloned().unwrap_or_default();
        let routing = routing(&given(&self.routing)).map_err(Failure::value_error)?;
        let show = Show {
            step: "answer",
            stream: self.stream,
            template: None,
            cache: cache_time(&given(&self.cache)).map_err(Failure::value_error)?,
            routing: routing.as_ref(),
        };
        let question = Question::new(Kind::Generate, self.model.clone(), fields(&self)?);
        ask(&engine, question, show, &context).await
    }
}

impl Task for Chat {
    const NAME: &'static str = "orchestra.chat";
    const OPTIONS: Options = POLICY;
    const DESCRIPTION: Option<&'static str> = Some("asks a model for the next message of a conversation");
    type Env = Arc<Engine>;
    type Output = Answer;

    async fn run(self, engine: Arc<Engine>, context: Context) -> Result<Answer, Failure> {
        announce_attempt(&context);
        let given = |field: &Given| field.as_deref().cloned().unwrap_or_default();
        let routing = routing(&given(&self.routing)).map_err(Failure::value_error)?;
        let show = Show {
            step: "answer",
            stream: self.stream,
            template: None,
            cache: cache_time(&given(&self.cache)).map_err(Failure::value_error)?,
            routing: routing.as_ref(),
        };
        let question = Question::new(Kind::Chat, self.model.clone(), fields(&self)?);
        ask(&engine, question, show, &context).await
    }
}

impl Task for RunTemplate {
    const NAME: &'static str = "orchestra.run";
    const OPTIONS: Options = POLICY;
    const DESCRIPTION: Option<&'static str> = Some("runs a template by name");
    type Env = Arc<Engine>;
    type Output = Value;

    async fn run(self, engine: Arc<Engine>, context: Context) -> Result<Value, Failure> {
        let template = engine.template_for(&self.template, &context).await?;
        engine.run(&template, self.params.unwrap_or_default(), &context).await
    }
}

/// The task that lets a run go on with a result.
pub(super) const RESUME: &str = "orchestra.resume";
/// The task that lets a run go on with a failure.
pub(super) const RESUME_FAILED: &str = "orchestra.resume_failed";

/// What belongs to waiting is not lost with a worker, and nobody looks at its result.
const BACK: Options = Options {
    acks_late: true,
    ignore_result: true,
    ..Options::DEFAULT
};

/// `orchestra.resume`: writes down what a run waits for; sent by the task that it waits for.
#[derive(Debug, Deserialize)]
pub struct Resume {
    result: Value,
    task_id: String,
    name: String,
    #[serde(default)]
    error: Value,
}

/// `orchestra.resume_failed`: writes down that what a run waits for failed.
#[derive(Debug, Deserialize)]
pub struct ResumeFailed {
    failed: String,
    task_id: String,
    name: String,
}

/// `orchestra.approve`: the decision of a person, for a step of type `approve`.
#[derive(Debug, Deserialize)]
pub struct Approve {
    task_id: String,
    #[serde(default)]
    step: Option<String>,
    #[serde(default = "yes")]
    approved: bool,
    #[serde(default)]
    by: Option<String>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default)]
    data: Value,
}

/// Writes something down for a run; a Redis that is away is waited for.
async fn write_down(context: &Context, task: &str, name: &str, value: &Value) -> Result<Resumption, Failure> {
    let client = context
        .client()
        .ok_or_else(|| Exception::runtime_error("there is no worker around this run"))?;
    client
        .resume(task, name, value)
        .await
        .map_err(|error| match Failure::from(error) {
            Failure::Fail(cause) => Failure::retry_after(Duration::from_secs(1), cause),
            other => other,
        })
}

impl Task for Resume {
    const NAME: &'static str = RESUME;
    const OPTIONS: Options = BACK;
    const DESCRIPTION: Option<&'static str> = Some("lets a template go on that waits for a task");
    type Env = ();
    type Output = ();

    async fn run(self, (): (), context: Context) -> Result<(), Failure> {
        let value = match self.error {
            Value::Null => json!({"ok": self.result}),
            error => json!({"error": error}),
        };
        write_down(&context, &self.task_id, &self.name, &value).await.map(drop)
    }
}

impl Task for ResumeFailed {
    const NAME: &'static str = RESUME_FAILED;
    const OPTIONS: Options = BACK;
    const DESCRIPTION: Option<&'static str> = Some("lets a template go on that waits for a task that failed");
    type Env = ();
    type Output = ();

    async fn run(self, (): (), context: Context) -> Result<(), Failure> {
        let client = context
            .client()
            .ok_or_else(|| Exception::runtime_error("there is no worker around this run"))?;
        let why = client.result(&self.failed).failure(PATIENCE).await;
        let error = why.unwrap_or_else(|| Exception::runtime_error(format!("task {} failed", self.failed)));
        write_down(&context, &self.task_id, &self.name, &json!({"error": error}))
            .await
            .map(drop)
    }
}

impl Task for Approve {
    const NAME: &'static str = "orchestra.approve";
    const OPTIONS: Options = Options {
        ignore_result: false,
        ..BACK
    };
    const DESCRIPTION: Option<&'static str> = Some("decides a step of a template that waits for a person");
    type Env = ();
    type Output = &'static str;

    async fn run(self, (): (), context: Context) -> Result<&'static str, Failure> {
        let client = context
            .client()
            .ok_or_else(|| Exception::runtime_error("there is no worker around this run"))?;
        let kept = client.kept_of(&self.task_id).await?;
        let mut open: Vec<(&str, &Value)> = kept
            .iter()
            .filter_map(|(name, question)| Some((name.strip_prefix("q:")?, question)))
            .filter(|(step, question)| {
                let name = question.get("name").and_then(Value::as_str).unwrap_or_default();
                // A worker that died with the decision may not have sent the run on its way.
                (!kept.contains_key(name) || context.details().redelivered)
                    && self.step.as_deref().is_none_or(|wanted| wanted == *step)
            })
            .collect();
        open.sort_by_key(|(step, _)| *step);
        let question = match &open[..] {
            [(_, question)] => *question,
            [] => {
                let step = self
                    .step
                    .as_ref()
                    .map(|step| format!(" in step {step:?}"))
                    .unwrap_or_default();
                let text = format!("task {} waits for nobody's decision{step}", self.task_id);
                return Err(Failure::value_error(text));
            }
            several => {
                let steps: Vec<&str> = several.iter().map(|(step, _)| *step).collect();
                let text = format!(
                    "task {} waits for several decisions; say which step: {}",
                    self.task_id,
                    steps.join(", ")
                );
                return Err(Failure::value_error(text));
            }
        };
        if let (true, Some(form)) = (self.approved, question.get("form").filter(|form| !form.is_null()))
            && let Ok(validator) = jsonschema::validator_for(form)
        {
            let wrong = super::schema::misfits(&validator, &self.data);
            if !wrong.is_empty() {
                return Err(Failure::value_error(format!(
                    "data does not fit the form: {}",
                    wrong.join("; ")
                )));
            }
        }
        let name = question.get("name").and_then(Value::as_str).unwrap_or_default();
        let decision = json!({"ok": {
            "approved": self.approved, "by": self.by, "comment": self.comment, "data": self.data,
            "at": clock::iso(clock::now()),
        }});
        Ok(match write_down(&context, &self.task_id, name, &decision).await? {
            Resumption::GoesOn => "goes on",
            Resumption::Noted => "noted",
            Resumption::Decided => "was decided before",
            Resumption::Gone => "is gone",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call waits for minutes in memory, and thousands do at once: what it does before and after is boxed.
    #[test]
    fn a_call_that_waits_is_small() {
        fn size<F>(_: fn(Generate, Arc<Engine>, Context) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(<Generate as Task>::run);
        assert!(bytes <= 3_200, "{bytes} bytes");
    }
}
