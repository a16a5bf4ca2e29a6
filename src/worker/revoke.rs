//! Revoked task ids, bounded in number and age (`celery.worker.state.revoked`, a `LimitedSet`).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Instant;

const MAX: usize = 50_000;
const EXPIRE: Duration = Duration::from_secs(10_800);

/// Ids that must not start.
#[derive(Default)]
pub(crate) struct Revoked {
    added: HashMap<String, Instant>,
    order: VecDeque<(String, Instant)>,
}

impl Revoked {
    /// Adds an id; the oldest go when there are too many.
    pub(crate) fn add(&mut self, id: String, now: Instant) {
        self.added.insert(id.clone(), now);
        self.order.push_back((id, now));
        self.purge(now);
    }

    /// Whether the id is revoked.
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.added.contains_key(id)
    }

    /// All ids, oldest first.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.order
            .iter()
            .filter(|(id, at)| self.added.get(id) == Some(at))
            .map(|(id, _)| id.as_str())
    }

    fn purge(&mut self, now: Instant) {
        while let Some((id, at)) = self.order.front() {
            let newest = self.added.get(id);
            let stale = newest != Some(at);
            if !stale && self.order.len() <= MAX && now.saturating_duration_since(*at) < EXPIRE {
                break;
            }
            if !stale {
                self.added.remove(id);
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_099_the_set_is_bounded_in_number_and_age() {
        let (mut revoked, now) = (Revoked::default(), crate::clock::instant());
        for n in 0..MAX + 10 {
            revoked.add(n.to_string(), now);
        }
        assert!(!revoked.contains("9") && revoked.contains("10"));
        assert_eq!(revoked.ids().count(), MAX);
        revoked.add("late".into(), now + EXPIRE);
        assert_eq!(revoked.ids().collect::<Vec<_>>(), ["late"]);
    }

    #[test]
    fn an_id_revoked_twice_counts_once_and_from_the_second_time() {
        let (mut revoked, now) = (Revoked::default(), crate::clock::instant());
        revoked.add("a".into(), now);
        revoked.add("a".into(), now + Duration::from_secs(1));
        assert_eq!(revoked.ids().count(), 1);
        revoked.add("b".into(), now + EXPIRE);
        assert!(revoked.contains("a"));
    }
}
