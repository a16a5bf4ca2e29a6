//! From the bytes of a queue element to a task message, with every way in which they can be wrong.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::envelope::headers_alone;
use super::serializer::{Accept, Reader};
use super::{Body, Envelope, Headers, Limits, Properties, decompress, protocol1, sixtyfour};

/// A task message that can be given to its task.
#[derive(Debug)]
pub struct Message {
    /// What Celery says about the task.
    pub headers: Headers,
    /// How the message travelled.
    pub properties: Properties,
    /// Its arguments and what follows it.
    pub body: Body,
}

/// Why bytes are no task message. The text is for the log line and the dead-letter entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The element is not an envelope.
    #[error("not a message: {0}")]
    Envelope(String),
    /// It is an envelope, but not of a task.
    #[error("not a task message: {0}")]
    NotATask(String),
    /// Its content type is not accepted.
    #[error("refusing to deserialize {0}")]
    ContentType(String),
    /// It is signed by nobody who is believed.
    #[error("refusing a signed message: {0}")]
    Security(String),
    /// The body cannot be decoded.
    #[error("cannot decode the body: {0}")]
    Body(String),
    /// A part is larger than allowed.
    #[error("the {what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// In bytes.
        limit: usize,
    },
}

/// A message as far as it could be read: what went wrong, and who it was for, so that the sender can be told.
#[derive(Debug)]
pub struct Undecodable {
    /// What was wrong.
    pub error: DecodeError,
    /// The headers, when they could be read.
    pub headers: Option<Box<Headers>>,
}

impl Undecodable {
    fn answered(error: DecodeError, headers: Headers) -> Self {
        let headers = Some(Box::new(headers));
        Self { error, headers }
    }
}

impl From<DecodeError> for Undecodable {
    fn from(error: DecodeError) -> Self {
        Self { error, headers: None }
    }
}

/// Decodes a queue element as a worker does that accepts what Celery accepts by default, which is JSON.
///
/// # Errors
/// See [`DecodeError`]; when the headers were sound they come back with the error.
pub fn decode(raw: &[u8], limits: &Limits) -> Result<Message, Undecodable> {
    decode_accepted(raw, limits, &Accept::default())
}

/// Decodes a queue element of an accepted content type.
pub(super) fn decode_accepted(raw: &[u8], limits: &Limits, accept: &Accept) -> Result<Message, Undecodable> {
    let element = std::str::from_utf8(raw).map_err(|error| DecodeError::Envelope(format!("not UTF-8: {error}")))?;
    let envelope = match open(element) {
        Ok(envelope) => envelope,
        // Python's non-finite numbers in the headers or properties.
        Err(error) => match super::json::finite(element) {
            Cow::Owned(finite) => return decode_accepted(finite.as_bytes(), limits, accept),
            Cow::Borrowed(_) => {
                let headers = headers(headers_alone(element)).ok();
                let headers = headers.filter(|headers| check(headers, limits).is_ok()).map(Box::new);
                return Err(Undecodable { error, headers });
            }
        },
    };
    let (headers, properties) = (
        envelope.headers.unwrap_or_default(),
        envelope.properties.unwrap_or_default(),
    );
    let of_protocol_1 = headers.task.is_empty();
    if !of_protocol_1 {
        check(&headers, limits)?;
    }
    let text = text(
        envelope.body.unwrap_or_default(),
        accept.reader(envelope.content_type.as_deref()),
        &headers,
        &properties,
        limits,
    );
    let unfolded = text.and_then(|text| {
        if !protocol1::is_body(&text) {
            return Ok((None, text));
        }
        let outside = unread(element)?.headers.map_or("{}", RawValue::get);
        protocol1::unfold(&text, outside).map(|(headers, text)| (Some(headers), text))
    });
    let (headers, text) = match unfolded {
        Ok((unfolded, text)) => (unfolded.unwrap_or(headers), text),
        Err(error) if of_protocol_1 => return Err(error.into()),
        Err(error) => return Err(Undecodable::answered(error, headers)),
    };
    check(&headers, limits)?;
    match Body::parse(text).and_then(|body| body.at_most(limits.depth)) {
        Ok(body) => Ok(Message {
            headers,
            properties,
            body,
        }),
        Err(error) => Err(Undecodable::answered(error, headers)),
    }
}

/// The envelope with its headers, in one pass.
fn open(element: &str) -> Result<Envelope<'_, Headers>, DecodeError> {
    if let Ok(envelope) = serde_json::from_str(element) {
        return Ok(envelope);
    }
    // What is wrong, the envelope or its headers?
    let envelope = unread(element)?;
    Ok(Envelope {
        headers: Some(headers(envelope.headers)?),
        body: envelope.body,
        content_type: envelope.content_type,
        content_encoding: envelope.content_encoding,
        properties: envelope.properties,
    })
}

/// The envelope with the text of its headers.
fn unread(element: &str) -> Result<Envelope<'_>, DecodeError> {
    serde_json::from_str(element).map_err(|error| DecodeError::Envelope(error.to_string()))
}

fn headers(text: Option<&RawValue>) -> Result<Headers, DecodeError> {
    match text.map_or("{}", RawValue::get) {
        "null" => Ok(Headers::default()),
        text => super::json::parse(text).map_err(|error| DecodeError::NotATask(error.to_string())),
    }
}

fn check(headers: &Headers, limits: &Limits) -> Result<(), DecodeError> {
    if headers.task.is_empty() {
        return Err(DecodeError::NotATask(
            "neither its headers nor its body name a task".into(),
        ));
    }
    if headers.id.is_empty() {
        return Err(DecodeError::NotATask("it has no `id`".into()));
    }
    if headers.id.len() > limits.name || headers.task.len() > limits.name {
        return Err(DecodeError::TooLarge {
            what: "task id or name",
            limit: limits.name,
        });
    }
    Ok(())
}

/// The body as JSON text: unwrapped, decompressed, deserialized.
fn text(
    encoded: Cow<'_, str>,
    reader: Result<Reader<'_>, DecodeError>,
    headers: &Headers,
    properties: &Properties,
    limits: &Limits,
) -> Result<String, DecodeError> {
    // The allow-list comes before anything touches the body: a pickle is never even unpacked.
    let reader = reader?;
    let bytes = match properties.body_encoding.as_deref() {
        Some("base64") => {
            if encoded.len() / 4 * 3 > limits.body.saturating_add(4) {
                return Err(too_large(limits));
            }
            sixtyfour::decode(encoded.as_bytes())
                .map_err(|error| DecodeError::Body(format!("invalid base64: {error}")))?
        }
        None | Some("utf-8") => encoded.into_owned().into_bytes(),
        Some(other) => {
            return Err(DecodeError::Body(format!(
                "body_encoding {other:?} is neither base64 nor utf-8"
            )));
        }
    };
    let bytes = match &headers.compression {
        Some(method) => decompress(method, &bytes, limits.body)?,
        None => bytes,
    };
    if bytes.len() > limits.body {
        return Err(too_large(limits));
    }
    reader.read(bytes, limits.body)
}

fn too_large(limits: &Limits) -> DecodeError {
    DecodeError::TooLarge {
        what: "body",
        limit: limits.body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"body": "[[2, 3], {}, {}]", "content-type": "application/json",
        "headers": {"task": "proj.add", "id": "1"}, "properties": {}}"#;

    #[test]
    fn p_012_p_013_a_plain_and_a_base64_body_decode() {
        let plain = decode(MINIMAL.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(plain.headers.task, "proj.add");
        assert_eq!(plain.body.args(), "[2, 3]");
        let encoded = MINIMAL
            .replace("[[2, 3], {}, {}]", "W1syLCAzXSwge30sIHt9XQ==")
            .replace(r#""properties": {}"#, r#""properties": {"body_encoding": "base64"}"#);
        let message = decode(encoded.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(message.body.args(), "[2, 3]");
    }

    #[test]
    fn p_065_a_pickle_is_refused_by_name() {
        let pickle = MINIMAL.replace("application/json", "application/x-python-serialize");
        let refused = decode(pickle.as_bytes(), &Limits::default()).unwrap_err();
        let why = refused.error.to_string();
        assert!(why.starts_with(
            "refusing to deserialize untrusted content of type pickle (application/x-python-serialize): it can run any code"
        ));
        assert_eq!(refused.headers.unwrap().id, "1");
    }

    #[test]
    fn p_066_plain_bytes_and_texts_are_no_arguments() {
        for content_type in ["application/data", "application/text"] {
            let plain = MINIMAL.replace("application/json", content_type);
            let why = decode(plain.as_bytes(), &Limits::default())
                .unwrap_err()
                .error
                .to_string();
            assert!(
                why.contains("untrusted content") && why.contains("accept_content is json"),
                "{why}"
            );
        }
    }

    #[test]
    fn p_015_a_message_with_nan_in_its_headers_is_read() {
        let odd = MINIMAL.replace(r#""id": "1""#, r#""id": "1", "stamp": NaN, "far": [-Infinity]"#);
        let message = decode(odd.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(message.headers.extra["far"], serde_json::json!([null]));
    }

    #[test]
    fn p_064_p_065_a_body_is_read_by_its_content_type_where_that_is_accepted() {
        let accept = |names: &[&str]| Accept::parse(names, None).unwrap();
        let yaml = MINIMAL.replace("application/json", "application/x-yaml");
        let message = accept(&["json", "yaml"]).decode(yaml.as_bytes(), &Limits::default());
        assert_eq!(message.unwrap().body.args(), "[2,3]");
        let refused = accept(&["json", "application/x-msgpack"]).decode(yaml.as_bytes(), &Limits::default());
        assert_eq!(
            refused.unwrap_err().error.to_string(),
            "refusing to deserialize untrusted content of type yaml (application/x-yaml): this worker's accept_content \
             is json, msgpack"
        );
        let refused = accept(&["yaml"]).decode(MINIMAL.as_bytes(), &Limits::default());
        assert!(
            refused
                .unwrap_err()
                .error
                .to_string()
                .contains("type json (application/json)")
        );
        let none = MINIMAL.replace(r#""content-type": "application/json","#, "");
        assert!(decode(none.as_bytes(), &Limits::default()).is_err());
        for (name, why) in [
            ("pickle", "any code"),
            ("application/x-python-serialize", "any code"),
            ("jsn", "no serializer"),
            ("auth", "security_cert_store"),
        ] {
            assert!(Accept::parse(&[name], None).unwrap_err().contains(why));
        }
    }

    #[test]
    fn p_073_a_message_without_id_or_task_is_refused() {
        for broken in [
            MINIMAL.replace(r#", "id": "1""#, ""),
            MINIMAL.replace(r#""task": "proj.add", "#, ""),
            MINIMAL.replace("proj.add", &"x".repeat(300)),
            "[]".to_owned(),
            "{}".to_owned(),
            "null".to_owned(),
            "{\"headers\": []}".to_owned(),
            "[".repeat(100_000),
        ] {
            assert!(decode(broken.as_bytes(), &Limits::default()).is_err());
        }
        assert!(decode(b"\xff\xfe", &Limits::default()).is_err());
    }
}
