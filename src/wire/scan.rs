//! A JSON text read value by value, to be written in another form. What comes in was written by a JSON writer, or was
//! checked when it came: here nothing is checked again but what cannot be passed over.

use std::borrow::Cow;

use serde::Deserialize;

/// A piece of a JSON text.
#[derive(Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// A list or an object begins.
    Open {
        /// Whether it is an object.
        is_object: bool,
    },
    /// The last one that began ends.
    Close,
    /// A text; in an object every other value is one, its key.
    Text(Cow<'a, str>),
    /// A number, as it is written.
    Number(&'a str),
    /// `null`, `true` or `false`.
    Word(&'a str),
    /// A value that JSON does not have, in kombu's form: what it is, and its text.
    Extension(String, String),
}

/// Reads a JSON text.
pub(super) struct Scan<'a> {
    text: &'a str,
    at: usize,
}

/// Exactly these two keys (`kombu.utils.json`).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension {
    #[serde(rename = "__type__")]
    kind: String,
    #[serde(rename = "__value__")]
    value: serde_json::Value,
}

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Whether an object is a value in kombu's form; it is passed over then.
    fn extension(&mut self) -> Option<Token<'a>> {
        let rest = &self.text[self.at..];
        if !rest[1..].trim_start().starts_with("\"__type__\"") {
            return None;
        }
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Extension>();
        let Extension { kind, value } = values.next()?.ok()?;
        self.at += values.byte_offset();
        let text = match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        Some(Token::Extension(kind, text))
    }

    fn string(&mut self) -> Cow<'a, str> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        self.at += 1;
        let mut escaped = false;
        while self.at < bytes.len() && bytes[self.at] != b'"' {
            if bytes[self.at] == b'\\' {
                escaped = true;
                self.at += 1;
            }
            self.at += 1;
        }
        self.at = (self.at + 1).min(bytes.len());
        let quoted = &self.text[start..self.at];
        if escaped {
            // A surrogate without its other half is no text; Python's readers make something of it, we do not.
            return serde_json::from_str(quoted).map_or(Cow::Borrowed("\u{fffd}"), Cow::Owned);
        }
        Cow::Borrowed(quoted.trim_matches('"'))
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let bytes = self.text.as_bytes();
        while self.at < bytes.len() && matches!(bytes[self.at], b' ' | b'\n' | b'\r' | b'\t' | b',' | b':') {
            self.at += 1;
        }
        let first = *bytes.get(self.at)?;
        match first {
            b'{' => {
                if let Some(extension) = self.extension() {
                    return Some(extension);
                }
                self.at += 1;
                Some(Token::Open { is_object: true })
            }
            b'[' => {
                self.at += 1;
                Some(Token::Open { is_object: false })
            }
            b'}' | b']' => {
                self.at += 1;
                Some(Token::Close)
            }
            b'"' => Some(Token::Text(self.string())),
            _ => {
                let rest = &self.text[self.at..];
                let end = rest
                    .find([',', ':', ']', '}', ' ', '\n', '\r', '\t'])
                    .unwrap_or(rest.len());
                self.at += end;
                let word = &rest[..end];
                Some(match first {
                    b'-' | b'0'..=b'9' => Token::Number(word),
                    _ => Token::Word(word),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_found() {
        let text = r#" {"a\"b": [1, -2.5e3,null ],"":{"__type__": "bytes", "__value__": "x"}, "c": {}} "#;
        let tokens: Vec<Token<'_>> = Scan::new(text).collect();
        let text = |text: &'static str| Token::Text(Cow::Borrowed(text));
        let open = |is_object| Token::Open { is_object };
        assert_eq!(
            tokens,
            [
                open(true),
                text("a\"b"),
                open(false),
                Token::Number("1"),
                Token::Number("-2.5e3"),
                Token::Word("null"),
                Token::Close,
                text(""),
                Token::Extension("bytes".into(), "x".into()),
                text("c"),
                open(true),
                Token::Close,
                Token::Close,
            ]
        );
    }
}
