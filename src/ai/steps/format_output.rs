//! `format_output`: a value as a text for people or programs.

use serde_json::{Map, Value};

use super::{Field, Fields, Stop, Type, Wrong, needed, text, value};
use crate::ai::site::Site;

/// The formats.
const FORMATS: &[&str] = &["json", "text", "markdown", "csv", "jsonl"];

pub(super) const TYPE: Type = Type {
    name: "format_output",
    about: "makes a text of a value: json, jsonl, text, markdown or csv",
    fields: FIELDS,
    check,
    is_local: false,
};

const FIELDS: &[Field] = &[
    needed(text("format", "json, jsonl, text, markdown or csv")),
    value("value", "what to format; without it the result of the step before"),
];

fn check(fields: &Map<String, Value>, _: &[&str]) -> Wrong {
    let format = fields.get("format").and_then(Value::as_str);
    match format {
        Some(format) if !FORMATS.contains(&format) => vec![("format", unknown(format))],
        _ => Vec::new(),
    }
}

fn unknown(format: &str) -> String {
    format!("there is no format {format:?}; use {}", FORMATS.join(", "))
}

pub(super) fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let value = fields.take("value").unwrap_or_else(|| site.input.as_ref().clone());
    let format = fields.need("format")?.to_ascii_lowercase();
    let text = match format.as_str() {
        "json" => serde_json::to_string_pretty(&content(&value)).unwrap_or_default(),
        "jsonl" => rows(&value).iter().map(|row| format!("{row}\n")).collect(),
        "text" => plain(&value),
        "markdown" => markdown(&content(&value), 0).trim_end().to_owned(),
        "csv" => csv(&rows(&value)),
        other => return Err(Stop::wrong(unknown(other))),
    };
    Ok(Value::String(text))
}

/// What an answer of a model is about: its JSON or its text, without what it cost.
fn content(value: &Value) -> Value {
    let answer = value
        .as_object()
        .filter(|answer| answer.contains_key("usage") && answer.contains_key("text"));
    match answer {
        Some(answer) => match answer.get("json") {
            Some(Value::Null) | None => answer.get("text").cloned().unwrap_or_default(),
            Some(json) => json.clone(),
        },
        None => value.clone(),
    }
}

fn plain(value: &Value) -> String {
    match content(value) {
        Value::String(text) => text,
        Value::Null => String::new(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("\n"),
        other => serde_json::to_string_pretty(&other).unwrap_or_default(),
    }
}

fn markdown(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let simple = |value: &Value| match value {
        Value::String(text) => text.replace('\n', " "),
        Value::Null => "–".into(),
        other => other.to_string(),
    };
    match value {
        Value::String(text) if depth == 0 => text.clone(),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::Array(_) | Value::Object(_) => {
                    let inner = markdown(item, depth + 1);
                    format!("{indent}- {}\n", inner.trim_start().trim_end())
                }
                item => format!("{indent}- {}\n", simple(item)),
            })
            .collect(),
        Value::Object(entries) => entries
            .iter()
            .map(|(name, value)| match value {
                Value::Array(_) | Value::Object(_) => format!("{indent}- **{name}:**\n{}", markdown(value, depth + 1)),
                value => format!("{indent}- **{name}:** {}\n", simple(value)),
            })
            .collect(),
        other => simple(other),
    }
}

fn rows(value: &Value) -> Vec<Value> {
    match content(value) {
        Value::Array(items) => items.iter().map(content).collect(),
        other => vec![other],
    }
}

/// Columns are the names of all rows, in the order in which they appear.
fn csv(rows: &[Value]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for row in rows.iter().filter_map(Value::as_object) {
        for name in row.keys() {
            if !columns.contains(&name.as_str()) {
                columns.push(name);
            }
        }
    }
    let cell = |value: Option<&Value>| {
        let text = match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        if text.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text
        }
    };
    let mut out = String::new();
    if columns.is_empty() {
        for row in rows {
            let cells: Vec<String> = match row {
                Value::Array(items) => items.iter().map(|item| cell(Some(item))).collect(),
                other => vec![cell(Some(other))],
            };
            out.push_str(&cells.join(","));
            out.push_str("\r\n");
        }
        return out;
    }
    let head: Vec<String> = columns.iter().map(|name| cell(Some(&Value::from(*name)))).collect();
    out.push_str(&head.join(","));
    out.push_str("\r\n");
    for row in rows {
        let cells: Vec<String> = columns.iter().map(|name| cell(row.get(name))).collect();
        out.push_str(&cells.join(","));
        out.push_str("\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_become_texts() {
        let value = json!([{"a": 1, "b": "x,\"y\""}, {"a": null, "c": [1, 2]}]);
        assert_eq!(csv(&rows(&value)), "a,b,c\r\n1,\"x,\"\"y\"\"\",\r\n,,\"[1,2]\"\r\n");
        assert_eq!(
            markdown(&json!({"a": 1, "list": ["x", "y"]}), 0),
            "- **a:** 1\n- **list:**\n  - x\n  - y\n"
        );
        let answer = json!({"text": "hello", "json": null, "usage": {}});
        assert_eq!(plain(&answer), "hello");
        assert_eq!(plain(&json!(["a", answer])), "a\nhello");
    }
}
