//! The envelope: what lies in a queue (`kombu.transport.virtual.base.Channel.prepare_message`).

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::sixtyfour;

/// An envelope, borrowed from the bytes it was read from. Its headers are text still, or read with it.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "H: Deserialize<'de>"))]
pub struct Envelope<'a, H = &'a RawValue> {
    /// The serialized task, mostly base64.
    #[serde(borrow, default, deserialize_with = "borrowed")]
    pub body: Option<Cow<'a, str>>,
    /// Serializer.
    #[serde(borrow, rename = "content-type", default, deserialize_with = "borrowed")]
    pub content_type: Option<Cow<'a, str>>,
    /// `utf-8` or `binary`.
    #[serde(borrow, rename = "content-encoding", default, deserialize_with = "borrowed")]
    pub content_encoding: Option<Cow<'a, str>>,
    /// What Celery says about the task.
    #[serde(default = "none")]
    pub headers: Option<H>,
    /// How it travelled.
    #[serde(default)]
    pub properties: Option<Properties>,
}

fn none<H>() -> Option<H> {
    None
}

/// The text of the headers of an element, whatever else of it cannot be read: whoever waits for that task can be told.
pub(crate) fn headers_alone(element: &str) -> Option<&RawValue> {
    #[derive(Deserialize)]
    struct Alone<'a> {
        #[serde(borrow)]
        headers: &'a RawValue,
    }
    Some(serde_json::from_str::<Alone<'_>>(element).ok()?.headers)
}

/// A text that is borrowed when it has no escapes; serde copies a `Cow` behind an `Option`.
pub(super) struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

fn borrowed<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'a, str>>, D::Error> {
    Ok(Option::<Text<'a>>::deserialize(deserializer)?.map(|text| text.0))
}

/// `properties` of an envelope. Producers that are not kombu leave parts out; they are read as absent.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub struct Properties {
    /// The task id.
    pub correlation_id: Option<String>,
    /// The client's id; it means nothing on Redis but travels with follow-ups.
    pub reply_to: Option<String>,
    /// 2 = persistent, which Redis ignores.
    pub delivery_mode: Option<u8>,
    /// Where it was sent.
    pub delivery_info: Option<DeliveryInfo>,
    /// 0 (first) to 9.
    pub priority: Option<Value>,
    /// `base64`, or absent for text.
    pub body_encoding: Option<String>,
    /// Chosen by the producer; survives redelivery.
    pub delivery_tag: Option<Value>,
    /// Everything else, kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Where a message was sent.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub struct DeliveryInfo {
    /// Exchange; empty is the default exchange, whose routing key is the queue.
    pub exchange: Option<String>,
    /// Routing key.
    pub routing_key: Option<String>,
    /// Set by whoever put the message back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub redelivered: bool,
    /// Everything else, kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

// Both by hand rather than `flatten`, which would buffer every value: they are read once for every message.
impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PropertiesVisitor;
        impl<'de> Visitor<'de> for PropertiesVisitor {
            type Value = Properties;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of properties")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
                let mut properties = Properties::default();
                while let Some(Text(key)) = map.next_key()? {
                    match &*key {
                        "correlation_id" => properties.correlation_id = map.next_value()?,
                        "reply_to" => properties.reply_to = map.next_value()?,
                        "delivery_mode" => properties.delivery_mode = map.next_value()?,
                        "delivery_info" => properties.delivery_info = map.next_value()?,
                        "priority" => properties.priority = map.next_value()?,
                        "body_encoding" => properties.body_encoding = map.next_value()?,
                        "delivery_tag" => properties.delivery_tag = map.next_value()?,
                        _ => {
                            let other = map.next_value()?;
                            properties.extra.insert(key.into_owned(), other);
                        }
                    }
                }
                Ok(properties)
            }
        }
        deserializer.deserialize_map(PropertiesVisitor)
    }
}

impl<'de> Deserialize<'de> for DeliveryInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InfoVisitor;
        impl<'de> Visitor<'de> for InfoVisitor {
            type Value = DeliveryInfo;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of delivery_info")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DeliveryInfo, A::Error> {
                let mut info = DeliveryInfo::default();
                while let Some(Text(key)) = map.next_key()? {
                    match &*key {
                        "exchange" => info.exchange = map.next_value()?,
                        "routing_key" => info.routing_key = map.next_value()?,
                        "redelivered" => info.redelivered = map.next_value::<Option<bool>>()?.unwrap_or(false),
                        _ => {
                            let other = map.next_value()?;
                            info.extra.insert(key.into_owned(), other);
                        }
                    }
                }
                Ok(info)
            }
        }
        deserializer.deserialize_map(InfoVisitor)
    }
}

impl Properties {
    /// Priority 0 to 9; what is missing, null or no number is 0 (P-003).
    pub fn priority(&self) -> u8 {
        let number = self.priority.as_ref().and_then(Value::as_f64);
        number.map_or(0, |number| number.clamp(0.0, 9.0) as u8)
    }

    /// The priority, if the producer wrote one.
    pub fn own_priority(&self) -> Option<u8> {
        self.priority
            .as_ref()
            .filter(|own| !own.is_null())
            .map(|_| self.priority())
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
        let text = serde_json::to_vec(body)?;
        Ok(sixtyfour::encode(super::json::restored(&text)))
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
    serde_json::to_vec(&plain(
        headers,
        Outgoing::<H>::encode(body)?,
        exchange,
        routing_key,
        persistent,
    ))
}

/// The same for a body that is JSON already, mostly a long one: its base64 needs no look whether it is to be escaped.
///
/// # Errors
/// `headers` cannot be serialized.
pub(crate) fn wrap_text<H: Serialize>(
    headers: H,
    body: &[u8],
    exchange: &str,
    routing_key: &str,
) -> Result<Vec<u8>, serde_json::Error> {
    with_body(&plain(headers, String::new(), exchange, routing_key, false), body)
}

/// Puts a body, as JSON, into an envelope that has an empty one.
///
/// # Errors
/// The envelope cannot be serialized.
pub(super) fn with_body<H: Serialize>(empty: &Outgoing<'_, H>, body: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let empty = serde_json::to_string(empty)?;
    let body = super::json::restored(body);
    let mut payload = String::with_capacity(empty.len() + body.len().div_ceil(3) * 4);
    // The body comes first.
    let (before, after) = empty.split_at(r#"{"body":""#.len());
    payload.push_str(before);
    sixtyfour::encode_to(body, &mut payload);
    payload.push_str(after);
    Ok(payload.into_bytes())
}

fn plain<'a, H: Serialize>(
    headers: H,
    body: String,
    exchange: &'a str,
    routing_key: &'a str,
    persistent: bool,
) -> Outgoing<'a, H> {
    Outgoing {
        body,
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
    }
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

    #[test]
    fn a_redelivered_of_null_is_none() {
        let properties: Properties = serde_json::from_str(r#"{"delivery_info": {"redelivered": null}}"#).unwrap();
        assert!(!properties.redelivered());
    }
}
