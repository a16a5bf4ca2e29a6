//! JSON text written value by value: what bodies of other serializers become. Bounded in length and depth while it
//! grows, so that neither a bomb of aliases nor one of brackets fills the memory.

use std::ops::Range;

use base64::Engine as _;

use super::message::DecodeError;

/// A JSON text that is being written.
pub(super) struct Transcript {
    out: String,
    limit: usize,
    deepest: usize,
    open: Vec<Level>,
}

struct Level {
    is_object: bool,
    /// Values so far; in an object every other one is a key.
    count: usize,
}

impl Transcript {
    /// An empty text that may grow to `limit` bytes, and go `deepest` levels deep.
    pub(super) fn new(limit: usize, deepest: usize) -> Self {
        Self {
            out: String::new(),
            limit,
            deepest,
            open: Vec::new(),
        }
    }

    /// The text, which is one whole value.
    pub(super) fn finish(self) -> Result<String, DecodeError> {
        if self.out.is_empty() || !self.open.is_empty() {
            return Err(DecodeError::Body("it ends too early".into()));
        }
        Ok(self.out)
    }

    /// Writes a value that is JSON text already; where a key belongs it becomes one, as Python's `json` makes keys of
    /// numbers. Returns where it lies.
    pub(super) fn value(&mut self, json: &str) -> Result<Range<usize>, DecodeError> {
        let is_key = self.separate()?;
        let start = self.out.len();
        if self.out.len() + json.len() > self.limit {
            return Err(self.too_large());
        }
        match json.as_bytes().first() {
            Some(b'[' | b'{') if is_key => return Err(no_key()),
            Some(b'"') | None => self.out.push_str(json),
            Some(_) if is_key => {
                self.out.push('"');
                self.out.push_str(json);
                self.out.push('"');
            }
            Some(_) => self.out.push_str(json),
        }
        Ok(start..self.out.len())
    }

    /// Writes a text.
    pub(super) fn text(&mut self, text: &str) -> Result<Range<usize>, DecodeError> {
        self.value(&quoted(text))
    }

    /// Opens a list or an object; returns where it begins.
    pub(super) fn open(&mut self, is_object: bool) -> Result<usize, DecodeError> {
        if self.separate()? {
            return Err(no_key());
        }
        if self.open.len() >= self.deepest {
            let deepest = self.deepest;
            return Err(DecodeError::Body(format!("it is nested deeper than {deepest} levels")));
        }
        self.open.push(Level { is_object, count: 0 });
        self.out.push(if is_object { '{' } else { '[' });
        Ok(self.out.len() - 1)
    }

    /// Closes what was opened last; returns where it ends.
    pub(super) fn close(&mut self) -> Result<usize, DecodeError> {
        match self.open.pop() {
            Some(level) if level.is_object && level.count % 2 == 1 => {
                return Err(DecodeError::Body("a key has no value".into()));
            }
            Some(level) => self.out.push(if level.is_object { '}' } else { ']' }),
            None => return Err(DecodeError::Body("more ends than begins".into())),
        }
        Ok(self.out.len())
    }

    /// Writes again what lies there.
    pub(super) fn repeat(&mut self, place: Range<usize>) -> Result<Range<usize>, DecodeError> {
        if self.out.len() + place.len() > self.limit {
            return Err(self.too_large());
        }
        let again = self.out[place].to_owned();
        self.value(&again)
    }

    /// Writes what stands before the next value; whether that is a key.
    fn separate(&mut self) -> Result<bool, DecodeError> {
        if self.out.len() >= self.limit {
            return Err(self.too_large());
        }
        let Some(level) = self.open.last_mut() else {
            return match self.out.is_empty() {
                true => Ok(false),
                false => Err(DecodeError::Body("something follows the body".into())),
            };
        };
        let (is_key, first) = (level.is_object && level.count % 2 == 0, level.count == 0);
        let is_member = level.is_object && !is_key;
        level.count += 1;
        if is_member {
            self.out.push(':');
        } else if !first {
            self.out.push(',');
        }
        Ok(is_key)
    }

    fn too_large(&self) -> DecodeError {
        DecodeError::TooLarge {
            what: "body",
            limit: self.limit,
        }
    }
}

fn no_key() -> DecodeError {
    DecodeError::Body("a key of a mapping is no text".into())
}

/// A JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A JSON number; what JSON does not have is carried as in JSON bodies.
pub(super) fn float(number: f64) -> String {
    super::json::of_float(number)
}

/// A value that JSON does not have, in the form that kombu gives it (`kombu.utils.json`).
pub(super) fn extension(kind: &str, value: &str) -> String {
    format!(r#"{{"__type__":"{kind}","__value__":{}}}"#, quoted(value))
}

/// Bytes in the form that kombu gives them.
pub(super) fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => extension("bytes", text),
        Err(_) => extension("base64", &base64::engine::general_purpose::STANDARD.encode(bytes)),
    }
}
