//! JSON Schemas of the two file formats, for editors: made from the tables that the files are read with.

use serde_json::{Map, Value, json};

use super::Parameter;
use super::policy::Reason;
use super::step::COMMON;
use crate::ai::steps::{TYPES, Type};
use crate::ai::task_file;

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of a template file.
pub fn template_schema() -> Value {
    let steps: Vec<Value> = TYPES.iter().map(step).collect();
    json!({
        "$schema": DRAFT,
        "title": "orchestra template",
        "type": "object",
        "required": ["steps"],
        "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "description": "its name; without it that of the file"},
            "version": {"type": "integer", "minimum": 1, "description": "which version of that name it is (1)"},
            "description": {"type": "string", "description": "one line for people"},
            "parameters": {
                "description": "what callers give",
                "anyOf": [
                    {"type": "object", "additionalProperties": parameter(false)},
                    {"type": "array", "items": parameter(true)},
                ],
            },
            "steps": {"type": "array", "minItems": 1, "items": {"oneOf": steps}},
            "output": {"description": "the result, with expressions in it; without it that of the last step"},
            "returns": {"type": "object", "description": "JSON Schema that the result must fit"},
        },
    })
}

/// The schema of a task file.
pub fn task_schema() -> Value {
    let properties: Map<String, Value> = task_file::FIELDS
        .iter()
        .map(|(name, kind, about)| {
            let schema = match *kind {
                "any" => json!({"description": about}),
                kind => json!({"type": kind, "description": about}),
            };
            ((*name).to_owned(), schema)
        })
        .collect();
    json!({
        "$schema": DRAFT,
        "title": "orchestra task file",
        "type": "object",
        "required": ["name", "template"],
        "additionalProperties": false,
        "properties": properties,
    })
}

fn parameter(in_list: bool) -> Value {
    let mut properties: Map<String, Value> = Parameter::words().map(|word| (word.to_owned(), json!(true))).collect();
    properties.insert("type".into(), json!({"enum": Parameter::types()}));
    properties.insert("description".into(), json!({"type": "string"}));
    if in_list {
        properties.insert("name".into(), json!({"type": "string"}));
    }
    let required: &[&str] = if in_list { &["name"] } else { &[] };
    json!({"type": "object", "required": required, "additionalProperties": false, "properties": properties})
}

fn step(kind: &Type) -> Value {
    let mut properties: Map<String, Value> = COMMON
        .iter()
        .map(|(name, about)| ((*name).to_owned(), common(name, about)))
        .collect();
    properties.insert("type".into(), json!({"const": kind.name, "description": kind.about}));
    for field in kind.fields {
        let schema = if field.is_text {
            json!({"type": ["string", "number", "boolean"], "description": field.about})
        } else {
            json!({"description": field.about})
        };
        properties.insert(field.name.to_owned(), schema);
    }
    let needed = kind.fields.iter().filter(|field| field.needed).map(|field| field.name);
    let required: Vec<&str> = std::iter::once("type").chain(needed).collect();
    json!({
        "type": "object", "description": kind.about, "required": required, "additionalProperties": false,
        "properties": properties,
    })
}

fn common(name: &str, about: &str) -> Value {
    let mut schema = match name {
        "id" | "description" => json!({"type": "string"}),
        "needs" => json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
        "when" => json!({"type": ["string", "boolean"]}),
        "foreach" => json!({"type": ["string", "array"]}),
        "parallel" => json!({"type": "integer", "minimum": 1, "maximum": 256}),
        "timeout" => json!({"type": "number", "exclusiveMinimum": 0}),
        "on_error" => json!({"anyOf": [
            {"enum": ["fail", "continue"]},
            {"type": "object", "required": ["value"], "additionalProperties": false, "properties": {"value": true}},
        ]}),
        "retry" => {
            let reasons: Vec<&str> = Reason::names().collect();
            let on = json!({"anyOf": [{"enum": reasons}, {"type": "array", "items": {"enum": reasons}}]});
            json!({"anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 100},
                {"type": "object", "additionalProperties": false, "properties": {
                    "times": {"type": "integer", "minimum": 1, "maximum": 100},
                    "on": on,
                    "pause": {"type": "number", "exclusiveMinimum": 0},
                    "factor": {"type": "number", "minimum": 1, "maximum": 10},
                }},
            ]})
        }
        _ => json!({}),
    };
    if let Value::Object(schema) = &mut schema {
        schema.insert("description".into(), about.into());
    }
    schema
}
