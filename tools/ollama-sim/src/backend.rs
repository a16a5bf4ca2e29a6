//! What is behind the front: the trait that the script and the engine implement, and what passes through it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::error::Error;
use crate::names::Name;
use crate::options::Options;

pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A back end. Dropping a future that it returned stops the work behind it.
pub trait Backend: Send + Sync + 'static {
    /// The installed models, newest first.
    fn models(&self) -> Vec<Arc<Model>>;

    /// Makes a model that is not installed an installed one; its size, or nothing where there is none of that name.
    fn pull(&self, _name: &Name) -> Option<u64> {
        None
    }

    /// Removes an installed model; whether there was one.
    fn delete(&self, _name: &Name) -> bool {
        false
    }

    /// Gives a model one more name.
    fn copy(&self, _model: &Model, _name: Name) {}

    /// Vectors of texts, by a loaded model.
    fn embed(&self, model: Arc<Model>, texts: Vec<String>) -> BoxFuture<Result<Vec<Vec<f32>>, Error>>;

    /// Makes a model ready; dropped half-way, the load is thrown away.
    fn load(&self, model: Arc<Model>, settings: Settings) -> BoxFuture<Result<(), Error>>;

    /// Gives back what a loaded model holds. Called when no request uses it.
    fn unload(&self, model: &Model);

    /// Whether a loaded model can still answer; if not, it is loaded again.
    fn is_alive(&self, model: &Model) -> bool;

    /// Answers one request on a loaded model, frame by frame.
    fn answer(&self, job: Job, out: Emitter) -> BoxFuture<Result<End, Error>>;

    /// The prompt as the model would see it, for `_debug_render_only`.
    fn render(&self, job: Job) -> BoxFuture<Result<String, Error>>;
}

/// The prompt template of the models here, in Go's language: for `/api/show` only.
pub const CHATML: &str = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}\
                          <|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n";

/// One installed model, as `/api/tags` and `/api/show` tell of it.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: Name,
    /// Bytes of the weights.
    pub size: u64,
    /// SHA-256 in hex.
    pub digest: String,
    pub family: &'static str,
    pub parameter_size: &'static str,
    pub quantization: &'static str,
    pub license: &'static str,
    /// The window it was trained with, in tokens.
    pub context_length: u32,
    pub capabilities: &'static [&'static str],
    /// A stub: it runs in the cloud.
    pub remote: bool,
    pub modified_at: jiff::Timestamp,
}

impl Model {
    /// Looks like a digest and is the same in each run, but says nothing about the weights.
    pub fn stand_in_digest(name: &Name, size: u64) -> String {
        let word = |seed: u64| {
            let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            name.key()
                .bytes()
                .chain(size.to_le_bytes())
                .fold(0xcbf2_9ce4_8422_2325 ^ seed, step)
        };
        (0..4).map(|seed| format!("{:016x}", word(seed))).collect()
    }

    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.contains(&capability)
    }

    /// The `details` object of tags, show and ps.
    pub fn details(&self) -> Value {
        json!({
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization,
        })
    }
}

/// What a model is loaded with; a request with other values makes the server load it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Window of one slot, in tokens.
    pub num_ctx: i64,
    /// 0: the back end decides.
    pub num_thread: i64,
    pub num_batch: i64,
    pub shift: bool,
}

/// One request, checked.
#[derive(Debug, Clone)]
pub struct Job {
    pub model: Arc<Model>,
    pub input: Input,
    pub format: Format,
    pub options: Options,
    pub settings: Settings,
    /// Whether the model is to think aloud first. Only ever true for a model that can.
    pub think: bool,
    pub truncate: bool,
    /// The request brought a prompt template of its own.
    pub has_template: bool,
    /// Log probabilities wanted, with this many alternatives.
    pub logprobs: Option<u64>,
    /// Whether the answer ends with the `context` array.
    pub wants_context: bool,
    /// The sizes of the pictures, in bytes.
    pub images: Vec<usize>,
}

#[derive(Debug, Clone)]
pub enum Input {
    Prompt {
        prompt: String,
        system: Option<String>,
        raw: bool,
        context: Vec<u64>,
    },
    Chat {
        messages: Vec<Message>,
        tools: Vec<Value>,
    },
}

#[derive(Debug, Clone)]
pub struct Message {
    /// Lower case; not checked.
    pub role: String,
    pub content: String,
}

/// What the output must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    Free,
    Json,
    Schema(Value),
}

/// A piece of an answer.
#[derive(Debug, Default)]
pub struct Frame {
    pub text: String,
    pub thinking: String,
    pub tool_calls: Option<Value>,
    pub logprobs: Option<Value>,
}

/// What a back end sends before its end.
#[derive(Debug)]
pub enum Event {
    Frame(Frame),
    /// Bytes for the wire as they are: broken lines of the script.
    Wire(Bytes),
}

/// How an answer ended without an error.
#[derive(Debug)]
pub enum End {
    Done {
        reason: &'static str,
        timing: Timing,
        context: Vec<u64>,
    },
    /// The body ends cleanly, without a `done` frame.
    Unfinished,
    /// The connection is cut inside the body.
    Cut,
}

/// What the work took; the front adds the total and the load.
#[derive(Debug, Default, Clone, Copy)]
pub struct Timing {
    pub prompt_tokens: u64,
    pub prompt: Duration,
    pub tokens: u64,
    pub eval: Duration,
}

/// Takes the frames of one answer to its client, and counts them.
#[derive(Clone)]
pub struct Emitter {
    events: mpsc::Sender<Event>,
    tokens: Arc<AtomicU64>,
}

impl Emitter {
    pub fn new(events: mpsc::Sender<Event>, tokens: Arc<AtomicU64>) -> Self {
        Self { events, tokens }
    }

    pub async fn frame(&self, frame: Frame) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
        self.send(Event::Frame(frame)).await;
    }

    pub async fn wire(&self, bytes: impl Into<Bytes>) {
        self.send(Event::Wire(bytes.into())).await;
    }

    async fn send(&self, event: Event) {
        // Nobody left to read: the future that sends is about to be dropped.
        let _ = self.events.send(event).await;
    }
}
