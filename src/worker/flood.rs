//! A queue is read in its order, and what has to wait for its ETA is out of the way when it was read. With a million
//! such messages in front that takes half a minute, and what is due stands behind them. So where nearly all has to
//! wait, more of it is taken at once, and now and then the newest are looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many messages that have to wait are read before the newest are looked at once: the look costs Redis about as much
/// as a tenth of them.
const WAITING: usize = 256;
/// After so many it is asked whether there still is a flood: what was handed on last may not have been looked at yet.
const MANY: usize = 8 * WAITING;

/// How many messages had to wait when they were read. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Waits(Arc<AtomicUsize>);

impl Waits {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// How messages are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In the order of their queue.
    InOrder,
    /// The same, and what has to wait does not count.
    Past,
    /// What is due among the newest.
    Newest,
}

/// What came of the messages that were read since the last look at the newest ones.
pub(crate) struct Flood {
    waits: Waits,
    /// The number of waits at that time.
    since: usize,
    read: usize,
    /// That look found something.
    found: bool,
    way: Way,
}

impl Flood {
    pub(crate) fn new(waits: Waits) -> Self {
        Self {
            waits,
            since: 0,
            read: 0,
            found: false,
            way: Way::InOrder,
        }
    }

    /// So many messages were taken that way.
    pub(crate) fn took(&mut self, way: Way, count: usize) {
        match way {
            Way::Newest => self.found = count > 0,
            Way::InOrder | Way::Past => self.read += count,
        }
    }

    /// How to take the next ones. Where a look at the newest found something, every second claim is one.
    pub(crate) fn way(&mut self) -> Way {
        let waiting = self.waits.count().wrapping_sub(self.since);
        let all_wait = waiting >= self.read / 8 * 7;
        let looks = all_wait && waiting >= if self.found { 1 } else { WAITING };
        let is_over = !all_wait && self.read >= MANY;
        if looks || is_over {
            (self.since, self.read) = (self.since.wrapping_add(waiting), 0);
        }
        if is_over {
            (self.way, self.found) = (Way::InOrder, false);
        }
        if looks {
            self.way = Way::Past;
            return Way::Newest;
        }
        self.way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_looked_at_when_nearly_all_that_is_read_has_to_wait() {
        let waits = Waits::default();
        let mut flood = Flood::new(waits.clone());
        let read = |flood: &mut Flood, count: usize, waiting: usize| {
            flood.took(Way::InOrder, count);
            (0..waiting).for_each(|_| waits.add());
            flood.way()
        };
        assert_eq!(read(&mut flood, 128, 128), Way::InOrder, "too few");
        assert_eq!(read(&mut flood, 128, 128), Way::Newest);
        flood.took(Way::Newest, 0);
        assert_eq!(read(&mut flood, 128, 128), Way::Past, "it was looked just now");
        flood.took(Way::Newest, 1);
        assert_eq!(read(&mut flood, 1, 1), Way::Newest, "there was something");
        // A mixed queue, and one in which nothing waits.
        for _ in 0..MANY / 128 {
            read(&mut flood, 128, 64);
        }
        for _ in 0..100 {
            assert_eq!(read(&mut flood, 128, 64), Way::InOrder);
            assert_eq!(read(&mut flood, 128, 0), Way::InOrder);
        }
    }
}
