//! What is asked of a model.

use serde::ser::{Serialize, SerializeMap as _, Serializer};
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

    /// The JSON to send, with an end for an answer that has none (O-022); 0 sets none.
    pub(super) fn with_end(&self, tokens: u64) -> WithEnd<'_> {
        WithEnd {
            body: &self.body,
            tokens,
        }
    }

    /// The same without a field.
    pub(crate) fn without(&self, field: &str) -> Self {
        let mut other = self.clone();
        other.body.shift_remove(field);
        other
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

/// A request whose answer has an end. Written out as it is sent: a request may hold pictures, and is not copied for
/// this.
#[derive(Debug)]
pub(super) struct WithEnd<'a> {
    body: &'a Map<String, Value>,
    tokens: u64,
}

impl Serialize for WithEnd<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let options = self.body.get("options").and_then(Value::as_object);
        let given = options.and_then(|options| options.get("num_predict"));
        // -1 is without end; -2 is as far as the window goes, which is an end.
        let has_end = given.and_then(Value::as_i64).is_some_and(|given| given != -1);
        if has_end || self.tokens == 0 {
            return self.body.serialize(serializer);
        }
        let mut options = options.cloned().unwrap_or_default();
        options.insert("num_predict".into(), self.tokens.into());
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.body.iter().filter(|(name, _)| *name != "options") {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("options", &options)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn o_022_every_answer_has_an_end() {
        let sent = |options: Value, tokens: u64| {
            let fields = json!({"prompt": "x", "options": options}).as_object().cloned().unwrap();
            let request = Request::new(Kind::Generate, "m".into(), fields, false).unwrap();
            let sent = serde_json::to_value(request.with_end(tokens)).unwrap();
            assert_eq!((&sent["model"], &sent["stream"]), (&json!("m"), &json!(true)));
            sent["options"].clone()
        };
        assert_eq!(sent(Value::Null, 100), json!({"num_predict": 100}));
        assert_eq!(
            sent(json!({"seed": 1, "num_predict": -1}), 100),
            json!({"seed": 1, "num_predict": 100})
        );
        assert_eq!(sent(json!({"num_predict": 500}), 100), json!({"num_predict": 500}));
        assert_eq!(sent(json!({"num_predict": -2}), 100), json!({"num_predict": -2}));
        assert_eq!(sent(Value::Null, 0), Value::Null);
    }
}
