//! What is secret in a setting, and hiding it.

use serde_json::Value;

use crate::wire::redact::{self, HIDDEN, is_secret};

/// Hides what is secret by its name, here as everywhere and as in `celery.app.utils`, and passwords in URLs wherever
/// they stand.
pub(super) fn hide(name: &str, value: &mut Value) {
    const SECRET: &[&str] = &["api", "token", "key", "secret", "pass", "signature", "database"];
    let words = || name.split(['_', '-']);
    // `global_keyprefix` and `control_exchange` are no secrets: whole words, or the end of one.
    let is_celerys = || words().any(|word| SECRET.iter().any(|secret| word.eq_ignore_ascii_case(secret)));
    if is_secret(name) || is_celerys() {
        if !value.is_null() {
            *value = HIDDEN.into();
        }
        return;
    }
    match value {
        Value::String(_) => redact::hide(value),
        Value::Array(items) => items.iter_mut().for_each(|item| hide("", item)),
        Value::Object(map) => map.iter_mut().for_each(|(name, value)| hide(name, value)),
        _ => {}
    }
}
