//! What is asked of a model.

use serde_json::{Map, Value};

use super::check;

/// Which endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `POST /api/generate`.
    Generate,
    /// `POST /api/chat`.
    Chat,
}

impl Kind {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Generate => "api/generate",
            Self::Chat => "api/chat",
        }
    }
}

/// A request that has been checked: what Ollama would ignore, or refuse in words that do not help, is refused here.
#[derive(Clone, Debug)]
pub struct Request {
    kind: Kind,
    model: String,
    body: Map<String, Value>,
}

impl Request {
    /// A request from the fields of Ollama's API; `null` means not given. Always streamed, so that cancelling and
    /// stalling can be told apart from waiting.
    ///
    /// # Errors
    /// A text for people: which field is wrong and what it should be (O-011 to O-019, O-024).
    pub fn new(kind: Kind, model: String, mut fields: Map<String, Value>, allow_cloud: bool) -> Result<Self, String> {
        fields.retain(|_, value| !value.is_null());
        check::model(&model, allow_cloud)?;
        match kind {
            Kind::Generate => check::generate(&fields)?,
            Kind::Chat => check::chat(&mut fields)?,
        }
        check::common(&mut fields)?;
        fields.insert("model".into(), model.clone().into());
        fields.insert("stream".into(), true.into());
        Ok(Self {
            kind,
            model,
            body: fields,
        })
    }

    /// Which endpoint it is for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The model's name, as it was written.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The JSON to send.
    pub fn body(&self) -> &Map<String, Value> {
        &self.body
    }

    /// The JSON to send, to be changed by what the fleet says of the model.
    pub(crate) fn body_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.body
    }

    /// The same of another model.
    pub(crate) fn set_model(&mut self, model: &str) {
        model.clone_into(&mut self.model);
        self.body.insert("model".into(), model.into());
    }

    /// What the answer must look like, if that was asked for.
    pub fn format(&self) -> Option<&Value> {
        self.body.get("format")
    }
}
