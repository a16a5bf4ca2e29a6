//! The built-in tasks, written as anyone could write them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Engine;
use super::ask::{Question, ask};
use super::call::{Show, announce_attempt, cache_time};
use super::ollama::{Answer, Kind};
use crate::task::{Context, Failure, Options, Task};

/// Policy of AI tasks: a run costs minutes of a GPU, so it is not lost with a worker; it shows that it started, and
/// it writes to a token stream.
pub(super) const POLICY: Options = Options {
    acks_late: true,
    track_started: true,
    streams: true,
    ..Options::DEFAULT
};

/// `orchestra.generate`: a prompt, and what a model makes of it (`POST /api/generate`).
#[derive(Debug, Deserialize, Serialize)]
pub struct Generate {
    model: String,
    prompt: String,
    #[serde(default)]
    system: Value,
    #[serde(default)]
    format: Value,
    #[serde(default)]
    options: Value,
    #[serde(default)]
    keep_alive: Value,
    #[serde(default)]
    think: Value,
    #[serde(default)]
    images: Value,
    #[serde(default)]
    raw: Value,
    #[serde(default)]
    template: Value,
    #[serde(default)]
    suffix: Value,
    #[serde(default)]
    context: Value,
    #[serde(default)]
    truncate: Value,
    #[serde(default)]
    shift: Value,
    #[serde(default)]
    logprobs: Value,
    #[serde(default)]
    top_logprobs: Value,
    #[serde(default, skip_serializing)]
    cache: Value,
    #[serde(default = "yes", skip_serializing)]
    stream: bool,
}

/// `orchestra.chat`: the next message of a conversation (`POST /api/chat`).
#[derive(Debug, Deserialize, Serialize)]
pub struct Chat {
    model: String,
    messages: Value,
    #[serde(default)]
    tools: Value,
    #[serde(default)]
    format: Value,
    #[serde(default)]
    options: Value,
    #[serde(default)]
    keep_alive: Value,
    #[serde(default)]
    think: Value,
    #[serde(default)]
    truncate: Value,
    #[serde(default)]
    shift: Value,
    #[serde(default)]
    logprobs: Value,
    #[serde(default)]
    top_logprobs: Value,
    #[serde(default, skip_serializing)]
    cache: Value,
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
        Value::Object(mut fields) => {
            fields.remove("model");
            Ok(fields)
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
        let show = Show {
            step: "answer",
            stream: self.stream,
            template: None,
            cache: cache_time(&self.cache).map_err(Failure::value_error)?,
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
        let show = Show {
            step: "answer",
            stream: self.stream,
            template: None,
            cache: cache_time(&self.cache).map_err(Failure::value_error)?,
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
        let template = engine.template(&self.template)?;
        engine.run(&template, self.params.unwrap_or_default(), &context).await
    }
}
