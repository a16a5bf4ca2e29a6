//! Frames of a streamed answer: one JSON object per line, however the bytes arrive.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::openai::Chunks;

/// One line. Every field may be missing (O-028 to O-030).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Frame {
    /// What went wrong, in the middle of an answer.
    pub error: Option<Value>,
    /// A piece of text (`/api/generate`).
    pub response: Option<String>,
    /// A piece of what a thinking model thinks.
    pub thinking: Option<String>,
    /// A piece of a message (`/api/chat`).
    pub message: Option<Message>,
    /// Calls of tools.
    pub tool_calls: Vec<Value>,
    /// Log probabilities of the piece.
    pub logprobs: Vec<Value>,
    /// Nothing comes after this.
    pub done: bool,
    /// Why it is done.
    pub done_reason: Option<String>,
    /// Nanoseconds, all of it.
    pub total_duration: u64,
    /// Nanoseconds until a runner was there.
    pub load_duration: u64,
    /// Tokens read.
    pub prompt_eval_count: u64,
    /// Nanoseconds for them.
    pub prompt_eval_duration: u64,
    /// Tokens written.
    pub eval_count: u64,
    /// Nanoseconds for them.
    pub eval_duration: u64,
}

/// A piece of a message.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Message {
    /// Who says it.
    pub role: Option<String>,
    /// A piece of text.
    pub content: Option<String>,
    /// A piece of what a thinking model thinks.
    pub thinking: Option<String>,
    /// Calls of tools.
    pub tool_calls: Vec<Value>,
}

/// Makes frames of lines.
pub(super) enum Reader {
    /// A line is a frame.
    Ollama,
    /// A line is an event, or a part of one.
    Openai(Chunks),
}

impl Reader {
    /// The frame of a line, if it is one; `passed` is the time since the request.
    pub(super) fn frame(&mut self, line: &[u8], passed: Duration) -> Result<Option<Frame>, serde_json::Error> {
        match self {
            Self::Ollama => serde_json::from_slice(line).map(Some),
            Self::Openai(chunks) => chunks.frame(line, passed),
        }
    }

    /// Whether a piece of the answer has come. Ollama sends its headers with the first one; others send theirs at once,
    /// and wait for a place and read the prompt after that.
    pub(super) fn has_begun(&self) -> bool {
        match self {
            Self::Ollama => true,
            Self::Openai(chunks) => chunks.has_begun(),
        }
    }
}

/// Cuts bytes into lines. Holds at most one unfinished line, up to `limit` bytes.
pub struct Lines {
    rest: Vec<u8>,
    /// How much of `rest` has been searched.
    seen: usize,
    limit: usize,
}

/// A line is longer than allowed (O-027).
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

impl Lines {
    /// For lines of `limit` bytes at most.
    pub fn new(limit: usize) -> Self {
        Self {
            rest: Vec::new(),
            seen: 0,
            limit,
        }
    }

    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// The next whole line that is not blank.
    ///
    /// # Errors
    /// It is longer than allowed.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        loop {
            let Some(end) = self.rest[self.seen..].iter().position(|byte| *byte == b'\n') else {
                self.seen = self.rest.len();
                return if self.rest.len() > self.limit {
                    Err(TooLong)
                } else {
                    Ok(None)
                };
            };
            let end = self.seen + end;
            let tail = self.rest.split_off(end + 1);
            let line = std::mem::replace(&mut self.rest, tail);
            self.seen = 0;
            if line.len() > self.limit {
                return Err(TooLong);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    /// What is left at the end of the body: a last line without its newline (O-026).
    pub fn last(self) -> Option<Vec<u8>> {
        (!self.rest.trim_ascii().is_empty()).then_some(self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o_026_lines_and_chunks_need_not_coincide() {
        let text = "{\"a\":1}\r\n\n{\"ü\":2}\n{\"c\":3}".as_bytes();
        for size in 1..text.len() {
            let mut lines = Lines::new(100);
            let mut got = Vec::new();
            for chunk in text.chunks(size) {
                lines.push(chunk);
                while let Some(line) = lines.next_line().unwrap() {
                    got.push(String::from_utf8(line).unwrap().trim().to_owned());
                }
            }
            got.extend(lines.last().map(|line| String::from_utf8(line).unwrap()));
            assert_eq!(got, ["{\"a\":1}", "{\"ü\":2}", "{\"c\":3}"], "chunks of {size}");
        }
    }

    #[test]
    fn o_027_a_line_is_bounded() {
        let mut lines = Lines::new(10);
        lines.push(&[b'x'; 11]);
        assert_eq!(lines.next_line(), Err(TooLong));
    }

    #[test]
    fn o_028_to_o_030_frames_may_hold_anything_or_nothing() {
        let frame: Frame = serde_json::from_str(r#"{"model":"m","new":{"x":[1]},"done":false}"#).unwrap();
        assert!(frame.response.is_none() && frame.eval_count == 0);
    }
}
