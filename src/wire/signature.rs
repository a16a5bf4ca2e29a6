//! A signature: a task call as a value (`celery.canvas.Signature`).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A task call that can be sent, stored and passed on. Unknown parts are kept.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Signature {
    /// Task name.
    pub task: String,
    /// Positional arguments.
    #[serde(default)]
    pub args: Vec<Value>,
    /// Keyword arguments.
    #[serde(default)]
    pub kwargs: Map<String, Value>,
    /// Options of `apply_async`; null means not set.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// `chain`, `group`, `chord`, … for canvases.
    #[serde(default)]
    pub subtask_type: Option<String>,
    /// The parent's result is not prepended to `args`.
    #[serde(default)]
    pub immutable: bool,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Signature {
    /// A call of `task` with positional arguments.
    pub fn new(task: impl Into<String>, args: Vec<Value>) -> Self {
        Self {
            task: task.into(),
            args,
            ..Self::default()
        }
    }

    /// With an option of `apply_async`, such as `queue`.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.options.insert(name.to_owned(), value.into());
        self
    }

    /// The signature to send after a parent ended with `result`: prepended to `args` unless immutable (P-119).
    #[must_use]
    pub fn with_result(mut self, result: &Value) -> Self {
        if !self.immutable {
            self.args.insert(0, result.clone());
        }
        self
    }
}
