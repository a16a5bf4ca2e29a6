//! Counts the members of chords that have come to their end, and sends the body when all have.
//!
//! A member's message is acknowledged only after it was counted, and the message of the one that completes the chord
//! only after the body was sent: a worker that dies in between is followed by another that counts again. Counting is
//! idempotent, in Redis, and shared with Python workers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::effects::Scribe;
use super::follow::Fallout;
use super::outbox::{Out, Outbox};
use super::request::{Delivery, Request};
use super::services::{ServiceKind, spawn};
use super::stop::Stop;
use crate::backend::{Backend, Claim, Counted, Error, Part};
use crate::broker::{self, Broker};
use crate::canvas::{Parent, ResultNode};
use crate::clock;
use crate::conn::{Link, Patience};
use crate::wire::{Exception, Json, Signature, State, json};

/// Parts counted in one round trip.
const BATCH: usize = 256;
/// Pause between two looks at a chord that another worker is about to end.
const LOOK: Duration = Duration::from_secs(1);

/// A member of a chord's header that has come to its end.
pub(crate) struct Member {
    pub part: Part,
    /// The body of the chord.
    pub body: Signature,
    /// The member, on whose behalf the body is sent.
    pub parent: Parent,
    /// What the member has sent already; `None` where Celery does not know.
    pub children: Option<Vec<ResultNode>>,
    /// What is done with its message, if that is still to do.
    pub last: Option<Last>,
}

/// A message that is kept until all that hangs on it is accounted for, and what is done with it then.
pub(crate) struct Last {
    pub delivery: Delivery,
    pub write: broker::Write,
}

impl Last {
    /// It is acknowledged.
    pub(crate) fn ack(delivery: Delivery) -> Self {
        let write = broker::Write::Ack(delivery.tag.clone());
        Self { delivery, write }
    }

    /// That of a request whose end is written down: acknowledged, or kept where nobody gets it any more.
    pub(crate) fn of(delivery: Delivery, request: &Request) -> Self {
        let Some(reason) = &delivery.worn_out else {
            return Self::ack(delivery);
        };
        error!(task.id = %request.id, "the message of task {} goes to the dead-letter list: {reason}", request.id);
        let write = broker::Write::Dead {
            tag: delivery.tag.clone(),
            queue: delivery.queue.clone(),
            raw: request.raw.clone(),
            reason: reason.as_ref().into(),
        };
        Self { delivery, write }
    }

    /// That is done now.
    pub(crate) fn write(self) -> Out {
        Out::Broker(self.write)
    }
}

/// The member is accounted for.
pub(crate) struct Joined {
    pub last: Option<Last>,
    /// Members of other chords that failed with it, and error callbacks that are to be called.
    pub fallout: Fallout,
    /// As of the member that completed the chord ([`Done::in_task`](super::request::Done::in_task)).
    pub in_task: bool,
    /// On whose behalf.
    pub parent: Parent,
}

/// The service that counts.
pub(crate) struct Joiner {
    pub scribe: Arc<Scribe>,
    pub broker: Broker,
    pub backend: Option<Backend>,
    pub outbox: Outbox,
    pub members: mpsc::UnboundedReceiver<Member>,
    pub joined: mpsc::UnboundedSender<Joined>,
    pub stop: Stop,
}

/// What one join needs.
#[derive(Clone)]
struct Join {
    scribe: Arc<Scribe>,
    broker: Broker,
    backend: Backend,
    outbox: Outbox,
    joined: mpsc::UnboundedSender<Joined>,
    stop: Stop,
}

impl Joiner {
    /// Runs until the consumer loop is gone.
    pub(crate) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.members.recv_many(&mut batch, BATCH).await > 0 {
            let Some(backend) = &self.backend else {
                for member in batch.drain(..) {
                    error!("a chord needs a result backend: its body is not sent");
                    report(&self.joined, member, Fallout::default());
                }
                continue;
            };
            let join = Join {
                scribe: self.scribe.clone(),
                broker: self.broker.clone(),
                backend: backend.patient(),
                outbox: self.outbox.clone(),
                joined: self.joined.clone(),
                stop: self.stop.clone(),
            };
            // A join may read the results themselves: they are stored first.
            self.outbox.flushed().await;
            join.count(std::mem::take(&mut batch)).await;
        }
    }
}

fn report(joined: &mpsc::UnboundedSender<Joined>, member: Member, fallout: Fallout) {
    // A loop that is gone has given its messages back.
    let _ = joined.send(Joined {
        last: member.last,
        fallout,
        in_task: member.children.is_some(),
        parent: member.parent,
    });
}

impl Join {
    async fn count(&self, members: Vec<Member>) {
        let parts: Vec<Part> = members.iter().map(|member| member.part.clone()).collect();
        let counted = match self.insist(|| self.backend.count_parts(&parts)).await {
            Ok(counted) => counted,
            Err(error) => members.iter().map(|_| Err(error.clone())).collect(),
        };
        for (member, counted) in members.into_iter().zip(counted) {
            match counted {
                Ok(Counted::Taken) if member.last.is_some() => {
                    let join = self.clone();
                    spawn(ServiceKind::Joiner, &self.stop, async move { join.watch(member).await });
                }
                Ok(Counted::Settled | Counted::Taken) => report(&self.joined, member, Fallout::default()),
                Ok(Counted::Mine(claim)) => {
                    let join = self.clone();
                    spawn(
                        ServiceKind::Joiner,
                        &self.stop,
                        async move { join.end(claim, member).await },
                    );
                }
                Err(error) => {
                    let (id, group) = (&member.part.task_id, &member.part.group);
                    error!(task.id = %id, "a member of chord {group} cannot be counted: {error}");
                    report(&self.joined, member, Fallout::default());
                }
            }
        }
    }

    /// Another worker is about to send the body. Should it die, this one does.
    async fn watch(self, member: Member) {
        loop {
            tokio::time::sleep(LOOK).await;
            let counted = self
                .insist(|| self.backend.count_parts(std::slice::from_ref(&member.part)))
                .await;
            match counted.ok().and_then(|mut counted| counted.pop()) {
                Some(Ok(Counted::Taken)) => {}
                Some(Ok(Counted::Mine(claim))) => return self.end(claim, member).await,
                Some(Ok(Counted::Settled) | Err(_)) | None => return report(&self.joined, member, Fallout::default()),
            }
        }
    }

    /// The chord is complete, and it is on this worker to send the body, or to fail it.
    async fn end(self, claim: Claim, member: Member) {
        let failed = match self.results(&claim.group).await {
            Ok(results) => match self.send_body(&claim, &member, &results).await {
                Ok(()) => return report(&self.joined, member, Fallout::default()),
                Err(why) => {
                    let error = Exception::celery("ChordError", format!("Callback error: {why}"));
                    Box::new((error.clone(), error))
                }
            },
            Err(failed) => failed,
        };
        // It may have taken long: another may have the right by now, and ends it.
        if let Ok(None) = self.insist(|| self.backend.keep_claim(&claim)).await {
            warn!("the end of chord {} is left to another worker", claim.group);
            return report(&self.joined, member, Fallout::default());
        }
        let (error, cause) = *failed;
        error!("chord {} failed: {}", claim.group, error.message());
        let body = member.body.clone();
        let mut fallout = self.scribe.fail_body(body, &error, &cause, member.children.as_deref());
        self.send(std::mem::take(&mut fallout.out)).await;
        if let Err(error) = self.insist(|| self.backend.fail_chord(&claim.group)).await {
            warn!(%error, "the size of chord {} stays until it expires", claim.group);
        }
        report(&self.joined, member, fallout);
    }

    /// The body is sent once, whoever dies when. Where broker and results are one server, one script sends it and ends
    /// the chord. Elsewhere, or through an exchange, it is sent under the number of this run of the chord, which the
    /// results know; whoever comes after a worker that died in between finds that it was sent.
    ///
    /// # Errors
    /// It cannot be sent, and why.
    async fn send_body(&self, claim: &Claim, member: &Member, results: &[Json]) -> Result<(), String> {
        let results = [Json::list(results)];
        let body = member.body.clone();
        let sent = self.scribe.apply(&member.parent, body, &results);
        let sent = sent.map_err(|error| error.repr())?;
        let (mut messages, mut before, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for out in sent.out {
            match out {
                Out::Broker(message @ broker::Write::Publish { .. }) => messages.push(message),
                event @ Out::Broker(_) => events.push(event),
                other => before.push(other),
            }
        }
        if !before.is_empty() {
            // The size of a chord in the body, before its header.
            self.send(before).await;
        }
        let ours = match self.lists(&messages) {
            Some(lists) => self.insist(|| self.backend.send_body(claim, &lists)).await,
            None => self.send_apart(claim, &messages).await,
        };
        let ours = ours.map_err(|error| {
            let why = error.to_string();
            let letters = messages.into_iter().filter_map(|message| letter(message, &why));
            self.outbox.send(letters.map(Out::Broker).collect());
            why
        })?;
        if ours {
            self.outbox.send(events);
        } else {
            warn!("the body of chord {} is left to another worker", claim.group);
        }
        Ok(())
    }

    /// The lists that the messages go to, if the results are on the same server and no exchange stands before them.
    fn lists(&self, messages: &[broker::Write]) -> Option<Vec<(String, Bytes)>> {
        if !self.backend.link().is_same(self.broker.writer()) {
            return None;
        }
        let list = |message: &broker::Write| match message {
            broker::Write::Publish {
                exchange,
                routing_key,
                priority,
                envelope,
            } if exchange.is_empty() => Some((self.broker.list(routing_key, *priority), envelope.clone())),
            _ => None,
        };
        messages.iter().map(list).collect()
    }

    /// Whether the claim was still ours.
    async fn send_apart(&self, claim: &Claim, messages: &[broker::Write]) -> Result<bool, Error> {
        let Some(run) = self.insist(|| self.backend.keep_claim(claim)).await? else {
            return Ok(false);
        };
        let patience = Patience::default();
        self.insist_at(self.broker.writer(), || {
            self.broker.publish_once_with(&run, messages, &patience)
        })
        .await?;
        match self.insist(|| self.backend.end_chord(claim)).await {
            // Nobody will ask for it any more.
            Ok(()) => drop(self.broker.forget_once(&run).await),
            Err(error) => warn!(%error, "the parts of chord {} stay until they expire", claim.group),
        }
        Ok(true)
    }

    async fn send(&self, out: Vec<Out>) {
        self.outbox.send(out);
        self.outbox.flushed().await;
    }

    /// The results of the header in order; or the `ChordError` and the failure behind it.
    async fn results(&self, group: &str) -> Result<Vec<Json>, Box<(Exception, Exception)>> {
        let join_error = |cause: Exception| {
            let error = Exception::celery("ChordError", format!("Join error: {}", cause.repr()));
            Box::new((error, cause))
        };
        let unreadable = |error: &dyn std::fmt::Display| join_error(Exception::runtime_error(error.to_string()));
        let nested = self
            .insist(|| self.backend.group(group))
            .await
            .map_err(|error| unreadable(&error))?;
        if let Some(record) = nested {
            let handle = handle(&record).ok_or_else(|| unreadable(&"the handle of the header cannot be read"))?;
            let until = self.backend.options().chord_join_timeout;
            let until = until.and_then(|timeout| clock::instant().checked_add(timeout));
            let children: Vec<&ResultNode> = handle.children.iter().flatten().collect();
            let mut results = vec![Json::null(); children.len()];
            // As Celery asks: for those of groups first, and waits for them. A plain member was counted when its result
            // was stored, so that one without a result has none (`ignore_result`).
            for (at, child) in children.iter().enumerate() {
                if child.children.is_some() {
                    results[at] = self.nested(child, until).await.map_err(join_error)?;
                }
            }
            for (at, child) in children.iter().enumerate() {
                if child.children.is_none()
                    && let Some(end) = self.ended(&child.id).await.map_err(join_error)?
                {
                    results[at] = end.map_err(join_error)?;
                }
            }
            return Ok(results);
        }
        let entries = self
            .insist(|| self.backend.parts(group))
            .await
            .map_err(|error| unreadable(&error))?;
        entries
            .iter()
            .map(|entry| {
                let (_, id, state, value): (Json, String, String, Json) =
                    serde_json::from_str(&json::carried(entry)).map_err(|error| unreadable(&error))?;
                if State::parse(&state).is_failed() {
                    let cause = exception(&value);
                    let text = format!("Dependency {id} raised {}", cause.repr());
                    return Err(Box::new((Exception::celery("ChordError", text), cause)));
                }
                Ok(value)
            })
            .collect()
    }

    /// The result of a member, or the list of those of a group.
    async fn nested(&self, node: &ResultNode, until: Option<clock::Instant>) -> Result<Json, Exception> {
        if let Some(children) = &node.children {
            let mut results = Vec::with_capacity(children.len());
            for child in children {
                results.push(Box::pin(self.nested(child, until)).await?);
            }
            return Ok(Json::list(&results));
        }
        loop {
            match self.ended(&node.id).await? {
                Some(end) => return end,
                None if until.is_some_and(|until| clock::instant() >= until) => {
                    return Err(Exception::celery("TimeoutError", "The operation timed out."));
                }
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// How a task ended, if it has.
    async fn ended(&self, id: &str) -> Result<Option<Result<Json, Exception>>, Exception> {
        #[derive(Deserialize)]
        struct Stored {
            status: String,
            result: Json,
        }
        let record = self.insist(|| self.backend.get(id)).await;
        let record = record.map_err(|error| Exception::runtime_error(error.to_string()))?;
        let stored: Option<Stored> = record.and_then(|record| serde_json::from_str(&json::carried(&record)).ok());
        Ok(
            stored.and_then(|Stored { status, result }| match State::parse(&status) {
                State::Success => Some(Ok(result)),
                state if state.is_failed() => Some(Err(exception(&result))),
                _ => None,
            }),
        )
    }

    /// Asks until Redis has answered.
    async fn insist<T, F: Future<Output = Result<T, Error>>>(&self, ask: impl Fn() -> F) -> Result<T, Error> {
        self.insist_at(self.backend.link(), ask).await
    }

    async fn insist_at<T, F: Future<Output = Result<T, Error>>>(
        &self,
        link: &Link,
        ask: impl Fn() -> F,
    ) -> Result<T, Error> {
        loop {
            match ask().await {
                Err(error) if error.is_transient() => link.ready().await,
                answer => return answer,
            }
        }
    }
}

/// A message of the body that cannot be sent is kept.
fn letter(message: broker::Write, why: &str) -> Option<broker::Write> {
    let broker::Write::Publish {
        exchange,
        routing_key,
        envelope: raw,
        ..
    } = message
    else {
        return None;
    };
    let reason = format!("the body of a chord cannot be sent to {routing_key:?}: {why}");
    let letter = broker::Letter {
        exchange,
        routing_key,
        raw,
        reason,
    };
    Some(broker::Write::Letter(letter.into()))
}

fn handle(record: &str) -> Option<ResultNode> {
    #[derive(Deserialize)]
    struct Stored<'a> {
        #[serde(borrow)]
        result: &'a RawValue,
    }
    let stored: Stored<'_> = serde_json::from_str(record).ok()?;
    ResultNode::read_alone(stored.result.get())
}

fn exception(value: &Json) -> Exception {
    value
        .parse()
        .unwrap_or_else(|_| Exception::builtin("Exception", value.get().to_owned()))
}
