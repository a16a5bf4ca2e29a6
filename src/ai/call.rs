//! One call of a model as a part of a task: checked and streamed. What the answer must be is checked above, in `ask`.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::calls::Calls;
use super::fault;
use super::fleet::Fleet;
use super::ollama::{Answer, Kind, Piece, Request};
use crate::task::{Context, Failure};

/// How a call shows itself while it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Show<'a> {
    /// Name of the step, in entries of the token stream.
    pub step: &'a str,
    /// Whether tokens are streamed at all.
    pub stream: bool,
    /// The template whose step this is, for the accounts.
    pub template: Option<&'a str>,
    /// How long the answer may be given to the same call again; `None` asks the model each time.
    pub cache: Option<Duration>,
}

/// Asks and waits for the whole answer. What is wrong with the request is a `ValueError`.
pub(super) async fn call(
    calls: &Calls,
    fleet: &Fleet,
    kind: Kind,
    model: String,
    fields: Map<String, Value>,
    show: Show<'_>,
    context: &Context,
) -> Result<Answer, Failure> {
    let request = Request::new(kind, model, fields, fleet.allow_cloud()).map_err(Failure::value_error)?;
    let attempt = context.retries();
    let counted = calls.begin(&request, context);
    let mut on_piece = |piece: Piece| {
        counted.piece();
        if show.stream {
            let (kind, text) = match piece {
                Piece::Text(text) => ("token", text),
                Piece::Thinking(text) => ("thinking", text),
            };
            context.stream(&json!({"type": kind, "text": text, "step": show.step, "attempt": attempt}));
        }
    };
    tracing::debug!(model = request.model(), template = show.template, cache = ?show.cache, "a call");
    let ended = fleet.ask(&request, &mut on_piece).await;
    counted.end(&ended);
    ended.map_err(|fault| fault::of_model(&fault, request.model(), context))
}

/// Tells the readers of the token stream that what they have belongs to an attempt that was given up (O-054).
pub(super) fn announce_attempt(context: &Context) {
    let details = context.details();
    if details.retries > 0 || details.redelivered {
        context.stream(&json!({"type": "restart", "attempt": details.retries}));
    }
}
