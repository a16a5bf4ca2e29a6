//! Tasks that compute, wait, look at their request, or fail.

use std::io::Write as _;

use orchestra::task::{Arguments, Context, Exception, Failure, Options, RegisterError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{expected, named, unpickleable};
use crate::functions::Functions;
use crate::python::{plus, seconds, sum, text, times, truth};

#[derive(Deserialize)]
struct Nothing;

#[derive(Deserialize)]
struct One {
    x: Value,
}

#[derive(Deserialize)]
struct Two {
    x: Value,
    y: Value,
}

#[derive(Deserialize)]
struct Three {
    x: Value,
    y: Value,
    #[serde(default)]
    z: Value,
}

#[derive(Deserialize)]
struct Numbers {
    nums: Value,
}

#[derive(Deserialize)]
struct Delayed {
    numbers: Value,
    #[serde(default = "one")]
    pause_time: f64,
}

fn one() -> f64 {
    1.0
}

#[derive(Deserialize)]
struct Unicode {
    #[serde(default = "latin")]
    log_message: Value,
    #[serde(default = "scandinavian")]
    print_message: Value,
}

fn latin() -> Value {
    "hå它 valmuefrø".into()
}

fn scandinavian() -> Value {
    "hiöäüß".into()
}

#[derive(Deserialize)]
struct Raised {
    e: Value,
}

#[derive(Deserialize)]
struct ToFile {
    file_name: std::path::PathBuf,
    i: Value,
}

#[derive(Deserialize)]
struct Ids {
    i: Value,
}

#[derive(Deserialize)]
struct Collect {
    res: Value,
    i: Value,
}

#[derive(Deserialize)]
struct FooBar {
    foo: Value,
    #[expect(dead_code, reason = "the exception is made of the first alone, as in the suite")]
    bar: Value,
}

#[derive(Deserialize)]
struct Model {
    data: Point,
}

#[derive(Deserialize)]
struct Point {
    x: i64,
    y: i64,
}

pub(super) fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    sums(functions)?;
    waits(functions)?;
    failures(functions)?;
    let plain = || Options::DEFAULT;
    functions.add(&named("identity"), plain(), |One { x }, _| async move { Ok(x) })?;
    functions.add(&named("return_exception"), plain(), |Raised { e }, _| async move {
        Ok(json!([e, true]))
    })?;
    functions.add(&named("replaced_with_me"), plain(), |_: Nothing, _| async { Ok(true) })?;
    functions.add("celery.ping", plain(), |_: Nothing, _| async { Ok("pong") })?;
    functions.add(&named("print_unicode"), plain(), |unicode: Unicode, _| async move {
        eprintln!("{}", text(&unicode.log_message));
        println!("{}", text(&unicode.print_message));
        Ok(())
    })?;
    functions.add(&named("ids"), plain(), |Ids { i }, context: Context| async move {
        Ok(ids(&context, &i))
    })?;
    functions.add(
        &named("collect_ids"),
        plain(),
        |Collect { res, i }, context: Context| async move { Ok(json!([res, ids(&context, &i)])) },
    )?;
    functions.add(
        &named("write_to_file_and_return_int"),
        plain(),
        |to: ToFile, _| async move {
            let mut file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(to.file_name)?;
            writeln!(file, "{}", to.i)?;
            Ok(to.i)
        },
    )
}

fn ids(context: &Context, i: &Value) -> Value {
    let details = context.details();
    json!([details.root_id, details.parent_id, i])
}

fn sums(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let plain = || Options::DEFAULT;
    let ignored = Options {
        ignore_result: true,
        ..Options::DEFAULT
    };
    functions.add(&named("add"), plain(), |Three { x, y, z }, _| async move {
        let sum = plus(&x, &y)?;
        if truth(&z) { plus(&sum, &z) } else { Ok(sum) }
    })?;
    functions.add(&named("add_not_typed"), plain(), |Two { x, y }, _| async move {
        plus(&x, &y)
    })?;
    functions.add(&named("add_ignore_result"), ignored, |Two { x, y }, _| async move {
        plus(&x, &y)
    })?;
    functions.add(&named("add_with_result"), plain(), |Two { x, y }, _| async move {
        plus(&x, &y)
    })?;
    functions.add(&named("mul"), plain(), |Two { x, y }, _| async move { times(&x, &y) })?;
    functions.add(&named("tsum"), plain(), |Numbers { nums }, _| async move { sum(&nums) })?;
    functions.add(&named("xsum"), plain(), |Numbers { nums }, _| async move {
        sum(&flat(&nums)?)
    })?;
    for name in ["add_pydantic", "add_pydantic_string_annotations"] {
        functions.add(&named(name), plain(), |Model { data }, _| async move {
            Ok(json!({"result": data.x + data.y}))
        })?;
    }
    Ok(())
}

/// Lists in the list become their sums.
fn flat(values: &Value) -> Result<Value, Failure> {
    let Value::Array(values) = values else {
        return sum(values);
    };
    let values = values.iter().map(|value| match value {
        Value::Array(_) => sum(value),
        other => Ok(other.clone()),
    });
    values.collect::<Result<Vec<Value>, Failure>>().map(Value::Array)
}

fn waits(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let plain = || Options::DEFAULT;
    functions.add(&named("delayed_sum"), plain(), |delayed: Delayed, _| async move {
        tokio::time::sleep(seconds(delayed.pause_time)?).await;
        sum(&delayed.numbers)
    })?;
    functions.add(
        &named("delayed_sum_with_soft_guard"),
        plain(),
        |delayed: Delayed, context: Context| async move {
            let pause = seconds(delayed.pause_time)?;
            tokio::select! {
                () = tokio::time::sleep(pause) => sum(&delayed.numbers),
                () = context.soft_limit() => Ok(0.into()),
            }
        },
    )?;
    functions.any(
        &named("sleeping"),
        plain(),
        |Arguments { args, kwargs }, _| async move {
            let Some(i) = args.first().or_else(|| kwargs.get("i")) else {
                let missing = "sleeping() missing 1 required positional argument: 'i'";
                return Err(Failure::type_error(missing));
            };
            tokio::time::sleep(seconds(i.as_f64().unwrap_or(-1.0))?).await;
            Ok(())
        },
    )?;
    let (hard, soft) = (std::time::Duration::from_secs(1), std::time::Duration::from_secs(2));
    let limited = Options {
        time_limit: Some(hard),
        soft_time_limit: Some(soft),
        ..Options::DEFAULT
    };
    functions.add(
        &named("soft_time_limit_must_exceed_time_limit"),
        limited,
        |_: Nothing, _| async { Ok(()) },
    )
}

fn failures(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let plain = || Options::DEFAULT;
    functions.any(&named("raise_error"), plain(), |_, _| async move {
        Err::<(), _>(Failure::value_error("deliberate error"))
    })?;
    functions.any(&named("fail"), plain(), |Arguments { args, kwargs }, _| async move {
        no_keywords("fail", &kwargs)?;
        let mut said = vec![Value::from("Task expected to fail")];
        said.extend(args);
        Err::<(), Failure>(expected(said).into())
    })?;
    functions.add(
        &named("fail_unpickleable"),
        plain(),
        |FooBar { foo, .. }, _| async move { Err::<(), Failure>(unpickleable(&foo).into()) },
    )
}

/// A function with `*args` alone takes no keyword.
fn no_keywords(function: &str, kwargs: &Map<String, Value>) -> Result<(), Exception> {
    match kwargs.keys().next() {
        None => Ok(()),
        Some(name) => Err(Exception::type_error(format!(
            "{function}() got an unexpected keyword argument '{name}'"
        ))),
    }
}
