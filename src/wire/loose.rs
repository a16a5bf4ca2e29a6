//! JSON text with floats that JSON does not have, carried as `json` says, as values of Rust: an `f64` gets its `NaN`.
//! Only texts that have one come this way, so it need not be fast.

use std::borrow::Cow;

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Visitor};
use serde_json::Error;
use serde_json::value::RawValue;

use super::json;
use super::raw::Pairs;

/// Deeper than serde_json reads, nothing is read here either.
const DEEPEST: usize = 127;
/// Depth times length of a text, in bytes: each level is looked through once more.
const LOOKS: usize = 1 << 30;

/// The text of one value.
#[derive(Clone, Copy)]
pub(crate) struct Loose<'a>(&'a str);

impl<'a> Loose<'a> {
    /// A value to be read.
    ///
    /// # Errors
    /// It is nested too deep, or it is no JSON: what is read here piece by piece would not see what stands behind a
    /// value.
    pub(crate) fn new(text: &'a str) -> Result<Self, Error> {
        match json::depth(text) {
            depth if depth > DEEPEST => Err(Error::custom("recursion limit exceeded")),
            depth if depth.saturating_mul(text.len()) > LOOKS => Err(Error::custom(
                "nested too deep for its length, with numbers that are not finite",
            )),
            _ => serde_json::from_str(text).map(|value: &RawValue| Self(value.get())),
        }
    }

    fn items(self) -> Result<impl Iterator<Item = Self>, Error> {
        let items: Vec<&'a RawValue> = serde_json::from_str(self.0)?;
        Ok(items.into_iter().map(|item| Self(item.get())))
    }

    fn members(self) -> Result<impl Iterator<Item = (Cow<'a, str>, Self)>, Error> {
        let members: Pairs<'a> = serde_json::from_str(self.0)?;
        Ok(members.0.into_iter().map(|(name, value)| (name, Self(value.get()))))
    }
}

impl<'de> IntoDeserializer<'de, Error> for Loose<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Passes to serde_json what holds no such float.
macro_rules! plain {
    ($self:ident.$name:ident($($value:ident),*)) => {
        if !json::may_carry($self.0) {
            return serde_json::Deserializer::from_str($self.0).$name($($value),*);
        }
    };
}

impl<'de> Deserializer<'de> for Loose<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        plain!(self.deserialize_any(visitor));
        match self.0.as_bytes().first() {
            Some(b'[') => SeqDeserializer::new(self.items()?).deserialize_any(visitor),
            Some(b'{') => MapDeserializer::new(self.members()?).deserialize_any(visitor),
            _ => match json::carried_float(self.0) {
                Some(float) => visitor.visit_f64(float),
                None => serde_json::Deserializer::from_str(self.0).deserialize_any(visitor),
            },
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        plain!(self.deserialize_option(visitor));
        visitor.visit_some(self)
    }

    /// A value that is kept as text ([`RawValue`]) asks for it by a name of serde_json's own.
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        if name.starts_with("$serde_json") {
            return serde_json::Deserializer::from_str(self.0).deserialize_newtype_struct(name, visitor);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        plain!(self.deserialize_enum(name, variants, visitor));
        match self.0.as_bytes().first() {
            Some(b'{') => {
                let members = MapDeserializer::new(self.members()?);
                MapAccessDeserializer::new(members).deserialize_enum(name, variants, visitor)
            }
            _ => self.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Value;

    use super::super::Json;
    use super::*;

    #[derive(Debug, Deserialize)]
    enum Shape {
        Unit,
        New(f64),
        Named { x: f32 },
    }

    #[derive(Debug, Deserialize)]
    struct Meters(f64);

    #[derive(Debug, Deserialize)]
    struct All {
        floats: Vec<f64>,
        maybe: Option<f64>,
        none: Option<f64>,
        meters: Meters,
        shapes: Vec<Shape>,
        pair: (f64, String),
        any: Value,
        json: Json,
        #[serde(default)]
        missing: u8,
    }

    #[test]
    fn p_015_an_f64_gets_what_python_has_sent() {
        let text = r#"{"floats": [1, NaN, -Infinity, 2.5], "maybe": NaN, "none": null, "meters": Infinity,
            "shapes": ["Unit", {"New": NaN}, {"Named": {"x": Infinity}}], "pair": [Infinity, "NaN"], "any": [NaN, 1], "json": [NaN,  1]}"#;
        let all: All = json::parse(text).unwrap();
        assert!(all.floats[0] == 1.0 && all.floats[1].is_nan() && all.floats[2] == f64::NEG_INFINITY);
        assert!(all.floats[3] == 2.5 && all.maybe.is_some_and(f64::is_nan) && all.none.is_none());
        assert!(all.meters.0 == f64::INFINITY && all.pair == (f64::INFINITY, "NaN".to_owned()));
        assert!(
            matches!(&all.shapes[..], [Shape::Unit, Shape::New(n), Shape::Named { x }] if n.is_nan() && x.is_infinite())
        );
        assert_eq!((all.any, all.missing), (serde_json::json!([null, 1]), 0));
        assert_eq!(json::restored(all.json.get().as_bytes()), b"[NaN,  1]".as_slice());
        assert!(json::parse::<Vec<i64>>("[1, NaN]").is_err());
        let deep = "[".repeat(100_000) + "NaN" + &"]".repeat(100_000);
        assert!(json::parse::<Value>(&deep).is_err());
        let text = "[1e99998, \"".to_owned() + &"x".repeat(11 << 20) + "\"]";
        let deep = "[".repeat(99) + &text + &"]".repeat(99);
        assert!(Loose::new(&deep).is_err() && Loose::new(&text).is_ok());
    }

    #[test]
    fn depth_and_depth_times_length_are_bounded() {
        let nested = |levels, inside: &str| "[".repeat(levels) + inside + &"]".repeat(levels);
        let why = |text: &str| {
            Loose::new(text)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        assert_eq!(why(&nested(DEEPEST, "1")), "");
        assert!(why(&nested(DEEPEST + 1, "1")).contains("recursion limit"));
        let long = format!("\"{}\"", "x".repeat(LOOKS / 100));
        assert_eq!(why(&nested(90, &long)), "");
        assert!(why(&nested(110, &long)).contains("too deep for its length"));
    }
}
