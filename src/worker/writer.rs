//! Sends what was decided: everything that waits leaves in one pipeline per server, as soon as the last one is
//! answered. Nothing waits for more, but late acks that are alone, for a millisecond.
//!
//! Order: the sizes of chords, what follows (next steps, retries), results and streams, events; and when Redis has
//! taken all of these, with the next flush, acks; where there are error callbacks, those with the next and acks with
//! the one behind it. A crash between two of them repeats work; it never loses any: a message is acknowledged when what
//! it led to is in Redis, also where Redis refuses the one for lack of memory and would do the other. What it refuses
//! for good is in [`unsent`](super::unsent). While Redis cannot be reached the batch waits, and what was not answered
//! is sent again: every write but a publish is idempotent. Where results are on another server only what waits for a
//! result waits for that one ([`apart`](super::apart)).

use std::mem::take;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::Pipeline;
use tokio::sync::oneshot;
use tracing::warn;

use super::apart::{Apart, Load, Waits};
use super::metrics::Metrics;
use super::outbox::{Handed, Inbox, Out};
use super::sending::{News, Sending};
use super::unheard::Unheard;
use super::unsent::Messages;
use crate::backend::{self, Backend};
use crate::broker::{self, Broker, Tag};
use crate::clock;
use crate::wire::Events as Envelopes;

/// Largest number of writes in one flush: bounds how long one pipeline occupies Redis.
const BATCH: usize = 1024;

/// How often others get their turn before acks leave alone, and how long they wait for company then.
const TURNS: usize = 3;
const COMPANY: Duration = Duration::from_millis(1);

/// After so long the messages are noted whose acks wait for what cannot be sent: they are ours still.
const LONG: Duration = Duration::from_millis(500);

/// The service that sends.
pub(crate) struct Writer {
    sending: Sending,
    hostname: Arc<str>,
    event_exchange: String,
    unheard: Unheard,
    /// Results are on another server.
    is_apart: bool,
}

/// Writes of one flush, by the phase they belong to.
#[derive(Default)]
struct Batch {
    groups: Vec<backend::Write>,
    publishes: Messages,
    results: Vec<backend::Write>,
    early: Vec<broker::Write>,
    later: Messages,
    acks: Vec<broker::Write>,
    broadcasts: Vec<broker::Write>,
    events: Vec<Vec<u8>>,
    stays: Vec<Tag>,
    /// Messages that were handed over together with groups, those of them that stay here among them.
    grouped: (Messages, Vec<Tag>),
    flushed: Vec<oneshot::Sender<()>>,
    /// Keys of results that are told once more.
    again: Vec<Vec<u8>>,
    size: usize,
    bytes: usize,
    matter: usize,
    /// Results are on another server.
    is_apart: bool,
}

/// What waits until Redis has taken the last flush.
#[derive(Default)]
struct Owed {
    /// Error callbacks, which go with the next one.
    later: Messages,
    /// Acks, which go with it too, or behind those.
    acks: Vec<broker::Write>,
}

impl Owed {
    fn is_empty(&self) -> bool {
        self.later.writes.is_empty() && self.acks.is_empty()
    }

    fn has_only_acks(&self) -> bool {
        self.later.writes.is_empty() && self.acks.iter().all(|write| matches!(write, broker::Write::Ack(_)))
    }
}

impl Batch {
    fn has_only_acks(&self) -> bool {
        self.acks.len() + self.early.len() == self.size
    }

    /// Adds what waits.
    fn fill(&mut self, inbox: &mut Inbox) {
        while self.size < BATCH
            && let Some(handed) = inbox.next_now()
        {
            self.add(handed);
        }
    }

    /// Takes out what goes apart: results, what goes before them there, and what waits for them, or for others that are
    /// on their way still.
    fn part(&mut self, apart: &Apart) -> Load {
        let (publishes, stays) = take(&mut self.grouped);
        let mut load = Load {
            groups: take(&mut self.groups),
            publishes,
            stays,
            results: take(&mut self.results),
            again: take(&mut self.again),
            ..Load::default()
        };
        let stored = load.groups.iter().chain(&load.results);
        let mut bytes: usize = stored.clone().map(backend::Write::bytes).sum();
        let mut matter = stored.filter(|write| write.matters()).count();
        if apart.is_busy() || matter > 0 || !load.results.is_empty() || !load.again.is_empty() {
            load.waits.later = take(&mut self.later);
            load.waits.acks = self.acks.extract_if(.., |write| write.is_end()).collect();
            // What is given back is held first.
            let is_to_be_held = |tag: &Tag| load.stays.contains(tag) || apart.is_to_be_held(tag);
            let given_back = (self.early).extract_if(.., |write| write.held().iter().any(is_to_be_held));
            load.waits.acks.extend(given_back);
            load.waits.flushed = take(&mut self.flushed);
        }
        let waits = &mut load.waits;
        let messages = load.publishes.writes.iter().chain(&waits.later.writes);
        matter += messages.clone().count();
        bytes += messages.chain(&waits.acks).map(broker::Write::bytes).sum::<usize>();
        waits.tags = waits.acks.iter().flat_map(broker::Write::held).cloned().collect();
        waits.size = load.groups.len() + load.results.len() + load.publishes.writes.len();
        waits.size += waits.later.writes.len() + waits.acks.len();
        (waits.bytes, waits.matter) = (bytes, matter);
        self.size -= waits.size;
        self.bytes -= bytes;
        self.matter -= matter;
        load
    }

    fn add(&mut self, (writes, bytes): Handed) {
        self.size += writes.len();
        self.bytes += bytes;
        // Where results are apart, members of a header must not be sent before its size is known there.
        let is_grouped = self.is_apart
            && writes
                .iter()
                .any(|write| matches!(write, Out::Backend(write) if write.is_group()));
        for write in writes {
            self.matter += usize::from(write.matters());
            let (publishes, stays) = match is_grouped {
                true => (&mut self.grouped.0, &mut self.grouped.1),
                false => (&mut self.publishes, &mut self.stays),
            };
            match write {
                Out::Broker(write @ (broker::Write::Publish { .. } | broker::Write::Hold { .. })) => {
                    publishes.push(write, None);
                }
                Out::Follow(tag, write) => publishes.push(write, Some(tag)),
                Out::Broker(write @ (broker::Write::Broadcast { .. } | broker::Write::Reply { .. })) => {
                    self.broadcasts.push(write);
                }
                Out::Broker(write) => self.acks.push(write),
                Out::Early(write) => self.early.push(write),
                Out::Later(follows, write) => self.later.push(write, follows),
                Out::Stay(follows, write) => {
                    if let broker::Write::Hold { tag, .. } = &write {
                        stays.push(tag.clone());
                    }
                    publishes.push(write, follows);
                }
                Out::Backend(write) if write.is_group() => self.groups.push(write),
                Out::Backend(write) => self.results.push(write),
                Out::Event(event) => self.events.push(event),
                Out::Flushed(done) => self.flushed.push(done),
            }
        }
    }
}

impl Writer {
    pub(crate) fn new(
        broker: Broker,
        backend: Option<Backend>,
        hostname: Arc<str>,
        event_exchange: String,
        metrics: Metrics,
        news: News,
    ) -> Self {
        let is_apart = (backend.as_ref()).is_some_and(|backend| !backend.link().is_same(broker.writer()));
        let backend = if is_apart {
            backend
        } else {
            backend.map(Backend::ending_messages)
        };
        Self {
            is_apart,
            sending: Sending {
                broker,
                backend,
                metrics,
                news,
            },
            hostname,
            event_exchange,
            unheard: Unheard::default(),
        }
    }

    /// Runs until every outbox is gone and everything has been sent.
    pub(crate) async fn run(mut self, mut inbox: Inbox) {
        let mut owed = Owed::default();
        // What stays here and starts when that has gone.
        let mut later = Vec::new();
        let (mut apart, carrier) = Apart::new();
        let carrying = self.sending.clone();
        let mut carrying = pin!(carrier.run(&carrying));
        let mut is_open = true;
        while is_open || apart.is_busy() || !owed.is_empty() {
            let mut batch = Batch {
                is_apart: self.is_apart,
                ..Batch::default()
            };
            tokio::select! {
                biased;
                // First, or those who hand over more all the time would keep it away.
                waits = apart.next() => self.take_back(waits, &mut owed, &mut inbox),
                handed = inbox.next(), if is_open => match handed {
                    Some(handed) => batch.add(handed),
                    None => is_open = false,
                },
                () = self.unheard.due() => {}
                () = std::future::ready(()), if !owed.is_empty() => {}
                () = &mut carrying => {}
            }
            while let Some(waits) = apart.next_now() {
                self.take_back(waits, &mut owed, &mut inbox);
            }
            batch.fill(&mut inbox);
            // A task that was acknowledged as it started may end before others get their turn: its result goes along,
            // and need not wait until Redis has answered the ack.
            for _ in 0..TURNS {
                if !batch.has_only_acks() {
                    break;
                }
                tokio::task::yield_now().await;
                batch.fill(&mut inbox);
            }
            // A task that has begun may end its process: its message must not be found then.
            let none_has_begun = batch.early.is_empty();
            let has_acks = !batch.acks.is_empty() || !owed.is_empty();
            if none_has_begun && has_acks && batch.has_only_acks() && owed.has_only_acks() && later.is_empty() {
                tokio::select! {
                    biased;
                    Some(handed) = inbox.next() => batch.add(handed),
                    () = self.unheard.due() => {}
                    () = &mut carrying => {}
                    () = tokio::time::sleep(COMPANY) => {}
                }
                batch.fill(&mut inbox);
            }
            let began = clock::instant();
            batch.again = self.unheard.take_due(began);
            // Then what waits for acks waits for those with the next flush.
            let callbacks = owed.later.writes.len();
            inbox.sends(owed.acks.iter().chain(&batch.early).chain(&batch.acks));
            let mut load = if self.is_apart {
                batch.part(&apart)
            } else {
                Load::default()
            };
            // What follows stands before the result; where nothing does, that need not wait for the broker.
            if !load.is_empty() && batch.publishes.writes.is_empty() {
                inbox.holds(&load.waits.tags);
                apart.send(take(&mut load));
            }
            let unheard = {
                let mut flush = pin!(self.flush(&mut batch, &mut owed, &mut load));
                loop {
                    tokio::select! {
                        biased;
                        unheard = &mut flush => break unheard,
                        () = &mut carrying => {}
                        () = tokio::time::sleep(LONG) => inbox.note(),
                    }
                }
            };
            self.unheard.add(unheard, clock::instant());
            self.sending.broker.writer().carried(batch.bytes);
            let metrics = &self.sending.metrics;
            metrics.flushed(clock::instant().saturating_duration_since(began));
            // What goes with the next flush is still to be written.
            let written = (batch.matter + callbacks).saturating_sub(owed.later.writes.len());
            if !load.is_empty() {
                inbox.holds(&load.waits.tags);
                apart.send(load);
            }
            inbox.sent(batch.size, batch.bytes, written);
            if callbacks == 0 {
                self.sending.tell_stays(&mut later);
            }
            later.append(&mut batch.stays);
            if owed.is_empty() {
                self.sending.tell_stays(&mut later);
            }
            for done in batch.flushed {
                let _ = done.send(());
            }
        }
    }

    /// Takes what waited for results that are stored now.
    fn take_back(&mut self, waits: Waits, owed: &mut Owed, inbox: &mut Inbox) {
        inbox.holds_no_more(&waits.tags);
        inbox.sent(waits.size, waits.bytes, waits.matter - waits.later.writes.len());
        self.unheard.add(waits.unheard, clock::instant());
        owed.later.append(waits.later);
        owed.acks.extend(waits.acks);
        for done in waits.flushed {
            let _ = done.send(());
        }
    }

    /// Sends a batch, but for what of it goes apart, and what the last one owed; the keys of results that nobody has
    /// heard of.
    async fn flush(&self, batch: &mut Batch, owed: &mut Owed, load: &mut Load) -> Vec<Vec<u8>> {
        let Sending { broker, backend, .. } = &self.sending;
        if !batch.events.is_empty() {
            match Envelopes::tasks(&batch.events, &self.hostname, &self.event_exchange) {
                Ok((routing_key, payload)) => batch.broadcasts.push(broker::Write::Broadcast {
                    exchange: self.event_exchange.clone(),
                    routing_key,
                    payload: payload.into(),
                }),
                Err(error) => warn!(%error, "task events cannot be encoded"),
            }
        }
        let mut pipe = Pipeline::new();
        if let Some(backend) = backend
            && !batch.groups.is_empty()
        {
            // Before the messages of a header: its members may end before the last of them is sent.
            let mut groups = Pipeline::new();
            backend.append(&mut groups, &batch.groups);
            self.sending.insist_or_say("backend", backend.link(), &groups).await;
        }
        broker.append(&mut pipe, &batch.publishes.writes);
        if let Some(backend) = backend
            && !batch.results.is_empty()
        {
            if backend.looks() {
                self.sending.look(backend, &mut batch.results).await;
            }
            backend.append(&mut pipe, &batch.results);
        }
        let mut acks = take(&mut batch.acks);
        // What is given back was held first: sent again in one pipeline both would be done twice.
        let stays = &batch.stays;
        let is_held_now = |tag: &Tag| stays.contains(tag);
        acks.extend((batch.early).extract_if(.., |write| write.held().iter().any(is_held_now)));
        // Redis may refuse what is in the pipe now, and do acks behind it.
        let must_wait = !pipe.is_empty() || !batch.later.writes.is_empty();
        let Owed {
            later: callbacks,
            acks: mut due,
        } = take(owed);
        if !callbacks.writes.is_empty() {
            owed.acks = take(&mut due);
        }
        owed.later = take(&mut batch.later);
        due.append(&mut batch.early);
        if must_wait {
            owed.acks.append(&mut acks);
        } else {
            due.append(&mut acks);
        }
        broker.append(&mut pipe, &batch.broadcasts);
        let behind = pipe.len();
        broker.append(&mut pipe, &callbacks.writes);
        broker.append(&mut pipe, &due);
        let sent = [(&batch.publishes, 0), (&callbacks, behind)];
        let said = self.sending.insist("broker", broker.writer(), &pipe, &sent).await;
        if !said.refused.is_empty() {
            let acks = if load.is_empty() {
                &mut owed.acks
            } else {
                &mut load.waits.acks
            };
            let stays = &mut batch.stays;
            let publishes = (&batch.publishes, 0);
            let rest = self.sending.give_up(publishes, said.refused, acks, stays).await;
            let rest = self
                .sending
                .give_up((&callbacks, behind), rest, &mut owed.acks, stays)
                .await;
            self.sending.say_refused(&pipe, &rest);
        }
        if let Some(backend) = backend
            && !batch.again.is_empty()
        {
            let mut pipe = Pipeline::new();
            backend.append_again(&mut pipe, &batch.again);
            self.sending.insist_or_say("backend", backend.link(), &pipe).await;
        }
        said.unheard
    }
}
