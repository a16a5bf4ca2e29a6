//! What of a task is not shown: in logs, events, `inspect` and texts of errors. The task itself gets everything.

use super::{Arguments, Options};
use crate::wire::redact::{HIDDEN, hide, hide_members, is_secret, may_hold_secret};
use crate::wire::{Message, shown_args, shown_kwargs};
use serde::de::{self, DeserializeOwned, Deserializer, Visitor};

/// What is not shown of a task besides what is secret by its name (`password`, `token`, …).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redact {
    /// Nothing.
    #[default]
    Nothing,
    /// The arguments of these names.
    Fields(&'static [&'static str]),
    /// All arguments, the result, and texts of exceptions.
    Everything,
}

/// A parameter of a task made at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Whether its value is never shown.
    pub secret: bool,
}

/// What of a task is not shown.
#[derive(Clone, Debug, Default)]
pub struct Hides {
    everything: bool,
    names: Vec<String>,
    /// Places of positional arguments.
    places: Vec<usize>,
    /// Arguments have no names that are known, and some are not to be shown: then no positional one is.
    unnamed: bool,
}

impl Hides {
    /// For a task with these options and, in order, these parameters.
    pub(super) fn new(options: &Options, parameters: &[Parameter]) -> Self {
        let fields = match options.redact {
            Redact::Fields(fields) => fields,
            Redact::Nothing | Redact::Everything => &[],
        };
        let secret = |parameter: &Parameter| parameter.secret || fields.contains(&parameter.name.as_str());
        let places = parameters.iter().enumerate();
        Self {
            everything: options.redact == Redact::Everything,
            names: fields
                .iter()
                .map(|field| (*field).to_owned())
                .chain(parameters.iter().filter(|one| one.secret).map(|one| one.name.clone()))
                .collect(),
            places: places
                .filter(|(_, one)| secret(one) || is_secret(&one.name))
                .map(|(place, _)| place)
                .collect(),
            unnamed: parameters.is_empty() && !fields.is_empty(),
        }
    }

    /// The parameters of a type: its fields, if it has named ones.
    pub(super) fn parameters<T: DeserializeOwned>() -> Vec<Parameter> {
        let Err(Fields(names)) = T::deserialize(Ask).map(drop) else {
            return Vec::new();
        };
        names
            .iter()
            .map(|name| Parameter {
                name: (*name).to_owned(),
                secret: false,
            })
            .collect()
    }

    /// Whether nothing of the task is shown.
    pub fn everything(&self) -> bool {
        self.everything
    }

    /// Whether the value of the argument of that name is not shown.
    pub fn covers(&self, name: &str) -> bool {
        self.everything || is_secret(name) || self.names.iter().any(|hidden| hidden == name)
    }

    /// Hides what is not shown.
    pub fn hide(&self, arguments: &mut Arguments) {
        for (place, arg) in arguments.args.iter_mut().enumerate() {
            if self.everything || self.unnamed || self.places.contains(&place) {
                *arg = HIDDEN.into();
            } else {
                hide(arg);
            }
        }
        for (name, value) in &mut arguments.kwargs {
            if self.covers(name) {
                *value = HIDDEN.into();
            }
        }
        hide_members(&mut arguments.kwargs);
    }

    /// `argsrepr` and `kwargsrepr` of a message, where those of the sender tell too much.
    pub(crate) fn shown(&self, message: &Message) -> Option<(String, String)> {
        let headers = &message.headers;
        let args = headers.argsrepr.as_deref().unwrap_or_else(|| message.body.args());
        let kwargs = headers.kwargsrepr.as_deref().unwrap_or_else(|| message.body.kwargs());
        let (some_args, some_kwargs) = (args.len() > 2, kwargs.len() > 2);
        let tells = some_args && (self.everything || self.unnamed || !self.places.is_empty() || may_hold_secret(args))
            || some_kwargs && (self.everything || !self.names.is_empty() || may_hold_secret(kwargs));
        if !tells {
            return None;
        }
        let mut arguments = message.body.arguments().unwrap_or_default();
        self.hide(&mut arguments);
        Some((shown_args(&arguments.args), shown_kwargs(&arguments.kwargs)))
    }
}

/// Asks a type for the names of its fields, and gets them as an error.
struct Ask;

#[derive(Debug)]
struct Fields(&'static [&'static str]);

impl<'de> Deserializer<'de> for Ask {
    type Error = Fields;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fields> {
        Err(Fields(fields))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fields> {
        Err(Fields(&[]))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl de::Error for Fields {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl std::fmt::Display for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Fields {}

/// What was wrong with an argument, without what must not be shown and without a whole book.
pub(super) fn wrong_value(name: &str, value: &str, error: &str, redact: Redact) -> String {
    /// Characters of either end.
    const SHOWN: usize = 150;
    let hidden = match redact {
        Redact::Everything => true,
        Redact::Fields(fields) => fields.contains(&name),
        Redact::Nothing => false,
    };
    if hidden || is_secret(name) || may_hold_secret(value) {
        return format!("argument '{name}' has a wrong value, which is not shown");
    }
    let chars = error.chars().count();
    if chars <= 2 * SHOWN + 20 {
        return format!("argument '{name}': {error}");
    }
    // What was expected stands at the end.
    let start: String = error.chars().take(SHOWN).collect();
    let end: String = error.chars().skip(chars - SHOWN).collect();
    format!("argument '{name}': {start} … {end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Limits, decode};
    use serde_json::{Value, json};

    #[derive(serde::Deserialize)]
    #[expect(dead_code, reason = "only its names are looked at")]
    struct Login {
        user: String,
        password: String,
        #[serde(default)]
        card: String,
    }

    fn shown(redact: Redact, args: Value, kwargs: Value) -> Option<(String, String)> {
        let options = Options {
            redact,
            ..Options::DEFAULT
        };
        let raw = json!({
            "body": json!([args, kwargs, null]).to_string(), "content-type": "application/json",
            "headers": {"task": "t", "id": "1", "argsrepr": args.to_string(), "kwargsrepr": kwargs.to_string()},
            "properties": {},
        });
        let message = decode(raw.to_string().as_bytes(), &Limits::default()).unwrap();
        Hides::new(&options, &Hides::parameters::<Login>()).shown(&message)
    }

    #[test]
    fn secrets_are_hidden_by_name_also_where_they_have_a_place() {
        assert_eq!(shown(Redact::Nothing, json!([]), json!({"user": "bob"})), None);
        let (args, _) = shown(Redact::Nothing, json!(["bob", "hunter2"]), json!({})).unwrap();
        assert_eq!(args, "('bob', '********')");
        let (_, kwargs) = shown(
            Redact::Nothing,
            json!([]),
            json!({"user": "bob", "password": "hunter2"}),
        )
        .unwrap();
        assert_eq!(kwargs, "{'user': 'bob', 'password': '********'}");
        let (args, kwargs) = shown(
            Redact::Fields(&["card"]),
            json!(["bob", "x", "4111"]),
            json!({"card": "4111"}),
        )
        .unwrap();
        assert_eq!(
            (&*args, &*kwargs),
            ("('bob', '********', '********')", "{'card': '********'}")
        );
        let (args, kwargs) = shown(Redact::Everything, json!(["bob"]), json!({"x": {"y": 1}})).unwrap();
        assert_eq!((&*args, &*kwargs), ("('********',)", "{'x': '********'}"));
    }

    #[test]
    fn a_wrong_argument_is_not_told_whole() {
        let long = format!("invalid type: string \"{}\", expected i64", "x".repeat(10_000));
        let text = wrong_value("x", "", &long, Redact::Nothing);
        assert!(text.len() < 400 && text.ends_with("expected i64"), "{text}");
        for (name, value, redact) in [
            ("token", "hunter2", Redact::Nothing),
            ("deep", r#"{"token": "hunter2"}"#, Redact::Nothing),
            ("card", "hunter2", Redact::Fields(&["card"])),
            ("x", "hunter2", Redact::Everything),
        ] {
            let text = wrong_value(name, value, "invalid type: string \"hunter2\"", redact);
            assert!(!text.contains("hunter2") && text.contains(name), "{text}");
        }
    }
}
