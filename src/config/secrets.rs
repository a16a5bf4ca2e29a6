//! What is secret in a setting, and hiding it.

use serde_json::Value;

use crate::wire::redact::{HIDDEN, hide_passwords};

/// Hides what is secret by its name, and passwords in URLs wherever they stand (`celery.app.utils`).
pub(super) fn hide(name: &str, value: &mut Value) {
    const SECRET: &[&str] = &["api", "token", "key", "secret", "pass", "signature", "database"];
    let words = || name.split(['_', '-']);
    // `global_keyprefix` and `control_exchange` are no secrets: whole words, or the end of one.
    if words().any(|word| SECRET.iter().any(|secret| word.eq_ignore_ascii_case(secret)) || word.ends_with("password")) {
        *value = HIDDEN.into();
        return;
    }
    match value {
        Value::String(text) => {
            if let Some(hidden) = hide_passwords(text) {
                *text = hidden;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| hide("", item)),
        Value::Object(map) => map.iter_mut().for_each(|(name, value)| hide(name, value)),
        _ => {}
    }
}
