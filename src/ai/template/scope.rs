//! What texts of a template can see: its parameters, and the results of earlier steps.

use serde_json::{Map, Value};

/// Names that no parameter may have.
pub(super) const RESERVED: &[&str] = &["params", "steps", "item"];

/// Parameters (by name, and under `params`) and results of steps (under `steps`).
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    values: Map<String, Value>,
}

impl Scope {
    /// Parameters, and no steps yet.
    pub(crate) fn new(params: Map<String, Value>) -> Self {
        let mut values = params.clone();
        values.insert("params".into(), Value::Object(params));
        values.insert("steps".into(), Value::Object(Map::new()));
        Self { values }
    }

    /// Adds the result of a step.
    pub(crate) fn finish(&mut self, step: &str, result: Value) {
        if let Some(Value::Object(steps)) = self.values.get_mut("steps") {
            steps.insert(step.to_owned(), result);
        }
    }

    pub(super) fn values(&self) -> minijinja::Value {
        minijinja::Value::from(minijinja::value::Serde(&self.values))
    }
}
