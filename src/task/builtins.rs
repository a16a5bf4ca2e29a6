//! The tasks that every Celery worker has (`celery.app.builtins`).

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Arguments, BoxFuture, Context, DynTask, Failure, Options, RegisterError, Registry};
use crate::canvas::{self, chord};
use crate::wire::{Body, Exception, Json, Signature};

/// What a built-in task does with its arguments.
type Run = fn(Arguments, Context, Arc<Registry>) -> BoxFuture<'static, Result<Value, Failure>>;

struct Builtin {
    name: &'static str,
    /// The tasks that `celery.map` can call.
    tasks: Arc<Registry>,
    run: Run,
}

impl DynTask for Builtin {
    fn name(&self) -> &str {
        self.name
    }

    fn options(&self) -> Options {
        let mut options = Options::DEFAULT;
        if self.name == UNLOCK {
            (options.max_retries, options.ignore_result) = (None, true);
        }
        options.acks_late = self.name == COUNT;
        options
    }

    fn run(&self, arguments: Arguments, context: Context) -> BoxFuture<'static, Result<Value, Failure>> {
        (self.run)(arguments, context, self.tasks.clone())
    }
}

const UNLOCK: &str = "celery.chord_unlock";

/// Ours: a member of a chord, acknowledged before it ran, whose worker died when it had ended and was not counted. It
/// ends as the member did, and is counted as that.
pub(crate) const COUNT: &str = "orchestra.count";

const BUILTINS: [(&str, Run); 10] = [
    (COUNT, |arguments, _, _| Box::pin(async { ended(arguments) })),
    ("celery.accumulate", |arguments, _, _| {
        Box::pin(async { accumulate(arguments) })
    }),
    ("celery.backend_cleanup", |_, _, _| {
        // Redis forgets by itself.
        Box::pin(async { Ok(Value::Null) })
    }),
    ("celery.chain", |_, _, _| {
        Box::pin(async {
            let text = "chain is not a real task";
            Err(Exception::builtin("NotImplementedError", text).into())
        })
    }),
    ("celery.map", |arguments, context, tasks| {
        Box::pin(map(arguments, context, tasks, "xmap", |item| Ok(vec![item])))
    }),
    ("celery.starmap", |arguments, context, tasks| {
        Box::pin(map(arguments, context, tasks, "xstarmap", |item| match item {
            Value::Array(items) => Ok(items),
            _ => Err(Failure::type_error("Value after * must be an iterable")),
        }))
    }),
    ("celery.chunks", |arguments, context, _| {
        Box::pin(chunks(arguments, context))
    }),
    (UNLOCK, |arguments, context, _| {
        Box::pin(super::chord_unlock::run(arguments, context))
    }),
    ("celery.group", |arguments, context, _| {
        Box::pin(start_group(arguments, context))
    }),
    ("celery.chord", |arguments, context, _| {
        Box::pin(start_chord(arguments, context))
    }),
];

/// Adds the built-in tasks that are not there yet.
///
/// # Errors
/// Never: names that are taken are left out.
pub(crate) fn register(registry: &mut Registry) -> Result<(), RegisterError> {
    let tasks = Arc::new(registry.clone());
    for (name, run) in BUILTINS {
        if registry.get(name).is_none() {
            let tasks = tasks.clone();
            registry.register_dyn(Arc::new(Builtin { name, tasks, run }))?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Ended {
    succeeded: bool,
    value: Value,
}

fn ended(arguments: Arguments) -> Result<Value, Failure> {
    let Ended { succeeded, value } = arguments.bind("count")?;
    if succeeded {
        return Ok(value);
    }
    let exception: Exception = serde_json::from_value(value)?;
    Err(exception.into())
}

/// Its arguments as a list, or the one at `index`: the body of the chord that a replacing group becomes.
fn accumulate(arguments: Arguments) -> Result<Value, Failure> {
    let Arguments { mut args, kwargs } = arguments;
    match kwargs.get("index") {
        None | Some(Value::Null) => Ok(Value::Array(args)),
        Some(index) => {
            let at = index.as_i64().and_then(|index| {
                // From the end, as Python counts.
                let length = i64::try_from(args.len()).ok()?;
                usize::try_from(if index < 0 { index + length } else { index }).ok()
            });
            match at.filter(|at| *at < args.len()) {
                Some(at) => Ok(args.swap_remove(at)),
                None => Err(Exception::builtin("IndexError", "tuple index out of range").into()),
            }
        }
    }
}

#[derive(Deserialize)]
struct MapArguments {
    task: Signature,
    it: Vec<Value>,
}

/// Calls a task for each item, one after the other, in this process.
async fn map(
    arguments: Arguments,
    context: Context,
    tasks: Arc<Registry>,
    name: &str,
    args: fn(Value) -> Result<Vec<Value>, Failure>,
) -> Result<Value, Failure> {
    let MapArguments { task, it } = arguments.bind(name)?;
    let entry = tasks.get(&task.task).ok_or_else(|| super::not_registered(&task.task))?;
    let mut results = Vec::with_capacity(it.len().min(1024));
    for item in it {
        let text = json!([args(item)?, {}, null]).to_string();
        let body = Body::parse(text).map_err(|error| Failure::value_error(error.to_string()))?;
        let result = entry.start(&body, context.clone())?.await?;
        results.push(serde_json::from_str(result.get())?);
    }
    Ok(Value::Array(results))
}

#[derive(Deserialize)]
struct ChunkArguments {
    task: Signature,
    it: Vec<Value>,
    n: usize,
}

/// A group of `celery.starmap`, with `n` items each.
async fn chunks(arguments: Arguments, context: Context) -> Result<Value, Failure> {
    let ChunkArguments { task, it, n } = arguments.bind("chunks")?;
    if n == 0 {
        return Err(Failure::value_error("n must be at least 1"));
    }
    let applied = context.apply(canvas::chunks(&task, it, n)).await?;
    Ok(serde_json::to_value(applied.handle())?)
}

#[derive(Deserialize)]
struct GroupArguments {
    tasks: Vec<Signature>,
    result: Value,
    group_id: String,
    partial_args: Vec<Json>,
    #[serde(default)]
    #[expect(dead_code, reason = "part of the call; children are always recorded")]
    add_to_parent: Option<bool>,
}

/// Of old clients: sends the tasks of a group.
async fn start_group(arguments: Arguments, context: Context) -> Result<Value, Failure> {
    let GroupArguments {
        tasks,
        result,
        group_id,
        partial_args,
        ..
    } = arguments.bind("group")?;
    for mut task in tasks {
        if !task.immutable {
            task.args.splice(0..0, partial_args.iter().cloned());
        }
        task.options.set_str("group_id", &group_id);
        context.apply(task).await?;
    }
    Ok(result)
}

/// Of old clients: starts a chord.
async fn start_chord(arguments: Arguments, context: Context) -> Result<Value, Failure> {
    let mut kwargs: Map<String, Value> = arguments.kwargs;
    let mut args = arguments.args.into_iter();
    let mut take = |name: &str| args.next().or_else(|| kwargs.remove(name)).unwrap_or_default();
    let header: Vec<Signature> = serde_json::from_value(take("header"))?;
    let body: Signature = serde_json::from_value(take("body"))?;
    let partial: Vec<Json> = serde_json::from_value::<Option<_>>(take("partial_args"))?.unwrap_or_default();
    let mut chord = chord(header, body);
    chord.args = partial;
    let applied = context.apply(chord).await?;
    Ok(serde_json::to_value(applied.handle())?)
}
