//! Parameters of a template: what callers may give, checked before anything runs.

use serde_json::{Map, Value, json};

use super::file::ParameterFile;
use crate::task::current;
use crate::text::closest;
use crate::wire::redact::{is_secret, may_hold_secret};

/// Types a parameter may have: those of JSON Schema, and `any`.
const TYPES: &[&str] = &["string", "integer", "number", "boolean", "array", "object", "any"];

/// One parameter.
#[derive(Debug)]
pub struct Parameter {
    /// Its name, as callers write it.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Its type.
    pub kind: String,
    /// Whether a caller must give it.
    pub required: bool,
    /// What it is if nobody gives it; `null` if the file says nothing.
    pub default: Value,
    /// The line of the file where it is declared.
    pub line: usize,
    schema: Value,
    validator: jsonschema::Validator,
}

impl Parameter {
    /// Understands a parameter.
    ///
    /// # Errors
    /// A text for people: what is wrong with the declaration.
    pub(super) fn new(name: String, line: usize, file: ParameterFile) -> Result<Self, String> {
        let kind = file.kind.unwrap_or_else(|| "any".to_owned());
        if !TYPES.contains(&kind.as_str()) {
            let meant = closest(&kind, TYPES.iter().copied()).map(|close| format!("; did you mean {close}?"));
            return Err(format!(
                "unknown type {kind:?}{}",
                meant.unwrap_or_else(|| format!(": use one of {}", TYPES.join(", ")))
            ));
        }
        let mut schema = Map::new();
        if kind != "any" {
            schema.insert("type".into(), kind.clone().into());
        }
        let rules = [
            ("enum", file.choices.map(Value::from)),
            ("minimum", file.minimum),
            ("maximum", file.maximum),
            (
                if kind == "array" { "minItems" } else { "minLength" },
                file.min_length.map(Value::from),
            ),
            (
                if kind == "array" { "maxItems" } else { "maxLength" },
                file.max_length.map(Value::from),
            ),
            ("pattern", file.pattern.map(Value::from)),
            ("items", file.items),
            ("properties", file.properties),
        ];
        schema.extend(
            rules
                .into_iter()
                .filter_map(|(rule, value)| Some((rule.to_owned(), value?))),
        );
        let schema = Value::Object(schema);
        let validator = jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
        let required = file.required.unwrap_or(file.default.is_none());
        if let Some(default) = &file.default {
            if required {
                return Err("is required and has a default: one of them has no effect".into());
            }
            if !default.is_null() {
                validator
                    .validate(default)
                    .map_err(|error| format!("its default does not fit: {error}"))?;
            }
        }
        Ok(Self {
            name,
            description: file.description,
            kind,
            required,
            default: file.default.unwrap_or(Value::Null),
            line,
            schema,
            validator,
        })
    }

    /// Checks a value; what is wrong with it.
    pub(super) fn check(&self, value: &Value) -> Result<(), String> {
        // Not given and given as nothing are the same to Python callers with `param=None`.
        if value.is_null() && !self.required {
            return Ok(());
        }
        if let Err(error) = self.validator.validate(value) {
            let place = error.instance_path().to_string();
            let text = if self.is_secret(value) {
                error.masked().to_string()
            } else {
                shorten(&error.to_string())
            };
            return Err(format!("parameter {:?}{place}: {text}", self.name));
        }
        Ok(())
    }

    /// Whether the value is not to be shown: by its name, what is in it, or because the task that runs says so.
    fn is_secret(&self, value: &Value) -> bool {
        is_secret(&self.name)
            || may_hold_secret(&value.to_string())
            || current().is_some_and(|context| context.details().hides.covers(&self.name))
    }

    /// Its JSON Schema.
    pub fn schema(&self) -> Value {
        let mut schema = self.schema.clone();
        if let (Value::Object(schema), Some(description)) = (&mut schema, &self.description) {
            schema.insert("description".into(), json!(description));
        }
        schema
    }
}

/// A caller's value is quoted in the message; a whole book is not.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 300;
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let half = LONGEST / 2;
    let start: String = text.chars().take(half).collect();
    let end: String = text.chars().rev().take(half).collect();
    format!("{start} … {}", end.chars().rev().collect::<String>())
}
