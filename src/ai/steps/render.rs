//! `render`: a text, made from others.

use serde_json::Value;

use super::{Field, Fields, Stop, Type, needed, nothing_to_check, text};

pub(super) const TYPE: Type = Type {
    name: "render",
    about: "makes a text from others",
    fields: FIELDS,
    check: nothing_to_check,
    is_local: false,
};

const FIELDS: &[Field] = &[needed(text("text", "the text"))];

pub(super) fn run(mut fields: Fields) -> Result<Value, Stop> {
    Ok(Value::String(fields.text("text").unwrap_or_default()))
}
