//! Reading a request's JSON field by field, with the texts of Go's decoder where a type is wrong.

use serde_json::{Deserializer, Map, Value};

use crate::error::Error;

/// The object of a request. Unknown fields are ignored; `null` is the same as absent.
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Go's name of the object's type, which its error texts contain.
    kind: &'static str,
}

/// Parses the first JSON value of a body.
pub fn parse(body: &[u8]) -> Result<Value, Error> {
    match Deserializer::from_slice(body).into_iter::<Value>().next() {
        Some(Ok(value)) => Ok(value),
        None => Err(Error::bad_request("missing request body")),
        Some(Err(error)) if error.is_eof() => Err(Error::bad_request("unexpected EOF")),
        Some(Err(error)) => {
            let found = offending(body, &error).map_or("'?'".to_owned(), |c| format!("{c:?}"));
            Err(Error::bad_request(format!(
                "invalid character {found} looking for beginning of value"
            )))
        }
    }
}

/// The character at the place of a syntax error.
fn offending(body: &[u8], error: &serde_json::Error) -> Option<char> {
    let line = body.split(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    let rest = line.get(error.column().checked_sub(1)?..)?;
    String::from_utf8_lossy(rest).chars().next()
}

impl<'a> Fields<'a> {
    pub fn new(value: &'a Value, kind: &'static str) -> Result<Self, Error> {
        match value {
            Value::Object(object) => Ok(Self { object, kind }),
            other => Err(Error::bad_request(format!(
                "json: cannot unmarshal {} into Go value of type api.{kind}",
                go_kind(other)
            ))),
        }
    }

    /// The value as it is, if there is one that is not `null`.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub fn string(&self, name: &str) -> Result<&'a str, Error> {
        Ok(self.read(name, "string", Value::as_str)?.unwrap_or_default())
    }

    pub fn boolean(&self, name: &str) -> Result<Option<bool>, Error> {
        self.read(name, "bool", Value::as_bool)
    }

    pub fn integer(&self, name: &str) -> Result<i64, Error> {
        Ok(self.read(name, "int", Value::as_i64)?.unwrap_or_default())
    }

    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, Error> {
        self.read(name, "map[string]interface {}", Value::as_object)
    }

    /// An array whose elements are of Go's type `item`.
    pub fn array(&self, name: &str, item: &str) -> Result<&'a [Value], Error> {
        let found = self.read(name, &format!("[]{item}"), Value::as_array)?;
        Ok(found.map(Vec::as_slice).unwrap_or_default())
    }

    fn read<T>(&self, name: &str, go: &str, take: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Error> {
        let Some(value) = self.value(name) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| self.wrong(name, value, go))
    }

    pub fn wrong(&self, name: &str, value: &Value, go: &str) -> Error {
        Error::bad_request(format!(
            "json: cannot unmarshal {} into Go struct field {}.{name} of type {go}",
            go_kind(value),
            self.kind
        ))
    }
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Checks standard base64 as Go does; the error is the offset of the first byte that is not allowed.
pub fn check_base64(text: &str) -> Result<(), usize> {
    let bytes = text.as_bytes();
    let is_symbol = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    // Go skips line ends wherever they are.
    let is_line_end = |byte: u8| matches!(byte, b'\r' | b'\n');
    let symbols = bytes.iter().filter(|byte| is_symbol(**byte)).count();
    let mut padding = 0;
    for (at, byte) in bytes.iter().copied().enumerate() {
        match byte {
            _ if is_line_end(byte) => {}
            b'=' if (symbols + padding) % 4 >= 2 => padding += 1,
            _ if is_symbol(byte) && padding == 0 => {}
            _ => return Err(at),
        }
    }
    if (symbols + padding).is_multiple_of(4) {
        Ok(())
    } else {
        Err(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text<T>(result: Result<T, Error>) -> Option<String> {
        result.err().map(|error| error.text)
    }

    #[test]
    fn bodies_that_are_not_json_get_the_decoders_texts() {
        assert_eq!(text(parse(b"")).as_deref(), Some("missing request body"));
        assert_eq!(text(parse(b" \n")).as_deref(), Some("missing request body"));
        assert_eq!(text(parse(b"{\"model\":")).as_deref(), Some("unexpected EOF"));
        assert_eq!(
            text(parse(b"{\"model\": x}")).as_deref(),
            Some("invalid character 'x' looking for beginning of value")
        );
        assert_eq!(text(parse(b"{} trailing")), None);
    }

    #[test]
    fn wrong_types_name_the_field_and_gos_type() {
        let value = json!({"prompt": [1], "stream": "yes", "system": null});
        let fields = Fields::new(&value, "GenerateRequest").expect("an object");
        assert_eq!(
            text(fields.string("prompt")).as_deref(),
            Some("json: cannot unmarshal array into Go struct field GenerateRequest.prompt of type string")
        );
        assert_eq!(
            text(fields.boolean("stream")).as_deref(),
            Some("json: cannot unmarshal string into Go struct field GenerateRequest.stream of type bool")
        );
        assert_eq!(fields.string("system").ok(), Some(""));
    }

    #[test]
    fn base64_is_checked_to_the_byte() {
        for good in ["", "QUJD", "QUI=", "QQ==", "QU\nJD"] {
            assert_eq!(check_base64(good), Ok(()), "{good}");
        }
        for (bad, at) in [("QUJD!", 4), ("data:image", 4), ("QUJDR", 5), ("QU=D", 3)] {
            assert_eq!(check_base64(bad), Err(at), "{bad}");
        }
    }
}
