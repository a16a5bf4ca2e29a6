//! Takes messages from the queues: as many as there is room for, in one script call, and waits without taking when
//! there are none.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{debug, error};

use super::request::Delivery;
use super::room::{Room, Share};
use super::stop::Phase;
use super::writer::Outbox;
use crate::broker::{Broker, ClaimId};

/// Largest number of messages taken by one script call: bounds how long it occupies Redis.
const BATCH: usize = 128;
/// With so many writes waiting no more messages are taken: what cannot be acknowledged should not be claimed.
const BACKLOG: usize = 20_000;
/// How long to wait for the news of a message before looking again. The news comes by push; this is the safety net
/// for a push that was lost.
const WAIT: Duration = Duration::from_secs(5);

/// What the fetcher hands to the consumer loop.
pub(crate) enum Fetched {
    Message {
        delivery: Delivery,
        raw: bytes::Bytes,
        /// What it takes of the room for messages.
        share: Share,
    },
    /// An element that is no message at all; it is in the dead-letter list already.
    Dead { queue: Arc<str>, reason: String },
}

/// The service that fetches.
pub(crate) struct Fetcher {
    pub broker: Broker,
    /// The prefetch count.
    pub credit: Arc<Semaphore>,
    /// The bound in bytes.
    pub room: Room,
    /// Queues to take from; remote control changes them.
    pub queues: watch::Receiver<Vec<Arc<str>>>,
    pub stop: watch::Receiver<Phase>,
    pub outbox: Outbox,
    pub to: mpsc::Sender<Fetched>,
}

impl Fetcher {
    /// Runs until the worker stops; closing the channel is how the loop knows that nothing more comes.
    pub(crate) async fn run(mut self) {
        let mut unusable = None;
        while *self.stop.borrow() == Phase::Run {
            let Some(mut credit) = self.credit().await else { return };
            let (count, bytes) = tokio::select! {
                free = self.room.free() => free,
                _ = self.stop.wait_for(|phase| *phase != Phase::Run) => return,
            };
            let more = self.credit.available_permits().min(BATCH - 1).min(count - 1);
            if let Ok(more) = self.credit.clone().try_acquire_many_owned(more as u32) {
                credit.merge(more);
            }
            let changed = self.queues.has_changed().unwrap_or(false);
            let queues = self.broker.lists(self.queues.borrow_and_update().clone());
            if changed {
                self.broker.watch(&queues).await;
            }
            let claim = ClaimId::new();
            // Never inside a select: a claim that is given up half-way has taken messages that nobody knows of.
            let claims = loop {
                match self.broker.claim(&claim, &queues, credit.num_permits(), bytes).await {
                    Ok(claims) => break claims,
                    Err(error) => {
                        debug!(%error, "claim failed");
                        if !error.is_transient() {
                            error!(%error, "messages cannot be taken; trying again");
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                        tokio::select! {
                            () = self.broker.ready() => {}
                            _ = self.stop.wait_for(|phase| *phase != Phase::Run) => {}
                        }
                        // What the claim took without our knowing comes back when its lease runs out.
                        if *self.stop.borrow() != Phase::Run {
                            return;
                        }
                    }
                }
            };
            let empty = claims.messages.is_empty() && claims.dead.is_empty();
            if claims.unusable != unusable {
                // Once, and not at each look.
                if let Some(reason) = &claims.unusable {
                    error!("{reason}; delete or rename that key");
                }
                unusable = claims.unusable;
            }
            for dead in claims.dead {
                let dead = Fetched::Dead {
                    queue: dead.queue,
                    reason: dead.reason,
                };
                if self.to.send(dead).await.is_err() {
                    return;
                }
            }
            for message in claims.messages {
                let share = self.room.take(message.raw.len());
                let delivery = Delivery {
                    tag: message.tag,
                    queue: message.queue,
                    credit: credit.split(1),
                };
                if self
                    .to
                    .send(Fetched::Message {
                        delivery,
                        raw: message.raw,
                        share,
                    })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            drop(credit);
            if empty {
                tokio::select! {
                    () = self.broker.wait(WAIT) => {}
                    _ = self.stop.changed() => {}
                    _ = self.queues.changed() => {}
                }
            }
        }
    }

    /// Waits for a share of the prefetch count; `None` when the worker stops.
    async fn credit(&mut self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        while self.outbox.backlog() > BACKLOG {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
                _ = self.stop.changed() => return None,
            }
        }
        tokio::select! {
            permit = self.credit.clone().acquire_owned() => permit.ok(),
            _ = self.stop.changed() => None,
        }
    }
}
