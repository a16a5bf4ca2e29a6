//! The ends of a request: what its outcome leads to, and what does when there is none.

use std::time::Duration;

use serde_json::Value;
use tracing::warn;

use super::{Content, Delivery, Done, Effect, End, Failing, Happening, Outcome, Request, SIGTERM, State};
use crate::broker;
use crate::canvas::{self, Replaced};
use crate::clock::{self, Timestamp};
use crate::task::Failure;
use crate::wire::{self, Arguments, Embed, Exception, Json, Signature, State as Stored, python_modules};

/// Why a request ends without an answer of its own.
pub(super) enum Discard {
    Expired,
    Revoked,
    Terminated(i32),
}

impl Discard {
    pub(super) fn apply(self, delivery: Delivery, request: &Request, effects: &mut Vec<Effect>) -> State {
        self.settle(Some(delivery), request, effects)
    }

    /// REVOKED with its reason, then the event, then the message is done with.
    pub(super) fn settle(self, delivery: Option<Delivery>, request: &Request, effects: &mut Vec<Effect>) -> State {
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
    /// A run ends where it stands, without having failed (`celery.worker.request.Request.cancel`).
    pub(super) fn cancel(&self, unacked: Option<Delivery>, store: bool, effects: &mut Vec<Effect>) {
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

    pub(super) fn discard(&self, revoked: bool, now: Timestamp) -> Option<Discard> {
        if self.expires.is_some_and(|expires| now > expires) {
            Some(Discard::Expired)
        } else {
            revoked.then_some(Discard::Revoked)
        }
    }

    pub(super) fn end(
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
    pub(super) fn lose(&self, unacked: Option<Delivery>, how: String, now: Timestamp, effects: &mut Vec<Effect>) {
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
    pub(super) fn give_up(
        &self,
        unacked: Option<Delivery>,
        exception: Exception,
        how: &str,
        effects: &mut Vec<Effect>,
    ) {
        let worn_out = Some(broker::worn_out(self.deliveries, how).into());
        let unacked = unacked.map(|delivery| Delivery { worn_out, ..delivery });
        self.fail_in(unacked, exception, false, effects);
    }

    pub(super) fn has_no_retry_left(&self) -> bool {
        let retries = self.message.headers.retries;
        self.policy.max_retries.is_some_and(|max| retries >= max)
    }

    /// It failed, whatever came of its run.
    pub(in crate::worker) fn fail(&self, unacked: Option<Delivery>, exception: Exception, effects: &mut Vec<Effect>) {
        self.fail_in(unacked, exception, true, effects);
    }

    pub(super) fn fail_in(
        &self,
        unacked: Option<Delivery>,
        exception: Exception,
        in_task: bool,
        effects: &mut Vec<Effect>,
    ) {
        let dropped = unacked.is_some() && !self.policy.acks_on_failure;
        self.end_failed(unacked, &exception, in_task, effects);
        if dropped {
            // Celery rejects without requeue, which on Redis is the same removal; the event tells them apart.
            effects.push(Effect::Emit(Happening::Rejected { requeue: false }));
        }
        effects.push(Effect::Emit(Happening::Failed(exception)));
    }

    /// FAILURE is stored, what follows the task fails as well, and the message is done with.
    pub(super) fn end_failed(
        &self,
        unacked: Option<Delivery>,
        exception: &Exception,
        in_task: bool,
        effects: &mut Vec<Effect>,
    ) {
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

    pub(super) fn retry(
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
        if unacked.is_none() && self.policy.acks_late {
            // Its lease was lost.
            warn!(task.id = %headers.id, "task {} is not retried by this worker: whoever has its message now does that", headers.id);
            return;
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

    pub(super) fn store(&self, state: Stored, exception: Exception, effects: &mut Vec<Effect>) {
        if self.stores_errors() {
            effects.push(Effect::Store(state, Content::Exception(exception)));
        }
    }

    /// Whether a chord waits for it.
    pub(super) fn is_part(&self) -> bool {
        self.message.headers.group.is_some() && self.embed.as_ref().is_some_and(|embed| embed.chord.is_some())
    }

    /// The message is done with; for a part of a chord when that is counted.
    pub(super) fn settle(
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

    pub(super) fn replacement(&self, signature: Signature) -> Result<Signature, canvas::ReplacementError> {
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

    pub(super) fn end_stream(&self, state: Stored, effects: &mut Vec<Effect>) {
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
