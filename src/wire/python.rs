//! Python's values that JSON does not have, as parameters and results of tasks: in the form that kombu gives them
//! (`kombu.utils.json`), so that a Python caller sends and gets a `bytes` or a `datetime`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, Error as _};
use serde::ser::{SerializeMap as _, Serializer};
use serde::{Deserialize, Serialize};

use crate::clock::{self, Timestamp};

/// A value as kombu marks it, or as a client in another language may send it: plain.
#[derive(Deserialize)]
#[serde(untagged)]
enum Form<T> {
    Marked(Marked<T>),
    Plain(T),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Marked<T> {
    #[serde(rename = "__type__")]
    kind: String,
    #[serde(rename = "__value__")]
    value: T,
}

/// The value, and what kombu calls its type if it is marked; `kinds` are those that fit.
fn read<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    kinds: &[&str],
) -> Result<(Option<String>, T), D::Error> {
    let wanted = || D::Error::custom(format_args!("expected a {}", kinds.join(" or ")));
    match Form::deserialize(deserializer).map_err(|_| wanted())? {
        Form::Plain(value) => Ok((None, value)),
        Form::Marked(Marked { kind, value }) if kinds.contains(&&*kind) => Ok((Some(kind), value)),
        Form::Marked(_) => Err(wanted()),
    }
}

fn write<S: Serializer, T: Serialize>(serializer: S, kind: &str, value: T) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry("__type__", kind)?;
    map.serialize_entry("__value__", &value)?;
    map.end()
}

/// Python's `bytes`; a plain text is read as its UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (kind, text) = read::<D, String>(deserializer, &["bytes", "base64"])?;
        match kind.as_deref() {
            Some("base64") => STANDARD.decode(text).map(Self).map_err(D::Error::custom),
            _ => Ok(Self(text.into_bytes())),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => write(serializer, "bytes", text),
            Err(_) => write(serializer, "base64", STANDARD.encode(&self.0)),
        }
    }
}

/// Python's `datetime`; one without offset is UTC, and Python gets one with offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DateTime(pub Timestamp);

impl<'de> Deserialize<'de> for DateTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (_, text) = read::<D, String>(deserializer, &["datetime"])?;
        clock::parse_iso(&text).map(Self).map_err(D::Error::custom)
    }
}

impl Serialize for DateTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write(serializer, "datetime", clock::iso(self.0))
    }
}

/// The text of a date: one that is plain, or that of a marked `datetime`, as options of a Python client hold it.
pub(super) fn iso_text(value: &super::Json) -> Option<String> {
    let mut text = serde_json::Deserializer::from_str(value.get());
    read(&mut text, &["datetime"]).ok().map(|(_, text)| text)
}

/// Python's `uuid.UUID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(pub uuid::Uuid);

impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Hex {
            Field { hex: String },
            Text(String),
        }
        let (_, Hex::Field { hex } | Hex::Text(hex)) = read(deserializer, &["uuid"])?;
        hex.parse().map(Self).map_err(D::Error::custom)
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let hex = self.0.simple().to_string();
        write(serializer, "uuid", serde_json::json!({ "hex": hex }))
    }
}

macro_rules! texts {
    ($($(#[doc = $about:literal])+ $name:ident = $kind:literal,)+) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub String);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                read(deserializer, &[$kind]).map(|(_, text)| Self(text))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                write(serializer, $kind, &self.0)
            }
        }
    )+};
}

texts! {
    /// Python's `decimal.Decimal`, as text: no digit is lost.
    Decimal = "decimal",
    /// Python's `date`, in ISO-8601.
    Date = "date",
    /// Python's `time`, in ISO-8601.
    Time = "time",
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn again<T: serde::de::DeserializeOwned + Serialize>(value: &Value) -> Value {
        serde_json::to_value(serde_json::from_value::<T>(value.clone()).unwrap()).unwrap()
    }

    #[test]
    fn p_062_p_063_kombus_types_are_read_and_written() {
        let marked = |kind: &str, value: Value| json!({"__type__": kind, "__value__": value});
        let bytes = marked("bytes", "abc".into());
        assert_eq!(again::<Bytes>(&bytes), bytes);
        assert_eq!(again::<Bytes>(&"abc".into()), bytes);
        let odd = marked("base64", "/w==".into());
        assert_eq!(again::<Bytes>(&odd), odd);
        let at = marked("datetime", "2024-01-02T03:04:05.000006+00:00".into());
        assert_eq!(again::<DateTime>(&at), at);
        assert_eq!(
            again::<DateTime>(&marked("datetime", "2024-01-02T05:04:05.000006+02:00".into())),
            at
        );
        assert_eq!(again::<DateTime>(&"2024-01-02T03:04:05.000006".into()), at);
        let id = marked("uuid", json!({"hex": "00000000000000000000000000000005"}));
        assert_eq!(again::<Uuid>(&id), id);
        assert_eq!(again::<Uuid>(&"00000000-0000-0000-0000-000000000005".into()), id);
        let price = marked("decimal", "1.50".into());
        assert_eq!(again::<Decimal>(&price), price);
        assert_eq!(again::<Option<Date>>(&Value::Null), Value::Null);
        assert_eq!(again::<Date>(&marked("date", "2024-01-02".into()))["__type__"], "date");
        assert_eq!(again::<Time>(&"03:04:05".into()), marked("time", "03:04:05".into()));
    }

    #[test]
    fn a_date_of_an_option_is_plain_or_marked() {
        let text = |value: Value| iso_text(&super::super::Json::new(&value).unwrap());
        let at = "2024-01-02T03:04:05+00:00";
        assert_eq!(text(at.into()).as_deref(), Some(at));
        assert_eq!(
            text(json!({"__type__": "datetime", "__value__": at})).as_deref(),
            Some(at)
        );
        assert_eq!(text(json!({"__type__": "date", "__value__": at})), None);
        assert_eq!((text(3.into()), text(Value::Null)), (None, None));
    }

    #[test]
    fn p_062_another_type_is_refused_by_name() {
        let error = |value: Value| serde_json::from_value::<Bytes>(value).unwrap_err().to_string();
        for wrong in [
            json!(1),
            json!({"__type__": "date", "__value__": "x"}),
            json!({"__type__": "bytes"}),
        ] {
            assert_eq!(error(wrong), "expected a bytes or base64");
        }
        assert!(serde_json::from_value::<Bytes>(json!({"__type__": "base64", "__value__": "%"})).is_err());
        assert!(serde_json::from_value::<DateTime>(json!("soon")).is_err());
        assert!(serde_json::from_value::<Uuid>(json!({"__type__": "uuid", "__value__": {}})).is_err());
    }
}
