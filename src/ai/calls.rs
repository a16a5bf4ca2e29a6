//! What calls of models cost: counted for `/metrics` and `inspect stats`, and as spans of a trace.
//!
//! Names and attributes of spans are those of OpenTelemetry's conventions for generative AI.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::fleet::Trouble;
use super::ollama::{Answer, Class, Kind, Request};
use crate::clock::{self, Instant};
use crate::task::{Context, Meter};
use crate::trace;

/// Series for so many models; callers choose their names, and must not be able to fill the memory.
const MODELS: usize = 100;
/// What further ones are counted as.
const OTHER: &str = "other";

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfCall {
    model: String,
    host: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfModel {
    model: String,
    host: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfTokens {
    model: String,
    host: String,
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Running {
    model: String,
}

type Times = Family<OfModel, Histogram, fn() -> Histogram>;

/// What is counted of one model, for `inspect stats`.
#[derive(Clone, Debug, Default)]
struct Totals {
    running: u64,
    succeeded: u64,
    failed: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// Pieces of answers, as they come: mostly one token each.
    pieces: u64,
}

/// The calls of a worker. Clones count together.
#[derive(Clone)]
pub(super) struct Calls {
    calls: Family<OfCall, Counter>,
    tokens: Family<OfTokens, Counter>,
    first: Times,
    long: Times,
    loads: Times,
    waits: Times,
    repairs: Family<Running, Counter>,
    running: Family<Running, Gauge>,
    totals: Arc<Mutex<BTreeMap<String, Totals>>>,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Calls").field(&self.totals).finish()
    }
}

/// From 10 ms to 20 minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 18))
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            tokens: Family::default(),
            first: Times::new_with_constructor(seconds),
            long: Times::new_with_constructor(seconds),
            loads: Times::new_with_constructor(seconds),
            waits: Times::new_with_constructor(seconds),
            repairs: Family::default(),
            running: Family::default(),
            totals: Arc::default(),
        }
    }
}

/// A call that runs. Dropped before its end it counts as cancelled.
pub(super) struct Call<'a> {
    calls: &'a Calls,
    model: String,
    began: Instant,
    span: Option<trace::Span>,
    ended: bool,
}

impl Calls {
    /// A call begins.
    pub(super) fn begin(&self, request: &Request, context: &Context) -> Call<'_> {
        let model = {
            let mut totals = self.totals();
            let known = totals.contains_key(request.model()) || totals.len() < MODELS;
            let model = if known { request.model() } else { OTHER }.to_owned();
            totals.entry(model.clone()).or_default().running += 1;
            model
        };
        self.running.get_or_create(&Running { model: model.clone() }).inc();
        Call {
            calls: self,
            model,
            began: clock::instant(),
            span: span(request, context),
            ended: false,
        }
    }

    /// An answer did not fit its format, and is asked for again.
    pub(super) fn repair(&self, model: &str) {
        let known = self.totals().contains_key(model);
        let model = if known { model } else { OTHER }.to_owned();
        self.repairs.get_or_create(&Running { model }).inc();
    }

    fn totals(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Totals>> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, model: &str, note: impl FnOnce(&mut Totals)) {
        note(self.totals().entry(model.to_owned()).or_default());
    }
}

impl Call<'_> {
    /// A piece of the answer came.
    pub(super) fn piece(&self) {
        self.calls.note(&self.model, |totals| totals.pieces += 1);
    }

    /// The whole answer came, or none.
    pub(super) fn end(mut self, ended: &Result<Box<Answer>, Trouble>) {
        self.ended = true;
        let (place, class, text) = match ended {
            Ok(answer) => return self.answered(answer),
            Err(Trouble::Fault(fault)) => (host(&fault.host), outcome(fault.class), &fault.text),
            Err(Trouble::Value(text)) => (String::new(), "wrong", text),
            Err(Trouble::Budget(text)) => (String::new(), "budget", text),
            // It has not been made yet.
            Err(Trouble::Later(..)) => return,
        };
        self.count(place, class);
        if let Some(span) = &self.span {
            span.set("error.type", class);
            span.fail(class, text, None);
        }
    }

    fn answered(&self, answer: &Answer) {
        let host = host(&answer.host);
        if answer.route.is_known() {
            // No model worked for it.
            self.count(host, "cached");
            return;
        }
        self.count(host.clone(), "ok");
        let of_model = OfModel {
            model: self.model.clone(),
            host: host.clone(),
        };
        let first = answer.timing.first_token_s;
        self.calls.first.get_or_create(&of_model).observe(first);
        self.calls.waits.get_or_create(&of_model).observe(answer.route.waited_s);
        if answer.route.why.starts_with("load") {
            self.calls.loads.get_or_create(&of_model).observe(answer.timing.load_s);
        }
        let (prompt, completion) = (answer.usage.prompt_tokens, answer.usage.completion_tokens);
        for (kind, count) in [("prompt", prompt), ("completion", completion)] {
            let labels = OfTokens {
                model: self.model.clone(),
                host: host.clone(),
                kind,
            };
            self.calls.tokens.get_or_create(&labels).inc_by(count);
        }
        self.calls.note(&self.model, |totals| {
            totals.prompt_tokens += prompt;
            totals.completion_tokens += completion;
        });
        if let Some(span) = &self.span {
            let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            span.set("gen_ai.response.model", answer.model.clone());
            span.set("gen_ai.usage.input_tokens", number(prompt));
            span.set("gen_ai.usage.output_tokens", number(completion));
            if let Some(reason) = &answer.done_reason {
                let reasons = opentelemetry::Array::String(vec![reason.clone().into()]);
                span.set("gen_ai.response.finish_reasons", opentelemetry::Value::Array(reasons));
            }
            if let Ok(url) = url_parts(&answer.host) {
                span.set("server.address", url.0);
                span.set("server.port", i64::from(url.1));
            }
        }
    }

    fn count(&self, host: String, outcome: &'static str) {
        let long: Duration = clock::instant().saturating_duration_since(self.began);
        let model = self.model.clone();
        let labels = OfModel {
            model: model.clone(),
            host: host.clone(),
        };
        self.calls.long.get_or_create(&labels).observe(long.as_secs_f64());
        self.calls.calls.get_or_create(&OfCall { model, host, outcome }).inc();
        self.calls.note(&self.model, |totals| match outcome {
            "ok" | "cached" => totals.succeeded += 1,
            _ => totals.failed += 1,
        });
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.count(String::new(), "cancelled");
            if let Some(span) = &self.span {
                span.set("error.type", "cancelled");
            }
        }
        if let Some(span) = &self.span {
            span.end();
        }
        self.calls
            .running
            .get_or_create(&Running {
                model: self.model.clone(),
            })
            .dec();
        self.calls
            .note(&self.model, |totals| totals.running = totals.running.saturating_sub(1));
    }
}

impl Meter for Calls {
    fn register(&self, registry: &mut Registry) {
        registry.register("model_calls", "Calls of models, by how they ended", self.calls.clone());
        registry.register("model_tokens", "Tokens that models read and wrote", self.tokens.clone());
        registry.register(
            "model_first_token_seconds",
            "How long models took to their first token",
            self.first.clone(),
        );
        registry.register("model_call_seconds", "How long calls of models took", self.long.clone());
        registry.register(
            "model_wait_seconds",
            "How long calls of models waited for a place on a host",
            self.waits.clone(),
        );
        registry.register(
            "model_load_seconds",
            "Loads that calls of models had to wait for, and how long they took",
            self.loads.clone(),
        );
        registry.register(
            "model_repairs",
            "Answers that did not fit their format and were asked for again",
            self.repairs.clone(),
        );
        registry.register("model_calls_running", "Calls of models that run", self.running.clone());
    }

    fn stats(&self) -> Option<(&'static str, Value)> {
        let totals = self.totals();
        let models = totals.iter().map(|(model, totals)| {
            let shown = json!({
                "running": totals.running, "succeeded": totals.succeeded, "failed": totals.failed,
                "prompt_tokens": totals.prompt_tokens, "completion_tokens": totals.completion_tokens,
                "pieces": totals.pieces,
            });
            (model.clone(), shown)
        });
        (!totals.is_empty()).then(|| ("models", Value::Object(models.collect())))
    }
}

fn outcome(class: Class) -> &'static str {
    match class {
        Class::Refused => "refused",
        Class::NotFound => "not_found",
        Class::Unavailable => "unavailable",
        Class::Unreachable => "unreachable",
        Class::Memory => "memory",
        Class::Broken => "broken",
    }
}

/// A server as it is shown: without what may be secret in its address.
fn host(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, place)| place)),
        None => url.to_owned(),
    }
}

/// Name and port of a server.
fn url_parts(url: &str) -> Result<(String, u16), std::num::ParseIntError> {
    let shown = host(url);
    let (scheme, rest) = shown.split_once("://").unwrap_or(("http", &shown));
    let place = rest.split('/').next().unwrap_or_default();
    let default = if scheme == "https" { 443 } else { 80 };
    match place.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => Ok((name.to_owned(), port.parse()?)),
        _ => Ok((place.to_owned(), default)),
    }
}

/// The span of a call, if spans are made.
fn span(request: &Request, context: &Context) -> Option<trace::Span> {
    if !trace::is_on() {
        return None;
    }
    let operation = match request.kind() {
        Kind::Chat => "chat",
        Kind::Generate => "text_completion",
    };
    let text = |text: &str| opentelemetry::Value::from(text.to_owned());
    let mut attributes = vec![
        ("gen_ai.operation.name", text(operation)),
        ("gen_ai.provider.name", text("ollama")),
        ("gen_ai.request.model", text(request.model())),
    ];
    let body = serde_json::to_value(request.body()).unwrap_or_default();
    let options = body.get("options");
    for (name, option) in [
        ("gen_ai.request.temperature", "temperature"),
        ("gen_ai.request.top_p", "top_p"),
        ("gen_ai.request.frequency_penalty", "frequency_penalty"),
        ("gen_ai.request.presence_penalty", "presence_penalty"),
    ] {
        let value = options.and_then(|options| options.get(option)?.as_f64());
        attributes.extend(value.map(|value| (name, value.into())));
    }
    for (name, option) in [
        ("gen_ai.request.max_tokens", "num_predict"),
        ("gen_ai.request.top_k", "top_k"),
        ("gen_ai.request.seed", "seed"),
    ] {
        let value = options.and_then(|options| options.get(option)?.as_i64());
        attributes.extend(value.map(|value| (name, value.into())));
    }
    if body.get("format").is_some_and(|format| !format.is_null()) {
        attributes.push(("gen_ai.output.type", text("json")));
    }
    let name = format!("{operation} {}", request.model());
    let parent = context.details().trace.as_ref();
    trace::Span::begin(name, trace::Kind::Client, parent, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_credentials() {
        assert_eq!(host("http://me:hunter2@gpu:1"), "http://gpu:1");
        assert_eq!(
            url_parts("https://me:hunter2@gpu/ollama").unwrap(),
            ("gpu".to_owned(), 443)
        );
        assert_eq!(
            url_parts("http://127.0.0.1:11434").unwrap(),
            ("127.0.0.1".to_owned(), 11434)
        );
        assert_eq!(url_parts("http://[::1]:9").unwrap(), ("[::1]".to_owned(), 9));
    }

    #[test]
    fn series_of_models_are_bounded_whatever_callers_name() {
        use crate::ai::ollama::Kind;
        let (calls, (notes, _seen)) = (Calls::default(), tokio::sync::mpsc::channel(1));
        let context = Context::new(crate::task::Details::default(), notes, None);
        for n in 0..MODELS + 10 {
            let prompt = serde_json::Map::from_iter([("prompt".to_owned(), "x".into())]);
            let request = Request::new(Kind::Generate, n.to_string(), prompt, false).unwrap();
            drop(calls.begin(&request, &context));
        }
        // And one for the others.
        assert_eq!(calls.totals().len(), MODELS + 1);
    }
}
