//! Responses: one JSON object, an error, or a stream of lines.

use std::io;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};

use crate::answer::{Answer, Item};
use crate::backend::{End, Event, Frame};
use crate::error::Error;
use crate::frames::{Last, Shape, error_line, json_bytes};
use crate::stats::{Outcome, Track};

/// How often the same piece of text may follow itself before the server gives up on the model.
const MAX_REPEATS: u32 = 30;

pub fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(CONTENT_TYPE, "application/json; charset=utf-8")], body.into()).into_response()
}

/// A refusal by the front itself.
pub fn refusal(error: &Error) -> Response {
    json(status(error), json_bytes(&json!({ "error": error.text })))
}

/// A refusal that comes from the engine's side: without the charset, as seen.
fn engine_refusal(error: &Error) -> Response {
    let body = json_bytes(&json!({ "error": error.text }));
    (status(error), [(CONTENT_TYPE, "application/json")], body).into_response()
}

fn status(error: &Error) -> StatusCode {
    StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// An answer and its record, which is closed as soon as the outcome is known.
pub struct Reader {
    answer: Answer,
    shape: Shape,
    track: Track,
    last_text: String,
    repeats: u32,
}

impl Reader {
    pub fn new(answer: Answer, shape: Shape, track: Track) -> Self {
        Self {
            answer,
            shape,
            track,
            last_text: String::new(),
            repeats: 0,
        }
    }

    /// The next item; nothing after the end.
    async fn next(&mut self) -> Option<Item> {
        let item = self.answer.next().await?;
        if let Item::Event(Event::Frame(frame)) = &item
            && self.is_runaway(&frame.text)
        {
            return Some(self.ended(Ok(End::Unfinished)));
        }
        Some(match item {
            Item::End(end) => self.ended(end),
            event => event,
        })
    }

    fn ended(&mut self, end: Result<End, Error>) -> Item {
        let done = matches!(end, Ok(End::Done { .. }));
        self.track
            .finish(if done { Outcome::Completed } else { Outcome::Error });
        Item::End(end)
    }

    /// The server stops a model that says one thing for ever, without an error and without a `done`.
    fn is_runaway(&mut self, text: &str) -> bool {
        if text.is_empty() {
            return false;
        }
        if text.trim() == self.last_text {
            self.repeats += 1;
        } else {
            self.repeats = 0;
            text.trim().clone_into(&mut self.last_text);
        }
        self.repeats > MAX_REPEATS
    }

    /// The answer as lines. The status is sent with the first one, so an error before it has its own.
    pub async fn stream(mut self) -> Response {
        let first = self.next().await;
        if let Some(Item::End(Err(error))) = &first {
            return engine_refusal(error);
        }
        let body = Body::from_stream(lines(self, first));
        ([(CONTENT_TYPE, "application/x-ndjson")], body).into_response()
    }

    /// The answer as one object.
    pub async fn collect(mut self) -> Response {
        let mut whole = Frame::default();
        let mut wire = Vec::new();
        let end = loop {
            match self.next().await {
                Some(Item::Event(Event::Frame(frame))) => append(&mut whole, frame),
                Some(Item::Event(Event::Wire(bytes))) => wire.extend_from_slice(&bytes),
                Some(Item::End(end)) => break end,
                None => break Ok(End::Unfinished),
            }
        };
        let last = match end {
            Err(error) => return engine_refusal(&error),
            Ok(End::Cut) => return json(StatusCode::OK, Body::from_stream(stream::iter([cut()]))),
            Ok(End::Unfinished) => None,
            Ok(End::Done {
                reason,
                timing,
                context,
            }) => Some(Last {
                reason,
                timing: Some(timing),
                context,
            }),
        };
        if !wire.is_empty() {
            return json(StatusCode::OK, wire);
        }
        json(StatusCode::OK, self.shape.json(&whole, last.as_ref()))
    }

    /// The line for an item; `None` where the body ends.
    fn line(&self, item: Item) -> Option<io::Result<Bytes>> {
        match item {
            Item::Event(Event::Frame(frame)) => Some(Ok(self.shape.line(&frame, None))),
            Item::Event(Event::Wire(bytes)) => Some(Ok(bytes)),
            Item::End(Ok(End::Done {
                reason,
                timing,
                context,
            })) => {
                let last = Last {
                    reason,
                    timing: Some(timing),
                    context,
                };
                Some(Ok(self.shape.line(&Frame::default(), Some(&last))))
            }
            Item::End(Ok(End::Unfinished)) => None,
            Item::End(Ok(End::Cut)) => Some(cut()),
            Item::End(Err(error)) => Some(Ok(error_line(&error.text))),
        }
    }
}

/// The body. Dropping it (the client hung up) drops the work and closes the record.
fn lines(reader: Reader, first: Option<Item>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold((Some(reader), first), async |(reader, first)| {
        let mut reader = reader?;
        let item = match first {
            Some(item) => item,
            None => reader.next().await?,
        };
        let is_end = matches!(item, Item::End(_));
        let line = reader.line(item)?;
        Some((line, ((!is_end).then_some(reader), None)))
    })
}

/// Makes hyper close the connection inside the body.
fn cut() -> io::Result<Bytes> {
    Err(io::Error::other("cut as the script says"))
}

fn append(whole: &mut Frame, frame: Frame) {
    whole.text.push_str(&frame.text);
    whole.thinking.push_str(&frame.thinking);
    join(&mut whole.tool_calls, frame.tool_calls);
    join(&mut whole.logprobs, frame.logprobs);
}

fn join(whole: &mut Option<Value>, part: Option<Value>) {
    match (whole, part) {
        (Some(Value::Array(whole)), Some(Value::Array(part))) => whole.extend(part),
        (whole, Some(part)) => *whole = Some(part),
        (_, None) => {}
    }
}
