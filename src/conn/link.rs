//! A connection that comes back by itself.
//!
//! A supervisor owns the making of connections; everybody else uses the one that stands. Every command has a deadline
//! and an idle connection is asked for a sign of life, so that a half-open one is found within seconds. What is heard
//! by pub/sub comes on a connection of its own: a server closes one that subscribes as soon as 32 MB of answers wait
//! for it (`client-output-buffer-limit pubsub`), so that one large message would stop a worker.

mod former;
mod hear;
mod open;
mod outage;
mod send;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Script};
use tokio::sync::{Notify, OnceCell, Semaphore, mpsc, watch};
use tracing::warn;

use super::patience::patiently_where;
use super::{Endpoint, Error};
use crate::clock;
use former::Former;
use hear::{PUSHED_BYTES, PUSHES};
use open::{Place, supervise};
use outage::{Outage, Pulse};
use send::Waiting;

pub use hear::Push;
pub(crate) use hear::Share;
pub use send::Patience;

/// Time limits of a link.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// For making a connection.
    pub connect_timeout: Duration,
    /// For the first answer to a command or pipeline; a repeated one waits longer.
    pub response_timeout: Duration,
    /// A connection that said nothing for this long is asked for a sign of life.
    pub health_check: Duration,
    /// How long it has to give it: a server that writes a large message to its file is busy for a while.
    pub sign_of_life: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_millis(3500),
            // Longer than a heartbeat's pause: what heartbeats are sent or heard on is not asked.
            health_check: Duration::from_millis(2400),
            sign_of_life: Duration::from_millis(1800),
        }
    }
}

/// See [`Link::carried`].
const BULKY: usize = 16 << 20;

/// One connection to a Redis, made again when it breaks. Clones share it.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Endpoint,
    options: LinkOptions,
    /// In a cluster: the node that has our slot, when it is not the one of the URL.
    node: Mutex<Option<(String, u16)>>,
    /// The connection that stands, with its number; `None` while there is none.
    current: watch::Sender<Option<(u64, MultiplexedConnection)>>,
    /// Its sign of life, and which broker of a list it is connected to.
    pulse: Arc<Pulse>,
    /// Shared with all other connections to that endpoint.
    outage: Arc<Outage>,
    /// Pipelines that wait for their answer.
    waiting: Waiting,
    /// Whether its buffers have grown beyond what it mostly needs.
    bulky: AtomicBool,
    /// Cleared when the connection is followed by another: its end is no news then.
    stands: Mutex<Arc<AtomicBool>>,
    former: Mutex<Former>,
    setup: Mutex<Setup>,
    woken: Arc<Notify>,
    /// Ends the pause before the next try to connect.
    hurry: Arc<Notify>,
    /// The link that hears pub/sub; it is made when somebody subscribes.
    ears: OnceCell<Link>,
    pushes: mpsc::Sender<Push>,
    room: Arc<Semaphore>,
    unread: Mutex<Option<mpsc::Receiver<Push>>>,
    dropped: AtomicU64,
    /// How often a connection that broke was made again.
    again: AtomicU64,
    /// News of keys come, where they are asked for.
    is_told: AtomicBool,
    /// Before the first connection: the server was there, and not ready.
    is_coming: AtomicBool,
}

/// What a new connection is told.
#[derive(Clone, Default)]
struct Setup {
    scripts: Vec<Script>,
    /// How news of keys are asked for.
    tracking: Option<Cmd>,
    /// Keys whose change is no news.
    quiet: Vec<String>,
    channels: HashSet<String>,
    patterns: HashSet<String>,
}

impl Link {
    /// Connects. One that is there and not ready yet (it loads its data, has no time to answer, or dropped us because
    /// it is being started again) is waited for, some seconds; one that is not there is not.
    ///
    /// # Errors
    /// The server cannot be reached; the text says which and what to do.
    pub async fn connect(endpoint: &Endpoint, options: LinkOptions) -> Result<Self, Error> {
        let (pushes, unread) = mpsc::channel(PUSHES);
        let link = Self::new(endpoint, options, pushes, Some(unread));
        let told = AtomicBool::new(false);
        let is_coming = |error: &Error| {
            let is_coming = link.shared.is_coming.load(Ordering::Relaxed);
            if is_coming && !told.swap(true, Ordering::Relaxed) {
                warn!("{error}; trying again for some seconds");
            }
            is_coming
        };
        patiently_where(is_coming, || link.first()).await?;
        tokio::spawn(supervise(Arc::downgrade(&link.shared)));
        Ok(link)
    }

    fn new(
        endpoint: &Endpoint,
        options: LinkOptions,
        pushes: mpsc::Sender<Push>,
        unread: Option<mpsc::Receiver<Push>>,
    ) -> Self {
        let shared = Arc::new(Shared {
            endpoint: endpoint.clone(),
            options,
            node: Mutex::default(),
            current: watch::Sender::new(None),
            pulse: Arc::new(Pulse::new()),
            outage: Outage::of(&endpoint.to_string()),
            waiting: Waiting::default(),
            bulky: AtomicBool::new(false),
            stands: Mutex::default(),
            former: Mutex::default(),
            setup: Mutex::default(),
            woken: Arc::new(Notify::new()),
            hurry: Arc::default(),
            ears: OnceCell::new(),
            pushes,
            room: Arc::new(Semaphore::new(PUSHED_BYTES)),
            unread: Mutex::new(unread),
            dropped: AtomicU64::new(0),
            again: AtomicU64::new(0),
            is_told: AtomicBool::new(false),
            is_coming: AtomicBool::new(false),
        });
        Self { shared }
    }

    /// The first connection; its number is 1.
    async fn first(&self) -> Result<(), Error> {
        let mut opened = self.shared.open(Place::Free).await;
        for _ in 1..self.shared.endpoint.count() {
            if opened.is_ok() {
                break;
            }
            opened = self.shared.open(Place::Free).await;
        }
        let connection = opened?.connection;
        self.shared.outage.returned(&self.shared.pulse, clock::instant());
        self.shared.current.send_replace(Some((1, connection)));
        Ok(())
    }

    /// The link that hears pub/sub. It need not be connected yet.
    async fn ears(&self) -> &Self {
        let shared = &self.shared;
        let make = async || {
            let ears = Self::new(&shared.endpoint, shared.options.clone(), shared.pushes.clone(), None);
            // Should it fail, the supervisor tries again.
            let _ = ears.first().await;
            tokio::spawn(supervise(Arc::downgrade(&ears.shared)));
            ears
        };
        shared.ears.get_or_init(make).await
    }

    /// Where it goes.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    /// Whether both are the same connection, so that one pipeline can carry the commands of both.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// The number of the connection that stands; 0 while there is none.
    pub fn epoch(&self) -> u64 {
        self.shared.current.borrow().as_ref().map_or(0, |(epoch, _)| *epoch)
    }

    /// Waits until there is a connection; at least a moment, so that a caller that tries again does not spin.
    pub async fn ready(&self) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        // Fails only when the sender is gone, which `self` holds.
        let _ = self.shared.current.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits for a connection that is another than that of this number; its number.
    pub async fn renewed(&self, epoch: u64) -> u64 {
        let mut current = self.shared.current.subscribe();
        let is_another = |current: &Option<(u64, _)>| current.as_ref().is_some_and(|(number, _)| *number != epoch);
        let renewed = current.wait_for(is_another).await;
        // Fails only when the sender is gone, which `self` holds.
        renewed.map_or(0, |current| current.as_ref().map_or(0, |(number, _)| *number))
    }

    /// Says that so many bytes went over it at once. The buffers of a connection grow and never shrink: after much it
    /// is followed by another, soon and without a word, so that one large message does not take its memory for ever.
    pub fn carried(&self, bytes: usize) {
        if bytes > BULKY {
            self.shared.bulky.store(true, Ordering::Relaxed);
        }
    }

    /// How often a connection that broke was made again: this one's, and that which hears pub/sub.
    pub fn reconnects(&self) -> (u64, u64) {
        let again = |link: &Self| link.shared.again.load(Ordering::Relaxed);
        (again(self), self.shared.ears.get().map_or(0, again))
    }

    /// How many pub/sub messages were dropped because they came faster than they were read.
    pub fn dropped(&self) -> u64 {
        let dropped = |link: &Self| link.shared.dropped.load(Ordering::Relaxed);
        dropped(self) + self.shared.ears.get().map_or(0, dropped)
    }

    /// The number of the connection that hears pub/sub; see [`epoch`](Self::epoch).
    pub fn ears_epoch(&self) -> u64 {
        self.shared.ears.get().map_or(0, Self::epoch)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Link").field(&self.shared.endpoint).finish()
    }
}

impl Shared {
    /// What new connections are told. A panic while it was held cannot leave it half-written: it is only extended.
    fn setup(&self) -> std::sync::MutexGuard<'_, Setup> {
        self.setup.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn former(&self) -> std::sync::MutexGuard<'_, Former> {
        self.former.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn node(&self) -> std::sync::MutexGuard<'_, Option<(String, u16)>> {
        self.node.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Our slot is at another node of the cluster: the next connection goes there.
    fn move_to(&self, node: (String, u16)) {
        let place = format!("{}:{}", node.0, node.1);
        if self.node().replace(node.clone()).as_ref() != Some(&node) {
            let epoch = self.current.borrow().as_ref().map(|(epoch, _)| *epoch);
            if let Some(epoch) = epoch {
                self.broken(epoch, &format!("our keys are at {place}"));
            }
        }
    }

    /// Takes a connection for gone, if it still is the current one.
    fn broken(&self, epoch: u64, why: &str) {
        let gone = self.current.send_if_modified(|current| {
            let ours = current.as_ref().is_some_and(|(number, _)| *number == epoch);
            if ours {
                *current = None;
            }
            ours
        });
        if gone && self.outage.broke(&self.pulse, clock::instant()) {
            warn!("lost the connection to Redis at {}: {why}; reconnecting", self.endpoint);
        }
    }
}
