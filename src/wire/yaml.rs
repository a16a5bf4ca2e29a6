//! Bodies in YAML, read as JSON text: as PyYAML's `safe_load` reads them, which is YAML 1.1. A date is one, `yes` is
//! true; tags that would make objects are refused. Not read: merge keys (`<<`), sets, and numbers to base 60.

use std::collections::HashMap;
use std::ops::Range;

use base64::Engine as _;
use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

use super::message::DecodeError;
use super::transcode::{self, Transcript};

/// The JSON text of a body. An alias repeats the text it stands for, within the limit.
///
/// # Errors
/// The text is not one YAML document, or needs more than plain data.
pub(super) fn to_json(text: &str, limit: usize, deepest: usize) -> Result<String, DecodeError> {
    let mut out = Transcript::new(limit, deepest);
    let mut anchors: HashMap<usize, Range<usize>> = HashMap::new();
    let mut open: Vec<(usize, usize)> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| wrong(&error.to_string()))?;
        let line = |error: DecodeError| match error {
            DecodeError::Body(what) => wrong(&format!("line {}: {what}", span.start.line())),
            other => other,
        };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let json = scalar(&text, style, tag.as_deref()).map_err(line)?;
                anchors.insert(anchor, out.value(&json).map_err(line)?);
            }
            Event::SequenceStart(anchor, tag) => {
                collection(tag.as_deref(), "seq").map_err(line)?;
                open.push((anchor, out.open(false).map_err(line)?));
            }
            Event::MappingStart(anchor, tag) => {
                collection(tag.as_deref(), "map").map_err(line)?;
                open.push((anchor, out.open(true).map_err(line)?));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let end = out.close().map_err(line)?;
                if let Some((anchor, start)) = open.pop() {
                    anchors.insert(anchor, start..end);
                }
            }
            // An alias within what it stands for has no text yet.
            Event::Alias(anchor) => match anchors.get(&anchor) {
                Some(place) if anchor != 0 => {
                    out.repeat(place.clone()).map_err(line)?;
                }
                _ => return Err(line(DecodeError::Body("a value holds itself".into()))),
            },
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
        }
    }
    out.finish()
}

fn wrong(what: &str) -> DecodeError {
    DecodeError::Body(format!("YAML: {what}"))
}

fn refused(tag: &Tag) -> DecodeError {
    DecodeError::Body(format!("the tag {}{} is not read", tag.handle, tag.suffix))
}

fn collection(tag: Option<&Tag>, kind: &str) -> Result<(), DecodeError> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == kind) => Err(refused(tag)),
        _ => Ok(()),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<String, DecodeError> {
    let quoted = || serde_json::Value::from(text).to_string();
    let Some(tag) = tag else {
        return match style {
            ScalarStyle::Plain if text == "<<" => Err(DecodeError::Body("merge keys are not read".into())),
            ScalarStyle::Plain => Ok(plain(text)?.unwrap_or_else(quoted)),
            _ => Ok(quoted()),
        };
    };
    if !tag.is_yaml_core_schema() {
        return Err(refused(tag));
    }
    let found = match &*tag.suffix {
        "str" => Some(quoted()),
        "binary" => Some(binary(text)?),
        "null" => null(text),
        "bool" => boolean(text),
        "int" => integer(text),
        "float" => float(text).or_else(|| integer(text)),
        "timestamp" => timestamp(text)?,
        _ => return Err(refused(tag)),
    };
    found.ok_or_else(|| DecodeError::Body(format!("{text:.100?} is no {}", tag.suffix)))
}

/// What a text without quotes stands for (PyYAML's `Resolver`); `None` for itself.
fn plain(text: &str) -> Result<Option<String>, DecodeError> {
    let found = null(text)
        .or_else(|| boolean(text))
        .or_else(|| integer(text))
        .or_else(|| float(text));
    match found {
        Some(json) => Ok(Some(json)),
        None => timestamp(text),
    }
}

fn null(text: &str) -> Option<String> {
    matches!(text, "" | "~" | "null" | "Null" | "NULL").then(|| "null".into())
}

fn boolean(text: &str) -> Option<String> {
    match text {
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some("true".into()),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Some("false".into()),
        _ => None,
    }
}

fn integer(text: &str) -> Option<String> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (radix, digits) = match unsigned.as_bytes() {
        [b'0', b'b', ..] => (2, &unsigned[2..]),
        [b'0', b'x', ..] => (16, &unsigned[2..]),
        [b'0', _, ..] => (8, &unsigned[1..]),
        [b'0'..=b'9', ..] => (10, unsigned),
        _ => return None,
    };
    let digits = digits.replace('_', "");
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let sign = if text.starts_with('-') { "-" } else { "" };
    match u64::from_str_radix(&digits, radix) {
        Ok(number) => Some(format!("{sign}{number}")),
        Err(_) if radix == 10 => Some(format!("{sign}{digits}")),
        // As with a decimal number of that size: the nearest float.
        Err(_) => {
            let number = digits
                .chars()
                .filter_map(|digit| digit.to_digit(radix))
                .fold(0.0, |sum, digit| sum * f64::from(radix) + f64::from(digit));
            Some(format!("{sign}{}", transcode::float(number)))
        }
    }
}

fn float(text: &str) -> Option<String> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let signed = unsigned.len() < text.len();
    match unsigned {
        ".inf" | ".Inf" | ".INF" if text.starts_with('-') => return Some(transcode::float(f64::NEG_INFINITY)),
        ".inf" | ".Inf" | ".INF" => return Some(transcode::float(f64::INFINITY)),
        ".nan" | ".NaN" | ".NAN" if !signed => return Some(transcode::float(f64::NAN)),
        _ => {}
    }
    let (number, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.strip_prefix(['+', '-'])?),
        None => (unsigned, "0"),
    };
    let (whole, fraction) = number.split_once('.')?;
    let first = if whole.is_empty() && !signed { fraction } else { whole };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let is_float = first.starts_with(|char: char| char.is_ascii_digit())
        && digits(whole)
        && digits(fraction)
        && !exponent.is_empty()
        && exponent.bytes().all(|byte| byte.is_ascii_digit());
    if !is_float {
        return None;
    }
    text.replace('_', "").parse().ok().map(transcode::float)
}

fn binary(text: &str) -> Result<String, DecodeError> {
    let packed: String = text.split_ascii_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(packed);
    let bytes = bytes.map_err(|error| DecodeError::Body(format!("!!binary: {error}")))?;
    Ok(transcode::bytes(&bytes))
}

/// A date, or a date and time, in the form that kombu gives it in JSON.
fn timestamp(text: &str) -> Result<Option<String>, DecodeError> {
    let Some((kind, iso)) = iso(text) else {
        return Ok(None);
    };
    let civil = iso.split(['+', 'Z']).next().unwrap_or_default();
    let civil = civil.get(..19).unwrap_or(civil);
    match civil.parse::<jiff::civil::DateTime>() {
        Ok(_) => Ok(Some(transcode::extension(kind, &iso))),
        Err(error) => Err(DecodeError::Body(format!("{text:.100?}: {error}"))),
    }
}

/// YAML's form of a time as Python's `isoformat()` writes it.
fn iso(text: &str) -> Option<(&'static str, String)> {
    let mut rest = text;
    let year = number(&mut rest, 4, 4)?;
    let month = number(eat(&mut rest, "-")?, 1, 2)?;
    let day = number(eat(&mut rest, "-")?, 1, 2)?;
    let date = format!("{year:04}-{month:02}-{day:02}");
    if rest.is_empty() {
        // Without a time, only the long form is a date.
        return (text.len() == 10).then_some(("date", date));
    }
    let spaced = rest.trim_start_matches([' ', '\t']);
    rest = if spaced.len() < rest.len() {
        spaced
    } else {
        rest.strip_prefix(['T', 't'])?
    };
    let hour = number(&mut rest, 1, 2)?;
    let minute = number(eat(&mut rest, ":")?, 2, 2)?;
    let second = number(eat(&mut rest, ":")?, 2, 2)?;
    let mut iso = format!("{date}T{hour:02}:{minute:02}:{second:02}");
    if eat(&mut rest, ".").is_some() {
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        let micros = &rest[..length.min(6)];
        if micros.bytes().any(|digit| digit != b'0') {
            iso.push_str(&format!(".{micros:0<6}"));
        }
        rest = &rest[length..];
    }
    rest = rest.trim_start_matches([' ', '\t']);
    if rest == "Z" {
        iso.push_str("+00:00");
    } else if let Some(mut offset) = rest.strip_prefix(['+', '-']) {
        let sign = &rest[..1];
        let hours = number(&mut offset, 1, 2)?;
        let minutes = match eat(&mut offset, ":") {
            Some(offset) => number(offset, 2, 2)?,
            None => 0,
        };
        if !offset.is_empty() {
            return None;
        }
        iso.push_str(&format!("{sign}{hours:02}:{minutes:02}"));
    } else if !rest.is_empty() {
        return None;
    }
    Some(("datetime", iso))
}

/// Takes that many digits off the front.
fn number(rest: &mut &str, least: usize, most: usize) -> Option<u32> {
    let length = rest.bytes().take(most).take_while(u8::is_ascii_digit).count();
    if length < least {
        return None;
    }
    let (digits, tail) = rest.split_at(length);
    *rest = tail;
    digits.parse().ok()
}

/// Takes a sign off the front.
fn eat<'a, 'b>(rest: &'a mut &'b str, sign: &str) -> Option<&'a mut &'b str> {
    *rest = rest.strip_prefix(sign)?;
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, DecodeError> {
        to_json(text, 10_000, super::super::DEEPEST)
    }

    #[test]
    fn p_064_yaml_is_read_as_pyyaml_reads_it() {
        for (yaml, json) in [
            ("- - 2\n  - 3\n- {}\n- {}\n", "[[2,3],{},{}]"),
            (
                "{a b: yes, 'no': off, 1: ~, x: }",
                r#"{"a b":true,"no":false,"1":null,"x":null}"#,
            ),
            (
                "[0o7, 010, 08, 0x1F, -0b11, +1_000, 1e5, 1.5e+3, -.5, .5, 1., .inf, -.INF, .nan]",
                // The last three as they are carried.
                r#"["0o7",8,"08",31,-3,1000,"1e5",1500.0,"-.5",0.5,1.0,1e99999,-1e99999,1e99998]"#,
            ),
            (
                "[1180591620717411303424, 'yes', \"2024-01-02\", !!str 1, !!float 1]",
                r#"[1180591620717411303424,"yes","2024-01-02","1",1]"#,
            ),
            ("- 2024-01-02", r#"[{"__type__":"date","__value__":"2024-01-02"}]"#),
            ("- 2024-1-2", r#"["2024-1-2"]"#),
            (
                "- 2024-01-02 03:04:05.000006+00:00",
                r#"[{"__type__":"datetime","__value__":"2024-01-02T03:04:05.000006+00:00"}]"#,
            ),
            (
                "- 2024-01-02 03:04:05",
                r#"[{"__type__":"datetime","__value__":"2024-01-02T03:04:05"}]"#,
            ),
            (
                "- 2024-01-02t3:04:05.10 -5",
                r#"[{"__type__":"datetime","__value__":"2024-01-02T03:04:05.100000-05:00"}]"#,
            ),
            (
                "- 2024-01-02T03:04:05Z",
                r#"[{"__type__":"datetime","__value__":"2024-01-02T03:04:05+00:00"}]"#,
            ),
            (
                "- !!binary |\n    /wA=\n",
                r#"[{"__type__":"base64","__value__":"/wA="}]"#,
            ),
            ("- &id001\n  - 1\n  - 2\n- *id001\n", "[[1,2],[1,2]]"),
            ("- |\n  two\n  lines\n- \"\\xE9\"\n", r#"["two\nlines\n","é"]"#),
        ] {
            assert_eq!(read(yaml).unwrap(), json, "{yaml}");
        }
    }

    #[test]
    fn p_064_tags_are_not_followed_and_odd_documents_are_refused() {
        for yaml in [
            "",
            "--- 1\n--- 2\n",
            "!!python/object/apply:os.system ['true']",
            "- !!python/tuple [1]",
            "- !mine 1",
            "!!set {a, b}",
            "- !!int x",
            "- !!binary '%'",
            "- 2024-13-45",
            "- &a [*a]",
            "- *nobody",
            "{<<: {a: 1}}",
            "{[1]: 2}",
            "[1",
            "\"",
            &"[".repeat(100_000),
        ] {
            assert!(read(yaml).is_err(), "{yaml:.100}");
        }
    }

    #[test]
    fn p_064_a_bomb_of_aliases_is_bounded() {
        let mut bomb = "- &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..30 {
            let below = level - 1;
            bomb.push_str(&format!("- &a{level} [{}]\n", vec![format!("*a{below}"); 9].join(", ")));
        }
        assert!(matches!(read(&bomb), Err(DecodeError::TooLarge { .. })));
    }
}
