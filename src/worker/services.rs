//! The only place that spawns. Each background service says what its death means.

use std::any::Any;
use std::future::Future;

use tokio::task::{AbortHandle, JoinHandle};
use tracing::error;

use super::stop::Stop;

/// What runs beside the consumer loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceKind {
    /// Takes messages. Its death ends the worker.
    Fetcher,
    /// Hears what is told to everybody. Without it the worker goes on.
    Listener,
    /// Sends what was decided. Its death ends the worker.
    Writer,
    /// Keeps leases and restores what the dead held. Its death ends the worker.
    Keeper,
    /// Reads messages again that wait for their ETA. Its death ends the worker.
    Recaller,
    /// Counts the members of chords, and ends one: the death of either ends the worker.
    Joiner,
    /// Reads remote control requests. Its death ends the worker.
    Control,
    /// Says hello to the neighbours. Without it the worker goes on.
    Mingle,
    /// Looks at whether messages are taken. Without it the worker goes on.
    Watchdog,
}

impl ServiceKind {
    /// Whether a worker without it is none: it would live, and hold up what it took or would have to take.
    fn is_vital(self) -> bool {
        match self {
            Self::Fetcher | Self::Writer | Self::Keeper | Self::Recaller | Self::Joiner | Self::Control => true,
            Self::Listener | Self::Mingle | Self::Watchdog => false,
        }
    }
}

/// Starts a service. A panic in it is a bug; it is logged with the service's name. Where its death ends the worker that
/// is a cold stop, with the exit code of one: whoever looks after the worker starts it again, and what it held goes
/// back to its queues at once, or, where nobody is left who could write that, when its lease ends.
pub(crate) fn spawn(kind: ServiceKind, stop: &Stop, service: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    let (handle, stop) = (tokio::spawn(service), stop.clone());
    let service = handle.abort_handle();
    tokio::spawn(supervise(kind, stop, handle));
    service
}

/// Waits for the end of a service.
async fn supervise(kind: ServiceKind, stop: Stop, service: JoinHandle<()>) {
    let Err(failure) = service.await else { return };
    let Ok(panic) = failure.try_into_panic() else { return };
    let what = panic_text(&*panic);
    if kind.is_vital() {
        error!(
            "the {kind:?} of this worker failed, which ends it: {what}. This is a bug in orchestra, please report it"
        );
        stop.cold();
    } else {
        error!(
            "the {kind:?} of this worker failed, which goes on without: {what}. This is a bug in orchestra, please report it"
        );
    }
}

/// What somebody who panicked said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

/// Runs the consumer loop among the tasks of the runtime. On a thread of its own each message between it and them would
/// wake a thread.
pub(crate) async fn run_loop<T: Send + 'static>(run: impl Future<Output = T> + Send + 'static) -> T {
    /// Who gives the worker up ends its loop.
    struct Ended(tokio::task::AbortHandle);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let handle = tokio::spawn(run);
    let _ended = Ended(handle.abort_handle());
    match handle.await {
        Ok(exit) => exit,
        Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
        // Only the guard aborts it, and then nobody is here.
        Err(_) => std::future::pending().await,
    }
}

/// Starts the run of a task. It reports to the consumer loop in every case, panics included, so nobody waits for the
/// handle.
pub(crate) fn spawn_run(run: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(run);
}

/// Runs a future on a thread of its own, for tasks that block.
pub(crate) fn spawn_blocking<T: Send + 'static>(run: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(run))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::stop::Phase;

    /// A worker without its fetcher, its writer, its keeper would be one that lives and does nothing.
    #[tokio::test]
    async fn a_service_that_panics_ends_the_worker() {
        use ServiceKind::{Control, Fetcher, Joiner, Keeper, Listener, Mingle, Recaller, Watchdog, Writer};
        for (kind, phase) in [
            (Fetcher, Phase::Cold),
            (Writer, Phase::Cold),
            (Keeper, Phase::Cold),
            (Recaller, Phase::Cold),
            (Joiner, Phase::Cold),
            (Control, Phase::Cold),
            (Listener, Phase::Run),
            (Mingle, Phase::Run),
            (Watchdog, Phase::Run),
        ] {
            let stop = Stop::new();
            let service = tokio::spawn(async { panic!("injected") });
            supervise(kind, stop.clone(), service).await;
            assert_eq!(*stop.phases().borrow(), phase, "{kind:?}");
        }
    }

    /// One that ends by itself, or is ended with its worker, is no bug.
    #[tokio::test]
    async fn a_service_that_ends_does_not_end_the_worker() {
        let stop = Stop::new();
        supervise(ServiceKind::Fetcher, stop.clone(), tokio::spawn(async {})).await;
        let waiting = tokio::spawn(std::future::pending());
        waiting.abort();
        supervise(ServiceKind::Writer, stop.clone(), waiting).await;
        assert_eq!(*stop.phases().borrow(), Phase::Run);
    }
}
