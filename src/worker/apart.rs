//! Results on another server than the broker's go their own way: while that one is away, or slow, the broker hears of
//! everything that need not wait for a result. What must wait comes back from here when the results are stored.

use std::collections::HashSet;

use redis::Pipeline;
use tokio::sync::{mpsc, oneshot};

use super::sending::Sending;
use super::unsent::Messages;
use crate::broker::Tag;
use crate::{backend, broker};

/// Largest number of writes that go together.
const BATCH: usize = 1024;

/// What goes this way of one flush.
#[derive(Default)]
pub(super) struct Load {
    /// Sizes of chords.
    pub groups: Vec<backend::Write>,
    /// Messages that go behind these; others have been sent.
    pub publishes: Messages,
    /// Those of them that stay here.
    pub stays: Vec<Tag>,
    pub results: Vec<backend::Write>,
    /// Keys of results that are told once more.
    pub again: Vec<Vec<u8>>,
    /// What comes back.
    pub waits: Waits,
}

/// What waits until results are stored.
#[derive(Default)]
pub(super) struct Waits {
    /// Error callbacks.
    pub later: Messages,
    pub acks: Vec<broker::Write>,
    pub flushed: Vec<oneshot::Sender<()>>,
    /// The messages that are held until then.
    pub tags: Vec<Tag>,
    /// Those that are held from then on.
    stays: Vec<Tag>,
    /// How many writes it was, how many bytes, and how many of the writes somebody waits for.
    pub size: usize,
    pub bytes: usize,
    pub matter: usize,
    /// Keys of results that nobody has heard of.
    pub unheard: Vec<Vec<u8>>,
}

/// The way there and back.
pub(super) struct Apart {
    there: mpsc::UnboundedSender<Load>,
    back: mpsc::UnboundedReceiver<(usize, Waits)>,
    /// Loads that have not come back.
    away: usize,
    /// Messages that are held by what is in them.
    stays: HashSet<Tag>,
}

/// What goes the way.
pub(super) struct Carrier {
    loads: mpsc::UnboundedReceiver<Load>,
    /// With how many loads it was.
    done: mpsc::UnboundedSender<(usize, Waits)>,
}

impl Load {
    pub(super) fn is_empty(&self) -> bool {
        self.waits.size == 0 && self.waits.flushed.is_empty() && self.again.is_empty()
    }

    fn append(&mut self, mut more: Self) {
        self.groups.append(&mut more.groups);
        self.publishes.append(more.publishes);
        self.stays.append(&mut more.stays);
        self.results.append(&mut more.results);
        self.again.append(&mut more.again);
        self.waits.append(more.waits);
    }
}

impl Waits {
    fn append(&mut self, mut more: Self) {
        self.later.append(more.later);
        self.acks.append(&mut more.acks);
        self.flushed.append(&mut more.flushed);
        self.tags.append(&mut more.tags);
        self.stays.append(&mut more.stays);
        self.size += more.size;
        self.bytes += more.bytes;
        self.matter += more.matter;
    }
}

impl Apart {
    /// Both ends.
    pub(super) fn new() -> (Self, Carrier) {
        let (there, loads) = mpsc::unbounded_channel();
        let (done, back) = mpsc::unbounded_channel();
        let here = Self {
            there,
            back,
            away: 0,
            stays: HashSet::new(),
        };
        (here, Carrier { loads, done })
    }

    /// Whether something is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.away > 0
    }

    /// Whether the message will be held by what is on its way.
    pub(super) fn is_to_be_held(&self, tag: &Tag) -> bool {
        self.stays.contains(tag)
    }

    /// Hands it over, in order.
    pub(super) fn send(&mut self, mut load: Load) {
        self.away += 1;
        self.stays.extend(load.stays.iter().cloned());
        load.waits.stays.clone_from(&load.stays);
        // Both ends are the writer's.
        let _ = self.there.send(load);
    }

    /// The next that comes back; may be cancelled.
    pub(super) async fn next(&mut self) -> Waits {
        match self.back.recv().await {
            Some(came) => self.came(came),
            None => std::future::pending().await,
        }
    }

    /// What has come back already.
    pub(super) fn next_now(&mut self) -> Option<Waits> {
        self.back.try_recv().ok().map(|came| self.came(came))
    }

    fn came(&mut self, (loads, waits): (usize, Waits)) -> Waits {
        self.away -= loads;
        for tag in &waits.stays {
            self.stays.remove(tag);
        }
        waits
    }
}

impl Carrier {
    /// Carries until the other end is gone. Loads that wait go together, so that many small ones take no longer.
    pub(super) async fn run(mut self, sending: &Sending) {
        while let Some(mut load) = self.loads.recv().await {
            let mut loads = 1;
            while load.waits.size < BATCH
                && let Ok(more) = self.loads.try_recv()
            {
                load.append(more);
                loads += 1;
            }
            let waits = sending.carry(load).await;
            let _ = self.done.send((loads, waits));
        }
    }
}

impl Sending {
    /// Stores a load; what waited for that.
    async fn carry(&self, mut load: Load) -> Waits {
        let Some(backend) = &self.backend else {
            return load.waits;
        };
        let store = async |writes: &[backend::Write]| {
            let mut pipe = Pipeline::new();
            backend.append(&mut pipe, writes);
            self.insist_or_say("backend", backend.link(), &pipe).await
        };
        // Before the messages of a header: its members may end before the last of them is sent.
        store(&load.groups).await;
        let mut waits = load.waits;
        if !load.publishes.writes.is_empty() {
            let mut pipe = Pipeline::new();
            self.broker.append(&mut pipe, &load.publishes.writes);
            let sent = [(&load.publishes, 0)];
            let said = self.insist("broker", self.broker.writer(), &pipe, &sent).await;
            let rest = self
                .give_up((&load.publishes, 0), said.refused, &mut waits.acks, &mut load.stays)
                .await;
            self.say_refused(&pipe, &rest);
            self.tell_stays(&mut load.stays);
        }
        if backend.looks() {
            self.look(backend, &mut load.results).await;
        }
        waits.unheard = store(&load.results).await;
        if !load.again.is_empty() {
            let mut pipe = Pipeline::new();
            backend.append_again(&mut pipe, &load.again);
            self.insist_or_say("backend", backend.link(), &pipe).await;
        }
        backend.link().carried(waits.bytes);
        waits
    }
}
