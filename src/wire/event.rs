//! Events (`celery.events`): what Flower and `celery events` show.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde_json::{Map, Value};

use super::envelope::{wrap, wrap_text};
use super::{Accept, Headers, pidbox};
use crate::clock;

/// The fields of one event, by type. Names and order are Celery's.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum EventKind<'a> {
    /// `worker-online`, `worker-heartbeat`, `worker-offline`.
    Worker {
        /// Seconds between heartbeats.
        freq: f64,
        /// Tasks running now.
        #[serde(skip_serializing_if = "Option::is_none")]
        active: Option<usize>,
        /// Tasks started since the worker did.
        #[serde(skip_serializing_if = "Option::is_none")]
        processed: Option<u64>,
        /// Over 1, 5 and 15 minutes.
        #[serde(skip_serializing_if = "Option::is_none")]
        loadavg: Option<[f64; 3]>,
        /// Name of the software.
        sw_ident: &'static str,
        /// Its version.
        sw_ver: &'static str,
        /// Operating system.
        sw_sys: &'static str,
    },
    /// `worker-elect`: a vote in an election.
    Elect {
        /// The election.
        id: &'a str,
        /// What the winner does.
        topic: &'a str,
        /// With what.
        action: &'a Value,
        /// Version of the votes.
        cver: u32,
    },
    /// `worker-elect-ack`: a vote was seen.
    ElectAck {
        /// The election.
        id: &'a str,
    },
    /// `task-sent`, by whoever sends a task.
    Sent {
        /// Task id.
        uuid: &'a str,
        /// First task of the workflow.
        root_id: Option<&'a str>,
        /// The task that sent it.
        parent_id: Option<&'a str>,
        /// Name.
        name: &'a str,
        /// `argsrepr`.
        args: Option<&'a str>,
        /// `kwargsrepr`.
        kwargs: Option<&'a str>,
        /// Retries so far.
        retries: u32,
        /// ISO time.
        eta: Option<&'a str>,
        /// ISO time.
        expires: Option<&'a str>,
        /// Queue.
        queue: &'a str,
        /// Exchange.
        exchange: &'a str,
        /// Routing key.
        routing_key: &'a str,
    },
    /// `task-received`.
    Received {
        /// Task id.
        uuid: &'a str,
        /// Shown name.
        name: &'a str,
        /// `argsrepr`.
        args: Option<&'a str>,
        /// `kwargsrepr`.
        kwargs: Option<&'a str>,
        /// First task of the workflow.
        root_id: Option<&'a str>,
        /// The task that sent it.
        parent_id: Option<&'a str>,
        /// Retries so far.
        retries: u32,
        /// ISO time.
        eta: Option<&'a str>,
        /// ISO time.
        expires: Option<&'a str>,
    },
    /// `task-started`.
    Started {
        /// Task id.
        uuid: &'a str,
    },
    /// `task-succeeded`.
    Succeeded {
        /// Task id.
        uuid: &'a str,
        /// Repr of the result.
        result: Cow<'a, str>,
        /// Seconds.
        runtime: f64,
    },
    /// `task-failed` and `task-retried`.
    Failed {
        /// Task id.
        uuid: &'a str,
        /// Repr of the exception.
        exception: String,
        /// Text; absent for an unregistered task.
        #[serde(skip_serializing_if = "Option::is_none")]
        traceback: Option<String>,
    },
    /// `task-rejected`.
    Rejected {
        /// Task id.
        uuid: &'a str,
        /// Whether it went back to the queue.
        requeue: bool,
    },
    /// An event of a task's own.
    Own {
        /// Task id.
        uuid: &'a str,
        /// What it says.
        #[serde(flatten)]
        fields: Map<String, Value>,
    },
    /// `task-cancelled`.
    Cancelled {
        /// Task id.
        uuid: &'a str,
    },
    /// `task-revoked`.
    Revoked {
        /// Task id.
        uuid: &'a str,
        /// It was running.
        terminated: bool,
        /// Signal number asked for.
        signum: Option<i32>,
        /// It was too late.
        expired: bool,
    },
}

/// One event, with what every event has (P-162).
#[derive(Clone, Debug, Serialize)]
pub struct Event<'a> {
    /// The sender's node name.
    pub hostname: &'a str,
    /// Hours west of UTC.
    pub utcoffset: f64,
    /// Process id.
    pub pid: u32,
    /// Lamport clock.
    pub clock: u64,
    /// The specific fields.
    #[serde(flatten)]
    pub kind: EventKind<'a>,
    /// Seconds since the epoch.
    pub timestamp: f64,
    /// `task-received`, …
    #[serde(rename = "type")]
    pub name: &'a str,
}

impl<'a> Event<'a> {
    /// The `task-sent` of a message, by its sender (`gen<pid>@<host>`).
    pub fn sent(headers: &'a Headers, exchange: &'a str, routing_key: &'a str, sender: &'a str, clock: u64) -> Self {
        Self {
            hostname: sender,
            utcoffset: clock::utc_offset_hours_west(),
            pid: std::process::id(),
            clock,
            kind: EventKind::Sent {
                uuid: &headers.id,
                root_id: headers.root_id.as_deref(),
                parent_id: headers.parent_id.as_deref(),
                name: &headers.task,
                args: headers.argsrepr.as_deref(),
                kwargs: headers.kwargsrepr.as_deref(),
                retries: headers.retries,
                eta: headers.eta.as_deref(),
                expires: headers.expires.as_deref(),
                // On Redis a message to the default exchange is addressed by its queue.
                queue: routing_key,
                exchange,
                routing_key,
            },
            timestamp: clock::epoch_seconds(clock::now()),
            name: "task-sent",
        }
    }
}

/// A Lamport clock: orders what several processes did. Clones are one clock.
#[derive(Clone, Debug, Default)]
pub struct Lamport(Arc<AtomicU64>);

impl Lamport {
    /// What it shows.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Something happened; what it shows then.
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Somebody else's clock was seen.
    pub fn adjust(&self, other: u64) {
        // A clock far in the future would overflow later, and orders nothing.
        if other < u64::MAX / 2 {
            self.0.fetch_max(other, Ordering::Relaxed);
            self.tick();
        }
    }
}

/// A batch of events in one message.
pub struct Events;

impl Events {
    /// The envelope of one event, and its routing key.
    ///
    /// # Errors
    /// Never in practice: events hold numbers and text only.
    pub fn one(event: &Event<'_>, exchange: &str) -> Result<(String, Vec<u8>), serde_json::Error> {
        let routing_key = event.name.replace('-', ".");
        let payload = wrap(
            Sender {
                hostname: event.hostname,
            },
            event,
            exchange,
            &routing_key,
            false,
        )?;
        Ok((routing_key, payload))
    }

    /// One of several events, as text.
    ///
    /// # Errors
    /// Never in practice.
    pub fn text(event: &Event<'_>) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = Vec::with_capacity(512);
        serde_json::to_writer(&mut text, event)?;
        Ok(text)
    }

    /// The envelope of several task events, an array on the routing key `task.multi` (P-161). Events come as
    /// [`text`](Self::text), because they are made one by one and sent together.
    ///
    /// # Errors
    /// Never in practice.
    pub fn tasks(events: &[Vec<u8>], hostname: &str, exchange: &str) -> Result<(String, Vec<u8>), serde_json::Error> {
        let routing_key = "task.multi".to_owned();
        let payload = wrap_text(Sender { hostname }, &array(events), exchange, &routing_key)?;
        Ok((routing_key, payload))
    }
}

/// A JSON array of texts that are JSON.
fn array(items: &[Vec<u8>]) -> Vec<u8> {
    let mut array = Vec::with_capacity(items.iter().map(|item| item.len() + 1).sum::<usize>() + 1);
    for item in items {
        array.push(if array.is_empty() { b'[' } else { b',' });
        array.extend_from_slice(item);
    }
    array.push(b']');
    array
}

#[derive(Serialize)]
struct Sender<'a> {
    hostname: &'a str,
}

/// An event as it is heard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// `worker-heartbeat`, …
    pub name: String,
    /// The sender's node name.
    pub hostname: String,
    /// Its process.
    pub pid: Option<u64>,
    /// Its Lamport clock.
    pub clock: Option<u64>,
    /// Everything.
    pub fields: Map<String, Value>,
}

impl Heard {
    /// Decodes an event. What is not of its type is taken as missing; without name or sender it is none.
    ///
    /// # Errors
    /// A text for the log.
    pub fn decode(payload: &[u8]) -> Result<Self, String> {
        let (headers, fields): (_, Map<String, Value>) = pidbox::open(payload, &Accept::default(), payload.len())?;
        Self::read(&headers, fields)
    }

    /// Decodes a message of one event or of many, as workers send those of tasks.
    ///
    /// # Errors
    /// A text for the log.
    pub fn decode_all(payload: &[u8]) -> Result<Vec<Self>, String> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Body {
            One(Map<String, Value>),
            Many(Vec<Map<String, Value>>),
        }
        let (headers, body): (_, Body) = pidbox::open(payload, &Accept::default(), payload.len())?;
        match body {
            Body::One(fields) => Ok(vec![Self::read(&headers, fields)?]),
            Body::Many(all) => all.into_iter().map(|fields| Self::read(&headers, fields)).collect(),
        }
    }

    /// What gossip needs of it. Others may say what they like as long as they like: what is kept of it has bounds.
    ///
    /// # Errors
    /// It is nobody's whom there can be: a text for the log.
    pub fn brief(mut self, longest: usize) -> Result<Self, String> {
        let is_vote = matches!(&*self.name, "worker-elect" | "worker-elect-ack");
        self.fields.retain(|name, value| match &**name {
            "freq" => value.is_number(),
            "id" | "topic" => is_vote && value.as_str().is_some_and(|text| text.len() <= longest),
            "action" => is_vote,
            _ => false,
        });
        if self.name.len() > longest || self.hostname.len() > longest {
            return Err(format!(
                "a hostname of {} bytes, in an event whose type has {}: more than max_name_bytes ({longest})",
                self.hostname.len(),
                self.name.len()
            ));
        }
        Ok(self)
    }

    fn read(headers: &Map<String, Value>, fields: Map<String, Value>) -> Result<Self, String> {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let hostname = text(headers.get("hostname")).or_else(|| text(fields.get("hostname")));
        Ok(Self {
            name: text(fields.get("type")).ok_or("no type")?,
            hostname: hostname.ok_or("no hostname")?,
            pid: fields.get("pid").and_then(Value::as_u64),
            clock: fields.get("clock").and_then(Value::as_u64),
            fields,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock of somebody else may be anything; ours goes on, and never back.
    #[test]
    fn a_clock_far_off_does_not_stop_ours() {
        let clock = Lamport::default();
        for (other, now) in [
            (5, 6),
            (3, 7),
            (0, 8),
            (1 << 40, (1 << 40) + 1),
            // Beyond this a clock orders nothing, and would come to its end.
            (u64::MAX, (1 << 40) + 1),
            (u64::MAX - 1, (1 << 40) + 1),
            (1 << 63, (1 << 40) + 1),
            (u64::MAX / 2, (1 << 40) + 1),
            (u64::MAX / 2 - 1, u64::MAX / 2),
            (7, u64::MAX / 2 + 1),
        ] {
            clock.adjust(other);
            assert_eq!(clock.now(), now, "after {other}");
        }
        assert_eq!(clock.tick(), u64::MAX / 2 + 2);
    }

    /// One that is no clock at all is none, and the event is heard all the same.
    #[test]
    fn an_event_whose_clock_is_none_is_heard() {
        let heard = |clock: &str| {
            let body = format!(r#"{{"type": "worker-heartbeat", "hostname": "a@b", "clock": {clock}}}"#);
            let body = super::super::sixtyfour::encode(body.as_bytes());
            let text = format!(
                r#"{{"body": "{body}", "content-type": "application/json", "content-encoding": "utf-8", "headers": {{}},
                    "properties": {{"body_encoding": "base64"}}}}"#
            );
            Heard::decode(text.as_bytes()).map(|heard| heard.clock)
        };
        assert_eq!(heard("12").unwrap(), Some(12));
        for odd in ["-1", "\"x\"", "null", "1.5", "[]", "{}", "18446744073709551616"] {
            assert_eq!(heard(odd).unwrap(), None, "{odd}");
        }
        // No number of JSON: nothing is heard, and nothing falls.
        for broken in ["1e999", &"9".repeat(400)] {
            assert!(heard(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn p_199_an_event_is_heard_as_it_was_said() {
        let event = Event {
            hostname: "w1@h",
            utcoffset: 0.0,
            pid: 7,
            clock: 12,
            kind: EventKind::ElectAck { id: "e" },
            timestamp: 1.5,
            name: "worker-elect-ack",
        };
        let (routing_key, payload) = Events::one(&event, "celeryev").unwrap();
        assert_eq!(routing_key, "worker.elect.ack");
        let heard = Heard::decode(&payload).unwrap();
        assert_eq!(
            (&*heard.name, &*heard.hostname, heard.pid, heard.clock),
            ("worker-elect-ack", "w1@h", Some(7), Some(12))
        );
        assert_eq!(heard.fields["id"], "e");
        let texts = [Events::text(&event).unwrap(), Events::text(&event).unwrap()];
        let (_, payload) = Events::tasks(&texts, "w1@h", "celeryev").unwrap();
        assert_eq!(Heard::decode_all(&payload).unwrap(), [heard.clone(), heard]);
        for bad in [
            &b""[..],
            b"{}",
            b"\xff",
            br#"{"body": "e30=", "properties": {"body_encoding": "base64"}}"#,
        ] {
            Heard::decode(bad).unwrap_err();
        }
    }
}
