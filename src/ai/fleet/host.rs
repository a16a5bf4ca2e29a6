//! A host, as the settings describe it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::super::ollama::{Server, Speaks};

/// A model server and how much of it may be used; a line of `ai_hosts`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HostOptions {
    /// Its base URL.
    pub url: String,
    /// `ollama`, or `openai` for servers that speak OpenAI's API.
    #[serde(default)]
    pub kind: Speaks,
    /// How much faster than other hosts it is.
    #[serde(default = "one")]
    pub weight: f64,
    /// Calls at once, of all workers together.
    #[serde(default = "HostOptions::default_parallel")]
    pub max_parallel: usize,
    /// Models in memory at once (`OLLAMA_MAX_LOADED_MODELS`).
    #[serde(default = "HostOptions::default_loaded")]
    pub max_loaded: usize,
    /// Its video memory in bytes; where it is given, no load is asked for that would throw out a model in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram: Option<u64>,
    /// The models it is used for, with `*`; all that it has, if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Environment variable with the key that is sent as `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// File with that key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// More headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

fn one() -> f64 {
    1.0
}

impl From<&str> for HostOptions {
    fn from(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            kind: Speaks::Ollama,
            weight: one(),
            max_parallel: Self::default_parallel(),
            max_loaded: Self::default_loaded(),
            vram: None,
            models: Vec::new(),
            api_key_env: None,
            api_key_file: None,
            headers: BTreeMap::new(),
        }
    }
}

impl HostOptions {
    fn default_parallel() -> usize {
        4
    }

    fn default_loaded() -> usize {
        3
    }
}

/// A host that is used.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where it is.
    pub server: Server,
    /// How much of it may be used.
    pub options: HostOptions,
}

impl Host {
    /// Reads what the settings name.
    ///
    /// # Errors
    /// A text for people: what is wrong with the host.
    pub fn new(options: &HostOptions) -> Result<Self, String> {
        let wrong = |text: String| format!("ai_hosts: {}: {text}", shown(&options.url));
        let mut server = Server::new(&options.url, options.kind)?;
        if options.weight <= 0.0 || !options.weight.is_finite() {
            return Err(wrong("weight must be a positive number".into()));
        }
        if options.max_parallel == 0 || options.max_loaded == 0 {
            return Err(wrong("max_parallel and max_loaded must be at least 1".into()));
        }
        server.headers = options.headers.clone().into_iter().collect();
        // A password in the URL would stand in every answer and log.
        if let Some((url, user)) = without_user(&server.url.clone()) {
            server.url = url;
            let value = format!("Basic {}", STANDARD.encode(user));
            server.headers.push(("authorization".into(), value));
        }
        if let Some(key) = key(options).map_err(wrong)? {
            server.headers.push(("authorization".into(), format!("Bearer {key}")));
        }
        for (name, value) in &server.headers {
            let is_token = !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            if !is_token || value.chars().any(char::is_control) {
                return Err(wrong(format!("{name:?} is no header with its value on one line")));
            }
        }
        Ok(Self {
            server,
            options: options.clone(),
        })
    }

    /// Its base URL, by which it is known.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// Whether prompts go over a network in the clear (O-093).
    pub fn is_in_the_clear(&self) -> bool {
        let Some(rest) = self.server.url.strip_prefix("http://") else {
            return false;
        };
        !["127.", "localhost", "[::1]"].iter().any(|here| rest.starts_with(here))
    }
}

fn key(options: &HostOptions) -> Result<Option<String>, String> {
    if let Some(name) = &options.api_key_env {
        let key = std::env::var(name).map_err(|_| format!("api_key_env: the environment has no {name}"))?;
        return Ok(Some(key.trim().to_owned()));
    }
    let Some(path) = &options.api_key_file else {
        return Ok(None);
    };
    let key = std::fs::read_to_string(path).map_err(|error| format!("api_key_file: {}: {error}", path.display()))?;
    Ok(Some(key.trim().to_owned()))
}

fn without_user(url: &str) -> Option<(String, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find('/').unwrap_or(rest.len());
    let at = rest[..end].rfind('@')?;
    Some((format!("{scheme}://{}", &rest[at + 1..]), &rest[..at]))
}

/// A URL as it may be shown.
fn shown(url: &str) -> String {
    without_user(url).map_or_else(|| url.to_owned(), |(url, _)| url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o_091_a_password_goes_into_a_header_and_into_no_text() {
        let host = Host::new(&"http://me:hunter2@gpu:11434/x".into()).unwrap();
        assert_eq!(host.url(), "http://gpu:11434/x");
        assert_eq!(
            host.server.headers,
            [("authorization".to_owned(), "Basic bWU6aHVudGVyMg==".to_owned())]
        );
        assert!(!format!("{:?}", host.server).contains("bWU6"));
        let mut options = HostOptions::from("http://me:hunter2@gpu");
        options.weight = -1.0;
        assert!(!Host::new(&options).unwrap_err().contains("hunter2"));
    }

    #[test]
    fn o_093_plain_http_over_a_network_is_noticed() {
        let clear = |url: &str| Host::new(&url.into()).unwrap().is_in_the_clear();
        assert!(clear("http://gpu1:11434"));
        assert!(!clear("https://gpu1") && !clear("127.0.0.1:1") && !clear("http://localhost:2"));
    }

    #[test]
    fn a_key_that_is_not_there_is_named() {
        let mut options = HostOptions::from("http://gpu");
        options.api_key_env = Some("NO_SUCH_KEY_HERE".into());
        assert_eq!(
            Host::new(&options).unwrap_err(),
            "ai_hosts: http://gpu: api_key_env: the environment has no NO_SUCH_KEY_HERE"
        );
    }
}
