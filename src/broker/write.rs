//! What is written, many at a time, in one pipeline.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, Pipeline, ScriptInvocation};

use super::{Broker, Error, Tag, delivery_tag, in_json, mark_redelivered};
use crate::clock::{self, Timestamp};
use crate::conn::{Patience, invocation};
use crate::wire::Parcel;

/// Seconds until a reply that nobody reads is gone.
const REPLY_TTL: u32 = 60;

/// How much longer than its ETA the lease of a parked message lasts, at most.
pub(super) const PARKED_LONGER: Duration = Duration::from_secs(60);

/// Which end of a list; the tail is delivered next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Behind everything that waits.
    Head,
    /// Before everything that waits.
    Tail,
}

/// So many of the newest in its list are looked at for a message whose sending was not answered; where no more are
/// held, those too, as long as they are no larger.
const NEWEST: usize = 1024;
const HELD: usize = 128;
const HELD_BYTES: usize = 64 << 10;

/// One change. All but [`Publish`](Self::Publish) and [`Broadcast`](Self::Broadcast) may be repeated after a lost reply
/// without effect; those two then happen twice, as does a [`Hold`](Self::Hold) that somebody else took, because its
/// lease had run out before the repetition came.
#[derive(Debug)]
pub enum Write {
    /// A held message is done with.
    Ack(Tag),
    /// A held message goes back, marked as redelivered.
    Requeue {
        /// Its field in `unacked`.
        tag: Tag,
        /// Where in the queue.
        to: End,
        /// The envelope as it came.
        raw: Bytes,
        /// The queue.
        queue: Arc<str>,
        /// Its priority.
        priority: u8,
    },
    /// A new message. On the default exchange the routing key is the queue; any other has a table of bindings.
    Publish {
        /// Exchange; empty is the default one.
        exchange: String,
        /// Routing key.
        routing_key: String,
        /// 0 to 9.
        priority: u8,
        /// The envelope.
        envelope: Bytes,
    },
    /// A message that is held by us from the start: it is delivered only if we die before we acknowledge it.
    Hold {
        /// Its field in `unacked`.
        tag: Tag,
        /// Exchange.
        exchange: String,
        /// Routing key.
        routing_key: String,
        /// The envelope.
        envelope: Bytes,
    },
    /// A message of a fanout exchange.
    Broadcast {
        /// Exchange.
        exchange: String,
        /// Routing key.
        routing_key: String,
        /// The envelope.
        payload: Bytes,
    },
    /// The answer to a remote control request; dropped when the client waits no longer.
    Reply {
        /// The exchange for replies.
        exchange: String,
        /// The client's id.
        routing_key: String,
        /// The envelope.
        payload: Bytes,
    },
    /// A held message that nobody can run goes to the dead-letter list of its queue.
    Dead {
        /// Its field in `unacked`.
        tag: Tag,
        /// Its queue.
        queue: Arc<str>,
        /// The envelope as it came.
        raw: Bytes,
        /// Why.
        reason: String,
    },
    /// A message that cannot be sent goes to the dead-letter list of its routing key.
    Letter(Box<Letter>),
    /// A held message is not looked after until it is due: its lease runs until then, and a moment longer.
    Park {
        /// Its field in `unacked`.
        tag: Tag,
        /// When it is due.
        eta: Timestamp,
    },
    /// Held messages that never started go back as they came.
    GiveBack {
        /// Their queue.
        queue: Arc<str>,
        /// Their priority.
        priority: u8,
        /// Their fields in `unacked`.
        tags: Vec<Tag>,
    },
    /// Tasks must not run, also where nobody hears it now.
    Revoked(Vec<String>),
    /// A queue is consumed from now on.
    Declare(Arc<str>),
    /// What is sent to an exchange with a routing key goes to a queue.
    Bind {
        /// The queue.
        queue: Arc<str>,
        /// The exchange.
        exchange: String,
        /// Its routing key, or pattern.
        routing_key: String,
        /// Whether it is a pattern of a topic exchange.
        topic: bool,
    },
}

impl Write {
    /// What it holds beside a few words.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Requeue { raw, .. } | Self::Dead { raw, .. } => raw.len(),
            Self::Letter(letter) => letter.raw.len(),
            Self::Publish { envelope, .. } | Self::Hold { envelope, .. } => envelope.len(),
            Self::Broadcast { payload, .. } | Self::Reply { payload, .. } => payload.len(),
            Self::Revoked(ids) => ids.iter().map(String::len).sum(),
            Self::Ack(_) | Self::Park { .. } | Self::GiveBack { .. } | Self::Declare(_) | Self::Bind { .. } => 0,
        }
    }
}

/// A message that nobody gets.
#[derive(Debug)]
pub struct Letter {
    /// Exchange.
    pub exchange: String,
    /// Routing key.
    pub routing_key: String,
    /// The envelope.
    pub raw: Bytes,
    /// Why.
    pub reason: String,
}

impl Write {
    /// What it sends: exchange, routing key and envelope.
    pub(crate) fn message(&self) -> Option<(&str, &str, &Bytes)> {
        match self {
            Self::Publish {
                exchange,
                routing_key,
                envelope,
                ..
            }
            | Self::Hold {
                exchange,
                routing_key,
                envelope,
                ..
            } => Some((exchange, routing_key, envelope)),
            _ => None,
        }
    }

    /// Whether nobody may have the message before what its task led to is written down.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Ack(_) | Self::Dead { .. } | Self::Requeue { .. })
    }

    /// Messages that are held, and until this is done.
    pub(crate) fn held(&self) -> &[Tag] {
        match self {
            Self::Ack(tag) | Self::Requeue { tag, .. } | Self::Dead { tag, .. } | Self::Park { tag, .. } => {
                std::slice::from_ref(tag)
            }
            Self::GiveBack { tags, .. } => tags,
            _ => &[],
        }
    }
}

impl From<Parcel> for Write {
    fn from(parcel: Parcel) -> Self {
        Self::Publish {
            exchange: parcel.exchange,
            routing_key: parcel.routing_key,
            priority: parcel.priority,
            envelope: parcel.envelope.into(),
        }
    }
}

/// How long it is known that messages were sent once.
const ONCE: u32 = 86_400;

impl Broker {
    /// Publishes messages together, once under that name; whether that was now. What is no
    /// [`Publish`](Write::Publish) is left out.
    ///
    /// # Errors
    /// The server cannot be reached or refuses. Asked again it sends nothing twice.
    pub async fn publish_once(&self, name: &str, writes: &[Write]) -> Result<bool, Error> {
        self.publish_once_with(name, writes, &Patience::default()).await
    }

    /// The same for a caller who asks until he is answered.
    pub(crate) async fn publish_once_with(
        &self,
        name: &str,
        writes: &[Write],
        patience: &Patience,
    ) -> Result<bool, Error> {
        let mut call = self.scripts.publish_once.prepare_invoke();
        call.key(self.once_key(name)).arg(ONCE);
        writes.iter().for_each(|write| self.address(&mut call, write));
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&call);
        writes.iter().for_each(|write| self.append_after(&mut pipe, write));
        match self.writer.pipeline_with(&pipe, patience).await?.into_iter().next() {
            Some(redis::Value::Int(sent)) => Ok(sent == 1),
            other => Err(Error::Refused(format!("messages cannot be sent: {other:?}"))),
        }
    }

    /// Gives a message to a script that publishes it in its own step (see `route.lua`); what is no
    /// [`Publish`](Write::Publish) is left out.
    pub(crate) fn address(&self, call: &mut ScriptInvocation<'_>, write: &Write) {
        let Write::Publish {
            exchange,
            routing_key,
            priority,
            envelope,
        } = write
        else {
            return;
        };
        let told = self.is_fanout(exchange);
        let channel = told.then(|| self.keys.channel(exchange, routing_key));
        call.key(self.keys.bindings(exchange))
            .arg(exchange)
            .arg(routing_key)
            .arg(&envelope[..])
            .arg(self.keys.name(""))
            .arg(self.keys.suffix(*priority))
            .arg(self.keys.sep())
            .arg(channel.unwrap_or_default());
    }

    /// Appends what follows a message that a script has published: the queue that it went to may expire.
    pub(crate) fn append_after(&self, pipe: &mut Pipeline, write: &Write) {
        if let Write::Publish {
            exchange, routing_key, ..
        } = write
        {
            self.append_expiry(pipe, exchange, routing_key);
        }
    }

    /// Forgets that messages were sent under that name.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn forget_once(&self, name: &str) -> Result<(), Error> {
        self.writer.query(redis::cmd("DEL").arg(self.once_key(name))).await
    }

    fn once_key(&self, name: &str) -> String {
        self.keys.name(&format!("celery-sent-once-{name}"))
    }

    /// Appends the commands of `writes`, in order; neighbouring acks become one pair of commands.
    pub fn append(&self, pipe: &mut Pipeline, writes: &[Write]) {
        let mut acks: Vec<&str> = Vec::new();
        for write in writes {
            if let Write::Ack(tag) = write {
                acks.push(&tag.0);
                continue;
            }
            self.append_acks(pipe, &mut acks);
            self.append_one(pipe, write);
        }
        self.append_acks(pipe, &mut acks);
    }

    fn append_acks(&self, pipe: &mut Pipeline, tags: &mut Vec<&str>) {
        if !tags.is_empty() {
            // The message first: an index without a message is nothing, a message without an index would stay for ever.
            pipe.hdel(self.keys.name("unacked"), &tags[..])
                .zrem(self.keys.name("unacked_index"), &tags[..]);
            tags.clear();
        }
    }

    /// Whoever looks for leases that have run out, and be it a Python worker, finds this one when the ETA is over and
    /// nobody has come: that is on time for a message whose worker died.
    fn append_park(&self, pipe: &mut Pipeline, tag: &Tag, eta: Timestamp) {
        let timeout = self.options.visibility_timeout;
        let longer = self.options.parked_longer();
        let held_since = clock::epoch_seconds(eta) + longer.as_secs_f64() - timeout.as_secs_f64();
        let mut command = redis::cmd("ZADD");
        // The lease that it has may do; it was given by the server's clock, and ours has no say in it.
        command
            .arg(self.keys.name("unacked_index"))
            .arg("XX")
            .arg("GT")
            .arg(held_since)
            .arg(&*tag.0);
        pipe.add_command(command);
    }

    fn append_one(&self, pipe: &mut Pipeline, write: &Write) {
        match write {
            Write::Ack(_) => {}
            Write::Requeue {
                tag,
                to,
                raw,
                queue,
                priority,
            } => {
                let mut call = self.scripts.requeue.prepare_invoke();
                call.key(self.keys.name("unacked")).key(self.keys.name("unacked_index"));
                call.key(self.keys.queue(queue, *priority)).arg(&*tag.0);
                match mark_redelivered(raw) {
                    Some(marked) => call.arg(marked),
                    None => call.arg(&raw[..]),
                };
                call.arg(if *to == End::Head { "head" } else { "tail" });
                pipe.invoke_script(&call);
            }
            Write::Publish {
                exchange,
                routing_key,
                priority,
                envelope,
            } => {
                let known = !self.options.queues.is_empty();
                if known && self.is_fanout(exchange) {
                    pipe.publish(self.keys.channel(exchange, routing_key), &envelope[..]);
                    return;
                }
                if exchange.is_empty() {
                    pipe.lpush(self.keys.queue(routing_key, *priority), &envelope[..]);
                } else {
                    self.append_routed(pipe, exchange, routing_key, *priority, envelope);
                }
                if known {
                    self.append_expiry(pipe, exchange, routing_key);
                }
            }
            Write::Hold {
                tag,
                exchange,
                routing_key,
                envelope,
            } => {
                let name = |text: &str| serde_json::Value::from(text).to_string();
                let (exchange, routing_key) = (name(exchange), name(routing_key));
                let mut call = self.scripts.hold.prepare_invoke();
                call.key(self.keys.name("unacked")).key(self.keys.name("unacked_index"));
                call.arg(&*tag.0).arg(
                    [
                        b"[",
                        &envelope[..],
                        b",",
                        exchange.as_bytes(),
                        b",",
                        routing_key.as_bytes(),
                        b"]",
                    ]
                    .concat(),
                );
                call.arg(self.options.lease_shift());
                pipe.invoke_script(&call);
            }
            Write::Broadcast {
                exchange,
                routing_key,
                payload,
            } => {
                pipe.publish(self.keys.channel(exchange, routing_key), &payload[..]);
            }
            Write::Reply {
                exchange,
                routing_key,
                payload,
            } => {
                let queue = format!("{routing_key}.{exchange}");
                let mut call = self.scripts.reply.prepare_invoke();
                call.key(self.keys.bindings(exchange)).key(self.keys.name(&queue));
                call.arg(self.keys.binding(routing_key, &queue))
                    .arg(&payload[..])
                    .arg(REPLY_TTL);
                pipe.invoke_script(&call);
            }
            Write::Dead {
                tag,
                queue,
                raw,
                reason,
            } => {
                self.append_letter(pipe, Some(tag), queue, &self.letter(raw, "", queue, reason));
            }
            Write::Letter(letter) => {
                let Letter {
                    exchange,
                    routing_key,
                    raw,
                    reason,
                } = &**letter;
                let letter = self.letter(raw, exchange, routing_key, reason);
                self.append_letter(pipe, None, routing_key, &letter);
            }
            Write::Park { tag, eta } => self.append_park(pipe, tag, *eta),
            Write::GiveBack { queue, priority, tags } => {
                let mut call = invocation(&self.scripts.give_back, 3);
                call.arg(self.keys.name("unacked"))
                    .arg(self.keys.name("unacked_index"))
                    .arg(self.keys.queue(queue, *priority))
                    .arg(in_json(queue).as_bytes());
                for tag in tags {
                    call.arg(&*tag.0);
                }
                pipe.add_command(call);
            }
            Write::Revoked(ids) => self.append_revoked(pipe, ids.iter().map(String::as_str)),
            Write::Declare(queue) => self.append_declare(pipe, queue),
            Write::Bind {
                queue,
                exchange,
                routing_key,
                topic,
            } => {
                let member = if *topic {
                    self.keys.topic_binding(routing_key, queue)
                } else {
                    self.keys.binding(routing_key, queue)
                };
                pipe.sadd(self.keys.bindings(exchange), &member);
                pipe.sadd(self.keys.permanent_bindings(exchange), &member);
            }
        }
    }

    /// Sends a message whose sending was not answered, unless it can be seen that it was sent: not answered is not
    /// refused, and twice is run twice. `None` for what goes through an exchange.
    pub(crate) fn again(&self, write: &Write) -> Option<Cmd> {
        let Write::Publish {
            exchange,
            routing_key,
            priority,
            envelope,
        } = write
        else {
            return None;
        };
        if !exchange.is_empty() {
            return None;
        }
        // Each message has one of its own, also when it is tried again.
        let tag = delivery_tag(envelope)?;
        let mut call = invocation(&self.scripts.send_again, 2);
        call.arg(self.keys.queue(routing_key, *priority))
            .arg(self.keys.name("unacked"))
            .arg(&envelope[..])
            .arg(tag)
            .arg(NEWEST)
            .arg(HELD)
            .arg(HELD_BYTES);
        Some(call)
    }

    /// By the script that buries, which takes the message out of `unacked` if it is held.
    fn append_letter(&self, pipe: &mut Pipeline, tag: Option<&Tag>, queue: &str, letter: &[u8]) {
        let mut call = self.scripts.bury.prepare_invoke();
        call.key(self.keys.name("unacked"))
            .key(self.keys.name("unacked_index"))
            .key(self.dead_key(queue));
        // What is told to everybody is held nowhere.
        let tag = tag.filter(|tag| tag.is_held()).map_or("", |tag| &tag.0);
        call.arg(tag).arg(letter).arg(self.options.dead_limit);
        pipe.invoke_script(&call);
    }

    /// By the script that knows where an exchange sends.
    fn append_routed(&self, pipe: &mut Pipeline, exchange: &str, routing_key: &str, priority: u8, envelope: &[u8]) {
        let mut call = self.scripts.publish.prepare_invoke();
        call.key(self.keys.bindings(exchange));
        call.arg(exchange).arg(routing_key).arg(envelope);
        call.arg(self.keys.name(""))
            .arg(self.keys.suffix(priority))
            .arg(self.keys.sep());
        pipe.invoke_script(&call);
    }

    fn is_fanout(&self, exchange: &str) -> bool {
        let tells = |queue: &crate::wire::Queue| queue.is_broadcast() && queue.exchange == exchange;
        !exchange.is_empty() && self.options.queues.iter().any(tells)
    }
}
