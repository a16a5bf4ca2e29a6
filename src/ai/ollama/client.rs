//! Asks a server, and follows its answer to the end.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};

use super::answer::Collector;
use super::fault::{Class, Fault};
use super::frame::{Frame, Lines};
use super::{Answer, Request};
use crate::ai::CallLimits;
use crate::clock;

/// Largest body of a refusal that is read.
const REFUSAL: usize = 64 << 10;

/// A piece of an answer, as it comes.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Text of the answer.
    Text(String),
    /// What the model thinks.
    Thinking(String),
}

/// Ollama servers.
#[derive(Clone, Debug)]
pub struct Ollama {
    http: reqwest::Client,
    hosts: Vec<String>,
    limits: CallLimits,
}

impl Ollama {
    /// A client of these servers, in order of preference. Nothing is connected yet.
    ///
    /// # Errors
    /// A text for people: an address is none, or TLS cannot be set up.
    pub fn new(hosts: &[String], limits: CallLimits) -> Result<Self, String> {
        // The process may have chosen a provider already; then that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let hosts = hosts.iter().map(|host| base_url(host)).collect::<Result<Vec<_>, _>>()?;
        if hosts.is_empty() {
            return Err("ai_hosts: there is no model server; write http://127.0.0.1:11434".into());
        }
        let http = reqwest::Client::builder()
            .connect_timeout(limits.connect)
            // A proxy for the world outside would be asked for the model server on this machine as well.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("orchestra/", env!("CARGO_PKG_VERSION")))
            .tcp_nodelay(true)
            .build()
            .map_err(|error| format!("the HTTP client cannot be set up: {}", chain(&error)))?;
        Ok(Self { http, hosts, limits })
    }

    /// The servers.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The version of a server (`GET /api/version`, O-006).
    ///
    /// # Errors
    /// It did not answer.
    pub async fn version(&self, host: &str) -> Result<String, Fault> {
        let asked = self
            .http
            .get(format!("{host}/api/version"))
            .timeout(self.limits.connect)
            .send()
            .await;
        let answer = asked.map_err(|error| unreachable(host, &error))?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|error| broken(host, &error))?;
        let version = serde_json::from_slice::<serde_json::Value>(&body).ok();
        match version.as_ref().and_then(|value| value.get("version")?.as_str()) {
            Some(version) => Ok(version.to_owned()),
            None => Err(Fault::from_status(host, status, &body)),
        }
    }

    /// Asks the servers in order until one answers; pieces go to `on_piece` as they come. A server that cannot be
    /// reached, is busy or lacks the model is passed over; once a piece has come there is no other server.
    ///
    /// Dropping the future closes the connection, which stops the model (O-056).
    ///
    /// # Errors
    /// The last server's fault, or the first refusal.
    pub(crate) async fn ask(
        &self,
        request: &Request,
        on_piece: &mut (dyn FnMut(Piece) + Send),
    ) -> Result<Answer, Fault> {
        let mut fault: Option<Fault> = None;
        for host in &self.hosts {
            match self.ask_host(host, request, on_piece).await {
                Ok(answer) => return Ok(answer),
                Err(
                    found @ Fault {
                        class: Class::Refused | Class::Broken,
                        ..
                    },
                ) => return Err(found),
                // A busy server that has the model says more than an idle one that lacks it.
                Err(found) => match &fault {
                    Some(Fault {
                        class: Class::Unavailable,
                        ..
                    }) => {}
                    _ => fault = Some(found),
                },
            }
        }
        Err(fault.unwrap_or_else(|| Fault::new(Class::Unavailable, "", "there is no model server")))
    }

    async fn ask_host(
        &self,
        host: &str,
        request: &Request,
        on_piece: &mut (dyn FnMut(Piece) + Send),
    ) -> Result<Answer, Fault> {
        let began = clock::instant();
        let sent = self
            .http
            .post(format!("{host}/{}", request.kind().path()))
            .json(request.body())
            .send();
        let answer = match tokio::time::timeout(self.limits.first_token, sent).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.is_connect() => return Err(unreachable(host, &error)),
            Ok(Err(error)) => return Err(broken(host, &error)),
            Err(_) => return Err(stalled(host, "no answer", self.limits.first_token)),
        };
        let status = answer.status().as_u16();
        let kind = answer
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default();
        // O-004: only the media type counts.
        let media = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let after = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(|after| after.to_str().ok()?.parse().ok());
        let mut body = Box::pin(answer.bytes_stream());
        if status != 200 || !matches!(media.as_str(), "application/x-ndjson" | "application/json") {
            let bytes = tokio::time::timeout(self.limits.stall, read_some(&mut body))
                .await
                .unwrap_or_default();
            let mut fault = Fault::from_status(host, status, &bytes);
            fault.after = after.map(Duration::from_secs);
            return Err(fault);
        }
        self.follow(host, request, &mut body, began, on_piece).await
    }

    async fn follow(
        &self,
        host: &str,
        request: &Request,
        body: &mut (impl Stream<Item = reqwest::Result<Bytes>> + Unpin),
        began: clock::Instant,
        on_piece: &mut (dyn FnMut(Piece) + Send),
    ) -> Result<Answer, Fault> {
        let mut lines = Lines::new(self.limits.answer_bytes);
        let mut answer = Collector::default();
        let mut first = None;
        loop {
            let chunk = match tokio::time::timeout(self.limits.stall, body.next()).await {
                Ok(chunk) => chunk,
                Err(_) => return Err(stalled(host, "the answer stopped", self.limits.stall)),
            };
            let ended = chunk.is_none();
            if let Some(chunk) = chunk {
                lines.push(&chunk.map_err(|error| broken(host, &error))?);
            }
            loop {
                let line = match lines.next_line() {
                    Ok(Some(line)) => line,
                    Ok(None) if ended => match std::mem::replace(&mut lines, Lines::new(0)).last() {
                        Some(line) => line,
                        None => break,
                    },
                    Ok(None) => break,
                    Err(_) => return Err(too_long(host, self.limits.answer_bytes)),
                };
                let mut frame: Frame = serde_json::from_slice(&line)
                    .map_err(|error| Fault::new(Class::Broken, host, format!("the answer is no JSON: {error}")))?;
                if let Some(error) = &frame.error {
                    return Err(Fault::mid_stream(host, error));
                }
                let first_token = *first.get_or_insert_with(|| clock::instant().saturating_duration_since(began));
                let (thinking, text) = answer.add(&mut frame, line.len());
                if !thinking.is_empty() {
                    on_piece(Piece::Thinking(thinking));
                }
                if !text.is_empty() {
                    on_piece(Piece::Text(text));
                }
                if answer.size() > self.limits.answer_bytes {
                    return Err(too_long(host, self.limits.answer_bytes));
                }
                if frame.done {
                    if matches!(frame.done_reason.as_deref(), Some("load" | "unload")) {
                        let text = "the server took the request for one to load the model";
                        return Err(Fault::new(Class::Refused, host, text));
                    }
                    return Ok(answer.finish(request, host, frame, first_token));
                }
            }
            if ended {
                // O-033: the text so far is no answer.
                let text = format!(
                    "the answer ended before it was done, after {} characters",
                    answer.size()
                );
                return Err(Fault::new(Class::Broken, host, text));
            }
        }
    }
}

/// Scheme, host, port and path, without a slash at the end (O-001; `OLLAMA_HOST` may lack all but the host).
fn base_url(host: &str) -> Result<String, String> {
    let host = host.trim().trim_end_matches('/');
    let url = if host.contains("://") {
        host.to_owned()
    } else if host.rsplit(']').next().is_some_and(|rest| rest.contains(':')) {
        format!("http://{host}")
    } else {
        format!("http://{host}:11434")
    };
    // A server listens on all addresses; a client has to choose one.
    let url = url.replacen("://0.0.0.0", "://127.0.0.1", 1);
    match reqwest::Url::parse(&url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => Ok(url),
        _ => Err(format!(
            "ai_hosts: {host:?} is no address of a model server; write http://127.0.0.1:11434"
        )),
    }
}

async fn read_some(body: &mut (impl Stream<Item = reqwest::Result<Bytes>> + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(Ok(chunk)) = body.next().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > REFUSAL {
            break;
        }
    }
    bytes
}

fn unreachable(host: &str, error: &reqwest::Error) -> Fault {
    let why = if error.is_timeout() {
        "no answer to the attempt to connect".to_owned()
    } else {
        cause(error)
    };
    Fault::new(
        Class::Unavailable,
        host,
        format!("cannot reach the model server: {why}; is Ollama running?"),
    )
}

fn broken(host: &str, error: &reqwest::Error) -> Fault {
    Fault::new(
        Class::Broken,
        host,
        format!("the connection to the model server broke: {}", cause(error)),
    )
}

fn stalled(host: &str, what: &str, limit: Duration) -> Fault {
    Fault::new(Class::Broken, host, format!("{what} for {} s", limit.as_secs_f64()))
}

fn too_long(host: &str, limit: usize) -> Fault {
    Fault::new(
        Class::Refused,
        host,
        format!("the answer is longer than {limit} bytes (ai_max_answer_bytes)"),
    )
}

/// The innermost cause: what the system said.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn chain(error: &reqwest::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::base_url;

    #[test]
    fn o_001_addresses_are_read_as_ollama_reads_them() {
        for (written, url) in [
            ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
            ("127.0.0.1:9", "http://127.0.0.1:9"),
            ("gpu1", "http://gpu1:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("https://ai.example.com/ollama/", "https://ai.example.com/ollama"),
            ("[::1]", "http://[::1]:11434"),
        ] {
            assert_eq!(base_url(written).as_deref(), Ok(url), "{written}");
        }
        assert!(base_url("ftp://x").is_err());
        assert!(base_url("").is_err());
    }
}
