//! Commands for queues: add, cancel, list.

use std::sync::Arc;

use serde_json::{Value, json};
use tracing::info;

use super::{Answer, Arguments, ok};
use crate::broker;
use crate::worker::consumer::Consumer;
use crate::worker::outbox::Out;

/// Queues that remote control may add.
const MOST: usize = 1000;

/// How a queue is bound, when not to the direct exchange of its own name.
#[derive(Debug)]
pub(super) struct Binding {
    exchange: String,
    kind: &'static str,
    routing_key: String,
}

impl Consumer {
    pub(super) fn add_consumer(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let text = |name: &str| match arguments.get(name) {
            None => Ok(None),
            Some(_) => arguments
                .text(name)
                .map(|text| Some(text).filter(|text| !text.is_empty())),
        };
        let name = arguments.text("queue")?;
        let (exchange, routing_key) = (text("exchange")?.unwrap_or(name), text("routing_key")?.unwrap_or(name));
        let kind = match text("exchange_type")? {
            None | Some("direct") => "direct",
            Some("topic") => "topic",
            Some(other) => {
                return Err(format!(
                    "ValueError({})",
                    super::text_repr(&format!("queues of {other} exchanges cannot be consumed"))
                ));
            }
        };
        if [name, exchange, routing_key]
            .iter()
            .any(|name| name.is_empty() || name.len() > 255)
        {
            return Err("ValueError('a name has 1 to 255 characters')".into());
        }
        let queue: Arc<str> = name.into();
        let known = self.queues.borrow().contains(&queue);
        if !known && self.queues.borrow().len() >= MOST {
            return Err(format!("ValueError('this worker consumes from {MOST} queues already')"));
        }
        if !known {
            self.bind(&queue, exchange, kind, routing_key);
            self.queues.send_modify(|queues| queues.push(queue));
            info!("Started consuming from {name}");
        }
        ok(format!("add consumer {name}"))
    }

    /// A queue of this worker's own (`celery.utils.nodenames.worker_direct`).
    pub(crate) fn add_direct(&mut self) {
        let node = self.options.hostname.clone();
        let queue: Arc<str> = format!("{node}.dq2").into();
        self.bind(&queue, "C.dq2", "direct", &node);
        self.queues.send_modify(|queues| queues.push(queue));
    }

    fn bind(&mut self, queue: &Arc<str>, exchange: &str, kind: &'static str, routing_key: &str) {
        if exchange != &**queue || routing_key != &**queue {
            let binding = Binding {
                exchange: exchange.to_owned(),
                kind,
                routing_key: routing_key.to_owned(),
            };
            self.panel.bindings.insert(queue.clone(), binding);
        }
        self.declare(queue);
    }

    fn declare(&mut self, queue: &Arc<str>) {
        self.out.push(Out::Broker(broker::Write::Declare(queue.clone())));
        let bind = |bound: &Binding| broker::Write::Bind {
            queue: queue.clone(),
            exchange: bound.exchange.clone(),
            routing_key: bound.routing_key.clone(),
            topic: bound.kind == "topic",
        };
        let bind = self.panel.bindings.get(queue).map(bind);
        self.out.extend(bind.map(Out::Broker));
    }

    /// A Redis that came back empty knows no bindings, and what is sent to an exchange finds no queue by them. Celery,
    /// too, declares its queues at each new connection.
    pub(crate) fn on_reconnected(&mut self) {
        self.on_lease();
        self.has_to_declare = true;
        self.declare_again();
    }

    /// Does so when there is room for it: connections may break faster than anything is sent.
    pub(crate) fn declare_again(&mut self) {
        if self.has_to_declare && !self.outbox.is_full() {
            self.has_to_declare = false;
            let queues = self.queues.borrow().clone();
            queues.iter().for_each(|queue| self.declare(queue));
        }
    }

    pub(super) fn cancel_consumer(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let name = arguments.text("queue")?;
        let cancelled = self.queues.send_if_modified(|queues| {
            let before = queues.len();
            queues.retain(|queue| **queue != *name);
            queues.len() != before
        });
        if cancelled {
            self.panel.bindings.remove(name);
            info!("Canceling queue {name}");
        }
        ok(format!("no longer consuming from {name}"))
    }

    pub(super) fn active_queues(&self) -> Value {
        let queues = self.queues.borrow();
        queues.iter().map(|queue| self.shown_queue(queue)).collect()
    }

    /// A queue with the fields of kombu's `Queue.as_dict`.
    fn shown_queue(&self, queue: &Arc<str>) -> Value {
        let known = self
            .options
            .broker_options
            .queues
            .iter()
            .find(|known| known.name == **queue);
        let (exchange, kind, routing_key) = match (self.panel.bindings.get(queue), known) {
            (Some(bound), _) => (&*bound.exchange, bound.kind, &*bound.routing_key),
            (None, Some(known)) => (&*known.exchange, known.exchange_type.name(), &*known.routing_key),
            (None, None) => (&**queue, "direct", &**queue),
        };
        let expires = known
            .and_then(|known| known.expires)
            .map(|expires| expires.as_secs_f64());
        json!({
            "name": queue,
            "exchange": {
                "name": exchange, "type": kind, "arguments": null, "durable": true, "passive": false,
                "auto_delete": false, "delivery_mode": null, "no_declare": false,
            },
            "routing_key": routing_key,
            "queue_arguments": null,
            "binding_arguments": null,
            "consumer_arguments": null,
            "durable": true,
            "exclusive": false,
            "auto_delete": false,
            "no_ack": false,
            "alias": null,
            "bindings": [],
            "no_declare": null,
            "expires": expires,
            "message_ttl": null,
            "max_length": null,
            "max_length_bytes": null,
            "max_priority": known.and_then(|known| known.max_priority),
        })
    }
}
