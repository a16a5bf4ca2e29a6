//! Parameters of a template: what callers may give, checked before anything runs.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::problem::{Problems, meant};
use super::yaml::{Data, Mark, Yaml};
use crate::task::current;
use crate::wire::redact::{is_secret, may_hold_secret};

/// Types a parameter may have: those of JSON Schema, and `any`.
const TYPES: &[&str] = &["string", "integer", "number", "boolean", "array", "object", "any"];

/// Words of JSON Schema that a parameter may have as they are, and those with two names.
const WORDS: &[(&str, &str)] = &[
    ("enum", "enum"),
    ("const", "const"),
    ("minimum", "minimum"),
    ("maximum", "maximum"),
    ("exclusiveMinimum", "exclusiveMinimum"),
    ("exclusiveMaximum", "exclusiveMaximum"),
    ("multipleOf", "multipleOf"),
    ("pattern", "pattern"),
    ("format", "format"),
    ("items", "items"),
    ("uniqueItems", "uniqueItems"),
    ("properties", "properties"),
    ("additionalProperties", "additionalProperties"),
    ("oneOf", "oneOf"),
    ("anyOf", "anyOf"),
    ("allOf", "allOf"),
    ("minLength", "minLength"),
    ("maxLength", "maxLength"),
    ("minItems", "minItems"),
    ("maxItems", "maxItems"),
];

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
    /// Understands a parameter. One without a default is required unless it says otherwise; in a list of parameters
    /// (`- name: …`, the form of AI Task Orchestra) only if it says so.
    pub(super) fn read(name: &str, at: Mark, value: &Yaml, in_list: bool, problems: &mut Problems) -> Option<Self> {
        let what = format!("parameter {name:?}");
        let mut fields = Fields::of(what.clone(), value, problems)?;
        if in_list {
            fields.take("name");
        }
        let description = fields.text("description", problems);
        let mut kind = fields.text("type", problems).unwrap_or_else(|| "any".to_owned());
        if !TYPES.contains(&kind.as_str()) {
            let hint = meant(&kind, TYPES.iter().copied());
            problems.add_with(fields.place("type"), format!("{what}: unknown type {kind:?}"), hint);
            // One mistake is one message: texts may read it.
            "any".clone_into(&mut kind);
        }
        let mut schema = Map::new();
        if kind != "any" {
            schema.insert("type".into(), kind.clone().into());
        }
        let required = match fields.take("required") {
            None => None,
            Some(value) => match value.to_value() {
                Value::Bool(required) => Some(required),
                // The word of JSON Schema, which names members of an object.
                names @ Value::Array(_) => {
                    schema.insert("required".into(), names);
                    None
                }
                _ => {
                    problems.add(value.at, format!("{what}: required must be true or false"));
                    None
                }
            },
        };
        let is_list = kind == "array";
        for (name, word) in [
            ("min_length", if is_list { "minItems" } else { "minLength" }),
            ("max_length", if is_list { "maxItems" } else { "maxLength" }),
        ] {
            if let Some(length) = fields.whole(name, 0, problems) {
                schema.insert(word.into(), length.into());
            }
        }
        for (name, word) in WORDS {
            if let Some(rule) = fields.take(name) {
                schema.insert((*word).to_owned(), rule.to_value());
            }
        }
        let default = fields.take("default").map(|default| (default.at, default.to_value()));
        let place = fields.at();
        fields.finish(problems);
        let schema = Value::Object(schema);
        let validator = match jsonschema::validator_for(&schema) {
            Ok(validator) => validator,
            Err(error) => {
                problems.add(place, format!("{what}: {error}"));
                jsonschema::validator_for(&Value::Bool(true)).ok()?
            }
        };
        let needs_value = required.unwrap_or(!in_list && default.is_none());
        if let Some((place, default)) = &default {
            if required == Some(true) {
                let hint = Some("take one of them out".to_owned());
                problems.add_with(
                    *place,
                    format!("{what} is required and has a default: one of them has no effect"),
                    hint,
                );
            }
            if !default.is_null()
                && let Err(error) = validator.validate(default)
            {
                problems.add(*place, format!("{what}: its default does not fit: {error}"));
            }
        }
        Some(Self {
            name: name.to_owned(),
            description,
            kind,
            required: needs_value,
            default: default.map(|(_, default)| default).unwrap_or_default(),
            line: at.line,
            schema,
            validator,
        })
    }

    /// The parameters of a file: a mapping of names, or a list of mappings with a `name`.
    pub(super) fn read_all(value: &Yaml, problems: &mut Problems) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let mut add = |parameter: Option<Self>, at: Mark, problems: &mut Problems| {
            let Some(parameter) = parameter else { return };
            if found.iter().any(|other| other.name == parameter.name) {
                problems.add(at, format!("{:?} is there twice", parameter.name));
            } else {
                found.push(parameter);
            }
        };
        match &value.data {
            Data::Map(entries) => {
                for (key, value) in entries {
                    check_name(&key.name, key.at, problems);
                    add(Self::read(&key.name, key.at, value, false, problems), key.at, problems);
                }
            }
            Data::List(items) => {
                for item in items {
                    let name = item.as_map().and_then(|entries| {
                        let (_, name) = entries.iter().find(|(key, _)| key.name == "name")?;
                        name.as_str()
                    });
                    match name {
                        Some(name) => {
                            check_name(name, item.at, problems);
                            add(Self::read(name, item.at, item, true, problems), item.at, problems);
                        }
                        None => problems.add(item.at, "a parameter in a list needs a name"),
                    }
                }
            }
            Data::Scalar(_) => problems.add(value.at, format!("parameters must be a mapping, not {}", value.what())),
        }
        found
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
        if let Value::Object(schema) = &mut schema {
            if let Some(description) = &self.description {
                schema.insert("description".into(), json!(description));
            }
            if !self.default.is_null() {
                schema.insert("default".into(), self.default.clone());
            }
        }
        schema
    }

    /// The words it may have, for the schema of the file format.
    pub(super) fn words() -> impl Iterator<Item = &'static str> {
        let more = ["type", "description", "required", "default", "min_length", "max_length"];
        WORDS.iter().map(|(name, _)| *name).chain(more)
    }

    /// The types it may have.
    pub(super) fn types() -> &'static [&'static str] {
        TYPES
    }
}

fn check_name(name: &str, at: Mark, problems: &mut Problems) {
    let letters = |char: char| char.is_alphanumeric() || char == '_';
    if !name.chars().all(letters) || name.starts_with(|char: char| char.is_ascii_digit()) || name.is_empty() {
        let hint = Some("letters, digits and _ only, and no digit first".to_owned());
        problems.add_with(at, format!("{name:?} cannot be the name of a parameter"), hint);
    } else if super::scope::RESERVED.contains(&name) {
        let hint = Some("call it something else".to_owned());
        problems.add_with(
            at,
            format!("{name:?} is the name of something else in a template"),
            hint,
        );
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
