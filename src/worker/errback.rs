//! Error callbacks that run where the failure is handled (`Backend._call_task_errbacks`): called with the failed task's
//! request, the exception and the traceback. No message, no place in the pool, no result.

use serde_json::json;
use tokio::sync::mpsc;
use tracing::error;

use super::follow::ErrbackCall;
use super::request::Request;
use super::services::spawn_run;
use crate::task::{Context, Entry, Failure};
use crate::wire::{Body, Json, Kwargs};

/// Those that run. A worker that stops waits for them.
pub(crate) struct Errbacks {
    /// Each has a clone while it runs.
    run: mpsc::Sender<()>,
    /// Ends with the last of them; nothing comes through it.
    ended: mpsc::Receiver<()>,
}

impl Default for Errbacks {
    fn default() -> Self {
        let (run, ended) = mpsc::channel(1);
        Self { run, ended }
    }
}

impl Errbacks {
    /// Whether none runs.
    pub(crate) fn are_done(&self) -> bool {
        self.run.strong_count() == 1
    }

    /// Waits until none runs.
    pub(crate) async fn done(&mut self) {
        let Self { run, mut ended } = std::mem::take(self);
        drop(run);
        ended.recv().await;
    }
}

/// Calls it and logs what goes wrong.
pub(crate) fn call(entry: Entry, call: &ErrbackCall, request: Option<&Request>, context: Context, running: &Errbacks) {
    let name = entry.name.clone();
    let body = match body(call, request) {
        Ok(body) => body,
        Err(error) => {
            error!("Errback {name:?} cannot be called: {error}");
            return;
        }
    };
    let failed = call.failed.clone();
    let running = running.run.clone();
    spawn_run(async move {
        let _running = running;
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
