//! JSON as Python writes it. Python's encoder emits the bare tokens `NaN`, `Infinity` and `-Infinity`,
//! which are not JSON; a message that holds one must not be lost for it.
//!
//! Within this process they are carried as numbers that no float can hold, which is JSON; Python's reader takes such a
//! number for an infinity anyway. A float of Rust gets its value (`loose`) and gives it (`floats`); whoever reads a
//! [`serde_json::Value`], which has no place for one, gets `null`.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;

use super::loose::Loose;

/// Stands for `NaN` within this process.
const NAN: &str = "1e99998";
/// Stands for `Infinity`.
const INFINITY: &str = "1e99999";
/// Stands for `-Infinity`.
const NEGATIVE_INFINITY: &str = "-1e99999";
const TOKENS: [&str; 6] = ["NaN", "Infinity", "-Infinity", NAN, INFINITY, NEGATIVE_INFINITY];
/// Whether one was ever carried: only then is looked for them.
static CARRIES: AtomicBool = AtomicBool::new(false);

/// Parses JSON text, also with Python's non-finite numbers.
///
/// # Errors
/// The text is not JSON of the wanted shape.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| {
        let carried = carried(text);
        note_carried(&carried);
        if !may_carry(&carried) {
            return Err(error);
        }
        // What is neither a float nor only passed on gets `null`.
        let value = Loose::new(&carried).and_then(T::deserialize);
        value.or_else(|_| serde_json::from_str(&finite(&carried)))
    })
}

/// Whether there may be such a number in a text in which they are carried.
pub(crate) fn may_carry(text: &str) -> bool {
    CARRIES.load(Ordering::Relaxed) && text.contains("e9999")
}

/// The text with such numbers as texts that nobody else writes, and what [`repr`](super::repr) makes of those, with
/// Python's name for each.
pub(crate) fn named(text: &str) -> (Cow<'_, str>, [(&'static str, &'static str); 3]) {
    let text = replace(text, |token| match token {
        NAN => Some(r#""\u0000nan""#),
        INFINITY => Some(r#""\u0000inf""#),
        NEGATIVE_INFINITY => Some(r#""\u0000-inf""#),
        _ => None,
    });
    let names = [(r"'\x00nan'", "nan"), (r"'\x00inf'", "inf"), (r"'\x00-inf'", "-inf")];
    (text, names)
}

/// Remembers that such numbers are carried, if there is one in the text.
pub(crate) fn note_carried(text: &str) {
    if text.contains("e9999") {
        CARRIES.store(true, Ordering::Relaxed);
    }
}

/// The text with non-finite numbers, Python's or carried ones, replaced by `null`; borrowed when there were none.
pub fn finite(text: &str) -> Cow<'_, str> {
    replace(text, |_| Some("null"))
}

/// The text with Python's non-finite numbers in the form in which they are carried; borrowed when there were none.
pub fn carried(text: &str) -> Cow<'_, str> {
    replace(text, |token| {
        let number = match token {
            "NaN" => NAN,
            "Infinity" => INFINITY,
            "-Infinity" => NEGATIVE_INFINITY,
            _ => return None,
        };
        CARRIES.store(true, Ordering::Relaxed);
        Some(number)
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

/// The value of a number that is carried.
pub(super) fn carried_float(text: &str) -> Option<f64> {
    match text {
        NAN => Some(f64::NAN),
        INFINITY => Some(f64::INFINITY),
        NEGATIVE_INFINITY => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// A number, also one that is carried.
pub(super) fn float(text: &str) -> f64 {
    carried_float(text).unwrap_or_else(|| text.parse().unwrap_or(f64::NAN))
}

/// A float as JSON text, carried where JSON does not have it.
pub(super) fn of_float(number: f64) -> String {
    if let Some(number) = serde_json::Number::from_f64(number) {
        return number.to_string();
    }
    CARRIES.store(true, Ordering::Relaxed);
    let carried = match number {
        number if number.is_nan() => NAN,
        number if number < 0.0 => NEGATIVE_INFINITY,
        _ => INFINITY,
    };
    carried.to_owned()
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
            b'N' | b'I' | b'-' | b'1' if !in_string && (at == 0 || !goes_on(bytes[at - 1])) => {
                let ends = |token: &str| !bytes.get(at + token.len()).is_some_and(|next| goes_on(*next));
                let found = TOKENS
                    .into_iter()
                    .find(|token| text[at..].starts_with(token) && ends(token));
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

/// Whether a number goes on with it: what follows one of these does not begin there, and what one of these follows does
/// not end.
fn goes_on(byte: u8) -> bool {
    b"0123456789.+-eE".contains(&byte)
}

/// Why a value cannot be read, for a person. Python reads what stands in the first two: a Rust task has no place for
/// it.
pub(crate) fn in_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if !error.is_syntax() {
        return text;
    }
    if text.contains("hex escape") {
        return "it holds half of a surrogate pair (as in \"\\ud800\"), which is no text".to_owned();
    }
    if text.contains("number out of range") {
        return "it holds a number beyond what a float of 64 bits can hold".to_owned();
    }
    text
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
        for garbage in [r#"", "x Infinity,"#, "[1] NaN", "{} {\"a\": NaN}", "1 -Infinity"] {
            assert!(parse::<Value>(garbage).is_err(), "{garbage}");
        }
    }

    #[test]
    fn p_015_what_is_passed_on_keeps_them() {
        let text = r#"[NaN,-Infinity,Infinity,"NaN 1e99998",21e99998,1e999985]"#;
        let json: super::super::Json = serde_json::from_str(&carried(text)).unwrap();
        let left = String::from_utf8(restored(&serde_json::to_vec(&json).unwrap()).into_owned()).unwrap();
        assert_eq!(left, r#"[NaN,-1e99999,1e99999,"NaN 1e99998",21e99998,1e999985]"#);
        assert_eq!(json.parse::<Value>().ok(), None, "21e99998 is no float");
        let carried: super::super::Json = serde_json::from_str(&carried("[NaN,Infinity]")).unwrap();
        assert_eq!(carried.parse::<Value>().unwrap(), json!([null, null]));
    }

    #[test]
    fn what_python_reads_and_rust_does_not_is_said_in_words() {
        let digits = "9".repeat(400);
        for (text, word) in [
            (r#""\ud800""#, "surrogate"),
            (r#"["\udc00x"]"#, "surrogate"),
            ("1e999", "float"),
            (&digits, "float"),
        ] {
            let error = parse::<Value>(text).unwrap_err();
            assert!(in_words(&error).contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn nesting_is_counted_outside_of_texts() {
        assert_eq!(depth(r#"[{"a": "[[[\"[["}, []]"#), 2);
        assert_eq!(depth("1"), 0);
    }
}
