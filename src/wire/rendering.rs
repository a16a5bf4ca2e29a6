//! JSON text in the other forms that kombu's serializers have: what Python's `msgpack` and `yaml` read as the same
//! value.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::json;
use super::scan::{Scan, Token};

/// PyYAML looks for the colon behind a key no further than 1024 characters, unless a `?` says that it is one.
const LONGEST_KEY: usize = 1000;

/// As msgpack.
///
/// # Errors
/// A value that msgpack does not have; kombu's encoder refuses it, too.
pub(super) fn msgpack(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    // Where each open list or object began, and how many values it has so far.
    let mut open: Vec<(usize, bool, u32)> = Vec::new();
    for token in Scan::new(text) {
        if let Token::Close = token {
            let Some((start, is_object, count)) = open.pop() else {
                continue;
            };
            let count = if is_object { count / 2 } else { count };
            out[start + 1..start + 5].copy_from_slice(&count.to_be_bytes());
            continue;
        }
        if let Some((_, _, count)) = open.last_mut() {
            *count += 1;
        }
        match token {
            Token::Open { is_object } => {
                open.push((out.len(), is_object, 0));
                // The long form, whose length is filled in at the end.
                out.extend_from_slice(&[if is_object { 0xdf } else { 0xdd }, 0, 0, 0, 0]);
            }
            Token::Text(text) => rmp::encode::write_str(&mut out, &text).map_err(|error| error.to_string())?,
            Token::Number(number) => write_number(&mut out, number)?,
            Token::Word(word) => out.push(match word {
                "true" => 0xc3,
                "false" => 0xc2,
                _ => 0xc0,
            }),
            Token::Extension(kind, text) => {
                let bytes = bytes(&kind, text).ok_or_else(|| format!("msgpack has no {kind}"))?;
                rmp::encode::write_bin(&mut out, &bytes).map_err(|error| error.to_string())?;
            }
            Token::Close => {}
        }
    }
    Ok(out)
}

fn write_number(out: &mut Vec<u8>, number: &str) -> Result<(), String> {
    let wrote = if let Ok(number) = number.parse::<u64>() {
        rmp::encode::write_uint(out, number).map(drop)
    } else if let Ok(number) = number.parse::<i64>() {
        rmp::encode::write_sint(out, number).map(drop)
    } else if number.contains(['.', 'e', 'E']) {
        rmp::encode::write_f64(out, json::float(number))
    } else {
        return Err("Integer value out of range".to_owned());
    };
    wrote.map_err(|error| error.to_string())
}

/// As YAML, in flow style: one line that looks much like JSON.
///
/// # Errors
/// A value that PyYAML's `safe_dump` refuses, too.
pub(super) fn yaml(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut open: Vec<(bool, u32)> = Vec::new();
    for token in Scan::new(text) {
        if let Token::Close = token {
            let is_object = open.pop().is_some_and(|(is_object, _)| is_object);
            out.push(if is_object { '}' } else { ']' });
            continue;
        }
        let mut is_key = false;
        if let Some((is_object, count)) = open.last_mut() {
            is_key = *is_object && *count % 2 == 0;
            out.push_str(match (*count, *is_object && !is_key) {
                (_, true) => ": ",
                (0, false) => "",
                (_, false) => ", ",
            });
            *count += 1;
        }
        match token {
            Token::Open { is_object } => {
                open.push((is_object, 0));
                out.push(if is_object { '{' } else { '[' });
            }
            Token::Text(text) => {
                let start = out.len();
                quote(&mut out, &text);
                // As it is written, escapes and all.
                if is_key && out.len() - start > LONGEST_KEY {
                    out.insert_str(start, "? ");
                }
            }
            Token::Number(number) => out.push_str(&yaml_number(number)),
            Token::Word(word) => out.push_str(word),
            Token::Extension(kind, text) => match &*kind {
                "datetime" | "date" => {
                    out.push_str("!!timestamp ");
                    quote(&mut out, &text);
                }
                kind => {
                    let bytes = bytes(kind, text).ok_or_else(|| format!("cannot represent a {kind} in YAML"))?;
                    out.push_str("!!binary ");
                    quote(&mut out, &STANDARD.encode(bytes));
                }
            },
            Token::Close => {}
        }
    }
    out.push('\n');
    Ok(out)
}

/// YAML 1.1 wants a dot in a float, and a sign in its exponent.
fn yaml_number(number: &str) -> String {
    if !number.contains(['.', 'e', 'E']) {
        return number.to_owned();
    }
    let value = json::float(number);
    if value.is_nan() {
        return ".nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, ""));
    let dot = if mantissa.contains('.') { "" } else { ".0" };
    match exponent.as_bytes().first() {
        None => format!("{mantissa}{dot}"),
        Some(b'+' | b'-') => format!("{mantissa}{dot}e{exponent}"),
        Some(_) => format!("{mantissa}{dot}e+{exponent}"),
    }
}

/// A text in double quotes; what a YAML reader would take for the end of a line, or refuse, is escaped.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(char)));
            }
            char => out.push(char),
        }
    }
    out.push('"');
}

fn bytes(kind: &str, text: String) -> Option<Vec<u8>> {
    match kind {
        "bytes" => Some(text.into_bytes()),
        "base64" => STANDARD.decode(text).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{msgpack as read_msgpack, yaml as read_yaml};

    /// Our own readers give back what was written; what Python's give is in `it/results`.
    #[test]
    fn p_154_what_is_written_is_read_back() {
        let long = "k".repeat(3000);
        let text = format!(
            r#"{{"a":[1,-1,300,-40000,18446744073709551615,1.5,1e16,-2.5e-7],"b":{{"":null,"{long}":true}},"c":"\u0000\n\u2028\u0085é😀\"\\","d":[],"e":{{}},"f":{{"__type__":"bytes","__value__":"x"}}}}"#
        );
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let parse = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
        assert_eq!(
            parse(read_msgpack::to_json(&msgpack(&text).unwrap(), 1 << 20, 127).unwrap()),
            value
        );
        assert_eq!(
            parse(read_yaml::to_json(&yaml(&text).unwrap(), 1 << 20, 127).unwrap()),
            value
        );
    }

    #[test]
    fn what_another_form_does_not_have_is_an_error() {
        assert!(msgpack("123456789012345678901234567890").is_err());
        assert!(yaml("123456789012345678901234567890").is_ok());
        let uuid = r#"[{"__type__":"uuid","__value__":{"hex":"05"}}]"#;
        assert!(msgpack(uuid).is_err() && yaml(uuid).is_err());
        let date = r#"[{"__type__":"date","__value__":"2024-01-02"}]"#;
        assert!(msgpack(date).is_err());
        assert_eq!(yaml(date).unwrap(), "[!!timestamp \"2024-01-02\"]\n");
    }
}
