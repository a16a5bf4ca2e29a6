//! How bodies are written, and which ways a worker accepts (`kombu.serialization`). Whatever the serializer, a body
//! becomes JSON text, so that the rest of the worker sees one shape.

use std::sync::Arc;

use super::message::{self, DecodeError};
use super::{DEEPEST, Limits, Message, Security, Undecodable, msgpack, yaml};

/// A serializer that Celery knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serializer {
    /// JSON, with kombu's forms for what JSON does not have.
    Json,
    /// MessagePack.
    Msgpack,
    /// YAML, as PyYAML's safe loader reads it.
    Yaml,
    /// Another one, signed.
    Auth,
}

impl Serializer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Json, Self::Msgpack, Self::Yaml, Self::Auth];

    /// Celery's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Msgpack => "msgpack",
            Self::Yaml => "yaml",
            Self::Auth => "auth",
        }
    }

    /// The mime type that messages carry.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Msgpack => "application/x-msgpack",
            Self::Yaml => "application/x-yaml",
            Self::Auth => "application/data",
        }
    }

    fn of_content_type(content_type: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|serializer| serializer.content_type() == content_type)
    }
}

/// The serializers a worker accepts (`accept_content`).
#[derive(Clone, Debug)]
pub struct Accept {
    serializers: Vec<Serializer>,
    security: Option<Arc<Security>>,
}

impl Default for Accept {
    fn default() -> Self {
        Self {
            serializers: vec![Serializer::Json],
            security: None,
        }
    }
}

impl Accept {
    /// From names or mime types, as in Celery's setting.
    ///
    /// # Errors
    /// A name of none, or of one that is not read; or `auth` without anybody to believe.
    pub fn parse<S: AsRef<str>>(names: &[S], security: Option<Arc<Security>>) -> Result<Self, String> {
        let find = |name: &str| {
            let mut all = Serializer::ALL.into_iter();
            all.find(|serializer| [serializer.name(), serializer.content_type()].contains(&name))
                .ok_or_else(|| match known(name) {
                    PICKLE => format!("{name} can run any code in whoever reads it: it is never accepted"),
                    _ => format!("{name:?} is no serializer; there are json, msgpack, yaml and auth"),
                })
        };
        let names = names.iter().map(|name| find(name.as_ref()));
        let serializers: Vec<Serializer> = names.collect::<Result<_, _>>()?;
        if serializers.contains(&Serializer::Auth) && security.is_none() {
            return Err("auth needs security_cert_store, which says whose signatures are believed".into());
        }
        Ok(Self { serializers, security })
    }

    /// JSON, and signed JSON of whom `security` believes.
    pub(crate) fn json_and_signed(security: Option<Arc<Security>>) -> Self {
        let mut accept = Self::default();
        accept.serializers.extend(security.as_ref().map(|_| Serializer::Auth));
        Self { security, ..accept }
    }

    /// Decodes a queue element whose content is accepted.
    ///
    /// # Errors
    /// See [`DecodeError`]; when the headers were sound they come back with the error.
    pub fn decode(&self, raw: &[u8], limits: &Limits) -> Result<Message, Undecodable> {
        message::decode_accepted(raw, limits, self)
    }

    /// How to read a content type, if it is accepted.
    pub(super) fn reader(&self, content_type: Option<&str>) -> Result<Reader<'_>, DecodeError> {
        let content_type = content_type.unwrap_or("application/data");
        match Serializer::of_content_type(content_type) {
            Some(serializer) if self.serializers.contains(&serializer) => Ok(Reader {
                serializer,
                accept: self,
            }),
            _ => Err(DecodeError::ContentType(self.refusal(content_type))),
        }
    }

    /// In Celery's words, and what to do.
    fn refusal(&self, content_type: &str) -> String {
        let accepted: Vec<&str> = self.serializers.iter().map(|serializer| serializer.name()).collect();
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

/// Reads one body.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    serializer: Serializer,
    accept: &'a Accept,
}

impl Reader<'_> {
    /// The body as JSON text.
    pub(super) fn read(self, bytes: Vec<u8>, limit: usize) -> Result<String, DecodeError> {
        self.read_deep(bytes, limit, DEEPEST)
    }

    /// The same, of one that may be nested so deep.
    pub(super) fn read_deep(self, bytes: Vec<u8>, limit: usize, deepest: usize) -> Result<String, DecodeError> {
        match (self.serializer, &self.accept.security) {
            (Serializer::Json, _) => text(bytes),
            (Serializer::Msgpack, _) => msgpack::to_json(&bytes, limit, deepest),
            (Serializer::Yaml, _) => yaml::to_json(&text(bytes)?, limit, deepest),
            (Serializer::Auth, Some(security)) => {
                let opened = security.open(&bytes)?;
                // What is signed is accepted in every form but one that runs code, or another envelope.
                match Serializer::of_content_type(&opened.content_type) {
                    None | Some(Serializer::Auth) => {
                        Err(DecodeError::ContentType(self.accept.refusal(&opened.content_type)))
                    }
                    Some(serializer) => Self { serializer, ..self }.read_deep(opened.body, limit, deepest),
                }
            }
            (Serializer::Auth, None) => Err(DecodeError::Security("there is nobody to believe".into())),
        }
    }
}

fn text(bytes: Vec<u8>) -> Result<String, DecodeError> {
    String::from_utf8(bytes).map_err(|error| DecodeError::Body(format!("not UTF-8: {}", error.utf8_error())))
}

const PICKLE: &str = "pickle";

/// kombu's name for a content type or a name; empty for what it does not know.
fn known(content_type: &str) -> &'static str {
    match content_type {
        "application/x-python-serialize" | "pickle" => PICKLE,
        other => Serializer::of_content_type(other).map_or("", Serializer::name),
    }
}
