//! The model servers as one: which of them answers a call, and when.

use super::ollama::{Answer, Fault, Ollama, Piece, Request};
use super::options::Options;

/// All model servers that this worker may use. Clones share everything.
#[derive(Clone, Debug)]
pub struct Fleet {
    ollama: Ollama,
    allow_cloud: bool,
}

impl Fleet {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// A text for people: an address is none, or TLS cannot be set up.
    pub fn new(options: &Options) -> Result<Self, String> {
        Ok(Self {
            ollama: Ollama::new(&options.hosts, options.limits)?,
            allow_cloud: options.allow_cloud,
        })
    }

    /// Whether models may be asked that run on ollama.com.
    pub(super) fn allow_cloud(&self) -> bool {
        self.allow_cloud
    }

    /// The servers, as HTTP.
    pub fn ollama(&self) -> &Ollama {
        &self.ollama
    }

    /// Asks a server that can answer; pieces go to `on_piece` as they come.
    pub(super) async fn ask(
        &self,
        request: &Request,
        on_piece: &mut (dyn FnMut(Piece) + Send),
    ) -> Result<Answer, Fault> {
        self.ollama.ask(request, on_piece).await
    }
}
