//! Room for messages: how much memory those that this worker holds may take. The prefetch count bounds them as well,
//! but not when it is switched off, and not what waits for its ETA.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tracing::warn;

/// What a message takes beside its bytes: request, timer, entries of tables. Measured, like the factor below.
const OVERHEAD: usize = 2048;
/// A message is held as it came, and decoded.
const COPIES: usize = 2;

/// The room of a worker. Clones share it.
#[derive(Clone)]
pub(crate) struct Room {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bound: usize,
    taken: AtomicUsize,
    freed: Notify,
}

/// The part of the room that one message takes; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Room {
    pub(crate) fn new(bound: usize) -> Self {
        let shared = Shared {
            bound,
            taken: AtomicUsize::new(0),
            freed: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Waits until there is some; the first message fits however large it is. How many messages of how many bytes in
    /// all may be taken then.
    pub(crate) async fn free(&self) -> (usize, usize) {
        let mut told = false;
        loop {
            let freed = self.shared.freed.notified();
            let taken = self.shared.taken.load(Ordering::Relaxed);
            if taken == 0 || taken < self.shared.bound {
                let left = self.shared.bound.saturating_sub(taken);
                return (left / OVERHEAD + 1, left / COPIES);
            }
            if !std::mem::replace(&mut told, true) {
                warn!(
                    "messages that are held take {taken} bytes: no more are taken until some are done \
                     (worker_prefetch_bytes)"
                );
            }
            freed.await;
        }
    }

    /// Whether no more messages should be taken.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.taken.load(Ordering::Relaxed) >= self.shared.bound
    }

    /// Takes the part of a message of that many bytes.
    pub(crate) fn take(&self, message: usize) -> Share {
        let bytes = message.saturating_mul(COPIES).saturating_add(OVERHEAD);
        self.shared.taken.fetch_add(bytes, Ordering::Relaxed);
        Share {
            shared: self.shared.clone(),
            bytes,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shared.taken.fetch_sub(self.bytes, Ordering::Relaxed);
        // There is one who waits, the fetcher; without it this is kept for its next wait.
        self.shared.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_is_waited_for_and_comes_back() {
        let room = Room::new(10_000);
        assert_eq!(room.free().await, (5, 5000));
        let huge = room.take(1 << 20);
        let waiting = tokio::spawn({
            let room = room.clone();
            async move { room.free().await }
        });
        let small = room.take(10);
        drop(small);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(huge);
        assert_eq!(waiting.await.unwrap(), (5, 5000));
    }
}
