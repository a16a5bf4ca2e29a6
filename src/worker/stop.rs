//! The stops: no new work; then, maybe after a while, no more work.

use std::time::Duration;

use tokio::sync::watch;

/// How far a stop has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Run,
    Warm,
    /// Cold in a while (`worker_soft_shutdown_timeout`).
    Soft,
    Cold,
}

impl Phase {
    /// How long a worker that stops waits for Redis to take what is still to be said.
    pub(crate) fn patience(self) -> Duration {
        match self {
            Self::Cold => Duration::from_secs(2),
            Self::Run | Self::Warm | Self::Soft => Duration::from_secs(10),
        }
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything that ran has ended; what waited went back to its queue.
    Warm,
    /// What ran was cancelled and went back to its queue.
    Cold,
    /// Everything that ran has ended, but Redis was away: results, or messages that follow, were not written.
    Unwritten,
}

/// Stops a worker from outside; clones stop the same worker.
#[derive(Clone, Debug)]
pub struct Stop {
    phase: watch::Sender<Phase>,
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// Nothing is stopped yet.
    pub fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Run),
        }
    }

    /// Finish what runs, give back what waits.
    pub fn warm(&self) {
        self.raise(Phase::Warm);
    }

    /// Give back what waits, and cancel what still runs after `worker_soft_shutdown_timeout`.
    pub fn soft(&self) {
        self.raise(Phase::Soft);
    }

    /// Cancel what runs, give back everything.
    pub fn cold(&self) {
        self.raise(Phase::Cold);
    }

    /// Waits until a stop is asked for, of either kind.
    pub async fn asked(&self) {
        // Fails only when the sender is gone, which `self` holds.
        let _ = self.phase.subscribe().wait_for(|phase| *phase != Phase::Run).await;
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        let mut phases = self.phase.subscribe();
        // A stop that was asked for before anybody listened is news as well.
        if *phases.borrow() != Phase::Run {
            phases.mark_changed();
        }
        phases
    }

    fn raise(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let higher = to > *phase;
            *phase = (*phase).max(to);
            higher
        });
    }
}
