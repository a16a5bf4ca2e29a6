//! Python's `repr` of JSON values, as `argsrepr`, events and exception texts carry it (`celery.utils.saferepr`).

use std::fmt::Write;

use serde_json::{Map, Value};

use super::redact;

/// Celery's bound on a repr, in characters.
const MAX: usize = 1024;

/// The repr of a value.
pub fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, usize::MAX, usize::MAX);
    out
}

/// The repr of a value, at most 1024 characters and three levels deep, as events carry it (P-059).
pub fn repr_bounded(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, 4, MAX * 4);
    truncate(out)
}

/// The repr of positional arguments, a tuple: `(1,)`.
pub(crate) fn repr_args(args: &[Value]) -> String {
    let mut out = String::from("(");
    write_items(&mut out, args, 3, MAX * 4);
    out.push_str(if args.len() == 1 { ",)" } else { ")" });
    truncate(out)
}

/// `argsrepr`: positional arguments without what is secret by its name.
pub(crate) fn shown_args(args: &[Value]) -> String {
    let shown = repr_args(args);
    if !redact::may_hold_secret(&shown) {
        return shown;
    }
    let mut args = args.to_vec();
    args.iter_mut().for_each(redact::hide);
    repr_args(&args)
}

/// `kwargsrepr`: the same for keyword arguments.
pub(crate) fn shown_kwargs(kwargs: &Map<String, Value>) -> String {
    let mut kwargs = kwargs.clone();
    redact::hide_members(&mut kwargs);
    repr_bounded(&Value::Object(kwargs))
}

/// The whole repr of positional arguments.
pub(crate) fn repr_tuple(args: &[Value]) -> String {
    let mut out = String::from("(");
    write_items(&mut out, args, usize::MAX, usize::MAX);
    out.push_str(if args.len() == 1 { ",)" } else { ")" });
    out
}

fn truncate(mut out: String) -> String {
    if let Some((cut, _)) = out.char_indices().nth(MAX) {
        let keep = out[..cut].char_indices().rev().nth(2).map_or(0, |(at, _)| at);
        out.truncate(keep);
        out.push_str("...");
    }
    out
}

fn write_value(out: &mut String, value: &Value, depth: usize, max: usize) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Number(number) => {
            let _ = write!(out, "{number}");
        }
        Value::String(text) => write_str(out, text, max),
        Value::Array(_) if depth == 0 => out.push_str("[...]"),
        Value::Object(_) if depth == 0 => out.push_str("{...}"),
        Value::Array(items) => {
            out.push('[');
            write_items(out, items, depth - 1, max);
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (at, (key, value)) in map.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                if out.len() > max {
                    out.push_str("...");
                    break;
                }
                write_str(out, key, max);
                out.push_str(": ");
                write_value(out, value, depth - 1, max);
            }
            out.push('}');
        }
    }
}

fn write_items(out: &mut String, items: &[Value], depth: usize, max: usize) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        if out.len() > max {
            out.push_str("...");
            break;
        }
        write_value(out, item, depth, max);
    }
}

fn write_str(out: &mut String, text: &str, max: usize) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for char in text.chars() {
        if out.len() > max {
            break;
        }
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            char if char == quote => {
                out.push('\\');
                out.push(char);
            }
            char if (char as u32) < 0x20 || (0x7f..0xa0).contains(&(char as u32)) => {
                let _ = write!(out, "\\x{:02x}", char as u32);
            }
            char => out.push(char),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn p_059_reprs_are_pythons() {
        assert_eq!(
            repr(&json!([1, 1.5, null, true, "it's", "a\"'b\n", {"k": []}])),
            r#"[1, 1.5, None, True, "it's", 'a"\'b\n', {'k': []}]"#
        );
        assert_eq!(repr_args(&[json!(2)]), "(2,)");
        assert_eq!(repr_args(&[json!(2), json!(3)]), "(2, 3)");
        assert_eq!(repr_args(&[]), "()");
    }

    #[test]
    fn a_repr_is_bounded_in_length_and_depth() {
        let long = repr_bounded(&json!("x".repeat(10_000)));
        assert_eq!(long.chars().count(), 1024);
        assert!(long.ends_with("..."));
        let deep = repr_bounded(&json!([[[[[1]]]]]));
        assert_eq!(deep, "[[[[[...]]]]]");
    }
}
