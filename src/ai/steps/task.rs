//! `task`: any Celery task, in any language. The run holds nothing while it waits.

use serde_json::{Map, Value};

use super::{Field, Fields, Stop, Type, Wrong, needed, text, value};
use crate::ai::site::Site;
use crate::wire::Signature;

pub(super) const TYPE: Type = Type {
    name: "task",
    about: "calls a Celery task, in any language, and waits for its result without holding a place to run",
    fields: FIELDS,
    check,
    is_local: false,
};

const FIELDS: &[Field] = &[
    needed(text("task", "the task's name")),
    value("args", "positional arguments"),
    value("kwargs", "keyword arguments"),
    text("queue", "its queue; without it where the routes of the worker send it"),
    value("priority", "0 to 9"),
    value("countdown", "seconds before it may start"),
    value("expires", "seconds after which it is not started any more"),
    value("time_limit", "seconds after which it is ended"),
    value(
        "limit",
        "seconds after which this step fails with a TimeoutError; without it, it waits as long as it takes",
    ),
];

fn check(fields: &Map<String, Value>, _: &[&str]) -> Wrong {
    let mut wrong = Vec::new();
    if fields.get("args").is_some_and(|args| !args.is_array()) {
        wrong.push(("args", "must be a list".into()));
    }
    if fields.get("kwargs").is_some_and(|kwargs| !kwargs.is_object()) {
        wrong.push(("kwargs", "must be a mapping of names".into()));
    }
    wrong
}

pub(super) async fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let mut call = Signature::new(fields.need("task")?);
    match fields.take("args") {
        None => {}
        Some(Value::Array(args)) => call = args.into_iter().fold(call, Signature::arg),
        Some(other) => return Err(Stop::wrong(format!("args: must be a list, not {other}"))),
    }
    match fields.take("kwargs") {
        None => {}
        Some(Value::Object(kwargs)) => {
            for (name, value) in kwargs {
                call = call.kwarg(name, value);
            }
        }
        Some(other) => return Err(Stop::wrong(format!("kwargs: must be an object, not {other}"))),
    }
    for name in ["queue", "priority", "countdown", "expires", "time_limit"] {
        if let Some(value) = fields.take(name) {
            call = call.option(name, value);
        }
    }
    let limit = seconds(&mut fields, "limit")?;
    site.call("", call, limit).await
}

/// A field that is a number of seconds.
pub(super) fn seconds(fields: &mut Fields, name: &str) -> Result<Option<std::time::Duration>, Stop> {
    let Some(value) = fields.take(name) else {
        return Ok(None);
    };
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    let duration = number.and_then(|number| std::time::Duration::try_from_secs_f64(number).ok());
    let duration = duration.filter(|duration| !duration.is_zero());
    duration
        .map(Some)
        .ok_or_else(|| Stop::wrong(format!("{name}: must be a positive number of seconds, not {value}")))
}
