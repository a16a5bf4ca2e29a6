//! The body of `/api/generate` and `/api/chat`, read into one type.

use serde_json::{Map, Value};

use super::fields::{self, Fields};
use crate::backend::{Format, Input, Message};
use crate::error::Error;
use crate::frames::Kind;
use crate::keep_alive::KeepAlive;

/// A request whose fields have the right types; what its values mean is checked in `check`.
#[derive(Debug)]
pub struct Request {
    pub kind: Kind,
    /// As written.
    pub model: String,
    pub input: Input,
    pub stream: bool,
    pub format: Option<Value>,
    pub keep_alive: Option<KeepAlive>,
    pub options: Map<String, Value>,
    /// Thinking asked for (a level counts as yes), refused, or left to the model.
    pub think: Option<bool>,
    pub truncate: bool,
    pub shift: bool,
    pub logprobs: bool,
    pub top_logprobs: i64,
    pub render_only: bool,
    pub suffix: String,
    pub template: String,
    /// The sizes of the pictures, in bytes.
    pub images: Vec<usize>,
}

impl Request {
    pub fn parse(kind: Kind, body: &[u8]) -> Result<Self, Error> {
        let value = fields::parse(body)?;
        let fields = Fields::new(
            &value,
            if kind == Kind::Chat {
                "ChatRequest"
            } else {
                "GenerateRequest"
            },
        )?;
        let keep_alive = fields
            .value("keep_alive")
            .map(KeepAlive::parse)
            .transpose()
            .map_err(Error::bad_request)?;
        let (input, images) = match kind {
            Kind::Generate => prompt(&fields)?,
            Kind::Chat => conversation(&fields)?,
        };
        let generate = |name| {
            if kind == Kind::Generate {
                fields.string(name)
            } else {
                Ok("")
            }
        };
        Ok(Self {
            kind,
            model: fields.string("model")?.to_owned(),
            input,
            stream: fields.boolean("stream")?.unwrap_or(true),
            format: fields.value("format").cloned(),
            keep_alive: keep_alive.flatten(),
            options: fields.object("options")?.cloned().unwrap_or_default(),
            think: think(&fields)?,
            truncate: fields.boolean("truncate")?.unwrap_or(true),
            shift: fields.boolean("shift")?.unwrap_or(true),
            logprobs: fields.boolean("logprobs")?.unwrap_or(false),
            top_logprobs: fields.integer("top_logprobs")?,
            render_only: fields.boolean("_debug_render_only")?.unwrap_or(false),
            suffix: generate("suffix")?.to_owned(),
            template: generate("template")?.to_owned(),
            images,
        })
    }

    /// A request without a prompt or messages only loads or unloads.
    pub fn is_empty(&self) -> bool {
        match &self.input {
            Input::Prompt { prompt, .. } => prompt.is_empty(),
            Input::Chat { messages, .. } => messages.is_empty(),
        }
    }

    pub fn format(&self) -> Result<Format, Error> {
        match &self.format {
            None => Ok(Format::Free),
            Some(Value::String(text)) if text.is_empty() => Ok(Format::Free),
            Some(Value::String(text)) if text == "json" => Ok(Format::Json),
            Some(schema @ Value::Object(_)) => Ok(Format::Schema(schema.clone())),
            Some(other) => Err(Error::new(
                500,
                format!(
                    "invalid format: {:?}; expected \"json\" or a valid JSON Schema object",
                    other.to_string()
                ),
            )),
        }
    }
}

fn prompt(fields: &Fields<'_>) -> Result<(Input, Vec<usize>), Error> {
    let context = fields.array("context", "int")?;
    let token = |value: &Value| value.as_u64().ok_or_else(|| fields.wrong("context", value, "int"));
    let system = fields.value("system").map(|_| fields.string("system")).transpose()?;
    let input = Input::Prompt {
        prompt: fields.string("prompt")?.to_owned(),
        system: system.filter(|text| !text.is_empty()).map(str::to_owned),
        raw: fields.boolean("raw")?.unwrap_or(false),
        context: context.iter().map(token).collect::<Result<_, _>>()?,
    };
    Ok((input, images(fields, "GenerateRequest.")?))
}

fn conversation(fields: &Fields<'_>) -> Result<(Input, Vec<usize>), Error> {
    let mut messages = Vec::new();
    let mut pictures = Vec::new();
    for value in fields.array("messages", "api.Message")? {
        // The server decodes a message through an alias of its type, and its error texts show it.
        let message = Fields::new(value, "Alias")?;
        pictures.extend(images(&message, "ChatRequest.messages.")?);
        messages.push(Message {
            role: message.string("role")?.to_lowercase(),
            content: message.string("content")?.to_owned(),
        });
    }
    let tools = fields.array("tools", "api.Tool")?.to_vec();
    Ok((Input::Chat { messages, tools }, pictures))
}

fn images(fields: &Fields<'_>, path: &str) -> Result<Vec<usize>, Error> {
    let mut sizes = Vec::new();
    let images = fields.array("images", "api.ImageData")?;
    for (at, image) in images.iter().enumerate() {
        let text = image
            .as_str()
            .ok_or_else(|| fields.wrong("images", image, "api.ImageData"))?;
        fields::check_base64(text).map_err(|byte| {
            Error::bad_request(format!(
                "json: cannot unmarshal string into {path}images.{at} of type api.ImageData: \
                 illegal base64 data at input byte {byte}"
            ))
        })?;
        let symbols = text
            .bytes()
            .filter(|byte| !matches!(byte, b'\r' | b'\n' | b'='))
            .count();
        sizes.push(symbols * 3 / 4);
    }
    Ok(sizes)
}

fn think(fields: &Fields<'_>) -> Result<Option<bool>, Error> {
    match fields.value("think") {
        None => Ok(None),
        Some(Value::Bool(think)) => Ok(Some(*think)),
        Some(Value::String(level)) if matches!(level.as_str(), "high" | "medium" | "low" | "max") => Ok(Some(true)),
        Some(Value::String(level)) => Err(Error::bad_request(format!(
            "invalid think value: {level:?} (must be \"high\", \"medium\", \"low\", \"max\", true, or false)"
        ))),
        Some(_) => Err(Error::bad_request(
            "think must be a boolean or string (\"high\", \"medium\", \"low\", \"max\", true, or false)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: Kind, body: &str) -> String {
        Request::parse(kind, body.as_bytes()).expect_err(body).text
    }

    #[test]
    fn refusals_have_the_texts_of_the_recorded_server() {
        for (body, text) in [
            (
                r#"{"messages":[{"role":"user","content":["x"]}]}"#,
                "json: cannot unmarshal array into Go struct field Alias.content of type string",
            ),
            (
                r#"{"think":"huge"}"#,
                "invalid think value: \"huge\" (must be \"high\", \"medium\", \"low\", \"max\", true, or false)",
            ),
            (r#"{"keep_alive":"300"}"#, "time: missing unit in duration \"300\""),
        ] {
            assert_eq!(error(Kind::Chat, body), text);
        }
        assert_eq!(
            error(Kind::Generate, r#"{"images":["QUJD!"]}"#),
            "json: cannot unmarshal string into GenerateRequest.images.0 of type api.ImageData: \
             illegal base64 data at input byte 4"
        );
    }

    #[test]
    fn streaming_is_the_default_and_an_empty_prompt_is_a_load() {
        let request = Request::parse(Kind::Generate, br#"{"model":"m"}"#).expect("a request");
        assert!(request.stream && request.is_empty() && request.truncate && request.shift);
    }

    #[test]
    fn a_format_is_json_a_schema_or_nothing() {
        let format = |text: &str| {
            let body = format!(r#"{{"format":{text}}}"#);
            Request::parse(Kind::Chat, body.as_bytes()).and_then(|request| request.format())
        };
        assert_eq!(format("null").ok(), Some(Format::Free));
        assert_eq!(format("\"\"").ok(), Some(Format::Free));
        assert_eq!(format("\"json\"").ok(), Some(Format::Json));
        assert_eq!(format("{}").ok(), Some(Format::Schema(Value::Object(Map::new()))));
        let error = format("\"xml\"").expect_err("an error");
        assert_eq!(error.status, 500);
        assert_eq!(
            error.text,
            "invalid format: \"\\\"xml\\\"\"; expected \"json\" or a valid JSON Schema object"
        );
    }
}
