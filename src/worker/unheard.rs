//! Results that nobody heard of when they were told. A client that waits for one subscribes and then looks whether it
//! is there, on two connections: a busy Redis may do the look first, and a quick task ends between the two. Whoever
//! waits for what it has sent itself has subscribed long before; of what workers send (the steps of a chain, the body
//! of a chord) that is not so, and it would wait for ever. So such a result is told once more, a moment later.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;

/// Much longer than Redis takes for two commands that it has been sent already.
const PAUSE: Duration = Duration::from_millis(25);
/// Beyond so many the oldest are told no more.
const MOST: usize = 10_000;

/// Keys of results, in the order of time.
#[derive(Default)]
pub(crate) struct Unheard {
    keys: VecDeque<(Instant, Vec<u8>)>,
}

impl Unheard {
    /// Remembers some.
    pub(crate) fn add(&mut self, keys: Vec<Vec<u8>>, now: Instant) {
        self.keys.extend(keys.into_iter().map(|key| (now + PAUSE, key)));
        let beyond = self.keys.len().saturating_sub(MOST);
        self.keys.drain(..beyond);
    }

    /// Waits until one is to be told.
    pub(crate) async fn due(&self) {
        match self.keys.front() {
            Some((at, _)) => tokio::time::sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }

    /// Those that are to be told now.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let due = self.keys.partition_point(|(at, _)| *at <= now);
        self.keys.drain(..due).map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_heard_is_told_once_more_and_bounded() {
        let (mut unheard, now) = (Unheard::default(), crate::clock::instant());
        unheard.add((0..MOST + 2).map(|n| n.to_string().into_bytes()).collect(), now);
        assert!(unheard.take_due(now).is_empty());
        let due = unheard.take_due(now + PAUSE);
        assert_eq!((due.len(), &due[0][..]), (MOST, &b"2"[..]));
        assert!(unheard.take_due(now + PAUSE).is_empty());
    }
}
