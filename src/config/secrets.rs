//! What is secret in a setting, and hiding it.

use serde_json::Value;

/// What Celery shows instead of a secret.
pub(super) const HIDDEN: &str = "********";

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
            if let Some(hidden) = hide_password(text) {
                *text = hidden;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| hide("", item)),
        Value::Object(map) => map.iter_mut().for_each(|(name, value)| hide(name, value)),
        _ => {}
    }
}

/// A URL without its password; `None` when there is none in it.
fn hide_password(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (credentials, place) = rest.rsplit_once('@')?;
    let (user, _) = credentials.split_once(':')?;
    Some(format!("{scheme}://{user}:{HIDDEN}@{place}"))
}
