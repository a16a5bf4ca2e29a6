//! Tasks that make and check signatures as data.

use orchestra::task::{Failure, Options, RegisterError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::named;
use crate::functions::Functions;

const KINDS: [&str; 3] = ["chain", "group", "chord"];

#[derive(Deserialize)]
struct Nothing;

#[derive(Deserialize)]
struct Rebuild {
    sig_dict: Value,
}

pub(super) fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    for outer in KINDS {
        for inner in KINDS {
            let name = named(&format!("return_nested_signature_{outer}_{inner}"));
            functions.add(&name, Options::DEFAULT, move |_: Nothing, _| async move {
                Ok(canvas(outer, canvas(inner, add())))
            })?;
        }
    }
    functions.add(
        &named("rebuild_signature"),
        Options::DEFAULT,
        |Rebuild { sig_dict }, _| async move { check(&sig_dict) },
    )
}

/// A canvas of that kind around one signature.
fn canvas(kind: &str, inner: Value) -> Value {
    let kwargs = match kind {
        "chord" => json!({"kwargs": {}, "header": [inner], "body": add()}),
        _ => json!({"tasks": [inner]}),
    };
    json!({
        "task": format!("celery.{kind}"), "args": [], "kwargs": kwargs, "options": {},
        "subtask_type": kind, "immutable": false,
    })
}

fn add() -> Value {
    json!({
        "task": named("add"), "args": [], "kwargs": {}, "options": {}, "subtask_type": null, "immutable": false,
    })
}

/// That it is a signature all the way down.
fn check(signature: &Value) -> Result<(), Failure> {
    if !signature["task"].is_string() || !signature["args"].is_array() || !signature["kwargs"].is_object() {
        return Err(Failure::type_error(format!("this is no signature: {signature}")));
    }
    let kwargs = &signature["kwargs"];
    let parts = match signature["subtask_type"].as_str() {
        Some("chain" | "group") => kwargs["tasks"].as_array(),
        Some("chord") => {
            check(&kwargs["body"])?;
            kwargs["header"].as_array()
        }
        _ => return Ok(()),
    };
    let Some(parts) = parts else {
        return Err(Failure::type_error(format!("this canvas has no parts: {signature}")));
    };
    parts.iter().try_for_each(check)
}
