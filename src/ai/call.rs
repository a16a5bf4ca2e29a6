//! One call of a model as a part of a task: checked and streamed. What the answer must be is checked above, in `ask`.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Engine;
use super::fault;
use super::fleet::{Caller, Heard, Strategy, Trouble};
use super::ollama::{Answer, Kind, Piece, Request};
use super::template::Template;
use crate::clock;
use crate::task::{Context, Failure};

/// How a call shows itself while it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Show<'a> {
    /// Name of the step, in entries of the token stream.
    pub step: &'a str,
    /// Whether tokens are streamed at all.
    pub stream: bool,
    /// The template whose step this is, for the accounts and the record.
    pub template: Option<&'a Template>,
    /// How long the answer may be given to the same call again; `None` asks the model each time.
    pub cache: Option<Duration>,
    /// How its host is chosen, where the call says so.
    pub routing: Option<&'a Strategy>,
}

/// Asks and waits for the whole answer. What is wrong with the request is a `ValueError`.
pub(super) async fn call(
    engine: &Engine,
    kind: Kind,
    model: String,
    fields: Map<String, Value>,
    show: Show<'_>,
    caller: &Caller<'_>,
    context: &Context,
) -> Result<Box<Answer>, Failure> {
    let fleet = engine.fleet();
    let request = Request::new(kind, model.clone(), fields, fleet.allow_cloud()).map_err(Failure::value_error)?;
    let counted = engine.calls().begin(&request, context);
    let mut hear = |heard| {
        if matches!(heard, Heard::Piece(_)) {
            counted.piece();
        }
        tell(&heard, show, context);
    };
    let asked = fleet.ask(request, caller, &mut hear).await;
    counted.end(&asked);
    let mut answer = match asked {
        Ok(answer) => answer,
        Err(trouble) => return Err(Box::pin(not_answered(trouble, &model, show, context)).await),
    };
    // What was known already no model worked for.
    if !answer.route.is_known() {
        context.add_tokens(answer.usage.total_tokens);
    }
    answer.route.template = show.template.map(Template::title);
    context.stream(&json!({
        "type": "call", "step": show.step, "attempt": context.retries(), "model": answer.model, "host": answer.host,
        "route": answer.route, "usage": answer.usage, "timing": answer.timing, "done_reason": answer.done_reason,
    }));
    Ok(answer)
}

/// Who asks, as the fleet wants to know it.
pub(super) fn caller<'a>(show: Show<'a>, context: &'a Context) -> Caller<'a> {
    let message = context.details().message.as_deref();
    let headers = message.map(|message| &message.headers);
    let stamp = |name: &str| headers?.stamps.as_ref()?.get(name)?.as_str();
    let tenant = headers.and_then(|headers| headers.extra.get("tenant")?.as_str());
    // Of Celery's priorities over Redis 0 is the first, and what a message without one has.
    let priority = message.map_or(0, |message| message.properties.priority());
    Caller {
        task: context.name(),
        template: show.template.map(Template::name),
        tenant: tenant.or_else(|| stamp("tenant")),
        priority: 9 - priority.min(9),
        cache: show.cache,
        routing: show.routing,
        id: context.id(),
        headers,
        may_be_put_off: context.client().is_some(),
        shape: None,
    }
}

/// What a task does about a call without an answer. One that is put off says what it waits for; a template says so of
/// all its steps at once.
pub(super) async fn not_answered(trouble: Trouble, model: &str, show: Show<'_>, context: &Context) -> Failure {
    if let (Trouble::Later(by, after), None) = (&trouble, show.template) {
        let until = clock::iso(clock::after(clock::now(), *after));
        // What cannot be told changes nothing of the wait.
        let _ = context
            .update_state("WAITING", &json!({"limit": by, "until": until}))
            .await;
    }
    failure(trouble, model, context)
}

/// Passes on what is heard of a call.
pub(super) fn tell(heard: &Heard, show: Show<'_>, context: &Context) {
    if !show.stream {
        return;
    }
    let (step, attempt) = (show.step, context.retries());
    context.stream(&match heard {
        Heard::Piece(Piece::Text(text)) => json!({"type": "token", "text": text, "step": step, "attempt": attempt}),
        Heard::Piece(Piece::Thinking(text)) => {
            json!({"type": "thinking", "text": text, "step": step, "attempt": attempt})
        }
        Heard::Limited(limit, wait) => json!({
            "type": "limit", "limit": limit, "wait_s": wait.as_secs_f64(), "step": step, "attempt": attempt,
        }),
        Heard::Loading(host) => {
            json!({"type": "model", "status": "loading", "host": host, "step": step, "attempt": attempt})
        }
        Heard::Pulling(progress) => json!({
            "type": "model", "status": "pulling", "what": progress.status, "completed": progress.completed,
            "total": progress.total, "step": step, "attempt": attempt,
        }),
        Heard::Again => json!({"type": "restart", "step": step, "attempt": attempt}),
    });
}

/// What a task does about a call without an answer.
fn failure(trouble: Trouble, model: &str, context: &Context) -> Failure {
    match trouble {
        Trouble::Fault(fault) => fault::of_model(&fault, model, context),
        Trouble::Value(text) => Failure::value_error(text),
        Trouble::Budget(text) => fault::budget_exceeded(text),
        Trouble::Later(_, after) => Failure::Later(after),
    }
}

/// Tells the readers of the token stream that what they have belongs to an attempt that was given up (O-054).
pub(super) fn announce_attempt(context: &Context) {
    let details = context.details();
    if details.retries > 0 || details.redelivered {
        context.stream(&json!({"type": "restart", "attempt": details.retries}));
    }
}

/// How a call wants its host chosen.
///
/// # Errors
/// A text for people.
pub(super) fn routing(value: &Value) -> Result<Option<Strategy>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => text.parse().map(Some).map_err(|wrong| format!("routing: {wrong}")),
        other => Err(format!("routing: must be a text such as least-busy, not {other}")),
    }
}

/// How long an answer may be given again: `true` is a day, a number is seconds.
///
/// # Errors
/// A text for people.
pub(super) fn cache_time(value: &Value) -> Result<Option<Duration>, String> {
    match value {
        Value::Null | Value::Bool(false) => Ok(None),
        Value::Bool(true) => Ok(Some(Duration::from_secs(86_400))),
        Value::Number(seconds) => match Duration::try_from_secs_f64(seconds.as_f64().unwrap_or(-1.0)) {
            Ok(time) if !time.is_zero() => Ok(Some(time)),
            _ => Err("cache: must be true, false or a number of seconds".into()),
        },
        _ => Err("cache: must be true, false or a number of seconds".into()),
    }
}
