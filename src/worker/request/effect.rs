//! What the life of a task leads to. A step decides; these are carried out by others, in the order in which they stand.

use std::time::Duration;

use serde_json::value::RawValue;

use super::Delivery;
use crate::clock::Timestamp;
use crate::wire::{Arguments, Exception, Json, Signature, State as Stored};

/// Which end of the queue a message goes back to: kombu requeues at the back and restores at the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Behind everything that waits: `Reject(requeue=True)`.
    Back,
    /// Delivered next: what has not started, so that it need not wait for anything.
    Untouched,
    /// Delivered next: what was cancelled, behind what is written down of it.
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
