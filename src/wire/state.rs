//! Task states (`celery.states`).

use std::fmt;

/// The state of a task, as stored in its result record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is known of the task.
    Pending,
    /// A worker runs it.
    Started,
    /// It ended with a value.
    Success,
    /// It ended with an exception.
    Failure,
    /// It was revoked, or expired.
    Revoked,
    /// It failed and will be tried again.
    Retry,
    /// A state of the task author's own, such as `PROGRESS`.
    Custom(String),
}

impl State {
    /// The name on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Started => "STARTED",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Revoked => "REVOKED",
            Self::Retry => "RETRY",
            Self::Custom(name) => name,
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Self {
        match name {
            "PENDING" => Self::Pending,
            "STARTED" => Self::Started,
            "SUCCESS" => Self::Success,
            "FAILURE" => Self::Failure,
            "REVOKED" => Self::Revoked,
            "RETRY" => Self::Retry,
            other => Self::Custom(other.to_owned()),
        }
    }

    /// Whether the task has come to its end (`celery.states.READY_STATES`).
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }

    /// Whether `get()` raises (`celery.states.PROPAGATE_STATES`).
    pub fn is_failed(&self) -> bool {
        matches!(self, Self::Failure | Self::Revoked)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
