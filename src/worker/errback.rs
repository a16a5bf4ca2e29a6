//! Error callbacks that run where the failure is handled (`Backend._call_task_errbacks`): called with the failed task's
//! request, the exception and the traceback. No message, no place in the pool, no result.

use serde_json::json;
use tracing::error;

use super::follow::ErrbackCall;
use super::request::Request;
use super::services::spawn_run;
use crate::task::{Context, Entry, Failure};
use crate::wire::{Body, Json, Kwargs};

/// Calls it and logs what goes wrong.
pub(crate) fn call(entry: Entry, call: &ErrbackCall, request: Option<&Request>, context: Context) {
    let name = entry.name.clone();
    let body = match body(call, request) {
        Ok(body) => body,
        Err(error) => {
            error!("Errback {name:?} cannot be called: {error}");
            return;
        }
    };
    let failed = call.failed.clone();
    spawn_run(async move {
        let ended = match entry.start(&body, context) {
            Ok(run) => run.await.map(drop),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = ended {
            let why = match failure {
                Failure::Fail(exception) => exception.repr(),
                other => format!("{other:?}"),
            };
            error!(task.id = failed, "Errback {name:?} raised an exception: {why}");
        }
    });
}

fn body(call: &ErrbackCall, request: Option<&Request>) -> Result<Body, String> {
    let ErrbackCall {
        errback,
        failed,
        exception,
    } = call;
    let mut args = Vec::new();
    if !errback.immutable {
        let headers = request.map(|request| &request.message.headers);
        let facts = json!({
            "id": failed,
            "task": headers.map(|headers| &headers.task),
            "root_id": headers.and_then(|headers| headers.root_id.as_ref()),
            "parent_id": headers.and_then(|headers| headers.parent_id.as_ref()),
            "group": headers.and_then(|headers| headers.group.as_ref()),
            "retries": headers.map_or(0, |headers| headers.retries),
            "argsrepr": headers.and_then(|headers| headers.argsrepr.as_ref()),
            "kwargsrepr": headers.and_then(|headers| headers.kwargsrepr.as_ref()),
        });
        let encode = |error: serde_json::Error| error.to_string();
        args.push(Json::new(&facts).map_err(encode)?);
        args.push(Json::new(exception).map_err(encode)?);
        args.push(Json::string(&exception.traceback_text()));
    }
    args.extend(errback.args.iter().cloned());
    let kwargs: &Kwargs = &errback.kwargs;
    let text = serde_json::to_string(&(args, kwargs, ())).map_err(|error| error.to_string())?;
    Body::parse(text).map_err(|error| error.to_string())
}
