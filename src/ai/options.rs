//! What the AI layer is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::permits::Permits;

/// Where an Ollama server listens when nobody says otherwise.
pub const DEFAULT_HOST: &str = "http://127.0.0.1:11434";

/// Settings of the AI layer.
#[derive(Clone, Debug)]
pub struct Options {
    /// Templates.
    pub templates: Folder,
    /// Task files.
    pub tasks: Folder,
    /// Base URLs of Ollama servers, in order of preference.
    pub hosts: Vec<String>,
    /// Allow models that run on ollama.com.
    pub allow_cloud: bool,
    /// What templates may do with the host.
    pub permits: Permits,
    /// Bounds on one call.
    pub limits: CallLimits,
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
    /// From the request to the first piece of the answer: loading, queueing and reading the prompt included.
    pub first_token: Duration,
    /// Between two pieces of the answer.
    pub stall: Duration,
    /// Largest answer, in bytes.
    pub answer_bytes: usize,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_token: Duration::from_secs(600),
            stall: Duration::from_secs(120),
            answer_bytes: 16 << 20,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            templates: Folder::Default("templates".into()),
            tasks: Folder::Default("tasks".into()),
            hosts: vec![DEFAULT_HOST.to_owned()],
            allow_cloud: false,
            permits: Permits::default(),
            limits: CallLimits::default(),
        }
    }
}
