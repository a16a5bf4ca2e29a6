//! What the AI layer is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fleet::{Budget, HostOptions, Profile, Rate, Strategy};
use super::permits::Permits;
use crate::conn::Endpoint;

/// Where an Ollama server listens when nobody says otherwise.
pub const DEFAULT_HOST: &str = "http://127.0.0.1:11434";

/// Settings of the AI layer.
#[derive(Clone, Debug)]
pub struct Options {
    /// Templates.
    pub templates: Folder,
    /// Task files.
    pub tasks: Folder,
    /// Model servers.
    pub hosts: Vec<HostOptions>,
    /// How models are loaded, by name.
    pub models: BTreeMap<String, Profile>,
    /// Models that a host may fetch when a call asks for them, with `*`.
    pub pull: Vec<String>,
    /// How long a call for a model that is in no memory lets those go first whose model is.
    pub switch_after: Duration,
    /// How many tasks may run before one that came earlier and whose model is in no memory; 0 keeps the order.
    pub overtaking: u32,
    /// How hosts are chosen.
    pub routing: Strategy,
    /// How long a call waits for a place.
    pub queue: Duration,
    /// Keep what was asked in the record of a call.
    pub record_prompts: bool,
    /// How much may be used.
    pub budgets: Vec<Budget>,
    /// How much may be used in a time.
    pub rates: Vec<Rate>,
    /// Where workers agree on who asks which host: Redis, and what its keys begin with. Without it each process is
    /// alone.
    pub redis: Option<(Endpoint, String)>,
    /// Allow models that run on ollama.com.
    pub allow_cloud: bool,
    /// What templates may do with the host.
    pub permits: Permits,
    /// Bounds on one call.
    pub limits: CallLimits,
    /// Bounds on a text that a template renders.
    pub texts: TextLimits,
    /// Bounds on texts that are embedded together.
    pub batches: Batches,
}

/// A folder of files.
#[derive(Clone, Debug)]
pub enum Folder {
    /// Used if it is there.
    Default(PathBuf),
    /// Somebody named it, so it must be there.
    Named(PathBuf),
}

impl Folder {
    /// Its path.
    pub fn path(&self) -> &Path {
        match self {
            Self::Default(path) | Self::Named(path) => path,
        }
    }
}

/// Bounds on one call of a model.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// To connect.
    pub connect: Duration,
    /// To load a model, where it is not in memory.
    pub load: Duration,
    /// From the request, or the end of a load, to the first piece of the answer: the host's own queue and reading the
    /// prompt included.
    pub first_token: Duration,
    /// Between two pieces of the answer.
    pub stall: Duration,
    /// For the whole call, without the wait for a place; `None` leaves that to the task's time limit.
    pub whole: Option<Duration>,
    /// Most tokens of an answer whose call sets no end (O-022); 0 sets none.
    pub tokens: u64,
    /// Largest answer, in bytes.
    pub answer_bytes: usize,
    /// Largest answer that is cached, in bytes.
    pub cached_bytes: usize,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            load: Duration::from_secs(600),
            first_token: Duration::from_secs(600),
            stall: Duration::from_secs(120),
            whole: None,
            tokens: 32_768,
            answer_bytes: 16 << 20,
            cached_bytes: 1 << 20,
        }
    }
}

/// Bounds on a text that a template renders.
#[derive(Clone, Copy, Debug)]
pub struct TextLimits {
    /// How much work it may be: a loop over a book is fine, a loop without end is not.
    pub steps: u64,
    /// Its length.
    pub bytes: usize,
}

impl Default for TextLimits {
    fn default() -> Self {
        Self {
            steps: 5_000_000,
            bytes: 16 << 20,
        }
    }
}

/// Bounds on single texts of several tasks that are embedded together.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    /// Texts; with 1 each goes alone.
    pub texts: usize,
    /// Their bytes.
    pub bytes: usize,
    /// How long the first waits for others.
    pub wait: Duration,
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            texts: 64,
            bytes: 1 << 20,
            wait: Duration::from_millis(5),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            templates: Folder::Default("templates".into()),
            tasks: Folder::Default("tasks".into()),
            hosts: vec![DEFAULT_HOST.into()],
            models: BTreeMap::new(),
            pull: Vec::new(),
            switch_after: Duration::from_secs(30),
            overtaking: 16,
            routing: Strategy::default(),
            queue: Duration::from_secs(3600),
            record_prompts: false,
            budgets: Vec::new(),
            rates: Vec::new(),
            redis: None,
            allow_cloud: false,
            permits: Permits::default(),
            limits: CallLimits::default(),
            texts: TextLimits::default(),
            batches: Batches::default(),
        }
    }
}
