//! JSON as Python writes it. Python's encoder emits the bare tokens `NaN`, `Infinity` and `-Infinity`
//! (protocol section 1.7), which are not JSON; a message that holds one must not be lost for it.
//!
//! What is only passed on carries them as numbers that no float can hold, which is JSON; Python's reader takes such a
//! number for an infinity anyway. Whoever wants the value of one here gets `null`.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;

/// Stands for `NaN` within this process.
const NAN: &str = "1e99998";
/// Stands for `Infinity`.
const INFINITY: &str = "1e99999";
/// Stands for `-Infinity`.
const NEGATIVE_INFINITY: &str = "-1e99999";
const TOKENS: [&str; 6] = ["NaN", "Infinity", "-Infinity", NAN, INFINITY, NEGATIVE_INFINITY];
/// Whether a `NaN` was ever carried: only then is looked for one in what is written.
static CARRIES: AtomicBool = AtomicBool::new(false);

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

/// The text with non-finite numbers, Python's or carried ones, replaced by `null`; borrowed when there were none.
pub fn finite(text: &str) -> Cow<'_, str> {
    replace(text, |_| Some("null"))
}

/// The text with Python's non-finite numbers in the form in which they are carried; borrowed when there were none.
pub fn carried(text: &str) -> Cow<'_, str> {
    replace(text, |token| match token {
        "NaN" => {
            CARRIES.store(true, Ordering::Relaxed);
            Some(NAN)
        }
        "Infinity" => Some(INFINITY),
        "-Infinity" => Some(NEGATIVE_INFINITY),
        _ => None,
    })
}

/// A text that leaves, with `NaN` where it is carried: Python reads the others as they are.
pub(crate) fn restored(text: &[u8]) -> Cow<'_, [u8]> {
    if !CARRIES.load(Ordering::Relaxed) {
        return Cow::Borrowed(text);
    }
    let found = |text| replace(text, |token| (token == NAN).then_some("NaN"));
    match std::str::from_utf8(text).map(found) {
        Ok(Cow::Owned(restored)) => Cow::Owned(restored.into_bytes()),
        _ => Cow::Borrowed(text),
    }
}

/// A number, also one that is carried.
pub(super) fn float(text: &str) -> f64 {
    match text {
        NAN => f64::NAN,
        text => text.parse().unwrap_or(f64::NAN),
    }
}

/// A float as JSON text, carried where JSON does not have it.
pub(super) fn of_float(number: f64) -> String {
    if number.is_nan() {
        CARRIES.store(true, Ordering::Relaxed);
        return NAN.to_owned();
    }
    match serde_json::Number::from_f64(number) {
        Some(number) => number.to_string(),
        None if number < 0.0 => NEGATIVE_INFINITY.to_owned(),
        None => INFINITY.to_owned(),
    }
}

/// The text with each number that is not finite, or stands for one, replaced by what `with` makes of it, if anything.
fn replace<'a>(text: &'a str, with: impl Fn(&'static str) -> Option<&'static str>) -> Cow<'a, str> {
    let mut out: Option<String> = None;
    let bytes = text.as_bytes();
    let (mut at, mut copied, mut in_string) = (0, 0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            // A number goes on with a digit, a dot, a sign or an e: what follows one of these does not begin here.
            b'N' | b'I' | b'-' | b'1' if !in_string && (at == 0 || !b"0123456789.+-eE".contains(&bytes[at - 1])) => {
                let found = TOKENS.into_iter().find(|token| text[at..].starts_with(token));
                if let Some((token, new)) = found.and_then(|token| Some((token, with(token)?))) {
                    let out = out.get_or_insert_with(|| String::with_capacity(text.len()));
                    out.push_str(&text[copied..at]);
                    out.push_str(new);
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
    fn p_015_what_is_passed_on_keeps_them() {
        let text = r#"[NaN,-Infinity,Infinity,"NaN 1e99998",21e99998]"#;
        let json: super::super::Json = serde_json::from_str(&carried(text)).unwrap();
        let left = String::from_utf8(restored(&serde_json::to_vec(&json).unwrap()).into_owned()).unwrap();
        assert_eq!(left, r#"[NaN,-1e99999,1e99999,"NaN 1e99998",21e99998]"#);
        assert_eq!(json.parse::<Value>().ok(), None, "21e99998 is no float");
        let carried: super::super::Json = serde_json::from_str(&carried("[NaN,Infinity]")).unwrap();
        assert_eq!(carried.parse::<Value>().unwrap(), json!([null, null]));
    }

    #[test]
    fn nesting_is_counted_outside_of_texts() {
        assert_eq!(depth(r#"[{"a": "[[[\"[["}, []]"#), 2);
        assert_eq!(depth("1"), 0);
    }
}
