//! Takes messages from the queues: as many as there is room for, in one script call, and waits without taking when
//! there are none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{debug, error, info};

use super::flood::{Flood, Way};
use super::left_out::LeftOut;
use super::metrics::Metrics;
use super::outbox::Outbox;
use super::parked::{FAR, unwrapped};
use super::request::Delivery;
use super::room::{Room, Share};
use super::stop::Phase;
use super::watchdog::Progress;
use crate::backoff;
use crate::broker::{Broker, ClaimId, Tag};
use crate::clock::{self, Instant};
use crate::conn::Patience;

/// Largest number of messages taken by one script call: bounds how long it occupies Redis.
const BATCH: usize = 128;
/// Messages that have to wait taken beyond those, where there are many: what is due comes behind them to the loop.
const WAITING: usize = 32;
/// How long to wait for the news of a message before looking again. The news comes by push; this is the safety net
/// for a push that was lost.
const WAIT: Duration = Duration::from_secs(30);

/// So often that is taken for chance; after more there is a pause before the next look.
const VAIN: u32 = 4;
/// News with longer pauses between them are no reason for it.
const SELDOM: Duration = Duration::from_millis(20);
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// What the fetcher hands to the consumer loop.
pub(crate) enum Fetched {
    Message(Taken),
    /// An element that is no message at all; it is in the dead-letter list already.
    Dead {
        queue: Arc<str>,
        reason: String,
        /// Whose it was, if that can be told.
        id: Option<String>,
    },
    /// The messages before it were asked for at that time.
    Asked(Instant),
    /// What was in the queues when somebody wanted to know has come before this, as far as there is room for it.
    Looked(oneshot::Sender<()>),
}

/// A message that is ours now.
#[derive(Debug)]
pub(crate) struct Taken {
    pub delivery: Delivery,
    /// The envelope.
    pub raw: bytes::Bytes,
    /// What it takes of the room for messages.
    pub share: Share,
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
    /// Those of them from which nothing may be taken.
    pub left_out: LeftOut,
    pub stop: watch::Receiver<Phase>,
    pub outbox: Outbox,
    pub metrics: Metrics,
    /// Tells the watchdog that it takes what there is.
    pub progress: Progress,
    /// Who wants to know when the next look is done.
    pub asked: mpsc::Receiver<oneshot::Sender<()>>,
    /// Whether what is due is hidden behind what is not.
    pub flood: Flood,
    /// Whether it found the queues empty, and has not heard of a message since.
    pub idle: Arc<AtomicBool>,
    /// What one claim brought goes over at once.
    pub to: mpsc::Sender<Vec<Fetched>>,
}

impl Fetcher {
    /// Runs until the worker stops; closing the channel is how the loop knows that nothing more comes.
    pub(crate) async fn run(mut self) {
        let mut unusable = None;
        // How often in a row there was news, and then nothing to take.
        let mut vain = 0_u32;
        let mut looked = clock::instant();
        let mut curious = Vec::new();
        while *self.stop.borrow() == Phase::Run {
            let Some(mut credit) = self.credit(&mut curious).await else {
                return;
            };
            let (most, bytes) = tokio::select! {
                free = self.room.free() => free,
                _ = self.stop.wait_for(|phase| *phase != Phase::Run) => return,
            };
            let more = self.credit.available_permits().min(BATCH - 1).min(most - 1);
            if let Ok(more) = self.credit.clone().try_acquire_many_owned(more as u32) {
                credit.merge(more);
            }
            let mut queues = self.wanted();
            let claim = ClaimId::new();
            let way = self.flood.way();
            while let Ok(looked) = self.asked.try_recv() {
                curious.push(looked);
            }
            // Never inside a select: a claim that is given up half-way has taken messages that nobody knows of.
            let (claims, asked) = loop {
                let asked = clock::instant();
                let count = credit.num_permits();
                let due_by = || clock::after(clock::now(), FAR);
                let claimed = match way {
                    Way::InOrder => self.broker.claim(&claim, &queues, count, bytes).await,
                    Way::Past => {
                        let counts = (count, WAITING.min(most));
                        self.broker.claim_past(&claim, &queues, counts, bytes, due_by()).await
                    }
                    Way::Newest => {
                        self.broker
                            .claim_past(&claim, &queues, (count, 0), bytes, due_by())
                            .await
                    }
                };
                match claimed {
                    Ok(claims) => {
                        self.metrics.claimed(clock::instant().saturating_duration_since(asked));
                        if self.metrics.withheld(None) {
                            info!("messages can be taken again");
                        }
                        break (claims, asked);
                    }
                    Err(error) => {
                        debug!(%error, "claim failed");
                        self.progress.made();
                        if !error.is_transient() {
                            if !self.leave_out(&queues).await {
                                let text = error.to_string();
                                if self.metrics.withheld(Some(&text)) {
                                    error!("messages cannot be taken; trying again each second: {text}");
                                }
                                tokio::time::sleep(Duration::from_secs(1)).await;
                            }
                            // What an earlier try may have taken of others comes back when its lease ends.
                            queues = self.wanted();
                        }
                        tokio::select! {
                            () = self.broker.ready() => {}
                            _ = self.stop.wait_for(|phase| *phase != Phase::Run) => {}
                        }
                        if *self.stop.borrow() != Phase::Run {
                            // With what it takes beyond the count, where it does.
                            let tags = claim.tags(count + WAITING);
                            return self.hand_over(&tags, &queues).await;
                        }
                    }
                }
            };
            let empty = claims.messages.is_empty() && claims.dead.is_empty();
            if !empty || !claims.drained || claims.unusable.is_some() || !self.left_out.is_empty() {
                self.progress.made();
            }
            self.flood.took(way, claims.messages.len());
            if claims.unusable != unusable && way != Way::Newest {
                // Once, and not at each look.
                if let Some(reason) = &claims.unusable {
                    error!("{reason}");
                }
                unusable = claims.unusable;
            }
            let dead = claims.dead.into_iter().map(|dead| Fetched::Dead {
                queue: dead.queue,
                reason: dead.reason,
                id: dead.id,
            });
            let mut fetched: Vec<Fetched> = dead.collect();
            fetched.extend(claims.messages.into_iter().map(|message| {
                Fetched::Message(Taken {
                    share: self.room.take(message.raw.len()),
                    delivery: {
                        let share = if message.waits { None } else { credit.split(1) };
                        Delivery::new(message.tag, message.queue, share)
                    },
                    raw: message.raw,
                })
            }));
            if !empty {
                fetched.push(Fetched::Asked(asked));
            }
            fetched.extend(curious.drain(..).map(Fetched::Looked));
            // Before what came is handed over: it may be done with, and followed by more, before others get their turn.
            drop(credit);
            self.idle.store(claims.drained && way != Way::Newest, Ordering::Relaxed);
            if !fetched.is_empty() && self.to.send(fetched).await.is_err() {
                return;
            }
            if way == Way::Newest {
                continue;
            }
            if !empty {
                vain = 0;
                if !claims.drained {
                    continue;
                }
            }
            let news = tokio::select! {
                news = self.broker.wait(WAIT) => news,
                _ = self.stop.changed() => false,
                _ = self.queues.changed() => false,
                Some(looked) = self.asked.recv() => {
                    curious.push(looked);
                    false
                }
            };
            self.idle.store(false, Ordering::Relaxed);
            // What comes seldom costs nobody much, and whoever is always late would never have anything.
            let now = clock::instant();
            let often = now.saturating_duration_since(std::mem::replace(&mut looked, now)) < SELDOM;
            vain = if news && empty && often { vain + 1 } else { 0 };
            // Others were faster some times in a row: many workers share the queue. Not all of them need to run for
            // each message.
            if let Some(often) = vain.checked_sub(VAIN) {
                let pause = backoff::delay(SHORTEST_PAUSE, LONGEST_PAUSE, often);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = self.stop.changed() => {}
                }
            }
        }
    }

    /// The queues to take from now.
    fn wanted(&mut self) -> Vec<Arc<str>> {
        let mut queues = self.broker.lists(self.queues.borrow_and_update().clone());
        if !self.left_out.is_empty() {
            self.left_out.take_out_of(&mut queues, clock::instant());
        }
        queues
    }

    /// Redis has refused a claim: leaves out the queues for which that is so. Whether there are others beside them.
    async fn leave_out(&mut self, queues: &[Arc<str>]) -> bool {
        let refused = self.broker.refused(queues).await.unwrap_or_default();
        let others = !refused.is_empty() && refused.len() < queues.len();
        for (queue, why) in refused.into_iter().filter(|_| others) {
            error!(
                "messages of queue {queue:?} cannot be taken; trying again each minute, and serving the others: {why}"
            );
            self.left_out.add(queue, clock::instant());
        }
        others
    }

    /// Looks for what a claim took without our knowing, in a worker that stops: what is found goes back as everything
    /// does that has not started. A Redis that stays away is waited for as long as the worker's last words wait; what
    /// was taken comes back then when its lease runs out.
    async fn hand_over(&mut self, tags: &[Tag], queues: &[Arc<str>]) {
        let (broker, room, to) = (&self.broker, &self.room, &self.to);
        let found = async {
            let (mut left, patience) = (tags, Patience::default());
            while !left.is_empty() {
                let some = &left[..left.len().min(BATCH)];
                let Ok(held) = broker.recall(some, &patience).await else {
                    broker.ready().await;
                    continue;
                };
                // Large ones come a few at a time.
                let (asked, rest) = left.split_at(held.len().min(some.len()));
                left = rest;
                let fetched = asked.iter().zip(held).filter_map(|(tag, held)| {
                    let held = held?;
                    let whole = |queue: &Arc<str>| Some((queue.clone(), unwrapped(&held, queue)?));
                    let (queue, raw) = queues.iter().find_map(whole)?;
                    Some(Fetched::Message(Taken {
                        share: room.take(raw.len()),
                        delivery: Delivery::new(tag.clone(), queue, None),
                        raw,
                    }))
                });
                if to.send(fetched.collect()).await.is_err() {
                    return;
                }
            }
        };
        let phase = *self.stop.borrow();
        tokio::select! {
            _ = tokio::time::timeout(phase.patience(), found) => {}
            _ = self.stop.wait_for(|now| *now > phase) => {}
        }
    }

    /// Waits for a share of the prefetch count; `None` when the worker stops. While there is none nothing is looked
    /// for, and who is curious need not wait.
    async fn credit(&mut self, curious: &mut Vec<oneshot::Sender<()>>) -> Option<tokio::sync::OwnedSemaphorePermit> {
        while self.outbox.is_full() {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
                _ = self.stop.changed() => return None,
            }
        }
        if let Ok(permit) = self.credit.clone().try_acquire_owned() {
            return Some(permit);
        }
        curious.clear();
        loop {
            tokio::select! {
                permit = self.credit.clone().acquire_owned() => return permit.ok(),
                _ = self.stop.changed() => return None,
                Some(looked) = self.asked.recv() => drop(looked),
            }
        }
    }
}
