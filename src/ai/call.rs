//! One call of a model as a part of a task: checked, streamed, and its answer checked.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::fault;
use super::fleet::Fleet;
use super::ollama::{Answer, Kind, Piece, Request};
use super::schema::Shape;
use crate::task::{Context, Failure};

/// What a task asks of a model.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    /// Which endpoint.
    pub kind: Kind,
    /// The model's name.
    pub model: String,
    /// The fields of Ollama's API, but for the model; `null` means not given.
    pub fields: Map<String, Value>,
    /// Name of the step, in entries of the token stream.
    pub step: &'a str,
    /// Whether tokens are streamed.
    pub stream: bool,
    /// The template whose step this is, for the accounts.
    #[expect(dead_code, reason = "the accounts come next")]
    pub template: Option<&'a str>,
    /// How long the answer may be given to the same call again; `None` asks the model each time.
    #[expect(dead_code, reason = "the cache comes next")]
    pub cache: Option<Duration>,
}

/// Asks and waits for the whole answer. What is wrong with the request is a `ValueError`.
pub(super) async fn call(fleet: &Fleet, ask: Ask<'_>, context: &Context) -> Result<Answer, Failure> {
    let shape = Shape::of(ask.fields.get("format")).map_err(Failure::value_error)?;
    let request = Request::new(ask.kind, ask.model, ask.fields, fleet.allow_cloud()).map_err(Failure::value_error)?;
    let attempt = context.retries();
    let mut on_piece = |piece: Piece| {
        if ask.stream {
            let (kind, text) = match piece {
                Piece::Text(text) => ("token", text),
                Piece::Thinking(text) => ("thinking", text),
            };
            context.stream(&json!({"type": kind, "text": text, "step": ask.step, "attempt": attempt}));
        }
    };
    let mut answer = fleet
        .ask(&request, &mut on_piece)
        .await
        .map_err(|fault| fault::of_model(&fault, request.model(), context))?;
    shape.check(&mut answer)?;
    Ok(answer)
}

/// Tells the readers of the token stream that what they have belongs to an attempt that was given up (O-054).
pub(super) fn announce_attempt(context: &Context) {
    let details = context.details();
    if details.retries > 0 || details.redelivered {
        context.stream(&json!({"type": "restart", "attempt": details.retries}));
    }
}
