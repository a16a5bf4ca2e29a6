//! Runs one task to its outcome: binds its arguments, watches its limits, and turns a panic into that task's failure
//! (`celery.app.trace`).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::value::RawValue;

use super::process::Running;
use super::request::{Outcome, Request};
use super::services::{panic_text, spawn_blocking};
use crate::task::{Context, Failure, Run};
use crate::wire::{Exception, Json, State, json};

/// Where a run takes place.
pub(crate) enum Place {
    /// In the worker's own process.
    Here,
    /// In a process of its own.
    Child(Box<Running>),
    /// It has run here before, and succeeded.
    Known,
    /// There is none; why.
    Nowhere(String),
}

/// Runs the task, here or in a child. When `context` is cancelled the run is dropped where it stands, which closes what
/// it holds, and the answer is `None`.
pub(crate) async fn trace(request: Arc<Request>, context: Context, place: Place) -> Option<Outcome> {
    if request.may_be_done
        && !matches!(place, Place::Known)
        && let Some(done) = Box::pin(done_before(&request, &context)).await
    {
        return Some(done);
    }
    match place {
        Place::Known => Some(Outcome::Known),
        Place::Here => trace_here(request, context).await,
        Place::Child(child) => Box::pin(child.run(&request, &context)).await,
        Place::Nowhere(why) => Some(Outcome::Lost(why)),
    }
}

async fn trace_here(request: Arc<Request>, context: Context) -> Option<Outcome> {
    let (hard, soft) = request.limits();
    let mut run = match begin(&request, &context) {
        Ok(run) => run,
        Err(outcome) => return Some(outcome),
    };
    if request.policy.blocking {
        let handle = spawn_blocking(run);
        run = Box::pin(async move {
            match handle.await {
                Ok(result) => result,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => Err(Failure::Ignore),
            }
        });
    }
    let mut guarded = AssertUnwindSafe(&mut run).catch_unwind();
    tokio::select! {
        // A result that is there wins over a limit that passed in the same moment.
        biased;
        ended = &mut guarded => Some(outcome(ended, &request)),
        () = context.cancelled() => None,
        () = soft_limit(soft, &context) => Some(Outcome::SoftLimit),
        limit = hard_limit(hard) => {
            context.cancel();
            Some(Outcome::HardLimit(limit))
        }
    }
}

/// Runs the task in a child, whose worker watches the limits.
pub(super) async fn perform(request: Arc<Request>, context: Context) -> Option<Outcome> {
    let mut run = match begin(&request, &context) {
        Ok(run) => run,
        Err(outcome) => return Some(outcome),
    };
    let mut guarded = AssertUnwindSafe(&mut run).catch_unwind();
    tokio::select! {
        biased;
        ended = &mut guarded => Some(outcome(ended, &request)),
        () = context.cancelled() => None,
    }
}

/// Binds the arguments, which runs code of the task's author (`Deserialize`), so that it is guarded as well.
fn begin(request: &Request, context: &Context) -> Result<Run, Outcome> {
    let start = std::panic::catch_unwind(AssertUnwindSafe(|| {
        request.entry.start(&request.message.body, context.clone())
    }));
    match start {
        Ok(Ok(run)) => Ok(run),
        Ok(Err(failure)) => Err(Outcome::Failed(failure)),
        Err(panic) => Err(Outcome::Panicked(panic_text(&*panic))),
    }
}

fn outcome(ended: std::thread::Result<Result<Box<RawValue>, Failure>>, request: &Request) -> Outcome {
    match ended {
        Ok(Ok(value)) => match too_large(request, value.get().len()) {
            Some(failure) => Outcome::Failed(failure),
            None => Outcome::Success(value),
        },
        Ok(Err(failure)) => Outcome::Failed(failure),
        Err(panic) => Outcome::Panicked(panic_text(&*panic)),
    }
}

/// The result of an earlier delivery. Who cannot be asked is not believed: the task runs again.
async fn done_before(request: &Request, context: &Context) -> Option<Outcome> {
    #[derive(serde::Deserialize)]
    struct Stored {
        status: String,
        result: Json,
        #[serde(default)]
        children: Option<Vec<serde_json::Value>>,
    }
    let record = context.client()?.backend()?.get(&request.id).await.ok()??;
    let stored: Stored = json::parse(&record).ok()?;
    (State::parse(&stored.status) == State::Success).then(|| Outcome::Done {
        result: stored.result,
        // Children are written with the result, after what follows was sent.
        followed: stored.children.is_some_and(|children| !children.is_empty()),
    })
}

/// Why a result is not stored, if it is too large for that.
fn too_large(request: &Request, bytes: usize) -> Option<Failure> {
    let limit = request.policy.max_result_bytes.filter(|limit| bytes > *limit)?;
    Some(Failure::Fail(Exception::new(
        "orchestra.exceptions",
        "ResultTooLarge",
        format!(
            "the result has {bytes} bytes and may have {limit}; store it elsewhere and return where, or raise max_result_bytes"
        ),
    )))
}

async fn hard_limit(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// Completes when the run is to be ended by its soft limit: not for a run that watches the limit itself.
async fn soft_limit(limit: Option<Duration>, context: &Context) {
    if let Some(limit) = limit {
        tokio::time::sleep(limit).await;
        if !context.reach_soft_limit() {
            context.cancel();
            return;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run is moved to where it is polled, and thousands of them wait at once: what few of them need is boxed.
    #[test]
    fn a_run_is_small() {
        fn size<F>(_: fn(Arc<Request>, Context, Place) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size(trace) <= 640, "{} bytes", size(trace));
    }
}
