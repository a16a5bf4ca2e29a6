//! Waiting for results, as Celery's clients do: told by pub/sub, not by asking again and again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::hearing::{Hearing, lock};
use super::{Client, Error};
use crate::backend::{Backend, StreamEntry, Write};
use crate::clock;
use crate::wire::{Exception, Record, State, json};

/// Asked again at the latest after this, in case the news got lost with its connection.
const AGAIN: Duration = Duration::from_secs(5);

/// The pause before Redis is asked for a connection to listen on again.
const PAUSE: Duration = Duration::from_millis(200);

/// What the clones of a client share.
#[derive(Debug)]
pub(super) struct Results {
    oid: String,
    origin: String,
    declared: Mutex<HashSet<String>>,
    hearing: OnceCell<Arc<Hearing>>,
}

impl Default for Results {
    fn default() -> Self {
        let host = gethostname::gethostname();
        Self {
            oid: Uuid::new_v4().to_string(),
            origin: format!("gen{}@{}", std::process::id(), host.to_string_lossy()),
            declared: Mutex::default(),
            hearing: OnceCell::new(),
        }
    }
}

impl Results {
    pub(super) fn oid(&self) -> &str {
        &self.oid
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether this is the first time that the queue is used: kombu declares it then.
    pub(super) fn declare(&self, queue: &str) -> bool {
        let mut declared = lock(&self.declared);
        !declared.contains(queue) && declared.insert(queue.to_owned())
    }

    /// What hears of results; made when the first one is waited for. A Redis that is away is waited for.
    async fn hearing(&self, backend: &Backend) -> Result<&Arc<Hearing>, Error> {
        let make = || Hearing::start(backend.link().endpoint());
        loop {
            match self.hearing.get_or_try_init(make).await {
                Err(error) if error.is_transient() => tokio::time::sleep(PAUSE).await,
                made => return Ok(made?),
            }
        }
    }
}

/// A task that was sent, and its result: what Celery calls `AsyncResult`.
#[doc(alias = "AsyncResult")]
#[derive(Clone, Debug)]
pub struct Pending {
    client: Client,
    id: String,
}

#[derive(Deserialize)]
struct Stored {
    status: String,
    #[serde(default)]
    result: Option<Box<RawValue>>,
    #[serde(default)]
    traceback: Option<String>,
}

impl Stored {
    /// How a task ended that has.
    fn end<T: DeserializeOwned>(self) -> Result<T, Error> {
        let result = self.result.as_ref().map_or("null", |result| result.get());
        match State::parse(&self.status) {
            State::Success => Ok(json::parse(result)?),
            State::Revoked => Err(Error::Revoked(exception(result).message())),
            _ => Err(Error::Failed {
                exception: exception(result),
                traceback: self.traceback,
            }),
        }
    }
}

/// How a task ended, by its record in JSON, for those who read it themselves; `None` when it has not.
///
/// # Errors
/// The task failed or was revoked, or this is no record.
pub fn outcome<T: DeserializeOwned>(record: &str) -> Result<Option<T>, Error> {
    let stored: Stored = json::parse(record)?;
    let has_ended = State::parse(&stored.status).is_ready();
    has_ended.then(|| stored.end()).transpose()
}

impl Client {
    /// The result of a task by its id.
    pub fn result(&self, id: impl Into<String>) -> Pending {
        Pending {
            client: self.clone(),
            id: id.into(),
        }
    }
}

impl Client {
    /// A task failed that never ran.
    pub(crate) async fn fail(&self, id: &str, error: &Exception) -> Result<(), Error> {
        let backend = self.backend.as_ref().ok_or(Error::NoBackend)?;
        let record = Record::new(id, &State::Failure, error, clock::iso(clock::now()));
        let write = Write::Store {
            id: id.into(),
            status: State::Failure,
            record: serde_json::to_vec(&record)?.into(),
            late: false,
        };
        let mut pipe = redis::Pipeline::new();
        backend.append(&mut pipe, &[write]);
        backend.link().pipeline(&pipe).await?;
        Ok(())
    }

    /// `result_chord_retry_interval`.
    pub(crate) fn chord_retry_interval(&self) -> Duration {
        let of = |backend: &Backend| backend.options().chord_retry_interval;
        self.backend.as_ref().map_or(Duration::from_secs(1), of)
    }
}

impl Pending {
    /// The task's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The state as stored.
    ///
    /// # Errors
    /// Redis cannot be reached, or the record is not JSON.
    pub async fn state(&self) -> Result<State, Error> {
        let stored: Option<Stored> = self.read().await?;
        Ok(stored.map_or(State::Pending, |stored| State::parse(&stored.status)))
    }

    /// All that is stored of the task; `None` when nothing is.
    ///
    /// # Errors
    /// Redis cannot be reached, or the record is not JSON.
    pub async fn record(&self) -> Result<Option<Value>, Error> {
        self.read().await
    }

    /// The same as it is stored, by whomever.
    ///
    /// # Errors
    /// Redis cannot be reached, or what is there is no text.
    pub async fn stored(&self) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.backend()?.stored(&self.id).await?)
    }

    /// Waits for the task to end and gives its result.
    ///
    /// # Errors
    /// The task failed or was revoked, the time is up, or Redis cannot be reached.
    pub async fn get<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, Error> {
        let waited = tokio::time::timeout(timeout, self.ready()).await;
        let stored = waited.map_err(|_| Error::Timeout {
            id: self.id.clone(),
            seconds: timeout.as_secs_f64(),
        })??;
        stored.end().map_err(|error| self.unreadable(error))
    }

    /// The exception of a task that failed; `None` when it did not, or not within `timeout`.
    pub async fn failure(&self, timeout: Duration) -> Option<Exception> {
        match self.get::<serde::de::IgnoredAny>(timeout).await {
            Err(Error::Failed { exception, .. }) => Some(exception),
            Err(Error::Revoked(text)) => Some(Exception::celery("TaskRevokedError", text)),
            _ => None,
        }
    }

    /// Removes the result.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn forget(&self) -> Result<(), Error> {
        Ok(self.backend()?.forget(&self.id).await?)
    }

    /// Tells all workers not to run the task, and with `terminate` to end it if it runs.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn revoke(&self, terminate: bool) -> Result<(), Error> {
        let arguments = serde_json::json!({"task_id": self.id, "terminate": terminate, "signal": "SIGTERM"});
        self.client.cast("revoke", &arguments, None).await
    }

    /// Entries of the task's token stream behind `after` (`"0"` from its beginning). Does not wait.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn stream(&self, after: &str) -> Result<Vec<StreamEntry>, Error> {
        Ok(self.backend()?.stream(&self.id, after, 1000).await?)
    }

    fn backend(&self) -> Result<&Backend, Error> {
        self.client.backend.as_ref().ok_or(Error::NoBackend)
    }

    async fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let record = self.backend()?.get(&self.id).await?;
        let read = record.map(|record| json::parse(&record)).transpose();
        read.map_err(|error| self.unreadable(error.into()))
    }

    /// Says whose result it is that is not of the wanted shape.
    fn unreadable(&self, error: Error) -> Error {
        match error {
            Error::Json(why) => Error::Unreadable {
                id: self.id.clone(),
                why,
            },
            other => other,
        }
    }

    async fn ready(&self) -> Result<Stored, Error> {
        let backend = self.backend()?;
        let hearing = self.client.results.hearing(backend).await?;
        let mut waiter = hearing.wait_for(backend.channel(&self.id));
        // Subscribed before the first look: a result that comes in between is not missed.
        waiter.listens().await?;
        loop {
            let news = waiter.news.notified();
            match self.read::<Stored>().await {
                Ok(Some(stored)) if State::parse(&stored.status).is_ready() => return Ok(stored),
                Err(error) if !error.is_transient() => return Err(error),
                _ => {}
            }
            let _ = tokio::time::timeout_at(clock::instant() + AGAIN, news).await;
        }
    }
}

/// The exception of a record; whatever is stored there, something is shown.
fn exception(result: &str) -> Exception {
    serde_json::from_str(result).unwrap_or_else(|_| {
        let value = json::parse::<Value>(result).unwrap_or_default();
        Exception::builtin("Exception", crate::wire::repr_bounded(&value))
    })
}
