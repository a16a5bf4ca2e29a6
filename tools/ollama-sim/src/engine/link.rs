//! HTTP with the engine: its endpoints, and its stream of server-sent events.

use std::time::Duration;

use bytes::BytesMut;
use reqwest::{Client, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::process::Process;
use crate::backend::Message;
use crate::error::Error;

/// The longest event that is accepted, as in the real server.
const LONGEST_EVENT: usize = 8 << 20;

/// One running engine, reachable.
#[derive(Debug)]
pub struct Link {
    pub process: Process,
    client: Client,
}

/// One event of a completion. The last one has `stop` and the timings.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Chunk {
    pub content: String,
    pub tokens: Vec<u64>,
    pub stop: bool,
    pub stop_type: String,
    pub tokens_predicted: u64,
    pub tokens_evaluated: u64,
    pub completion_probabilities: Vec<Value>,
    pub timings: Timings,
    pub error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Timings {
    pub prompt_ms: f64,
    pub predicted_ms: f64,
}

/// The events of a completion. Dropping it closes the connection, and the engine stops.
pub struct Events {
    response: Response,
    buffer: BytesMut,
}

impl Link {
    pub fn new(process: Process) -> Result<Self, Error> {
        // Plain http on loopback: a proxy in the environment has no business here.
        let client = Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(5))
            .build();
        let client = client.map_err(|error| Error::new(500, error.to_string()))?;
        Ok(Self { process, client })
    }

    /// The prompt that the model's own chat template makes of the messages.
    pub async fn apply_template(&self, messages: &[Message]) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Answer {
            prompt: String,
        }
        let messages: Vec<_> = messages
            .iter()
            .map(|m| json!({ "role": m.role, "content": m.content }))
            .collect();
        let answer: Answer = self.call("/apply-template", &json!({ "messages": messages })).await?;
        Ok(answer.prompt)
    }

    pub async fn tokenize(&self, text: &str) -> Result<Vec<u64>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            tokens: Vec<u64>,
        }
        let body = json!({ "content": text, "add_special": true, "parse_special": true });
        Ok(self.call::<Answer>("/tokenize", &body).await?.tokens)
    }

    pub async fn complete(&self, body: &Value) -> Result<Events, Error> {
        let response = self.post("/completion", body).await?;
        Ok(Events {
            response,
            buffer: BytesMut::new(),
        })
    }

    async fn call<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Error> {
        let answer = self
            .post(path, body)
            .await?
            .bytes()
            .await
            .map_err(|_| Error::runner_stopped())?;
        serde_json::from_slice(&answer)
            .map_err(|error| Error::new(500, format!("error unmarshalling llama-server response: {error}")))
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Response, Error> {
        let url = format!("{}{path}", self.process.url);
        let request = self.client.post(url).bearer_auth(&self.process.key).json(body);
        let response = request.send().await.map_err(|_| Error::runner_stopped())?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // The engine's own status and text, even if that is a JSON document.
        let text = response.text().await.map_err(|_| Error::runner_stopped())?;
        Err(Error::new(status.as_u16(), text.trim()))
    }
}

impl Events {
    /// The next event. An error where the engine sends one, or goes away before its last event.
    pub async fn next(&mut self) -> Result<Chunk, Error> {
        loop {
            if let Some(line) = self.line() {
                match data(&line) {
                    Some(data) => return chunk(data),
                    None => continue,
                }
            }
            if self.buffer.len() > LONGEST_EVENT {
                return Err(Error::new(
                    500,
                    "llama-server completion stream event exceeded 8 MB limit",
                ));
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.buffer.extend_from_slice(&bytes),
                Ok(None) | Err(_) => return Err(Error::broken_off()),
            }
        }
    }

    /// Takes one whole line off the buffer.
    fn line(&mut self) -> Option<BytesMut> {
        let end = self.buffer.iter().position(|byte| *byte == b'\n')?;
        Some(self.buffer.split_to(end + 1))
    }
}

/// What an event line carries; blank lines and comments carry nothing.
fn data(line: &[u8]) -> Option<&[u8]> {
    let line = line.trim_ascii_end();
    line.strip_prefix(b"data: ").or_else(|| line.strip_prefix(b"error: "))
}

fn chunk(data: &[u8]) -> Result<Chunk, Error> {
    let chunk: Chunk = serde_json::from_slice(data)
        .map_err(|error| Error::new(500, format!("error unmarshalling llama-server response: {error}")))?;
    match &chunk.error {
        Some(error) => Err(Error::new(500, json!({ "error": error }).to_string())),
        None => Ok(chunk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_lines_carry_something() {
        assert_eq!(data(b"data: {}\r\n"), Some(&b"{}"[..]));
        assert_eq!(data(b"\n"), None);
        assert_eq!(data(b": ping\n"), None);
    }

    #[test]
    fn an_error_event_is_the_engines_text() {
        let error = chunk(br#"{"error":{"code":500,"message":"no"}}"#).expect_err("an error");
        assert_eq!(error.text, r#"{"error":{"code":500,"message":"no"}}"#);
        assert_eq!(
            chunk(br#"{"content":"Hi","stop":false}"#)
                .map(|chunk| chunk.content)
                .ok()
                .as_deref(),
            Some("Hi")
        );
    }
}
