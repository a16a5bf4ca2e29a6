//! What must not run: task ids, bounded in number, length and age (`celery.worker.state.revoked`, a `LimitedSet`), and
//! stamps (`revoked_stamps`), bounded in number and bytes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use crate::broker::{REVOKE_EXPIRES, REVOKES_MAX};
use crate::clock::Instant;
use crate::wire::{Headers, Limits};

const MAX_STAMPS: usize = 50_000;

/// The id of a task, compactly: there may be a hundred thousand of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    /// As Celery makes them.
    Uuid([u8; 16]),
    Other(Arc<str>),
}

impl From<&str> for Id {
    fn from(id: &str) -> Self {
        let is_usual = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
        match Uuid::try_parse(id) {
            Ok(uuid) if id.len() == 36 && id.bytes().all(is_usual) => Self::Uuid(*uuid.as_bytes()),
            _ => Self::Other(id.into()),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(bytes) => Uuid::from_bytes(*bytes).fmt(f),
            Self::Other(id) => f.write_str(id),
        }
    }
}

/// Ids and stamps of tasks that must not start.
pub(crate) struct Revoked {
    added: HashMap<Id, Instant>,
    order: VecDeque<(Id, Instant)>,
    stamps: HashSet<(String, String)>,
    stamps_order: VecDeque<(String, String)>,
    stamps_bytes: usize,
    version: u64,
    /// No task has a longer id.
    longest: usize,
    /// Bytes of all stamps: as many as one request may bring.
    room: usize,
}

impl Revoked {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            added: HashMap::new(),
            order: VecDeque::new(),
            stamps: HashSet::new(),
            stamps_order: VecDeque::new(),
            stamps_bytes: 0,
            version: 0,
            longest: limits.name,
            room: limits.control,
        }
    }

    /// Whether it can be the id of a task: what is longer is a dead letter.
    pub(crate) fn fits(&self, id: &str) -> bool {
        id.len() <= self.longest
    }

    /// Adds an id; the oldest go when there are too many. One that no task can have is left out.
    pub(crate) fn add(&mut self, id: Id, now: Instant) {
        if matches!(&id, Id::Other(id) if !self.fits(id)) {
            return;
        }
        self.version += 1;
        self.added.insert(id.clone(), now);
        self.order.push_back((id, now));
        self.purge(now);
    }

    /// Adds what another worker, or an earlier life of this one, had revoked. What is known keeps its time.
    pub(crate) fn merge<'a>(&mut self, ids: impl Iterator<Item = &'a str>, now: Instant) {
        for id in ids {
            let id = Id::from(id);
            if !self.added.contains_key(&id) {
                self.add(id, now);
            }
        }
    }

    /// Tasks with that stamp in that header must not start.
    pub(crate) fn add_stamp(&mut self, header: &str, stamp: &Value) {
        let bytes = |(header, stamp): &(String, String)| header.len() + stamp.len();
        let stamp = (header.to_owned(), stamp.to_string());
        if self.stamps.insert(stamp.clone()) {
            self.stamps_bytes += bytes(&stamp);
            self.stamps_order.push_back(stamp);
        }
        while (self.stamps_order.len() > MAX_STAMPS || self.stamps_bytes > self.room)
            && let Some(oldest) = self.stamps_order.pop_front()
        {
            self.stamps_bytes -= bytes(&oldest);
            self.stamps.remove(&oldest);
        }
    }

    /// Whether a task must not start.
    pub(crate) fn covers(&self, id: &str, headers: &Headers) -> bool {
        let is_revoked = !self.added.is_empty() && self.added.contains_key(&Id::from(id));
        is_revoked || (!self.stamps.is_empty() && self.has_stamp(headers))
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
    pub(crate) fn ids(&self) -> impl Iterator<Item = &Id> {
        self.order
            .iter()
            .filter(|(id, at)| self.added.get(id) == Some(at))
            .map(|(id, _)| id)
    }

    /// Forgets what is too old, or too much.
    pub(crate) fn purge(&mut self, now: Instant) {
        while let Some((id, at)) = self.order.front() {
            let newest = self.added.get(id);
            let stale = newest != Some(at);
            if !stale && self.order.len() <= REVOKES_MAX && now.saturating_duration_since(*at) < REVOKE_EXPIRES {
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
    use std::time::Duration;

    use serde_json::json;

    fn contains(revoked: &Revoked, id: &str) -> bool {
        revoked.covers(id, &Headers::default())
    }

    fn ids(revoked: &Revoked) -> Vec<String> {
        revoked.ids().map(Id::to_string).collect()
    }

    #[test]
    fn an_id_is_the_text_that_it_was() {
        for id in [
            "",
            "a",
            "9d6f1cc5-4bb4-4a0e-a1ad-8d3f0b0c1d2e",
            "9D6F1CC5-4bb4-4a0e-a1ad-8d3f0b0c1d2e",
            "9d6f1cc54bb44a0ea1ad8d3f0b0c1d2e",
            "{9d6f1cc5-4bb4-4a0e-a1ad-8d3f0b0c1d}",
        ] {
            assert_eq!(Id::from(id).to_string(), id);
        }
        assert!(matches!(Id::from("9d6f1cc5-4bb4-4a0e-a1ad-8d3f0b0c1d2e"), Id::Uuid(_)));
        // 100,000 of them in two tables.
        assert!(size_of::<(Id, Instant)>() <= 40);
    }

    #[test]
    fn p_099_the_set_is_bounded_in_number_and_age() {
        let (mut revoked, now) = (Revoked::new(&Limits::default()), crate::clock::instant());
        for n in 0..REVOKES_MAX + 10 {
            revoked.add((*n.to_string()).into(), now);
        }
        assert!(!contains(&revoked, "9") && contains(&revoked, "10"));
        assert_eq!(revoked.ids().count(), REVOKES_MAX);
        revoked.add("late".into(), now + REVOKE_EXPIRES);
        assert_eq!(ids(&revoked), ["late"]);
    }

    #[test]
    fn an_id_revoked_twice_counts_once_and_from_the_second_time() {
        let (mut revoked, now) = (Revoked::new(&Limits::default()), crate::clock::instant());
        revoked.add("a".into(), now);
        revoked.add("a".into(), now + Duration::from_secs(1));
        assert_eq!(revoked.ids().count(), 1);
        revoked.add("b".into(), now + REVOKE_EXPIRES);
        assert!(contains(&revoked, "a"));
        revoked.merge(["b", "c"].into_iter(), now + REVOKE_EXPIRES + Duration::from_secs(5));
        assert_eq!(ids(&revoked), ["b", "c"]);
    }

    #[test]
    fn p_186_a_stamp_covers_every_task_that_carries_it() {
        let mut revoked = Revoked::new(&Limits::default());
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

    #[test]
    fn ids_that_no_task_has_and_stamps_beyond_the_room_are_not_kept() {
        let limits = Limits {
            name: 3,
            control: 20,
            ..Limits::default()
        };
        let (mut revoked, now) = (Revoked::new(&limits), crate::clock::instant());
        revoked.add("long".into(), now);
        revoked.merge(["tall", "abc"].into_iter(), now);
        assert_eq!(ids(&revoked), ["abc"]);
        for n in 0..100 {
            revoked.add_stamp("batch", &json!(n));
        }
        assert_eq!((revoked.stamps.len(), revoked.stamps_bytes), (2, 14));
    }
}
