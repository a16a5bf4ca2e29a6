//! Looks at whether the fetcher does what it is for. A worker that lives, says so, and takes nothing is the worst that
//! can happen to a queue: nobody starts it again. So somebody who is not the fetcher looks from time to time whether
//! there is room in the prefetch count, a queue that holds messages, and none that was taken; who asks for the worker's
//! health is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tracing::{error, info};

use super::metrics::Metrics;
use super::outbox::Outbox;
use super::room::Room;
use super::stop::Phase;
use crate::broker::Broker;
use crate::clock::{self, Instant};

/// Between two looks: as long as a fetcher that heard no news of a message waits, at most.
const LOOK: Duration = Duration::from_secs(30);
/// A fetcher that took nothing for so long, though it should have, is not well.
const LONG: Duration = Duration::from_secs(60);

/// What the fetcher has done. Clones count together.
#[derive(Clone, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Something was taken, or there is a reason why not that is not ours: Redis refuses, a queue's key is no list,
    /// what comes next has to wait for memory.
    pub(crate) fn made(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The service that looks.
pub(crate) struct Watchdog {
    pub broker: Broker,
    /// The prefetch count.
    pub credit: Arc<Semaphore>,
    /// The bound in bytes.
    pub room: Room,
    pub outbox: Outbox,
    pub queues: watch::Receiver<Vec<Arc<str>>>,
    pub stop: watch::Receiver<Phase>,
    pub progress: Progress,
    pub metrics: Metrics,
}

impl Watchdog {
    /// Runs until the worker stops, or its loop is gone.
    pub(crate) async fn run(mut self) {
        let mut doubt = Doubt::default();
        let mut seen = self.progress.count();
        while *self.stop.borrow() == Phase::Run {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = self.stop.wait_for(|phase| *phase != Phase::Run) => return,
            }
            if self.queues.has_changed().is_err() {
                return;
            }
            // What is taken while the queues are looked at counts as well.
            let neglects = self.progress.count() == seen && self.neglects().await;
            let now = self.progress.count();
            let made = std::mem::replace(&mut seen, now) != now;
            let before = doubt.long();
            doubt.look(neglects && !made, clock::instant());
            match (before, doubt.long()) {
                (None, Some(long)) => error!(
                    "messages wait and there is room for them, but none was taken for {} s: the worker should be started again; \
                     this is a bug in orchestra, please report it",
                    long.as_secs()
                ),
                (Some(_), None) => info!("messages are taken again"),
                _ => {}
            }
            self.metrics.takes_nothing(doubt.long());
        }
    }

    /// Whether there is something that the fetcher should have taken.
    async fn neglects(&self) -> bool {
        let may = self.broker.is_connected()
            && self.credit.available_permits() > 0
            && !self.room.is_full()
            && !self.outbox.is_full();
        if !may {
            return false;
        }
        let queues = self.broker.lists(self.queues.borrow().clone());
        for queue in &queues {
            // A broker that does not answer is no fault of the fetcher.
            if self.broker.length(queue).await.unwrap_or(0) > 0 {
                return true;
            }
        }
        false
    }
}

/// Since when it looks as if the fetcher neglected its queues.
#[derive(Default)]
struct Doubt {
    since: Option<Instant>,
    long: Option<Duration>,
}

impl Doubt {
    fn look(&mut self, neglects: bool, now: Instant) {
        self.since = neglects.then(|| self.since.unwrap_or(now));
        self.long = self
            .since
            .map(|since| now.saturating_duration_since(since))
            .filter(|long| *long >= LONG);
    }

    /// For how long, when that is too long.
    fn long(&self) -> Option<Duration> {
        self.long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetcher_that_takes_nothing_for_long_is_not_well() {
        let began = clock::instant();
        let seconds = Duration::from_secs;
        let mut doubt = Doubt::default();
        for (at, neglects, long) in [
            (0, false, None),
            // Whether it was so before the look, nobody knows.
            (30, true, None),
            (60, true, None),
            (90, true, Some(60)),
            (120, true, Some(90)),
            // It took something, or the queue is empty: what was is forgotten.
            (150, false, None),
            (180, true, None),
            (210, false, None),
            (240, true, None),
            (270, true, None),
        ] {
            doubt.look(neglects, began + seconds(at));
            assert_eq!(doubt.long(), long.map(seconds), "after {at} s");
        }
    }

    #[test]
    fn what_takes_nothing_for_long_is_not_healthy() {
        let metrics = Metrics::new(&[]);
        metrics.health().unwrap();
        metrics.takes_nothing(Some(Duration::from_secs(61)));
        let why = metrics.health().unwrap_err();
        assert!(why.contains("none was taken for 61 s"), "{why}");
        metrics.takes_nothing(None);
        metrics.health().unwrap();
    }
}
