//! Checks before sending: Ollama answers 500 to a wrong type, ignores what it does not know, and takes an empty prompt
//! for a request to load the model.

use serde_json::{Map, Value};

use crate::text::closest;

/// Option names and the type of their values (`api/types.go`, `Options`).
const OPTIONS: &[(&str, Type)] = &[
    ("num_ctx", Type::Integer),
    ("num_batch", Type::Integer),
    ("num_gpu", Type::Integer),
    ("main_gpu", Type::Integer),
    ("use_mmap", Type::Boolean),
    ("num_thread", Type::Integer),
    ("draft_num_predict", Type::Integer),
    ("num_keep", Type::Integer),
    ("seed", Type::Integer),
    ("num_predict", Type::Integer),
    ("temperature", Type::Number),
    ("top_k", Type::Integer),
    ("top_p", Type::Number),
    ("min_p", Type::Number),
    ("typical_p", Type::Number),
    ("repeat_last_n", Type::Integer),
    ("repeat_penalty", Type::Number),
    ("presence_penalty", Type::Number),
    ("frequency_penalty", Type::Number),
    ("stop", Type::Texts),
];

#[derive(Clone, Copy)]
enum Type {
    Integer,
    Number,
    Boolean,
    Texts,
}

impl Type {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Integer | Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::Texts => value.as_array().is_some_and(|texts| texts.iter().all(Value::is_string)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::Texts => "a list of texts",
        }
    }
}

/// O-023, O-024.
pub(super) fn model(name: &str, allow_cloud: bool) -> Result<(), String> {
    if name.trim().is_empty() {
        return Err("model: is empty".into());
    }
    if name.len() > 512 || name.chars().any(char::is_control) {
        return Err("model: is no model name".into());
    }
    let tag = name
        .rsplit('/')
        .next()
        .and_then(|last| last.split_once(':'))
        .map_or("", |(_, tag)| tag);
    let tag = tag.to_ascii_lowercase();
    if (tag == "cloud" || tag.ends_with("-cloud")) && !allow_cloud {
        return Err(format!(
            "model: {name:?} runs on ollama.com, with your prompt; set ai_allow_cloud = true to allow it"
        ));
    }
    Ok(())
}

/// O-018, O-019.
pub(super) fn generate(fields: &Map<String, Value>) -> Result<(), String> {
    match fields.get("prompt") {
        Some(Value::String(prompt)) if !prompt.is_empty() => {}
        Some(Value::String(_)) | None => {
            return Err("prompt: is empty; Ollama would only load the model".into());
        }
        Some(_) => return Err("prompt: must be a text".into()),
    }
    let raw = fields.get("raw").is_some_and(|raw| raw == &Value::Bool(true));
    let clash = ["template", "system", "context"]
        .into_iter()
        .find(|name| fields.contains_key(*name));
    if let (true, Some(name)) = (raw, clash) {
        return Err(format!("raw: goes with no {name}"));
    }
    images(fields.get("images"), "images")
}

/// O-011, O-018.
pub(super) fn chat(fields: &mut Map<String, Value>) -> Result<(), String> {
    let Some(Value::Array(messages)) = fields.get("messages") else {
        return Err("messages: must be a list of messages".into());
    };
    if messages.is_empty() {
        return Err("messages: is empty; Ollama would only load the model".into());
    }
    for (at, message) in messages.iter().enumerate() {
        let Value::Object(message) = message else {
            return Err(format!("messages[{at}]: must be an object with role and content"));
        };
        match message.get("role").and_then(Value::as_str) {
            Some("system" | "user" | "assistant" | "tool") => {}
            _ => return Err(format!("messages[{at}].role: must be system, user, assistant or tool")),
        }
        match message.get("content") {
            Some(Value::String(_)) => {}
            None | Some(Value::Null) if message.contains_key("tool_calls") => {}
            _ => {
                return Err(format!(
                    "messages[{at}].content: must be a text; pictures go into images"
                ));
            }
        }
        images(message.get("images"), &format!("messages[{at}].images"))?;
    }
    if fields.get("tools").is_some_and(|tools| !tools.is_array()) {
        return Err("tools: must be a list".into());
    }
    Ok(())
}

/// Fields that both endpoints have: O-012 to O-017.
pub(super) fn common(fields: &mut Map<String, Value>) -> Result<(), String> {
    if let Some(options) = fields.get("options") {
        check_options(options)?;
    }
    match fields.get("format") {
        None | Some(Value::Object(_)) => {}
        Some(Value::String(text)) if text == "json" => {}
        Some(Value::String(text)) if text.is_empty() => {
            fields.remove("format");
        }
        Some(_) => return Err("format: must be \"json\" or a JSON Schema object".into()),
    }
    match fields.get("think") {
        None | Some(Value::Bool(_)) => {}
        Some(Value::String(level)) if ["low", "medium", "high", "max"].contains(&level.as_str()) => {}
        Some(_) => return Err("think: must be true, false, low, medium, high or max".into()),
    }
    match fields.get("keep_alive") {
        None | Some(Value::Number(_)) => {}
        Some(Value::String(text)) if is_go_duration(text) => {}
        Some(_) => {
            return Err("keep_alive: must be a number of seconds or a duration such as 10m or 1h30m".into());
        }
    }
    match fields.get("top_logprobs") {
        None => {}
        Some(top)
            if top.as_u64().is_some_and(|top| top <= 20) && fields.get("logprobs") != Some(&Value::Bool(true)) =>
        {
            return Err("top_logprobs: needs logprobs".into());
        }
        Some(_) => return Err("top_logprobs: must be between 0 and 20".into()),
    }
    Ok(())
}

fn check_options(options: &Value) -> Result<(), String> {
    let Value::Object(options) = options else {
        return Err("options: must be an object".into());
    };
    for (name, value) in options {
        match OPTIONS.iter().find(|(known, _)| known == name) {
            Some(_) if value.is_null() => {}
            Some((_, wanted)) if !wanted.fits(value) => {
                return Err(format!("options.{name}: must be {}, not {value}", wanted.name()));
            }
            // Zero is no bound for one endpoint and one token for the other.
            Some(("num_predict", _)) if value == &Value::from(0) => {
                return Err("options.num_predict: 0 means something else on every server; leave it out".into());
            }
            Some(_) => {}
            // A newer server may know what we do not; a typo it would ignore without a word.
            None => {
                if let Some(close) = closest(name, OPTIONS.iter().map(|(known, _)| *known)) {
                    return Err(format!("options.{name}: unknown; did you mean {close}?"));
                }
            }
        }
    }
    Ok(())
}

/// Whether a text can be base64; line ends may be anywhere in it.
fn is_base64(text: &str) -> bool {
    let is_symbol = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'\r' | b'\n');
    let symbols = text.trim_end().trim_end_matches('=');
    !symbols.is_empty() && symbols.as_bytes().iter().all(is_symbol)
}

fn images(images: Option<&Value>, name: &str) -> Result<(), String> {
    match images {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(list)) if list.iter().all(|image| image.as_str().is_some_and(is_base64)) => Ok(()),
        Some(_) => Err(format!(
            "{name}: must be a list of base64 texts, without a data: prefix"
        )),
    }
}

/// Go's `time.ParseDuration`, as far as it matters: signs, numbers and units.
fn is_go_duration(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    if text == "0" {
        return true;
    }
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
        let unit = ["ns", "us", "µs", "ms", "s", "m", "h"]
            .into_iter()
            .filter(|unit| number.starts_with(unit))
            .max_by_key(|unit| unit.len());
        match unit {
            Some(unit) if number.len() < rest.len() => rest = &number[unit.len()..],
            _ => return false,
        }
    }
    !text.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Kind, Request};
    use super::*;

    fn generate_error(fields: Value) -> String {
        let Value::Object(mut all) = fields else {
            panic!("an object")
        };
        all.entry("prompt").or_insert("hi".into());
        Request::new(Kind::Generate, "m".into(), all, false).unwrap_err()
    }

    #[test]
    fn o_012_option_types_are_checked_before_sending() {
        assert_eq!(
            generate_error(json!({"options": {"stop": "x"}})),
            "options.stop: must be a list of texts, not \"x\""
        );
        assert_eq!(
            generate_error(json!({"options": {"temperature": "0"}})),
            "options.temperature: must be a number, not \"0\""
        );
        assert!(generate_error(json!({"options": {"num_predict": 0}})).contains("leave it out"));
    }

    #[test]
    fn o_013_a_typo_in_an_option_is_refused_and_news_are_not() {
        assert!(generate_error(json!({"options": {"temperatur": 0}})).contains("did you mean temperature?"));
        let fields = json!({"prompt": "x", "options": {"flux_capacity": 3}});
        assert!(Request::new(Kind::Generate, "m".into(), fields.as_object().unwrap().clone(), false).is_ok());
    }

    #[test]
    fn o_014_keep_alive_is_a_number_or_a_go_duration() {
        for good in ["10m", "1h30m", "300ms", "0", "-1m", "1.5h"] {
            assert!(is_go_duration(good), "{good}");
        }
        for bad in ["300", "1d", "", "m", "-", "1m5"] {
            assert!(!is_go_duration(bad), "{bad}");
        }
        assert!(generate_error(json!({"keep_alive": true})).starts_with("keep_alive"));
    }

    #[test]
    fn o_016_to_o_019() {
        assert!(generate_error(json!({"format": "yaml"})).starts_with("format"));
        assert!(generate_error(json!({"top_logprobs": 21, "logprobs": true})).contains("between 0 and 20"));
        assert!(generate_error(json!({"top_logprobs": 2})).contains("needs logprobs"));
        assert!(generate_error(json!({"prompt": ""})).contains("only load the model"));
        assert!(generate_error(json!({"raw": true, "system": "x"})).contains("raw"));
        assert!(generate_error(json!({"think": "very"})).starts_with("think"));
        assert!(generate_error(json!({"images": ["data:image/png;base64,AA"]})).contains("data:"));
        assert!(generate_error(json!({"images": ["no base64!"]})).starts_with("images"));
        assert!(generate_error(json!({"images": "QUJD"})).starts_with("images"));
    }

    #[test]
    fn o_024_cloud_models_need_permission() {
        for name in ["gpt-oss:120b-cloud", "x:cloud"] {
            assert!(model(name, false).is_err());
            assert!(model(name, true).is_ok());
        }
        assert!(model("cloud:latest", false).is_ok());
    }

    #[test]
    fn o_011_contents_are_texts() {
        let chat = |messages: Value| {
            let fields = json!({"messages": messages}).as_object().unwrap().clone();
            Request::new(Kind::Chat, "m".into(), fields, false).map(|_| ())
        };
        assert!(chat(json!([{"role": "user", "content": "hi"}])).is_ok());
        assert!(chat(json!([])).unwrap_err().contains("only load"));
        assert!(
            chat(json!([{"role": "user", "content": [{"type": "text"}]}]))
                .unwrap_err()
                .starts_with("messages[0].content")
        );
        assert!(
            chat(json!([{"role": "robot", "content": "hi"}]))
                .unwrap_err()
                .starts_with("messages[0].role")
        );
        assert!(chat(json!("hi")).is_err());
    }
}
