//! What clients read: results, and token streams.

use std::time::Duration;

use redis::{Value, cmd};
use serde_json::value::RawValue;

use super::{Backend, Error};

/// An entry of a token stream.
#[derive(Debug)]
pub struct StreamEntry {
    /// Its place; the next read begins behind it.
    pub id: String,
    /// JSON object.
    pub entry: Box<RawValue>,
}

impl Backend {
    /// The record of a task, JSON; `None` while nothing is stored.
    ///
    /// # Errors
    /// The server cannot be reached or refuses, or the record is in no form that is read.
    pub async fn get(&self, id: &str) -> Result<Option<String>, Error> {
        let unread = |why: String| Error::Refused(format!("the result of {id} cannot be read: {why}"));
        match self.stored(id).await {
            Ok(None) => Ok(None),
            Ok(Some(stored)) => self.options.format.read(stored).map(Some).map_err(unread),
            Err(Error::Refused(why)) => Err(unread(why)),
            Err(error) => Err(error),
        }
    }

    /// What is stored of a task, as it is.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn stored(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        self.query(cmd("GET").arg(self.result_key(id))).await
    }

    /// What is stored, as JSON.
    pub(super) fn read(&self, stored: Vec<u8>) -> Result<String, Error> {
        let read = self.options.format.read(stored);
        read.map_err(|error| Error::Refused(format!("a result cannot be read: {error}")))
    }

    /// Whether anything is stored of a task.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn knows(&self, id: &str) -> Result<bool, Error> {
        self.link.query(cmd("EXISTS").arg(self.result_key(id))).await
    }

    /// Stores a record where there is none: a state that has come in the meantime stays.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn note(&self, id: &str, record: &[u8]) -> Result<(), Error> {
        let mut command = cmd("SET");
        command
            .arg(self.result_key(id))
            .arg(&self.written(record)[..])
            .arg("NX");
        if let Some(ttl) = self.options.result_expires {
            command.arg("EX").arg(ttl.as_secs().max(1));
        }
        self.link.query::<Value>(&command).await.map(drop)
    }

    /// Removes the record and the stream of a task.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn forget(&self, id: &str) -> Result<(), Error> {
        self.link
            .query(cmd("DEL").arg(self.result_key(id)).arg(self.stream_key(id)))
            .await
    }

    /// The channel on which the record of a task is announced.
    pub fn channel(&self, id: &str) -> String {
        self.result_key(id)
    }

    /// Entries of a token stream behind `after` (`"0"` is from its beginning). Does not wait.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn stream(&self, id: &str, after: &str, count: usize) -> Result<Vec<StreamEntry>, Error> {
        let mut command = cmd("XRANGE");
        command
            .arg(self.stream_key(id))
            .arg(format!("({after}"))
            .arg("+")
            .arg("COUNT")
            .arg(count);
        let entries: Vec<(String, Vec<(String, String)>)> = self.link.query(&command).await?;
        Ok(entries
            .into_iter()
            .filter_map(|(id, fields)| {
                let (_, text) = fields.into_iter().find(|(name, _)| name == "e")?;
                Some(StreamEntry {
                    id,
                    entry: RawValue::from_string(text).ok()?,
                })
            })
            .collect())
    }

    /// Sets how long the record of a task is kept from now.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn expire(&self, id: &str, ttl: Duration) -> Result<(), Error> {
        self.link
            .query::<Value>(cmd("EXPIRE").arg(self.result_key(id)).arg(ttl.as_secs()))
            .await
            .map(drop)
    }
}
