//! Tasks that are tried again, and those that refuse their message.

use std::time::Duration;

use orchestra::task::{Arguments, Context, Exception, Failure, Options, RegisterError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{expected, named, unpickleable};
use crate::functions::Functions;
use crate::python::{seconds, truth};

#[derive(Deserialize)]
struct Nothing;

#[derive(Deserialize)]
struct Retry {
    #[serde(default)]
    return_value: Value,
}

#[derive(Deserialize)]
struct Unpickleable {
    foo: Value,
    #[expect(dead_code, reason = "the exception is made of the first alone, as in the suite")]
    bar: Value,
    retry_kwargs: RetryOptions,
}

#[derive(Deserialize)]
struct RetryOptions {
    countdown: Option<f64>,
}

pub(super) fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let quick = || Options {
        default_retry_delay: Duration::from_secs(1),
        ..Options::DEFAULT
    };
    functions.add(
        &named("retry"),
        quick(),
        |Retry { return_value }, context: Context| async move {
            if truth(&return_value) && context.retries() >= 3 {
                return Ok(return_value);
            }
            Err(Failure::retry_after(Duration::from_secs(5), expected(Vec::new())))
        },
    )?;
    functions.add(
        &named("retry_unpickleable"),
        quick(),
        |task: Unpickleable, _| async move {
            Err::<(), _>(Failure::Retry {
                after: task.retry_kwargs.countdown.map(seconds).transpose()?,
                cause: Some(unpickleable(&task.foo)),
                arguments: None,
            })
        },
    )?;
    let once = || Options {
        max_retries: Some(1),
        ..Options::DEFAULT
    };
    functions.any(
        &named("retry_once"),
        once(),
        |Arguments { kwargs, .. }, context: Context| async move {
            let countdown = kwargs.get("countdown").map_or(Some(0.1), Value::as_f64);
            retry_once(&context, countdown)
        },
    )?;
    let ignored = Options {
        ignore_result: true,
        ..once()
    };
    functions.add(
        &named("retry_once_ignore_result"),
        ignored,
        |_: Nothing, context: Context| async move { retry_once(&context, Some(0.0)) },
    )?;
    functions.add(
        &named("retry_once_with_result"),
        once(),
        |_: Nothing, context: Context| async move { retry_once(&context, Some(0.0)) },
    )?;
    let automatic = Options {
        autoretry: true,
        retry_backoff: Some(Duration::from_secs(1)),
        ..once()
    };
    functions.add(
        "auto_retry_class_task",
        automatic,
        |_: Nothing, context: Context| async move {
            if context.retries() == 0 {
                let mut error = Exception::value_error("");
                error.args.clear();
                return Err(error.into());
            }
            Ok(context.retries())
        },
    )?;
    other_arguments(functions, &once())?;
    rejects(functions)
}

#[derive(Deserialize)]
struct Labelled {
    foo: i64,
    bar: i64,
    #[serde(default)]
    label: Value,
}

/// Tasks that are tried again with other arguments, and those that tell what came with the second try.
fn other_arguments(functions: &mut Functions<'_>, once: &Options) -> Result<(), RegisterError> {
    functions.add(
        &named("retry_with_args_after_kwargs"),
        once.clone(),
        |Labelled { foo, bar, label }, context: Context| async move {
            if context.retries() > 0 {
                return Ok(
                    json!({"foo": foo, "bar": bar, "label": label, "retries": context.retries(), "is_eager": false}),
                );
            }
            let kwargs = if label.is_null() {
                Map::new()
            } else {
                Map::from_iter([("label".to_owned(), label)])
            };
            again(vec![(foo + 1).into(), (bar + 1).into()], kwargs)
        },
    )?;
    functions.add(
        &named("retry_with_kwargs_after_args"),
        once.clone(),
        |Labelled { foo, bar, .. }, context: Context| async move {
            if context.retries() > 0 {
                return Ok(json!({"foo": foo, "bar": bar, "retries": context.retries(), "is_eager": false}));
            }
            again(vec![(foo + 1).into(), bar.into()], Map::new())
        },
    )?;
    functions.any(&named("retry_once_priority"), once.clone(), |_, context| async move {
        retry_once(&context, Some(0.1))?;
        let message = context.details().message.clone();
        Ok(message.map(|message| message.properties.priority()))
    })?;
    functions.any(&named("retry_once_headers"), once.clone(), |_, context| async move {
        retry_once(&context, Some(0.1))?;
        let message = context.details().message.clone();
        Ok(message.map(|message| message.headers.extra.clone()))
    })
}

fn again(args: Vec<Value>, kwargs: Map<String, Value>) -> Result<Value, Failure> {
    Err(Failure::Retry {
        after: Some(Duration::ZERO),
        cause: None,
        arguments: Some(Box::new(Arguments { args, kwargs })),
    })
}

fn retry_once(context: &Context, countdown: Option<f64>) -> Result<u32, Failure> {
    if context.retries() > 0 {
        return Ok(context.retries());
    }
    Err(Failure::Retry {
        after: countdown.map(seconds).transpose()?,
        cause: None,
        arguments: None,
    })
}

fn rejects(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let late = || Options {
        acks_late: true,
        ..Options::DEFAULT
    };
    let rejected = |requeue| Failure::Reject {
        requeue,
        reason: "rejected".into(),
    };
    functions.add(
        &named("reject_then_succeed"),
        late(),
        move |_: Nothing, context: Context| async move {
            if context.details().redelivered {
                return Ok("second-pass");
            }
            Err(rejected(true))
        },
    )?;
    functions.add(
        &named("reject_without_requeue"),
        Options::DEFAULT,
        move |_: Nothing, _| async move { Err::<(), _>(rejected(false)) },
    )?;
    functions.add(
        &named("store_success_then_reject"),
        late(),
        move |_: Nothing, context: Context| async move {
            if context.details().redelivered {
                return Ok("dedup-pass");
            }
            context.update_state("SUCCESS", &"first-pass").await?;
            Err(rejected(true))
        },
    )
}
