//! Remote control (`celery.worker.control`, `kombu.pidbox`): answers `celery inspect`, carries out `celery control`.
//!
//! Requests come in by pub/sub, wait in a bounded queue, and are answered by the consumer loop one at a time between
//! its other inputs, so that a flood of them cannot starve tasks.

mod change;
mod inspect;
mod request_info;

use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::consumer::Consumer;
use super::writer::Out;
use crate::broker;
use crate::wire::pidbox::{self, Request};
use crate::wire::{Accept, Security};

/// A request for this worker.
pub(crate) struct Order(pub Request);

/// What a command answers: a value, or nothing at all (`shutdown`).
type Answer = Option<Value>;

/// Reads the control channel until it closes.
pub(crate) async fn listen(
    mut messages: mpsc::Receiver<(String, Vec<u8>)>,
    hostname: String,
    accept: Accept,
    orders: mpsc::Sender<Order>,
) {
    while let Some((channel, payload)) = messages.recv().await {
        let request = match pidbox::decode(&payload, &accept) {
            Ok(request) => request,
            Err(error) => {
                warn!("a message on {channel} is no control request: {error}");
                continue;
            }
        };
        if request.is_for(&hostname) && orders.send(Order(request)).await.is_err() {
            return;
        }
    }
}

impl Consumer {
    /// Carries out a request and answers it, if an answer is wanted.
    pub(super) fn on_order(&mut self, Order(request): Order) {
        self.events.adjust(request.clock);
        let clock = self.events.tick();
        debug!(method = %request.method, "control request");
        let arguments = Arguments {
            method: &request.method,
            map: request.arguments.as_ref(),
        };
        let answer = self
            .inspect(&request.method, &arguments)
            .or_else(|| self.change(&request.method, &arguments));
        let answer = match answer {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => Some(json!({"error": error})),
            None => Some(json!({"error": format!("KeyError('{}')", request.method)})),
        };
        if let Some(error) = answer.as_ref().and_then(|answer| answer.get("error")) {
            warn!("control command {} failed: {error}", request.method);
        }
        let (Some(reply_to), Some(answer)) = (&request.reply_to, answer) else {
            return;
        };
        let reply = pidbox::encode_reply(
            reply_to,
            request.ticket.as_deref(),
            clock,
            &self.options.hostname,
            &answer,
        );
        let reply = reply.map_err(|error| error.to_string());
        match reply.and_then(|reply| Security::signed(self.options.signer.as_deref(), reply)) {
            Ok(payload) => self.out.push(Out::Broker(broker::Write::Reply {
                routing_key: reply_to.routing_key.clone(),
                payload: payload.into(),
            })),
            Err(error) => warn!(%error, "a reply cannot be encoded"),
        }
    }
}

/// The arguments of a command, with Python's errors for what is missing.
pub(super) struct Arguments<'a> {
    method: &'a str,
    map: Option<&'a Map<String, Value>>,
}

impl Arguments<'_> {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.map?.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, name: &str) -> Result<&str, String> {
        self.get(name).and_then(Value::as_str).ok_or_else(|| self.missing(name))
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        match self.get(name) {
            Some(Value::Bool(flag)) => *flag,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => matches!(text.as_str(), "1" | "true" | "True" | "yes"),
            _ => false,
        }
    }

    /// A whole number; the celery command sends numbers as text at times.
    pub(super) fn number(&self, name: &str, default: usize) -> Result<usize, String> {
        match self.get(name) {
            None => Some(default),
            Some(Value::String(text)) => text.parse().ok(),
            Some(value) => value.as_u64().and_then(|number| usize::try_from(number).ok()),
        }
        .ok_or_else(|| format!("ValueError(\"{}: {name} is not a whole number\")", self.method))
    }

    /// One text or a list of texts.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        match self.get(name) {
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(items)) => Ok(items.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            _ => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> String {
        format!(
            "TypeError(\"{}() missing 1 required positional argument: '{name}'\")",
            self.method
        )
    }
}
