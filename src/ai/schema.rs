//! Structured answers: what was asked for is checked when it comes, never assumed (`ollama-api.md`, section 9).

use serde_json::Value;

use super::fault::{invalid_output, output_truncated};
use super::ollama::Answer;
use crate::task::Failure;

/// Longest part of a wrong answer that is shown.
const EXCERPT: usize = 200;

/// The shape an answer must have.
#[derive(Debug)]
pub(super) enum Shape {
    /// Text.
    Free,
    /// Any JSON.
    Json,
    /// JSON of a schema.
    Schema(Box<jsonschema::Validator>),
}

impl Shape {
    /// The shape of a `format` field.
    ///
    /// # Errors
    /// A text for people: the schema is none.
    pub(super) fn of(format: Option<&Value>) -> Result<Self, String> {
        match format {
            None | Some(Value::Null) => Ok(Self::Free),
            Some(Value::Object(schema)) => {
                let schema = Value::Object(schema.clone());
                // Nothing is fetched: a schema that refers to another file or server is refused.
                let validator = jsonschema::validator_for(&schema);
                validator
                    .map(|validator| Self::Schema(Box::new(validator)))
                    .map_err(|error| format!("format: is no JSON Schema: {error}"))
            }
            Some(_) => Ok(Self::Json),
        }
    }

    /// Parses the text of an answer and checks it.
    pub(super) fn check(&self, answer: &mut Answer) -> Result<(), Failure> {
        if matches!(self, Self::Free) {
            return Ok(());
        }
        let value: Value = match serde_json::from_str(&answer.text) {
            Ok(value) => value,
            Err(_) if answer.truncated => {
                return Err(output_truncated(format!(
                    "the answer of {} ended after {} tokens, before its JSON was complete; raise num_predict: {}",
                    answer.model,
                    answer.usage.completion_tokens,
                    excerpt(&answer.text),
                )));
            }
            Err(error) => {
                let text = format!(
                    "the answer of {} is no JSON ({error}): {}",
                    answer.model,
                    excerpt(&answer.text)
                );
                return Err(invalid_output(text));
            }
        };
        if let Self::Schema(validator) = self
            && let Err(error) = validator.validate(&value)
        {
            let place = error.instance_path().to_string();
            let place = if place.is_empty() {
                "the whole".to_owned()
            } else {
                place
            };
            let text = format!(
                "the answer of {} does not fit its schema at {place}: {error}",
                answer.model
            );
            return Err(invalid_output(text));
        }
        answer.json = Some(value);
        Ok(())
    }
}

fn excerpt(text: &str) -> String {
    let end: String = text.chars().rev().take(EXCERPT).collect();
    let end: String = end.chars().rev().collect();
    if end.len() < text.len() {
        format!("… {end:?}")
    } else {
        format!("{end:?}")
    }
}
