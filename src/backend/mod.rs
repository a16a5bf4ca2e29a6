//! Results in Redis (`celery.backends.redis`), and the token streams of running tasks.

mod chord;
mod look;
mod notes;
mod read;
mod unique;
mod write;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, Pipeline, Script, Value};

use crate::conn::{Link, Patience};
use crate::wire::ResultFormat;

pub use crate::conn::Error;
pub use chord::{Claim, Counted, Part};
pub use notes::Resumed;
pub use read::StreamEntry;
pub use unique::{Ended, Holder, Seen, Settled};
pub use write::Write;

/// How results are kept. Names are Celery's.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a result is kept; `None` is for ever.
    pub result_expires: Option<Duration>,
    /// How long a failure is kept, if not as long as a result; zero is for ever.
    pub result_failure_expires: Option<Duration>,
    /// How long the results of a chord's header with groups in it are waited for (`result_chord_join_timeout`); `None`
    /// is for ever.
    pub chord_join_timeout: Option<Duration>,
    /// Whether the body of a chord gets the results in the order of the header (`result_chord_ordered`), or as they
    /// came. The same for all workers of a chord.
    pub chord_ordered: bool,
    /// In front of every key; like Celery an `_` is put behind it unless it ends in one of `:_-.`.
    pub global_keyprefix: String,
    /// How results, parts of chords and groups are written.
    pub format: ResultFormat,
    /// Pause between two looks of `celery.chord_unlock`, which Celery's clients send for other backends
    /// (`result_chord_retry_interval`).
    pub chord_retry_interval: Duration,
    /// How long a token stream is kept after its last entry.
    pub stream_expires: Duration,
    /// About how many entries of a token stream are kept (`max_stream_entries`).
    pub stream_length: usize,
    /// Most bytes that one task keeps for its later deliveries (`max_kept_bytes`).
    pub kept_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            result_expires: Some(Duration::from_secs(86_400)),
            result_failure_expires: None,
            chord_join_timeout: Some(Duration::from_secs(3)),
            chord_ordered: true,
            global_keyprefix: String::new(),
            format: ResultFormat::default(),
            chord_retry_interval: Duration::from_secs(1),
            stream_expires: Duration::from_secs(3600),
            stream_length: 10_000,
            kept_bytes: 64 << 20,
        }
    }
}

/// A result backend. Clones share its connection.
#[derive(Clone, Debug)]
pub struct Backend {
    link: Link,
    options: Arc<Options>,
    prefix: String,
    scripts: Arc<Scripts>,
    /// Results are compressed, by us or by others: their states are looked at before they are replaced.
    looks: Arc<AtomicBool>,
    /// What is asked with it is asked again until it is answered.
    patience: Option<Patience>,
    /// The messages of tasks are on the same server, and end when the results are stored.
    ends_messages: bool,
}

/// Compiled in, loaded on every connection.
#[derive(Debug)]
struct Scripts {
    store: Script,
    revoke: Script,
    chord_part: Script,
    chord_claim: Script,
    chord_end: Script,
    chord_send: Script,
    keep: Script,
    park: Script,
    resume: Script,
    tell: Script,
    unique_claim: Script,
    unique_keep: Script,
    unique_end: Script,
}

/// A script that reads states of records.
fn judging(script: &str) -> Script {
    Script::new(&[include_str!("scripts/state.lua"), script].concat())
}

impl Backend {
    /// A backend on a connection, which may be the broker's own.
    ///
    /// # Errors
    /// The server cannot be reached or refuses scripts.
    pub async fn new(link: Link, options: Options) -> Result<Self, Error> {
        let scripts = Scripts {
            store: judging(include_str!("scripts/store.lua")),
            revoke: judging(include_str!("scripts/revoke.lua")),
            chord_part: Script::new(include_str!("scripts/chord_part.lua")),
            chord_claim: Script::new(include_str!("scripts/chord_claim.lua")),
            chord_end: Script::new(include_str!("scripts/chord_end.lua")),
            chord_send: Script::new(include_str!("scripts/chord_send.lua")),
            keep: Script::new(include_str!("scripts/keep.lua")),
            park: Script::new(include_str!("scripts/park.lua")),
            resume: Script::new(include_str!("scripts/resume.lua")),
            tell: Script::new(include_str!("scripts/tell.lua")),
            unique_claim: Script::new(include_str!("scripts/unique_claim.lua")),
            unique_keep: Script::new(include_str!("scripts/unique_keep.lua")),
            unique_end: Script::new(include_str!("scripts/unique_end.lua")),
        };
        let all = [
            &scripts.store,
            &scripts.revoke,
            &scripts.chord_part,
            &scripts.chord_claim,
            &scripts.chord_end,
            &scripts.chord_send,
            &scripts.keep,
            &scripts.park,
            &scripts.resume,
            &scripts.tell,
            &scripts.unique_claim,
            &scripts.unique_keep,
            &scripts.unique_end,
        ];
        link.register(all.map(Clone::clone)).await?;
        let prefix = match options.global_keyprefix.as_str() {
            "" => String::new(),
            prefix if prefix.ends_with([':', '_', '-', '.']) => prefix.to_owned(),
            prefix => format!("{prefix}_"),
        };
        Ok(Self {
            link,
            looks: Arc::new(options.format.compresses().into()),
            options: Arc::new(options),
            prefix,
            scripts: Arc::new(scripts),
            patience: None,
            ends_messages: false,
        })
    }

    /// The same for a caller who asks until he is answered: each answer that did not come in time is waited for longer
    /// by the next try, so that what is large gets through a slow network.
    pub(crate) fn patient(&self) -> Self {
        Self {
            patience: Some(Patience::default()),
            ..self.clone()
        }
    }

    /// The same for a worker whose broker it is as well: results that are small are stored there also when the memory is
    /// full, since the messages that go then are larger.
    pub(crate) fn ending_messages(self) -> Self {
        Self {
            ends_messages: true,
            ..self
        }
    }

    async fn pipeline(&self, pipe: &Pipeline) -> Result<Vec<Value>, Error> {
        let patience = self.patience.clone().unwrap_or_default();
        self.link.pipeline_with(pipe, &patience).await
    }

    /// A pipeline of which nothing may be refused.
    async fn insisted(&self, pipe: &Pipeline) -> Result<Vec<Value>, Error> {
        let answers = self.pipeline(pipe).await?;
        let refused = answers.iter().find_map(|answer| match answer {
            Value::ServerError(error) => Some(Error::Refused(format!("Redis refused: {error}"))),
            _ => None,
        });
        refused.map_or(Ok(answers), Err)
    }

    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut pipe = Pipeline::with_capacity(1);
        pipe.add_command(command.clone());
        match self.pipeline(&pipe).await?.pop().unwrap_or(Value::Nil) {
            Value::ServerError(error) => Err(Error::Refused(format!("Redis refused: {error}"))),
            value => T::from_redis_value(value)
                .map_err(|error| Error::Refused(format!("unexpected answer of Redis: {error}"))),
        }
    }

    /// Its connection.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// How it is used.
    pub fn options(&self) -> &Options {
        &self.options
    }

    fn result_key(&self, id: &str) -> String {
        format!("{}celery-task-meta-{id}", self.prefix)
    }

    fn stream_key(&self, id: &str) -> String {
        format!("{}orchestra:stream:{id}", self.prefix)
    }
}
