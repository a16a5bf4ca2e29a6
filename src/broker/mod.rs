//! Messages in and out of Redis, in kombu's layout (`kombu.transport.redis`), so that Python producers and Python
//! workers share queues with us and rescue what we held.
//!
//! A message is always in exactly one place: a queue list, or `unacked`. Every change of place is one script. Waiting
//! takes nothing: the server tells when a queue key changes.

mod bindings;
mod broadcast;
mod claim;
mod dead;
mod declare;
mod keys;
mod restore;
mod revoked;
mod stray;
mod write;

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{Pipeline, Script};
use tokio::sync::mpsc;

use crate::conn::{Endpoint, Link, LinkOptions, Push, patiently, uptime};
use crate::wire::Queue;
use declare::Bound;
use keys::Keys;

pub use crate::conn::Error;
pub use bindings::Binding;
pub use broadcast::Broadcasts;
pub(crate) use claim::in_json;
pub use claim::{ClaimId, Claimed, Claims, Dead};
pub(crate) use dead::names;
pub use dead::{DeadLetter, DeadQueue, Found};
use restore::delivery_tag;
pub(crate) use restore::worn_out;
pub use restore::{DELIVERIES, GivenUp, Restored, Sweep, count_delivery, deliveries, mark_redelivered};
pub use revoked::{REVOKE_EXPIRES, REVOKES_MAX};
pub use stray::{Strayed, Strays};
pub use write::{End, Letter, Write};

/// How long queues of remote control are bound, which expire after 10 s (kombu: the larger of twice that and an hour).
const CONTROL_BOUND: Duration = Duration::from_secs(3600);

/// How often queues are looked at where the server tells no news of them.
const LOOK: Duration = Duration::from_millis(100);

/// How the broker is used. Names are those of Celery's `broker_transport_options`.
#[derive(Clone, Debug)]
pub struct Options {
    /// A message held for longer than this without a sign of life goes back to its queue. Whole seconds.
    pub visibility_timeout: Duration,
    /// What we hold goes back to its queue when it was not kept fresh for this long, if that is sooner than the
    /// visibility timeout: the messages of a worker that died are delivered again so soon. Whole seconds. It is noted
    /// as if it was held since longer, so all who take from these queues need the same visibility timeout, as they do
    /// for Celery.
    pub lease: Option<Duration>,
    /// Priorities that have a list of their own.
    pub priority_steps: Vec<u8>,
    /// Between queue name and priority step.
    pub sep: String,
    /// In front of every key and channel.
    pub global_keyprefix: String,
    /// Stands before the channel of what is told to everybody; `{db}` in it is the number of the database.
    pub fanout_prefix: String,
    /// The routing key is part of that channel.
    pub fanout_patterns: bool,
    /// What is known of queues (`task_queues`): those that are bound in another way than to the direct exchange of
    /// their own name, or that expire.
    pub queues: Vec<Queue>,
    /// Which queue is looked at first.
    pub queue_order_strategy: QueueOrder,
    /// Largest message that is taken, in bytes; larger ones go to the dead-letter list.
    pub max_message_bytes: usize,
    /// Longest dead-letter list.
    pub dead_limit: usize,
    /// A message that is delivered more often than this goes to the dead-letter list: it probably kills its workers.
    /// One that was only held when its worker died counts as well.
    pub max_deliveries: u32,
    /// Who we are, for dead letters: the node name of a worker.
    pub node: String,
    /// Time limits of connections.
    pub link: LinkOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            visibility_timeout: Duration::from_secs(3600),
            lease: None,
            priority_steps: vec![0, 3, 6, 9],
            sep: keys::SEP.to_owned(),
            global_keyprefix: String::new(),
            fanout_prefix: "/{db}.".to_owned(),
            fanout_patterns: true,
            queues: Vec::new(),
            queue_order_strategy: QueueOrder::RoundRobin,
            max_message_bytes: 64 << 20,
            dead_limit: 10_000,
            max_deliveries: 5,
            node: String::new(),
            link: LinkOptions::default(),
        }
    }
}

impl Options {
    /// How long what we hold is ours without a sign of life.
    pub fn lease(&self) -> Duration {
        self.lease
            .map_or(self.visibility_timeout, |lease| lease.min(self.visibility_timeout))
    }

    /// How much longer than its ETA the lease of a parked message lasts.
    pub(crate) fn parked_longer(&self) -> Duration {
        write::PARKED_LONGER.min(self.lease())
    }

    /// How much earlier than now what we hold is said to have come, in seconds, so that it is overdue when its lease
    /// ends.
    fn lease_shift(&self) -> u64 {
        (self.visibility_timeout - self.lease()).as_secs()
    }
}

/// Which queue is looked at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueOrder {
    /// A queue that gave a message moves to the end.
    #[default]
    RoundRobin,
    /// As given.
    Priority,
    /// By name.
    Sorted,
}

/// The field of a held message in `unacked`. Chosen by us, so that a claim can be asked about again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub(crate) Arc<str>);

impl Tag {
    /// The claim and the number of a tag that a claim made.
    pub(crate) fn parts(&self) -> Option<(u128, u32)> {
        let (claim, number) = self.0.split_once('.')?;
        let parts = (u128::from_str_radix(claim, 16).ok()?, number.parse().ok()?);
        (*self == Self::from_parts(parts.0, parts.1)).then_some(parts)
    }

    /// The tag of those parts.
    pub(crate) fn from_parts(claim: u128, number: u32) -> Self {
        Self(format!("{claim:032x}.{number}").into())
    }

    /// One that nothing has.
    pub(crate) fn fresh() -> Self {
        Self::from_parts(uuid::Uuid::new_v4().as_u128(), 0)
    }

    /// Whether a message of that tag lies in `unacked`. What was told to everybody does not.
    pub(crate) fn is_held(&self) -> bool {
        !self.0.starts_with(broadcast::TOLD)
    }
}

/// A broker. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Broker {
    main: Link,
    writer: Link,
    options: Arc<Options>,
    keys: Arc<Keys>,
    scripts: Arc<Scripts>,
    turn: Arc<AtomicUsize>,
    /// Dead letters that had to make room for newer ones.
    pushed_out: Arc<AtomicU64>,
    /// Bindings that end by themselves unless they are renewed.
    bound: Arc<Mutex<Vec<Bound>>>,
}

/// Compiled in, loaded on every connection.
#[derive(Debug)]
struct Scripts {
    claim: Script,
    extend: Script,
    recall: Script,
    give_back: Script,
    revoked: Script,
    hold: Script,
    requeue: Script,
    bury: Script,
    overdue: Script,
    restore: Script,
    stray: Script,
    publish: Script,
    publish_once: Script,
    send_again: Script,
    reply: Script,
    bind: Script,
    dead_list: Script,
    dead_take: Script,
}

impl Scripts {
    fn new() -> Self {
        Self {
            claim: Script::new(include_str!("scripts/claim.lua")),
            extend: Script::new(include_str!("scripts/extend.lua")),
            recall: Script::new(include_str!("scripts/recall.lua")),
            give_back: Script::new(include_str!("scripts/give_back.lua")),
            revoked: Script::new(include_str!("scripts/revoked.lua")),
            hold: Script::new(include_str!("scripts/hold.lua")),
            requeue: Script::new(include_str!("scripts/requeue.lua")),
            bury: Script::new(include_str!("scripts/bury.lua")),
            overdue: Script::new(include_str!("scripts/overdue.lua")),
            restore: routed(include_str!("scripts/restore.lua")),
            stray: Script::new(include_str!("scripts/stray.lua")),
            publish: routed(include_str!("scripts/publish.lua")),
            publish_once: routed(include_str!("scripts/publish_once.lua")),
            send_again: Script::new(include_str!("scripts/send_again.lua")),
            reply: Script::new(include_str!("scripts/reply.lua")),
            bind: Script::new(include_str!("scripts/bind.lua")),
            dead_list: Script::new(include_str!("scripts/dead_list.lua")),
            dead_take: routed(include_str!("scripts/dead_take.lua")),
        }
    }
}

/// A script that knows where exchanges send.
pub(crate) fn routed(script: &str) -> Script {
    Script::new(&[include_str!("scripts/route.lua"), script].concat())
}

impl Broker {
    /// Connects: one connection to take messages and hear of queues on, one to write on. One to hear what is
    /// told to everybody comes with [`subscribe_control`](Self::subscribe_control).
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn connect(endpoint: &Endpoint, options: Options) -> Result<Self, Error> {
        let main = Link::connect(endpoint, options.link.clone()).await?;
        let writer = patiently(|| Link::connect(endpoint, options.link.clone())).await?;
        let scripts = Scripts::new();
        main.register(
            [
                &scripts.claim,
                &scripts.extend,
                &scripts.recall,
                &scripts.overdue,
                &scripts.restore,
                &scripts.stray,
            ]
            .map(Clone::clone),
        )
        .await?;
        writer
            .register(
                [
                    &scripts.requeue,
                    &scripts.give_back,
                    &scripts.revoked,
                    &scripts.hold,
                    &scripts.bury,
                    &scripts.publish,
                    &scripts.publish_once,
                    &scripts.send_again,
                    &scripts.reply,
                    &scripts.bind,
                ]
                .map(Clone::clone),
            )
            .await?;
        Ok(Self {
            keys: Arc::new(Keys::new(&options, endpoint.db())),
            main,
            writer,
            options: Arc::new(options),
            scripts: Arc::new(scripts),
            turn: Arc::default(),
            pushed_out: Arc::default(),
            bound: Arc::default(),
        })
    }

    /// The connection that writes go through.
    pub fn writer(&self) -> &Link {
        &self.writer
    }

    /// The connection that messages are taken through, and that hears news on one beside it.
    pub fn reader(&self) -> &Link {
        &self.main
    }

    /// The name of a key beside the queues: with the prefix that all keys of this broker have.
    pub fn key(&self, name: &str) -> String {
        self.keys.name(name)
    }

    /// The list that a message of that priority waits in.
    pub(crate) fn list(&self, queue: &str, priority: u8) -> String {
        self.keys.queue(queue, priority)
    }

    /// How it is used.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Waits until messages can be taken again.
    pub async fn ready(&self) {
        self.main.ready().await;
    }

    /// Declares queues as kombu does: each is bound to the direct exchange of its own name, in both tables (a
    /// Celery 5.7 process deletes what the permanent one lacks), and news of them are asked for.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn declare(&self, queues: &[Arc<str>]) -> Result<(), Error> {
        let mut pipe = Pipeline::new();
        for queue in queues {
            self.append_declare(&mut pipe, queue);
        }
        // What is told to everybody leaves nothing to declare.
        if !pipe.is_empty() {
            self.writer.pipeline(&pipe).await?;
        }
        // A claim that finds nothing has read the queues' keys. Asking for all that begins with a queue's name instead
        // would bring news of every result: `celery` is how `celery-task-meta-…` begins.
        let quiet = ["unacked", "unacked_index"].map(|key| self.keys.name(key));
        let tracked = self.main.track_reads(quiet.into()).await;
        warn_of_silence(tracked, "queues are", LOOK);
        Ok(())
    }

    /// Deletes what waits in queues; how many messages there were.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn purge(&self, queues: &[Arc<str>]) -> Result<u64, Error> {
        let mut pipe = Pipeline::new();
        for (key, _) in self.keys.all(queues.iter().map(|queue| (0, &**queue))) {
            pipe.llen(&key).del(&key);
        }
        let replies = self.writer.pipeline(&pipe).await?;
        let count = |reply: redis::Value| redis::from_redis_value::<u64>(reply).unwrap_or(0);
        // Each key has two replies: how long it was, and that it is gone.
        Ok(replies.into_iter().step_by(2).map(count).sum())
    }

    /// Asks for news of keys. A server that cannot tell (no `CLIENT TRACKING`, or an ACL without it) is asked more
    /// often instead, every `pause`.
    pub async fn watch(&self, keys: &[Arc<str>], pause: Duration) {
        let mut prefixes: Vec<String> = keys.iter().map(|key| self.keys.name(key)).collect();
        prefixes.sort();
        // Redis refuses overlapping prefixes; the shorter one covers the longer.
        prefixes.dedup_by(|longer, shorter| longer.starts_with(shorter.as_str()));
        let tracked = self.main.track(&prefixes).await;
        warn_of_silence(tracked, "the schedule is", pause);
    }

    /// Waits for news of a queue, `longest` at most; whether there was some. Nothing is taken by waiting.
    pub async fn wait(&self, longest: Duration) -> bool {
        self.wait_or_look(longest, LOOK).await
    }

    /// The same for who looks every `pause` where the server tells no news.
    pub(crate) async fn wait_or_look(&self, longest: Duration, pause: Duration) -> bool {
        let longest = if self.main.is_told() {
            longest
        } else {
            longest.min(pause)
        };
        tokio::time::timeout(longest, self.main.woken()).await.is_ok()
    }

    /// Listens to remote control, as the node of that name.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn subscribe_control(&self, exchange: &str, node: &str) -> Result<mpsc::Receiver<Push>, Error> {
        let exchange = format!("{exchange}.pidbox");
        let member = self.keys.binding("", &format!("{node}.{exchange}"));
        self.bind_for_a_while(&exchange, member, CONTROL_BOUND).await?;
        self.main.subscribe_to(&self.keys.channel(&exchange, "")).await?;
        Ok(self.main.pushes())
    }

    /// Ends what [`subscribe_control`](Self::subscribe_control) began.
    pub async fn unsubscribe_control(&self, exchange: &str, node: &str) {
        let exchange = format!("{exchange}.pidbox");
        self.main.unsubscribe_from(&self.keys.channel(&exchange, "")).await;
        let mut pipe = Pipeline::new();
        let member = self.keys.binding("", &format!("{node}.{exchange}"));
        self.forget_binding(&exchange, &member);
        pipe.srem(self.keys.bindings(&exchange), member);
        // What is left behind expires.
        let _ = self.writer.pipeline(&pipe).await;
    }

    /// Listens to what workers say of themselves; it comes where remote control comes. The beginning of the channels.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn subscribe_workers(&self, exchange: &str) -> Result<String, Error> {
        self.main
            .subscribe_matching(&self.keys.channel(exchange, "worker.*"))
            .await?;
        Ok(self.keys.channel(exchange, "worker."))
    }

    /// Listens to all events, on a connection of its own, which ends the listening with it.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn subscribe_events(&self, exchange: &str) -> Result<(Link, mpsc::Receiver<Push>), Error> {
        let link = Link::connect(self.main.endpoint(), self.options.link.clone()).await?;
        link.subscribe_matching(&self.keys.channel(exchange, "*")).await?;
        let pushes = link.pushes();
        Ok((link, pushes))
    }

    /// How many messages wait in a queue, of all priorities.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn length(&self, queue: &str) -> Result<u64, Error> {
        let mut pipe = Pipeline::new();
        for (list, _) in self.keys.all(std::iter::once((0, queue))) {
            pipe.llen(list);
        }
        let replies = self.writer.pipeline(&pipe).await?;
        let lengths = replies
            .into_iter()
            .filter_map(|reply| redis::from_redis_value::<u64>(reply).ok());
        Ok(lengths.sum())
    }

    /// Sends a message to all who listen to a fanout exchange, and tells how many they are.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn tell(&self, exchange: &str, payload: &[u8]) -> Result<usize, Error> {
        let channel = self.keys.channel(exchange, "");
        self.writer.query(redis::cmd("PUBLISH").arg(channel).arg(payload)).await
    }

    /// Whether messages can be taken and written now.
    pub fn is_connected(&self) -> bool {
        self.main.epoch() != 0 && self.writer.epoch() != 0
    }

    /// The number of the connection by which messages come: another when it was lost and is there again, 0 while there
    /// is none.
    pub fn connection(&self) -> u64 {
        self.main.epoch()
    }

    /// Waits until messages come by another connection than that of this number; its number.
    pub(crate) async fn reconnected(&self, connection: u64) -> u64 {
        self.main.renewed(connection).await
    }

    /// How long the server has been up, as far as it says.
    pub(crate) async fn uptime(&self) -> Option<Duration> {
        uptime(&self.main).await
    }

    /// The number of the connection on which news come; it changes when the connection was lost and is there again,
    /// and is 0 while there is none.
    pub fn epoch(&self) -> u64 {
        self.main.ears_epoch()
    }

    /// Makes a place for answers to remote control requests, at an exchange for replies.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn bind_replies(&self, exchange: &str, oid: &str) -> Result<(), Error> {
        let mut call = self.scripts.bind.prepare_invoke();
        call.key(self.keys.bindings(exchange)).key(self.keys.deadlines());
        call.arg(self.keys.binding(oid, &format!("{oid}.{exchange}")))
            .arg(exchange)
            .arg(CONTROL_BOUND.as_millis() as u64);
        let mut pipe = Pipeline::new();
        pipe.invoke_script(&call);
        self.writer.pipeline(&pipe).await.map(drop)
    }

    /// The answers that have come.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn take_replies(&self, exchange: &str, oid: &str) -> Result<Vec<Vec<u8>>, Error> {
        let key = self.keys.name(&format!("{oid}.{exchange}"));
        let replies: Option<Vec<Vec<u8>>> = self.writer.query(redis::cmd("RPOP").arg(key).arg(100)).await?;
        Ok(replies.unwrap_or_default())
    }

    /// Removes the place for answers.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn unbind_replies(&self, exchange: &str, oid: &str) -> Result<(), Error> {
        let queue = format!("{oid}.{exchange}");
        let mut pipe = Pipeline::new();
        pipe.srem(self.keys.bindings(exchange), self.keys.binding(oid, &queue))
            .del(self.keys.name(&queue));
        self.writer.pipeline(&pipe).await.map(drop)
    }
}

fn warn_of_silence(is_told: bool, what: &str, pause: Duration) {
    if !is_told {
        let pause = pause.as_millis();
        tracing::warn!("Redis does not offer CLIENT TRACKING to this user: {what} looked at every {pause} ms instead");
    }
}
