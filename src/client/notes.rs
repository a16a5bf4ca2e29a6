//! What tasks keep while they work, and tasks that are put down until something outside is decided.

use std::collections::HashMap;
use std::time::Duration;

use redis::Pipeline;
use serde_json::Value;
use serde_json::value::RawValue;

use super::send::{Twice, insist};
use super::{Client, Error};
use crate::backend::Backend;
use crate::clock;
use crate::wire::resumed_parcel;

/// What came of [`Client::resume`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// It is written down, and the task goes on.
    GoesOn,
    /// It is written down; the task runs, or waits for something else.
    Noted,
    /// It was decided before.
    Decided,
    /// No such task waits.
    Gone,
}

/// Where a message goes again that does not say where it came from.
const QUEUE: &str = "celery";

impl Client {
    fn notes(&self) -> Result<&Backend, Error> {
        self.backend.as_ref().ok_or(Error::NoBackend)
    }

    /// Keeps a value of a task for `time`; whether there was room.
    pub(crate) async fn keep(&self, id: &str, name: &str, value: &RawValue, time: Duration) -> Result<bool, Error> {
        Ok(self.notes()?.keep(id, name, value.get().as_bytes(), time).await?)
    }

    /// What a task has kept. What is no JSON is left out.
    async fn kept(&self, id: &str) -> Result<HashMap<String, Value>, Error> {
        let kept = self.notes()?.kept(id).await?;
        let parsed = kept
            .into_iter()
            .filter_map(|(name, value)| Some((name, serde_json::from_slice(&value).ok()?)));
        Ok(parsed.collect())
    }

    /// What a task keeps while it works.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn kept_of(&self, id: &str) -> Result<HashMap<String, Value>, Error> {
        self.kept(id).await
    }

    /// Puts a task down; `false` when something of `names` is there already.
    pub(crate) async fn park(
        &self,
        id: &str,
        envelope: &[u8],
        names: &[String],
        time: Duration,
    ) -> Result<bool, Error> {
        let now = clock::epoch_seconds(clock::now());
        Ok(self.notes()?.park(id, envelope, names, time, now).await?)
    }

    /// Writes down a value that a task waits for, and lets the task go on if it was put down.
    ///
    /// # Errors
    /// Redis cannot be reached. It may be called again: the first value stays, and a task that was taken up but not
    /// sent is sent.
    pub async fn resume(&self, id: &str, name: &str, value: &Value) -> Result<Resumption, Error> {
        let backend = self.notes()?;
        let value = serde_json::to_vec(value)?;
        let Some(resumed) = backend.resume(id, name, &value).await? else {
            return Ok(Resumption::Gone);
        };
        if let Some(raw) = resumed.message {
            self.send_again(&raw).await?;
            backend.sent(id).await?;
            if resumed.is_new {
                return Ok(Resumption::GoesOn);
            }
        }
        Ok(if resumed.is_new {
            Resumption::Noted
        } else {
            Resumption::Decided
        })
    }

    /// Tasks that are put down, and what they have kept, oldest first; and how many more there are than this tells.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn parked(&self) -> Result<(Vec<(String, HashMap<String, Value>)>, usize), Error> {
        let mut parked = Vec::new();
        let (ids, more) = self.notes()?.parked().await?;
        for id in ids {
            let kept = self.kept(&id).await?;
            parked.push((id, kept));
        }
        parked.retain(|(_, kept)| !kept.is_empty());
        Ok((parked, more))
    }

    async fn send_again(&self, raw: &[u8]) -> Result<(), Error> {
        let parcel = resumed_parcel(raw, QUEUE)?;
        let mut pipe = Pipeline::with_capacity(1);
        self.broker.append(&mut pipe, &[parcel.into()]);
        Ok(insist(self.broker.writer(), &pipe, Twice::Never).await?)
    }
}
