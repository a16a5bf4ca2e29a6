//! A model server: where it is, what it speaks, what it wants to be told with every request.

use std::fmt;

/// What a server speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaks {
    /// Ollama's own API.
    #[default]
    Ollama,
    /// OpenAI's API under `/v1`: llama.cpp, vLLM, LM Studio and others.
    Openai,
}

/// A model server.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// Scheme, host, port and path, without a slash at the end.
    pub url: String,
    /// What it speaks.
    pub speaks: Speaks,
    /// Headers of every request; secrets.
    pub headers: Vec<(String, String)>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Server")
            .field("url", &self.url)
            .field("speaks", &self.speaks)
            .field("headers", &names)
            .finish()
    }
}

impl Server {
    /// A server without headers, at an address as people write it.
    ///
    /// # Errors
    /// A text for people: the address is none.
    pub fn new(address: &str, speaks: Speaks) -> Result<Self, String> {
        Ok(Self {
            url: super::http::base_url(address)?,
            speaks,
            headers: Vec::new(),
        })
    }
}
