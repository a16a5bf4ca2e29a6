//! What stands in a template file, before it is understood. The only place that reads YAML.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::Problem;
use crate::text::closest;

/// Largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateFile {
    pub name: Option<String>,
    pub description: Option<String>,
    #[serde(default)]
    pub parameters: Ordered<ParameterFile>,
    pub steps: Vec<StepFile>,
    pub output: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ParameterFile {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub description: Option<String>,
    pub required: Option<bool>,
    pub default: Option<Value>,
    #[serde(rename = "enum")]
    pub choices: Option<Vec<Value>>,
    pub minimum: Option<Value>,
    pub maximum: Option<Value>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub pattern: Option<String>,
    pub items: Option<Value>,
    pub properties: Option<Value>,
}

/// One step. Which fields it may have depends on its type, and is checked where that is known.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepFile {
    pub id: Option<String>,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "description")]
    pub _description: Option<String>,
    pub when: Option<String>,
    pub timeout: Option<f64>,
    pub model: Option<String>,
    pub text: Option<String>,
    pub prompt: Option<String>,
    pub system: Option<String>,
    pub messages: Option<Value>,
    pub tools: Option<Value>,
    pub format: Option<Value>,
    pub options: Option<Map<String, Value>>,
    pub keep_alive: Option<Value>,
    pub think: Option<Value>,
    pub images: Option<Value>,
    pub raw: Option<Value>,
    pub suffix: Option<String>,
    pub truncate: Option<Value>,
}

/// A mapping in the order of the file: positional arguments bind in that order.
#[derive(Debug)]
pub(super) struct Ordered<T>(pub Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Ordered<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut entries: Vec<(String, T)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if entries.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom(format!("{name:?} is there twice")));
                    }
                    entries.push((name, value));
                }
                Ok(Ordered(entries))
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Reads a YAML file: its text, and what stands in it.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<(String, T), Vec<Problem>> {
    let wrong = |text: String| vec![Problem::file(path, text)];
    let size = std::fs::metadata(path)
        .map_err(|error| wrong(format!("cannot be read: {error}")))?
        .len();
    if size > LARGEST {
        return Err(wrong(format!("is larger than {LARGEST} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    match serde_yaml::from_str(&text) {
        Ok(value) => Ok((text, value)),
        Err(error) => Err(vec![match error.location() {
            Some(location) => {
                // The place stands in front already.
                let words = error.to_string();
                let words = words.split(" at line ").next().unwrap_or(&words);
                Problem::line(path, location.line(), Some(location.column()), suggest(words))
            }
            None => Problem::file(path, error.to_string()),
        }]),
    }
}

/// A field that nobody knows is probably one that somebody mistyped: the one that was meant says more than all of them.
fn suggest(words: &str) -> String {
    let Some((what, expected)) = words.split_once(", expected one of ") else {
        return words.to_owned();
    };
    let written = what.rsplit('`').nth(1).unwrap_or_default();
    let known = || expected.split(", ").map(|name| name.trim_matches('`'));
    match closest(written, known()) {
        Some(close) => format!("{what}; did you mean {close}?"),
        None => format!("{what}; there are {}", known().collect::<Vec<_>>().join(", ")),
    }
}
