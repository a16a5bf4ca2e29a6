//! Binding arguments to the fields of a task, as Python binds them to the parameters of a function.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::hides::wrong_value;
use super::{Arguments, Failure, Redact};
use crate::wire::json;
use crate::wire::{Loose, Pairs};

/// Binds the JSON text of a list and an object to the fields of `T`, without values in between.
///
/// # Errors
/// `TypeError` in Python's words when the arguments do not fit; `ValueError` naming the field when one has a wrong
/// type. Of what `redact` covers, no value is told.
pub(crate) fn bind<T: DeserializeOwned>(task: &str, args: &str, kwargs: &str, redact: Redact) -> Result<T, Failure> {
    let wrong = |error: serde_json::Error| Failure::type_error(format!("{task}() {error}"));
    let call = Call {
        task,
        args: serde_json::from_str(args).map_err(wrong)?,
        kwargs: serde_json::from_str::<Pairs<'_>>(kwargs).map_err(wrong)?.0,
        redact,
    };
    T::deserialize(call).map_err(|error| match error {
        BindError::Call(text) => Failure::type_error(text),
        BindError::Missing(field) => {
            Failure::type_error(format!("{task}() missing 1 required positional argument: '{field}'"))
        }
        BindError::Value(text) => Failure::value_error(format!("{task}(): {text}")),
    })
}

impl Arguments {
    /// Binds to the fields of `T`; see [`Task`](super::Task) for the rules.
    ///
    /// # Errors
    /// `TypeError` or `ValueError`, as the Python function would raise.
    pub fn bind<T: DeserializeOwned>(self, task: &str) -> Result<T, Failure> {
        let Self { args, kwargs } = self;
        // They may be large: each form of them is gone before the next is made.
        let (args, kwargs) = (into_text(args)?, into_text(kwargs)?);
        bind(task, &args, &kwargs, Redact::Nothing)
    }

    /// Binds to names: positional arguments take them in order.
    ///
    /// # Errors
    /// `TypeError` when there are too many arguments, a name is given twice, or is not one of `names`.
    pub fn bind_names(self, task: &str, names: &[&str]) -> Result<Map<String, Value>, Failure> {
        check_call(task, names, self.args.len(), self.kwargs.keys().map(String::as_str))
            .map_err(Failure::type_error)?;
        let mut bound: Map<String, Value> = names.iter().map(|name| (*name).to_owned()).zip(self.args).collect();
        bound.extend(self.kwargs);
        Ok(bound)
    }
}

fn into_text(value: impl serde::Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string(&value)
}

/// Python's checks of a call, in Python's words.
fn check_call<'a>(
    task: &str,
    names: &[&str],
    positional: usize,
    keywords: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    if positional > names.len() {
        let (takes, s) = (names.len(), if names.len() == 1 { "" } else { "s" });
        let were = if positional == 1 { "was" } else { "were" };
        return Err(format!(
            "{task}() takes {takes} positional argument{s} but {positional} {were} given"
        ));
    }
    for keyword in keywords {
        match names.iter().position(|name| *name == keyword) {
            None => return Err(format!("{task}() got an unexpected keyword argument '{keyword}'")),
            Some(at) if at < positional => {
                return Err(format!("{task}() got multiple values for argument '{keyword}'"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

struct Call<'a> {
    task: &'a str,
    args: Vec<&'a RawValue>,
    kwargs: Vec<(Cow<'a, str>, &'a RawValue)>,
    redact: Redact,
}

impl<'de> Deserializer<'de> for Call<'de> {
    type Error = BindError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, BindError> {
        let keywords = self.kwargs.iter().map(|(name, _)| name.as_ref());
        check_call(self.task, fields, self.args.len(), keywords).map_err(BindError::Call)?;
        let positional = fields.iter().map(|name| Cow::Borrowed(*name)).zip(self.args);
        visitor.visit_map(Pairs2 {
            pairs: positional.chain(self.kwargs).collect::<Vec<_>>().into_iter(),
            current: None,
            redact: self.redact,
        })
    }

    /// A task without named fields (`Map<String, Value>`, an enum, `flatten`) sees its keyword arguments.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, BindError> {
        check_call(self.task, &[], self.args.len(), std::iter::empty()).map_err(BindError::Call)?;
        visitor.visit_map(Pairs2 {
            pairs: self.kwargs.into_iter(),
            current: None,
            redact: self.redact,
        })
    }

    /// A task without arguments.
    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, BindError> {
        let keywords = self.kwargs.iter().map(|(name, _)| name.as_ref());
        check_call(self.task, &[], self.args.len(), keywords).map_err(BindError::Call)?;
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Pairs2<'a, I> {
    pairs: I,
    current: Option<(String, &'a RawValue)>,
    redact: Redact,
}

impl<'de, I: Iterator<Item = (Cow<'de, str>, &'de RawValue)>> MapAccess<'de> for Pairs2<'de, I> {
    type Error = BindError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, BindError> {
        let Some((name, value)) = self.pairs.next() else {
            return Ok(None);
        };
        let key = seed.deserialize(StrDeserializer::<BindError>::new(&name))?;
        self.current = Some((name.into_owned(), value));
        Ok(Some(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, BindError> {
        let Some((name, value)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its name"));
        };
        // A `NaN` is no JSON.
        let read = match json::may_carry(value.get()) {
            true => Loose::new(value.get()).and_then(|value| seed.deserialize(value)),
            false => seed.deserialize(&mut serde_json::Deserializer::from_str(value.get())),
        };
        read.map_err(|error| BindError::Value(wrong_value(&name, value.get(), &json::in_words(&error), self.redact)))
    }
}

#[derive(Debug)]
enum BindError {
    Call(String),
    Missing(String),
    Value(String),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(text) | Self::Missing(text) | Self::Value(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for BindError {}

impl de::Error for BindError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Value(message.to_string())
    }
    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Add {
        x: i64,
        #[serde(default)]
        y: i64,
        #[serde(default)]
        note: Option<String>,
    }

    fn failure(args: &str, kwargs: &str) -> String {
        match bind::<Add>("proj.add", args, kwargs, Redact::Nothing) {
            Err(Failure::Fail(exception)) => exception.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn positional_arguments_bind_in_order_and_keywords_by_name() {
        let add = bind::<Add>("proj.add", "[1]", r#"{"note": "n"}"#, Redact::Nothing).unwrap();
        assert_eq!(
            add,
            Add {
                x: 1,
                y: 0,
                note: Some("n".into())
            }
        );
        assert_eq!(
            bind::<Add>("proj.add", "[1, 2, null]", "{}", Redact::Nothing)
                .unwrap()
                .y,
            2
        );
    }

    #[test]
    fn a_wrong_call_is_the_type_error_that_python_raises() {
        assert_eq!(
            failure("[]", "{}"),
            "TypeError: proj.add() missing 1 required positional argument: 'x'"
        );
        assert_eq!(
            failure("[1, 2, null, 4]", "{}"),
            "TypeError: proj.add() takes 3 positional arguments but 4 were given"
        );
        assert_eq!(
            failure("[1]", r#"{"x": 2}"#),
            "TypeError: proj.add() got multiple values for argument 'x'"
        );
        assert_eq!(
            failure("[1]", r#"{"z": 2}"#),
            "TypeError: proj.add() got an unexpected keyword argument 'z'"
        );
    }

    #[test]
    fn an_argument_of_the_wrong_type_is_named() {
        let text = failure(r#"["one"]"#, "{}");
        assert!(
            text.starts_with("ValueError: proj.add(): argument 'x': invalid type"),
            "{text}"
        );
    }

    #[test]
    fn names_bind_like_fields() {
        let arguments = Arguments {
            args: vec![1.into()],
            kwargs: Map::from_iter([("b".to_owned(), 2.into())]),
        };
        let bound = arguments.clone().bind_names("t", &["a", "b"]).unwrap();
        assert_eq!(Value::Object(bound), serde_json::json!({"a": 1, "b": 2}));
        assert!(arguments.bind_names("t", &["b"]).is_err());
    }
}
