//! What must not run: task ids, bounded in number and age (`celery.worker.state.revoked`, a `LimitedSet`), and stamps
//! (`revoked_stamps`), bounded in number.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use serde_json::Value;

use crate::clock::Instant;
use crate::wire::Headers;

const MAX: usize = 50_000;
const MAX_STAMPS: usize = 50_000;
const EXPIRE: Duration = Duration::from_secs(10_800);

/// Ids and stamps of tasks that must not start.
#[derive(Default)]
pub(crate) struct Revoked {
    added: HashMap<String, Instant>,
    order: VecDeque<(String, Instant)>,
    stamps: HashSet<(String, String)>,
    stamps_order: VecDeque<(String, String)>,
    version: u64,
}

impl Revoked {
    /// Adds an id; the oldest go when there are too many.
    pub(crate) fn add(&mut self, id: String, now: Instant) {
        self.version += 1;
        self.added.insert(id.clone(), now);
        self.order.push_back((id, now));
        self.purge(now);
    }

    /// Adds what another worker, or an earlier life of this one, had revoked. What is known keeps its time.
    pub(crate) fn merge<'a>(&mut self, ids: impl Iterator<Item = &'a str>, now: Instant) {
        for id in ids {
            if !self.added.contains_key(id) {
                self.add(id.to_owned(), now);
            }
        }
    }

    /// Tasks with that stamp in that header must not start.
    pub(crate) fn add_stamp(&mut self, header: &str, stamp: &Value) {
        let stamp = (header.to_owned(), stamp.to_string());
        if self.stamps.insert(stamp.clone()) {
            self.stamps_order.push_back(stamp);
        }
        if self.stamps_order.len() > MAX_STAMPS
            && let Some(oldest) = self.stamps_order.pop_front()
        {
            self.stamps.remove(&oldest);
        }
    }

    /// Whether a task must not start.
    pub(crate) fn covers(&self, id: &str, headers: &Headers) -> bool {
        self.added.contains_key(id) || (!self.stamps.is_empty() && self.has_stamp(headers))
    }

    fn has_stamp(&self, headers: &Headers) -> bool {
        let (Some(names), Some(stamps)) = (&headers.stamped_headers, &headers.stamps) else {
            return false;
        };
        names.iter().any(|name| {
            let is_revoked = |stamp: &Value| self.stamps.contains(&(name.clone(), stamp.to_string()));
            match stamps.get(name) {
                Some(Value::Array(items)) => items.iter().any(is_revoked),
                Some(stamp) => is_revoked(stamp),
                None => false,
            }
        })
    }

    /// Changes with every id that is added.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// All ids, oldest first.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.order
            .iter()
            .filter(|(id, at)| self.added.get(id) == Some(at))
            .map(|(id, _)| id.as_str())
    }

    /// Forgets what is too old, or too much.
    pub(crate) fn purge(&mut self, now: Instant) {
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
    use serde_json::json;

    fn contains(revoked: &Revoked, id: &str) -> bool {
        revoked.covers(id, &Headers::default())
    }

    #[test]
    fn p_099_the_set_is_bounded_in_number_and_age() {
        let (mut revoked, now) = (Revoked::default(), crate::clock::instant());
        for n in 0..MAX + 10 {
            revoked.add(n.to_string(), now);
        }
        assert!(!contains(&revoked, "9") && contains(&revoked, "10"));
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
        assert!(contains(&revoked, "a"));
        revoked.merge(["b", "c"].into_iter(), now + EXPIRE + Duration::from_secs(5));
        assert_eq!(revoked.ids().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn p_186_a_stamp_covers_every_task_that_carries_it() {
        let mut revoked = Revoked::default();
        let headers = |stamps: Value| Headers {
            stamped_headers: Some(vec!["batch".into()]),
            stamps: stamps.as_object().cloned(),
            ..Headers::default()
        };
        assert!(!revoked.covers("x", &headers(json!({"batch": "b1"}))));
        revoked.add_stamp("batch", &json!("b1"));
        assert!(revoked.covers("x", &headers(json!({"batch": "b1"}))));
        assert!(revoked.covers("x", &headers(json!({"batch": ["b0", "b1"]}))));
        assert!(!revoked.covers("x", &headers(json!({"batch": "b2", "other": "b1"}))));
        assert!(!revoked.covers("x", &headers(json!({"other": "b1"}))));
        for n in 0..MAX_STAMPS {
            revoked.add_stamp("batch", &json!(n));
        }
        assert!(!revoked.covers("x", &headers(json!({"batch": "b1"}))));
    }
}
