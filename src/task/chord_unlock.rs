//! `celery.chord_unlock` (`celery.app.builtins`): where results cannot count the parts of a chord, clients send it to
//! look again and again whether all are there. With Redis nobody needs it; whoever sends it is served.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use super::{Arguments, Context, Failure};
use crate::canvas::ResultNode;
use crate::client::{Client, Error};
use crate::wire::{Exception, Json, Kind, Rest, Signature};

#[derive(Deserialize)]
struct Unlock {
    #[expect(dead_code, reason = "part of the call; the results say what is waited for")]
    group_id: String,
    callback: Signature,
    #[serde(default)]
    interval: Option<f64>,
    #[serde(default)]
    max_retries: Option<u32>,
    #[serde(default)]
    result: Option<Vec<Json>>,
}

/// Looks once: not ready is a retry, ready sends the body, a failed part fails it.
pub(super) async fn run(mut arguments: Arguments, context: Context) -> Result<Value, Failure> {
    // Of the message, not for us; Celery's own keyword for its retries among them.
    arguments.kwargs.retain(|name, _| FIELDS.contains(&name.as_str()));
    let call: Unlock = arguments.bind("unlock_chord")?;
    let client = context.client().ok_or(Error::NoBackend)?;
    let parts = call.result.iter().flatten();
    let parts: Vec<ResultNode> = parts.filter_map(|part| ResultNode::read_alone(part.get())).collect();
    let mut ready = true;
    for id in parts.iter().flat_map(leaves) {
        ready &= client.result(id).state().await?.is_ready();
    }
    if !ready {
        if call.max_retries.is_some_and(|most| context.retries() >= most) {
            let text = "chord_unlock could not be retried: MaxRetriesExceededError()";
            fail(&context, client, &call.callback, &Exception::celery("ChordError", text)).await?;
            let text = format!("Can't retry celery.chord_unlock[{}]", context.id());
            return Err(Exception::celery("MaxRetriesExceededError", text).into());
        }
        return Err(Failure::Retry {
            after: Some(match call.interval {
                Some(seconds) => Duration::try_from_secs_f64(seconds)?,
                None => client.chord_retry_interval(),
            }),
            cause: None,
            arguments: None,
        });
    }
    let mut results = Vec::with_capacity(parts.len());
    for part in &parts {
        match value(client, part).await {
            Ok(result) => results.push(result),
            Err((id, error)) => {
                let text = format!("Dependency {id} raised {}", error.repr());
                fail(&context, client, &call.callback, &Exception::celery("ChordError", text)).await?;
                return Ok(Value::Null);
            }
        }
    }
    let mut body = call.callback;
    if !body.immutable {
        body.args.insert(0, Json::list(&results));
    }
    context.apply(body).await?;
    Ok(Value::Null)
}

const FIELDS: [&str; 5] = ["group_id", "callback", "interval", "max_retries", "result"];

fn leaves(node: &ResultNode) -> Vec<String> {
    match &node.children {
        Some(children) => children.iter().flat_map(leaves).collect(),
        None => vec![node.id.clone()],
    }
}

/// The result of a part, or the list of those of a group; or which one failed, and how.
async fn value(client: &Client, node: &ResultNode) -> Result<Json, (String, Exception)> {
    if let Some(children) = &node.children {
        let mut results = Vec::with_capacity(children.len());
        for child in children {
            results.push(Box::pin(value(client, child)).await?);
        }
        return Ok(Json::list(&results));
    }
    // It is there: nothing is waited for.
    let got = client.result(&node.id).get::<Json>(Duration::from_secs(3)).await;
    got.map_err(|error| {
        let exception = match error {
            Error::Failed { exception, .. } => exception,
            Error::Revoked(why) => Exception::celery("TaskRevokedError", why),
            other => Exception::runtime_error(other.to_string()),
        };
        (node.id.clone(), exception)
    })
}

/// The body fails without having run, and what is chained to it; its error callbacks are sent.
async fn fail(context: &Context, client: &Client, body: &Signature, error: &Exception) -> Result<(), Failure> {
    let members = match &body.kind {
        Kind::Group(tasks) => tasks.as_slice(),
        _ => std::slice::from_ref(body),
    };
    let rest = body.options.chain.as_ref().map_or(Ok(Vec::new()), Rest::steps);
    let rest = rest.unwrap_or_else(|error| {
        warn!(%error, "a step that will not run cannot be read: those of its chain have no result");
        Vec::new()
    });
    for task in members.iter().chain(&rest) {
        let Some(id) = task.options.str("task_id") else {
            continue;
        };
        client.fail(&id, error).await?;
        for errback in &task.options.link_error {
            let mut errback = errback.clone();
            if !errback.immutable {
                errback.args.insert(0, Json::string(&id));
            }
            context.apply(errback).await?;
        }
    }
    Ok(())
}
