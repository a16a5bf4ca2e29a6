//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::keep_alive::{KeepAlive, parse_duration};

/// An Ollama-compatible HTTP front for demos and tests.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Args {
    /// What answers: scripted behaviours, a small real model, or recorded answers.
    #[arg(long, value_enum, default_value_t = BackendKind::Script)]
    pub backend: BackendKind,

    /// Pass requests on to this server, and write its answers to --cassette.
    #[arg(long, value_name = "URL", requires = "cassette")]
    pub record: Option<String>,

    /// Folder of recorded answers.
    #[arg(long, value_name = "DIR", required_if_eq("backend", "cassette"))]
    pub cassette: Option<PathBuf>,

    /// Play recorded answers so many times as fast; 0 makes no pauses.
    #[arg(long, value_name = "TIMES", default_value_t = 1.0)]
    pub speed: f64,

    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:11434")]
    pub host: SocketAddr,

    /// Address of the control listener (`GET /_stats`, `GET /_requests`, `POST /_reset`); none unless given.
    #[arg(long, value_name = "HOST:PORT")]
    pub control: Option<SocketAddr>,

    /// Address of a second listener, with models whose answers are broken below HTTP (script); none unless given.
    #[arg(long, value_name = "HOST:PORT")]
    pub wire: Option<SocketAddr>,

    /// Model name to offer. Engine: the name of its one model [smollm2:135m]. Script: one more model, as NAME or
    /// NAME=BEHAVIOUR (`lorem` unless given); of NAME=A,B each is for one request, the last for all from then on.
    /// Repeatable with the script.
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,

    /// Python interpreter that has the `xllamacpp` package (engine).
    #[arg(long, value_name = "PATH", required_if_eq("backend", "engine"))]
    pub engine_python: Option<PathBuf>,

    /// The model's .gguf file (engine).
    #[arg(long, value_name = "PATH", required_if_eq("backend", "engine"))]
    pub model_file: Option<PathBuf>,

    /// Threads of the engine. More than one is slow where other work shares the cores.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: u32,

    /// Window of one slot in tokens, where a request names none.
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    pub num_ctx: u32,

    /// Slots: requests worked on at once [engine: 1, script: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: Option<u16>,

    /// Requests that may wait for a load before the rest get 503.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_queue: usize,

    /// Models in memory at once; 0 is any number [engine: 1].
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_loaded: usize,

    /// Memory of the video card in bytes: a load that needs more than four fifths of what is free throws models out.
    #[arg(long, value_name = "BYTES")]
    pub vram: Option<u64>,

    /// Size of a model of the script in bytes. Repeatable.
    #[arg(long = "model-size", value_name = "NAME=BYTES")]
    pub model_sizes: Vec<String>,

    /// A model that is not installed and can be pulled (script). Repeatable.
    #[arg(long = "pullable", value_name = "NAME[=BEHAVIOUR]")]
    pub pullable: Vec<String>,

    /// Time that a pull takes in the script, as a Go duration.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration)]
    pub pull_delay: Duration,

    /// How long an unused model stays loaded, as a Go duration; negative is for ever.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = keep_alive, allow_hyphen_values = true)]
    pub keep_alive: KeepAlive,

    /// Pause before each token of the script's ordinary behaviours, as a Go duration.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration)]
    pub token_delay: Duration,

    /// Time that a load takes in the script, as a Go duration.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration)]
    pub load_delay: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendKind {
    Engine,
    Script,
    /// Answers that were recorded.
    Cassette,
}

impl Args {
    /// How many requests are worked on at once; `None` for no limit.
    pub fn slots(&self) -> Option<usize> {
        match (self.parallel, self.backend) {
            (Some(slots), _) => Some(slots.into()),
            (None, BackendKind::Engine) => Some(1),
            (None, BackendKind::Script | BackendKind::Cassette) => None,
        }
    }
}

impl Args {
    /// How many models are in memory at once; `None` for any number.
    pub fn max_loaded(&self) -> Option<usize> {
        (self.max_loaded > 0).then_some(self.max_loaded)
    }
}

fn keep_alive(text: &str) -> Result<KeepAlive, String> {
    let parsed = KeepAlive::parse(&serde_json::Value::from(text))?;
    parsed.ok_or_else(|| "no duration".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let nanos = parse_duration(text)?;
    u64::try_from(nanos)
        .map(Duration::from_nanos)
        .map_err(|_| "a duration cannot be negative here".to_owned())
}
