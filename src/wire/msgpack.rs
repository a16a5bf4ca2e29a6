//! Bodies in msgpack, read as JSON text. Bytes take the form that they have in kombu's JSON.

use rmp::Marker;

use super::message::DecodeError;
use super::transcode::{self, Transcript};

enum Token<'a> {
    /// JSON text of something that holds nothing else.
    Value(String),
    Text(&'a [u8]),
    List(u64),
    Map(u64),
}

/// The JSON text of a body.
///
/// # Errors
/// The bytes are not one whole msgpack value, or it holds what kombu's serializer does not write.
pub(super) fn to_json(bytes: &[u8], limit: usize, deepest: usize) -> Result<String, DecodeError> {
    let mut rest = bytes;
    let mut out = Transcript::new(limit, deepest);
    // How many values each open list or mapping still lacks.
    let mut lacking: Vec<u64> = Vec::new();
    loop {
        if let Some(count) = lacking.last_mut() {
            *count -= 1;
        }
        match next(&mut rest)? {
            Token::Value(json) => {
                out.value(&json)?;
            }
            Token::Text(text) => {
                let text =
                    std::str::from_utf8(text).map_err(|error| wrong(&format!("a text is not UTF-8: {error}")))?;
                out.text(text)?;
            }
            Token::List(count) => {
                out.open(false)?;
                lacking.push(count);
            }
            Token::Map(count) => {
                out.open(true)?;
                lacking.push(count * 2);
            }
        }
        while lacking.last() == Some(&0) {
            lacking.pop();
            out.close()?;
        }
        if lacking.is_empty() {
            break;
        }
    }
    if !rest.is_empty() {
        return Err(wrong("something follows the body"));
    }
    out.finish()
}

fn next<'a>(rest: &mut &'a [u8]) -> Result<Token<'a>, DecodeError> {
    let [marker] = array(rest)?;
    Ok(match Marker::from_u8(marker) {
        Marker::Null => Token::Value("null".into()),
        Marker::True => Token::Value("true".into()),
        Marker::False => Token::Value("false".into()),
        Marker::FixPos(number) => Token::Value(number.to_string()),
        Marker::FixNeg(number) => Token::Value(number.to_string()),
        Marker::U8 => Token::Value(u8::from_be_bytes(array(rest)?).to_string()),
        Marker::U16 => Token::Value(u16::from_be_bytes(array(rest)?).to_string()),
        Marker::U32 => Token::Value(u32::from_be_bytes(array(rest)?).to_string()),
        Marker::U64 => Token::Value(u64::from_be_bytes(array(rest)?).to_string()),
        Marker::I8 => Token::Value(i8::from_be_bytes(array(rest)?).to_string()),
        Marker::I16 => Token::Value(i16::from_be_bytes(array(rest)?).to_string()),
        Marker::I32 => Token::Value(i32::from_be_bytes(array(rest)?).to_string()),
        Marker::I64 => Token::Value(i64::from_be_bytes(array(rest)?).to_string()),
        Marker::F32 => Token::Value(transcode::float(f32::from_be_bytes(array(rest)?).into())),
        Marker::F64 => Token::Value(transcode::float(f64::from_be_bytes(array(rest)?))),
        Marker::FixStr(length) => Token::Text(take(rest, length.into())?),
        Marker::Str8 | Marker::Str16 | Marker::Str32 => {
            let length = length(rest, marker - 0xd9)?;
            Token::Text(take(rest, length)?)
        }
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
            let length = length(rest, marker - 0xc4)?;
            Token::Value(transcode::bytes(take(rest, length)?))
        }
        Marker::FixArray(count) => Token::List(count.into()),
        Marker::Array16 | Marker::Array32 => Token::List(length(rest, marker - 0xdc + 1)?),
        Marker::FixMap(count) => Token::Map(count.into()),
        Marker::Map16 | Marker::Map32 => Token::Map(length(rest, marker - 0xde + 1)?),
        other => return Err(wrong(&format!("{other:?} is no value that kombu writes"))),
    })
}

/// A length of 1, 2 or 4 bytes.
fn length(rest: &mut &[u8], power: u8) -> Result<u64, DecodeError> {
    Ok(match power {
        0 => u8::from_be_bytes(array(rest)?).into(),
        1 => u16::from_be_bytes(array(rest)?).into(),
        _ => u32::from_be_bytes(array(rest)?).into(),
    })
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (head, tail) = rest.split_first_chunk().ok_or_else(cut)?;
    *rest = tail;
    Ok(*head)
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], DecodeError> {
    let length = usize::try_from(length).map_err(|_| cut())?;
    let (head, tail) = rest.split_at_checked(length).ok_or_else(cut)?;
    *rest = tail;
    Ok(head)
}

fn cut() -> DecodeError {
    wrong("the body ends too early")
}

fn wrong(what: &str) -> DecodeError {
    DecodeError::Body(format!("msgpack: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<String, DecodeError> {
        to_json(bytes, 1000, super::super::DEEPEST)
    }

    #[test]
    fn p_064_msgpack_becomes_json() {
        // What Python's msgpack makes of [[2, -1, 1.5, None, True, 70000, b"\xff", b"ab"], {"k": {"l": []}}, {}].
        let body = b"\x93\x98\x02\xff\xcb\x3f\xf8\0\0\0\0\0\0\xc0\xc3\xce\0\x01\x11\x70\xc4\x01\xff\xc4\x02ab\
                     \x81\xa1k\x81\xa1l\x90\x80";
        assert_eq!(
            read(body).unwrap(),
            r#"[[2,-1,1.5,null,true,70000,{"__type__":"base64","__value__":"/w=="},{"__type__":"bytes","__value__":"ab"}],{"k":{"l":[]}},{}]"#
        );
        assert_eq!(read(b"\x81\x01\xa1\"").unwrap(), r#"{"1":"\""}"#);
        // NaN, as it is carried.
        assert_eq!(read(b"\xcb\x7f\xf8\0\0\0\0\0\0").unwrap(), "1e99998");
        assert_eq!(read(b"\xdc\0\x01\xda\0\x01x").unwrap(), r#"["x"]"#);
        assert_eq!(
            read(b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff").unwrap(),
            u64::MAX.to_string()
        );
    }

    #[test]
    fn p_064_what_is_no_msgpack_is_refused_and_bounded() {
        let deep = [0x91; 1000];
        let wrong: [&[u8]; 9] = [
            b"",
            b"\x91",
            b"\x90\x90",
            b"\xdd\xff\xff\xff\xff\x01",
            b"\xdb\xff\xff\xff\xff",
            b"\xa1\xff",
            b"\xd4\x01\x01",
            b"\x81\x90\x01",
            &deep,
        ];
        for bytes in wrong {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
        let long = [b"\xdc\x02\0".as_slice(), &[0x80; 512]].concat();
        assert!(matches!(read(&long), Err(DecodeError::TooLarge { .. })));
    }
}
