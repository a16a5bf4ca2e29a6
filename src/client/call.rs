//! A task call: what `apply_async` takes.

use std::time::Duration;

use serde::Serialize;
use serde_json::Map;
use uuid::Uuid;

use crate::clock::{self, Timestamp};
use crate::wire::{Json, Signature};

/// A call of a task by name, with Celery's options: a [`Signature`] with an id.
#[derive(Clone, Debug)]
pub struct Call {
    pub(super) signature: Signature,
    id: String,
    pub(super) wrong: Option<String>,
}

impl Call {
    /// A call of the task of that name, with a new id. It goes where the routes of the client say, else to its default
    /// queue.
    pub fn new(task: impl Into<String>) -> Self {
        Self {
            signature: Signature::new(task),
            id: String::new(),
            wrong: None,
        }
        .task_id(Uuid::new_v4().to_string())
    }

    /// A positional argument. One that is not JSON is reported when the call is sent.
    #[must_use]
    pub fn arg(mut self, value: impl Serialize) -> Self {
        if let Some(value) = self.json(&value) {
            self.signature.args.push(value);
        }
        self
    }

    /// A keyword argument.
    #[must_use]
    pub fn kwarg(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        if let Some(value) = self.json(&value) {
            self.signature.kwargs.insert(name.into(), value);
        }
        self
    }

    /// Another queue.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.option("queue", queue.into())
    }

    /// An exchange and a routing key instead of a queue.
    #[must_use]
    pub fn exchange(self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.option("exchange", exchange.into())
            .option("routing_key", routing_key.into())
    }

    /// The task's id, instead of a new one.
    #[must_use]
    pub fn task_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        let id = self.id.clone();
        self.option("task_id", id)
    }

    /// 0 (served first on Redis) to 9.
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        self.option("priority", priority.min(9))
    }

    /// Not before that time.
    #[must_use]
    pub fn eta(self, at: Timestamp) -> Self {
        self.option("eta", clock::iso(at))
    }

    /// Not before that long from when it is sent.
    #[must_use]
    pub fn countdown(self, pause: Duration) -> Self {
        self.option("countdown", pause.as_secs_f64())
    }

    /// Not after that long from when it is sent.
    #[must_use]
    pub fn expires(self, after: Duration) -> Self {
        self.option("expires", after.as_secs_f64())
    }

    /// Not after that time.
    #[must_use]
    pub fn expires_at(self, at: Timestamp) -> Self {
        self.option("expires", clock::iso(at))
    }

    /// Hard time limit of this call.
    #[must_use]
    pub fn time_limit(self, limit: Duration) -> Self {
        self.option("time_limit", limit.as_secs_f64())
    }

    /// Soft time limit of this call.
    #[must_use]
    pub fn soft_time_limit(self, limit: Duration) -> Self {
        self.option("soft_time_limit", limit.as_secs_f64())
    }

    /// Store no result.
    #[must_use]
    pub fn ignore_result(self) -> Self {
        self.option("ignore_result", true)
    }

    /// A header of one's own; workers give it to the task and keep it in retries. One that is not JSON is reported when
    /// the call is sent.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        let own = self.signature.options.get("headers");
        let mut headers: Map<String, serde_json::Value> = own.and_then(|own| own.parse().ok()).unwrap_or_default();
        match serde_json::to_value(value) {
            Ok(value) => drop(headers.insert(name.into(), value)),
            Err(error) => self.wrong = Some(error.to_string()),
        }
        self.option("headers", headers)
    }

    /// Called with the result when the task succeeded.
    #[must_use]
    pub fn link(mut self, callback: Signature) -> Self {
        self.signature.options.add_link(callback);
        self
    }

    /// Called when the task failed.
    #[must_use]
    pub fn link_error(mut self, errback: Signature) -> Self {
        self.signature.options.add_link_error(errback);
        self
    }

    /// The task's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn option(mut self, name: &str, value: impl Serialize) -> Self {
        if let Some(value) = self.json(&value) {
            self.signature.options.rest.insert(name.to_owned(), value);
        }
        self
    }

    fn json(&mut self, value: &impl Serialize) -> Option<Json> {
        Json::new(value)
            .inspect_err(|error| self.wrong = Some(error.to_string()))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canvas::Planner;
    use crate::wire::{CallOptions, Limits, Routes, decode};

    #[test]
    fn p_054_p_059_a_call_is_a_protocol_2_message() {
        let call = Call::new("proj.add")
            .arg(2)
            .kwarg("y", "it's")
            .priority(3)
            .queue("q")
            .time_limit(Duration::from_secs(5));
        let mut planner = Planner::new(None, "oid");
        planner
            .apply(call.signature.clone(), &[], CallOptions::default())
            .unwrap();
        let parcel = planner.plan.sends[0]
            .parcel(clock::now(), "gen1@h", &Routes::default())
            .unwrap();
        let message = decode(&parcel.envelope, &Limits::default()).unwrap();
        let headers = &message.headers;
        assert_eq!(headers.root_id.as_deref(), Some(call.id()));
        assert_eq!(headers.argsrepr.as_deref(), Some("(2,)"));
        assert_eq!(headers.kwargsrepr.as_deref(), Some(r#"{'y': "it's"}"#));
        assert_eq!(headers.timelimit.hard, Some(Duration::from_secs(5)));
        assert_eq!(message.properties.correlation_id.as_deref(), Some(call.id()));
        assert_eq!(
            (message.properties.priority(), message.properties.routing_key()),
            (3, Some("q"))
        );
        assert_eq!(message.body.args(), "[2]");
    }
}
