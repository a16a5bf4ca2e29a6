//! The envelope: what lies in a queue (`kombu.transport.virtual.base.Channel.prepare_message`).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// An envelope, borrowed from the bytes it was read from.
#[derive(Debug, Deserialize)]
pub struct Envelope<'a> {
    /// The serialized task, mostly base64.
    #[serde(borrow, default)]
    pub body: Option<Cow<'a, str>>,
    /// Serializer.
    #[serde(borrow, rename = "content-type", default)]
    pub content_type: Option<Cow<'a, str>>,
    /// `utf-8` or `binary`.
    #[serde(borrow, rename = "content-encoding", default)]
    pub content_encoding: Option<Cow<'a, str>>,
    /// Headers, still as text: only a message that is ours pays for parsing them.
    #[serde(borrow, default)]
    pub headers: Option<&'a RawValue>,
    /// How it travelled.
    #[serde(default)]
    pub properties: Option<Properties>,
}

/// `properties` of an envelope. Producers that are not kombu leave parts out; they are read as absent.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub struct Properties {
    /// The task id.
    #[serde(default)]
    pub correlation_id: Option<String>,
    /// The client's id; it means nothing on Redis but travels with follow-ups.
    #[serde(default)]
    pub reply_to: Option<String>,
    /// 2 = persistent, which Redis ignores.
    #[serde(default)]
    pub delivery_mode: Option<u8>,
    /// Where it was sent.
    #[serde(default)]
    pub delivery_info: Option<DeliveryInfo>,
    /// 0 (first) to 9.
    #[serde(default)]
    pub priority: Option<Value>,
    /// `base64`, or absent for text.
    #[serde(default)]
    pub body_encoding: Option<String>,
    /// Chosen by the producer; survives redelivery.
    #[serde(default)]
    pub delivery_tag: Option<Value>,
    /// Everything else, kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Where a message was sent.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub struct DeliveryInfo {
    /// Exchange; empty is the default exchange, whose routing key is the queue.
    #[serde(default)]
    pub exchange: Option<String>,
    /// Routing key.
    #[serde(default)]
    pub routing_key: Option<String>,
    /// Set by whoever put the message back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redelivered: bool,
    /// Everything else, kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Properties {
    /// Priority 0 to 9; what is missing, null or no number is 0 (P-003).
    pub fn priority(&self) -> u8 {
        let number = self.priority.as_ref().and_then(Value::as_f64);
        number.map_or(0, |number| number.clamp(0.0, 9.0) as u8)
    }

    /// The routing key, if the producer wrote one.
    pub fn routing_key(&self) -> Option<&str> {
        self.delivery_info.as_ref()?.routing_key.as_deref()
    }

    /// The exchange; empty when the producer wrote none.
    pub fn exchange(&self) -> &str {
        self.delivery_info
            .as_ref()
            .and_then(|info| info.exchange.as_deref())
            .unwrap_or_default()
    }

    /// Whether it has been put back before.
    pub fn redelivered(&self) -> bool {
        self.delivery_info.as_ref().is_some_and(|info| info.redelivered)
    }
}

/// An envelope to be sent.
#[derive(Debug, Serialize)]
pub(crate) struct Outgoing<'a, H: Serialize> {
    pub body: String,
    #[serde(rename = "content-encoding")]
    pub content_encoding: &'static str,
    #[serde(rename = "content-type")]
    pub content_type: &'static str,
    pub headers: H,
    pub properties: OutgoingProperties<'a>,
}

impl<H: Serialize> Outgoing<'_, H> {
    /// A body as it goes into an envelope: JSON in base64.
    pub(crate) fn encode<B: Serialize + ?Sized>(body: &B) -> Result<String, serde_json::Error> {
        use base64::Engine as _;
        let text = serde_json::to_vec(body)?;
        Ok(base64::engine::general_purpose::STANDARD.encode(super::json::restored(&text)))
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct OutgoingProperties<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    pub delivery_mode: u8,
    pub delivery_info: OutgoingInfo<'a>,
    pub priority: u8,
    pub body_encoding: &'static str,
    pub delivery_tag: String,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

#[derive(Debug, Serialize)]
pub(crate) struct OutgoingInfo<'a> {
    pub exchange: &'a str,
    pub routing_key: &'a str,
}

/// Wraps a JSON body as kombu does; `persistent` is delivery mode 2.
///
/// # Errors
/// `headers` or `body` cannot be serialized.
pub(crate) fn wrap<H: Serialize, B: Serialize + ?Sized>(
    headers: H,
    body: &B,
    exchange: &str,
    routing_key: &str,
    persistent: bool,
) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Outgoing {
        body: Outgoing::<H>::encode(body)?,
        content_encoding: "utf-8",
        content_type: "application/json",
        headers,
        properties: OutgoingProperties {
            correlation_id: None,
            reply_to: None,
            expiration: None,
            delivery_mode: if persistent { 2 } else { 1 },
            delivery_info: OutgoingInfo { exchange, routing_key },
            priority: 0,
            body_encoding: "base64",
            delivery_tag: uuid::Uuid::new_v4().to_string(),
            extra: Map::new(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_003_priority_is_clamped_and_anything_else_is_zero() {
        let priority = |text: &str| serde_json::from_str::<Properties>(text).unwrap().priority();
        assert_eq!(priority(r#"{"priority": 5}"#), 5);
        assert_eq!(priority(r#"{"priority": 99}"#), 9);
        assert_eq!(priority(r#"{"priority": -3}"#), 0);
        assert_eq!(priority(r#"{"priority": null}"#), 0);
        assert_eq!(priority(r#"{"priority": "9"}"#), 0);
        assert_eq!(priority("{}"), 0);
    }
}
