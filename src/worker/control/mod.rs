//! Remote control (`celery.worker.control`, `kombu.pidbox`): answers `celery inspect`, carries out `celery control`.
//!
//! Requests come in by pub/sub, wait in a bounded queue, and are answered by the consumer loop one at a time between
//! its other inputs, so that a flood of them cannot starve tasks.

mod change;
mod commands;
mod inspect;
mod pool;
mod queues;
mod request_info;
mod revoke;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::consumer::Consumer;
use super::metrics::Metrics;
use super::mingle::Neighbour;
use super::outbox::Out;
use crate::conn::{Push, Share};
use crate::wire::pidbox::{self, Argument, Given, Request};
use crate::wire::{Accept, Security};
use crate::wire::{Heard, Limits};
use crate::{broker, clock};
use queues::Binding;

/// What others say to this worker.
pub(crate) enum Order {
    /// A remote control request, which takes room until it is carried out.
    Request(Request, Share),
    /// An event of a worker, maybe our own.
    Heard(Heard),
    /// A worker answered our hello.
    Neighbour(Neighbour),
    /// What was noted as revoked while we could not hear it; answered when it is part of our state.
    Noted(Vec<String>, oneshot::Sender<()>),
    /// What have we revoked?
    Revoked(oneshot::Sender<Vec<String>>),
    /// Another worker answered in our name.
    Double,
    /// The connection to the broker was lost and is there again.
    Reconnected,
}

/// What a command answers: a value (also null), or nothing at all (`shutdown`).
type Answer = Option<Value>;

/// What remote control remembers.
#[derive(Default)]
pub(crate) struct Panel {
    /// Samples of `memsample`, newest last.
    samples: VecDeque<String>,
    /// Queues that were added with an exchange of another name.
    bindings: HashMap<Arc<str>, Binding>,
}

/// A list of whatever texts.
static LIST: Value = Value::Array(Vec::new());

/// So long an answer waits at most for a look into the queues.
const PATIENCE: Duration = Duration::from_millis(500);

/// What hears the others.
pub(crate) struct Ear {
    pub hostname: String,
    /// The channels of workers' events begin so, if they are listened to.
    pub events: Option<String>,
    pub accept: Accept,
    /// The largest request that is read, and the longest name of a node.
    pub limits: Limits,
    pub orders: mpsc::Sender<Order>,
    /// Asks the fetcher for a look.
    pub looks: mpsc::Sender<oneshot::Sender<()>>,
    pub metrics: Metrics,
}

impl Ear {
    /// Reads the control channel, and the events of workers, until it closes.
    pub(crate) async fn listen(self, mut messages: mpsc::Receiver<Push>) {
        while let Some(Push {
            channel,
            payload,
            share,
        }) = messages.recv().await
        {
            if payload.len() > self.limits.control {
                warn!(
                    "a message of {} bytes on {channel} is not read: it is larger than max_control_bytes ({})",
                    payload.len(),
                    self.limits.control
                );
                continue;
            }
            if self.events.as_deref().is_some_and(|events| channel.starts_with(events)) {
                match Heard::decode(&payload).and_then(|heard| heard.brief(self.limits.name)) {
                    // An event is news that the next one replaces: rather lost than in the way of a request.
                    Ok(heard) => {
                        if self.orders.try_send(Order::Heard(heard)).is_err() {
                            self.metrics.event_dropped();
                        }
                    }
                    Err(error) => debug!("a message on {channel} is no event: {}", short(&error)),
                }
                continue;
            }
            let request = match pidbox::decode(&payload, &self.accept, self.limits.control) {
                Ok(request) => request,
                Err(error) => {
                    warn!("a message on {channel} is no control request: {}", short(&error));
                    continue;
                }
            };
            drop(payload);
            if !request.is_for(&self.hostname) {
                continue;
            }
            if inspect::shows_requests(&request.method) {
                self.look().await;
            }
            if self.orders.send(Order::Request(request, share)).await.is_err() {
                return;
            }
        }
    }

    /// Messages come on another connection than questions about them: who sends a task and asks for it at once would
    /// not be told of it.
    async fn look(&self) {
        let (looked, done) = oneshot::channel();
        if self.looks.try_send(looked).is_ok() {
            let _ = tokio::time::timeout(PATIENCE, done).await;
        }
    }
}

impl Consumer {
    pub(super) fn on_order(&mut self, order: Order) {
        match order {
            Order::Request(request, _share) => self.on_request(&request),
            Order::Heard(heard) => self.on_heard(&heard),
            Order::Neighbour(neighbour) => self.on_neighbour(neighbour),
            Order::Noted(ids, merged) => {
                self.revoked.merge(ids.iter().map(String::as_str), clock::instant());
                // It may have given up waiting.
                let _ = merged.send(());
            }
            Order::Revoked(answer) => {
                self.revoked.purge(clock::instant());
                // Whoever asked may be gone.
                let _ = answer.send(self.revoked.ids().map(ToString::to_string).collect());
            }
            Order::Double => self.warn_of_double(),
            Order::Reconnected => self.worker_event("worker-online"),
        }
    }

    /// Carries out a request and answers it, if an answer is wanted.
    fn on_request(&mut self, request: &Request) {
        // Only counted, not compared: clients have a clock of their own.
        let clock = self.events.tick();
        debug!(method = short(&request.method), "control request");
        let answer = match self.obey(request) {
            Ok(answer) => answer,
            Err(error) => {
                warn!("control command {} failed: {}", short(&request.method), short(&error));
                Some(json!({"error": error}))
            }
        };
        let (Some(reply_to), Some(answer)) = (&request.reply_to, answer) else {
            return;
        };
        // Whoever asked will have gone when Redis has taken what waits before the answer.
        if self.outbox.is_overfull() {
            return;
        }
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
                exchange: reply_to.exchange.clone(),
                routing_key: reply_to.routing_key.clone(),
                payload: payload.into(),
            })),
            Err(error) => warn!(%error, "a reply cannot be encoded"),
        }
    }

    fn obey(&mut self, request: &Request) -> Result<Answer, String> {
        let map = request.arguments.as_ref();
        let unknown = || format!("KeyError({})", text_repr(&request.method));
        let command = commands::find(&request.method).ok_or_else(unknown)?;
        command.check(map)?;
        let arguments = Arguments {
            map,
            is_answered: request.reply_to.is_some(),
        };
        match self.inspect(command.name, &arguments) {
            Some(answer) => answer,
            None => self.change(command.name, &arguments).unwrap_or_else(|| Err(unknown())),
        }
    }
}

/// The arguments of a command.
pub(super) struct Arguments<'a> {
    map: Option<&'a Given>,
    /// Whether somebody reads what comes back.
    pub(super) is_answered: bool,
}

impl<'a> Arguments<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        match self.map?.get(name)? {
            Argument::Value(value) => Some(value).filter(|value| !value.is_null()),
            // Whoever wants texts asks for them.
            Argument::Texts(_) => Some(&LIST),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<&str, String> {
        let text = self.get(name).and_then(Value::as_str);
        text.ok_or_else(|| format!("TypeError('{name} must be text')"))
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
    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, String> {
        match self.get(name) {
            None => return Ok(None),
            Some(Value::String(text)) => text.parse().ok(),
            Some(value) => value.as_u64().and_then(|number| usize::try_from(number).ok()),
        }
        .map(Some)
        .ok_or_else(|| format!("ValueError('{name} must be a whole number from 0')"))
    }

    /// One text or a list of texts, each once; nothing is an empty list.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'a str>, String> {
        let wrong = || format!("TypeError('{name} must be text or a list of texts')");
        let mut texts: Vec<&str> = match self.map.and_then(|map| map.get(name)) {
            None | Some(Argument::Value(Value::Null)) => return Ok(Vec::new()),
            Some(Argument::Value(Value::String(text))) => return Ok(vec![text]),
            Some(Argument::Value(Value::Array(items))) => {
                let texts: Option<_> = items.iter().map(Value::as_str).collect();
                texts.ok_or_else(wrong)?
            }
            Some(Argument::Texts(texts)) => texts.iter().collect(),
            Some(_) => return Err(wrong()),
        };
        let mut seen = std::collections::HashSet::with_capacity(texts.len());
        texts.retain(|text| seen.insert(*text));
        Ok(texts)
    }
}

fn ok(text: impl Into<String>) -> Result<Answer, String> {
    Ok(Some(json!({"ok": text.into()})))
}

/// An error that is an answer of the command, not an exception in it.
fn error_reply(text: impl Into<String>) -> Result<Answer, String> {
    Ok(Some(json!({"error": text.into()})))
}

/// For the log: what others wrote, not longer than a person reads, and nothing that could be taken for another line.
pub(in crate::worker) fn short(text: &str) -> String {
    const SHOWN: usize = 200;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.len() > SHOWN && text.chars().nth(SHOWN).is_some() {
        shown.push_str(&format!("… ({} bytes)", text.len()));
    }
    shown
}

/// Python's repr of a text.
fn text_repr(text: &str) -> String {
    crate::wire::repr(&Value::String(text.to_owned()))
}
