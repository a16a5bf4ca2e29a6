//! The span of a run, under the names and with the attributes that OpenTelemetry's instrumentation of Celery gives it.

use opentelemetry::{Array, Value as Attribute};
use serde_json::json;

use super::request::{Effect, Happening, Request};
use crate::trace::{Kind, Span, Trace, is_on};
use crate::wire::redact::hide_passwords;
use crate::wire::{Exception, repr};

/// Begins the span of a run, if spans are made; and the trace that the run is part of.
pub(super) fn begin(request: &Request, hostname: &str) -> (Option<Span>, Option<Trace>) {
    let headers = &request.message.headers;
    if !is_on() && headers.extra.is_empty() {
        return (None, None);
    }
    let from = Trace::of(&headers.extra);
    if !is_on() {
        return (None, from);
    }
    let properties = &request.message.properties;
    let text = |text: &str| Attribute::from(text.to_owned());
    let mut attributes = vec![
        ("celery.action", text("run")),
        ("celery.task_name", text(&headers.task)),
        ("messaging.system", text("redis")),
        ("messaging.message.id", text(&headers.id)),
        ("celery.hostname", text(headers.origin.as_deref().unwrap_or(hostname))),
    ];
    let mut some = |name: &'static str, value: Option<&str>| {
        attributes.extend(value.filter(|value| !value.is_empty()).map(|value| (name, text(value))));
    };
    some("messaging.destination", properties.routing_key());
    some("messaging.conversation_id", properties.correlation_id.as_deref());
    some("celery.reply_to", properties.reply_to.as_deref());
    some("celery.eta", headers.eta.as_deref());
    some("celery.expires", headers.expires.as_deref());
    let info = json!({
        "exchange": properties.exchange(),
        "routing_key": properties.routing_key(),
        "priority": properties.priority(),
        "redelivered": properties.redelivered(),
    });
    some("celery.delivery_info", Some(&repr(&info)));
    if headers.retries > 0 {
        attributes.push(("celery.retries", i64::from(headers.retries).into()));
    }
    let limit = headers.timelimit;
    if limit.hard.is_some() || limit.soft.is_some() {
        let shown = |limit: Option<std::time::Duration>| {
            limit.map_or_else(String::new, |limit| limit.as_secs_f64().to_string())
        };
        let limits = Array::String(vec![shown(limit.hard).into(), shown(limit.soft).into()]);
        attributes.push(("celery.timelimit", Attribute::Array(limits)));
    }
    let span = Span::begin(
        format!("run/{}", headers.task),
        Kind::Consumer,
        from.as_ref(),
        attributes,
    );
    let trace = span.as_ref().map(|span| span.trace().clone()).or(from);
    (span, trace)
}

/// Ends it; with a failure that came behind the run.
pub(super) fn end(span: &Span, failure: Option<Exception>) {
    if let Some(exception) = failure {
        fail(span, &exception);
        span.set("celery.state", "FAILURE");
    }
    span.end();
}

fn fail(span: &Span, exception: &Exception) {
    span.fail(
        &class(exception),
        &without_passwords(exception.message()),
        Some(&without_passwords(exception.traceback_text())),
    );
}

/// Notes what came of the run.
pub(super) fn tell(span: &Span, request: &Request, effects: &[Effect]) {
    let state = effects.iter().find_map(|effect| match effect {
        Effect::Emit(Happening::Succeeded { .. }) => Some("SUCCESS"),
        Effect::Emit(Happening::Failed(exception)) => {
            fail(span, &shown(exception, request));
            Some("FAILURE")
        }
        Effect::Emit(Happening::Retried(exception)) => {
            span.set(
                "celery.retry.reason",
                without_passwords(shown(exception, request).message()),
            );
            Some("RETRY")
        }
        Effect::Emit(Happening::Revoked { signum, .. }) => {
            if let Some(signum) = signum {
                span.set("celery.terminated.signal", i64::from(*signum));
            }
            Some("REVOKED")
        }
        _ => None,
    });
    if let Some(state) = state {
        span.set("celery.state", state);
    }
}

pub(super) fn shown(exception: &Exception, request: &Request) -> Exception {
    if request.entry.hides.everything() {
        exception.hidden()
    } else {
        exception.clone()
    }
}

fn without_passwords(text: String) -> String {
    hide_passwords(&text).unwrap_or(text)
}

/// As Python names it: its own classes without their module.
fn class(exception: &Exception) -> String {
    match &*exception.module {
        "builtins" => exception.name.clone(),
        module => format!("{module}.{}", exception.name),
    }
}
