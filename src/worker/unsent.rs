//! What follows a task and Redis will not take: the key of its queue holds no list, or is not for this user. It is kept
//! as a dead letter, its task fails and what hangs on that; where it can be kept nowhere, the message of the task that
//! it follows is not acknowledged.

use std::collections::HashSet;

use bytes::Bytes;
use redis::Pipeline;
use tracing::error;

use super::sending::Sending;
use crate::broker::{self, Broker, Letter, Tag, Write};
use crate::conn::Errand;

/// Messages that are sent together, and those of them that follow a task whose message is held.
#[derive(Default)]
pub(super) struct Messages {
    pub writes: Vec<Write>,
    /// The place of each among them, and the message that it follows.
    follow: Vec<(usize, Tag)>,
}

/// What Redis refused for good: the place of the command in its pipeline, and why.
pub(super) type Refused = Vec<(usize, String)>;

impl Messages {
    pub(super) fn push(&mut self, write: Write, follows: Option<Tag>) {
        self.follow.extend(follows.map(|tag| (self.writes.len(), tag)));
        self.writes.push(write);
    }

    /// Adds others behind these.
    pub(super) fn append(&mut self, mut others: Self) {
        let before = self.writes.len();
        self.follow
            .extend(others.follow.into_iter().map(|(place, tag)| (before + place, tag)));
        self.writes.append(&mut others.writes);
    }

    /// What stands in a pipeline from `at` on was perhaps done, and nobody knows: what can be seen to be there is not
    /// sent again.
    pub(super) fn repeat(&self, mut at: usize, errand: &mut Errand<'_>, broker: &Broker) {
        for write in &self.writes {
            if let Some(again) = broker.again(write) {
                errand.replace(at, again);
            }
            at += length(broker, write);
        }
    }

    /// Takes those out of `refused` that are one of these, which stand in their pipeline from `at` on.
    fn take(&self, mut at: usize, refused: &mut Refused, broker: &Broker) -> Vec<(&Write, Option<&Tag>, String)> {
        let mut mine = Vec::new();
        for (place, write) in self.writes.iter().enumerate() {
            if let Some(found) = refused.iter().position(|(command, _)| *command == at) {
                let follows = self.follow.iter().find(|(follows, _)| *follows == place);
                mine.push((write, follows.map(|(_, tag)| tag), refused.swap_remove(found).1));
            }
            at += length(broker, write);
        }
        mine
    }
}

/// How many commands it is.
fn length(broker: &Broker, write: &Write) -> usize {
    let mut commands = Pipeline::new();
    broker.append(&mut commands, std::slice::from_ref(write));
    commands.len()
}

/// A message that cannot be sent; for the consumer loop.
pub(crate) struct Unsent {
    pub raw: Bytes,
    /// Why.
    pub reason: String,
    /// The message that it follows, and what is done with that.
    pub follows: Option<(Tag, Then)>,
    /// It was to start here, under that tag.
    pub stays: Option<Tag>,
}

/// What is done with a message whose task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is acknowledged when the failure of what follows is written down.
    Ack,
    /// Another sees to that.
    Nothing,
    /// It is not acknowledged.
    Keep,
}

impl Sending {
    /// Keeps what was refused of messages that stand in their pipeline from a place on as dead letters, and tells the
    /// loop, which from now on sees to the acks of what they follow. What else was refused.
    pub(super) async fn give_up(
        &self,
        (messages, at): (&Messages, usize),
        mut refused: Refused,
        acks: &mut Vec<Write>,
        stays: &mut Vec<Tag>,
    ) -> Refused {
        if refused.is_empty() {
            return refused;
        }
        let (mut unsent, mut keep) = (Vec::new(), HashSet::new());
        for (write, follows, why) in messages.take(at, &mut refused, &self.broker) {
            let Some((exchange, routing_key, raw)) = write.message() else {
                continue;
            };
            let stays_here = |tag: &Tag| stays.iter().position(|stays| stays == tag);
            let place = match write {
                Write::Hold { tag, .. } => stays_here(tag),
                _ => None,
            };
            if place.is_none() && matches!(write, Write::Hold { .. }) {
                // Nothing is sent by it: a member of a chord would be counted from there, should this worker die.
                error!("the member of a chord is not held until it is counted: Redis refused: {why}");
                continue;
            }
            let (id, name) = broker::names(raw);
            let (id, name) = (id.unwrap_or_default(), name.unwrap_or_default());
            let to = match write {
                Write::Publish { priority, .. } if exchange.is_empty() => {
                    format!("the key {:?}", self.broker.list(routing_key, *priority))
                }
                Write::Publish { .. } => format!("the exchange {exchange:?} with the routing key {routing_key:?}"),
                _ => format!("unacked, for the queue {routing_key:?}"),
            };
            let reason = format!("its message cannot be sent to {to}: Redis refused: {why}");
            let letter = Letter {
                exchange: exchange.to_owned(),
                routing_key: routing_key.to_owned(),
                raw: raw.clone(),
                reason: reason.clone(),
            };
            let then = match (self.bury(letter).await, follows) {
                (None, _) => format!("it is in {routing_key}.dead"),
                (Some(why), Some(tag)) => {
                    keep.insert(tag.clone());
                    format!(
                        "it cannot be kept in {routing_key}.dead ({why}): the task that it follows stays in unacked and runs again"
                    )
                }
                (Some(why), None) => format!("it cannot be kept in {routing_key}.dead ({why}), and is gone"),
            };
            error!(
                task.id = id,
                task.name = name,
                "Task {name}[{id}] fails: {reason}; {then}"
            );
            unsent.push((raw.clone(), reason, follows, place.map(|at| stays.remove(at))));
        }
        for (raw, reason, follows, stays) in unsent {
            let follows = follows.map(|tag| {
                let ack = acks
                    .iter()
                    .position(|write| matches!(write, Write::Ack(ack) if ack == tag));
                let ack = ack.map(|at| acks.remove(at));
                let then = match ack {
                    _ if keep.contains(tag) => Then::Keep,
                    Some(_) => Then::Ack,
                    None => Then::Nothing,
                };
                (tag.clone(), then)
            });
            self.tell_unsent(Unsent {
                raw,
                reason,
                follows,
                stays,
            });
        }
        refused
    }
}
