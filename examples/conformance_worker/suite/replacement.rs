//! Tasks that put others in their place, and those that send others.

use orchestra::canvas::{chain, chord, group};
use orchestra::client::Signature;
use orchestra::task::{Arguments, Context, Failure, Options, RegisterError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::effects::store;
use super::named;
use crate::functions::Functions;
use crate::python::truth;

#[derive(Deserialize)]
struct Nothing;

#[derive(Deserialize)]
struct Two {
    x: Value,
    y: Value,
}

#[derive(Deserialize)]
struct ToAll {
    nums: Vec<Value>,
    val: Value,
}

#[derive(Deserialize)]
struct Second {
    #[serde(default)]
    state: Value,
}

#[derive(Deserialize)]
struct Nesting {
    replacements: u64,
    #[serde(default)]
    nesting: Option<Vec<u64>>,
}

#[derive(Deserialize)]
struct Stamped {
    #[serde(default)]
    replace_with: Option<Signature>,
}

fn s(short: &str) -> Signature {
    Signature::new(named(short))
}

fn with_args(mut signature: Signature, args: Vec<Value>) -> Signature {
    for arg in args {
        signature = signature.arg(arg);
    }
    signature
}

fn replaced<T>(signature: Signature) -> Result<T, Failure> {
    Err(Failure::replace(signature))
}

pub(super) fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let plain = || Options::DEFAULT;
    functions.add(&named("add_replaced"), plain(), |Two { x, y }, _| async move {
        replaced::<()>(s("add").arg(x).arg(y))
    })?;
    functions.add(
        &named("add_replaced_with_chain"),
        plain(),
        |Two { x, y }, _| async move { replaced::<()>(chain([s("add").arg(x).arg(y), s("identity")])) },
    )?;
    functions.any(&named("replace_with_chain"), plain(), |arguments, _| async move {
        let (steps, echo) = echoing(arguments, "identity");
        replaced::<()>(steps.link(echo))
    })?;
    functions.any(
        &named("replace_with_chain_which_raises"),
        plain(),
        |arguments, _| async move {
            let (steps, echo) = echoing(arguments, "raise_error");
            replaced::<()>(steps.link_error(echo))
        },
    )?;
    functions.any(&named("replace_with_empty_chain"), plain(), |_, _| async move {
        replaced::<()>(chain([]))
    })?;
    functions.any(
        &named("replace_with_chain_which_contains_a_group"),
        plain(),
        |_, _| async move {
            let members = group([s("add").arg(1), s("add").arg(1)]);
            replaced::<()>(chain([s("add").arg(1).arg(2), members]))
        },
    )?;
    functions.add(&named("add_to_all"), plain(), |ToAll { nums, val }, _| async move {
        replaced::<()>(group(adds(&nums, &val)))
    })?;
    functions.any(
        &named("fail_replaced"),
        plain(),
        |Arguments { args, .. }, _| async move { replaced::<()>(with_args(s("fail"), args).immutable()) },
    )?;
    functions.add(
        &named("replace_with_stamped_task"),
        plain(),
        |Stamped { replace_with }, _| async move {
            let replacement = replace_with.unwrap_or_else(|| s("replaced_with_me"));
            replaced::<()>(replacement.stamp("StampOnReplace", "This is the replaced task"))
        },
    )?;
    functions.add(
        &named("add_to_all_to_chord"),
        plain(),
        |ToAll { nums, val }, context: Context| async move {
            for add in adds(&nums, &val) {
                context.add_to_chord(add).await?;
            }
            Ok(0)
        },
    )?;
    functions.add(
        &named("add_chord_to_chord"),
        plain(),
        |ToAll { nums, val }, context: Context| async move {
            context.add_to_chord(chord(adds(&nums, &val), s("tsum"))).await?;
            Ok(0)
        },
    )?;
    functions.add(
        &named("build_chain_inside_task"),
        plain(),
        |_: Nothing, context: Context| async move {
            let members = group([s("add").arg(3), s("add").arg(4)]);
            let steps = chain([s("add").arg(1).arg(1), s("add").arg(2), members, s("add").arg(5)]);
            Ok(context.apply(steps).await?.handle().clone())
        },
    )?;
    functions.add(
        &named("record_replaced_task_nesting"),
        plain(),
        |Nesting { replacements, nesting }, context: Context| async move {
            let message = context.details().message.clone();
            let own = message
                .as_ref()
                .map_or(0, |message| u64::from(message.headers.replaced_task_nesting));
            let mut nesting = nesting.unwrap_or_default();
            nesting.push(own);
            if replacements == 0 {
                return Ok(nesting);
            }
            let next = s("record_replaced_task_nesting").arg(replacements - 1).arg(nesting);
            let reply_to = message.and_then(|message| message.properties.reply_to.clone());
            replaced(next.option("reply_to", reply_to))
        },
    )?;
    second_order(functions, "second_order_replace1", "A", || s("second_order_replace2"))?;
    second_order(functions, "second_order_replace2", "B", || {
        s("redis_echo").arg("In/Out C")
    })
}

/// Pushes "In …", replaces itself by a chain of `inner` and itself with `state`, and then pushes "Out …".
fn second_order(
    functions: &mut Functions<'_>,
    short: &'static str,
    letter: &'static str,
    inner: fn() -> Signature,
) -> Result<(), RegisterError> {
    let store = store();
    functions.add(&named(short), Options::DEFAULT, move |Second { state }, _| {
        let store = store.clone();
        async move {
            if truth(&state) {
                return Ok(store.push("redis-echo", &format!("Out {letter}")).await?);
            }
            store.push("redis-echo", &format!("In {letter}")).await?;
            let again = s(short).kwarg("state", true).immutable();
            replaced(chain([inner(), again]))
        }
    })
}

/// A chain that begins with the arguments, and the callback that says that it was run.
fn echoing(arguments: Arguments, last: &str) -> (Signature, Signature) {
    let Arguments { args, kwargs } = arguments;
    let steps = chain([with_args(s("identity"), args), s(last)]);
    let echo = match message(&kwargs) {
        Some(message) => s("redis_echo").arg(message).immutable(),
        None => s("redis_echo"),
    };
    (steps, echo)
}

fn message(kwargs: &Map<String, Value>) -> Option<Value> {
    kwargs.get("link_msg").filter(|message| truth(message)).cloned()
}

fn adds(nums: &[Value], val: &Value) -> Vec<Signature> {
    nums.iter().map(|num| s("add").arg(num).arg(json!(val))).collect()
}
