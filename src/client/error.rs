//! What a sender may have to deal with.

use crate::wire::Exception;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis cannot be used.
    #[error(transparent)]
    Redis(#[from] crate::conn::Error),
    /// An argument is not of the wanted shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// The result is not of the wanted shape, or is none: anybody can write there.
    #[error("the result of {id} cannot be read: {why}; `orchestra result {id} --json` shows it")]
    Unreadable {
        /// Task id.
        id: String,
        /// What is wrong with it.
        why: serde_json::Error,
    },
    /// What was to be sent cannot be.
    #[error("{0}")]
    Argument(String),
    /// The task failed.
    #[error("the task failed: {exception}")]
    Failed {
        /// As Python would raise it.
        exception: Exception,
        /// Text for people.
        traceback: Option<String>,
    },
    /// The task was revoked, or expired.
    #[error("the task was revoked: {0}")]
    Revoked(String),
    /// It took longer than the caller wanted to wait; it may still end.
    #[error("no result of task {id} within {} s", (seconds * 1e3).round() / 1e3)]
    Timeout {
        /// Task id.
        id: String,
        /// What was waited.
        seconds: f64,
    },
    /// The message cannot be signed.
    #[error("the message cannot be signed: {0}")]
    Sign(String),
    /// The client has no result backend.
    #[error("this client has no result backend; give one to Client::connect_to")]
    NoBackend,
}

impl Error {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Redis(error) => error.is_transient(),
            Self::Timeout { .. } => true,
            _ => false,
        }
    }
}
