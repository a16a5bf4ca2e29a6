//! Faults of AI work as exceptions of Python.

use std::time::Duration;

use super::ollama::{Class, Fault};
use super::template::Reason;
use crate::backoff;
use crate::task::{Context, Exception, Failure};
use crate::wire::python_modules::ORCHESTRA;

/// First pause before a call is tried again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause before a call is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// `orchestra.exceptions.TemplateError`: rendering failed.
pub(super) fn template_error(text: impl Into<String>) -> Failure {
    Failure::Fail(Exception::new(ORCHESTRA, "TemplateError", text))
}

/// `orchestra.exceptions.TemplateNotFound`.
pub(super) fn template_not_found(text: impl Into<String>) -> Failure {
    Failure::Fail(Exception::new(ORCHESTRA, "TemplateNotFound", text))
}

/// `orchestra.exceptions.InvalidOutput`: the answer is not what the format asks for.
pub(super) fn invalid_output(text: impl Into<String>) -> Failure {
    Failure::Fail(Exception::new(ORCHESTRA, "InvalidOutput", text))
}

/// `orchestra.exceptions.OutputTruncated`: the answer ended before the format was complete.
pub(super) fn output_truncated(text: impl Into<String>) -> Failure {
    Failure::Fail(Exception::new(ORCHESTRA, "OutputTruncated", text))
}

/// `orchestra.exceptions.EmptyAnswer`: a model that said nothing.
pub(super) fn empty_answer(text: impl Into<String>) -> Failure {
    Failure::Fail(Exception::new(ORCHESTRA, "EmptyAnswer", text))
}

/// Why a step went wrong, for its `retry` and for models to fall back on.
pub(super) fn reason(failure: &Failure) -> Reason {
    let exception = match failure {
        Failure::Fail(exception) => exception,
        Failure::Retry { cause: Some(cause), .. } => cause,
        _ => return Reason::Error,
    };
    match (failure, exception.name.as_str()) {
        (_, "ModelUnavailable") => Reason::ModelUnavailable,
        (_, "InvalidOutput" | "OutputTruncated" | "EmptyAnswer") => Reason::InvalidOutput,
        (_, "TimeoutError") => Reason::Timeout,
        // A fault of a model that may pass.
        (Failure::Retry { .. }, "ModelError") => Reason::ModelUnavailable,
        _ => Reason::Error,
    }
}

/// Whether no server has the model, which another model can make up for and another try cannot.
pub(super) fn is_missing(failure: &Failure) -> bool {
    matches!(failure, Failure::Fail(exception) if exception.name == "ModelNotFound")
}

/// A failure in words.
pub(super) fn words(failure: &Failure) -> String {
    match failure {
        Failure::Fail(exception) => exception.to_string(),
        Failure::Retry { cause: Some(cause), .. } => cause.to_string(),
        other => format!("{other:?}"),
    }
}

/// `orchestra.exceptions.BudgetExceeded`: what may be used is used up.
pub(super) fn budget_exceeded(text: impl Into<String>) -> Failure {
    Failure::Fail(Exception::new(ORCHESTRA, "BudgetExceeded", text))
}

/// What to do about a fault of a model: try again later, or fail.
pub(super) fn of_model(fault: &Fault, model: &str, context: &Context) -> Failure {
    let host = &fault.host;
    match fault.class {
        Class::NotFound => Failure::Fail(Exception::new(
            ORCHESTRA,
            "ModelNotFound",
            format!("model {model:?} is not on {host}; `ollama pull {model}` gets it"),
        )),
        Class::Refused => Failure::Fail(Exception::new(ORCHESTRA, "ModelError", fault.to_string())),
        Class::Unavailable | Class::Unreachable | Class::Memory | Class::Broken => {
            let name = match fault.class {
                Class::Broken => "ModelError",
                _ => "ModelUnavailable",
            };
            let pause = backoff::delay(FIRST_PAUSE, LONGEST_PAUSE, context.retries());
            Failure::Retry {
                after: Some(fault.after.unwrap_or(pause).min(LONGEST_PAUSE)),
                cause: Some(Exception::new(ORCHESTRA, name, fault.to_string())),
                arguments: None,
            }
        }
    }
}
