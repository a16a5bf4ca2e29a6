//! What can go wrong with a model, and whether trying again helps.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// Longest text of a server that is shown.
const EXCERPT: usize = 500;

/// A call that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of trouble.
    pub class: Class,
    /// The server that was asked.
    pub host: String,
    /// What it said, or what happened.
    pub text: String,
    /// `Retry-After` of a proxy.
    pub after: Option<Duration>,
}

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The request is wrong: it will be refused again.
    Refused,
    /// The server does not have the model; another may.
    NotFound,
    /// The server has too much to do now; later, or elsewhere, it may work.
    Unavailable,
    /// Nobody is there.
    Unreachable,
    /// The model does not fit into the server's memory, as things are now (O-051).
    Memory,
    /// The answer broke off; it may work again.
    Broken,
}

impl Class {
    /// Whether the same request may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Unavailable | Self::Unreachable | Self::Memory | Self::Broken
        )
    }
}

impl Fault {
    pub(super) fn new(class: Class, host: &str, text: impl Into<String>) -> Self {
        Self {
            class,
            host: host.to_owned(),
            text: text.into(),
            after: None,
        }
    }

    /// Trying again changes nothing.
    pub(crate) fn refused(host: &str, text: impl Into<String>) -> Self {
        Self::new(Class::Refused, host, text)
    }

    /// Later it may work.
    pub(crate) fn unavailable(host: &str, text: impl Into<String>) -> Self {
        Self::new(Class::Unavailable, host, text)
    }

    /// Nobody has the model.
    pub(crate) fn not_found(host: &str, text: impl Into<String>) -> Self {
        Self::new(Class::NotFound, host, text)
    }

    /// A refusal, from its status and body (O-042 to O-053).
    pub(super) fn from_status(host: &str, status: u16, body: &[u8]) -> Self {
        let text = error_text(body).unwrap_or_else(|| excerpt(body));
        let class = match status {
            404 if text.contains("model") && (text.contains("not found") || text.contains("does not exist")) => {
                Class::NotFound
            }
            429 | 502 | 503 | 504 => Class::Unavailable,
            // O-049: faults of the request in a server's clothes.
            500 if ["option \"", "invalid format", "template:"]
                .iter()
                .any(|sign| text.contains(sign)) =>
            {
                Class::Refused
            }
            500 if [
                "out of memory",
                "failed to allocate",
                "unable to allocate",
                "requires more system memory",
            ]
            .iter()
            .any(|sign| text.contains(sign)) =>
            {
                Class::Memory
            }
            500 => Class::Broken,
            _ => Class::Refused,
        };
        let text = match (status, text.as_str()) {
            // O-002.
            (403, "") => "HTTP 403: the server does not accept this host name or origin; \
                          set OLLAMA_HOST=0.0.0.0 on it, or use its IP address"
                .to_owned(),
            (_, "") => format!("HTTP {status} without a text"),
            _ => format!("HTTP {status}: {text}"),
        };
        Self::new(class, host, text)
    }

    /// An error in the middle of a stream (O-031, O-032).
    pub(super) fn mid_stream(host: &str, error: &Value) -> Self {
        Self::new(Class::Broken, host, format!("the model failed: {}", unwrap_text(error)))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.host)
    }
}

impl std::error::Error for Fault {}

/// The text of `{"error": …}`, which may be a text, an object with a message, or JSON in a text.
fn error_text(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error")?;
    let mut text = unwrap_text(error);
    if let Some(url) = body.get("signin_url").and_then(Value::as_str) {
        text = format!("{text}; sign in at {url}");
    }
    Some(text)
}

fn unwrap_text(error: &Value) -> String {
    match error {
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            // O-043: the engine's own answer, as a text.
            Ok(inner @ Value::Object(_)) => unwrap_text(inner.get("error").unwrap_or(&inner)),
            _ => shorten(text),
        },
        Value::Object(object) => match object.get("message") {
            Some(Value::String(message)) => shorten(message),
            _ => shorten(&error.to_string()),
        },
        other => shorten(&other.to_string()),
    }
}

fn excerpt(body: &[u8]) -> String {
    shorten(String::from_utf8_lossy(&body[..body.len().min(4 * EXCERPT)]).trim())
}

fn shorten(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(EXCERPT)
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(status: u16, body: &str) -> Class {
        Fault::from_status("h", status, body.as_bytes()).class
    }

    #[test]
    fn o_044_to_o_053_statuses_have_classes() {
        assert_eq!(class(404, r#"{"error":"model 'x' not found"}"#), Class::NotFound);
        assert_eq!(
            class(404, r#"{"error":"model \"x\" not found, try pulling it first"}"#),
            Class::NotFound
        );
        assert_eq!(class(404, "404 page not found"), Class::Refused);
        assert_eq!(class(400, r#"{"error":"invalid model name"}"#), Class::Refused);
        assert_eq!(
            class(401, r#"{"error":"unauthorized","signin_url":"https://x"}"#),
            Class::Refused
        );
        assert_eq!(
            class(
                503,
                r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#
            ),
            Class::Unavailable
        );
        assert_eq!(class(429, "{}"), Class::Unavailable);
        assert_eq!(class(502, "<html>"), Class::Unavailable);
        assert_eq!(
            class(500, r#"{"error":"option \"temperature\" must be of type float32"}"#),
            Class::Refused
        );
        assert_eq!(
            class(500, r#"{"error":"model runner has unexpectedly stopped"}"#),
            Class::Broken
        );
    }

    #[test]
    fn o_051_a_model_that_does_not_fit_is_a_class_of_its_own() {
        let text = r#"{"error":"llama-server process has terminated: cudaMalloc failed: out of memory"}"#;
        assert_eq!(class(500, text), Class::Memory);
        let text = r#"{"error":"model requires more system memory (21.5 GiB) than is available (3.1 GiB)"}"#;
        assert_eq!(class(500, text), Class::Memory);
    }

    #[test]
    fn o_005_and_o_042_any_body_becomes_a_text() {
        let text = |status, body: &str| Fault::from_status("h", status, body.as_bytes()).text;
        assert!(text(403, "").contains("OLLAMA_HOST"));
        assert_eq!(text(500, ""), "HTTP 500 without a text");
        assert_eq!(text(404, "404 page not found"), "HTTP 404: 404 page not found");
        assert_eq!(text(400, r#"{"error":{"message":"m","type":"t"}}"#), "HTTP 400: m");
        // O-043
        let nested =
            r#"{"error":"{\"error\":{\"code\":400,\"message\":\"too long\",\"type\":\"exceed_context_size_error\"}}"}"#;
        assert_eq!(text(400, nested), "HTTP 400: too long");
        assert!(text(401, r#"{"error":"unauthorized","signin_url":"https://x"}"#).ends_with("sign in at https://x"));
        assert!(text(500, &"x".repeat(100_000)).len() < 600);
    }
}
