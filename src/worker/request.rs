//! The life of a task in this worker, and the only place that decides what happens to it.
//!
//! [`State::step`] is pure: from a state and an input it makes the next state and appends effects. It reads no clock,
//! knows no Redis and awaits nothing. The delivery moves by value through the states into exactly one
//! [`Effect::Early`], [`Effect::Ack`], [`Effect::Part`], [`Effect::Fallout`], [`Effect::Requeue`] or
//! [`Effect::Forget`], so that it cannot be spent twice. The order of the effects is the guarantee: a retry is
//! published and a result stored before a late ack; an early ack comes before the start.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

use super::unique::Unique;
use crate::broker::{self, Tag};
use crate::canvas::{self, Parent, Reach, Replaced};
use crate::clock::{self, Instant, Timestamp};
use crate::task::{self, Entry, Failure};
use crate::trace::{Trace, carried};
use crate::wire::{self, Arguments, Embed, Exception, Json, Message, Signature, State as Stored, python_modules};

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

/// Which end of the queue a message goes back to: kombu requeues at the back and restores at the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Behind everything that waits: `Reject(requeue=True)`.
    Back,
    /// Delivered next: what was held and never ran.
    Front,
    /// Behind everything, and one more delivery is counted: its process was lost, or its hard limit ended it.
    Lost,
}

/// What follows a step, in this order.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Wait for the request's ETA.
    WaitForEta(Timestamp),
    /// Wait for a place to run.
    Enqueue,
    /// Run it.
    Start,
    /// End the run; if it has a process, by that signal.
    Cancel(i32),
    /// Acknowledge it as it starts: that waits for nothing.
    Early(Delivery),
    /// The message is done with.
    Ack(Delivery),
    /// The message goes back to its queue.
    Requeue(Delivery, End),
    /// The message is somebody else's now; what we held of it goes with this.
    Forget(#[expect(dead_code, reason = "moved here to be dropped")] Delivery),
    /// Run it again at that time, with the same arguments or with these: a new message.
    Retry(Timestamp, Option<Box<Arguments>>),
    /// Store a state.
    Store(Stored, Content),
    /// Send what follows a success: callbacks and the next step of the chain.
    Follow(Json),
    /// Do what follows a failure: the rest of the chain fails as well, and error callbacks are called; and only then
    /// acknowledge the message, if that is still to do.
    Fallout(Box<Failing>),
    /// The task goes on elsewhere under its id: put down, or in the hands of what takes its place.
    Leave,
    /// Send what takes the task's place.
    Apply(Box<Signature>),
    /// Count the task as done in its chord, and only then acknowledge its message, if that is still to do.
    Part(Box<Done>),
    /// Tell the monitors.
    Emit(Happening),
    /// End the token stream.
    EndStream(Stored),
}

impl Effect {
    /// The message that is done with when what hangs on the task is accounted for.
    pub(crate) fn delivery(&self) -> Option<&Delivery> {
        match self {
            Self::Part(done) => done.delivery.as_ref(),
            Self::Fallout(failing) => failing.delivery.as_ref(),
            _ => None,
        }
    }

    /// The message that is done with by it.
    pub(crate) fn into_delivery(self) -> Option<Delivery> {
        match self {
            Self::Ack(delivery) => Some(delivery),
            Self::Part(done) => done.delivery,
            _ => None,
        }
    }
}

/// A member of a chord's header that has come to its end.
#[derive(Debug)]
pub(crate) struct Done {
    /// Its message, unless it was acknowledged before it ran.
    pub delivery: Option<Delivery>,
    pub state: Stored,
    /// The result, or the exception.
    pub value: Json,
    /// Whether Celery counts it where the task ran. It counts elsewhere what was rejected, revoked, or ended by its
    /// hard limit; there nobody knows what the task has sent.
    pub in_task: bool,
}

/// What follows a failure.
#[derive(Debug)]
pub(crate) struct Failing {
    pub exception: Exception,
    /// As for [`Done::in_task`].
    pub in_task: bool,
    /// The message, unless it was acknowledged before the task ran, or waits until the task is counted in its own
    /// chord.
    pub delivery: Option<Delivery>,
}

/// What a stored state carries.
#[derive(Debug)]
pub(crate) enum Content {
    /// The return value.
    Value(Box<RawValue>),
    /// The exception.
    Exception(Exception),
    /// STARTED: the process that runs it.
    Started(u32),
}

/// What an event tells.
#[derive(Debug)]
pub(crate) enum Happening {
    Received,
    Started,
    Succeeded {
        runtime: Duration,
    },
    /// A message that came again was not run; with the result there is.
    KnownSuccess(Option<Json>),
    Failed(Exception),
    Retried(Exception),
    Rejected {
        requeue: bool,
    },
    Cancelled,
    Revoked {
        terminated: bool,
        signum: Option<i32>,
        expired: bool,
    },
}

impl Happening {
    /// The same, without what the task itself said.
    pub(crate) fn hidden(self) -> Self {
        match self {
            Self::Failed(exception) => Self::Failed(exception.hidden()),
            Self::Retried(exception) => Self::Retried(exception.hidden()),
            other => other,
        }
    }
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
                effects.push(Effect::Requeue(delivery, End::Front));
                Self::Done
            }
            (Self::Running { unacked, run: _, .. }, Input::Stop { cold: true }) => {
                let is_late = unacked.is_some();
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

/// Why a request ends without an answer of its own.
enum Discard {
    Expired,
    Revoked,
    Terminated(i32),
}

impl Discard {
    fn apply(self, delivery: Delivery, request: &Request, effects: &mut Vec<Effect>) -> State {
        self.settle(Some(delivery), request, effects)
    }

    /// REVOKED with its reason, then the event, then the message is done with.
    fn settle(self, delivery: Option<Delivery>, request: &Request, effects: &mut Vec<Effect>) -> State {
        let (reason, terminated, signum, expired) = match self {
            Self::Expired => ("expired", false, None, true),
            Self::Revoked => ("revoked", false, None, false),
            Self::Terminated(signum) => ("terminated", true, Some(signum), false),
        };
        let exception = Exception::celery("TaskRevokedError", reason);
        let part = request.is_part().then(|| failed_value(&exception));
        request.store(Stored::Revoked, exception, effects);
        request.end_stream(Stored::Revoked, effects);
        request.settle(delivery, Stored::Revoked, part, false, effects);
        effects.push(Effect::Emit(Happening::Revoked {
            terminated,
            signum,
            expired,
        }));
        State::Done
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

    /// A run ends where it stands, without having failed (`celery.worker.request.Request.cancel`).
    fn cancel(&self, unacked: Option<Delivery>, store: bool, effects: &mut Vec<Effect>) {
        effects.push(Effect::Cancel(SIGTERM));
        if store {
            self.store(
                Stored::Retry,
                Exception::celery("Retry", "cancelled by Celery"),
                effects,
            );
        }
        self.end_stream(Stored::Retry, effects);
        // Cancelled and written down first: while the message is in `unacked` nobody else can take it.
        effects.extend(unacked.map(|delivery| Effect::Requeue(delivery, End::Front)));
        effects.push(Effect::Emit(Happening::Cancelled));
    }

    fn discard(&self, revoked: bool, now: Timestamp) -> Option<Discard> {
        if self.expires.is_some_and(|expires| now > expires) {
            Some(Discard::Expired)
        } else {
            revoked.then_some(Discard::Revoked)
        }
    }

    fn end(
        &self,
        unacked: Option<Delivery>,
        outcome: Outcome,
        runtime: Duration,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        match outcome {
            Outcome::Success(value) => {
                if let Some(embed) = &self.embed
                    && (embed.callbacks.is_some() || embed.chain.is_some())
                {
                    // Before the result is stored, so that the record names its children (P-118).
                    effects.push(Effect::Follow(value.clone().into()));
                }
                let part = self.is_part().then(|| value.clone().into());
                effects.push(Effect::Store(Stored::Success, Content::Value(value)));
                self.end_stream(Stored::Success, effects);
                self.settle(unacked, Stored::Success, part, true, effects);
                effects.push(Effect::Emit(Happening::Succeeded { runtime }));
            }
            Outcome::Done { result, followed } => {
                if !followed && self.embed.is_some() {
                    effects.push(Effect::Follow(result.clone()));
                }
                let part = self.is_part().then(|| result.clone());
                self.settle(unacked, Stored::Success, part, true, effects);
                effects.push(Effect::Emit(Happening::KnownSuccess(Some(result))));
            }
            Outcome::Known => {
                effects.extend(unacked.map(Effect::Ack));
                effects.push(Effect::Emit(Happening::KnownSuccess(None)));
            }
            Outcome::Failed(Failure::Fail(exception)) if self.policy.retries_on(&exception) => {
                let pause = self.policy.retry_backoff.map(|factor| {
                    let retries = self.message.headers.retries;
                    wire::backoff(factor, retries, self.policy.retry_backoff_max, self.policy.retry_jitter)
                });
                self.retry(unacked, pause, Some(exception), None, now, effects);
            }
            Outcome::Failed(Failure::Fail(exception)) => self.fail(unacked, exception, effects),
            Outcome::Failed(Failure::Retry {
                after,
                cause,
                arguments,
            }) => self.retry(unacked, after, cause, arguments, now, effects),
            Outcome::Failed(Failure::Reject { requeue: true, .. }) => {
                // Acknowledged early there is nothing left to put back, as in Celery.
                if let Some(delivery) = unacked {
                    effects.push(Effect::Requeue(delivery, End::Back));
                    effects.push(Effect::Emit(Happening::Rejected { requeue: true }));
                }
            }
            Outcome::Failed(Failure::Reject { requeue: false, reason }) => {
                // Nothing went wrong in the task: no traceback.
                let mut exception = Exception::celery("Reject", reason).with_traceback("");
                exception.args.push(Value::Bool(false));
                self.end_failed(unacked, &exception, false, effects);
                effects.push(Effect::Emit(Happening::Failed(exception)));
                effects.push(Effect::Emit(Happening::Rejected { requeue: false }));
            }
            Outcome::Failed(Failure::Replace(signature)) => match self.replacement(*signature) {
                Ok(signature) => {
                    effects.push(Effect::Apply(Box::new(signature)));
                    effects.push(Effect::Leave);
                    effects.extend(unacked.map(Effect::Ack));
                }
                Err(error) => {
                    let exception = Exception::celery("ImproperlyConfigured", error.to_string());
                    self.fail(unacked, exception, effects);
                }
            },
            Outcome::Failed(Failure::Ignore) => {
                self.end_stream(Stored::Success, effects);
                effects.extend(unacked.map(Effect::Ack));
            }
            // Its stream goes on when the task does.
            Outcome::Failed(Failure::Park) => {
                effects.push(Effect::Leave);
                effects.extend(unacked.map(Effect::Ack));
            }
            // The loop knows what it costs to wait: `Input::PutOff`. A message is never without an end.
            Outcome::Failed(Failure::Later(after)) => {
                effects.push(Effect::Retry(clock::after(now, after), None));
                effects.extend(unacked.map(Effect::Ack));
            }
            Outcome::Panicked(message) => {
                let exception = Exception::runtime_error(format!("the task panicked: {message}"));
                self.fail(unacked, exception, effects);
            }
            Outcome::Lost(how) => self.lose(unacked, how, now, effects),
            Outcome::SoftLimit => {
                let mut exception = Exception::new(python_modules::BILLIARD, "SoftTimeLimitExceeded", "");
                exception.args.clear();
                self.fail(unacked, exception, effects);
            }
            Outcome::HardLimit(limit) => {
                let mut exception = Exception::new(python_modules::BILLIARD, "TimeLimitExceeded", "");
                exception.args = vec![seconds(limit)];
                if self.policy.acks_on_timeout {
                    return self.fail_in(unacked, exception, false, effects);
                }
                if self.is_last && unacked.is_some() {
                    let how = format!("its hard time limit of {} s ended it", limit.as_secs_f64());
                    return self.give_up(unacked, exception, &how, effects);
                }
                self.store(Stored::Failure, exception.clone(), effects);
                self.end_stream(Stored::Failure, effects);
                if let Some(delivery) = unacked {
                    effects.push(Effect::Requeue(delivery, End::Lost));
                    effects.push(Effect::Emit(Happening::Rejected { requeue: true }));
                }
                effects.push(Effect::Emit(Happening::Failed(exception)));
            }
        }
    }

    /// The process is gone, and the task with it (`celery.worker.request.Request.on_failure`).
    fn lose(&self, unacked: Option<Delivery>, how: String, now: Timestamp, effects: &mut Vec<Effect>) {
        let exception = Exception::new(python_modules::BILLIARD, "WorkerLostError", how.clone());
        let retries = self.policy.retry_on_worker_lost;
        if retries && !self.has_no_retry_left() {
            return self.retry(unacked, None, Some(exception), None, now, effects);
        }
        match unacked {
            Some(_) if self.policy.reject_on_worker_lost && !retries && self.is_last => {
                self.give_up(unacked, exception, &how, effects);
            }
            Some(delivery) if self.policy.reject_on_worker_lost && !retries => {
                self.end_stream(Stored::Retry, effects);
                effects.push(Effect::Requeue(delivery, End::Lost));
                effects.push(Effect::Emit(Happening::Rejected { requeue: true }));
            }
            // As with a hard limit: nobody is left who knows what the task has sent.
            unacked => self.fail_in(unacked, exception, false, effects),
        }
    }

    /// It was delivered as often as is allowed: it fails, and its message is kept with the reason.
    fn give_up(&self, unacked: Option<Delivery>, exception: Exception, how: &str, effects: &mut Vec<Effect>) {
        let worn_out = Some(broker::worn_out(self.deliveries, how).into());
        let unacked = unacked.map(|delivery| Delivery { worn_out, ..delivery });
        self.fail_in(unacked, exception, false, effects);
    }

    fn has_no_retry_left(&self) -> bool {
        let retries = self.message.headers.retries;
        self.policy.max_retries.is_some_and(|max| retries >= max)
    }

    /// It failed, whatever came of its run.
    pub(super) fn fail(&self, unacked: Option<Delivery>, exception: Exception, effects: &mut Vec<Effect>) {
        self.fail_in(unacked, exception, true, effects);
    }

    fn fail_in(&self, unacked: Option<Delivery>, exception: Exception, in_task: bool, effects: &mut Vec<Effect>) {
        let dropped = unacked.is_some() && !self.policy.acks_on_failure;
        self.end_failed(unacked, &exception, in_task, effects);
        if dropped {
            // Celery rejects without requeue, which on Redis is the same removal; the event tells them apart.
            effects.push(Effect::Emit(Happening::Rejected { requeue: false }));
        }
        effects.push(Effect::Emit(Happening::Failed(exception)));
    }

    /// FAILURE is stored, what follows the task fails as well, and the message is done with.
    fn end_failed(&self, unacked: Option<Delivery>, exception: &Exception, in_task: bool, effects: &mut Vec<Effect>) {
        self.store(Stored::Failure, exception.clone(), effects);
        self.end_stream(Stored::Failure, effects);
        let part = self.is_part().then(|| failed_value(exception));
        let (here, later) = match part {
            Some(_) => (None, unacked),
            None if self.embed.is_some() => (unacked, None),
            None => (None, unacked),
        };
        if self.embed.is_some() {
            effects.push(Effect::Fallout(Box::new(Failing {
                exception: exception.clone(),
                in_task,
                delivery: here,
            })));
        }
        self.settle(later, Stored::Failure, part, in_task, effects);
    }

    fn retry(
        &self,
        unacked: Option<Delivery>,
        after: Option<Duration>,
        cause: Option<Exception>,
        arguments: Option<Box<Arguments>>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let headers = &self.message.headers;
        if self.has_no_retry_left() {
            let exception = cause.unwrap_or_else(|| {
                let mut arguments = match arguments {
                    Some(arguments) => *arguments,
                    None => self.message.body.arguments().unwrap_or_default(),
                };
                self.entry.hides.hide(&mut arguments);
                let text = format!(
                    "Can't retry {}[{}] args:{} kwargs:{}",
                    headers.task,
                    headers.id,
                    wire::repr_tuple(&arguments.args),
                    wire::repr(&arguments.kwargs.into())
                );
                Exception::celery("MaxRetriesExceededError", text)
            });
            return self.fail(unacked, exception, effects);
        }
        let pause = after.unwrap_or(self.policy.default_retry_delay);
        let eta = clock::after(now, pause);
        let cause = cause.unwrap_or_else(|| Exception::celery("Retry", format!("Retry in {}s", pause.as_secs_f64())));
        // The next message exists before this one is done with: a crash in between runs it twice, never not at all.
        effects.push(Effect::Retry(eta, arguments));
        if !self.policy.ignore_result {
            effects.push(Effect::Store(Stored::Retry, Content::Exception(cause.clone())));
        }
        self.end_stream(Stored::Retry, effects);
        effects.extend(unacked.map(Effect::Ack));
        effects.push(Effect::Emit(Happening::Retried(cause)));
    }

    /// Whether a failure is stored.
    pub(crate) fn stores_errors(&self) -> bool {
        !self.policy.ignore_result || self.policy.store_errors_even_if_ignored
    }

    fn store(&self, state: Stored, exception: Exception, effects: &mut Vec<Effect>) {
        if self.stores_errors() {
            effects.push(Effect::Store(state, Content::Exception(exception)));
        }
    }

    /// Whether a chord waits for it.
    fn is_part(&self) -> bool {
        self.message.headers.group.is_some() && self.embed.as_ref().is_some_and(|embed| embed.chord.is_some())
    }

    /// The message is done with; for a part of a chord when that is counted.
    fn settle(
        &self,
        delivery: Option<Delivery>,
        state: Stored,
        part: Option<Json>,
        in_task: bool,
        effects: &mut Vec<Effect>,
    ) {
        match part {
            Some(value) => effects.push(Effect::Part(Box::new(Done {
                delivery,
                state,
                value,
                in_task,
            }))),
            None => effects.extend(delivery.map(Effect::Ack)),
        }
    }

    fn replacement(&self, signature: Signature) -> Result<Signature, canvas::ReplacementError> {
        let headers = &self.message.headers;
        let nothing = Embed::default();
        canvas::replacement(
            signature,
            Replaced {
                id: &self.id,
                root_id: headers.root_id.as_deref(),
                group: headers.group.as_deref(),
                group_index: headers.group_index,
                nesting: headers.replaced_task_nesting,
                embed: self.embed.as_deref().unwrap_or(&nothing),
                reply_to: self.message.properties.reply_to.as_deref().unwrap_or_default(),
                reach: self.reach,
            },
        )
    }

    fn end_stream(&self, state: Stored, effects: &mut Vec<Effect>) {
        if self.policy.streams {
            effects.push(Effect::EndStream(state));
        }
    }
}

/// An exception as a chord's part holds it.
fn failed_value(exception: &Exception) -> Json {
    Json::new(exception).unwrap_or_else(|_| Json::null())
}

/// Seconds as Python writes them in `TimeLimitExceeded(…)`: whole ones without a point.
fn seconds(limit: Duration) -> Value {
    if limit.subsec_nanos() == 0 {
        limit.as_secs().into()
    } else {
        limit.as_secs_f64().into()
    }
}
