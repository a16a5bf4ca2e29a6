//! Exceptions as Celery stores them (`celery.backends.base.Backend.prepare_exception`).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::repr;

/// Python modules whose classes a failure may name so that `get()` raises the right one.
pub mod python_modules {
    /// `ValueError`, `TypeError`, …
    pub const BUILTINS: &str = "builtins";
    /// `Retry`, `Reject`, `NotRegistered`, `TaskRevokedError`, …
    pub const CELERY: &str = "celery.exceptions";
    /// `SoftTimeLimitExceeded`, `TimeLimitExceeded`, `WorkerLostError`.
    pub const BILLIARD: &str = "billiard.exceptions";
    /// The classes of the Python client of orchestra.
    pub const ORCHESTRA: &str = "orchestra.exceptions";
}

/// A Python exception: the class it should appear as, and the arguments of its constructor.
///
/// A client that has the module imported raises that very class; any other client makes an exception class of the
/// same name. No module is imported on behalf of the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exception {
    /// Class name.
    #[serde(rename = "exc_type")]
    pub name: String,
    /// Constructor arguments.
    #[serde(rename = "exc_message")]
    pub args: Vec<Value>,
    /// Module of the class.
    #[serde(rename = "exc_module")]
    pub module: String,
    /// Text shown by Flower and as `AsyncResult.traceback`; not part of the exception object itself.
    #[serde(skip)]
    pub traceback: Option<String>,
}

impl Exception {
    /// An exception with one text argument.
    pub fn new(module: impl Into<String>, name: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            args: vec![Value::String(message.into())],
            module: module.into(),
            traceback: None,
        }
    }

    /// One of Python's own.
    pub fn builtin(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(python_modules::BUILTINS, name, message)
    }

    /// `TypeError`: the arguments do not fit the task.
    pub fn type_error(message: impl Into<String>) -> Self {
        Self::builtin("TypeError", message)
    }

    /// `ValueError`: an argument has a wrong value.
    pub fn value_error(message: impl Into<String>) -> Self {
        Self::builtin("ValueError", message)
    }

    /// `RuntimeError`.
    pub fn runtime_error(message: impl Into<String>) -> Self {
        Self::builtin("RuntimeError", message)
    }

    /// One of `celery.exceptions`.
    pub fn celery(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(python_modules::CELERY, name, message)
    }

    /// The same exception with another traceback text.
    #[must_use]
    pub fn with_traceback(mut self, traceback: impl Into<String>) -> Self {
        self.traceback = Some(traceback.into());
        self
    }

    /// The same class without what it says.
    #[must_use]
    pub fn hidden(&self) -> Self {
        Self::new(self.module.clone(), self.name.clone(), super::redact::HIDDEN)
    }

    /// Python's `repr`, such as `ValueError('bad', 42)`.
    pub fn repr(&self) -> String {
        if let ("Reject", python_modules::CELERY, [reason, requeue]) = (&*self.name, &*self.module, &self.args[..]) {
            // The one class of Celery's with words of its own.
            let reason = reason.as_str().map_or_else(|| repr(reason), str::to_owned);
            return format!("reject requeue={}: {reason}", repr(requeue));
        }
        let args: Vec<String> = self.args.iter().map(repr).collect();
        format!("{}({})", self.name, args.join(", "))
    }

    /// The text a person reads: the single argument, or all of them.
    pub fn message(&self) -> String {
        match &self.args[..] {
            [] => String::new(),
            [Value::String(text)] => text.clone(),
            [one] => repr(one),
            // As Python's `str` of an exception with several arguments.
            args => format!("({})", args.iter().map(repr).collect::<Vec<_>>().join(", ")),
        }
    }

    /// The traceback, or one made up of what is known, for readers that expect one.
    pub fn traceback_text(&self) -> String {
        self.traceback.clone().unwrap_or_else(|| {
            format!(
                "Traceback (most recent call last):\n  (raised by a task written in Rust)\n{}: {}\n",
                self.name,
                self.message()
            )
        })
    }
}

impl std::fmt::Display for Exception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn p_150_an_exception_is_type_arguments_and_module() {
        let mut exception = Exception::value_error("bad");
        exception.args.push(json!(42));
        assert_eq!(
            serde_json::to_value(&exception).unwrap(),
            json!({"exc_type": "ValueError", "exc_message": ["bad", 42], "exc_module": "builtins"})
        );
        assert_eq!(exception.repr(), "ValueError('bad', 42)");
        assert_eq!(exception.message(), "('bad', 42)");
    }
}
