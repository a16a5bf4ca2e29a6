//! Traces: the W3C context of a message, and the spans of OpenTelemetry that continue it.
//!
//! A context that comes with a message is passed on with all that its task sends, whether or not anybody records spans.
//! Spans are made only after [`turn_on`]; until then nothing here costs more than a look at a flag.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, ContextGuard, InstrumentationScope, KeyValue, Value as Attribute, global};
use serde_json::{Map, Value};

/// The headers, as the propagators of OpenTelemetry write them by default.
const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
const BAGGAGE: &str = "baggage";

static ON: AtomicBool = AtomicBool::new(false);

/// Makes spans from now on: the global tracer provider of OpenTelemetry records them.
pub fn turn_on() {
    ON.store(true, Ordering::Relaxed);
}

/// Whether spans are made.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Where something stands in a trace.
#[derive(Clone, Debug)]
pub struct Trace {
    context: Context,
    baggage: Option<String>,
}

/// What kind of work a span is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Sends a message.
    Producer,
    /// Runs a task that came as a message.
    Consumer,
    /// Asks a server.
    Client,
}

impl Trace {
    /// The trace that a message is part of.
    pub fn of(headers: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(Value::as_str);
        let mut parent = text(PARENT)?.trim().split('-');
        let (version, trace, span, flags) = (parent.next()?, parent.next()?, parent.next()?, parent.next()?);
        let well_formed = version.len() == 2
            && version != "ff"
            && trace.len() == 32
            && span.len() == 16
            && flags.len() == 2
            && (version != "00" || parent.next().is_none());
        if !well_formed {
            return None;
        }
        let state = text(STATE).and_then(|state| TraceState::from_str(state).ok());
        let span = SpanContext::new(
            TraceId::from_hex(trace).ok()?,
            SpanId::from_hex(span).ok()?,
            // The others have no meaning yet.
            TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1),
            true,
            state.unwrap_or_default(),
        );
        span.is_valid().then(|| Self {
            context: Context::new().with_remote_span_context(span),
            baggage: text(BAGGAGE).map(str::to_owned),
        })
    }

    /// The trace that the code around is part of.
    pub fn current() -> Option<Self> {
        let context = Context::current();
        let is_part = context.span().span_context().is_valid();
        is_part.then_some(Self { context, baggage: None })
    }

    /// What is passed on with a message.
    pub fn headers(&self) -> Map<String, Value> {
        let span = self.context.span().span_context().clone();
        let parent = format!(
            "00-{}-{}-{:02x}",
            span.trace_id(),
            span.span_id(),
            span.trace_flags().to_u8()
        );
        let mut headers = Map::new();
        headers.insert(PARENT.to_owned(), parent.into());
        let state = span.trace_state().header();
        if !state.is_empty() {
            headers.insert(STATE.to_owned(), state.into());
        }
        if let Some(baggage) = &self.baggage {
            headers.insert(BAGGAGE.to_owned(), baggage.clone().into());
        }
        headers
    }

    /// Makes it the trace that the code around is part of, until the guard goes.
    pub fn enter(&self) -> ContextGuard {
        self.context.clone().attach()
    }

    /// The ids of trace and span, as logs show them.
    pub fn ids(&self) -> (String, String) {
        let span = self.context.span().span_context().clone();
        (span.trace_id().to_string(), span.span_id().to_string())
    }
}

/// A span that was begun. It ends when the last of its clones goes.
#[derive(Clone, Debug)]
pub struct Span(Trace);

impl Span {
    /// Begins a span under `parent`, or one that is the first of a trace; `None` when nobody records spans.
    pub fn begin(
        name: String,
        kind: Kind,
        parent: Option<&Trace>,
        attributes: Vec<(&'static str, Attribute)>,
    ) -> Option<Self> {
        if !is_on() {
            return None;
        }
        let kind = match kind {
            Kind::Producer => SpanKind::Producer,
            Kind::Consumer => SpanKind::Consumer,
            Kind::Client => SpanKind::Client,
        };
        let scope = InstrumentationScope::builder("orchestra")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        let tracer = global::tracer_with_scope(scope);
        let under = parent.map_or_else(Context::new, |parent| parent.context.clone());
        let attributes = attributes.into_iter().map(|(name, value)| KeyValue::new(name, value));
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes);
        let span = tracer.build_with_context(builder, &under);
        Some(Self(Trace {
            context: under.with_span(span),
            baggage: parent.and_then(|parent| parent.baggage.clone()),
        }))
    }

    /// Where it stands.
    pub fn trace(&self) -> &Trace {
        &self.0
    }

    /// Tells something more about it.
    pub fn set(&self, name: &'static str, value: impl Into<Attribute>) {
        self.0.context.span().set_attribute(KeyValue::new(name, value));
    }

    /// It went wrong: the class of the exception, what it says, and its traceback.
    pub fn fail(&self, class: &str, message: &str, traceback: Option<&str>) {
        let span = self.0.context.span();
        let mut attributes = vec![
            KeyValue::new("exception.type", class.to_owned()),
            KeyValue::new("exception.message", message.to_owned()),
        ];
        attributes.extend(traceback.map(|text| KeyValue::new("exception.stacktrace", text.to_owned())));
        span.add_event("exception", attributes);
        span.set_status(Status::error(message.to_owned()));
    }

    /// Ends it now.
    pub fn end(&self) {
        self.0.context.span().end();
    }
}

/// Headers for what is sent on behalf of something in a trace.
pub fn carried(trace: Option<&Trace>) -> Option<Arc<Map<String, Value>>> {
    trace.map(|trace| Arc::new(trace.headers()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(parent: &str) -> Option<Trace> {
        let headers = json!({"traceparent": parent, "tracestate": "a=1,b=2", "baggage": "k=v"});
        Trace::of(headers.as_object().unwrap())
    }

    #[test]
    fn a_context_is_passed_on_as_it_came() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let headers = of(parent).unwrap().headers();
        assert_eq!(headers["traceparent"], parent);
        assert_eq!(headers["tracestate"], "a=1,b=2");
        assert_eq!(headers["baggage"], "k=v");
        for bad in [
            "",
            "00-0-0-0",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473ö-00f067aa0ba902b7-01",
        ] {
            assert!(of(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn nothing_is_recorded_until_somebody_asks() {
        assert!(Span::begin("x".into(), Kind::Client, None, Vec::new()).is_none());
        assert!(Trace::current().is_none());
    }
}
