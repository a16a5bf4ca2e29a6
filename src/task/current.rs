//! The run that a piece of code is part of, for whoever is not handed its [`Context`]: the log, and what is sent.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Waking, Poll};

use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;

use super::Context;
use crate::trace::Trace;

tokio::task_local! {
    static CURRENT: Context;
}

/// The run that this code is part of; `None` outside of one, and in what a run has spawned.
pub fn current() -> Option<Context> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Runs `run` as a part of what `context` tells: its log lines name the task, and its trace goes on.
///
/// A type of its own, because an `async` function would hold the run three times over, and there may be ten thousand.
pub(super) fn scope<F: Future>(context: Context, run: F) -> TaskLocalFuture<Context, Traced<F>> {
    let trace = context.details().trace.clone();
    CURRENT.scope(context, Traced { trace, run })
}

pin_project! {
    /// A run that goes on with the trace of its message.
    pub(super) struct Traced<F> {
        trace: Option<Trace>,
        #[pin]
        run: F,
    }
}

impl<F: Future> Future for Traced<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut Waking<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.trace.as_ref().map(Trace::enter);
        this.run.poll(task)
    }
}
