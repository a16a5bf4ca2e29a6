//! What texts of a template can see: its parameters, the results of steps, and the item of a loop.

use std::collections::BTreeMap;

use minijinja::Value as Seen;
use serde_json::{Map, Value};

/// Names that no parameter may have.
pub(super) const RESERVED: &[&str] = &["params", "steps", "item", "index"];

/// Parameters (by name, and under `params`), results of steps (under `steps`), and `item` and `index` in a `foreach`.
/// Clones share the values.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    values: BTreeMap<String, Seen>,
    steps: BTreeMap<String, Seen>,
}

impl Scope {
    /// Parameters, and no steps yet.
    pub(crate) fn new(params: &Map<String, Value>) -> Self {
        let mut values: BTreeMap<String, Seen> = BTreeMap::new();
        for (name, value) in params {
            values.insert(name.clone(), seen(value));
        }
        let all: BTreeMap<String, Seen> = values.clone();
        values.insert("params".into(), Seen::from(all));
        Self {
            values,
            steps: BTreeMap::new(),
        }
    }

    /// Adds the result of a step.
    pub(crate) fn finish(&mut self, step: &str, result: &Value) {
        self.steps.insert(step.to_owned(), seen(result));
    }

    /// The same for one item of a loop.
    #[must_use]
    pub(crate) fn with_item(&self, index: usize, item: &Value) -> Self {
        let mut scope = self.clone();
        scope.values.insert("item".into(), seen(item));
        scope.values.insert("index".into(), Seen::from(index));
        scope
    }

    pub(super) fn values(&self) -> Seen {
        let mut values = self.values.clone();
        values.insert("steps".into(), Seen::from(self.steps.clone()));
        Seen::from(values)
    }
}

fn seen(value: &Value) -> Seen {
    Seen::from(minijinja::value::Serde(value))
}
