//! The run that a piece of code is part of, for whoever is not handed its [`Context`]: the log, and what is sent.

use std::future::{Future, poll_fn};
use std::pin::pin;

use super::Context;

tokio::task_local! {
    static CURRENT: Context;
}

/// The run that this code is part of; `None` outside of one, and in what a run has spawned.
pub fn current() -> Option<Context> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Runs `run` as a part of what `context` tells: its log lines name the task, and its trace goes on.
pub(super) async fn scope<T>(context: Context, run: impl Future<Output = T>) -> T {
    let traced = context.details().trace.clone();
    CURRENT
        .scope(context, async move {
            match traced {
                None => run.await,
                Some(trace) => {
                    let mut run = pin!(run);
                    poll_fn(|task| {
                        let _entered = trace.enter();
                        run.as_mut().poll(task)
                    })
                    .await
                }
            }
        })
        .await
}
