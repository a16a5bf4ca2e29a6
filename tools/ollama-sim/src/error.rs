//! An error as the API tells it: a status and a text.

use std::fmt;

/// Before the first frame it becomes the response's status and `{"error": text}`; after it, a last line
/// `{"error": text}` under status 200.
#[derive(Debug, Clone)]
pub struct Error {
    pub status: u16,
    pub text: String,
}

impl Error {
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }

    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(400, text)
    }

    /// The engine died, or went away, before it sent anything.
    pub fn runner_stopped() -> Self {
        Self::new(
            500,
            "model runner has unexpectedly stopped, this may be due to resource limitations or an internal \
             error, check ollama server logs for details",
        )
    }

    /// The engine died while it was sending.
    pub fn broken_off() -> Self {
        Self::new(500, "an error was encountered while running the model: unexpected EOF")
    }

    /// The model has no embeddings; the engine's text.
    pub fn no_embeddings() -> Self {
        Self::new(
            501,
            "This server does not support embeddings. Start it with `--embeddings`",
        )
    }

    /// The engine found no memory: then every model goes.
    pub fn is_out_of_memory(&self) -> bool {
        self.text.contains("out of memory")
    }

    /// The load queue is full. Two blanks, as on the wire.
    pub fn busy() -> Self {
        Self::new(503, "server busy, please try again.  maximum pending requests exceeded")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}
