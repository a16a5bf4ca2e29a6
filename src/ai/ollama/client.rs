//! Asks a server, and follows its answer to the end.

use std::time::Duration;

use serde_json::Value;

use super::answer::Collector;
use super::fault::{Class, Fault};
use super::frame::{Lines, Reader};
use super::http::{Body, Http};
use super::server::{Server, Speaks};
use super::{Answer, Request, openai};
use crate::ai::CallLimits;
use crate::clock;

/// A piece of an answer, as it comes.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Text of the answer.
    Text(String),
    /// What the model thinks.
    Thinking(String),
}

/// A client of model servers, whatever they speak.
#[derive(Clone, Debug)]
pub struct Ollama {
    pub(super) http: Http,
    pub(super) limits: CallLimits,
}

impl Ollama {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// A text for people: TLS cannot be set up.
    pub fn new(limits: CallLimits) -> Result<Self, String> {
        Ok(Self {
            http: Http::new(limits.connect)?,
            limits,
        })
    }

    /// The bounds on a call.
    pub fn limits(&self) -> &CallLimits {
        &self.limits
    }

    /// Asks a server; pieces go to `on_piece` as they come, the first within `first`.
    ///
    /// Dropping the future closes the connection, which stops the model (O-056).
    ///
    /// # Errors
    /// What went wrong there.
    pub(crate) async fn ask(
        &self,
        server: &Server,
        request: &Request,
        first: Duration,
        on_piece: &mut (dyn FnMut(Piece) + Send),
    ) -> Result<Answer, Fault> {
        let began = clock::instant();
        let (body, reader) = match server.speaks {
            Speaks::Ollama => {
                let asked = request.with_end(self.limits.tokens);
                // Boxed, here and below: it is over when the answer begins, and an answer may take minutes.
                let body = Box::pin(self.http.open(server, request.kind().path(), &asked, first));
                (body.await?, Reader::Ollama)
            }
            Speaks::Openai => {
                let asked = openai::body(request).map_err(|text| Fault::new(Class::Refused, &server.url, text))?;
                let body = Box::pin(self.http.open(server, "v1/chat/completions", &asked, first));
                (body.await?, Reader::Openai(openai::Chunks::default()))
            }
        };
        self.follow(&server.url, request, body, reader, (began, first), on_piece)
            .await
    }

    async fn follow(
        &self,
        host: &str,
        request: &Request,
        mut body: Body,
        mut reader: Reader,
        (began, patience): (clock::Instant, Duration),
        on_piece: &mut (dyn FnMut(Piece) + Send),
    ) -> Result<Answer, Fault> {
        let mut lines = Lines::new(self.limits.answer_bytes);
        let mut answer = Collector::default();
        let mut first = None;
        loop {
            let chunk = if reader.has_begun() {
                body.next_within(self.limits.stall).await?
            } else {
                let passed = clock::instant().saturating_duration_since(began);
                body.first_within(patience.saturating_sub(passed), patience).await?
            };
            let ended = chunk.is_none();
            if let Some(chunk) = chunk {
                lines.push(&chunk);
            }
            loop {
                let line = match lines.next_line() {
                    Ok(Some(line)) => line,
                    Ok(None) if ended => match std::mem::replace(&mut lines, Lines::new(0)).last() {
                        Some(line) => line,
                        None => break,
                    },
                    Ok(None) => break,
                    Err(_) => return Err(too_long(host, self.limits.answer_bytes)),
                };
                let passed = || clock::instant().saturating_duration_since(began);
                let Some(mut frame) = reader.frame(&line, passed()).map_err(|error| no_json(host, &error))? else {
                    continue;
                };
                if let Some(error) = &frame.error {
                    return Err(Fault::mid_stream(host, error));
                }
                let first_token = *first.get_or_insert_with(passed);
                let (thinking, text) = answer.add(&mut frame, line.len());
                if !thinking.is_empty() {
                    on_piece(Piece::Thinking(thinking));
                }
                if !text.is_empty() {
                    on_piece(Piece::Text(text));
                }
                if answer.size() > self.limits.answer_bytes {
                    return Err(too_long(host, self.limits.answer_bytes));
                }
                if frame.done {
                    if matches!(frame.done_reason.as_deref(), Some("load" | "unload")) {
                        let text = "the server took the request for one to load the model";
                        return Err(Fault::new(Class::Refused, host, text));
                    }
                    return Ok(answer.finish(request, host, frame, first_token));
                }
            }
            if ended {
                // O-033: the text so far is no answer.
                let text = format!(
                    "the answer ended before it was done, after {} characters",
                    answer.size()
                );
                return Err(Fault::new(Class::Broken, host, text));
            }
        }
    }

    /// The JSON of a short answer with status 200.
    pub(super) fn json(server: &Server, (status, body): (u16, Vec<u8>)) -> Result<Value, Fault> {
        match serde_json::from_slice(&body) {
            Ok(value) if status == 200 => Ok(value),
            _ => Err(Fault::from_status(&server.url, status, &body)),
        }
    }
}

fn no_json(host: &str, error: &serde_json::Error) -> Fault {
    Fault::new(Class::Broken, host, format!("the answer is no JSON: {error}"))
}

fn too_long(host: &str, limit: usize) -> Fault {
    Fault::new(
        Class::Refused,
        host,
        format!("the answer is longer than {limit} bytes (ai_max_answer_bytes)"),
    )
}
