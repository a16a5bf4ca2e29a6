//! What is due next. Owns what beat knows of the schedule, and decides; it reads no clock and sends nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use jiff::SignedDuration;
use jiff::tz::TimeZone;
use tracing::error;

use super::Entry;
use super::schedule::Due;
use super::store::Stored;
use crate::clock::{self, Timestamp};

/// A last run further in the future than this was written by a clock that was wrong.
const FUTURE: SignedDuration = SignedDuration::from_mins(1);

/// The entries by name, and a heap of when to look at each.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    items: BTreeMap<String, Item>,
    heap: BinaryHeap<Reverse<(Timestamp, String)>>,
    deadline: Option<Duration>,
}

#[derive(Debug)]
struct Item {
    entry: Result<Entry, String>,
    stored: Stored,
}

/// What has to be done about an entry.
#[derive(Debug)]
pub(super) enum Step {
    /// It is due: send it.
    Send { name: String, due_at: Timestamp },
    /// Write down that it counts from now: it is new, or its last run lies in the future.
    Begin { name: String },
}

impl Agenda {
    pub(super) fn new(deadline: Option<Duration>) -> Self {
        Self {
            deadline,
            ..Self::default()
        }
    }

    /// Takes over what stands in Redis. An entry that cannot be understood is named once and does not stop the others.
    pub(super) fn load(&mut self, stored: BTreeMap<String, Stored>, zone: &TimeZone) {
        let mut before = std::mem::take(&mut self.items);
        self.heap.clear();
        for (name, stored) in stored {
            let entry = match before.remove(&name).filter(|item| item.stored.text == stored.text) {
                Some(item) => item.entry,
                None => Entry::parse(&name, &stored.text, zone)
                    .inspect_err(|wrong| error!("beat: the entry {name:?} cannot be sent: {wrong}")),
            };
            if entry.is_ok() && stored.enabled {
                self.heap.push(Reverse((Timestamp::MIN, name.clone())));
            }
            self.items.insert(name, Item { entry, stored });
        }
    }

    /// The next thing to do, if there is one at that time.
    pub(super) fn step(&mut self, now: Timestamp) -> Option<Step> {
        loop {
            let Reverse((at, _)) = self.heap.peek()?;
            if *at > now {
                return None;
            }
            let Reverse((_, name)) = self.heap.pop()?;
            let Some(Item {
                entry: Ok(entry),
                stored,
            }) = self.items.get(&name)
            else {
                continue;
            };
            let Some(last) = stored.last_run_at().filter(|last| last.duration_since(now) <= FUTURE) else {
                return Some(Step::Begin { name });
            };
            match entry.schedule.due(last, now, self.deadline) {
                Due::Now(due_at) => return Some(Step::Send { name, due_at }),
                Due::At(at) => self.heap.push(Reverse((at, name))),
            }
        }
    }

    /// When to look again; `None` if nothing will ever be due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// An entry and how it stands in Redis.
    pub(super) fn get(&self, name: &str) -> Option<(&Entry, &Stored)> {
        let item = self.items.get(name)?;
        Some((item.entry.as_ref().ok()?, &item.stored))
    }

    /// An entry counts from that time on.
    pub(super) fn ran(&mut self, name: String, at: Timestamp) {
        if let Some(item) = self.items.get_mut(&name) {
            item.stored.last_run_at = clock::iso(at);
            self.heap.push(Reverse((at, name)));
        }
    }

    /// Looks at an entry again, not before that time.
    pub(super) fn later(&mut self, name: String, at: Timestamp) {
        self.heap.push(Reverse((at, name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(schedule: &str, last_run_at: &str) -> Stored {
        Stored {
            text: format!(r#"{{"task":"t","schedule":{schedule}}}"#),
            enabled: true,
            from_file: false,
            last_run_at: last_run_at.into(),
            total_run_count: 0,
        }
    }

    fn agenda(entries: &[(&str, Stored)]) -> Agenda {
        let mut agenda = Agenda::new(None);
        let entries = entries
            .iter()
            .map(|(name, stored)| ((*name).to_owned(), stored.clone()));
        agenda.load(entries.collect(), &TimeZone::UTC);
        agenda
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    /// All that is done at a time, as beat does it: name and due time.
    fn run(agenda: &mut Agenda, now: Timestamp) -> Vec<(String, Option<Timestamp>)> {
        let mut done = Vec::new();
        while let Some(step) = agenda.step(now) {
            let (name, due_at) = match step {
                Step::Send { name, due_at } => (name, Some(due_at)),
                Step::Begin { name } => (name, None),
            };
            agenda.ran(name.clone(), now);
            done.push((name, due_at));
        }
        done
    }

    #[test]
    fn p_203_a_new_entry_is_first_due_one_interval_from_now() {
        let mut agenda = agenda(&[("e", stored("10", ""))]);
        assert_eq!(run(&mut agenda, at(1000)), [("e".to_owned(), None)]);
        assert_eq!(run(&mut agenda, at(1009)), []);
        assert_eq!(agenda.next(), Some(at(1010)));
        assert_eq!(run(&mut agenda, at(1010)), [("e".to_owned(), Some(at(1010)))]);
    }

    #[test]
    fn what_was_missed_is_made_up_for_once_and_no_due_time_comes_twice() {
        let (second, minute) = (
            stored("1", &clock::iso(at(0))),
            stored("\"* * * * *\"", &clock::iso(at(0))),
        );
        let mut agenda = agenda(&[("a", second), ("b", minute)]);
        let mut seen = std::collections::BTreeSet::new();
        let mut runs = 0;
        // Ticks, a gap of an hour, a clock that goes back a little, and on.
        let times = (1..200).chain(3800..4000).chain(3980..4100);
        for now in times {
            for (name, due_at) in run(&mut agenda, at(now)) {
                runs += 1;
                assert!(seen.insert((name, due_at)), "{due_at:?} came twice");
            }
        }
        let of = |name: &str| seen.iter().filter(|(entry, _)| entry == name).count();
        assert_eq!(runs, seen.len());
        assert_eq!((of("a"), of("b")), (199 + 300, 3 + 5 + 1));
    }

    #[test]
    fn a_last_run_in_the_future_counts_from_now() {
        let mut agenda = agenda(&[("e", stored("10", &clock::iso(at(100_000))))]);
        assert_eq!(run(&mut agenda, at(1000)), [("e".to_owned(), None)]);
        assert_eq!(run(&mut agenda, at(1010)), [("e".to_owned(), Some(at(1010)))]);
    }

    #[test]
    fn what_cannot_be_understood_or_is_disabled_does_not_stop_the_others() {
        let disabled = Stored {
            enabled: false,
            ..stored("1", "")
        };
        let mut agenda = agenda(&[
            ("a", stored("\"x\"", "")),
            ("b", disabled),
            ("c", stored("1", "garbage")),
        ]);
        assert_eq!(run(&mut agenda, at(1000)), [("c".to_owned(), None)]);
        assert_eq!(run(&mut agenda, at(1001)), [("c".to_owned(), Some(at(1001)))]);
    }
}
