//! A whole answer, as tasks return it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::frame::Frame;
use super::{Kind, Request};

/// What a model said, and what it took.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The text as JSON, if a format was asked for.
    pub json: Option<Value>,
    /// What a thinking model thought.
    pub thinking: Option<String>,
    /// Calls of tools, as Ollama gives them.
    pub tool_calls: Vec<Value>,
    /// The message, for the history of a chat.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<Value>,
    /// Log probabilities, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub logprobs: Vec<Value>,
    /// The model, as the request named it.
    pub model: String,
    /// The server that answered.
    pub host: String,
    /// `stop`, `length`, …
    pub done_reason: Option<String>,
    /// The answer ended because it was long enough, not because it was complete (O-037).
    pub truncated: bool,
    /// How often it was asked again because an answer did not fit its format.
    pub repairs: u32,
    /// Tokens; those of repairs included.
    pub usage: Usage,
    /// Times.
    pub timing: Timing,
    /// Which way the call went, and why.
    pub route: Route,
    /// Speed of generation; nothing for a handful of tokens, where the figure means nothing.
    pub tokens_per_second: Option<f64>,
}

/// The record of a call: which way it went, and why.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Route {
    /// Why this host: `warm`, `load`, or `load instead of …`; `cache` when no host was asked, `joined` when the same
    /// call ran already and its answer was waited for.
    pub why: String,
    /// By which rule the host was chosen: `warm-first` and the others of `ai_routing`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub strategy: String,
    /// How all hosts stood at that moment, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub hosts: Vec<Stood>,
    /// Seconds that were waited for a place.
    pub waited_s: f64,
    /// The limit of `ai_rate_limits` that was waited for before, and how many seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limited: Option<Limited>,
    /// Hosts that were asked before, and what went wrong there.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub failed: Vec<Failed>,
    /// The options that were sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub options: Option<Value>,
    /// SHA-256 of what was asked, in hex.
    pub prompt_sha256: String,
    /// What was asked; only where `ai_record_prompts` says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prompt: Option<Value>,
    /// A field that was not sent, because the model cannot do what it asks for: `think`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub left_out: Option<String>,
    /// The template whose step asked, with its version and content.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub template: Option<String>,
    /// How many texts of several tasks were embedded by the one call; the hash is that of all of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub together: Option<usize>,
    /// The model that was asked for, where another answered because a budget was used up.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub downgraded_from: Option<String>,
}

impl Route {
    /// Whether the answer was there already, or another's was waited for: no model was asked.
    pub fn is_known(&self) -> bool {
        matches!(&*self.why, "cache" | "joined")
    }
}

/// A host at the moment of a choice.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Stood {
    /// Its URL.
    pub host: String,
    /// What was known of it, in words.
    pub was: String,
}

/// A wait for a limit.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Limited {
    /// The limit, in words.
    pub by: String,
    /// How long.
    pub waited_s: f64,
}

/// A host that gave no answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Failed {
    /// Its URL.
    pub host: String,
    /// What happened.
    pub fault: String,
}

/// Tokens of one call.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Usage {
    /// In.
    pub prompt_tokens: u64,
    /// Out.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(more.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(more.completion_tokens);
        self.total_tokens = self.total_tokens.saturating_add(more.total_tokens);
    }
}

/// Times of one call, in seconds: the server's, but for the first token, which is ours.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Timing {
    /// All of it.
    pub total_s: f64,
    /// Until a runner was there, waiting in its queue included.
    pub load_s: f64,
    /// Reading the prompt.
    pub prompt_s: f64,
    /// Writing.
    pub generate_s: f64,
    /// From our request to the first piece.
    pub first_token_s: f64,
}

/// Puts frames together.
#[derive(Default)]
pub(super) struct Collector {
    text: String,
    thinking: String,
    tool_calls: Vec<Value>,
    logprobs: Vec<Value>,
    role: Option<String>,
    /// Bytes of the lines that brought what is no text.
    other: usize,
}

impl Collector {
    /// Adds a frame that came in a line of so many bytes; its pieces are (thinking, text).
    pub(super) fn add(&mut self, frame: &mut Frame, bytes: usize) -> (String, String) {
        let message = frame.message.take().unwrap_or_default();
        let mut text = frame.response.take().unwrap_or_default();
        text.push_str(message.content.as_deref().unwrap_or_default());
        let mut thinking = frame.thinking.take().unwrap_or_default();
        thinking.push_str(message.thinking.as_deref().unwrap_or_default());
        self.text.push_str(&text);
        self.thinking.push_str(&thinking);
        if !(frame.tool_calls.is_empty() && message.tool_calls.is_empty() && frame.logprobs.is_empty()) {
            self.other += bytes;
        }
        self.tool_calls.append(&mut frame.tool_calls);
        self.tool_calls.extend(message.tool_calls);
        self.logprobs.append(&mut frame.logprobs);
        self.role = message.role.or(self.role.take());
        (thinking, text)
    }

    /// Bytes collected.
    pub(super) fn size(&self) -> usize {
        self.text.len() + self.thinking.len() + self.other
    }

    /// The answer; `last` is the frame with `done`.
    pub(super) fn finish(self, request: &Request, host: &str, last: Frame, first_token: Duration) -> Answer {
        let message = (request.kind() == Kind::Chat).then(|| {
            let mut message = Map::new();
            message.insert("role".into(), self.role.as_deref().unwrap_or("assistant").into());
            message.insert("content".into(), self.text.clone().into());
            if !self.thinking.is_empty() {
                message.insert("thinking".into(), self.thinking.clone().into());
            }
            if !self.tool_calls.is_empty() {
                message.insert("tool_calls".into(), json!(self.tool_calls));
            }
            Value::Object(message)
        });
        let seconds = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64();
        let generate_s = seconds(last.eval_duration);
        #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
        let tokens_per_second = (last.eval_count >= 4 && generate_s > 0.0).then(|| last.eval_count as f64 / generate_s);
        Answer {
            text: self.text,
            json: None,
            thinking: (!self.thinking.is_empty()).then_some(self.thinking),
            tool_calls: self.tool_calls,
            message,
            logprobs: self.logprobs,
            model: request.model().to_owned(),
            host: host.to_owned(),
            truncated: last.done_reason.as_deref() == Some("length"),
            done_reason: last.done_reason,
            repairs: 0,
            usage: Usage {
                prompt_tokens: last.prompt_eval_count,
                completion_tokens: last.eval_count,
                total_tokens: last.prompt_eval_count.saturating_add(last.eval_count),
            },
            timing: Timing {
                total_s: seconds(last.total_duration),
                load_s: seconds(last.load_duration),
                prompt_s: seconds(last.prompt_eval_duration),
                generate_s,
                first_token_s: first_token.as_secs_f64(),
            },
            route: Route::default(),
            tokens_per_second,
        }
    }
}
