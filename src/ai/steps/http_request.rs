//! `http_request`: asks a server that the operator allows. Every redirect is checked like the first address, and a name
//! is connected to at the addresses that were checked, not at what it says a moment later.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use reqwest::{Method, StatusCode, Url};
use serde_json::{Map, Value, json};

use super::{Field, Fields, Stop, Type, Wrong, needed, text, value};
use crate::ai::permits::Permits;
use crate::ai::site::Site;
use crate::task::Failure;

/// Redirects that are followed.
const REDIRECTS: usize = 5;
/// How long each request may take, those of redirects too, and the attempt to connect in it.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(10),
    answer: Duration::from_secs(60),
};
/// Longest part of an answer that an error shows.
const EXCERPT: usize = 200;

pub(super) const TYPE: Type = Type {
    name: "http_request",
    about: "asks a server of ai_http_hosts",
    fields: FIELDS,
    check,
    is_local: false,
};

const FIELDS: &[Field] = &[
    needed(text("url", "http or https")),
    text("method", "GET (the default), POST, PUT, PATCH, DELETE or HEAD"),
    value("headers", "names and values"),
    value("query", "names and values of the query"),
    value("json", "a body in JSON"),
    text("body", "a body as text"),
    value("accept", "statuses beside 2xx that are no failure"),
];

fn check(fields: &Map<String, Value>, names: &[&str]) -> Wrong {
    let mut wrong = Vec::new();
    if let Some(url) = fields.get("url").and_then(Value::as_str)
        && let Err(Stop::Failed(Failure::Fail(error))) = parse(url)
    {
        wrong.push(("url", error.message()));
    }
    if let Some(method) = fields.get("method").and_then(Value::as_str)
        && self::method(method).is_none()
    {
        wrong.push((
            "method",
            format!("there is no method {method:?}; use GET, POST, PUT, PATCH, DELETE or HEAD"),
        ));
    }
    if names.contains(&"json") && names.contains(&"body") {
        wrong.push(("body", "a request has json or body, not both".into()));
    }
    wrong
}

/// A client that connects to allowed addresses only.
#[derive(Clone, Debug)]
pub(in crate::ai) struct Web {
    /// For ports that are named with an address.
    at: BTreeMap<u16, reqwest::Client>,
    /// For all others.
    http: reqwest::Client,
    permits: Arc<Permits>,
    patience: Patience,
}

#[derive(Clone, Copy, Debug)]
struct Patience {
    connect: Duration,
    answer: Duration,
}

/// What is asked.
pub(super) struct Ask {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<Vec<u8>>,
}

/// Looks up names, and keeps the addresses that may be connected to at a port. Who asks does not say which: each such
/// port has a client of its own.
#[derive(Debug)]
struct Allowed {
    permits: Arc<Permits>,
    port: Option<u16>,
}

impl Resolve for Allowed {
    fn resolve(&self, name: Name) -> Resolving {
        let (permits, port) = (self.permits.clone(), self.port);
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| permits.address(address.ip(), port)).collect();
            if allowed.is_empty() {
                let text = format!("{host} leads to addresses that ai_http_hosts does not name");
                return Err(text.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

impl Web {
    /// A client within these permits.
    ///
    /// # Errors
    /// A text for people: TLS cannot be set up.
    pub(in crate::ai) fn new(permits: Arc<Permits>) -> Result<Self, String> {
        Self::with(permits, PATIENCE)
    }

    fn with(permits: Arc<Permits>, patience: Patience) -> Result<Self, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = |port| {
            let permits = permits.clone();
            reqwest::Client::builder()
                .connect_timeout(patience.connect)
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .dns_resolver(Allowed { permits, port })
                .user_agent(concat!("orchestra/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|error| format!("the HTTP client cannot be set up: {error}"))
        };
        let at = permits.ports().into_iter().map(|port| Ok((port, client(Some(port))?)));
        Ok(Self {
            at: at.collect::<Result<_, String>>()?,
            http: client(None)?,
            permits,
            patience,
        })
    }

    /// The client that may ask there.
    fn check(&self, url: &Url) -> Result<&reqwest::Client, Stop> {
        let refused = |text: String| Stop::failed("HttpError", text);
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(0);
        self.permits.host(host, port).map_err(refused)?;
        // An address is connected to without being looked up.
        match host.trim_matches(['[', ']']).parse() {
            Ok(address) if !self.permits.address(address, Some(port)) => Err(refused(format!(
                "the address {host} is not allowed; name it in ai_http_hosts"
            ))),
            _ => Ok(self.at.get(&port).unwrap_or(&self.http)),
        }
    }

    /// Asks, and follows redirects to servers that are allowed as well.
    pub(super) async fn ask(&self, mut ask: Ask) -> Result<(StatusCode, HeaderMap, Vec<u8>), Stop> {
        for _ in 0..=REDIRECTS {
            let mut request = self
                .check(&ask.url)?
                .request(ask.method.clone(), ask.url.clone())
                .headers(ask.headers.clone());
            if let Some(body) = &ask.body {
                request = request.body(body.clone());
            }
            let answer = request
                .timeout(self.patience.answer)
                .send()
                .await
                .map_err(|error| self.failed(&ask.url, &error))?;
            let status = answer.status();
            let next = answer.headers().get(LOCATION).and_then(|place| place.to_str().ok());
            match next.filter(|_| status.is_redirection()) {
                Some(place) => ask = redirected(ask, status, place)?,
                None => return self.read(ask.url, answer).await,
            }
        }
        Err(Stop::failed(
            "HttpError",
            format!("{}: more than {REDIRECTS} redirects", ask.url),
        ))
    }

    async fn read(&self, url: Url, answer: reqwest::Response) -> Result<(StatusCode, HeaderMap, Vec<u8>), Stop> {
        let most = self.permits.sizes.http;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut body = answer.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|error| self.failed(&url, &error))?);
            if bytes.len() > most {
                return Err(Stop::failed(
                    "HttpError",
                    format!("{url}: the answer is larger than {most} bytes (ai_max_http_bytes)"),
                ));
            }
        }
        Ok((status, headers, bytes))
    }

    fn failed(&self, url: &Url, error: &reqwest::Error) -> Stop {
        if error.is_timeout() {
            let Patience { connect, answer } = self.patience;
            let text = match error.is_connect() {
                true => format!(
                    "{url}: no answer to the attempt to connect within {} s",
                    connect.as_secs_f64()
                ),
                false => format!("{url}: no answer within {} s", answer.as_secs_f64()),
            };
            return Stop::timed_out(text);
        }
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        Stop::failed("HttpError", format!("{url}: {cause}"))
    }
}

fn redirected(mut ask: Ask, status: StatusCode, place: &str) -> Result<Ask, Stop> {
    let url = ask.url.join(place);
    let url = url.map_err(|_| Stop::failed("HttpError", format!("{}: a redirect to {place:?}", ask.url)))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Stop::failed("HttpError", format!("{}: a redirect to {url}", ask.url)));
    }
    if matches!(status.as_u16(), 301..=303) && ask.method != Method::HEAD {
        ask.method = Method::GET;
        ask.body = None;
        ask.headers.remove(CONTENT_TYPE);
    }
    if url.origin() != ask.url.origin() {
        // What was meant for one server is not told to another, or in clear: keys have many names, so what is none is
        // named.
        let kept = [ACCEPT, CONTENT_TYPE, USER_AGENT];
        let kept = kept
            .into_iter()
            .filter_map(|name| Some((ask.headers.remove(&name)?, name)));
        ask.headers = kept.map(|(value, name)| (name, value)).collect();
    }
    ask.url = url;
    Ok(ask)
}

pub(super) fn parse(url: &str) -> Result<Url, Stop> {
    match Url::parse(url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err(Stop::wrong(format!(
            "url: {url:?} is no address of a server; write https://…"
        ))),
    }
}

pub(super) fn method(name: &str) -> Option<Method> {
    match name.to_ascii_uppercase().as_str() {
        "GET" => Some(Method::GET),
        "POST" => Some(Method::POST),
        "PUT" => Some(Method::PUT),
        "PATCH" => Some(Method::PATCH),
        "DELETE" => Some(Method::DELETE),
        "HEAD" => Some(Method::HEAD),
        _ => None,
    }
}

/// The media type of JSON, as a header.
pub(super) fn json_type() -> HeaderValue {
    HeaderValue::from_static("application/json")
}

pub(super) fn headers(given: Option<Value>) -> Result<HeaderMap, Stop> {
    let mut headers = HeaderMap::new();
    let Some(given) = given else { return Ok(headers) };
    let Value::Object(given) = given else {
        return Err(Stop::wrong("headers: must be an object"));
    };
    for (name, value) in given {
        let header = HeaderName::try_from(name.as_str()).ok();
        let value = HeaderValue::try_from(as_text(&value)).ok();
        match (header, value) {
            // Who is asked is what the address says.
            (Some(header), Some(value)) if header != "host" => headers.insert(header, value),
            _ => return Err(Stop::wrong(format!("headers: {name:?} is no header that can be set"))),
        };
    }
    Ok(headers)
}

pub(super) fn add_query(url: &mut Url, query: &Value) -> Result<(), Stop> {
    let Value::Object(query) = query else {
        return Err(Stop::wrong("query: must be an object"));
    };
    let mut pairs = url.query_pairs_mut();
    for (name, value) in query {
        match value {
            Value::Null => {}
            Value::Array(items) => {
                pairs.extend_pairs(items.iter().map(|item| (name, as_text(item))));
            }
            value => {
                pairs.append_pair(name, &as_text(value));
            }
        }
    }
    drop(pairs);
    if url.query() == Some("") {
        url.set_query(None);
    }
    Ok(())
}

fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) async fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let mut url = parse(&fields.need("url")?)?;
    let name = fields.text("method").unwrap_or_else(|| "GET".into());
    let method = method(&name).ok_or_else(|| Stop::wrong(format!("method: there is no {name:?}")))?;
    let mut headers = headers(fields.take("headers"))?;
    if let Some(query) = fields.take("query") {
        add_query(&mut url, &query)?;
    }
    let body = match (fields.take("json"), fields.text("body")) {
        (Some(json), None) => {
            headers.entry("content-type").or_insert(json_type());
            Some(json.to_string().into_bytes())
        }
        (None, body) => body.map(String::into_bytes),
        (Some(_), Some(_)) => return Err(Stop::wrong("body: a request has json or body, not both")),
    };
    let accepted = match fields.take("accept") {
        Some(Value::Array(statuses)) => statuses,
        Some(status) => vec![status],
        None => Vec::new(),
    };
    let shown = url.clone();
    let ask = Ask {
        method,
        url,
        headers,
        body,
    };
    let (status, headers, body) = site.engine.web().ask(ask).await?;
    if !status.is_success() && !accepted.contains(&json!(status.as_u16())) {
        let start: String = String::from_utf8_lossy(&body).chars().take(EXCERPT).collect();
        return Err(Stop::failed(
            "HttpError",
            format!("{shown}: HTTP {}: {start}", status.as_u16()),
        ));
    }
    Ok(answer(status, &headers, &body))
}

/// Status, headers, text, and the JSON if it is some.
pub(super) fn answer(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Value {
    let shown: Map<String, Value> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let kind = headers
        .get("content-type")
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let json: Option<Value> = kind
        .contains("json")
        .then(|| serde_json::from_slice(body).ok())
        .flatten();
    json!({"status": status.as_u16(), "headers": shown, "text": String::from_utf8_lossy(body), "json": json})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks a server that never answers, with little patience; the failure.
    async fn asked(address: SocketAddr) -> String {
        let permits = Permits {
            hosts: vec![address.ip().to_string().parse().unwrap()],
            ..Permits::default()
        };
        let patience = Patience {
            connect: Duration::from_millis(300),
            answer: Duration::from_millis(900),
        };
        let ask = Ask {
            method: Method::GET,
            url: format!("http://user:hidden@{address}/").parse().unwrap(),
            headers: HeaderMap::new(),
            body: None,
        };
        match Web::with(Arc::new(permits), patience).unwrap().ask(ask).await {
            Err(Stop::Failed(Failure::Fail(error))) => {
                let text = error.repr();
                assert!(!text.contains("hidden"), "{text}");
                text
            }
            _ => panic!("it did not fail"),
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_given_up_and_so_is_the_attempt_to_connect() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // It accepts nobody: the system connects those for whom it has room, and nothing answers them.
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let error = asked(address).await;
        assert!(
            error.contains("TimeoutError") && error.contains("no answer within 0.9 s"),
            "{error}"
        );
        let mut held = Vec::new();
        let connect = || tokio::time::timeout(Duration::from_millis(500), tokio::net::TcpStream::connect(address));
        while let Ok(stream) = connect().await {
            held.push(stream.unwrap());
            assert!(held.len() < 100, "it connects whoever comes");
        }
        let error = asked(address).await;
        assert!(error.contains("the attempt to connect within 0.3 s"), "{error}");
    }
}
