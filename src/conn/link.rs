//! A connection that comes back by itself.
//!
//! A supervisor owns the making of connections; everybody else uses the one that stands. Every command has a deadline
//! and an idle connection is asked for a sign of life, so that a half-open one is found within seconds. What is heard by
//! pub/sub comes on a connection of its own: a server closes one that subscribes as soon as 32 MB of answers wait for
//! it (`client-output-buffer-limit pubsub`), so that one large message would stop a worker.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, PushInfo, PushKind, Script, Value};
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::{info, warn};

use super::errand::{Errand, has_no_script, moved_to};
use super::error::{code, is_about_to_come, is_broken, is_transient_code, needs_reconnect};
use super::patience::{patiently, patiently_where};
use super::{Endpoint, Error};
use crate::backoff::Backoff;
use crate::clock::{self, Instant};

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

/// A message that came by pub/sub.
#[derive(Debug)]
pub struct Push {
    /// Where it was published.
    pub channel: String,
    /// What.
    pub payload: Vec<u8>,
    /// Gives its bytes back when nobody needs it any more.
    pub(crate) share: Share,
}

/// The room that a message takes which came by pub/sub: as long as this is there it counts among those that wait.
#[derive(Debug)]
pub(crate) struct Share(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// Pub/sub messages that wait to be read; beyond them the newest are dropped, so that a flood cannot fill the memory.
const PUSHES: usize = 4096;
/// Bytes of pub/sub messages that wait to be read.
const PUSHED_BYTES: usize = 64 << 20;

/// The longest wait for one answer, however often it was tried.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Channels in one `SUBSCRIBE`: bounds how long it occupies Redis.
const SUBSCRIBED: usize = 500;

/// See [`Link::carried`].
const BULKY: usize = 16 << 20;

/// Between two looks at a connection.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// How long the answer to something is waited for: twice as long after each time that it did not come in time, so that
/// what is large gets through a slow network, and a dead connection is still found soon.
#[derive(Clone, Debug, Default)]
pub struct Patience(Arc<AtomicU32>);

impl Patience {
    fn wait(&self, options: &LinkOptions) -> Duration {
        let late = self.0.load(Ordering::Relaxed).min(8);
        (options.response_timeout * (1 << late)).min(LONGEST_WAIT)
    }

    fn grow(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pipelines that wait for their answer. They are answered in order, so each is given as much time as the most
/// patient of those before it.
#[derive(Default)]
struct Waiting {
    count: AtomicUsize,
    patience_ms: AtomicU64,
}

impl Waiting {
    /// Joins with a patience; gives back the one to use.
    fn join(&self, patience: Duration) -> (Duration, WaitingGuard<'_>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let own = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let longest = self.patience_ms.fetch_max(own, Ordering::Relaxed).max(own);
        (Duration::from_millis(longest), WaitingGuard(self))
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }
}

struct WaitingGuard<'a>(&'a Waiting);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.patience_ms.store(0, Ordering::Relaxed);
        }
    }
}

/// Why there is no answer.
struct Unanswered {
    error: Error,
    /// It was on its way: the server may have done it.
    sent: bool,
}

impl From<Unanswered> for Error {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.error
    }
}

/// How often a command follows its slot to another node of a cluster.
const MOVES: usize = 3;

/// One connection to a Redis, made again when it breaks. Clones share it.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Endpoint,
    options: LinkOptions,
    /// Of a list of brokers: which one it is connected to.
    turn: AtomicUsize,
    /// In a cluster: the node that has our slot, when it is not the one of the URL.
    node: Mutex<Option<(String, u16)>>,
    /// The connection that stands, with its number; `None` while there is none.
    current: watch::Sender<Option<(u64, MultiplexedConnection)>>,
    /// When it last said something.
    heard: Mutex<Instant>,
    /// Pipelines that wait for their answer.
    waiting: Waiting,
    /// Whether its buffers have grown beyond what it mostly needs.
    bulky: AtomicBool,
    /// Cleared when the connection is followed by another: its end is no news then.
    stands: Mutex<Arc<AtomicBool>>,
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
    /// Connects. One that is there and not ready yet (it loads its data, has no time to answer, or dropped us because it is being started again) is
    /// waited for, some seconds; one that is not there is not.
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
            turn: AtomicUsize::new(0),
            node: Mutex::default(),
            current: watch::Sender::new(None),
            heard: Mutex::new(clock::instant()),
            waiting: Waiting::default(),
            bulky: AtomicBool::new(false),
            stands: Mutex::default(),
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
        let mut opened = self.shared.open().await;
        for _ in 1..self.shared.endpoint.count() {
            if opened.is_ok() {
                break;
            }
            opened = self.shared.open().await;
        }
        self.shared.current.send_replace(Some((1, opened?)));
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

    /// Runs one command.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut pipe = Pipeline::with_capacity(1);
        pipe.add_command(command.clone());
        let value = self.pipeline(&pipe).await?.pop().unwrap_or(Value::Nil);
        let refused = |error: &dyn std::fmt::Display| Error::Refused(format!("unexpected answer of Redis: {error}"));
        if let Value::ServerError(error) = &value {
            return Err(Error::from_server(error, &self.shared.endpoint.to_string()));
        }
        T::from_redis_value(value).map_err(|error| refused(&error))
    }

    /// Runs many commands. Errors of single commands come back as [`Value::ServerError`] in their place, unless they
    /// concern the server as a whole.
    ///
    /// # Errors
    /// The connection broke (some of the commands may have run), or the server answers none of them now.
    pub async fn pipeline(&self, pipe: &Pipeline) -> Result<Vec<Value>, Error> {
        self.pipeline_with(pipe, &Patience::default()).await
    }

    /// Runs many commands that were or will be tried again with the same patience.
    ///
    /// # Errors
    /// See [`pipeline`](Self::pipeline).
    pub async fn pipeline_with(&self, pipe: &Pipeline, patience: &Patience) -> Result<Vec<Value>, Error> {
        let mut errand = Errand::new(pipe);
        self.run(&mut errand, patience).await?;
        Ok(errand.into_answers())
    }

    /// Sends what is left of an errand; what the server did need not be sent again when the rest is tried again.
    ///
    /// # Errors
    /// See [`pipeline`](Self::pipeline).
    pub async fn run(&self, errand: &mut Errand<'_>, patience: &Patience) -> Result<(), Error> {
        self.send_rest(errand, patience).await?;
        for _ in 0..MOVES {
            // A node of a cluster that has not our slot did nothing of it.
            let Some(node) = errand.find(moved_to) else {
                break;
            };
            self.shared.move_to(node);
            let _ = tokio::time::timeout(self.shared.options.response_timeout, self.ready()).await;
            self.send_rest(errand, patience).await?;
        }
        // The scripts are gone from the server's cache: load them again, once.
        if errand.find(has_no_script).is_some() {
            self.load_scripts().await?;
            self.send_rest(errand, patience).await?;
        }
        errand.trouble(&self.shared.endpoint.to_string()).map_or(Ok(()), Err)
    }

    /// Sends what is left of an errand, which knows afterwards whether that was answered.
    async fn send_rest(&self, errand: &mut Errand<'_>, patience: &Patience) -> Result<(), Error> {
        match self.attempt(&errand.rest(), patience).await {
            Ok(answers) => errand.take(answers),
            Err(unanswered) => {
                errand.unanswered(unanswered.sent);
                return Err(unanswered.error);
            }
        }
        Ok(())
    }

    /// Sends, and waits for the answer, whatever it says.
    async fn attempt(&self, pipe: &Pipeline, patience: &Patience) -> Result<Vec<Value>, Unanswered> {
        let url = || self.shared.endpoint.to_string();
        let not_connected = || Unanswered {
            error: Error::Transient(format!("not connected to Redis at {}", url())),
            sent: false,
        };
        let current = self.shared.current.borrow().clone();
        let Some((epoch, mut connection)) = current else {
            return Err(not_connected());
        };
        if self.shared.endpoint.turn() != self.shared.turn.load(Ordering::Relaxed) {
            self.shared.broken(epoch, "another broker of the list is used now");
            return Err(not_connected());
        }
        let (longest, _waiting) = self.shared.waiting.join(patience.wait(&self.shared.options));
        connection.set_response_timeout(longest);
        match connection.req_packed_commands(pipe, 0, pipe.len()).await {
            Ok(values) => {
                self.shared.hear();
                for value in &values {
                    if let Value::ServerError(error) = value
                        && needs_reconnect(code(error))
                    {
                        self.shared.broken(epoch, &error.to_string());
                    }
                }
                Ok(values)
            }
            Err(error) => {
                if error.is_timeout() {
                    patience.grow();
                }
                if is_broken(&error) || error.code().is_some_and(needs_reconnect) {
                    self.shared.broken(epoch, &error.to_string());
                }
                Err(Unanswered {
                    error: Error::from_redis(&error, &url()),
                    sent: true,
                })
            }
        }
    }

    /// Makes scripts known, on this and every later connection.
    ///
    /// # Errors
    /// The server cannot be reached or refuses scripts.
    pub async fn register(&self, scripts: impl IntoIterator<Item = Script>) -> Result<(), Error> {
        self.shared.setup().scripts.extend(scripts);
        patiently(|| self.load_scripts()).await
    }

    async fn load_scripts(&self) -> Result<(), Error> {
        let mut pipe = Pipeline::new();
        for script in &self.shared.setup().scripts {
            pipe.load_script(script);
        }
        if pipe.is_empty() {
            return Ok(());
        }
        for value in self.attempt(&pipe, &Patience::default()).await? {
            if let Value::ServerError(error) = value {
                return Err(Error::from_server(&error, &self.shared.endpoint.to_string()));
            }
        }
        Ok(())
    }

    /// Asks for news of changed keys that begin with one of `prefixes` (`CLIENT TRACKING … BCAST`): each wakes
    /// [`woken`](Self::woken). Whether the server can do that; if not, callers have to look by themselves.
    pub async fn track(&self, prefixes: &[String]) -> bool {
        let mut command = tracking();
        command.arg("BCAST");
        for prefix in prefixes {
            command.arg("PREFIX").arg(prefix);
        }
        // Prefixes can be added but not changed; what is lost in between is seen by the next look at the keys.
        let _ = self
            .query::<Value>(redis::cmd("CLIENT").arg("TRACKING").arg("OFF"))
            .await;
        self.start_tracking(command).await
    }

    /// Asks for news of the keys that this connection reads: the next change of one wakes [`woken`](Self::woken), once.
    /// Redis counts all keys of a script that reads one; those of `quiet` are no news. Whether the server can do that.
    pub async fn track_reads(&self, quiet: Vec<String>) -> bool {
        self.shared.setup().quiet = quiet;
        self.start_tracking(tracking()).await
    }

    async fn start_tracking(&self, command: Cmd) -> bool {
        self.shared.setup().tracking = Some(command.clone());
        let started = patiently(|| self.query::<Value>(&command)).await;
        // A server that cannot be reached is asked again by the next connection.
        let starts = started.is_ok() || self.epoch() == 0;
        self.shared.is_told.store(starts, Ordering::Relaxed);
        starts
    }

    /// Whether news of changed keys come; they may not be allowed to this user.
    pub fn is_told(&self) -> bool {
        self.shared.is_told.load(Ordering::Relaxed)
    }

    /// Ends a wait for news: what this connection itself changes is no news to it.
    pub fn wake(&self) {
        self.shared.woken.notify_one();
    }

    /// Waits for news of a tracked key, or of a new connection, after which anything may have changed.
    pub async fn woken(&self) {
        self.shared.woken.notified().await;
    }

    /// Subscribes to one channel, now and on every later connection; messages come to [`pushes`](Self::pushes).
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn subscribe_to(&self, channel: &str) -> Result<(), Error> {
        self.subscribe_to_all(&[channel]).await
    }

    /// Subscribes to many channels, in few round trips; see [`subscribe_to`](Self::subscribe_to).
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn subscribe_to_all(&self, channels: &[&str]) -> Result<(), Error> {
        let ears = &self.ears().await.shared;
        let names = channels.iter().map(|channel| (*channel).to_owned());
        ears.setup().channels.extend(names);
        let Some((_, mut connection)) = ears.current.borrow().clone() else {
            return Ok(());
        };
        for some in channels.chunks(SUBSCRIBED) {
            if let Err(error) = connection.subscribe(some).await {
                let error = Error::from_redis(&error, &ears.endpoint.to_string());
                if !error.is_transient() {
                    // What is refused now is refused later, and would keep the next connection from being made.
                    let mut setup = ears.setup();
                    for channel in channels {
                        setup.channels.remove(*channel);
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Subscribes to all channels that match a pattern; see [`subscribe_to`](Self::subscribe_to).
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn subscribe_matching(&self, pattern: &str) -> Result<(), Error> {
        let ears = &self.ears().await.shared;
        ears.setup().patterns.insert(pattern.to_owned());
        let Some((_, mut connection)) = ears.current.borrow().clone() else {
            return Ok(());
        };
        connection.psubscribe(pattern).await.map_err(|error| {
            let error = Error::from_redis(&error, &ears.endpoint.to_string());
            if !error.is_transient() {
                ears.setup().patterns.remove(pattern);
            }
            error
        })
    }

    /// Says that so many bytes went over it at once. The buffers of a connection grow and never shrink: after much it is
    /// followed by another, soon and without a word, so that one large message does not take its memory for ever.
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

    /// Ends a subscription to one channel.
    pub async fn unsubscribe_from(&self, channel: &str) {
        self.unsubscribe_from_all(&[channel]).await;
    }

    /// Ends subscriptions to channels.
    pub async fn unsubscribe_from_all(&self, channels: &[&str]) {
        let Some(ears) = self.shared.ears.get() else { return };
        for channel in channels {
            ears.shared.setup().channels.remove(*channel);
        }
        let current = ears.shared.current.borrow().clone();
        if let Some((_, mut connection)) = current {
            for some in channels.chunks(SUBSCRIBED) {
                // A connection that is gone has no subscriptions left.
                let _ = connection.unsubscribe(some).await;
            }
        }
    }

    /// The pub/sub messages of this link; there is one reader, so the second call gives an empty channel.
    pub fn pushes(&self) -> mpsc::Receiver<Push> {
        let unread = self.shared.unread.lock().ok().and_then(|mut unread| unread.take());
        unread.unwrap_or_else(|| mpsc::channel(1).1)
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

    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = clock::instant();
    }

    /// How long it has said nothing.
    fn silence(&self) -> Duration {
        let heard = *self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        clock::instant().saturating_duration_since(heard)
    }

    async fn open(self: &Arc<Self>) -> Result<MultiplexedConnection, Error> {
        let node = self.node().clone();
        let turn = self.endpoint.turn();
        let client = self.endpoint.client(turn, node.as_ref(), &self.options).await?;
        let opened = self.open_with(&client).await;
        self.turn.store(turn, Ordering::Relaxed);
        if let Err(error) = &opened {
            if error.is_timeout() && self.endpoint.lacks_tls(&self.options).await {
                return Err(Error::without_tls(&self.endpoint.to_string()));
            }
            if is_about_to_come(error) {
                self.is_coming.store(true, Ordering::Relaxed);
            }
            self.endpoint.leave(turn);
            // A node that is gone: the one of the URL knows who has our slot now.
            *self.node() = None;
        }
        opened.map_err(|error| Error::unreachable(&error, &self.endpoint.to_string()))
    }

    async fn open_with(self: &Arc<Self>, client: &Client) -> redis::RedisResult<MultiplexedConnection> {
        let weak = Arc::downgrade(self);
        let stands = Arc::new(AtomicBool::new(true));
        let is_last = stands.clone();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.connect_timeout))
            .set_response_timeout(Some(self.options.response_timeout))
            .set_push_sender(move |push: PushInfo| -> Result<(), redis::aio::SendError> {
                let is_news = push.kind != PushKind::Disconnection || is_last.load(Ordering::Relaxed);
                if let Some(shared) = weak.upgrade().filter(|_| is_news) {
                    shared.on_push(push);
                }
                Ok(())
            });
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        if self.endpoint.is_behind_sentinels() {
            // Sentinels may not have noticed yet that it is none any more.
            let role: Value = redis::cmd("ROLE").query_async(&mut connection).await?;
            if !is_master(&role) {
                return Err((redis::ErrorKind::Io, "it is a replica").into());
            }
        }
        let setup = self.setup().clone();
        let mut pipe = Pipeline::new();
        for script in &setup.scripts {
            pipe.load_script(script);
        }
        if let Some(command) = &setup.tracking {
            pipe.add_command(command.clone());
        }
        if !pipe.is_empty() {
            let mut answers = connection.req_packed_commands(&pipe, 0, pipe.len()).await?;
            let told = setup.tracking.and_then(|_| answers.pop());
            // Without news of keys it is a connection nevertheless.
            let is_refused = |error: &redis::ServerError| !is_transient_code(code(error));
            let is_told = !matches!(&told, Some(Value::ServerError(error)) if is_refused(error));
            self.is_told.store(told.is_some() && is_told, Ordering::Relaxed);
            // A server that is loading refuses these: the connection is not ready, so try again.
            for value in answers.into_iter().chain(told.filter(|_| is_told)) {
                if let Value::ServerError(error) = value {
                    return Err(error.into());
                }
            }
        }
        for pattern in &setup.patterns {
            connection.psubscribe(pattern).await?;
        }
        let channels: Vec<&String> = setup.channels.iter().collect();
        for some in channels.chunks(SUBSCRIBED) {
            connection.subscribe(some).await?;
        }
        redis::cmd("PING").exec_async(&mut connection).await?;
        self.hear();
        let mut last = self.stands.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::replace(&mut *last, stands).store(false, Ordering::Relaxed);
        Ok(connection)
    }

    /// Makes a connection that takes the place of the one that stands. What waits for an answer of the old one gets it.
    async fn follow(self: &Arc<Self>, epoch: u64) {
        // Should it fail, the old one is as good as it was.
        let Ok(connection) = self.open().await else { return };
        self.current.send_if_modified(|current| {
            let stands = current.as_ref().is_some_and(|(number, _)| *number == epoch);
            if stands {
                *current = Some((epoch, connection));
            }
            stands
        });
        // It has not read the keys that news are wanted of.
        self.woken.notify_one();
    }

    /// Puts a message where it is read, if there is room.
    fn pass_on(&self, channel: String, payload: Vec<u8>) -> bool {
        let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let share = self.room.clone().try_acquire_many_owned(bytes);
        share.is_ok_and(|share| {
            let push = Push {
                channel,
                payload,
                share: Share(share),
            };
            self.pushes.try_send(push).is_ok()
        })
    }

    /// Whether what was changed is of interest. A server that forgot all keys does not say which.
    fn is_news(&self, changed: &[Value]) -> bool {
        let Some(Value::Array(keys)) = changed.first() else {
            return true;
        };
        let quiet = &self.setup().quiet;
        let is_quiet =
            |key: &Value| matches!(key, Value::BulkString(key) if quiet.iter().any(|quiet| quiet.as_bytes() == key));
        !keys.iter().all(is_quiet)
    }

    fn on_push(&self, push: PushInfo) {
        self.hear();
        match push.kind {
            PushKind::Invalidate if self.is_news(&push.data) => self.woken.notify_one(),
            PushKind::Message | PushKind::PMessage => {
                let mut parts = push.data.into_iter().rev();
                let (Some(payload), Some(channel)) = (parts.next(), parts.next()) else {
                    return;
                };
                if let (Ok(channel), Value::BulkString(payload)) = (String::from_redis_value(channel), payload)
                    && !self.pass_on(channel, payload)
                    && self.dropped.fetch_add(1, Ordering::Relaxed) == 0
                {
                    warn!("pub/sub messages come faster than they can be handled; some are dropped");
                }
            }
            PushKind::Disconnection => {
                let epoch = self.current.borrow().as_ref().map(|(epoch, _)| *epoch);
                if let Some(epoch) = epoch {
                    self.broken(epoch, "the server closed the connection");
                }
            }
            _ => {}
        }
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
        if gone {
            warn!("lost the connection to Redis at {}: {why}; reconnecting", self.endpoint);
        }
    }
}

fn is_master(role: &Value) -> bool {
    match role {
        Value::Array(parts) => parts.first() == Some(&Value::BulkString(b"master".to_vec())),
        _ => false,
    }
}

fn tracking() -> Cmd {
    let mut command = redis::cmd("CLIENT");
    command.arg("TRACKING").arg("ON").arg("NOLOOP");
    command
}

/// Makes connections as long as somebody holds the link.
async fn supervise(shared: Weak<Shared>) {
    let mut epoch = 1;
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let health_check = strong.options.health_check;
        let standing = strong.current.borrow().clone();
        match standing {
            Some((epoch, mut connection)) => {
                let mut changes = strong.current.subscribe();
                let pause = health_check.saturating_sub(strong.silence());
                let weak = Arc::downgrade(&strong);
                drop(strong);
                // Wake up at once when the connection is taken for gone, else look after it when it was silent.
                let broke = tokio::time::timeout(pause.max(SHORTEST_PAUSE), changes.wait_for(Option::is_none))
                    .await
                    .is_ok();
                drop(changes);
                let Some(strong) = weak.upgrade() else { return };
                if strong.endpoint.turn() != strong.turn.load(Ordering::Relaxed) {
                    strong.broken(epoch, "another broker of the list is used now");
                    continue;
                }
                if !broke && strong.bulky.swap(false, Ordering::Relaxed) {
                    strong.follow(epoch).await;
                    continue;
                }
                // Whoever waits for an answer finds out by itself.
                if broke || !strong.waiting.is_empty() || strong.silence() < health_check {
                    continue;
                }
                connection.set_response_timeout(strong.options.sign_of_life);
                match redis::cmd("PING").exec_async(&mut connection).await {
                    Err(error) if is_broken(&error) => strong.broken(epoch, "no sign of life"),
                    _ => strong.hear(),
                }
            }
            None => {
                let since = clock::instant();
                let mut backoff = Backoff::default();
                let weak = Arc::downgrade(&strong);
                drop(strong);
                loop {
                    let Some(strong) = weak.upgrade() else { return };
                    if let Ok(connection) = strong.open().await {
                        epoch += 1;
                        strong.again.fetch_add(1, Ordering::Relaxed);
                        strong.current.send_replace(Some((epoch, connection)));
                        let gone = clock::instant().saturating_duration_since(since);
                        info!(
                            "connected to Redis at {} again after {:.1} s",
                            strong.endpoint,
                            gone.as_secs_f64()
                        );
                        strong.woken.notify_one();
                        // Whoever is asked to listen again does so at once: what is said meanwhile is not heard.
                        if let Some(ears) = strong.ears.get() {
                            ears.shared.hurry.notify_one();
                        }
                        break;
                    }
                    let hurry = strong.hurry.clone();
                    drop(strong);
                    let _ = tokio::time::timeout(backoff.pause(), hurry.notified()).await;
                }
            }
        }
    }
}
