//! The JSON that goes out: one line of a stream, or one whole answer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::backend::{Frame, Timing};

/// Which of the two calls is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Generate,
    Chat,
}

/// What all lines of one answer have in common.
#[derive(Debug, Clone)]
pub struct Shape {
    pub kind: Kind,
    /// The model's name as the request wrote it.
    pub model: String,
    pub arrived: Instant,
    /// From arrival until a runner was assigned.
    pub load: Duration,
}

/// The last frame's own fields.
#[derive(Debug)]
pub struct Last {
    pub reason: &'static str,
    /// None for load and unload answers, which carry no metrics.
    pub timing: Option<Timing>,
    pub context: Vec<u64>,
}

#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "<[u64]>::is_empty")]
    context: &'a [u64],
    #[serde(flatten)]
    metrics: Metrics,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'a Value>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<&'a Value>,
}

/// Nanoseconds and tokens; zeros are dropped.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Metrics {
    #[serde(skip_serializing_if = "is_zero")]
    total_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    load_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    eval_duration: u64,
}

impl Metrics {
    fn new(shape: &Shape, timing: &Timing) -> Self {
        Self {
            total_duration: nanos(shape.arrived.elapsed()),
            load_duration: nanos(shape.load),
            prompt_eval_count: timing.prompt_tokens,
            prompt_eval_duration: nanos(timing.prompt),
            eval_count: timing.tokens,
            eval_duration: nanos(timing.eval),
        }
    }
}

impl Shape {
    /// One JSON object without a newline. `last` makes it the `done` frame.
    pub fn json(&self, frame: &Frame, last: Option<&Last>) -> Vec<u8> {
        let chat = self.kind == Kind::Chat;
        let line = Line {
            model: &self.model,
            created_at: jiff::Timestamp::now().to_string(),
            response: (!chat).then_some(&frame.text),
            thinking: if chat { "" } else { &frame.thinking },
            message: chat.then(|| Message {
                role: "assistant",
                content: &frame.text,
                thinking: &frame.thinking,
                tool_calls: frame.tool_calls.as_ref(),
            }),
            done: last.is_some(),
            done_reason: last.map(|last| last.reason),
            context: last.map_or(&[], |last| &last.context),
            metrics: last
                .and_then(|last| last.timing.as_ref())
                .map_or_else(Metrics::default, |timing| Metrics::new(self, timing)),
            logprobs: frame.logprobs.as_ref(),
        };
        json_bytes(&line)
    }

    /// The same as a line of a stream.
    pub fn line(&self, frame: &Frame, last: Option<&Last>) -> Bytes {
        newline(self.json(frame, last))
    }
}

/// The line that ends a failed stream.
pub fn error_line(text: &str) -> Bytes {
    newline(json_bytes(&serde_json::json!({ "error": text })))
}

fn newline(mut json: Vec<u8>) -> Bytes {
    json.push(b'\n');
    json.into()
}

/// Serialises as Go does, with the characters escaped that are unsafe inside HTML.
pub fn json_bytes(value: &impl Serialize) -> Vec<u8> {
    // Nothing here has a key that is not a string or a `Serialize` that fails.
    let json = serde_json::to_string(value).unwrap_or_default();
    let unsafe_char = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
    if !json.contains(unsafe_char) {
        return json.into_bytes();
    }
    let mut escaped = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        if unsafe_char(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped.into_bytes()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// The signature is serde's.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kind: Kind) -> Shape {
        Shape {
            kind,
            model: "m".to_owned(),
            arrived: Instant::now(),
            load: Duration::ZERO,
        }
    }

    fn value(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("JSON")
    }

    #[test]
    fn html_characters_are_escaped_on_the_wire_and_decode_to_themselves() {
        let bytes = json_bytes(&"<a & \u{2028}>");
        assert_eq!(bytes, br#""\u003ca \u0026 \u2028\u003e""#);
        assert_eq!(value(&bytes), "<a & \u{2028}>");
    }

    #[test]
    fn zero_metrics_are_dropped_and_the_rest_are_nanoseconds() {
        let timing = Timing {
            prompt_tokens: 2,
            tokens: 1,
            eval: Duration::from_micros(1),
            ..Timing::default()
        };
        let last = Last {
            reason: "stop",
            timing: Some(timing),
            context: vec![],
        };
        let line = value(&shape(Kind::Generate).json(&Frame::default(), Some(&last)));
        assert_eq!(
            (&line["eval_duration"], &line["done_reason"]),
            (&1000.into(), &"stop".into())
        );
        for absent in [
            "load_duration",
            "prompt_eval_duration",
            "context",
            "thinking",
            "message",
        ] {
            assert_eq!(line.get(absent), None, "{absent}");
        }
    }

    #[test]
    fn chat_frames_carry_a_message_and_no_response() {
        let frame = Frame {
            text: "Hi".to_owned(),
            ..Frame::default()
        };
        let line = value(&shape(Kind::Chat).line(&frame, None));
        assert_eq!(
            line["message"],
            serde_json::json!({"role": "assistant", "content": "Hi"})
        );
        assert_eq!((&line["done"], line.get("response")), (&false.into(), None));
    }
}
