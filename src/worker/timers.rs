//! What waits for a time: a heap of due times. Entries of requests that are gone, or are to be woken at another time
//! since, are skipped when they come up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::consumer::Key;
use crate::clock::Instant;

/// Due times of held requests.
#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Key)>>,
}

impl Timers {
    /// Wakes `key` at `at`.
    pub(crate) fn set(&mut self, at: Instant, key: Key) {
        self.heap.push(Reverse((at, key)));
    }

    /// The next due time.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes one entry that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, Key)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}
