//! How many places the pool should have (`celery.worker.autoscale`): up at once when there is more work than places,
//! down when there was nothing new for half a minute.

use std::time::Duration;

use crate::clock::Instant;

/// Celery's `AUTOSCALE_KEEPALIVE`: how long places are kept that nobody needs.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The range of a pool.
#[derive(Debug)]
pub(crate) struct Autoscaler {
    pub max: usize,
    pub min: usize,
    /// When the places were last all needed.
    busy: Instant,
}

impl Autoscaler {
    pub(crate) fn new(max: usize, min: usize, now: Instant) -> Self {
        Self { max, min, busy: now }
    }

    /// The size the pool should get, if another; `work` counts what runs and what waits for a place.
    pub(crate) fn step(&mut self, work: usize, size: usize, now: Instant) -> Option<usize> {
        if work >= size {
            self.busy = now;
        }
        let up = work.min(self.max);
        if up > size {
            return Some(up);
        }
        let down = work.max(self.min).max(1);
        (down < size && now.saturating_duration_since(self.busy) > KEEPALIVE).then_some(down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_190_a_pool_grows_at_once_and_shrinks_when_it_was_idle_for_a_while() {
        let start = crate::clock::instant();
        let mut scaler = Autoscaler::new(4, 1, start);
        assert_eq!(scaler.step(1, 1, start), None);
        assert_eq!(scaler.step(3, 1, start), Some(3));
        assert_eq!(scaler.step(9, 3, start), Some(4));
        assert_eq!(scaler.step(9, 4, start), None);
        assert_eq!(scaler.step(0, 4, start + KEEPALIVE), None);
        let later = start + KEEPALIVE + Duration::from_secs(1);
        assert_eq!(scaler.step(2, 4, later), Some(2));
        assert_eq!(scaler.step(0, 2, later), Some(1));
        assert_eq!(scaler.step(0, 1, later), None);
    }
}
