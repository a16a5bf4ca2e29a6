//! Makes events: the Lamport clock, the common fields, and what each happening tells.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tracing::debug;

use super::facts;
use super::request::{Happening, Request};
use crate::broker;
use crate::clock;
use crate::wire::redact::{hide, hide_members, hide_passwords, may_hold_secret};
use crate::wire::{self, Event, EventKind, Events as Envelopes, Lamport};

/// `sw_ident`: what Flower shows as the worker's software.
pub(crate) const IDENT: &str = "orchestra";
/// `sw_ver`.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The fields of every event.
const COMMON: [&str; 7] = ["hostname", "utcoffset", "pid", "clock", "timestamp", "type", "uuid"];

/// What is told of a task that is no state of its own.
const TOLD: [&str; 8] = [
    "task-sent",
    "task-received",
    "task-started",
    "task-succeeded",
    "task-failed",
    "task-rejected",
    "task-revoked",
    "task-retried",
];

/// The event dispatcher of a worker.
pub(crate) struct Events {
    hostname: Arc<str>,
    exchange: String,
    clock: Lamport,
    utc_offset: f64,
    freq: Option<f64>,
    tasks: bool,
    /// Started with `-E`: Celery's filter is then empty, so that events cannot be switched off.
    always: bool,
}

impl Events {
    /// `clock` is that of all this worker says.
    pub(crate) fn new(hostname: Arc<str>, exchange: String, clock: Lamport, freq: Option<f64>, always: bool) -> Self {
        Self {
            hostname,
            exchange,
            clock,
            utc_offset: clock::utc_offset_hours_west(),
            freq,
            tasks: always,
            always,
        }
    }

    /// The Lamport clock.
    pub(crate) fn clock(&self) -> u64 {
        self.clock.now()
    }

    /// Something happened that is not an event of ours: a remote control request.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock.tick()
    }

    /// Somebody else's clock was seen.
    pub(crate) fn adjust(&mut self, other: u64) {
        self.clock.adjust(other);
    }

    /// Whether task events are sent.
    pub(crate) fn tasks_enabled(&self) -> bool {
        self.tasks
    }

    /// Switches task events on; false when they were on.
    pub(crate) fn enable_tasks(&mut self) -> bool {
        !std::mem::replace(&mut self.tasks, true)
    }

    /// Switches task events off; false when they were off, or cannot be.
    pub(crate) fn disable_tasks(&mut self) -> bool {
        !self.always && std::mem::replace(&mut self.tasks, false)
    }

    /// A task event, serialized; `None` when nobody wants it.
    pub(crate) fn task(&mut self, happening: &Happening, request: &Request, result: Option<String>) -> Option<Vec<u8>> {
        if !self.tasks || !request.policy.send_events {
            return None;
        }
        let (name, kind) = describe(happening, request, result);
        self.encode(name, kind)
    }

    /// The `task-failed` of a message that never became a request. For a task that is not registered Celery sends no
    /// traceback.
    pub(crate) fn refused(&mut self, id: &str, exception: &wire::Exception) -> Option<Vec<u8>> {
        if !self.tasks {
            return None;
        }
        self.encode(
            "task-failed",
            EventKind::Failed {
                uuid: id,
                exception: shown(exception.repr()),
                traceback: (exception.name != "NotRegistered").then(|| shown(exception.traceback_text())),
            },
        )
    }

    /// A worker event as a broadcast; `None` without heartbeats (P-169). `counts` are the running and the processed
    /// tasks; the answer to the remote command `heartbeat` leaves them out.
    pub(crate) fn worker(&mut self, name: &'static str, counts: Option<(usize, u64)>) -> Option<broker::Write> {
        let freq = if counts.is_some() { self.freq? } else { 5.0 };
        // Daylight saving time begins and ends while a worker runs.
        self.utc_offset = clock::utc_offset_hours_west();
        let event = self.event(
            name,
            EventKind::Worker {
                freq,
                active: counts.map(|(active, _)| active),
                processed: counts.map(|(_, processed)| processed),
                loadavg: counts.is_some().then(facts::load_average),
                sw_ident: IDENT,
                sw_ver: VERSION,
                sw_sys: facts::system(),
            },
        );
        self.broadcast(&event)
    }

    /// An event of an election.
    pub(crate) fn election(&self, name: &str, kind: EventKind<'_>) -> Option<broker::Write> {
        let event = self.event(name, kind);
        self.broadcast(&event)
    }

    fn broadcast(&self, event: &Event<'_>) -> Option<broker::Write> {
        broadcast(event, &self.exchange)
    }

    /// An event of a task's own. What every event has is not for it to say.
    pub(crate) fn own(&self, uuid: &str, name: &str, mut fields: Map<String, Value>) -> Option<broker::Write> {
        fields.retain(|field, _| !COMMON.contains(&field.as_str()));
        hide_members(&mut fields);
        let event = self.event(name, EventKind::Own { uuid, fields });
        self.broadcast(&event)
    }

    /// A state of a task's own, as an event of its name (`task-progress`): Celery's monitors take the state of a task
    /// from events alone, and one that they do not know by its name. `None` when nobody wants it.
    pub(crate) fn custom(&self, request: &Request, state: &str, meta: &RawValue) -> Option<Vec<u8>> {
        let name = format!("task-{}", state.to_lowercase());
        if !self.tasks || !request.policy.send_events || TOLD.contains(&name.as_str()) {
            return None;
        }
        let mut fields: Map<String, Value> = serde_json::from_str(meta.get()).unwrap_or_default();
        fields.retain(|field, _| !COMMON.contains(&field.as_str()));
        hide_members(&mut fields);
        let uuid = &request.id;
        self.encode(&name, EventKind::Own { uuid, fields })
    }

    fn encode(&self, name: &str, kind: EventKind<'_>) -> Option<Vec<u8>> {
        let event = self.event(name, kind);
        Envelopes::text(&event)
            .inspect_err(|error| debug!(%error, "an event cannot be encoded"))
            .ok()
    }

    fn event<'a>(&'a self, name: &'a str, kind: EventKind<'a>) -> Event<'a> {
        Event {
            hostname: &self.hostname,
            utcoffset: self.utc_offset,
            pid: std::process::id(),
            clock: self.clock.tick(),
            kind,
            timestamp: clock::epoch_seconds(clock::now()),
            name,
        }
    }
}

fn broadcast(event: &Event<'_>, exchange: &str) -> Option<broker::Write> {
    let (routing_key, payload) = Envelopes::one(event, exchange).ok()?;
    Some(broker::Write::Broadcast {
        exchange: exchange.to_owned(),
        routing_key,
        payload: payload.into(),
    })
}

fn describe<'a>(
    happening: &'a Happening,
    request: &'a Request,
    result: Option<String>,
) -> (&'static str, EventKind<'a>) {
    let headers = &request.message.headers;
    let uuid = &*headers.id;
    match happening {
        Happening::Received => (
            "task-received",
            EventKind::Received {
                uuid,
                name: headers.shown_name(),
                args: headers.argsrepr.as_deref(),
                kwargs: headers.kwargsrepr.as_deref(),
                root_id: headers.root_id.as_deref(),
                parent_id: headers.parent_id.as_deref(),
                retries: headers.retries,
                eta: headers.eta.as_deref(),
                expires: headers.expires.as_deref(),
            },
        ),
        Happening::Started => ("task-started", EventKind::Started { uuid }),
        Happening::Succeeded { runtime } => (
            "task-succeeded",
            EventKind::Succeeded {
                uuid,
                result: result.map_or(Cow::Borrowed("None"), Cow::Owned),
                runtime: runtime.as_secs_f64(),
            },
        ),
        Happening::KnownSuccess(known) => (
            "task-succeeded",
            EventKind::Succeeded {
                uuid,
                result: known
                    .as_ref()
                    .map_or(Cow::Borrowed("None"), |known| Cow::Owned(result_repr(known.get()))),
                runtime: 0.0,
            },
        ),
        Happening::Failed(exception) => ("task-failed", failed(uuid, exception)),
        Happening::Retried(exception) => ("task-retried", failed(uuid, exception)),
        Happening::Rejected { requeue } => (
            "task-rejected",
            EventKind::Rejected {
                uuid,
                requeue: *requeue,
            },
        ),
        Happening::Cancelled => ("task-cancelled", EventKind::Cancelled { uuid }),
        Happening::Revoked {
            terminated,
            signum,
            expired,
        } => (
            "task-revoked",
            EventKind::Revoked {
                uuid,
                terminated: *terminated,
                signum: *signum,
                expired: *expired,
            },
        ),
    }
}

fn failed<'a>(uuid: &'a str, exception: &wire::Exception) -> EventKind<'a> {
    EventKind::Failed {
        uuid,
        exception: shown(exception.repr()),
        traceback: Some(shown(exception.traceback_text())),
    }
}

/// A text that a task has written: it may name the server that it could not reach, with its password.
fn shown(text: String) -> String {
    hide_passwords(&text).unwrap_or(text)
}

/// The result as Python would show it. A large one is not parsed only to be cut.
pub(crate) fn result_repr(text: &str) -> String {
    const PARSED: usize = 64 << 10;
    if text.len() > PARSED {
        let cut = (0..=1000).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        return format!("{}...", &text[..cut]);
    }
    if wire::json::may_carry(text) {
        let (named, names) = wire::json::named(text);
        let shown = value_repr(&named);
        return names
            .into_iter()
            .fold(shown, |shown, (mark, name)| shown.replace(mark, name));
    }
    value_repr(text)
}

fn value_repr(text: &str) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(mut value) => {
            if may_hold_secret(text) {
                hide(&mut value);
            }
            wire::repr_bounded(&value)
        }
        Err(_) => text.to_owned(),
    }
}
