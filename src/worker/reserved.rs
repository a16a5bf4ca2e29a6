//! Requests that wait for a place to run. They go in the order in which they came; but what another worker was lost
//! with goes first: it has had its turn, and has waited for a lease to end. And one whose need is at hand, such as a
//! model in memory, may go before one whose need is not, as often and as long as that may be.

use std::collections::VecDeque;
use std::sync::Arc;

use super::consumer::Key;
use crate::clock::Instant;
use crate::task::Affinity;

/// So far back one is looked for: a worker that has prefetched thousands looks at so many each time.
const WINDOW: usize = 256;

/// What a request needs, and who knows whether that is at hand.
pub(crate) struct Need {
    pub of: Arc<dyn Affinity>,
    pub what: Arc<str>,
}

struct Waits {
    key: Key,
    need: Option<Need>,
    /// As in the queue: 0 is the first.
    priority: u8,
    since: Instant,
    passed: u32,
}

/// The requests.
#[derive(Default)]
pub(crate) struct Reserved {
    restored: VecDeque<Key>,
    queue: VecDeque<Waits>,
    /// How many have needs: without one there is nothing to look for.
    choosy: usize,
}

impl Reserved {
    pub(crate) fn push(&mut self, key: Key, need: Option<Need>, priority: u8, since: Instant) {
        self.choosy += usize::from(need.is_some());
        self.queue.push_back(Waits {
            key,
            need,
            priority,
            since,
            passed: 0,
        });
    }

    /// Another worker had it and was lost.
    pub(crate) fn push_restored(&mut self, key: Key) {
        self.restored.push_back(key);
    }

    pub(crate) fn len(&self) -> usize {
        self.restored.len() + self.queue.len()
    }

    /// Who came first.
    pub(crate) fn first(&self) -> Option<Key> {
        self.queue.front().map(|waits| waits.key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.restored.is_empty() && self.queue.is_empty()
    }

    /// Takes the one that goes next, of those that still live.
    pub(crate) fn take(&mut self, now: Instant, lives: impl Fn(Key) -> bool) -> Option<Key> {
        while let Some(key) = self.restored.pop_front() {
            if lives(key) {
                return Some(key);
            }
        }
        loop {
            let at = if self.choosy > 1 { self.next(now) } else { 0 };
            let waits = self.queue.remove(at)?;
            self.choosy -= usize::from(waits.need.is_some());
            if lives(waits.key) {
                self.queue.range_mut(..at).for_each(|waits| waits.passed += 1);
                return Some(waits.key);
            }
        }
    }

    /// Which one goes next.
    fn next(&self, now: Instant) -> usize {
        let Some(first) = self.queue.front() else { return 0 };
        let Some(need) = &first.need else { return 0 };
        let is_late = now.saturating_duration_since(first.since) >= need.of.patience();
        // Whoever is further back was passed by no more.
        if first.passed >= need.of.overtaking() || is_late {
            return 0;
        }
        // One answer for each need: it could change between two looks.
        let mut known: Vec<(&str, bool)> = Vec::new();
        for (at, waits) in self.queue.iter().enumerate().take(WINDOW) {
            // What has no needs is overtaken by nobody.
            let Some(need) = &waits.need else { return 0 };
            let found = known.iter().find(|(what, _)| *what == &*need.what).map(|(_, is)| *is);
            let is = found.unwrap_or_else(|| {
                let is = need.of.is_at_hand(&need.what);
                known.push((&*need.what, is));
                is
            });
            if is && waits.priority <= first.priority {
                return at;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Memory(&'static str);

    impl Affinity for Memory {
        fn need(&self, _: &str, _: &str, _: &str) -> Option<Arc<str>> {
            None
        }
        fn is_at_hand(&self, need: &str) -> bool {
            need == self.0
        }
        fn overtaking(&self) -> u32 {
            2
        }
        fn patience(&self) -> Duration {
            Duration::from_secs(30)
        }
    }

    fn reserved(needs: &[&str], priority: impl Fn(usize) -> u8, now: Instant) -> Reserved {
        let memory: Arc<dyn Affinity> = Arc::new(Memory("warm"));
        let mut reserved = Reserved::default();
        for (at, what) in needs.iter().enumerate() {
            let need = (!what.is_empty()).then(|| Need {
                of: memory.clone(),
                what: (*what).into(),
            });
            reserved.push(at as Key, need, priority(at), now);
        }
        reserved
    }

    fn order(mut reserved: Reserved, now: Instant) -> Vec<Key> {
        std::iter::from_fn(|| reserved.take(now, |_| true)).collect()
    }

    #[test]
    fn what_is_at_hand_goes_first_as_often_as_it_may() {
        let now = crate::clock::instant();
        let needs = ["cold", "warm", "cold", "warm", "warm", "warm"];
        assert_eq!(order(reserved(&needs, |_| 0, now), now), [1, 3, 0, 4, 2, 5]);
        let later = now + Duration::from_secs(30);
        assert_eq!(
            order(reserved(&needs, |_| 0, now), later),
            [0, 1, 2, 3, 4, 5],
            "nobody waits for ever"
        );
    }

    #[test]
    fn what_was_restored_goes_first_and_in_its_order() {
        let now = crate::clock::instant();
        let mut some = reserved(&["", ""], |_| 0, now);
        some.push_restored(7);
        some.push_restored(8);
        some.push_restored(9);
        assert_eq!(some.len(), 5);
        assert_eq!(some.take(now, |key| key != 7), Some(8));
        assert_eq!(order(some, now), [9, 0, 1]);
    }

    #[test]
    fn priority_and_tasks_without_needs_are_not_overtaken() {
        let now = crate::clock::instant();
        let lower = |at| u8::from(at > 0) * 9;
        assert_eq!(order(reserved(&["cold", "warm"], lower, now), now), [0, 1]);
        assert_eq!(order(reserved(&["cold", "", "warm"], |_| 0, now), now), [0, 1, 2]);
        assert_eq!(order(reserved(&["", "cold", "warm"], |_| 0, now), now), [0, 2, 1]);
        let mut some = reserved(&["cold", "warm", "warm"], |_| 0, now);
        assert_eq!(some.take(now, |key| key != 1), Some(2), "one that is gone is passed by");
        assert_eq!((some.take(now, |_| true), some.take(now, |_| true)), (Some(0), None));
    }
}
