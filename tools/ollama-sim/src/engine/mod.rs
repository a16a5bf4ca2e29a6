//! The engine back end: one small real model behind llama.cpp's own server, in a child process.

mod link;
mod process;
mod prompt;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use self::link::{Chunk, Link, Timings};
use self::process::{Config, Process};
use crate::backend::{Backend, BoxFuture, Emitter, End, Format, Frame, Job, Model, Settings, Timing};
use crate::cli::Args;
use crate::error::Error;
use crate::names::Name;

const DEFAULT_NAME: &str = "smollm2:135m";

pub struct Engine {
    models: Vec<Arc<Model>>,
    config: Config,
    running: Arc<Mutex<Option<Arc<Link>>>>,
}

impl Engine {
    pub fn new(args: &Args) -> Result<Self, String> {
        let python = args.engine_python.clone().ok_or("--engine-python is missing")?;
        let model_file = args.model_file.clone().ok_or("--model-file is missing")?;
        let file = std::fs::metadata(&model_file).map_err(|error| format!("{}: {error}", model_file.display()))?;
        let name = match args.models.as_slice() {
            [] => DEFAULT_NAME,
            [name] => name,
            _ => return Err("the engine has one model: give --model once".to_owned()),
        };
        let name = Name::parse(name).ok_or_else(|| format!("invalid model name {name:?}"))?;
        let modified_at = file.modified().ok().and_then(|at| jiff::Timestamp::try_from(at).ok());
        let config = Config {
            python,
            model_file,
            threads: args.threads.into(),
            parallel: args.slots().unwrap_or(1),
        };
        // reqwest wants one before it builds a client, even for plain http. An error means that there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            models: vec![Arc::new(smollm2(name, file.len(), modified_at.unwrap_or_default()))],
            config,
            running: Arc::default(),
        })
    }

    fn link(&self) -> Result<Arc<Link>, Error> {
        lock(&self.running).clone().ok_or_else(Error::runner_stopped)
    }
}

impl Backend for Engine {
    fn models(&self) -> Vec<Arc<Model>> {
        self.models.clone()
    }

    fn embed(&self, _model: Arc<Model>, _texts: Vec<String>) -> BoxFuture<Result<Vec<Vec<f32>>, Error>> {
        Box::pin(async { Err(Error::no_embeddings()) })
    }

    fn load(&self, _model: Arc<Model>, settings: Settings) -> BoxFuture<Result<(), Error>> {
        let (config, running) = (self.config.clone(), Arc::clone(&self.running));
        Box::pin(async move {
            let link = Link::new(Process::start(&config, settings).await?)?;
            *lock(&running) = Some(Arc::new(link));
            Ok(())
        })
    }

    fn unload(&self, _model: &Model) {
        lock(&self.running).take();
    }

    fn is_alive(&self, _model: &Model) -> bool {
        lock(&self.running).as_ref().is_some_and(|link| link.process.is_alive())
    }

    fn answer(&self, job: Job, out: Emitter) -> BoxFuture<Result<End, Error>> {
        let link = self.link();
        Box::pin(async move { answer(&*link?, &job, &out).await })
    }

    fn render(&self, job: Job) -> BoxFuture<Result<String, Error>> {
        let link = self.link();
        Box::pin(async move { prompt::render(&*link?, &job.input).await })
    }
}

async fn answer(link: &Link, job: &Job, out: &Emitter) -> Result<End, Error> {
    if job.has_template {
        return Err(Error::new(
            500,
            "template: templates of a request are not available here",
        ));
    }
    let prompt = prompt::prepare(link, job).await?;
    let mut events = link.complete(&body(job, &prompt.tokens)).await?;
    let mut context = prompt.uncut;
    let mut is_first = true;
    loop {
        let chunk = match events.next().await {
            // Nothing was sent yet, so the client gets the text for a runner that stopped.
            Err(error) if is_first && error.text == Error::broken_off().text => return Err(Error::runner_stopped()),
            next => next?,
        };
        is_first = false;
        if job.wants_context {
            context.extend(&chunk.tokens);
        }
        if let Some(frame) = frame(&chunk, job) {
            out.frame(frame).await;
        }
        if chunk.stop {
            let reason = if chunk.stop_type == "limit" { "length" } else { "stop" };
            if !job.wants_context {
                context.clear();
            } else if chunk.stop_type == "eos" {
                // The token that ended the text is no part of it.
                context.pop();
            }
            return Ok(End::Done {
                reason,
                timing: timing(&chunk),
                context,
            });
        }
    }
}

/// The request to `/completion`, with the defaults of Ollama instead of the engine's.
fn body(job: &Job, tokens: &[u64]) -> Value {
    let options = &job.options;
    let mut body = json!({
        "prompt": tokens,
        "stream": true,
        "cache_prompt": true,
        "return_tokens": true,
        "n_predict": options.budget(job.settings.num_ctx),
        "n_keep": options.num_keep.unwrap_or(prompt::NUM_KEEP),
        "temperature": options.temperature.unwrap_or(0.8),
        "top_k": options.top_k.unwrap_or(40),
        "top_p": options.top_p.unwrap_or(0.9),
        "min_p": options.min_p.unwrap_or(0.0),
        "typical_p": options.typical_p.unwrap_or(1.0),
        "repeat_last_n": options.repeat_last_n.unwrap_or(64),
        "repeat_penalty": options.repeat_penalty.unwrap_or(1.0),
        "presence_penalty": options.presence_penalty.unwrap_or(0.0),
        "frequency_penalty": options.frequency_penalty.unwrap_or(0.0),
        "seed": options.seed.unwrap_or(-1),
        "stop": options.stop.as_deref().unwrap_or_default(),
    });
    match &job.format {
        Format::Free => {}
        Format::Json => body["json_schema"] = json!({ "type": "object" }),
        Format::Schema(schema) => body["json_schema"] = schema.clone(),
    }
    if let Some(alternatives) = job.logprobs {
        // The engine sends none at all for 0.
        body["n_probs"] = json!(alternatives.max(1));
    }
    body
}

/// The frame of a chunk, unless it has nothing to say.
fn frame(chunk: &Chunk, job: &Job) -> Option<Frame> {
    let logprobs = job
        .logprobs
        .filter(|_| !chunk.completion_probabilities.is_empty())
        .map(|alternatives| {
            let tokens = chunk.completion_probabilities.iter();
            tokens.map(|token| logprob(token, alternatives > 0)).collect::<Value>()
        });
    if chunk.content.is_empty() && logprobs.is_none() {
        return None;
    }
    Some(Frame {
        text: chunk.content.clone(),
        logprobs,
        ..Frame::default()
    })
}

/// One token's entry, in Ollama's words and order.
fn logprob(token: &Value, with_alternatives: bool) -> Value {
    let mut entry: Map<_, _> = ["token", "logprob", "bytes"]
        .map(|name| (name.to_owned(), token[name].clone()))
        .into_iter()
        .collect();
    if let (true, Some(alternatives)) = (with_alternatives, token["top_logprobs"].as_array()) {
        let alternatives = alternatives.iter().map(|other| logprob(other, false)).collect();
        entry.insert("top_logprobs".to_owned(), alternatives);
    }
    entry.into()
}

fn timing(last: &Chunk) -> Timing {
    let Timings {
        prompt_ms,
        predicted_ms,
    } = last.timings;
    let duration = |ms: f64| Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default();
    Timing {
        prompt_tokens: last.tokens_evaluated,
        prompt: duration(prompt_ms),
        tokens: last.tokens_predicted,
        eval: duration(predicted_ms),
    }
}

/// The model that this back end is made for.
fn smollm2(name: Name, size: u64, modified_at: jiff::Timestamp) -> Model {
    Model {
        digest: Model::stand_in_digest(&name, size),
        name,
        size,
        family: "llama",
        parameter_size: "134.52M",
        quantization: "Q4_1",
        license: "Apache-2.0",
        context_length: 8192,
        capabilities: &["completion"],
        remote: false,
        modified_at,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
