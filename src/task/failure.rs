//! How a task says that it did not succeed: a decision, not only an error.

use std::error::Error;
use std::time::Duration;

use crate::wire::{Arguments, Exception, Signature};

/// What the worker does with a run that gave no result.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The task failed; `get()` raises this exception.
    Fail(Exception),
    /// Try again later, at most `max_retries` times (`Task.retry`).
    Retry {
        /// Pause; `None` takes the task's `default_retry_delay`.
        after: Option<Duration>,
        /// Why; raised when no retry is left.
        cause: Option<Exception>,
        /// Called with these instead of the same arguments.
        arguments: Option<Box<Arguments>>,
    },
    /// Refuse the message (`celery.exceptions.Reject`).
    Reject {
        /// Put it back at the end of its queue.
        requeue: bool,
        /// Why.
        reason: String,
    },
    /// Store nothing; the message is done with (`celery.exceptions.Ignore`).
    Ignore,
    /// Put the task down: its message is done with, nothing is stored, and it goes on when what it waits for is
    /// written down. Only after [`Context::park`](super::Context::park) said that it can be.
    Park,
    /// Put the task off: it gives its place to others and runs again then, without that counting as a retry. With late
    /// acks its message stays with the worker, as one that waits for its ETA; otherwise it is sent again, as a retry
    /// is.
    Later(Duration),
    /// Another call, or a composition of calls, takes this task's place and its id (`Task.replace`).
    Replace(Box<Signature>),
}

impl Failure {
    /// Fails as Python's `ValueError`.
    pub fn value_error(message: impl Into<String>) -> Self {
        Self::Fail(Exception::value_error(message))
    }

    /// Fails as Python's `TypeError`.
    pub fn type_error(message: impl Into<String>) -> Self {
        Self::Fail(Exception::type_error(message))
    }

    /// Puts a signature in the place of this task: `return Err(Failure::replace(…))`.
    pub fn replace(signature: Signature) -> Self {
        Self::Replace(Box::new(signature))
    }

    /// Tries again after a pause.
    pub fn retry_after(after: Duration, cause: Exception) -> Self {
        Self::Retry {
            after: Some(after),
            cause: Some(cause),
            arguments: None,
        }
    }
}

impl From<Exception> for Failure {
    fn from(exception: Exception) -> Self {
        Self::Fail(exception)
    }
}

/// Any Rust error fails the task as `RuntimeError`, with the whole chain of causes in its text, so that `?` works.
impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::Fail(Exception::runtime_error(text))
    }
}
