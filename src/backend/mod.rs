//! Results in Redis (`celery.backends.redis`), and the token streams of running tasks.

mod chord;
mod notes;
mod read;
mod write;

use std::sync::Arc;
use std::time::Duration;

use redis::Script;

use crate::conn::Link;

pub use crate::conn::Error;
pub use chord::{Claim, Counted, Part};
pub use notes::Resumed;
pub use read::StreamEntry;
pub use write::Write;

/// How results are kept. Names are Celery's.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a result is kept; `None` is for ever.
    pub result_expires: Option<Duration>,
    /// How long a failure is kept, if not as long as a result.
    pub result_failure_expires: Option<Duration>,
    /// In front of every key; like Celery an `_` is put behind it unless it ends in one of `:_-.` (trap T26).
    pub global_keyprefix: String,
    /// How long a token stream is kept after its last entry.
    pub stream_expires: Duration,
    /// About how many entries of a token stream are kept.
    pub stream_length: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            result_expires: Some(Duration::from_secs(86_400)),
            result_failure_expires: None,
            global_keyprefix: String::new(),
            stream_expires: Duration::from_secs(3600),
            stream_length: 10_000,
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
}

impl Backend {
    /// A backend on a connection, which may be the broker's own.
    ///
    /// # Errors
    /// The server cannot be reached or refuses scripts.
    pub async fn new(link: Link, options: Options) -> Result<Self, Error> {
        let scripts = Scripts {
            store: Script::new(include_str!("scripts/store.lua")),
            revoke: Script::new(include_str!("scripts/revoke.lua")),
            chord_part: Script::new(include_str!("scripts/chord_part.lua")),
            chord_claim: Script::new(include_str!("scripts/chord_claim.lua")),
            chord_end: Script::new(include_str!("scripts/chord_end.lua")),
            chord_send: Script::new(include_str!("scripts/chord_send.lua")),
            keep: Script::new(include_str!("scripts/keep.lua")),
            park: Script::new(include_str!("scripts/park.lua")),
            resume: Script::new(include_str!("scripts/resume.lua")),
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
        ];
        link.register(all.map(Clone::clone)).await?;
        let prefix = match options.global_keyprefix.as_str() {
            "" => String::new(),
            prefix if prefix.ends_with([':', '_', '-', '.']) => prefix.to_owned(),
            prefix => format!("{prefix}_"),
        };
        Ok(Self {
            link,
            options: Arc::new(options),
            prefix,
            scripts: Arc::new(scripts),
        })
    }

    /// Its connection.
    pub fn link(&self) -> &Link {
        &self.link
    }

    fn result_key(&self, id: &str) -> String {
        format!("{}celery-task-meta-{id}", self.prefix)
    }

    fn stream_key(&self, id: &str) -> String {
        format!("{}orchestra:stream:{id}", self.prefix)
    }
}
