//! JSON as Python writes it. Python's encoder emits the bare tokens `NaN`, `Infinity` and `-Infinity`
//! (protocol section 1.7), which are not JSON; a message that holds one must not be lost for it.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

/// Parses JSON text; when that fails because of Python's non-finite numbers, reads those as `null`.
///
/// # Errors
/// The text is not JSON of the wanted shape.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| match finite(text) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(finite) => serde_json::from_str(&finite),
    })
}

/// The text with Python's non-finite numbers replaced by `null`; borrowed when there were none.
pub fn finite(text: &str) -> Cow<'_, str> {
    let mut out: Option<String> = None;
    let bytes = text.as_bytes();
    let (mut at, mut copied, mut in_string) = (0, 0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' | b'-' if !in_string => {
                let rest = &text[at..];
                if let Some(token) = ["NaN", "Infinity", "-Infinity"]
                    .into_iter()
                    .find(|token| rest.starts_with(token))
                {
                    let out = out.get_or_insert_with(|| String::with_capacity(text.len()));
                    out.push_str(&text[copied..at]);
                    out.push_str("null");
                    at += token.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    match out {
        Some(mut out) => {
            out.push_str(&text[copied.min(text.len())..]);
            Cow::Owned(out)
        }
        None => Cow::Borrowed(text),
    }
}

/// How deep arrays and objects are nested in JSON text.
pub fn depth(text: &str) -> usize {
    let (mut deepest, mut depth, mut in_string, mut escaped) = (0_usize, 0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn p_015_pythons_non_finite_numbers_are_read() {
        let value: Value = parse(r#"[NaN, -Infinity, Infinity, "NaN \" -Infinity", -1]"#).unwrap();
        assert_eq!(value, json!([null, null, null, "NaN \" -Infinity", -1]));
        assert!(parse::<Value>("[Nan]").is_err());
        assert!(parse::<Value>("\"NaN\\").is_err());
    }

    #[test]
    fn nesting_is_counted_outside_of_texts() {
        assert_eq!(depth(r#"[{"a": "[[[\"[["}, []]"#), 2);
        assert_eq!(depth("1"), 0);
    }
}
