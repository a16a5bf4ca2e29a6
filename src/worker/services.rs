//! The only place that spawns. Each background service says what its death means.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::error;

/// What runs beside the consumer loop.
#[derive(Clone, Copy, Debug)]
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
    /// Counts the members of chords. Its death ends the worker.
    Joiner,
    /// Reads remote control requests. Its death ends the worker.
    Control,
    /// Says hello to the neighbours. Without it the worker goes on.
    Mingle,
}

/// Starts a service. A panic in it is a bug; it is logged with the service's name, and the channel it held closes,
/// which the consumer loop takes as the end of the worker (what is unacked is safe in Redis).
pub(crate) fn spawn(kind: ServiceKind, service: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let handle = tokio::spawn(service);
    tokio::spawn(async move {
        if let Err(failure) = handle.await
            && failure.is_panic()
        {
            error!(service = ?kind, "a service of the worker failed; this is a bug in orchestra, please report it");
        }
    })
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

/// Starts what ends a chord. It reports to the consumer loop.
pub(crate) fn spawn_join(join: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(join);
}

/// Runs a future on a thread of its own, for tasks that block.
pub(crate) fn spawn_blocking<T: Send + 'static>(run: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(run))
}
