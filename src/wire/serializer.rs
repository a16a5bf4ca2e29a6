//! How bodies are written, and which ways a worker accepts (`kombu.serialization`). Whatever the serializer, a body
//! becomes JSON text, so that the rest of the worker sees one shape.

use super::message::{self, DecodeError};
use super::{Limits, Message, Undecodable, msgpack, yaml};

/// A serializer that Celery knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serializer {
    /// JSON, with kombu's forms for what JSON does not have.
    Json,
    /// MessagePack.
    Msgpack,
    /// YAML, as PyYAML's safe loader reads it.
    Yaml,
}

impl Serializer {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Json, Self::Msgpack, Self::Yaml];

    /// Celery's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Msgpack => "msgpack",
            Self::Yaml => "yaml",
        }
    }

    /// The mime type that messages carry.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Msgpack => "application/x-msgpack",
            Self::Yaml => "application/x-yaml",
        }
    }

    fn of_content_type(content_type: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|serializer| serializer.content_type() == content_type)
    }

    fn read(self, bytes: Vec<u8>, limit: usize) -> Result<String, DecodeError> {
        if self == Self::Msgpack {
            return msgpack::to_json(&bytes, limit);
        }
        let text = String::from_utf8(bytes)
            .map_err(|error| DecodeError::Body(format!("not UTF-8: {}", error.utf8_error())))?;
        match self {
            Self::Yaml => yaml::to_json(&text, limit),
            _ => Ok(text),
        }
    }
}

/// The serializers a worker accepts (`accept_content`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept(Vec<Serializer>);

impl Default for Accept {
    fn default() -> Self {
        Self(vec![Serializer::Json])
    }
}

impl Accept {
    /// From names or mime types, as in Celery's setting.
    ///
    /// # Errors
    /// A name of none, or of one that is not read.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, String> {
        let find = |name: &str| {
            let mut all = Serializer::ALL.into_iter();
            all.find(|serializer| [serializer.name(), serializer.content_type()].contains(&name))
                .ok_or_else(|| match known(name) {
                    PICKLE => format!("{name} can run any code in whoever reads it: it is never accepted"),
                    _ => format!("{name:?} is no serializer; there are json, msgpack and yaml"),
                })
        };
        let names = names.iter().map(|name| find(name.as_ref()));
        names.collect::<Result<_, _>>().map(Self)
    }

    /// Decodes a queue element whose content is accepted.
    ///
    /// # Errors
    /// See [`DecodeError`]; when the headers were sound they come back with the error.
    pub fn decode(&self, raw: &[u8], limits: &Limits) -> Result<Message, Undecodable> {
        message::decode_accepted(raw, limits, self)
    }

    /// The serializer of a content type, if it is accepted.
    pub(super) fn serializer(&self, content_type: Option<&str>) -> Result<Accepted, DecodeError> {
        let content_type = content_type.unwrap_or("application/data");
        match Serializer::of_content_type(content_type) {
            Some(serializer) if self.0.contains(&serializer) => Ok(Accepted(serializer)),
            _ => Err(DecodeError::ContentType(self.refusal(content_type))),
        }
    }

    /// In Celery's words, and what to do.
    fn refusal(&self, content_type: &str) -> String {
        let accepted: Vec<&str> = self.0.iter().map(|serializer| serializer.name()).collect();
        let accepted = accepted.join(", ");
        let advice = match known(content_type) {
            PICKLE => {
                "it can run any code in whoever reads it; send another, such as task_serializer = 'json'".to_owned()
            }
            _ => format!("this worker's accept_content is {accepted}"),
        };
        match known(content_type) {
            "" => format!("untrusted content of type {content_type:.100?}: {advice}"),
            name => format!("untrusted content of type {name} ({content_type}): {advice}"),
        }
    }
}

/// A serializer that may be used on the message at hand.
pub(super) struct Accepted(Serializer);

impl Accepted {
    /// The body as JSON text.
    pub(super) fn read(&self, bytes: Vec<u8>, limit: usize) -> Result<String, DecodeError> {
        self.0.read(bytes, limit)
    }
}

const PICKLE: &str = "pickle";

/// kombu's name for a content type or a name; empty for what it does not know.
fn known(content_type: &str) -> &'static str {
    match content_type {
        "application/x-python-serialize" | "pickle" => PICKLE,
        other => Serializer::of_content_type(other).map_or("", Serializer::name),
    }
}
