//! Arguments of remote control requests. One may be a list of a hundred thousand ids: as a tree it would be as many
//! allocations, whose holes the memory of a process keeps.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The keyword arguments of a request.
pub type Given = BTreeMap<String, Argument>;

/// One argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// A long list of texts.
    Texts(Texts),
    /// Anything else.
    Value(Value),
}

/// Texts, one behind the other, and where each of them ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    text: String,
    ends: Vec<usize>,
}

/// So many texts are a long list.
const LONG: usize = 64;

impl Texts {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| &self.text[begin..*end])
    }

    fn into_values(self) -> Vec<Value> {
        self.iter().map(Value::from).collect()
    }
}

impl<'de> Deserialize<'de> for Argument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(ArgumentVisitor)
            .map(|argument| match argument {
                Self::Texts(texts) if texts.ends.len() < LONG => Self::Value(texts.into_values().into()),
                argument => argument,
            })
    }
}

struct ArgumentVisitor;

impl<'de> Visitor<'de> for ArgumentVisitor {
    type Value = Argument;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an argument")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Argument, E> {
        Ok(Argument::Value(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Argument, E> {
        Ok(Argument::Value(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Argument, E> {
        Ok(Argument::Value(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Argument, E> {
        Ok(Argument::Value(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Argument, E> {
        Ok(Argument::Value(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Argument, E> {
        Ok(Argument::Value(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Argument, E> {
        Ok(Argument::Value(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Argument, D::Error> {
        Argument::deserialize(deserializer)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Argument, A::Error> {
        Value::deserialize(MapAccessDeserializer::new(map)).map(Argument::Value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Argument, A::Error> {
        let mut texts = Texts::default();
        while let Some(item) = list.next_element()? {
            match item {
                Value::String(text) => texts.push(&text),
                other => {
                    let mut values = texts.into_values();
                    values.push(other);
                    while let Some(item) = list.next_element()? {
                        values.push(item);
                    }
                    return Ok(Argument::Value(values.into()));
                }
            }
        }
        Ok(Argument::Texts(texts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_argument_is_what_was_given() {
        for value in [
            json!(null),
            json!(true),
            json!(-1),
            json!(u64::MAX),
            json!(1.5),
            json!("é"),
            json!({"a": [1, {"b": null}]}),
            json!([]),
            json!(["a", "", "b"]),
            json!(["a", 1, "b", []]),
        ] {
            let text = value.to_string();
            assert_eq!(serde_json::from_str::<Argument>(&text).unwrap(), Argument::Value(value));
        }
        let many: Vec<String> = (0..LONG).map(|n| "x".repeat(n % 3)).collect();
        match serde_json::from_value(json!(many)).unwrap() {
            Argument::Texts(texts) => assert_eq!(texts.iter().collect::<Vec<_>>(), many),
            Argument::Value(value) => panic!("{value}"),
        }
        assert!(serde_json::from_str::<Argument>("[\"a\", }").is_err());
    }
}
