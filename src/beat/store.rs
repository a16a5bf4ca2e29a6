//! The schedule in Redis, where it can be changed while beat runs.
//!
//! | key | what |
//! | --- | --- |
//! | `orchestra:beat:schedule` | hash: name, entry as JSON in the form of Celery's `beat_schedule` |
//! | `orchestra:beat:disabled` | set: names of entries that are not sent |
//! | `orchestra:beat:files` | set: names of entries that come from files |
//! | `orchestra:beat:last_run_at` | hash: name, when it was last sent (ISO-8601, UTC) |
//! | `orchestra:beat:total_run_count` | hash: name, how often |
//! | `orchestra:beat:lock` | the token of the beat that sends; it expires |
//! | `orchestra:beat:free` | there for a second when a beat that stops gives the lock back |
//!
//! All have the broker's `global_keyprefix` in front. Scripts change what belongs together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use redis::{FromRedisValue, Pipeline, Script, ScriptInvocation, Value};

use super::Entry;
use crate::broker::{self, Broker, Error, Write};
use crate::clock::{self, Timestamp};

const SCHEDULE: &str = "orchestra:beat:schedule";
const DISABLED: &str = "orchestra:beat:disabled";
const FILES: &str = "orchestra:beat:files";
const LAST_RUN_AT: &str = "orchestra:beat:last_run_at";
const TOTAL_RUN_COUNT: &str = "orchestra:beat:total_run_count";
const LOCK: &str = "orchestra:beat:lock";
const FREE: &str = "orchestra:beat:free";

/// The schedule in Redis. Clones share its connection.
#[derive(Clone, Debug)]
pub struct Store {
    broker: Broker,
    hold: Script,
    release: Script,
    advance: Script,
    files: Script,
    forget: Script,
}

/// An entry as it stands in Redis, not yet understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// JSON in the form of Celery's `beat_schedule`.
    pub text: String,
    /// Whether it is sent.
    pub enabled: bool,
    /// Whether it comes from a file, where it has to be changed then.
    pub from_file: bool,
    /// When it was last sent, as it stands there; empty if it never was.
    pub last_run_at: String,
    /// How often.
    pub total_run_count: u64,
}

impl Stored {
    /// When it was last sent.
    pub fn last_run_at(&self) -> Option<Timestamp> {
        clock::parse_iso(&self.last_run_at).ok()
    }
}

/// Who has the lock, after asking for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// We have it since now.
    Taken,
    /// We still have it.
    Renewed,
    /// Another beat has it, for so long if it does not renew it.
    ByAnother(Duration),
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advanced {
    /// It is done.
    Done,
    /// The lock is not ours: nothing was sent.
    NotOurs,
    /// Something is not as we know it: nothing was sent.
    Changed,
}

impl Store {
    /// The schedule of a broker.
    ///
    /// # Errors
    /// The server cannot be reached or refuses scripts.
    pub async fn new(broker: Broker) -> Result<Self, Error> {
        let store = Self {
            broker,
            hold: Script::new(include_str!("scripts/hold.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            advance: broker::routed(include_str!("scripts/advance.lua")),
            files: Script::new(include_str!("scripts/files.lua")),
            forget: Script::new(include_str!("scripts/forget.lua")),
        };
        let scripts = [&store.hold, &store.release, &store.advance, &store.files, &store.forget];
        store.broker.writer().register(scripts.map(Clone::clone)).await?;
        Ok(store)
    }

    /// All entries, by name.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn entries(&self) -> Result<BTreeMap<String, Stored>, Error> {
        let mut pipe = Pipeline::with_capacity(5);
        pipe.hgetall(self.key(SCHEDULE))
            .smembers(self.key(DISABLED))
            .smembers(self.key(FILES))
            .hgetall(self.key(LAST_RUN_AT))
            .hgetall(self.key(TOTAL_RUN_COUNT));
        let mut replies = self.broker.writer().pipeline(&pipe).await?.into_iter();
        let mut reply = || replies.next().unwrap_or(Value::Nil);
        let (schedule, disabled, files) = (texts(reply())?, names(reply())?, names(reply())?);
        let (mut last, counts) = (texts(reply())?, texts(reply())?);
        let entries = schedule.into_iter().map(|(name, text)| {
            let stored = Stored {
                text,
                enabled: !disabled.contains(&name),
                from_file: files.contains(&name),
                last_run_at: last.remove(&name).unwrap_or_default(),
                total_run_count: counts.get(&name).and_then(|count| count.parse().ok()).unwrap_or(0),
            };
            (name, stored)
        });
        Ok(entries.collect())
    }

    /// The token of the beat that has the lock.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn holder(&self) -> Result<Option<String>, Error> {
        self.broker.writer().query(redis::cmd("GET").arg(self.key(LOCK))).await
    }

    /// Adds an entry, or replaces the one of that name.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn add(&self, entry: &Entry) -> Result<(), Error> {
        let mut pipe = Pipeline::with_capacity(1);
        pipe.hset(self.key(SCHEDULE), &entry.name, entry.text());
        self.run(&pipe).await.map(drop)
    }

    /// Removes an entry and what is known of its runs.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        self.forget(&[SCHEDULE, LAST_RUN_AT, TOTAL_RUN_COUNT, DISABLED], name)
            .await
    }

    /// Says whether an entry is sent. One that is sent again counts from now on: what was due in between is not made up
    /// for.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn enable(&self, name: &str, enabled: bool) -> Result<(), Error> {
        if enabled {
            return self.forget(&[LAST_RUN_AT, DISABLED], name).await;
        }
        let mut pipe = Pipeline::with_capacity(1);
        pipe.sadd(self.key(DISABLED), name);
        self.run(&pipe).await.map(drop)
    }

    /// Removes a name from hashes and from the set behind them.
    async fn forget(&self, keys: &[&str], name: &str) -> Result<(), Error> {
        let mut call = self.forget.prepare_invoke();
        for key in keys {
            call.key(self.key(key));
        }
        call.arg(name);
        self.invoke::<i64>(&call).await.map(drop)
    }

    /// Asks to be woken when entries change or the lock is given back.
    pub(super) async fn watch(&self, pause: Duration) {
        let keys = [SCHEDULE, DISABLED, FREE].map(Into::into);
        self.broker.watch(&keys, pause).await;
    }

    /// Takes or renews the lock; and the time that it is.
    pub(super) async fn hold(&self, token: &str, lifetime: Duration) -> Result<(Held, Timestamp), Error> {
        let mut call = self.hold.prepare_invoke();
        call.key(self.key(LOCK))
            .arg(token)
            .arg(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX).max(1));
        let (held, left, seconds, microseconds): (i64, i64, i64, i32) = self.invoke(&call).await?;
        let held = match held {
            2 => Held::Taken,
            1 => Held::Renewed,
            _ => Held::ByAnother(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
        };
        let now = Timestamp::new(seconds, microseconds.saturating_mul(1000));
        Ok((
            held,
            now.map_err(|error| Error::Refused(format!("the clock of Redis: {error}")))?,
        ))
    }

    /// Gives the lock back.
    pub(super) async fn release(&self, token: &str) -> Result<(), Error> {
        let mut call = self.release.prepare_invoke();
        call.key(self.key(LOCK)).key(self.key(FREE)).arg(token);
        self.invoke::<i64>(&call).await.map(drop)
    }

    /// Makes the entries from files what the files say; whether the lock is ours.
    pub(super) async fn sync(&self, token: &str, entries: &[Entry]) -> Result<bool, Error> {
        let mut call = self.files.prepare_invoke();
        for key in [LOCK, SCHEDULE, LAST_RUN_AT, TOTAL_RUN_COUNT, FILES] {
            call.key(self.key(key));
        }
        call.arg(token);
        for entry in entries {
            call.arg(&entry.name).arg(entry.text());
        }
        Ok(self.invoke::<i64>(&call).await? == 1)
    }

    /// Sends the message of an entry and writes down that it ran; without a message, only the time. `known` is what
    /// the decision stands on.
    pub(super) async fn advance(
        &self,
        token: &str,
        name: &str,
        known: &Stored,
        now: Timestamp,
        message: Option<&Write>,
    ) -> Result<Advanced, Error> {
        let mut call = self.advance.prepare_invoke();
        for key in [LOCK, SCHEDULE, DISABLED, LAST_RUN_AT, TOTAL_RUN_COUNT] {
            call.key(self.key(key));
        }
        call.arg(token).arg(name);
        call.arg(&known.text).arg(&known.last_run_at).arg(clock::iso(now));
        if let Some(message) = message {
            self.broker.address(&mut call, message);
        }
        Ok(match self.invoke::<i64>(&call).await? {
            1 => Advanced::Done,
            0 => Advanced::NotOurs,
            _ => Advanced::Changed,
        })
    }

    fn key(&self, name: &str) -> String {
        self.broker.key(name)
    }

    async fn invoke<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, Error> {
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(call);
        read(self.run(&pipe).await?)
    }

    /// Runs a pipeline; its last answer, or the first refusal.
    async fn run(&self, pipe: &Pipeline) -> Result<Value, Error> {
        let mut last = Value::Nil;
        for value in self.broker.writer().pipeline(pipe).await? {
            if let Value::ServerError(error) = value {
                return Err(Error::Refused(format!("Redis refused: {error}")));
            }
            last = value;
        }
        Ok(last)
    }
}

/// A hash of texts. Anybody may have written it: a name that is no UTF-8 is nobody's, a value that is none is empty.
fn texts(value: Value) -> Result<HashMap<String, String>, Error> {
    let pairs: Vec<(Vec<u8>, Vec<u8>)> = read(value)?;
    let text = |(name, value)| {
        Some((
            String::from_utf8(name).ok()?,
            String::from_utf8(value).unwrap_or_default(),
        ))
    };
    Ok(pairs.into_iter().filter_map(text).collect())
}

fn names(value: Value) -> Result<HashSet<String>, Error> {
    let names: Vec<Vec<u8>> = read(value)?;
    Ok(names
        .iter()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}

fn read<T: FromRedisValue>(value: Value) -> Result<T, Error> {
    if let Value::ServerError(error) = &value {
        return Err(Error::Refused(format!("Redis refused: {error}")));
    }
    T::from_redis_value(value).map_err(|error| Error::Refused(format!("unexpected answer of Redis: {error}")))
}
