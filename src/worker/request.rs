//! The life of a task in this worker, and the only place that decides what happens to it.
//!
//! [`State::step`] is pure: from a state and an input it makes the next state and appends effects. It reads no clock,
//! knows no Redis and awaits nothing. The delivery moves by value through the states into exactly one
//! [`Effect::Early`], [`Effect::Ack`], [`Effect::Part`], [`Effect::Fallout`], [`Effect::Requeue`] or
//! [`Effect::Forget`], so that it cannot be spent twice. The order of the effects is the guarantee: a retry is
//! published and a result stored before a late ack; an early ack comes before the start.

mod effect;
mod ending;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

pub(crate) use effect::{Content, Done, Effect, End, Failing, Happening};

use self::ending::Discard;
use super::unique::Unique;
use crate::broker::Tag;
use crate::canvas::{Parent, Reach};
use crate::clock::{Instant, Timestamp};
use crate::task::{self, Entry, Failure};
use crate::trace::{Trace, carried};
use crate::wire::{Embed, Json, Message, State as Stored};

/// What ends a process that nobody named a signal for.
pub(crate) const SIGTERM: i32 = nix::sys::signal::Signal::SIGTERM as i32;

/// A claim on a message in `unacked`, with its share of the prefetch count, which comes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub tag: Tag,
    pub queue: Arc<str>,
    pub credit: Option<OwnedSemaphorePermit>,
    /// Why nobody gets it any more: when it is done with, its message goes to the dead letters.
    pub worn_out: Option<Box<str>>,
}

impl Delivery {
    pub(crate) fn new(tag: Tag, queue: Arc<str>, credit: Option<OwnedSemaphorePermit>) -> Self {
        let worn_out = None;
        Self {
            tag,
            queue,
            credit,
            worn_out,
        }
    }

    /// As one that waits for a time: it does not use up the prefetch count (P-095), as long as more may wait.
    fn waits(self, waiting: Waiting) -> Self {
        let credit = match waiting {
            Waiting::Nothing => None,
            Waiting::Place(place) => Some(place),
            Waiting::Prefetch => self.credit,
        };
        Self { credit, ..self }
    }
}

/// A task that this worker has accepted: all that does not change while it lives.
pub(crate) struct Request {
    pub id: Arc<str>,
    pub entry: Entry,
    pub policy: task::Options,
    pub message: Arc<Message>,
    /// What follows the task; `None` when nothing does.
    pub embed: Option<Arc<Embed>>,
    /// Of several such messages one is to run.
    pub unique: Option<Box<Unique>>,
    /// It was delivered before, and is not to run again when it succeeded then (`worker_deduplicate_successful_tasks`).
    pub may_be_done: bool,
    /// Another worker had it and was lost.
    pub restored: bool,
    /// Which delivery it is.
    pub deliveries: u32,
    /// No other delivery is allowed.
    pub is_last: bool,
    /// How far its error callbacks reach into what is put in its place.
    pub reach: Reach,
    /// The envelope as it came: what goes back to the queue or into a retry.
    pub raw: Bytes,
    pub eta: Option<Timestamp>,
    pub expires: Option<Timestamp>,
}

/// Names one start of a request, so that what an abandoned run says later is not taken for the answer.
pub(crate) type RunId = u64;

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Eta,
    RateLimit,
    /// The end of another that has the same key.
    Unique,
}

/// Where a request is.
#[derive(Debug)]
pub(crate) enum State {
    /// Just accepted.
    Received { delivery: Delivery },
    /// Waiting for a time, or for another.
    Held { delivery: Delivery, why: Hold },
    /// Waiting for a place to run.
    Reserved { delivery: Delivery },
    /// Running; without a delivery when it was acknowledged early, or when the lease was lost.
    Running {
        unacked: Option<Delivery>,
        run: RunId,
        since: Instant,
    },
    /// Over.
    Done,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Success(Box<RawValue>),
    Failed(Failure),
    /// It did not run: an earlier delivery succeeded with this result, and may have died before what follows was sent.
    Done {
        result: Json,
        followed: bool,
    },
    /// It did not run: an earlier delivery succeeded in this very worker, which has done all that follows.
    Known,
    /// Ended by the hard time limit.
    HardLimit(Duration),
    /// Ended by the soft time limit.
    SoftLimit,
    /// The task's code panicked.
    Panicked(String),
    /// Its process ended before it did; how.
    Lost(String),
}

/// What can happen to a request.
#[derive(Debug)]
pub(crate) enum Input {
    /// It was accepted.
    Received { revoked: bool, waiting: Waiting },
    /// The time it waited for has come.
    Due { revoked: bool },
    /// Its task type may not start yet.
    RateLimited,
    /// Another has its key and runs.
    Waits { waiting: Waiting },
    /// It does not run: another with its key came to this.
    Other { outcome: Outcome },
    /// There is a place to run.
    Slot {
        run: RunId,
        since: Instant,
        revoked: bool,
        /// The process it runs in.
        pid: u32,
    },
    /// Its run ended.
    Ended {
        run: RunId,
        outcome: Outcome,
        runtime: Duration,
    },
    /// Its run ended without an end of the task: it is to go on at that time.
    PutOff {
        run: RunId,
        until: Timestamp,
        waiting: Waiting,
    },
    /// Somebody revoked it; with `terminate`, running or not.
    Revoked { terminate: Option<i32> },
    /// The connection to the broker was lost, and what is not acknowledged is not to go on without it
    /// (`worker_cancel_long_running_tasks_on_connection_loss`).
    ConnectionLost,
    /// The worker stops.
    Stop { cold: bool },
    /// Somebody else took its message while we could not be reached.
    LeaseLost,
}

/// What a message uses up while it waits for its ETA.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// Nothing: as many may wait as there are.
    Nothing,
    /// A place among those that may wait (`worker_eta_task_limit`).
    Place(OwnedSemaphorePermit),
    /// Its share of the prefetch count, like one that runs: no more may wait.
    Prefetch,
}

impl State {
    /// The next state; what follows is appended to `effects`.
    pub(crate) fn step(self, input: Input, request: &Request, now: Timestamp, effects: &mut Vec<Effect>) -> Self {
        match (self, input) {
            (Self::Received { delivery }, Input::Received { revoked, waiting }) => {
                if let Some(done) = request.discard(revoked, now) {
                    return done.apply(delivery, request, effects);
                }
                effects.push(Effect::Emit(Happening::Received));
                match request.eta {
                    Some(eta) if eta > now => {
                        effects.push(Effect::WaitForEta(eta));
                        Self::Held {
                            delivery: delivery.waits(waiting),
                            why: Hold::Eta,
                        }
                    }
                    _ => {
                        effects.push(Effect::Enqueue);
                        Self::Reserved { delivery }
                    }
                }
            }
            (Self::Held { delivery, .. }, Input::Due { revoked }) => match request.discard(revoked, now) {
                Some(done) => done.apply(delivery, request, effects),
                None => {
                    effects.push(Effect::Enqueue);
                    Self::Reserved { delivery }
                }
            },
            (Self::Reserved { delivery }, Input::RateLimited) => Self::Held {
                delivery,
                why: Hold::RateLimit,
            },
            (Self::Reserved { delivery }, Input::Waits { waiting }) => Self::Held {
                delivery: delivery.waits(waiting),
                why: Hold::Unique,
            },
            (Self::Reserved { delivery } | Self::Held { delivery, .. }, Input::Other { outcome }) => {
                match (request.discard(false, now), outcome) {
                    (Some(done), _) => return done.apply(delivery, request, effects),
                    // However often the task may be tried again: that was done.
                    (None, Outcome::Failed(Failure::Fail(exception))) => {
                        request.fail(Some(delivery), exception, effects);
                    }
                    (None, outcome) => request.end(Some(delivery), outcome, Duration::ZERO, now, effects),
                }
                Self::Done
            }
            (
                Self::Reserved { delivery },
                Input::Slot {
                    run,
                    since,
                    revoked,
                    pid,
                },
            ) => {
                if let Some(done) = request.discard(revoked, now) {
                    return done.apply(delivery, request, effects);
                }
                let unacked = if request.policy.acks_late {
                    Some(delivery)
                } else {
                    effects.push(Effect::Early(delivery));
                    None
                };
                effects.push(Effect::Emit(Happening::Started));
                if request.policy.track_started && !request.policy.ignore_result {
                    effects.push(Effect::Store(Stored::Started, Content::Started(pid)));
                }
                effects.push(Effect::Start);
                Self::Running { unacked, run, since }
            }
            (
                Self::Running { unacked, run, .. },
                Input::Ended {
                    run: ended,
                    outcome,
                    runtime,
                },
            ) if run == ended => {
                request.end(unacked, outcome, runtime, now, effects);
                Self::Done
            }
            (
                Self::Running { unacked, run, .. },
                Input::PutOff {
                    run: ended,
                    until,
                    waiting,
                },
            ) if run == ended => match unacked {
                Some(delivery) => {
                    effects.push(Effect::WaitForEta(until));
                    Self::Held {
                        delivery: delivery.waits(waiting),
                        why: Hold::Eta,
                    }
                }
                None => {
                    // Whoever has the message now runs it; one that was acknowledged early is nobody's.
                    if !request.policy.acks_late {
                        effects.push(Effect::Retry(until, None));
                    }
                    Self::Done
                }
            },
            (
                Self::Running { unacked, run: _, .. },
                Input::Revoked {
                    terminate: Some(signum),
                },
            ) => {
                effects.push(Effect::Cancel(signum));
                let done = Discard::Terminated(signum);
                done.settle(unacked, request, effects)
            }
            (
                Self::Received { delivery } | Self::Held { delivery, .. } | Self::Reserved { delivery },
                Input::Revoked { .. },
            ) => Discard::Revoked.apply(delivery, request, effects),
            (
                Self::Received { delivery } | Self::Held { delivery, .. } | Self::Reserved { delivery },
                Input::Stop { .. },
            ) => {
                effects.push(Effect::Requeue(delivery, End::Untouched));
                Self::Done
            }
            (Self::Running { unacked, run: _, .. }, Input::Stop { cold: true }) => {
                // With late acks somebody runs it again, also if its lease was lost.
                let is_late = unacked.is_some() || request.policy.acks_late;
                request.cancel(unacked, !is_late, effects);
                Self::Done
            }
            (
                Self::Running {
                    unacked: Some(delivery),
                    ..
                },
                Input::ConnectionLost,
            ) => {
                request.cancel(Some(delivery), true, effects);
                Self::Done
            }
            (
                Self::Received { delivery } | Self::Held { delivery, .. } | Self::Reserved { delivery },
                Input::LeaseLost,
            ) => {
                effects.push(Effect::Forget(delivery));
                Self::Done
            }
            (Self::Running { unacked, run, since }, Input::LeaseLost) => {
                // It runs to its end: whoever is first stores the result, and SUCCESS stays.
                effects.extend(unacked.map(Effect::Forget));
                Self::Running {
                    unacked: None,
                    run,
                    since,
                }
            }
            // Late or out of place: an end of an abandoned run, a timer of a request that is gone.
            (state, _) => state,
        }
    }

    /// The tag of the message, while it is ours.
    pub(crate) fn tag(&self) -> Option<&Tag> {
        match self {
            Self::Received { delivery } | Self::Held { delivery, .. } | Self::Reserved { delivery } => {
                Some(&delivery.tag)
            }
            Self::Running { unacked, .. } => unacked.as_ref().map(|delivery| &delivery.tag),
            Self::Done => None,
        }
    }

    /// The queue of the message, while that is ours.
    pub(crate) fn queue(&self) -> Option<&str> {
        match self {
            Self::Received { delivery } | Self::Held { delivery, .. } | Self::Reserved { delivery } => {
                Some(&delivery.queue)
            }
            Self::Running { unacked, .. } => unacked.as_ref().map(|delivery| &*delivery.queue),
            Self::Done => None,
        }
    }

    /// Whether it still has something to do.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }
}

impl Request {
    /// As the sender of what follows it, in the trace of its run.
    pub(crate) fn as_parent(&self, trace: Option<&Trace>) -> Parent {
        let headers = &self.message.headers;
        let from = match trace {
            None if !headers.extra.is_empty() => Trace::of(&headers.extra),
            _ => None,
        };
        Parent {
            id: self.id.to_string(),
            root_id: headers.root().to_owned(),
            priority: self.message.properties.own_priority(),
            carried: carried(trace.or(from.as_ref())),
        }
    }

    /// The facts of a run.
    pub(crate) fn details(&self, hostname: Arc<str>, deadline: Option<Instant>, trace: Option<Trace>) -> task::Details {
        let headers = &self.message.headers;
        task::Details {
            id: self.id.clone(),
            name: self.entry.name.clone(),
            hostname,
            retries: headers.retries,
            root_id: headers.root_id.clone(),
            parent_id: headers.parent_id.clone(),
            group: headers.group.clone(),
            redelivered: headers.redelivered || self.message.properties.redelivered(),
            deliveries: self.deliveries,
            deadline,
            message: Some(self.message.clone()),
            embed: self.embed.clone(),
            hides: self.entry.hides.clone(),
            trace,
            envelope: Some(self.raw.clone()),
        }
    }

    /// The task's hard and soft limit: the message's own come first (P-093).
    pub(crate) fn limits(&self) -> (Option<Duration>, Option<Duration>) {
        let own = self.message.headers.timelimit;
        (
            own.hard.or(self.policy.time_limit),
            own.soft.or(self.policy.soft_time_limit),
        )
    }
}
