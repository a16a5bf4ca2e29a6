//! Sends what was decided: everything that waits leaves in one pipeline per server, as soon as the last one is
//! answered. Nothing waits for more, but late acks that are alone, for a millisecond.
//!
//! Order: the sizes of chords, what follows (next steps, retries), results and streams, events; and when Redis has
//! taken all of these, with the next flush, acks; where there are error callbacks, those with the next and acks with
//! the one behind it. A crash between two of them repeats work; it never loses any: a message is acknowledged when what
//! it led to is in Redis, also where Redis refuses the one for lack of memory and would do the other. What it refuses
//! for good is in [`unsent`](super::unsent). While Redis cannot be reached the batch waits, and what was not answered
//! is sent again: every write but a publish is idempotent.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::Pipeline;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use super::metrics::Metrics;
use super::outbox::{Handed, Inbox, Out};
use super::unheard::Unheard;
use super::unsent::{Messages, Refused, Unsent};
use crate::backend::{self, Backend};
use crate::broker::{self, Broker, Tag};
use crate::clock;
use crate::conn::{Errand, Link, Patience, refusal};
use crate::wire::Events as Envelopes;

/// Largest number of writes in one flush: bounds how long one pipeline occupies Redis.
const BATCH: usize = 1024;

/// So much of a key is said, in characters.
const LONGEST_KEY: usize = 200;

/// How often others get their turn before acks leave alone, and how long they wait for company then.
const TURNS: usize = 3;
const COMPANY: Duration = Duration::from_millis(1);

/// After so long the messages are noted whose acks wait for what cannot be sent: they are ours still.
const LONG: Duration = Duration::from_millis(500);

/// The service that sends.
pub(crate) struct Writer {
    broker: Broker,
    backend: Option<Backend>,
    hostname: Arc<str>,
    event_exchange: String,
    metrics: Metrics,
    unheard: Unheard,
    news: News,
}

/// What the consumer loop hears of what was sent.
pub(crate) struct News {
    /// Messages that stay here are in Redis.
    pub stays: mpsc::UnboundedSender<Vec<Tag>>,
    /// A message cannot be sent.
    pub unsent: mpsc::UnboundedSender<Unsent>,
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
    flushed: Vec<oneshot::Sender<()>>,
    /// Keys of results that are told once more.
    again: Vec<Vec<u8>>,
    size: usize,
    bytes: usize,
    matter: usize,
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

/// What Redis said to a pipeline.
#[derive(Default)]
struct Said {
    /// The keys of results that somebody should have heard of, and nobody has.
    unheard: Vec<Vec<u8>>,
    refused: Refused,
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

    fn add(&mut self, (writes, bytes): Handed) {
        self.size += writes.len();
        self.bytes += bytes;
        for write in writes {
            self.matter += usize::from(write.matters());
            match write {
                Out::Broker(write @ (broker::Write::Publish { .. } | broker::Write::Hold { .. })) => {
                    self.publishes.push(write, None);
                }
                Out::Follow(tag, write) => self.publishes.push(write, Some(tag)),
                Out::Broker(write @ (broker::Write::Broadcast { .. } | broker::Write::Reply { .. })) => {
                    self.broadcasts.push(write);
                }
                Out::Broker(write) => self.acks.push(write),
                Out::Early(write) => self.early.push(write),
                Out::Later(follows, write) => self.later.push(write, follows),
                Out::Stay(follows, write) => {
                    if let broker::Write::Hold { tag, .. } = &write {
                        self.stays.push(tag.clone());
                    }
                    self.publishes.push(write, follows);
                }
                Out::Backend(write @ (backend::Write::ChordSize { .. } | backend::Write::Group { .. })) => {
                    self.groups.push(write);
                }
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
        Self {
            broker,
            backend,
            hostname,
            event_exchange,
            metrics,
            unheard: Unheard::default(),
            news,
        }
    }

    /// Runs until every outbox is gone and everything has been sent.
    pub(crate) async fn run(mut self, mut inbox: Inbox) {
        let mut owed = Owed::default();
        // What stays here and starts when that has gone.
        let mut later = Vec::new();
        loop {
            let mut batch = Batch::default();
            tokio::select! {
                biased;
                handed = inbox.next() => match handed {
                    Some(handed) => batch.add(handed),
                    None if owed.is_empty() => return,
                    None => {}
                },
                () = self.unheard.due() => {}
                () = std::future::ready(()), if !owed.is_empty() => {}
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
            if none_has_begun && batch.has_only_acks() && owed.has_only_acks() && later.is_empty() {
                tokio::select! {
                    biased;
                    Some(handed) = inbox.next() => batch.add(handed),
                    () = self.unheard.due() => {}
                    () = tokio::time::sleep(COMPANY) => {}
                }
                batch.fill(&mut inbox);
            }
            let began = clock::instant();
            batch.again = self.unheard.take_due(began);
            // Then what waits for acks waits for those with the next flush.
            let callbacks = owed.later.writes.len();
            inbox.sends(owed.acks.iter().chain(&batch.early).chain(&batch.acks));
            let unheard = {
                let mut flush = pin!(self.flush(&mut batch, &mut owed));
                loop {
                    tokio::select! {
                        biased;
                        unheard = &mut flush => break unheard,
                        () = tokio::time::sleep(LONG) => inbox.note(),
                    }
                }
            };
            self.unheard.add(unheard, clock::instant());
            self.broker.writer().carried(batch.bytes);
            if let Some(backend) = &self.backend {
                backend.link().carried(batch.bytes);
            }
            self.metrics.flushed(clock::instant().saturating_duration_since(began));
            // What goes with the next flush is still to be written.
            let written = (batch.matter + callbacks).saturating_sub(owed.later.writes.len());
            inbox.sent(batch.size, batch.bytes, written);
            if callbacks == 0 {
                self.tell_stays(&mut later);
            }
            later.append(&mut batch.stays);
            if owed.is_empty() {
                self.tell_stays(&mut later);
            }
            for done in batch.flushed {
                let _ = done.send(());
            }
        }
    }

    /// Sends a batch, and what the last one owed; the keys of results that nobody has heard of.
    async fn flush(&self, batch: &mut Batch, owed: &mut Owed) -> Vec<Vec<u8>> {
        let mut unheard = Vec::new();
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
        let mut broker_pipe = Pipeline::new();
        if let Some(backend) = &self.backend
            && !batch.groups.is_empty()
        {
            // Before the messages of a header: its members may end before the last of them is sent.
            let mut groups = Pipeline::new();
            backend.append(&mut groups, &batch.groups);
            self.insist_or_say("backend", backend.link(), &groups).await;
        }
        self.broker.append(&mut broker_pipe, &batch.publishes.writes);
        if let Some(backend) = &self.backend
            && backend.looks()
        {
            self.look(backend, &mut batch.results).await;
        }
        let mut acks = std::mem::take(&mut batch.acks);
        match &self.backend {
            Some(backend) if !batch.results.is_empty() => {
                if backend.link().is_same(self.broker.writer()) {
                    backend.append(&mut broker_pipe, &batch.results);
                } else {
                    // Another server: what follows must stand before the result, and the result before the ack.
                    if !broker_pipe.is_empty() {
                        let sent = [(&batch.publishes, 0)];
                        let said = self.insist("broker", self.broker.writer(), &broker_pipe, &sent).await;
                        let publishes = std::mem::take(&mut batch.publishes);
                        let rest = self
                            .give_up((&publishes, 0), said.refused, &mut acks, &mut batch.stays)
                            .await;
                        self.say_refused(&broker_pipe, &rest);
                        broker_pipe = Pipeline::new();
                        self.tell_stays(&mut batch.stays);
                    }
                    let mut backend_pipe = Pipeline::new();
                    backend.append(&mut backend_pipe, &batch.results);
                    unheard = self.insist_or_say("backend", backend.link(), &backend_pipe).await;
                }
            }
            _ => {}
        }
        // Redis may refuse what is in the pipe now, and do acks behind it.
        let must_wait = !broker_pipe.is_empty() || !batch.later.writes.is_empty();
        let Owed {
            later: callbacks,
            acks: mut due,
        } = std::mem::take(owed);
        if !callbacks.writes.is_empty() {
            owed.acks = std::mem::take(&mut due);
        }
        owed.later = std::mem::take(&mut batch.later);
        due.append(&mut batch.early);
        if must_wait {
            owed.acks.append(&mut acks);
        } else {
            due.append(&mut acks);
        }
        self.broker.append(&mut broker_pipe, &batch.broadcasts);
        let behind = broker_pipe.len();
        self.broker.append(&mut broker_pipe, &callbacks.writes);
        self.broker.append(&mut broker_pipe, &due);
        let sent = [(&batch.publishes, 0), (&callbacks, behind)];
        let said = self.insist("broker", self.broker.writer(), &broker_pipe, &sent).await;
        unheard.extend(said.unheard);
        if !said.refused.is_empty() {
            let (acks, stays) = (&mut owed.acks, &mut batch.stays);
            let rest = self.give_up((&batch.publishes, 0), said.refused, acks, stays).await;
            let rest = self.give_up((&callbacks, behind), rest, acks, stays).await;
            self.say_refused(&broker_pipe, &rest);
        }
        if let Some(backend) = &self.backend
            && !batch.again.is_empty()
        {
            let mut pipe = Pipeline::new();
            backend.append_again(&mut pipe, &batch.again);
            self.insist_or_say("backend", backend.link(), &pipe).await;
        }
        unheard
    }

    /// What stays here is in Redis.
    fn tell_stays(&self, stays: &mut Vec<Tag>) {
        if !stays.is_empty() {
            // A loop that is gone has ended the worker.
            let _ = self.news.stays.send(std::mem::take(stays));
        }
    }

    /// Compressed results are looked at before they are replaced.
    async fn look(&self, backend: &Backend, results: &mut Vec<backend::Write>) {
        while let Err(error) = backend.look(results).await {
            if !error.is_transient() {
                error!(%error, "results that are there cannot be looked at");
                return;
            }
            backend.link().ready().await;
        }
    }

    /// Others compress results.
    fn notice(&self) {
        if let Some(backend) = &self.backend {
            backend.look_from_now_on();
        }
    }

    /// Sends a pipeline until Redis has taken it, but for what it refuses for good; and which messages stand in it from
    /// where on.
    async fn insist(&self, server: &'static str, link: &Link, pipe: &Pipeline, sent: &[(&Messages, usize)]) -> Said {
        let mut said = Said::default();
        if pipe.is_empty() {
            return said;
        }
        let (mut errand, patience) = (Errand::new(pipe), Patience::default());
        let mut is_looked_for = false;
        loop {
            let began = clock::instant();
            match link.run(&mut errand, &patience).await {
                Ok(()) => {
                    self.metrics
                        .wrote(server, clock::instant().saturating_duration_since(began));
                    break;
                }
                Err(error) if error.is_transient() => {
                    if errand.is_unsure() && !std::mem::replace(&mut is_looked_for, true) {
                        for (messages, at) in sent {
                            messages.repeat(*at, &mut errand, &self.broker);
                        }
                    }
                    link.ready().await;
                }
                Err(error) => {
                    let why = error.to_string();
                    said.refused
                        .extend(errand.left().iter().map(|place| (*place, why.clone())));
                    break;
                }
            }
        }
        for (place, reply) in errand.into_answers().into_iter().enumerate() {
            match reply {
                redis::Value::ServerError(error) if said.refused.iter().all(|(refused, _)| *refused != place) => {
                    said.refused.push((place, refusal(error)));
                }
                // A script met a compressed result that nobody had looked at.
                redis::Value::BulkString(word) if word == b"opaque" => self.notice(),
                // Dead letters had to make room (`bury.lua`).
                redis::Value::Array(words) if begins_with(&words, b"full") => {
                    if let Some(redis::Value::Int(letters)) = words.get(1) {
                        self.broker.note_pushed_out(letters.unsigned_abs());
                    }
                }
                // Results that nobody has heard of (`store.lua`).
                redis::Value::Array(words) if begins_with(&words, b"unheard") => {
                    said.unheard
                        .extend(words.into_iter().skip(1).filter_map(|key| match key {
                            redis::Value::BulkString(key) => Some(key),
                            _ => None,
                        }));
                }
                _ => {}
            }
        }
        for _ in &said.refused {
            self.metrics.write_refused();
        }
        said
    }

    /// The same for what nothing hangs on: what is refused is only said. The keys of results that nobody has heard of.
    async fn insist_or_say(&self, server: &'static str, link: &Link, pipe: &Pipeline) -> Vec<Vec<u8>> {
        let said = self.insist(server, link, pipe, &[]).await;
        self.say_refused(pipe, &said.refused);
        said.unheard
    }

    fn say_refused(&self, pipe: &Pipeline, refused: &Refused) {
        for (place, why) in refused {
            let what = pipe.cmd_iter().nth(*place).map(described).unwrap_or_default();
            error!(error = %why, "Redis refused a write: {what}");
        }
    }

    /// Keeps a message as a dead letter; why that was refused.
    pub(super) async fn bury(&self, letter: broker::Letter) -> Option<String> {
        let mut pipe = Pipeline::with_capacity(1);
        self.broker.append(&mut pipe, &[broker::Write::Letter(letter.into())]);
        let said = self.insist("broker", self.broker.writer(), &pipe, &[]).await;
        said.refused.into_iter().next().map(|(_, why)| why)
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.broker
    }

    pub(super) fn tell_unsent(&self, unsent: Unsent) {
        // A loop that is gone has ended the worker.
        let _ = self.news.unsent.send(unsent);
    }
}

/// A command and its first key.
fn described(command: &redis::Cmd) -> String {
    let mut words = command.args_iter().filter_map(|word| match word {
        redis::Arg::Simple(word) => Some(String::from_utf8_lossy(word)),
        _ => None,
    });
    let name = words.next().unwrap_or_default();
    // The key of a script stands behind its name and the number of its keys.
    let key = words.nth(if name == "EVALSHA" { 2 } else { 0 }).unwrap_or_default();
    let key: String = key.chars().take(LONGEST_KEY).collect();
    format!("{name} {key}")
}

/// Whether it is the answer of a script that has more to say, and begins with this word.
fn begins_with(words: &[redis::Value], first: &[u8]) -> bool {
    matches!(words.first(), Some(redis::Value::BulkString(word)) if word == first)
}
