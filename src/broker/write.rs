//! What is written, many at a time, in one pipeline.

use std::sync::Arc;

use bytes::Bytes;
use redis::Pipeline;

use super::{Broker, Tag, mark_redelivered};
use crate::wire::Parcel;

/// Seconds until a reply that nobody reads is gone.
const REPLY_TTL: u32 = 60;

/// Which end of a list; the tail is delivered next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Behind everything that waits.
    Head,
    /// Before everything that waits.
    Tail,
}

/// One change. All but [`Publish`](Self::Publish) and [`Broadcast`](Self::Broadcast) may be repeated after a lost
/// reply without effect; those two then happen twice.
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

impl Broker {
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
                if exchange.is_empty() {
                    pipe.lpush(self.keys.queue(routing_key, *priority), &envelope[..]);
                    return;
                }
                let mut call = self.scripts.publish.prepare_invoke();
                call.key(self.keys.bindings(exchange));
                call.arg(exchange).arg(routing_key).arg(&envelope[..]);
                call.arg(self.keys.name(""))
                    .arg(self.keys.suffix(*priority))
                    .arg(self.keys.sep());
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
                let mut call = self.scripts.bury.prepare_invoke();
                call.key(self.keys.name("unacked"))
                    .key(self.keys.name("unacked_index"))
                    .key(self.dead_key(queue));
                call.arg(&*tag.0)
                    .arg(self.letter(raw, "", queue, reason))
                    .arg(self.options.dead_limit);
                pipe.invoke_script(&call);
            }
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
}
