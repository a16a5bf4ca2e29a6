//! Keys of tasks of which one is to run: who has it, and how that ended. One hash for each key, which expires by
//! itself: with the sign of life of who runs, or with the time for which a result is given again.

use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, Value, cmd};

use super::{Backend, Error};
use crate::conn::invocation;
use crate::wire::Json;

/// Keys in one script call: bounds how long it occupies Redis.
const BATCH: usize = 128;

/// A try to be the one that runs.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The key.
    pub key: Arc<str>,
    /// Names this try: a task that is delivered twice has two.
    pub token: Arc<str>,
    /// The task.
    pub id: Arc<str>,
}

/// What is known of a key.
#[derive(Debug)]
pub enum Seen {
    /// Nobody has it; or, after a claim, the caller.
    Free,
    /// A task has it.
    Taken {
        /// The task.
        id: String,
        /// Its try.
        token: String,
        /// It runs nowhere now: it is tried again later, waits for others, or another took its place.
        away: bool,
    },
    /// A task has ended with it.
    Ended(Ended),
}

/// How a task ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The task.
    pub id: String,
    /// SUCCESS or FAILURE.
    pub state: String,
    /// The result, or the exception.
    pub value: Json,
    /// Of the exception.
    pub traceback: String,
}

/// What becomes of a key when who had it is through.
#[derive(Clone, Debug)]
pub enum Settled {
    /// It ended, and is known to have for so long.
    Ended {
        /// SUCCESS or FAILURE.
        state: &'static str,
        /// The result, or the exception.
        value: Json,
        /// Of the exception.
        traceback: String,
        /// How long.
        time: Duration,
    },
    /// It goes on elsewhere, within that time.
    Away(Duration),
    /// It came to no end: somebody else may run.
    Free,
}

impl Backend {
    /// Takes a key for a task, unless another has it or has ended in one of `states`.
    ///
    /// # Errors
    /// The server cannot be reached or refuses. Asked again the same holder gets the same answer.
    pub async fn claim_unique(&self, holder: &Holder, lease: Duration, states: &[&str]) -> Result<Seen, Error> {
        let states = format!(",{},", states.join(","));
        let mut call = self.scripts.unique_claim.prepare_invoke();
        call.key(self.unique_key(&holder.key))
            .arg(&*holder.token)
            .arg(&*holder.id)
            .arg(millis(lease))
            .arg(states);
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&call);
        match self.link.pipeline(&pipe).await?.pop() {
            Some(Value::ServerError(error)) => Err(Error::Refused(error.to_string())),
            Some(answer) => seen(answer),
            None => Err(Error::Refused("a script gave no answer".into())),
        }
    }

    /// What is known of a key.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn look_unique(&self, key: &str) -> Result<Seen, Error> {
        let mut command = cmd("HMGET");
        command.arg(self.unique_key(key));
        command.arg(&["holder", "id", "state", "value", "traceback"][..]);
        seen(self.link.query(&command).await?)
    }

    /// Says that those who have keys still live; how many have theirs.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn keep_unique(&self, holders: &[Holder], lease: Duration) -> Result<usize, Error> {
        let mut pipe = Pipeline::new();
        for batch in holders.chunks(BATCH) {
            let mut call = invocation(&self.scripts.unique_keep, batch.len());
            for holder in batch {
                call.arg(self.unique_key(&holder.key));
            }
            call.arg(millis(lease));
            for holder in batch {
                call.arg(&*holder.token);
            }
            pipe.add_command(call);
        }
        let kept = self.insisted(&pipe).await?.into_iter();
        Ok(kept
            .filter_map(|kept| redis::from_redis_value::<usize>(kept).ok())
            .sum())
    }

    /// Writes down what becomes of a key at once; in a worker [`Write::Unique`](super::Write::Unique) does with the
    /// result.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn settle_unique(&self, holder: &Holder, settled: &Settled) -> Result<(), Error> {
        let mut pipe = Pipeline::with_capacity(1);
        self.append_unique(&mut pipe, holder, settled);
        self.insisted(&pipe).await.map(drop)
    }

    pub(super) fn append_unique(&self, pipe: &mut Pipeline, holder: &Holder, settled: &Settled) {
        let (state, time, value, traceback) = match settled {
            Settled::Ended {
                state,
                value,
                traceback,
                time,
            } => (*state, *time, value.get(), traceback.as_str()),
            Settled::Away(time) => ("AWAY", *time, "", ""),
            Settled::Free => ("", Duration::ZERO, "", ""),
        };
        let mut call = self.scripts.unique_end.prepare_invoke();
        call.key(self.unique_key(&holder.key))
            .arg(&*holder.token)
            .arg(&*holder.id)
            .arg(state)
            .arg(millis(time))
            .arg(value)
            .arg(traceback);
        pipe.invoke_script(&call);
    }

    fn unique_key(&self, key: &str) -> String {
        format!("{}orchestra:unique:{key}", self.prefix)
    }
}

impl Settled {
    /// What it holds beside a few words.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Ended { value, traceback, .. } => value.get().len() + traceback.len(),
            Self::Away(_) | Self::Free => 0,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 48)
}

fn seen(answer: Value) -> Result<Seen, Error> {
    type Fields = (
        Option<String>,
        Option<String>,
        Option<String>,
        Option<String>,
        Option<String>,
    );
    if answer == Value::Nil {
        return Ok(Seen::Free);
    }
    let unread = |error: &dyn std::fmt::Display| Error::Refused(format!("an idempotency key cannot be read: {error}"));
    let (holder, id, state, value, traceback): Fields =
        redis::from_redis_value(answer).map_err(|error| unread(&error))?;
    let (Some(token), Some(state)) = (holder, state) else {
        return Ok(Seen::Free);
    };
    let id = id.unwrap_or_default();
    Ok(match &*state {
        "HELD" | "AWAY" => Seen::Taken {
            id,
            token,
            away: state == "AWAY",
        },
        _ => Seen::Ended(Ended {
            id,
            state,
            value: serde_json::from_str(&value.unwrap_or_default()).map_err(|error| unread(&error))?,
            traceback: traceback.unwrap_or_default(),
        }),
    })
}
