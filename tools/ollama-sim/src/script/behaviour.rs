//! The behaviours: which there are, and what each does before, during and after its text.

use std::time::Duration;

use crate::error::Error;

/// What a scripted model does. README.md has the table for readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Echo,
    Lorem,
    Slow,
    SlowLoad,
    Endless,
    Json,
    BadJson,
    Misfit,
    Thinking,
    Tools,
    Flaky,
    FlakyMidstream,
    FlakyJson,
    Missing,
    Hang,
    Stall,
    NoDone,
    CutMidstream,
    ErrorMidstream,
    BadFrame,
    HugeLine,
    Error400,
    Error429,
    Error500,
    Error502,
    Error503,
    ErrorLoad,
    ErrorMemory,
    Vision,
    Remote,
    Embed,
    EmbedShort,
    EmbedUneven,
}

use Behaviour::*;

/// Every behaviour under the name of its model.
pub const ALL: [(&str, Behaviour); 33] = [
    ("echo", Echo),
    ("lorem", Lorem),
    ("slow", Slow),
    ("slow-load", SlowLoad),
    ("endless", Endless),
    ("json", Json),
    ("bad-json", BadJson),
    ("misfit", Misfit),
    ("thinking", Thinking),
    ("tools", Tools),
    ("flaky", Flaky),
    ("flaky-midstream", FlakyMidstream),
    ("flaky-json", FlakyJson),
    ("missing", Missing),
    ("hang", Hang),
    ("stall", Stall),
    ("no-done", NoDone),
    ("cut-midstream", CutMidstream),
    ("error-midstream", ErrorMidstream),
    ("bad-frame", BadFrame),
    ("huge-line", HugeLine),
    ("error-400", Error400),
    ("error-429", Error429),
    ("error-500", Error500),
    ("error-502", Error502),
    ("error-503", Error503),
    ("error-load", ErrorLoad),
    ("error-memory", ErrorMemory),
    ("vision", Vision),
    ("remote", Remote),
    ("embed", Embed),
    ("embed-short", EmbedShort),
    ("embed-uneven", EmbedUneven),
];

impl Behaviour {
    pub fn parse(name: &str) -> Option<Self> {
        ALL.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, behaviour)| *behaviour)
    }

    /// What a behaviour that fails once does at the first try, and at the second.
    pub fn tries(self) -> Option<[Self; 2]> {
        match self {
            Flaky => Some([Error500, Echo]),
            FlakyMidstream => Some([CutMidstream, Echo]),
            FlakyJson => Some([BadJson, Json]),
            _ => None,
        }
    }

    pub fn capabilities(self) -> &'static [&'static str] {
        match self {
            Thinking => &["completion", "thinking"],
            Tools => &["completion", "tools"],
            Vision => &["completion", "vision"],
            Embed | EmbedShort | EmbedUneven => &["embedding"],
            _ => &["completion"],
        }
    }

    /// The pause before each token, where the behaviour has one of its own.
    pub fn delay(self) -> Option<Duration> {
        (self == Slow).then_some(Duration::from_millis(100))
    }

    /// Time that the load takes, where the behaviour has one of its own.
    pub fn load_delay(self) -> Option<Duration> {
        (self == SlowLoad).then_some(Duration::from_secs(2))
    }

    /// Loading the model fails, so even an empty prompt is refused.
    pub fn load_error(self) -> Option<Error> {
        match self {
            Error503 => Some(Error::busy()),
            ErrorLoad => Some(Error::new(500, "llama-server process has terminated: signal: killed")),
            ErrorMemory => Some(Error::new(
                500,
                "llama-server process has terminated: cudaMalloc failed: out of memory",
            )),
            _ => None,
        }
    }

    /// The answer fails before its first frame.
    pub fn early_error(self) -> Option<Error> {
        match self {
            Error400 => Some(Error::new(
                400,
                r#"{"error":{"code":400,"message":"request (631 tokens) exceeds the available context size (256 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":631,"n_ctx":256}}"#,
            )),
            Error429 => Some(Error::new(429, "too many requests")),
            Error500 => Some(Error::runner_stopped()),
            Error502 => Some(Error::new(502, "dial tcp 127.0.0.1:1: connect: connection refused")),
            _ => None,
        }
    }
}
