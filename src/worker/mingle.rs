//! Reads what was noted as revoked, and says hello to the neighbours (`celery.worker.consumer.mingle`), at start and
//! whenever the connection was lost in between: they tell what was revoked while we could not hear it, and how late it
//! is by the Lamport clock.
//!
//! Celery waits a second for answers. Redis says how many heard the question, so we wait no longer than until they have
//! answered, and not at all when we are alone.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::consumer::Consumer;
use super::control::{Order, short};
use crate::broker::{Broker, Error};
use crate::clock;
use crate::wire::{Accept, Limits, Security, pidbox};

/// How long answers are waited for, at most.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the answers, and the connection, are looked at.
const LOOK: Duration = Duration::from_millis(5);
const LOOK_FOR_CONNECTION: Duration = Duration::from_millis(250);

/// What a neighbour answered.
pub(crate) struct Neighbour {
    node: String,
    clock: Option<u64>,
    revoked: Vec<String>,
    /// Told when it is part of our state: no task may start before that.
    merged: oneshot::Sender<()>,
}

/// The service that says hello.
pub(crate) struct Mingle {
    pub broker: Broker,
    pub hostname: String,
    pub namespace: String,
    /// Serializers of the answers that are read.
    pub accept: Accept,
    /// How much of an answer is read.
    pub limits: Limits,
    /// What signs the question, where everybody wants it signed.
    pub signer: Option<Arc<Security>>,
    pub orders: mpsc::Sender<Order>,
    /// Without it the connection is watched all the same: monitors are told when it is there again.
    pub asks: bool,
    /// Told when the first round is over.
    pub done: oneshot::Sender<()>,
}

impl Mingle {
    /// Runs as long as the worker takes orders.
    pub(crate) async fn run(self) {
        let Self {
            broker,
            hostname,
            namespace,
            accept,
            limits,
            signer,
            orders,
            asks,
            done,
        } = self;
        let round = Round {
            broker: &broker,
            hostname: &hostname,
            namespace: &namespace,
            accept: &accept,
            limits,
            signer: signer.as_deref(),
            orders: &orders,
        };
        let mut epoch = broker.epoch();
        round.read().await;
        if asks {
            round.run().await;
        }
        // Nobody waits for it when the worker is about to stop.
        let _ = done.send(());
        while !orders.is_closed() {
            tokio::time::sleep(LOOK_FOR_CONNECTION).await;
            let now = broker.epoch();
            if now != 0 && now != epoch {
                epoch = now;
                round.read().await;
                if orders.send(Order::Reconnected).await.is_err() {
                    return;
                }
                if asks {
                    round.run().await;
                }
            }
        }
    }
}

struct Round<'a> {
    broker: &'a Broker,
    hostname: &'a str,
    namespace: &'a str,
    accept: &'a Accept,
    limits: Limits,
    signer: Option<&'a Security>,
    orders: &'a mpsc::Sender<Order>,
}

impl Round<'_> {
    /// Reads what was revoked while nobody was there to hear it.
    async fn read(&self) {
        let ids = loop {
            match self.broker.noted_revoked().await {
                Ok(ids) => break ids,
                Err(error) if error.is_transient() => tokio::select! {
                    () = self.broker.ready() => {}
                    () = self.orders.closed() => return,
                },
                Err(error) => {
                    warn!("what was revoked before cannot be read, and may run (see docs/redis.md): {error}");
                    return;
                }
            }
        };
        let (merged, is_merged) = oneshot::channel();
        if !ids.is_empty() && self.orders.send(Order::Noted(ids, merged)).await.is_ok() {
            // The worker is gone if nobody answers.
            let _ = is_merged.await;
        }
    }

    async fn run(&self) {
        info!("mingle: searching for neighbors");
        let (ours, revoked) = oneshot::channel();
        if self.orders.send(Order::Revoked(ours)).await.is_err() {
            return;
        }
        let oid = Uuid::new_v4().to_string();
        let exchange = pidbox::reply_exchange(self.namespace);
        let asked = self.ask(&exchange, &oid, &revoked.await.unwrap_or_default()).await;
        // What is left behind expires.
        let _ = self.broker.unbind_replies(&exchange, &oid).await;
        match asked {
            Ok(0) => info!("mingle: all alone"),
            Ok(nodes) => {
                info!("mingle: sync with {nodes} nodes");
                info!("mingle: sync complete");
            }
            Err(error) => warn!("mingle: the neighbours cannot be asked: {error}"),
        }
    }

    /// Asks, and hands over what comes back; how many answered.
    async fn ask(&self, exchange: &str, oid: &str, revoked: &[String]) -> Result<usize, Error> {
        let ticket = Uuid::new_v4().to_string();
        let arguments = json!({"from_node": self.hostname, "revoked": revoked});
        let hello = pidbox::encode_request(self.namespace, "hello", &arguments, None, Some((oid, &ticket)));
        let Some(payload) = hello.ok().and_then(|hello| Security::signed(self.signer, hello).ok()) else {
            return Ok(0);
        };
        self.broker.bind_replies(exchange, oid).await?;
        let heard = self
            .broker
            .tell(&format!("{}.pidbox", self.namespace), &payload)
            .await?;
        let (mut answers, mut own, mut nodes) = (0, 0, 0);
        let end = clock::instant() + PATIENCE;
        // One of those who heard it is ourselves.
        while heard > 1 && answers < heard && clock::instant() < end {
            for reply in self.broker.take_replies(exchange, oid).await? {
                answers += 1;
                if reply.len() > self.limits.control {
                    debug!("mingle: an answer of {} bytes is not read", reply.len());
                    continue;
                }
                let Ok((_, answer)) = pidbox::decode_reply(&reply, self.accept) else {
                    continue;
                };
                for (node, answer) in answer {
                    if node == self.hostname {
                        own += 1;
                    } else if self.hand_over(node, &answer).await {
                        nodes += 1;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        if own > 1 {
            // The worker is gone if nobody takes it.
            let _ = self.orders.send(Order::Double).await;
        }
        Ok(nodes)
    }

    async fn hand_over(&self, node: String, answer: &Value) -> bool {
        if !answer.is_object() {
            debug!("mingle: {} answered something else", short(&node));
            return false;
        }
        // A name that no worker has is one who is not heard either.
        if node.len() > self.limits.name {
            debug!("mingle: a node name of {} bytes", node.len());
            return false;
        }
        let ids = answer.get("revoked").and_then(Value::as_array);
        let (merged, is_merged) = oneshot::channel();
        let neighbour = Neighbour {
            clock: answer.get("clock").and_then(Value::as_u64),
            revoked: ids
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .filter(|id| id.len() <= self.limits.name)
                .map(str::to_owned)
                .collect(),
            node,
            merged,
        };
        self.orders.send(Order::Neighbour(neighbour)).await.is_ok() && is_merged.await.is_ok()
    }
}

impl Consumer {
    pub(super) fn on_neighbour(&mut self, neighbour: Neighbour) {
        debug!("mingle: processing reply from {}", short(&neighbour.node));
        match neighbour.clock {
            Some(clock) => self.events.adjust(clock),
            None => drop(self.events.tick()),
        }
        let ids = neighbour.revoked.iter().map(String::as_str);
        self.revoked.merge(ids, clock::instant());
        // It may have given up waiting.
        let _ = neighbour.merged.send(());
    }
}
