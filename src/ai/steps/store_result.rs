//! `store_result`: a value as a file in a folder that the operator allows.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Field, Fields, Stop, Type, needed, nothing_to_check, text, value};
use crate::ai::site::Site;

pub(super) const TYPE: Type = Type {
    name: "store_result",
    about: "writes a file in a folder of ai_write_paths, whole or not at all",
    fields: FIELDS,
    check: nothing_to_check,
    is_local: false,
};

const FIELDS: &[Field] = &[
    needed(text("path", "where to write")),
    value(
        "value",
        "what to write, a text as it is and anything else as JSON; without it the result of the step before",
    ),
];

pub(super) async fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let path = PathBuf::from(fields.need("path")?);
    let value = fields.take("value").unwrap_or_else(|| site.input.as_ref().clone());
    let bytes = match value {
        Value::String(text) => text.into_bytes(),
        other => serde_json::to_vec_pretty(&other).map_err(crate::task::Failure::from)?,
    };
    let permits = site.engine.permits().clone();
    let size = bytes.len();
    let written = crate::ai::site::blocking(move || permits.write(&path, &bytes)).await?;
    let path = written.map_err(|text| Stop::failed("FileError", text))?;
    Ok(json!({"path": path.display().to_string(), "bytes": size}))
}
