//! The OpenAI-compatible endpoints, as far as a worker uses them: chat completions (streamed), models, embeddings.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Map, Value, json};

use super::complete::{Accepted, accept};
use super::fields::{self, Fields};
use super::{App, embed, reply};
use crate::answer::{Answer, Item};
use crate::backend::{End, Event, Frame};
use crate::error::Error;
use crate::frames::{Kind, json_bytes};
use crate::stats::{Outcome, Track};

pub async fn models(State(app): State<Arc<App>>) -> Response {
    let models: Vec<Value> = app
        .backend
        .models()
        .iter()
        .map(|model| json!({ "id": model.name.to_string(), "object": "model", "owned_by": "library" }))
        .collect();
    reply::json(StatusCode::OK, json_bytes(&json!({ "object": "list", "data": models })))
}

pub async fn embeddings(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut track = app.stats.begin("/v1/embeddings", headers, body.clone());
    let answer = async {
        let value = fields::parse(&body)?;
        embed::vectors(&app, &Fields::new(&value, "EmbedRequest")?).await
    };
    let answer = answer.await;
    track.finish(if answer.is_ok() {
        Outcome::Completed
    } else {
        Outcome::Error
    });
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return refusal(&error),
    };
    let vectors = answer["embeddings"].as_array().cloned().unwrap_or_default();
    let data: Vec<Value> = vectors
        .into_iter()
        .enumerate()
        .map(|(index, vector)| json!({ "object": "embedding", "index": index, "embedding": vector }))
        .collect();
    let tokens = &answer["prompt_eval_count"];
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    let answer = json!({ "object": "list", "data": data, "model": answer["model"], "usage": usage });
    reply::json(StatusCode::OK, json_bytes(&answer))
}

pub async fn chat(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut track = app.stats.begin("/v1/chat/completions", headers, body.clone());
    let native = match native(&body) {
        Ok(native) => native,
        Err(error) => {
            track.finish(Outcome::Error);
            return refusal(&error);
        }
    };
    match accept(&app, Kind::Chat, &json_bytes(&native), &track).await {
        Ok(Accepted::Work { mut answer, shape, .. }) => {
            // The status is sent with the first chunk, so an error before it has its own.
            let first = answer.next().await;
            if let Some(Item::End(Err(error))) = &first {
                track.finish(Outcome::Error);
                return refusal(error);
            }
            let chunks = Chunks {
                answer,
                track,
                model: shape.model,
                tokens: (0, 0),
            };
            let body = Body::from_stream(chunks.lines(first));
            ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
        }
        Ok(Accepted::Object(_)) => {
            track.finish(Outcome::Error);
            refusal(&Error::bad_request("[] is too short - 'messages'"))
        }
        Err(error) => {
            track.finish(Outcome::Error);
            refusal(&error)
        }
    }
}

/// The request in Ollama's own words.
fn native(body: &[u8]) -> Result<Value, Error> {
    let body = fields::parse(body)?;
    let fields = Fields::new(&body, "ChatCompletionRequest")?;
    let mut options = Map::new();
    for (theirs, ours) in [
        ("max_tokens", "num_predict"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("seed", "seed"),
        ("stop", "stop"),
    ] {
        if let Some(value) = fields.value(theirs) {
            options.insert(ours.to_owned(), value.clone());
        }
    }
    let format = match fields.value("response_format") {
        Some(format) if format["type"] == "json_schema" => format["json_schema"]["schema"].clone(),
        Some(format) if format["type"] == "json_object" => "json".into(),
        _ => Value::Null,
    };
    Ok(json!({
        "model": fields.string("model")?,
        "messages": fields.array("messages", "openai.Message")?,
        "tools": fields.value("tools"),
        "format": format,
        "options": options,
        "stream": true,
    }))
}

fn refusal(error: &Error) -> Response {
    let kind = match error.status {
        400 => "invalid_request_error",
        404 => "not_found_error",
        _ => "api_error",
    };
    let body = json!({ "error": { "message": error.text, "type": kind, "param": null, "code": null } });
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply::json(status, json_bytes(&body))
}

struct Chunks {
    answer: Answer,
    track: Track,
    model: String,
    tokens: (u64, u64),
}

impl Chunks {
    fn lines(self, first: Option<Item>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::unfold(Some((self, first)), async |state| {
            let (mut chunks, first) = state?;
            let item = match first {
                Some(item) => item,
                None => chunks.answer.next().await?,
            };
            let is_end = matches!(item, Item::End(_));
            let line = chunks.line(item)?;
            Some((line, (!is_end).then_some((chunks, None))))
        })
    }

    fn line(&mut self, item: Item) -> Option<io::Result<Bytes>> {
        let end = match item {
            Item::Event(Event::Frame(frame)) => return Some(Ok(self.delta(&frame).into())),
            Item::Event(Event::Wire(bytes)) => return Some(Ok(bytes)),
            Item::End(end) => end,
        };
        let done = matches!(end, Ok(End::Done { .. }));
        self.track
            .finish(if done { Outcome::Completed } else { Outcome::Error });
        match end {
            Ok(End::Done { reason, timing, .. }) => {
                self.tokens = (timing.prompt_tokens, timing.tokens);
                Some(Ok(self.end(reason).into()))
            }
            Ok(End::Cut) => Some(Err(io::Error::other("cut as the script says"))),
            Ok(End::Unfinished) => None,
            // An error in the middle is lost, as in the real server: a chunk of nobody, and no [DONE].
            Err(_) => {
                self.model.clear();
                Some(Ok(self.delta(&Frame::default()).into()))
            }
        }
    }

    fn chunk(&self, choices: &Value, usage: Option<Value>) -> String {
        let mut chunk = json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": self.model,
            "system_fingerprint": "fp_ollama", "choices": choices,
        });
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        format!("data: {chunk}\n\n")
    }

    fn delta(&self, frame: &Frame) -> Vec<u8> {
        let mut delta = json!({ "role": "assistant", "content": frame.text });
        if !frame.thinking.is_empty() {
            delta["reasoning"] = frame.thinking.clone().into();
        }
        if let Some(Value::Array(calls)) = &frame.tool_calls {
            let call = |(index, call): (usize, &Value)| {
                let arguments = call["function"]["arguments"].to_string();
                let function = json!({ "name": call["function"]["name"], "arguments": arguments });
                json!({ "index": index, "id": call["id"], "type": "function", "function": function })
            };
            delta["tool_calls"] = calls.iter().enumerate().map(call).collect();
        }
        self.chunk(&json!([{ "index": 0, "delta": delta, "finish_reason": null }]), None)
            .into_bytes()
    }

    fn end(&self, reason: &str) -> Vec<u8> {
        let (prompt, written) = self.tokens;
        let last = json!([{ "index": 0, "delta": {}, "finish_reason": reason }]);
        let usage = json!({ "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written });
        [
            self.chunk(&last, None),
            self.chunk(&json!([]), Some(usage)),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat()
        .into_bytes()
    }
}
