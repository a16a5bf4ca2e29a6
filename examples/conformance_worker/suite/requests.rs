//! Tasks that tell what their request says.

use std::time::Duration;

use orchestra::task::{Context, Options, RegisterError};
use orchestra::wire::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use super::named;
use crate::functions::Functions;

#[derive(Deserialize)]
struct Nothing;

fn read<T>(context: &Context, read: impl FnOnce(&Message) -> T) -> Option<T> {
    context.details().message.as_deref().map(read)
}

pub(super) fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let plain = || Options::DEFAULT;
    functions.any(&named("return_priority"), plain(), |_, context| async move {
        let priority = read(&context, |message| message.properties.priority());
        Ok(format!("Priority: {}", priority.unwrap_or(0)))
    })?;
    functions.add(
        &named("return_request_eta"),
        plain(),
        |_: Nothing, context: Context| async move { Ok(read(&context, |message| message.headers.eta.clone())) },
    )?;
    functions.any(&named("return_properties"), plain(), |_, context| async move {
        Ok(read(&context, |message| serde_json::to_value(&message.properties)).transpose()?)
    })?;
    functions.add(
        &named("return_request_time_limits"),
        plain(),
        |_: Nothing, context: Context| async move { Ok(limits(&context, None, None)) },
    )?;
    let declared = Options {
        time_limit: Some(Duration::from_secs(60)),
        soft_time_limit: Some(Duration::from_secs(45)),
        ..plain()
    };
    functions.add(
        &named("task_with_declared_time_limits"),
        declared,
        |_: Nothing, context: Context| async move { Ok(limits(&context, Some(60), Some(45))) },
    )
}

/// The limits of the message, else those of the task.
fn limits(context: &Context, hard: Option<u64>, soft: Option<u64>) -> Value {
    let own = read(context, |message| message.headers.timelimit).unwrap_or_default();
    let seconds = |limit: Option<Duration>, or: Option<u64>| limit.map(|limit| limit.as_secs()).or(or);
    json!({"time_limit": seconds(own.hard, hard), "soft_time_limit": seconds(own.soft, soft)})
}
