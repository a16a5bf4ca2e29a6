//! What the tasks of a Python suite expect of Python: `+`, `sum`, truth, seconds.

use std::time::Duration;

use orchestra::task::Failure;
use serde_json::{Number, Value};

/// Python's `x + y` for numbers, texts and lists.
///
/// # Errors
/// `TypeError` when the two do not go together, `OverflowError` beyond 64 bits.
pub fn plus(x: &Value, y: &Value) -> Result<Value, Failure> {
    Ok(match (x, y) {
        (Value::Number(x), Value::Number(y)) => number(x, y, i64::checked_add, |x, y| x + y)?,
        (Value::String(x), Value::String(y)) => Value::String(format!("{x}{y}")),
        (Value::Array(x), Value::Array(y)) => Value::Array(x.iter().chain(y).cloned().collect()),
        _ => return Err(unsupported("+", x, y)),
    })
}

/// Python's `x * y` for numbers.
///
/// # Errors
/// See [`plus`].
pub fn times(x: &Value, y: &Value) -> Result<Value, Failure> {
    match (x, y) {
        (Value::Number(x), Value::Number(y)) => number(x, y, i64::checked_mul, |x, y| x * y),
        _ => Err(unsupported("*", x, y)),
    }
}

/// Python's `sum`: 0 for an empty list.
///
/// # Errors
/// `TypeError` for what is no list of numbers.
pub fn sum(values: &Value) -> Result<Value, Failure> {
    let Value::Array(values) = values else {
        return Err(Failure::type_error(format!(
            "'{}' object is not iterable",
            name(values)
        )));
    };
    values.iter().try_fold(Value::from(0), |sum, value| plus(&sum, value))
}

/// Whether Python takes the value for true.
pub fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

/// A text as it is, bytes as kombu writes them in JSON as their text, anything else as Python's `str` of a number or
/// JSON.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(object) if object.get("__type__").is_some_and(|kind| kind == "bytes") => {
            text(object.get("__value__").unwrap_or(&Value::Null))
        }
        other => other.to_string(),
    }
}

/// A pause.
///
/// # Errors
/// `ValueError` for a negative number and for none at all.
pub fn seconds(value: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(value).map_err(|_| Failure::value_error("sleep length must be non-negative"))
}

fn number(
    x: &Number,
    y: &Number,
    whole: impl Fn(i64, i64) -> Option<i64>,
    real: impl Fn(f64, f64) -> f64,
) -> Result<Value, Failure> {
    match (x.as_i64(), y.as_i64(), x.as_f64(), y.as_f64()) {
        (Some(x), Some(y), ..) => whole(x, y)
            .map(Value::from)
            .ok_or_else(|| orchestra::task::Exception::builtin("OverflowError", "more than 64 bits").into()),
        (_, _, Some(x), Some(y)) => Ok(Value::from(real(x, y))),
        _ => Err(Failure::value_error("a number that cannot be computed with")),
    }
}

fn unsupported(operator: &str, x: &Value, y: &Value) -> Failure {
    Failure::type_error(format!(
        "unsupported operand type(s) for {operator}: '{}' and '{}'",
        name(x),
        name(y)
    ))
}

fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}
