//! Something that happens once, and can be waited for. It lives in what it is part of: every run has two, and most are
//! never looked at.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Down, until it is raised.
#[derive(Default)]
pub(super) struct Flag {
    up: AtomicBool,
    raised: Notify,
}

impl Flag {
    /// Raises it, for all who wait now or later.
    pub(super) fn raise(&self) {
        self.up.store(true, Ordering::Release);
        self.raised.notify_waiters();
    }

    /// Whether it is up.
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Completes when it is up.
    pub(super) async fn wait(&self) {
        loop {
            // In this order: who is raised after the look is heard.
            let raised = self.raised.notified();
            if self.is_up() {
                return;
            }
            raised.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_flag_is_seen_by_who_waits_and_by_who_comes_later() {
        let flag = Arc::new(Flag::default());
        let waiting = tokio::spawn({
            let flag = flag.clone();
            async move { flag.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(!flag.is_up() && !waiting.is_finished());
        flag.raise();
        waiting.await.unwrap();
        flag.wait().await;
    }
}
