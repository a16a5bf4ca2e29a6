//! One valid document for a JSON Schema, always the same.
//!
//! Understands what the engine's own conversion to a grammar does, except `pattern`: `$ref` inside the document,
//! `const`, `enum`, `type`, `properties`, `items`, `prefixItems`, `anyOf`, `oneOf`, `allOf`, lengths and bounds.

use serde_json::{Map, Value, json};

/// References deeper than this end in `null`: a schema may refer to itself without end.
const DEEPEST: usize = 24;

/// A document that the schema accepts.
pub fn sample(schema: &Value) -> Value {
    Sampler { root: schema }.value(schema, DEEPEST)
}

struct Sampler<'a> {
    root: &'a Value,
}

impl Sampler<'_> {
    fn value(&self, schema: &Value, depth: usize) -> Value {
        let Some(depth) = depth.checked_sub(1) else {
            return Value::Null;
        };
        if let Some(target) = schema["$ref"].as_str() {
            return self.value(self.resolve(target), depth);
        }
        if let Some(constant) = schema.get("const") {
            return constant.clone();
        }
        if let Some(first) = schema["enum"].get(0) {
            return first.clone();
        }
        if let Some(first) = schema["anyOf"].get(0).or_else(|| schema["oneOf"].get(0)) {
            return self.value(&merged([schema, first]), depth);
        }
        if let Some(parts) = schema["allOf"].as_array() {
            let parts = parts
                .iter()
                .map(|part| part["$ref"].as_str().map_or(part, |target| self.resolve(target)));
            return self.value(&merged([schema].into_iter().chain(parts)), depth);
        }
        match kind(schema) {
            "object" => self.object(schema, depth),
            "array" => self.array(schema, depth),
            "integer" => json!(number(schema, 1.0).ceil() as i64),
            "number" => json!(number(schema, 0.5)),
            "boolean" => json!(true),
            "null" => Value::Null,
            _ => json!(string(schema)),
        }
    }

    fn object(&self, schema: &Value, depth: usize) -> Value {
        let Some(properties) = schema["properties"].as_object() else {
            return json!({});
        };
        let required = |name: &str| {
            schema["required"]
                .as_array()
                .is_some_and(|names| names.iter().any(|n| n == name))
        };
        // A schema may contain itself through an optional property: near the end only what must be there is.
        let wanted = properties
            .iter()
            .filter(|(name, _)| depth > DEEPEST / 2 || required(name));
        wanted
            .map(|(name, schema)| (name.clone(), self.value(schema, depth)))
            .collect::<Map<_, _>>()
            .into()
    }

    fn array(&self, schema: &Value, depth: usize) -> Value {
        let prefix = schema["prefixItems"].as_array().map(Vec::as_slice).unwrap_or_default();
        let bound = |name: &str| schema[name].as_u64().and_then(|n| usize::try_from(n).ok());
        let least = bound("minItems").unwrap_or(1).max(prefix.len());
        let length = least.min(bound("maxItems").unwrap_or(usize::MAX));
        let no_limits = json!({});
        let items = schema
            .get("items")
            .filter(|items| items.is_object())
            .unwrap_or(&no_limits);
        (0..length)
            .map(|at| self.value(prefix.get(at).unwrap_or(items), depth))
            .collect()
    }

    fn resolve(&self, target: &str) -> &Value {
        target
            .strip_prefix('#')
            .and_then(|path| self.root.pointer(path))
            .unwrap_or(&Value::Null)
    }
}

/// The type to make: the first that is not `null`, or what the other keywords imply.
fn kind(schema: &Value) -> &str {
    match &schema["type"] {
        Value::String(kind) => kind,
        Value::Array(kinds) => {
            let mut kinds = kinds.iter().filter_map(Value::as_str);
            kinds.find(|kind| *kind != "null").unwrap_or("null")
        }
        _ if schema.get("properties").is_some() => "object",
        _ if schema.get("items").is_some() || schema.get("prefixItems").is_some() => "array",
        _ if schema.get("minimum").is_some() || schema.get("maximum").is_some() => "number",
        _ => "string",
    }
}

/// All keywords of the parts in one schema, without the alternatives that they came from. Later parts win,
/// properties and required names are joined.
fn merged<'a>(parts: impl IntoIterator<Item = &'a Value>) -> Value {
    let mut whole = Map::new();
    for (name, value) in parts.into_iter().filter_map(Value::as_object).flatten() {
        match (whole.get_mut(name), value) {
            (Some(Value::Object(known)), Value::Object(more)) if name == "properties" => known.extend(more.clone()),
            (Some(Value::Array(known)), Value::Array(more)) if name == "required" => known.extend(more.clone()),
            _ => drop(whole.insert(name.clone(), value.clone())),
        }
    }
    whole.retain(|name, _| !matches!(name.as_str(), "anyOf" | "oneOf" | "allOf"));
    whole.into()
}

fn number(schema: &Value, natural: f64) -> f64 {
    let bound = |name: &str| schema[name].as_f64();
    let step = bound("multipleOf").filter(|step| *step > 0.0);
    let whole = schema["type"] == "integer";
    // An exclusive bound is left by one step, or by a little where there are no steps.
    let nudge = step.unwrap_or(if whole { 1.0 } else { 0.001 });
    let least = bound("minimum").or_else(|| bound("exclusiveMinimum").map(|least| least + nudge));
    let most = bound("maximum").or_else(|| bound("exclusiveMaximum").map(|most| most - nudge));
    let number = natural.max(least.unwrap_or(f64::MIN)).min(most.unwrap_or(f64::MAX));
    match step {
        Some(step) if least.is_some() => (number / step).ceil() * step,
        Some(step) => (number / step).floor() * step,
        None => number,
    }
}

fn string(schema: &Value) -> String {
    let text = match schema["format"].as_str() {
        Some("date-time") => "2026-01-02T03:04:05Z",
        Some("date") => "2026-01-02",
        Some("time") => "03:04:05Z",
        Some("email") => "lorem@example.com",
        Some("uri") => "https://example.com/lorem",
        Some("uuid") => "00000000-0000-4000-8000-000000000000",
        Some("ipv4") => "192.0.2.1",
        _ => "lorem ipsum",
    };
    let bound = |name: &str| schema[name].as_u64().and_then(|n| usize::try_from(n).ok());
    let most = bound("maxLength").unwrap_or(usize::MAX);
    let least = bound("minLength").unwrap_or(0).saturating_sub(text.len());
    text.chars().chain(std::iter::repeat_n('m', least)).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_all_their_properties() {
        let schema = json!({
            "type": "object",
            "properties": {
                "label": {"enum": ["positive", "negative"]},
                "score": {"type": "number", "minimum": 2, "maximum": 3},
                "count": {"type": "integer", "exclusiveMinimum": 4, "multipleOf": 5},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 2},
                "sure": {"type": ["null", "boolean"]},
            },
            "required": ["label"],
        });
        let expected = json!({
            "label": "positive", "score": 2.0, "count": 10, "tags": ["lor", "lor"], "sure": true,
        });
        assert_eq!(sample(&schema), expected);
    }

    #[test]
    fn references_and_combinations_are_followed() {
        let schema = json!({
            "$defs": {"name": {"type": "string", "minLength": 13}, "base": {"properties": {"a": {"const": 1}}}},
            "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"anyOf": [{"$ref": "#/$defs/name"}]}}}],
        });
        assert_eq!(sample(&schema), json!({"a": 1, "b": "lorem ipsummm"}));
    }

    #[test]
    fn a_schema_that_contains_itself_ends() {
        let schema = json!({
            "properties": {"name": {"type": "string"}, "child": {"$ref": "#"}},
            "required": ["name"],
        });
        assert!(sample(&schema).is_object());
    }
}
