//! Places to run. A slot is a permit that gives itself back when the run is over, whatever the end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::consumer::Key;
use super::request::{Outcome, Request, RunId};
use super::services::{panic_text, spawn_run};
use super::tracer::{Place, trace};
use crate::clock::{self, Instant};
use crate::task::Context;

/// The end of a run. A run that was cancelled has no outcome; its end still says that the place is free.
pub(crate) struct Ended {
    /// Its place: free when the loop has noted the end. Ends wait for the loop, and each may have a result in memory,
    /// so there must not be more of them than places.
    pub slot: OwnedSemaphorePermit,
    pub key: Key,
    pub run: RunId,
    pub outcome: Option<Outcome>,
    pub runtime: std::time::Duration,
}

/// The places of a worker.
pub(crate) struct Pool {
    slots: Arc<Semaphore>,
    size: usize,
    /// Places that were taken away while they were in use.
    debt: usize,
    ended: mpsc::UnboundedSender<Ended>,
}

impl Pool {
    /// A pool of `size` places. Ends of runs go to the receiver; at most one for each place, so it cannot grow.
    pub(crate) fn new(size: usize) -> (Self, mpsc::UnboundedReceiver<Ended>) {
        let (ended, ends) = mpsc::unbounded_channel();
        let slots = Arc::new(Semaphore::new(size));
        (
            Self {
                slots,
                size,
                debt: 0,
                ended,
            },
            ends,
        )
    }

    /// How many tasks may run at once.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Places where nothing runs.
    pub(crate) fn free(&self) -> usize {
        self.slots.available_permits().saturating_sub(self.debt)
    }

    /// Takes a place, if there is one.
    pub(crate) fn slot(&mut self) -> Option<OwnedSemaphorePermit> {
        while self.debt > 0 {
            self.slots.clone().try_acquire_owned().ok()?.forget();
            self.debt -= 1;
        }
        self.slots.clone().try_acquire_owned().ok()
    }

    /// More places.
    pub(crate) fn grow(&mut self, by: usize) {
        self.size += by;
        let paid = by.min(self.debt);
        self.debt -= paid;
        self.slots.add_permits(by - paid);
    }

    /// Fewer places, but one at least; whether it could.
    pub(crate) fn shrink(&mut self, by: usize) -> bool {
        if by >= self.size {
            return false;
        }
        self.size -= by;
        self.debt += by;
        true
    }

    /// Starts the run of a request, which has its number.
    pub(crate) fn run(
        &self,
        key: Key,
        request: Arc<Request>,
        context: Context,
        place: Place,
        slot: OwnedSemaphorePermit,
        since: Instant,
    ) {
        let ended = self.ended.clone();
        spawn_run(async move {
            // A task that panics as it is dropped, when it is ended, does so in there.
            let traced = AssertUnwindSafe(trace(request, context, place)).catch_unwind().await;
            let outcome = traced.unwrap_or_else(|panic| Some(Outcome::Panicked(panic_text(&*panic))));
            let runtime = clock::instant().saturating_duration_since(since);
            // A closed channel is a worker that has stopped; what this run did is accounted for by the stop.
            let _ = ended.send(Ended {
                slot,
                key,
                run: key,
                outcome,
                runtime,
            });
        });
    }
}
