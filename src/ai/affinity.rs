//! Which model a call will ask, and whether it is in memory: what a worker goes by when it chooses what to run next.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Engine;
use super::fleet::canonical;
use super::tasks::RunTemplate;
use crate::task::{Affinity, Task};

/// The models of the fleet, as needs of the tasks that ask them.
pub(super) struct ModelAffinity {
    engine: Arc<Engine>,
    overtaking: u32,
    patience: Duration,
}

impl ModelAffinity {
    pub(super) fn new(engine: Arc<Engine>, overtaking: u32, patience: Duration) -> Self {
        Self {
            engine,
            overtaking,
            patience,
        }
    }

    /// The model that a run asks first.
    fn model(&self, task: &str, args: &str, kwargs: &str) -> Option<String> {
        let shelf = self.engine.shelf();
        if let Some(binding) = shelf.binding(task) {
            let (template, params) = binding.called_with(args, kwargs)?;
            return shelf.template(template)?.first_model(params);
        }
        if task == RunTemplate::NAME {
            let call: Call = serde_json::from_str(kwargs).ok()?;
            let positional: Vec<Value> = serde_json::from_str(args).ok()?;
            let mut positional = positional.into_iter();
            let name = match positional.next() {
                Some(name) => name.as_str()?.to_owned(),
                None => call.template?,
            };
            let params = match positional.next() {
                Some(Value::Object(params)) => params,
                _ => call.params.unwrap_or_default(),
            };
            return shelf.template(&name)?.first_model(params);
        }
        // The others have it as their first argument; what comes behind it may be a book.
        let First(first) = serde_json::from_str(args).ok()?;
        let named = || Some(serde_json::from_str::<Named<'_>>(kwargs).ok()?.model?.into_owned());
        first.or_else(named)
    }
}

impl Affinity for ModelAffinity {
    fn need(&self, task: &str, args: &str, kwargs: &str) -> Option<Arc<str>> {
        Some(canonical(&self.model(task, args, kwargs)?).into())
    }

    fn is_at_hand(&self, need: &str) -> bool {
        self.engine.fleet().is_at_hand(need)
    }

    fn overtaking(&self) -> u32 {
        self.overtaking
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}

#[derive(Deserialize)]
struct Call {
    template: Option<String>,
    params: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
}

/// The first of a list, if it is a text.
struct First(Option<String>);

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfList;

        impl<'de> Visitor<'de> for OfList {
            type Value = First;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of arguments")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First, A::Error> {
                let first = list.next_element::<String>()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }

        deserializer.deserialize_seq(OfList)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_argument_is_read_and_the_rest_skipped() {
        let first = |text: &str| serde_json::from_str::<First>(text).ok().map(|First(first)| first);
        assert_eq!(first(r#"["m", {"a": [1, "x"]}]"#), Some(Some("m".into())));
        assert_eq!(first("[]"), Some(None));
        assert_eq!(first("[1]"), None);
        let named = serde_json::from_str::<Named<'_>>(r#"{"prompt": "x", "model": "m\u00e9"}"#).unwrap();
        assert_eq!(named.model.as_deref(), Some("mé"));
    }
}
