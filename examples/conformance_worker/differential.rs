//! The tasks of the differential test: those of `tests/differential/tasks.py`, which says what they are for.
//!
//! They write to the Redis at `DIFFERENTIAL_URL`.

use std::time::Duration;

use orchestra::client::Signature;
use orchestra::task::{Arguments, Context, Exception, Failure, Options, RegisterError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::functions::Functions;
use crate::store::Store;

/// Between tries.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Deserialize)]
struct One {
    x: String,
}

#[derive(Deserialize)]
struct Two {
    x: String,
    y: Value,
}

#[derive(Deserialize)]
struct Errback {
    request_id: Value,
    at: String,
}

#[derive(Deserialize)]
struct Inline {
    request: Value,
    exc: Exception,
    #[expect(dead_code, reason = "part of the call")]
    traceback: Value,
    at: String,
}

/// What a task was called with; `at` is taken out of `named`.
struct Call {
    args: Vec<Value>,
    named: Map<String, Value>,
    label: String,
    context: Context,
}

impl Call {
    /// The label, then the arguments.
    fn echo(self) -> Value {
        std::iter::once(self.label.into()).chain(self.args).collect()
    }

    fn signature(&mut self, name: &str) -> Result<Signature, Failure> {
        Ok(serde_json::from_value(self.named.remove(name).unwrap_or_default())?)
    }

    fn number(&self, name: &str) -> u64 {
        self.named.get(name).and_then(Value::as_u64).unwrap_or_default()
    }

    fn fails(&self) -> Exception {
        Exception::value_error(format!("{} fails", self.label))
    }
}

/// `diff.*`.
pub fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let url = std::env::var("DIFFERENTIAL_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/0".to_owned());
    let store = Store::new(&url);
    let plain = || Options::DEFAULT;
    let ignored = Options {
        ignore_result: true,
        ..plain()
    };
    add(functions, &store, "echo", plain(), async |call| Ok(call.echo()))?;
    add(functions, &store, "number", plain(), async |call| {
        Ok(call.label.len().into())
    })?;
    add(functions, &store, "ignored", ignored, async |call| Ok(call.echo()))?;
    add(functions, &store, "fail", plain(), async |call| {
        Err(call.fails().into())
    })?;
    retries(functions, &store)?;
    add(functions, &store, "replace", plain(), async |mut call| {
        Err(Failure::replace(call.signature("by")?))
    })?;
    add(functions, &store, "spawn", plain(), async |mut call| {
        let signature = call.signature("call")?;
        call.context.apply(signature).await?;
        Ok(call.echo())
    })?;
    add(functions, &store, "enlarge", plain(), async |mut call| {
        let signature = call.signature("call")?;
        call.context.add_to_chord(signature).await?;
        Ok(call.echo())
    })?;
    add(functions, &store, "ignore", plain(), async |_| Err(Failure::Ignore))?;
    add(functions, &store, "reject", plain(), async |_| {
        Err(Failure::Reject {
            requeue: false,
            reason: "not wanted".into(),
        })
    })?;
    errbacks(functions, &store)?;
    items(functions, &store)
}

fn retries(functions: &mut Functions<'_>, store: &Store) -> Result<(), RegisterError> {
    let twice = Options {
        max_retries: Some(2),
        ..Options::DEFAULT
    };
    add(functions, store, "retry", twice, async |call| {
        if u64::from(call.context.retries()) >= call.number("times") {
            return Ok(call.echo());
        }
        let cause = call.named.get("cause").is_some_and(|cause| cause == true);
        Err(Failure::Retry {
            after: Some(PAUSE),
            cause: cause.then(|| Exception::builtin("KeyError", &*call.label)),
            arguments: None,
        })
    })?;
    let automatic = Options {
        autoretry: true,
        max_retries: Some(1),
        default_retry_delay: PAUSE,
        ..Options::DEFAULT
    };
    add(functions, store, "auto", automatic, async |call| {
        if u64::from(call.context.retries()) >= call.number("times") {
            return Ok(call.echo());
        }
        Err(call.fails().into())
    })
}

fn errbacks(functions: &mut Functions<'_>, store: &Store) -> Result<(), RegisterError> {
    let own = store.clone();
    functions.add(
        "diff.errback",
        Options::DEFAULT,
        move |Errback { request_id, at }, context| {
            let store = own.clone();
            async move {
                let label = note(&store, Some(&context), &at, std::slice::from_ref(&request_id)).await?;
                Ok(json!([label, request_id]))
            }
        },
    )?;
    let own = store.clone();
    functions.add(
        "diff.errback_fails",
        Options::DEFAULT,
        move |Errback { request_id, at }, context| {
            let store = own.clone();
            async move {
                let label = note(&store, Some(&context), &at, &[request_id]).await?;
                Err::<(), _>(Failure::value_error(format!("{label} fails")))
            }
        },
    )?;
    let inline = Options {
        errback_inline: true,
        ..Options::DEFAULT
    };
    let own = store.clone();
    functions.add("diff.errback_inline", inline, move |call: Inline, _| {
        let store = own.clone();
        async move {
            let Inline { request, exc, at, .. } = call;
            let failed = request.get("id").cloned().unwrap_or_default();
            note(&store, None, &at, &[failed, exc.repr().into()]).await.map(drop)
        }
    })
}

/// What `celery.map` and its like call.
fn items(functions: &mut Functions<'_>, store: &Store) -> Result<(), RegisterError> {
    let own = store.clone();
    functions.add("diff.one", Options::DEFAULT, move |One { x }, _| {
        let store = own.clone();
        async move {
            let label = note(&store, None, &x, &[]).await?;
            Ok([label.clone(), label])
        }
    })?;
    let own = store.clone();
    functions.add("diff.two", Options::DEFAULT, move |Two { x, y }, _| {
        let store = own.clone();
        async move {
            let label = note(&store, None, &x, std::slice::from_ref(&y)).await?;
            Ok(json!([label, y]))
        }
    })
}

/// A task that takes any arguments, and `at`.
fn add<R>(
    functions: &mut Functions<'_>,
    store: &Store,
    short: &str,
    options: Options,
    run: impl Fn(Call) -> R + Clone + Send + Sync + 'static,
) -> Result<(), RegisterError>
where
    R: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    let store = store.clone();
    functions.any(
        &format!("diff.{short}"),
        options,
        move |Arguments { args, mut kwargs }, context| {
            let (store, run) = (store.clone(), run.clone());
            async move {
                let at = kwargs.remove("at").unwrap_or_default();
                let at = at.as_str().unwrap_or_default();
                let label = note(&store, Some(&context), at, &args).await?;
                let call = Call {
                    args,
                    named: kwargs,
                    label,
                    context,
                };
                run(call).await
            }
        },
    )
}

/// Writes down that a task ran: the label.
async fn note(store: &Store, context: Option<&Context>, at: &str, args: &[Value]) -> Result<String, Failure> {
    let (canvas, label) = at.split_once('.').unwrap_or_default();
    let details = context.map(Context::details);
    let stamps = details
        .and_then(|details| details.message.as_ref())
        .and_then(|message| message.headers.stamps.clone());
    let entry = json!({
        "by": "rust",
        "task": label,
        "id": details.map(|details| &details.id),
        "root": details.and_then(|details| details.root_id.as_deref()),
        "parent": details.and_then(|details| details.parent_id.as_deref()),
        "group": details.and_then(|details| details.group.as_deref()),
        "retries": details.map_or(0, |details| details.retries),
        "args": args,
        "stamps": stamps.unwrap_or_default(),
    });
    store.push(&format!("runs:{canvas}"), &entry.to_string()).await?;
    Ok(label.to_owned())
}
