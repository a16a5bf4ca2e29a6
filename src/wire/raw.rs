//! A JSON value that is only passed on: kept as the text it came as, so that it leaves unchanged.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::floats::to_raw;

/// The text of one JSON value. Equal texts are equal values; different texts may be equal values too.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// A value as JSON.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn new(value: &(impl Serialize + ?Sized)) -> Result<Self, serde_json::Error> {
        to_raw(value).map(Self)
    }

    /// `null`.
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }

    /// A text.
    pub fn string(text: &str) -> Self {
        // A text can always be written.
        Self::new(text).unwrap_or_else(|_| Self::null())
    }

    /// True or false.
    pub fn bool(value: bool) -> Self {
        Self::new(&value).unwrap_or_else(|_| Self::null())
    }

    /// A whole number.
    pub fn number(number: u64) -> Self {
        Self::new(&number).unwrap_or_else(|_| Self::null())
    }

    /// A list of values.
    pub fn list<'a>(items: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut text = String::from("[");
        for (n, item) in items.into_iter().enumerate() {
            if n > 0 {
                text.push(',');
            }
            text.push_str(item.get());
        }
        text.push(']');
        RawValue::from_string(text).map_or_else(|_| Self::null(), Self)
    }

    /// The text.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        self.get() == "null"
    }

    /// The text of a JSON string.
    pub fn as_str(&self) -> Option<Cow<'_, str>> {
        serde_json::from_str(self.get()).ok()
    }

    /// The value, typed. Python's non-finite numbers are floats, and `null` where no float is wanted.
    ///
    /// # Errors
    /// The value is not of that shape.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        super::json::parse(self.get())
    }
}

impl From<Box<RawValue>> for Json {
    fn from(raw: Box<RawValue>) -> Self {
        Self(raw)
    }
}

impl From<Json> for Box<RawValue> {
    fn from(json: Json) -> Self {
        json.0
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get())
    }
}

/// The members of an object, in order.
pub(crate) struct Pairs<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for PairsVisitor<'a> {
            type Value = Pairs<'a>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::with_capacity(map.size_hint().unwrap_or(0).min(64));
                while let Some(name) = map.next_key::<String>()? {
                    pairs.push((Cow::Owned(name), map.next_value::<&'de RawValue>()?));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_leaves_as_it_came() {
        let text = r#"[1.50, 123456789012345678901234567890, {"b": 1, "a": 2}]"#;
        let json: Json = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), text);
        let list = Json::list([&json, &Json::string("a\"b"), &Json::null()]);
        assert_eq!(list.get(), format!("[{text},\"a\\\"b\",null]"));
    }
}
