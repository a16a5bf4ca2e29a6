//! Remote control requests and replies (`kombu.pidbox`).

use regex::RegexBuilder;
use serde::Deserialize;
use serde_json::{Map, Value};

pub use super::argument::{Argument, Given, Texts};
use super::envelope::wrap;
use super::{Accept, Envelope, json, sixtyfour};

/// No reply is larger than this once it is read.
const REPLY: usize = 16 << 20;

/// A request, as `celery inspect`, `celery control` and Flower broadcast it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Request {
    /// Command.
    pub method: String,
    /// Its keyword arguments.
    #[serde(default)]
    pub arguments: Option<Given>,
    /// Node names; empty is everybody.
    #[serde(default)]
    pub destination: Option<Vec<String>>,
    /// With `matcher`: which node names.
    #[serde(default)]
    pub pattern: Option<String>,
    /// `glob` or `pcre`.
    #[serde(default)]
    pub matcher: Option<String>,
    /// Names the conversation; absent in a cast.
    #[serde(default)]
    pub ticket: Option<String>,
    /// Where the reply goes; absent in a cast.
    #[serde(default)]
    pub reply_to: Option<ReplyTo>,
    /// The sender's Lamport clock, from the message's headers.
    #[serde(skip)]
    pub clock: u64,
}

/// The address of a reply.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct ReplyTo {
    /// `reply.celery.pidbox`.
    pub exchange: String,
    /// The client's id.
    pub routing_key: String,
}

/// Decodes the payload of the pidbox channel: requests are written with the sender's `task_serializer`, and accepted as
/// tasks are. `limit` is for what YAML and msgpack become as JSON.
///
/// # Errors
/// A text for the log: what was wrong with the request.
pub fn decode(payload: &[u8], accept: &Accept, limit: usize) -> Result<Request, String> {
    let (headers, request): (_, Request) = open(payload, accept, limit)?;
    Ok(Request {
        clock: headers.get("clock").and_then(Value::as_u64).unwrap_or_default(),
        ..request
    })
}

/// The envelope of a reply: an object with exactly one key, the node name (P-175).
///
/// # Errors
/// `value` cannot be serialized.
pub fn encode_reply(
    reply_to: &ReplyTo,
    ticket: Option<&str>,
    clock: u64,
    hostname: &str,
    value: &Value,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut headers = Map::new();
    headers.insert("ticket".into(), ticket.into());
    headers.insert("clock".into(), clock.into());
    let mut body = Map::new();
    body.insert(hostname.to_owned(), value.clone());
    wrap(headers, &body, &reply_to.exchange, &reply_to.routing_key, false)
}

/// The envelope of a request in a namespace (`control_exchange`, mostly `celery`); `reply` is the sender's id and the
/// ticket of the conversation.
///
/// # Errors
/// Never in practice.
pub fn encode_request(
    namespace: &str,
    method: &str,
    arguments: &Value,
    destination: Option<&[String]>,
    reply: Option<(&str, &str)>,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut body = serde_json::json!({
        "method": method, "arguments": arguments, "destination": destination, "pattern": null, "matcher": null,
    });
    if let Some((oid, ticket)) = reply {
        body["ticket"] = ticket.into();
        body["reply_to"] = serde_json::json!({"exchange": reply_exchange(namespace), "routing_key": oid});
    }
    wrap(
        serde_json::json!({"clock": 1, "expires": 0}),
        &body,
        &format!("{namespace}.pidbox"),
        "",
        true,
    )
}

/// Where replies to requests of a namespace go.
pub fn reply_exchange(namespace: &str) -> String {
    format!("reply.{namespace}.pidbox")
}

/// Decodes a reply: its ticket, and the answers by node name.
///
/// # Errors
/// A text for the log.
pub fn decode_reply(payload: &[u8], accept: &Accept) -> Result<(Option<String>, Map<String, Value>), String> {
    let (headers, answers) = open(payload, accept, REPLY)?;
    let ticket = headers.get("ticket").and_then(Value::as_str).map(str::to_owned);
    Ok((ticket, answers))
}

/// Headers and body of a message on a fanout or reply exchange. `limit` is for bodies that are not JSON, which is never
/// larger than what it came in.
pub(super) fn open<T: serde::de::DeserializeOwned>(
    payload: &[u8],
    accept: &Accept,
    limit: usize,
) -> Result<(Map<String, Value>, T), String> {
    let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok((headers(&envelope), body(envelope, accept, limit)?))
}

fn headers(envelope: &Envelope<'_>) -> Map<String, Value> {
    let headers = envelope.headers.as_ref();
    headers.and_then(|raw| json::parse(raw.get()).ok()).unwrap_or_default()
}

fn body<T: serde::de::DeserializeOwned>(envelope: Envelope<'_>, accept: &Accept, limit: usize) -> Result<T, String> {
    let reader = accept.reader(envelope.content_type.as_deref());
    let reader = reader.map_err(|error| error.to_string())?;
    let body = envelope.body.ok_or("no body")?;
    let properties = envelope.properties.unwrap_or_default();
    let bytes = match properties.body_encoding.as_deref() {
        Some("base64") => sixtyfour::decode(body.as_bytes()).map_err(|error| error.to_string())?,
        _ => body.into_owned().into_bytes(),
    };
    let text = reader.read(bytes, limit).map_err(|error| error.to_string())?;
    json::parse(&text).map_err(|error| error.to_string())
}

impl Request {
    /// Whether a node of that name has to act (P-173).
    pub fn is_for(&self, hostname: &str) -> bool {
        match (&self.destination, &self.pattern, &self.matcher) {
            (Some(names), _, _) if !names.is_empty() => names.iter().any(|name| name == hostname),
            (_, Some(pattern), Some(matcher)) if matcher == "glob" => matches(&expression(pattern), hostname),
            // Python anchors the expression at the start only.
            (_, Some(pattern), Some(_)) => matches(&format!("^(?:{pattern})"), hostname),
            _ => true,
        }
    }
}

/// Longest pattern that is looked at.
const PATTERN: usize = 1000;

/// Whether an expression, in linear time, matches; one that cannot be read matches nothing.
fn matches(expression: &str, text: &str) -> bool {
    if expression.len() > 2 * PATTERN {
        return false;
    }
    let built = RegexBuilder::new(expression).size_limit(1 << 20).build();
    built.is_ok_and(|expression| expression.is_match(text))
}

/// The expression of a shell pattern for a whole text (`fnmatch`): `*`, `?`, `[a-z]`, `[!a-z]`.
fn expression(pattern: &str) -> String {
    let mut out = String::from("^(?s:");
    let mut rest = pattern.chars();
    while let Some(char) = rest.next() {
        match char {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '[' => match set(rest.as_str()) {
                Some((set, behind)) => {
                    out.push_str(&set);
                    rest = behind.chars();
                }
                None => out.push_str("\\["),
            },
            char => out.push_str(&regex::escape(char.encode_utf8(&mut [0; 4]))),
        }
    }
    out.push_str(")$");
    out
}

/// What stands behind a `[`, and what comes after its `]`; a `]` in first place is part of the set.
fn set(text: &str) -> Option<(String, &str)> {
    let (not, inside) = text.strip_prefix('!').map_or(("", text), |rest| ("^", rest));
    let end = inside.char_indices().skip(1).find(|(_, char)| *char == ']')?.0;
    let escaped = inside[..end]
        .replace('\\', "\\\\")
        .replace('[', "\\[")
        .replace(']', "\\]")
        .replace('^', "\\^");
    // Doubled, these would mean something else here.
    let escaped = escaped.replace("&&", "&\\&").replace("~~", "~\\~");
    Some((format!("[{not}{escaped}]"), &inside[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_173_destination_pattern_and_matcher_select_nodes() {
        let mut request = Request::default();
        assert!(request.is_for("w1@host"));
        request.destination = Some(vec![]);
        assert!(request.is_for("w1@host"));
        request.destination = Some(vec!["w2@host".into()]);
        assert!(!request.is_for("w1@host"));
        request.destination = None;
        request.matcher = Some("glob".into());
        request.pattern = Some("w?@*".into());
        assert!(request.is_for("w1@host") && !request.is_for("x1@host"));
        for (pattern, is) in [
            ("w[0-3]@host", true),
            ("w[!1]@host", false),
            ("[w]1*", true),
            ("w1@hos", false),
            ("w[1@host", false),
        ] {
            request.pattern = Some(pattern.into());
            assert_eq!(request.is_for("w1@host"), is, "{pattern}");
        }
        request.matcher = Some("pcre".into());
        for (pattern, is) in [
            ("w.@h", true),
            ("(a|w)\\d@", true),
            ("w1$", false),
            ("w(", false),
            ("(w{999}){999}", false),
            (&"w|".repeat(PATTERN / 2), true),
            (&"w|".repeat(PATTERN), false),
        ] {
            request.pattern = Some(pattern.into());
            assert_eq!(request.is_for("w1@host"), is, "{pattern}");
        }
        request.pattern = Some("w1".into());
        assert!(request.is_for("w1@host") && !request.is_for("aw1@host"));
    }

    #[test]
    fn a_reply_that_grows_as_it_is_read_is_bounded() {
        let accept = Accept::parse(&["json", "msgpack"], None).unwrap();
        let reply = |count: u32| {
            // A map with a list of falses, which are five letters each in JSON.
            let mut body = b"\x81\xa1w\xdd".to_vec();
            body.extend(count.to_be_bytes());
            body.resize(body.len() + count as usize, 0xc2);
            let body = sixtyfour::encode(&body);
            let properties = r#"{"body_encoding": "base64"}"#;
            let text =
                format!(r#"{{"body": "{body}", "content-type": "application/x-msgpack", "properties": {properties}}}"#);
            decode_reply(text.as_bytes(), &accept).map(drop)
        };
        assert_eq!(reply(1000), Ok(()));
        assert!(reply(3_000_000).is_err());
    }
}
