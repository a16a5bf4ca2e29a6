//! A task call: what `apply_async` takes.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::clock::{self, Timestamp};
use crate::wire::{Headers, Outgoing, OutgoingInfo, OutgoingProperties, Signature, repr_args, repr_bounded};

/// A call of a task by name, with Celery's options.
#[derive(Clone, Debug)]
pub struct Call {
    pub(super) headers: Headers,
    pub(super) queue: String,
    pub(super) priority: u8,
    args: Vec<Value>,
    kwargs: Map<String, Value>,
    expires_in: Option<Duration>,
    callbacks: Vec<Signature>,
    errbacks: Vec<Signature>,
    wrong: Option<String>,
}

impl Call {
    /// A call of the task of that name, with a new id, to the queue `celery`.
    pub fn new(task: impl Into<String>) -> Self {
        let headers = Headers {
            task: task.into(),
            id: Uuid::new_v4().to_string(),
            ..Headers::default()
        };
        Self {
            headers,
            queue: "celery".into(),
            priority: 0,
            args: Vec::new(),
            kwargs: Map::new(),
            expires_in: None,
            callbacks: Vec::new(),
            errbacks: Vec::new(),
            wrong: None,
        }
    }

    /// A positional argument. One that is not JSON is reported when the call is sent.
    #[must_use]
    pub fn arg(mut self, value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => self.args.push(value),
            Err(error) => self.wrong = Some(error.to_string()),
        }
        self
    }

    /// A keyword argument.
    #[must_use]
    pub fn kwarg(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => drop(self.kwargs.insert(name.into(), value)),
            Err(error) => self.wrong = Some(error.to_string()),
        }
        self
    }

    /// Another queue.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = queue.into();
        self
    }

    /// The task's id, instead of a new one.
    #[must_use]
    pub fn task_id(mut self, id: impl Into<String>) -> Self {
        self.headers.id = id.into();
        self
    }

    /// 0 (served first on Redis) to 9.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority.min(9);
        self
    }

    /// Not before that time.
    #[must_use]
    pub fn eta(mut self, at: Timestamp) -> Self {
        self.headers.eta = Some(clock::iso(at));
        self
    }

    /// Not before that long from now.
    #[must_use]
    pub fn countdown(self, pause: Duration) -> Self {
        let at = clock::after(clock::now(), pause);
        self.eta(at)
    }

    /// Not after that long from now.
    #[must_use]
    pub fn expires(mut self, after: Duration) -> Self {
        self.headers.expires = Some(clock::iso(clock::after(clock::now(), after)));
        self.expires_in = Some(after);
        self
    }

    /// Hard time limit of this call.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.headers.timelimit.hard = Some(limit);
        self
    }

    /// Soft time limit of this call.
    #[must_use]
    pub fn soft_time_limit(mut self, limit: Duration) -> Self {
        self.headers.timelimit.soft = Some(limit);
        self
    }

    /// Store no result.
    #[must_use]
    pub fn ignore_result(mut self) -> Self {
        self.headers.ignore_result = Some(true);
        self
    }

    /// A header of one's own; workers give it to the task and keep it in retries.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.headers.extra.insert(name.into(), value.into());
        self
    }

    /// Called with the result when the task succeeded.
    #[must_use]
    pub fn link(mut self, callback: Signature) -> Self {
        self.callbacks.push(callback);
        self
    }

    /// Called when the task failed.
    #[must_use]
    pub fn link_error(mut self, errback: Signature) -> Self {
        self.errbacks.push(errback);
        self
    }

    /// The task's id.
    pub fn id(&self) -> &str {
        &self.headers.id
    }

    /// The envelope, as `celery.app.amqp.AMQP.as_task_v2` and kombu make it.
    pub(super) fn envelope(&self, origin: &str, reply_to: &str) -> Result<Vec<u8>, serde_json::Error> {
        if let Some(wrong) = &self.wrong {
            return Err(serde::ser::Error::custom(format!(
                "an argument of {} is not JSON: {wrong}",
                self.headers.task
            )));
        }
        let mut headers = self.headers.clone();
        headers.root_id.get_or_insert_with(|| self.headers.id.clone());
        headers.argsrepr = Some(repr_args(&self.args));
        headers.kwargsrepr = Some(repr_bounded(&Value::Object(self.kwargs.clone())));
        headers.origin = Some(origin.to_owned());
        let some = |signatures: &Vec<Signature>| (!signatures.is_empty()).then(|| json!(signatures));
        let body = json!([
            self.args,
            self.kwargs,
            {"callbacks": some(&self.callbacks), "errbacks": some(&self.errbacks), "chain": null, "chord": null},
        ]);
        serde_json::to_vec(&Outgoing {
            body: Outgoing::<Headers>::encode(&body)?,
            content_encoding: "utf-8",
            content_type: "application/json",
            headers,
            properties: OutgoingProperties {
                correlation_id: Some(&self.headers.id),
                reply_to: Some(reply_to),
                expiration: self.expires_in.map(|after| after.as_millis().to_string()),
                delivery_mode: 2,
                delivery_info: OutgoingInfo {
                    exchange: "",
                    routing_key: &self.queue,
                },
                priority: self.priority,
                body_encoding: "base64",
                delivery_tag: Uuid::new_v4().to_string(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Limits, decode};

    #[test]
    fn p_054_p_059_a_call_is_a_protocol_2_message() {
        let call = Call::new("proj.add")
            .arg(2)
            .kwarg("y", "it's")
            .priority(3)
            .queue("q")
            .time_limit(Duration::from_secs(5));
        let envelope = call.envelope("gen1@h", "oid").unwrap();
        let message = decode(&envelope, &Limits::default()).unwrap();
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
