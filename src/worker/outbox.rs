//! What the consumer loop has to say and Redis has not heard yet: the loop puts it into an outbox and goes on, the
//! [writer](super::writer) takes it out of the inbox and sends it. How much waits is counted, since without a Redis it
//! grows; and which messages are held until then is noted, since they are ours still.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::broker::Tag;
use crate::{backend, broker};

/// With so many writes waiting nothing is started: what cannot be acknowledged should not be claimed.
const WRITES: usize = 20_000;

/// One thing to send.
#[derive(Debug)]
pub(crate) enum Out {
    Broker(broker::Write),
    /// An ack that waits for nothing, or what goes back without having started.
    Early(broker::Write),
    /// A message that follows a task whose own message is held under that tag.
    Follow(Tag, broker::Write),
    /// A message that must not be there before the results are; and what it follows.
    Later(Option<Tag>, broker::Write),
    /// A message that is ours from the start; the consumer loop is told when it is in Redis. And what it follows.
    Stay(Option<Tag>, broker::Write),
    Backend(backend::Write),
    /// A task event, as text; all of a flush go in one message.
    Event(Vec<u8>),
    /// Answered when everything before it has been sent.
    Flushed(oneshot::Sender<()>),
}

impl Out {
    /// The same, but a message goes after the results.
    pub(crate) fn afterwards(self) -> Self {
        match self {
            Self::Broker(write @ broker::Write::Publish { .. }) => Self::Later(None, write),
            other => other,
        }
    }

    /// The same, as what follows a task whose message is held under that tag.
    pub(crate) fn following(self, tag: &Tag) -> Self {
        match self {
            Self::Broker(write @ broker::Write::Publish { .. }) => Self::Follow(tag.clone(), write),
            Self::Later(_, write) => Self::Later(Some(tag.clone()), write),
            Self::Stay(_, write) => Self::Stay(Some(tag.clone()), write),
            other => other,
        }
    }
}

impl Out {
    /// What it holds beside a few words.
    fn bytes(&self) -> usize {
        match self {
            Self::Broker(write)
            | Self::Early(write)
            | Self::Follow(_, write)
            | Self::Later(_, write)
            | Self::Stay(_, write) => write.bytes(),
            Self::Backend(write) => write.bytes(),
            Self::Event(event) => event.len(),
            Self::Flushed(_) => 0,
        }
    }

    /// What goes to the broker.
    fn to_broker(&self) -> Option<&broker::Write> {
        match self {
            Self::Broker(write) | Self::Early(write) => Some(write),
            _ => None,
        }
    }

    /// Whether somebody waits for what it brings: a result, or a message that follows. Acks, events and answers are no
    /// loss.
    pub(super) fn matters(&self) -> bool {
        match self {
            Self::Broker(write) => matches!(write, broker::Write::Publish { .. } | broker::Write::Hold { .. }),
            Self::Follow(..) | Self::Later(..) | Self::Stay(..) => true,
            Self::Backend(write) => write.matters(),
            Self::Early(_) | Self::Event(_) | Self::Flushed(_) => false,
        }
    }
}

/// What waits to be sent.
struct Backlog {
    writes: AtomicUsize,
    bytes: AtomicUsize,
    /// Those that somebody waits for.
    matter: AtomicUsize,
    /// Bytes that may wait.
    bound: usize,
}

/// Writes that go together, and their bytes.
pub(super) type Handed = (Vec<Out>, usize);

/// Where the consumer loop puts what is to be sent.
#[derive(Clone)]
pub(crate) struct Outbox {
    queue: mpsc::UnboundedSender<Handed>,
    backlog: Arc<Backlog>,
    stuck: Stuck,
}

/// Messages that are done with here and held in Redis, because something cannot be sent.
#[derive(Default)]
struct Held {
    /// Nothing can be.
    waiting: Vec<Tag>,
    /// Their results cannot be, which go to another server; how many times.
    apart: HashMap<Tag, usize>,
}

type Stuck = Arc<Mutex<Held>>;

/// What was handed over and is not being sent yet.
pub(crate) struct Inbox {
    backlog: Arc<Backlog>,
    queue: mpsc::UnboundedReceiver<Handed>,
    /// What was looked at before its turn.
    ahead: VecDeque<Handed>,
    /// Messages that are done with by what is being sent.
    sending: Vec<Tag>,
    stuck: Stuck,
    is_stuck: bool,
}

/// A pair of the two; `bound` is how many bytes may wait.
pub(crate) fn outbox(bound: usize) -> (Outbox, Inbox) {
    let (sender, queue) = mpsc::unbounded_channel();
    let backlog = Arc::new(Backlog {
        writes: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        matter: AtomicUsize::new(0),
        bound,
    });
    let stuck = Stuck::default();
    let outbox = Outbox {
        queue: sender,
        backlog: backlog.clone(),
        stuck: stuck.clone(),
    };
    let inbox = Inbox {
        backlog,
        queue,
        ahead: VecDeque::new(),
        sending: Vec::new(),
        stuck,
        is_stuck: false,
    };
    (outbox, inbox)
}

impl Inbox {
    pub(super) async fn next(&mut self) -> Option<Handed> {
        match self.ahead.pop_front() {
            Some(handed) => Some(handed),
            None => self.queue.recv().await,
        }
    }

    pub(super) fn next_now(&mut self) -> Option<Handed> {
        self.ahead.pop_front().or_else(|| self.queue.try_recv().ok())
    }

    /// This is sent next.
    pub(super) fn sends<'a>(&mut self, writes: impl IntoIterator<Item = &'a broker::Write>) {
        self.sending.clear();
        let tags = writes.into_iter().flat_map(broker::Write::held).cloned();
        self.sending.extend(tags);
    }

    /// Notes the messages that are held until what is being sent, and what waits behind it, is in Redis.
    pub(super) fn note(&mut self) {
        while let Ok(handed) = self.queue.try_recv() {
            self.ahead.push_back(handed);
        }
        let waiting = self
            .ahead
            .iter()
            .flat_map(|(writes, _)| writes)
            .filter_map(Out::to_broker);
        let tags = self.sending.iter().chain(waiting.flat_map(broker::Write::held));
        let tags = tags.cloned().collect();
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner).waiting = tags;
        self.is_stuck = true;
    }

    /// These are held until their results are on another server.
    pub(super) fn holds(&self, tags: &[Tag]) {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        for tag in tags {
            *stuck.apart.entry(tag.clone()).or_default() += 1;
        }
    }

    /// They are.
    pub(super) fn holds_no_more(&self, tags: &[Tag]) {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        for tag in tags {
            if let Entry::Occupied(mut times) = stuck.apart.entry(tag.clone()) {
                *times.get_mut() -= 1;
                if *times.get() == 0 {
                    times.remove();
                }
            }
        }
    }

    /// What was being sent is in Redis: so many writes and bytes, and so many of the writes were waited for.
    pub(super) fn sent(&mut self, writes: usize, bytes: usize, matter: usize) {
        self.backlog.writes.fetch_sub(writes, Ordering::Relaxed);
        self.backlog.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.backlog.matter.fetch_sub(matter, Ordering::Relaxed);
        if std::mem::take(&mut self.is_stuck) {
            let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
            stuck.waiting.clear();
        }
    }
}
impl Outbox {
    /// Hands over writes, in order. The queue is bounded by those who make more: while it [`is_full`](Self::is_full)
    /// no message is taken and no task started.
    pub(crate) fn send(&self, writes: Vec<Out>) {
        if writes.is_empty() {
            return;
        }
        let (bytes, bound) = (writes.iter().map(Out::bytes).sum(), self.backlog.bound);
        self.backlog.writes.fetch_add(writes.len(), Ordering::Relaxed);
        let matter = writes.iter().filter(|write| write.matters()).count();
        self.backlog.matter.fetch_add(matter, Ordering::Relaxed);
        let before = self.backlog.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before <= bound && before + bytes > bound {
            warn!(
                "{} bytes wait for Redis: no task is started until it has taken them (worker_backlog_bytes)",
                before + bytes
            );
        }
        // A writer that is gone ends the worker; nobody reads the answer then.
        let _ = self.queue.send((writes, bytes));
    }

    /// Writes that have not been sent yet.
    pub(crate) fn backlog(&self) -> usize {
        self.backlog.writes.load(Ordering::Relaxed)
    }

    /// Results and messages that follow which are not in Redis yet.
    pub(crate) fn unwritten(&self) -> usize {
        self.backlog.matter.load(Ordering::Relaxed)
    }

    /// Whether so much waits that nothing should be started that adds to it.
    pub(crate) fn is_full(&self) -> bool {
        self.backlog() > WRITES || self.backlog.bytes.load(Ordering::Relaxed) > self.backlog.bound
    }

    /// Whether twice as much waits: then what nobody waits for for long is left out as well.
    pub(crate) fn is_overfull(&self) -> bool {
        self.backlog() > 2 * WRITES || self.backlog.bytes.load(Ordering::Relaxed) > 2 * self.backlog.bound
    }

    /// Messages that are done with, whose acks wait longer than usual: nobody else may have them meanwhile.
    pub(crate) fn stuck(&self) -> Vec<Tag> {
        let stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        stuck.waiting.iter().chain(stuck.apart.keys()).cloned().collect()
    }

    /// Waits until everything handed over so far is in Redis; acks of it may still be to come.
    pub(crate) async fn flushed(&self) {
        let (done, wait) = oneshot::channel();
        self.send(vec![Out::Flushed(done)]);
        let _ = wait.await;
    }

    /// Waits until nothing of what was handed over so far is to come.
    pub(crate) async fn settled(&self) {
        self.flushed().await;
        // Error callbacks go with the flush that follows, acks with the one behind that.
        self.flushed().await;
        self.flushed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_writes_may_wait() {
        let (outbox, mut inbox) = outbox(1 << 30);
        let some = |count| (0..count).map(|_| Out::Event(Vec::new())).collect();
        outbox.send(some(WRITES));
        assert!(!outbox.is_full());
        outbox.send(some(1));
        assert!(outbox.is_full());
        inbox.sent(1, 0, 0);
        assert!(!outbox.is_full());
    }
}
