//! A list of brokers, `a;b` (kombu's failover): one of them is used, and when it cannot be reached the next. Which one
//! is common to all connections of a program, so that messages are taken and acknowledged at the same server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Endpoint;

/// The brokers of a list. Clones agree on the one that is used.
#[derive(Clone)]
pub(super) struct Several {
    all: Arc<[Endpoint]>,
    at: Arc<AtomicUsize>,
}

impl Several {
    /// # Errors
    /// They cannot stand for one another.
    pub(super) fn new(all: Vec<Endpoint>) -> Result<Self, String> {
        let db = all.first().map(Endpoint::db);
        if all.iter().any(|endpoint| Some(endpoint.db()) != db) {
            return Err("all brokers of a list must have the same database number".into());
        }
        Ok(Self {
            all: all.into(),
            at: Arc::default(),
        })
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// The number of the one that is used; it grows with each change.
    pub(super) fn turn(&self) -> usize {
        self.at.load(Ordering::Relaxed)
    }

    /// The one of that number.
    pub(super) fn get(&self, turn: usize) -> &Endpoint {
        &self.all[turn % self.all.len()]
    }

    /// That one could not be reached: the next is used, unless somebody has gone on already.
    pub(super) fn leave(&self, turn: usize) {
        let next = turn.wrapping_add(1);
        if self
            .at
            .compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            tracing::warn!(
                "Redis at {} cannot be reached; trying {}",
                self.get(turn),
                self.get(next)
            );
        }
    }
}

impl PartialEq for Several {
    fn eq(&self, other: &Self) -> bool {
        self.all
            .iter()
            .map(ToString::to_string)
            .eq(other.all.iter().map(ToString::to_string))
    }
}
