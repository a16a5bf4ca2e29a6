//! Structured answers: what was asked for is checked when it comes, never assumed.

use serde_json::Value;

/// How many things that are wrong with an answer are told to the model and to people.
const TOLD: usize = 5;
/// Longest part of a wrong value that is shown.
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
            Some(Value::String(text)) if text.is_empty() => Ok(Self::Free),
            Some(schema @ Value::Object(_)) => {
                // Nothing is fetched: a schema that refers to another file or server is refused.
                let validator = jsonschema::validator_for(schema);
                validator
                    .map(|validator| Self::Schema(Box::new(validator)))
                    .map_err(|error| format!("format: is no JSON Schema: {error}"))
            }
            Some(_) => Ok(Self::Json),
        }
    }

    /// Whether any text will do.
    pub(super) fn is_free(&self) -> bool {
        matches!(self, Self::Free)
    }

    /// The value of a text of this shape.
    ///
    /// # Errors
    /// What is wrong with it: that it is no JSON, or the places that do not fit.
    pub(super) fn read(&self, text: &str) -> Result<Value, Wrong> {
        let value: Value = serde_json::from_str(bare(text)).map_err(|error| Wrong::NotJson(error.to_string()))?;
        match self {
            Self::Free | Self::Json => Ok(value),
            Self::Schema(validator) => {
                let misfits = misfits(validator, &value);
                if misfits.is_empty() {
                    Ok(value)
                } else {
                    Err(Wrong::Misfit(misfits))
                }
            }
        }
    }
}

/// The schema as a server is asked for it. Servers make a grammar of it, and one that they cannot make of all of it
/// holds the model to nothing: what no grammar can say is left out there, and checked here.
pub(super) fn for_grammar(schema: &Value) -> Value {
    const BEYOND: &[&str] = &[
        "not",
        "if",
        "then",
        "else",
        "uniqueItems",
        "multipleOf",
        "contains",
        "minContains",
        "maxContains",
        "propertyNames",
        "patternProperties",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedProperties",
        "unevaluatedItems",
        "minProperties",
        "maxProperties",
    ];
    let each = |value: &Value| match value {
        Value::Object(named) => Value::Object(
            named
                .iter()
                .map(|(name, one)| (name.clone(), for_grammar(one)))
                .collect(),
        ),
        other => other.clone(),
    };
    let Value::Object(words) = schema else {
        return schema.clone();
    };
    let kept = words.iter().filter(|(word, value)| match word.as_str() {
        // Only a pattern for the whole text becomes a grammar.
        "pattern" => value
            .as_str()
            .is_some_and(|pattern| pattern.starts_with('^') && pattern.ends_with('$')),
        word => !BEYOND.contains(&word),
    });
    let kept = kept.map(|(word, value)| {
        let value = match (word.as_str(), value) {
            ("properties" | "$defs" | "definitions", value) => each(value),
            ("items" | "additionalProperties", value) => for_grammar(value),
            ("anyOf" | "oneOf" | "allOf" | "prefixItems", Value::Array(several)) => {
                several.iter().map(for_grammar).collect()
            }
            (_, value) => value.clone(),
        };
        (word.clone(), value)
    });
    Value::Object(kept.collect())
}

/// What is wrong with an answer.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It is no JSON.
    NotJson(String),
    /// It is JSON of another shape: the places, and what is wrong there.
    Misfit(Vec<String>),
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotJson(error) => write!(f, "is no JSON ({error})"),
            Self::Misfit(misfits) => write!(f, "does not fit its schema: {}", misfits.join("; ")),
        }
    }
}

/// Where a value does not fit a schema, the first few places.
pub(super) fn misfits(validator: &jsonschema::Validator, value: &Value) -> Vec<String> {
    let told = validator.iter_errors(value).take(TOLD).map(|error| {
        let place = error.instance_path().to_string();
        let place = if place.is_empty() {
            "the whole".to_owned()
        } else {
            place
        };
        format!("{place}: {}", excerpt(&error.to_string()))
    });
    told.collect()
}

/// A model that is not held to a grammar likes to put its JSON into a fence.
fn bare(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix("```json").or_else(|| text.strip_prefix("```"));
    inner
        .and_then(|inner| inner.trim_end().strip_suffix("```"))
        .map_or(text, str::trim)
}

/// The end of a text, which is where an answer breaks off.
pub(super) fn ending(text: &str) -> String {
    let end: String = text.chars().rev().take(EXCERPT).collect();
    let end: String = end.chars().rev().collect();
    if end.len() < text.len() {
        format!("… {end:?}")
    } else {
        format!("{end:?}")
    }
}

fn excerpt(text: &str) -> String {
    let start: String = text.chars().take(EXCERPT).collect();
    if start.len() < text.len() {
        format!("{start} …")
    } else {
        start
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_in_a_fence_is_json_and_half_of_it_is_not() {
        let shape = Shape::of(Some(&json!("json"))).unwrap();
        assert_eq!(shape.read("```json\n{\"a\": 1}\n```").unwrap(), json!({"a": 1}));
        assert_eq!(shape.read(" [1]\n").unwrap(), json!([1]));
        assert!(matches!(shape.read("{\"a\": "), Err(Wrong::NotJson(_))));
    }

    #[test]
    fn what_no_grammar_can_say_is_not_asked_of_one() {
        let schema = json!({"type": "object", "minProperties": 1, "properties": {
            "not": {"type": "string", "not": {"const": "x"}, "pattern": "a"},
            "list": {"type": "array", "uniqueItems": true, "items": {"type": "string", "pattern": "^a$", "if": {}}},
        }, "required": ["not"]});
        let asked = json!({"type": "object", "properties": {
            "not": {"type": "string"},
            "list": {"type": "array", "items": {"type": "string", "pattern": "^a$"}},
        }, "required": ["not"]});
        assert_eq!(for_grammar(&schema), asked);
    }

    #[test]
    fn all_places_that_do_not_fit_are_told() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {"b": {"type": "integer"}}});
        let wrong = Shape::of(Some(&schema))
            .unwrap()
            .read("{\"b\": \"x\"}")
            .unwrap_err()
            .to_string();
        assert!(
            wrong.contains("/b: \"x\" is not of type \"integer\"") && wrong.contains("\"a\" is a required"),
            "{wrong}"
        );
    }
}
