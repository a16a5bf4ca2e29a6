//! What a task keeps while it works: finished parts that a later delivery need not do again, and, for a task that was
//! put down, its message and what it waits for. One hash for each task, bounded and expiring.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Pipeline, Value, cmd};

use super::{Backend, Error};

/// The field with the message of a task that was taken up again and may not have been sent yet.
const SENDING: &str = "@sending";
/// Tasks that are put down, in one answer.
const SHOWN: isize = 1000;

/// What came of [`Backend::resume`].
#[derive(Debug)]
pub struct Resumed {
    /// The value is new; otherwise there was one, and it stays.
    pub is_new: bool,
    /// The message to send.
    pub message: Option<Vec<u8>>,
}

impl Backend {
    /// Keeps a value under a name; whether there was room for it.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn keep(&self, id: &str, name: &str, value: &[u8], time: Duration) -> Result<bool, Error> {
        let mut call = self.scripts.keep.prepare_invoke();
        call.key(self.notes_key(id))
            .arg(name)
            .arg(value)
            .arg(self.options.kept_bytes)
            .arg(time.as_secs().max(1));
        Ok(self.one(&call).await? == Value::Int(1))
    }

    /// Everything that a task has kept, by name.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn kept(&self, id: &str) -> Result<HashMap<String, Vec<u8>>, Error> {
        let mut kept: HashMap<String, Vec<u8>> = self.link.query(cmd("HGETALL").arg(self.notes_key(id))).await?;
        kept.retain(|name, _| !name.starts_with('@'));
        Ok(kept)
    }

    /// Puts a task down with its message, until something it waits for is written down. `false` when one is already.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn park(
        &self,
        id: &str,
        message: &[u8],
        names: &[String],
        time: Duration,
        now: f64,
    ) -> Result<bool, Error> {
        let mut call = self.scripts.park.prepare_invoke();
        call.key(self.notes_key(id)).key(self.parked_key()).arg(id).arg(message);
        call.arg(time.as_secs().max(1)).arg(now);
        for name in names {
            call.arg(name);
        }
        Ok(self.one(&call).await? == Value::Int(1))
    }

    /// Writes down what a task waits for; the first value stays. `None` when there is no such task any more.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn resume(&self, id: &str, name: &str, value: &[u8]) -> Result<Option<Resumed>, Error> {
        let mut call = self.scripts.resume.prepare_invoke();
        call.key(self.notes_key(id))
            .key(self.parked_key())
            .arg(id)
            .arg(name)
            .arg(value);
        match self.one(&call).await? {
            Value::Array(answer) => match &answer[..] {
                [Value::Int(-1), ..] => Ok(None),
                [new, message] => Ok(Some(Resumed {
                    is_new: *new == Value::Int(1),
                    message: match message {
                        Value::BulkString(message) => Some(message.clone()),
                        _ => None,
                    },
                })),
                _ => Err(Error::Refused("resume.lua gave no pair".into())),
            },
            other => Err(Error::Refused(format!("the task cannot be resumed: {other:?}"))),
        }
    }

    /// The message that [`resume`](Self::resume) gave was sent.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn sent(&self, id: &str) -> Result<(), Error> {
        self.link
            .query::<i64>(cmd("HDEL").arg(self.notes_key(id)).arg(SENDING))
            .await
            .map(drop)
    }

    /// The tasks that are put down, oldest first, and how many more there are than one answer tells.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn parked(&self) -> Result<(Vec<String>, usize), Error> {
        let key = self.parked_key();
        let all: usize = self.link.query(cmd("ZCARD").arg(&key)).await?;
        let ids: Vec<String> = self.link.query(cmd("ZRANGE").arg(&key).arg(0).arg(SHOWN - 1)).await?;
        let more = all.saturating_sub(ids.len());
        Ok((ids, more))
    }

    async fn one(&self, call: &redis::ScriptInvocation<'_>) -> Result<Value, Error> {
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(call);
        match self.link.pipeline(&pipe).await?.pop() {
            Some(Value::ServerError(error)) => Err(Error::Refused(error.to_string())),
            Some(value) => Ok(value),
            None => Err(Error::Refused("a script gave no answer".into())),
        }
    }

    fn notes_key(&self, id: &str) -> String {
        format!("{}orchestra:notes:{id}", self.prefix)
    }

    fn parked_key(&self) -> String {
        format!("{}orchestra:parked", self.prefix)
    }
}
