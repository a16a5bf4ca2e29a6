//! HTTP to a model server. The only place that knows how requests are made.

use std::error::Error as _;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;

use super::fault::{Class, Fault};
use super::server::Server;
use crate::wire::redact::hide_passwords;

/// Largest body of a refusal that is read.
const REFUSAL: usize = 64 << 10;

/// A client of all servers.
#[derive(Clone, Debug)]
pub(super) struct Http(reqwest::Client);

/// An answer of a server that is still coming.
pub(super) struct Body {
    host: String,
    stream: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
}

impl Http {
    pub(super) fn new(connect: Duration) -> Result<Self, String> {
        // The process may have chosen a provider already; then that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(connect)
            // A proxy for the world outside would be asked for the model server on this machine as well.
            .no_proxy()
            // Nobody is led to another host with our headers (O-091).
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("orchestra/", env!("CARGO_PKG_VERSION")))
            .tcp_nodelay(true)
            .build();
        client
            .map(Self)
            .map_err(|error| format!("the HTTP client cannot be set up: {}", chain(&error)))
    }

    fn request(&self, server: &Server, method: Method, path: &str) -> RequestBuilder {
        let request = self.0.request(method, format!("{}/{path}", server.url));
        server
            .headers
            .iter()
            .fold(request, |request, (name, value)| request.header(name, value))
    }

    /// A short answer as a whole, at most `largest` bytes of it, with its status.
    pub(super) async fn get(
        &self,
        server: &Server,
        path: &str,
        limit: Duration,
        largest: usize,
    ) -> Result<(u16, Vec<u8>), Fault> {
        self.whole(server, self.request(server, Method::GET, path), limit, largest)
            .await
    }

    /// The answer to a body as a whole.
    pub(super) async fn post(
        &self,
        server: &Server,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
        largest: usize,
    ) -> Result<(u16, Vec<u8>), Fault> {
        let request = self.request(server, Method::POST, path).json(body);
        self.whole(server, request, limit, largest).await
    }

    /// The answer to the order to remove what a body names.
    pub(super) async fn delete(
        &self,
        server: &Server,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
        largest: usize,
    ) -> Result<(u16, Vec<u8>), Fault> {
        let request = self.request(server, Method::DELETE, path).json(body);
        self.whole(server, request, limit, largest).await
    }

    async fn whole(
        &self,
        server: &Server,
        request: RequestBuilder,
        limit: Duration,
        largest: usize,
    ) -> Result<(u16, Vec<u8>), Fault> {
        let host = server.url.as_str();
        let asked = async {
            let answer = request.send().await.map_err(|error| not_sent(host, &error))?;
            let status = answer.status().as_u16();
            let mut body = Body::new(host, answer);
            let mut bytes = Vec::new();
            while let Some(chunk) = body.next().await? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > largest {
                    let text = format!("the answer is longer than {largest} bytes");
                    return Err(Fault::new(Class::Refused, host, text));
                }
            }
            Ok((status, bytes))
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(stalled(host, "no answer", limit)),
        }
    }

    /// Sends a request whose answer is a stream; `first` is the time until its first byte. Anything but 200 and a
    /// stream is a fault.
    pub(super) async fn open(
        &self,
        server: &Server,
        path: &str,
        body: &impl Serialize,
        first: Duration,
    ) -> Result<Body, Fault> {
        let host = server.url.as_str();
        let sent = self.request(server, Method::POST, path).json(body).send();
        let answer = match tokio::time::timeout(first, sent).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(not_sent(host, &error)),
            Err(_) => return Err(stalled(host, "no answer", first)),
        };
        let status = answer.status().as_u16();
        let kind = answer.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // O-004: only the media type counts.
        let media = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let streams = matches!(
            media.as_str(),
            "application/x-ndjson" | "application/json" | "text/event-stream"
        );
        let after = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(|after| after.to_str().ok()?.parse().ok());
        let mut body = Body::new(host, answer);
        if status == 200 && streams {
            return Ok(body);
        }
        let bytes = tokio::time::timeout(first, body.some()).await.unwrap_or_default();
        let mut fault = Fault::from_status(host, status, &bytes);
        fault.after = after.map(Duration::from_secs);
        Err(fault)
    }
}

impl Body {
    fn new(host: &str, answer: Response) -> Self {
        Self {
            host: host.to_owned(),
            stream: Box::pin(answer.bytes_stream()),
        }
    }

    /// What came next; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let chunk = self.stream.next().await.transpose();
        chunk.map_err(|error| broken(&self.host, &error))
    }

    /// As `next`, but no longer than `stall`.
    pub(super) async fn next_within(&mut self, stall: Duration) -> Result<Option<Bytes>, Fault> {
        match tokio::time::timeout(stall, self.next()).await {
            Ok(chunk) => chunk,
            Err(_) => Err(stalled(&self.host, "the answer stopped", stall)),
        }
    }

    /// As `next`, of an answer that has not begun: `left` is what is left of the time until its first piece.
    pub(super) async fn first_within(&mut self, left: Duration, first: Duration) -> Result<Option<Bytes>, Fault> {
        match tokio::time::timeout(left, self.next()).await {
            Ok(chunk) => chunk,
            Err(_) => Err(stalled(&self.host, "no answer", first)),
        }
    }

    async fn some(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = self.next().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > REFUSAL {
                break;
            }
        }
        bytes
    }
}

/// Scheme, host, port and path, without a slash at the end (O-001; `OLLAMA_HOST` may lack all but the host).
pub(super) fn base_url(host: &str) -> Result<String, String> {
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
        _ => {
            // As a URL, or what stands before the `@` would be shown.
            let shown = hide_passwords(&url).unwrap_or_else(|| host.to_owned());
            Err(format!(
                "ai_hosts: {shown:?} is no address of a model server; write http://127.0.0.1:11434"
            ))
        }
    }
}

fn not_sent(host: &str, error: &reqwest::Error) -> Fault {
    if !error.is_connect() {
        return broken(host, error);
    }
    let why = if error.is_timeout() {
        "no answer to the attempt to connect (ai_connect_timeout)".to_owned()
    } else {
        cause(error)
    };
    let text = format!("cannot reach the model server: {why}; is Ollama running?");
    Fault::new(Class::Unreachable, host, text)
}

fn broken(host: &str, error: &reqwest::Error) -> Fault {
    let text = format!("the connection to the model server broke: {}", cause(error));
    Fault::new(Class::Broken, host, text)
}

fn stalled(host: &str, what: &str, limit: Duration) -> Fault {
    Fault::new(Class::Broken, host, format!("{what} for {} s", limit.as_secs_f64()))
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::ai::ollama::Speaks;

    /// A server whose answers have 8 MiB and no end.
    async fn endless(status: &'static str) -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            if stream.write_all(&vec![b'x'; 8 << 20]).await.is_ok() {
                std::future::pending::<()>().await;
            }
        });
        Server::new(&address, Speaks::Ollama).unwrap()
    }

    #[tokio::test]
    async fn an_answer_without_end_is_read_as_far_as_it_may_be() {
        let (http, patience) = (Http::new(Duration::from_secs(5)).unwrap(), Duration::from_secs(30));
        let short = http.get(&endless("200 OK").await, "api/tags", patience, 100_000).await;
        assert!(short.unwrap_err().text.contains("longer than 100000 bytes"));
        let began = crate::clock::instant();
        let refusal = http
            .open(&endless("400 Bad Request").await, "api/chat", &(), patience)
            .await;
        assert!(refusal.err().unwrap().text.contains("xxx"));
        assert!(began.elapsed() < patience, "{:?}", began.elapsed());
    }

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
        for written in ["http://u:s3cret@h:port", "ftp://u:s3cret@h", "u:s3cret@h:port"] {
            let error = base_url(written).unwrap_err();
            assert!(!error.contains("s3cret") && error.contains("@h"), "{error}");
        }
    }
}
