//! Messages that wait long for their ETA, when there are many. Of each 32 bytes are remembered; the message stays in
//! `unacked`, where it is, and is read again shortly before it is due.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, error};

use super::request::Delivery;
use super::room::{Room, Share};
use crate::broker::{Broker, Tag, in_json};
use crate::clock::{self, Timestamp};
use crate::conn::Patience;

/// So many requests are kept whole, which is what `inspect scheduled` can show.
const WHOLE: usize = 4000;
/// What is due sooner is kept whole.
pub(super) const FAR: Duration = Duration::from_secs(3);
/// How long before it is due a message is read again.
const LEAD: Duration = Duration::from_secs(1);
/// Messages read at once: bounds how long one script occupies Redis.
const BATCH: usize = 128;
/// How soon it is tried again to read what Redis refuses to show.
const AGAIN: Duration = Duration::from_secs(1);
/// Messages on their way back, at most; together with those that are kept, at most twice as many as are kept whole:
/// what is due at one moment comes as fast as it is run.
const AWAY: usize = 1024;
/// Beyond this messages are kept whole, and the bound of those holds.
const MOST: usize = 8_000_000;

/// Where a parked message is.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub tag: Tag,
    pub queue: Arc<str>,
    pub priority: u8,
}

/// 32 bytes: there may be millions.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    due: Microseconds,
    claim: [u64; 2],
    number: u32,
    list: u16,
    mark: u16,
}

impl Entry {
    fn tag(&self) -> Tag {
        let claim = u128::from(self.claim[0]) << 64 | u128::from(self.claim[1]);
        Tag::from_parts(claim, self.number)
    }
}

/// Microseconds since the epoch.
type Microseconds = i64;

/// The parked messages, by when they are due.
#[derive(Default)]
pub(crate) struct Parked {
    heap: BinaryHeap<Reverse<Entry>>,
    lists: Vec<(Arc<str>, u8)>,
    /// Those on their way back, in order.
    away: VecDeque<Spot>,
}

impl Parked {
    /// Whether a message that is due then, in a worker that keeps so many, is to be parked.
    pub(crate) fn wants(&self, kept: usize, eta: Timestamp, now: Timestamp) -> bool {
        kept > WHOLE && self.heap.len() < MOST && clock::until(eta, now) > FAR
    }

    /// Remembers a message; whether it could.
    pub(crate) fn add(&mut self, place: &Spot, id: &str, eta: Timestamp) -> bool {
        let (Some((claim, number)), Some(list)) = (place.tag.parts(), self.list(&place.queue, place.priority)) else {
            return false;
        };
        self.heap.push(Reverse(Entry {
            due: eta.as_microsecond(),
            claim: [(claim >> 64) as u64, claim as u64],
            number,
            list,
            mark: mark(id),
        }));
        true
    }

    fn list(&mut self, queue: &Arc<str>, priority: u8) -> Option<u16> {
        let known = self
            .lists
            .iter()
            .position(|list| list.0 == *queue && list.1 == priority);
        let at = known.unwrap_or_else(|| {
            self.lists.push((queue.clone(), priority));
            self.lists.len() - 1
        });
        u16::try_from(at).ok()
    }

    /// How many there are, with those on their way back.
    pub(crate) fn len(&self) -> usize {
        self.heap.len() + self.away.len()
    }

    /// When to look at them again; `None` while there are none, or as many on their way back, or kept by the worker, as
    /// may be.
    pub(crate) fn next(&self, kept: usize) -> Option<Timestamp> {
        let Reverse(first) = self.heap.peek()?;
        let due = Timestamp::from_microsecond(first.due).unwrap_or(Timestamp::MAX);
        let away = self.away.len();
        let room = away < AWAY && kept + away < WHOLE * 2;
        room.then(|| due.checked_sub(LEAD).unwrap_or(due))
    }

    /// Those that are due soon, as many as may come back now.
    pub(crate) fn take_due(&mut self, kept: usize, now: Timestamp) -> Vec<Spot> {
        let mut due = Vec::new();
        while self.next(kept).is_some_and(|next| next <= now)
            && let Some(Reverse(entry)) = self.heap.pop()
        {
            let place = self.place(&entry);
            self.away.push_back(place.clone());
            due.push(place);
        }
        due
    }

    /// Those that are due by then, and those on their way back. The lease that each was given ends a moment after its
    /// ETA, and what is due at one moment may take longer to come back.
    pub(crate) fn due_by(&self, time: Timestamp) -> Vec<Tag> {
        let is_due = |entry: &Entry| entry.due <= time.as_microsecond();
        let mut tags: Vec<Tag> = self.away.iter().map(|place| place.tag.clone()).collect();
        // There may be millions that are not.
        if self.heap.peek().is_some_and(|Reverse(first)| is_due(first)) {
            let due = self.heap.iter().filter(|Reverse(entry)| is_due(entry));
            tags.extend(due.map(|Reverse(entry)| entry.tag()));
        }
        tags
    }

    /// Those that may be one of these tasks.
    pub(crate) fn take_tasks<'a>(&mut self, ids: impl Iterator<Item = &'a str>) -> Vec<Spot> {
        let marks: HashSet<u16> = ids.map(mark).collect();
        let all = std::mem::take(&mut self.heap).into_vec();
        let (wanted, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|Reverse(entry)| marks.contains(&entry.mark));
        self.heap = others.into();
        let wanted: Vec<Spot> = wanted.iter().map(|Reverse(entry)| self.place(entry)).collect();
        self.away.extend(wanted.iter().cloned());
        wanted
    }

    /// All, for a worker that ends: they go back to their queues, also those that are on their way to us.
    pub(crate) fn take_all(&mut self) -> Vec<Spot> {
        let (all, away) = (std::mem::take(&mut self.heap), std::mem::take(&mut self.away));
        all.iter().map(|Reverse(entry)| self.place(entry)).chain(away).collect()
    }

    /// So many came back.
    pub(crate) fn came_back(&mut self, count: usize) {
        self.away.drain(..count.min(self.away.len()));
    }

    fn place(&self, entry: &Entry) -> Spot {
        let (queue, priority) = self.lists[usize::from(entry.list)].clone();
        Spot {
            tag: entry.tag(),
            queue,
            priority,
        }
    }
}

/// Finds a task again among many, but for some that are not meant.
fn mark(id: &str) -> u16 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish() as u16
}

/// What was read again.
pub(crate) struct Recalled {
    /// How many were asked for; what is not among the messages is somebody else's now.
    pub asked: usize,
    pub messages: Vec<(Delivery, bytes::Bytes, Share)>,
}

/// The service that reads parked messages again.
pub(crate) struct Recaller {
    pub broker: Broker,
    pub room: Room,
    pub wanted: mpsc::UnboundedReceiver<Vec<Spot>>,
    pub to: mpsc::UnboundedSender<Recalled>,
}

impl Recaller {
    /// Runs until the consumer loop is gone.
    pub(crate) async fn run(mut self) {
        let mut said = false;
        while let Some(places) = self.wanted.recv().await {
            let mut places = &places[..];
            while !places.is_empty() {
                let batch = &places[..places.len().min(BATCH)];
                let tags: Vec<Tag> = batch.iter().map(|place| place.tag.clone()).collect();
                let patience = Patience::default();
                let found = loop {
                    match self.broker.recall(&tags, &patience).await {
                        Ok(found) => break found,
                        Err(error) => {
                            debug!(%error, "parked messages cannot be read");
                            if !error.is_transient() {
                                if !std::mem::replace(&mut said, true) {
                                    error!(
                                        "messages whose ETA has come cannot be read; trying again each second: {error}"
                                    );
                                }
                                tokio::time::sleep(AGAIN).await;
                            }
                            self.broker.ready().await;
                        }
                    }
                };
                // Large ones come a few at a time.
                let (asked, rest) = places.split_at(found.len().min(batch.len()));
                places = rest;
                let messages = asked.iter().zip(found).filter_map(|(place, held)| {
                    let raw = unwrapped(&held?, &place.queue)?;
                    let delivery = Delivery::new(place.tag.clone(), place.queue.clone(), None);
                    let share = self.room.take(raw.len());
                    Some((delivery, raw, share))
                });
                let recalled = Recalled {
                    asked: asked.len(),
                    messages: messages.collect(),
                };
                if self.to.send(recalled).is_err() {
                    return;
                }
            }
        }
    }
}

/// The message of `[message,"","queue"]`.
pub(super) fn unwrapped(held: &[u8], queue: &str) -> Option<bytes::Bytes> {
    let tail = format!(",\"\",\"{}\"]", in_json(queue));
    let message = held.strip_prefix(b"[")?.strip_suffix(tail.as_bytes())?;
    Some(bytes::Bytes::copy_from_slice(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: u32) -> Spot {
        Spot {
            tag: Tag::from_parts(0x00ff_u128 << 64 | 7, number),
            queue: "q".into(),
            priority: 3,
        }
    }

    #[test]
    fn parked_messages_come_back_when_they_are_due_or_meant_and_only_once() {
        assert_eq!(std::mem::size_of::<Entry>(), 32);
        let now = clock::now();
        let at = |seconds| clock::after(now, Duration::from_secs(seconds));
        let mut parked = Parked::default();
        assert!(parked.wants(WHOLE + 1, at(60), now) && !parked.wants(WHOLE, at(60), now));
        assert!(!parked.wants(WHOLE + 1, at(1), now));
        for (number, seconds) in [(1, 60), (2, 30), (3, 90)] {
            assert!(parked.add(&place(number), &format!("task-{number}"), at(seconds)));
        }
        assert!(parked.take_due(0, now).is_empty());
        assert!(parked.due_by(at(29)).is_empty());
        let due = parked.take_due(0, at(29));
        assert_eq!(due.len(), 1);
        // One on its way back, and one that is due a second before.
        assert_eq!(parked.due_by(at(61)), [place(2).tag, place(1).tag]);
        assert!(parked.next(0).is_some() && parked.next(WHOLE * 2).is_none());
        assert_eq!(
            (due[0].tag.clone(), &*due[0].queue, due[0].priority),
            (place(2).tag, "q", 3)
        );
        let meant = parked.take_tasks(["task-3"].into_iter());
        assert_eq!(meant[0].tag, place(3).tag);
        assert_eq!(parked.len(), 3);
        parked.came_back(2);
        assert_eq!((parked.take_all().len(), parked.len()), (1, 0));
    }

    #[test]
    fn the_message_is_what_was_held() {
        assert_eq!(unwrapped(br#"[{"a": 1},"","q"]"#, "q").unwrap(), r#"{"a": 1}"#);
        assert_eq!(unwrapped(br#"[{},"","a\"b\\"]"#, r#"a"b\"#).unwrap(), "{}");
        assert!(unwrapped(br#"[{"a": 1},"","other"]"#, "q").is_none());
    }
}
