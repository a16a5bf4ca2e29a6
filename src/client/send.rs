//! Sending.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::time::Duration;

use redis::Pipeline;

use super::{Applied, Call, Client, Error, Pending};
use crate::backend;
use crate::broker::Write;
use crate::canvas::{GroupWrite, Parent, Plan, Planner};
use crate::clock;
use crate::conn::{Errand, Link, Patience};
use crate::trace::{Kind, Span, Trace, carried};
use crate::wire::{CallOptions, Outbound, Security, Signature};

/// `task_publish_retry_policy`: how often, and the pause before each.
const RETRIES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(400)];

/// Calls that go together, at most: bounds how long one pipeline occupies Redis, and what waits here.
const BATCH: usize = 500;
/// The same in bytes; one larger call goes alone.
const BATCH_BYTES: usize = 1 << 20;

/// The messages of some calls.
#[derive(Default)]
struct Batch {
    writes: Vec<Write>,
    calls: usize,
    bytes: usize,
    /// They end when everything was sent.
    spans: Vec<Span>,
}

/// What is written for one call.
pub(crate) struct Message {
    /// The message itself.
    pub message: Write,
    /// The queue that was meant, to be declared.
    pub queue: Option<String>,
    /// What monitors are told of it.
    pub event: Option<Write>,
    bytes: usize,
}

impl Client {
    /// Sends a call; when this returns, Redis has it.
    ///
    /// # Errors
    /// An argument is not JSON, or Redis cannot be reached. A call whose confirmation was lost is sent again under the
    /// same id, as Celery's producers do (`task_publish_retry`), and may be there twice; [`send_once`](Self::send_once)
    /// sends nothing twice.
    pub async fn send(&self, call: Call) -> Result<Pending, Error> {
        let id = call.id().to_owned();
        self.send_all([call]).await?;
        Ok(self.result(id))
    }

    /// Sends many calls; when this returns, Redis has them. They leave some hundred at a time, and while those are on
    /// their way the next are made.
    ///
    /// # Errors
    /// See [`send`](Self::send); none or some of them may have been sent. Of several that go together and whose
    /// confirmation was lost none is sent again by itself: all might be there twice.
    pub async fn send_many<C: Borrow<Call>>(&self, calls: impl IntoIterator<Item = C>) -> Result<Vec<Pending>, Error> {
        let mut sent = Vec::new();
        self.send_all(
            calls
                .into_iter()
                .inspect(|call| sent.push(self.result(call.borrow().id()))),
        )
        .await?;
        Ok(sent)
    }

    /// [`send_many`](Self::send_many) for any number of calls: remembers none, and takes the next ones from `calls`
    /// only as fast as Redis does. How many there were.
    ///
    /// # Errors
    /// See [`send`](Self::send); none or some of them may have been sent.
    pub async fn send_all<C: Borrow<Call>>(&self, calls: impl IntoIterator<Item = C>) -> Result<usize, Error> {
        let mut calls = calls.into_iter();
        let mut batch = self.batch(&mut calls)?;
        let mut count = 0;
        while batch.calls > 0 {
            let sending = self.write(&batch.writes, Twice::of(batch.calls));
            let (sent, next) = tokio::join!(sending, async { self.batch(&mut calls) });
            sent?;
            count += batch.calls;
            batch = next?;
        }
        Ok(count)
    }

    /// Sends a call, unless the broker remembers that it was sent.
    pub(super) async fn publish_once(&self, call: &Call) -> Result<(), Error> {
        let batch = self.batch(&mut std::iter::once(call))?;
        let is_message = |write: &Write| matches!(write, Write::Publish { .. });
        let (messages, others): (Vec<Write>, Vec<Write>) = batch.writes.into_iter().partition(is_message);
        self.write(&others, Twice::Allowed).await?;
        self.broker.publish_once(call.id(), &messages).await?;
        Ok(())
    }

    /// The messages of the next calls, as many as go together.
    fn batch<C: Borrow<Call>>(&self, calls: &mut impl Iterator<Item = C>) -> Result<Batch, Error> {
        let mut batch = Batch::default();
        let mut planner = self.planner(None);
        while batch.calls < BATCH && batch.bytes < BATCH_BYTES {
            let Some(call) = calls.next() else { break };
            let call = call.borrow();
            if let Some(wrong) = &call.wrong {
                return Err(Error::Argument(wrong.clone()));
            }
            planner.apply(call.signature.clone(), &[], CallOptions::default());
            batch.spans.extend(traced(&mut planner.plan.sends));
            for outbound in planner.plan.sends.drain(..) {
                batch.bytes += self.add_message(&outbound, &mut batch.writes)?;
            }
            planner.plan.children.clear();
            batch.calls += 1;
        }
        Ok(batch)
    }

    /// Applies a signature: a call, a chain, a group or a chord.
    ///
    /// # Errors
    /// See [`send`](Self::send); an empty chain has nothing to apply.
    pub async fn apply(&self, signature: Signature) -> Result<Applied, Error> {
        self.apply_for(None, signature).await
    }

    /// Applies a signature on behalf of a task.
    pub(crate) async fn apply_for(&self, parent: Option<&Parent>, signature: Signature) -> Result<Applied, Error> {
        let mut planner = self.planner(parent);
        let handle = planner
            .apply(signature, &[], CallOptions::default())
            .ok_or_else(|| Error::Argument("an empty chain has nothing to run".into()))?;
        let children = std::mem::take(&mut planner.plan.children);
        // What a task sends is never left out: nobody could tell whether to send it again.
        let twice = parent.map_or_else(|| Twice::of(planner.plan.sends.len()), |_| Twice::Allowed);
        self.publish(planner.plan, twice).await?;
        Ok(Applied::new(self.clone(), handle, children))
    }

    /// What [`send`](Self::send) would write for a call, for a script that does more than that.
    ///
    /// # Errors
    /// An argument is not JSON, or its queue is not to be used.
    pub(crate) fn message(&self, call: &Call) -> Result<Message, Error> {
        if let Some(wrong) = &call.wrong {
            return Err(Error::Argument(wrong.clone()));
        }
        let mut planner = self.planner(None);
        planner.apply(call.signature.clone(), &[], CallOptions::default());
        let outbound = planner.plan.sends.first();
        let outbound = outbound.ok_or_else(|| Error::Argument("there is nothing to send".into()))?;
        self.made(outbound)
    }

    /// The message of a call, signed where this client signs.
    fn made(&self, outbound: &Outbound) -> Result<Message, Error> {
        let mut parcel = outbound.parcel(clock::now(), self.results.origin(), &self.routes)?;
        parcel.envelope = self.signed(parcel.envelope)?;
        let (bytes, queue) = (parcel.envelope.len(), parcel.queue.take());
        let message = parcel.into();
        let event = self.sent_events.as_ref().and_then(|sent| sent.of(&message, |_| None));
        Ok(Message {
            message,
            queue,
            event,
            bytes,
        })
    }

    fn planner<'a>(&'a self, parent: Option<&'a Parent>) -> Planner<'a> {
        Planner::new(parent, self.results.oid())
            .with_priorities(self.priorities)
            .reaching(self.reach)
    }

    /// What is sent is signed, where this client signs.
    pub(super) fn signed(&self, envelope: Vec<u8>) -> Result<Vec<u8>, Error> {
        Security::signed(self.signer.as_deref(), envelope).map_err(Error::Sign)
    }

    async fn publish(&self, mut plan: Plan, twice: Twice) -> Result<(), Error> {
        // They end when everything was sent.
        let _spans = traced(&mut plan.sends);
        let mut groups = Vec::with_capacity(plan.groups.len());
        for write in plan.groups {
            groups.push(group_write(write)?);
        }
        if !groups.is_empty() {
            let backend = self.backend.as_ref().ok_or(Error::NoBackend)?;
            let mut pipe = Pipeline::with_capacity(groups.len());
            backend.append(&mut pipe, &groups);
            insist(backend.link(), &pipe, Twice::Allowed).await?;
        }
        let mut writes = Vec::with_capacity(plan.sends.len() + 1);
        for outbound in &plan.sends {
            self.add_message(outbound, &mut writes)?;
        }
        self.write(&writes, twice).await
    }

    /// Appends the message of a call, and what goes with it. How large it is.
    fn add_message(&self, outbound: &Outbound, writes: &mut Vec<Write>) -> Result<usize, Error> {
        let made = self.made(outbound)?;
        if let Some(queue) = made.queue.as_deref().filter(|queue| self.results.declare(queue)) {
            writes.push(Write::Declare(queue.into()));
        }
        writes.push(made.message);
        writes.extend(made.event);
        Ok(made.bytes)
    }

    async fn write(&self, writes: &[Write], twice: Twice) -> Result<(), Error> {
        if writes.is_empty() {
            // An empty group.
            return Ok(());
        }
        let mut pipe = Pipeline::with_capacity(writes.len());
        self.broker.append(&mut pipe, writes);
        Ok(insist(self.broker.writer(), &pipe, twice).await?)
    }
}

/// Lets messages carry the trace they are sent in on: that of the task that sends them, or of the code around. Where
/// spans are made each has one of its own, as OpenTelemetry's instrumentation of Celery does.
fn traced(sends: &mut [Outbound]) -> Vec<Span> {
    let around = Trace::current();
    let mut spans = Vec::new();
    for send in sends {
        let of_task = send.carried.as_deref().and_then(Trace::of);
        let parent = around.as_ref().or(of_task.as_ref());
        let text = |text: &str| text.to_owned().into();
        let span = Span::begin(
            format!("apply_async/{}", send.task),
            Kind::Producer,
            parent,
            vec![
                ("celery.action", text("apply_async")),
                ("celery.task_name", text(&send.task)),
                ("messaging.system", text("redis")),
                ("messaging.message.id", text(&send.id)),
            ],
        );
        match &span {
            Some(span) => send.carried = carried(Some(span.trace())),
            None if send.carried.is_none() => send.carried = carried(around.as_ref()),
            None => {}
        }
        spans.extend(span);
    }
    spans
}

/// What is written down for the groups of a plan.
pub(crate) fn group_write(write: GroupWrite) -> Result<backend::Write, serde_json::Error> {
    Ok(match write {
        GroupWrite::Size { group, size } => backend::Write::ChordSize { group, size },
        GroupWrite::Results { handle } => backend::Write::Group {
            record: serde_json::to_vec(&BTreeMap::from([("result", &handle)]))?.into(),
            group: handle.id,
        },
    })
}

/// Whether something may be done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Twice {
    /// It comes to the same, or is better than not at all.
    Allowed,
    /// Never: what the server may have done without answering is the caller's to decide.
    Never,
}

impl Twice {
    /// One message is sent again, as Celery does. Many that go together are not: all of them may be there.
    fn of(messages: usize) -> Self {
        if messages > 1 { Self::Never } else { Self::Allowed }
    }
}

/// Sends a pipeline, a few times if need be; what the server took is not sent again.
pub(super) async fn insist(link: &Link, pipe: &Pipeline, twice: Twice) -> Result<(), crate::conn::Error> {
    let (mut retries, mut errand) = (RETRIES.iter(), Errand::new(pipe));
    loop {
        let error = match link.run(&mut errand, &Patience::default()).await {
            Ok(()) => {
                let refused = errand.into_answers().into_iter().find_map(|answer| match answer {
                    redis::Value::ServerError(error) => Some(error),
                    _ => None,
                });
                return refused.map_or(Ok(()), |error| {
                    Err(crate::conn::Error::Refused(format!(
                        "Redis refused the message: {error}"
                    )))
                });
            }
            Err(error) => error,
        };
        if errand.is_unsure() && twice == Twice::Never {
            return Err(match error {
                crate::conn::Error::Transient(text) => {
                    crate::conn::Error::Transient(format!("{text}; what was sent may have arrived"))
                }
                other => other,
            });
        }
        match retries.next() {
            Some(pause) if error.is_transient() => {
                tokio::time::sleep(*pause).await;
                let _ = tokio::time::timeout(Duration::from_secs(1), link.ready()).await;
            }
            _ => return Err(error),
        }
    }
}
