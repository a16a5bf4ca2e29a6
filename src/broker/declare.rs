//! Declaring queues, as kombu does: in the table of bindings of their exchange, for good, or with a deadline for those
//! that expire, which is put off as long as somebody consumes them.

use std::sync::PoisonError;
use std::time::Duration;

use redis::Pipeline;

use super::{Broker, Error};
use crate::wire::{ExchangeType, Queue};

/// The shortest time a binding with a deadline lasts.
const SHORTEST: Duration = Duration::from_secs(3600);

/// A binding with a deadline.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bound {
    exchange: String,
    member: String,
    lasts: Duration,
}

impl Broker {
    /// What is known of a queue, if more than its name.
    pub fn known(&self, queue: &str) -> Option<&Queue> {
        self.options.queues.iter().find(|known| known.name == queue)
    }

    /// Whether a queue is only a name for what is told to everybody.
    pub(crate) fn is_broadcast(&self, queue: &str) -> bool {
        self.known(queue).is_some_and(Queue::is_broadcast)
    }

    pub(super) fn append_declare(&self, pipe: &mut Pipeline, queue: &str) {
        let Some(known) = self.known(queue) else {
            let member = self.keys.binding(queue, queue);
            pipe.sadd(self.keys.bindings(queue), &member);
            pipe.sadd(self.keys.permanent_bindings(queue), &member);
            return;
        };
        let member = match known.exchange_type {
            // Nothing is looked up for those who listen.
            ExchangeType::Fanout => return,
            ExchangeType::Topic => self.keys.topic_binding(&known.routing_key, queue),
            ExchangeType::Direct => self.keys.binding(&known.routing_key, queue),
        };
        match known.expires {
            None => {
                pipe.sadd(self.keys.bindings(&known.exchange), &member);
                pipe.sadd(self.keys.permanent_bindings(&known.exchange), &member);
            }
            Some(expires) => {
                let bound = Bound {
                    exchange: known.exchange.clone(),
                    member,
                    lasts: SHORTEST.max(expires * 2),
                };
                self.append_bound(pipe, &bound);
                let mut all = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
                if !all.contains(&bound) {
                    all.push(bound);
                }
            }
        }
    }

    /// After a message went to a queue that expires: each of its lists lasts that long from now.
    pub(super) fn append_expiry(&self, pipe: &mut Pipeline, exchange: &str, routing_key: &str) {
        let meant = |queue: &&Queue| match exchange {
            "" => queue.name == routing_key,
            exchange => queue.exchange == exchange,
        };
        for queue in self.options.queues.iter().filter(meant) {
            let Some(expires) = queue.expires else { continue };
            for (key, _) in self.keys.all(std::iter::once((0, queue.name.as_str()))) {
                pipe.pexpire(key, i64::try_from(expires.as_millis()).unwrap_or(i64::MAX));
            }
        }
    }

    /// Binds with a deadline, which [`renew_bindings`](Self::renew_bindings) puts off.
    pub(super) async fn bind_for_a_while(&self, exchange: &str, member: String, lasts: Duration) -> Result<(), Error> {
        let exchange = exchange.to_owned();
        let bound = Bound {
            exchange,
            member,
            lasts,
        };
        let mut pipe = Pipeline::new();
        self.append_bound(&mut pipe, &bound);
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).push(bound);
        self.writer.pipeline(&pipe).await.map(drop)
    }

    pub(super) fn forget_binding(&self, exchange: &str, member: &str) {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.retain(|bound| bound.exchange != exchange || bound.member != member);
    }

    fn append_bound(&self, pipe: &mut Pipeline, bound: &Bound) {
        let mut call = self.scripts.bind.prepare_invoke();
        call.key(self.keys.bindings(&bound.exchange)).key(self.keys.deadlines());
        let lasts = u64::try_from(bound.lasts.as_millis()).unwrap_or(u64::MAX);
        call.arg(&bound.member).arg(&bound.exchange).arg(lasts);
        pipe.invoke_script(&call);
    }

    /// How often bindings with a deadline are to be renewed: three times within the shortest.
    pub const RENEWAL: Duration = Duration::from_secs(1200);

    /// Puts off the deadlines of bindings.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn renew_bindings(&self) -> Result<(), Error> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut pipe = Pipeline::with_capacity(bound.len());
        bound.iter().for_each(|bound| self.append_bound(&mut pipe, bound));
        if bound.is_empty() {
            return Ok(());
        }
        self.writer.pipeline(&pipe).await.map(drop)
    }
}
