//! What is told to everybody: queues of fanout exchanges (kombu's `Broadcast`). Each worker hears each message; nothing
//! is kept for those who do not listen, and nothing comes back when a worker dies with one.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Broker, Claimed, Error, Tag};
use crate::conn::{Link, Push};
use crate::wire::fits;

/// What the tags of such messages begin with.
pub(super) const TOLD: &str = "told:";

/// Listens to queues of fanout exchanges, on connections of its own.
pub struct Broadcasts {
    broker: Broker,
    /// It is made when there is something to listen to.
    heard: Option<(Link, mpsc::Receiver<Push>)>,
    /// Patterns of channels, and the queues that they stand for.
    channels: Vec<(String, Arc<str>)>,
}

impl Broker {
    /// The queues that have lists: those that messages are taken from.
    pub fn lists(&self, mut queues: Vec<Arc<str>>) -> Vec<Arc<str>> {
        if !self.options.queues.is_empty() {
            queues.retain(|queue| !self.is_broadcast(queue));
        }
        queues
    }

    /// What listens to that which is told to everybody: to nothing yet.
    pub fn broadcasts(&self) -> Broadcasts {
        Broadcasts {
            broker: self.clone(),
            heard: None,
            channels: Vec::new(),
        }
    }
}

impl Broadcasts {
    /// Listens to those of `queues` that are told to everybody, and to no others. What was heard of those that stay is
    /// still to come.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses one of them; the others are listened to.
    pub async fn listen_to(&mut self, queues: &[Arc<str>]) -> Result<(), Error> {
        let broker = &self.broker;
        let channel = |name: &Arc<str>| {
            let queue = broker.known(name).filter(|queue| queue.is_broadcast())?;
            let routing_key = queue.routing_key.replace('#', "*");
            Some((broker.keys.channel(&queue.exchange, &routing_key), name.clone()))
        };
        let wanted: Vec<(String, Arc<str>)> = queues.iter().filter_map(channel).collect();
        let link = match &self.heard {
            Some((link, _)) => link,
            None if wanted.is_empty() => return Ok(()),
            None => {
                let link = Link::connect(broker.main.endpoint(), broker.options.link.clone()).await?;
                let pushes = link.pushes();
                &self.heard.insert((link, pushes)).0
            }
        };
        let has = |channels: &[(String, Arc<str>)], channel: &str| channels.iter().any(|(known, _)| known == channel);
        for (channel, _) in self.channels.iter().filter(|(channel, _)| !has(&wanted, channel)) {
            link.unsubscribe_matching(channel).await;
        }
        let (mut channels, mut refused) = (Vec::with_capacity(wanted.len()), Ok(()));
        for (channel, queue) in wanted {
            let subscribed = match has(&self.channels, &channel) {
                true => Ok(()),
                false => link.subscribe_matching(&channel).await,
            };
            match subscribed {
                Ok(()) => channels.push((channel, queue)),
                Err(error) => refused = Err(error),
            }
        }
        self.channels = channels;
        refused
    }

    /// The next message. Cancel-safe.
    pub async fn next(&mut self) -> Claimed {
        loop {
            let push = match &mut self.heard {
                Some((_, heard)) => heard.recv().await,
                None => None,
            };
            // What is heard ends with the link, which is ours.
            let Some(Push {
                channel, payload: raw, ..
            }) = push
            else {
                return std::future::pending().await;
            };
            let queue = self.channels.iter().find(|(pattern, _)| fits(&channel, pattern));
            match queue {
                Some((_, queue)) if raw.len() <= self.broker.options.max_message_bytes => {
                    return Claimed {
                        tag: Tag(format!("{TOLD}{}", Uuid::new_v4()).into()),
                        queue: queue.clone(),
                        raw: Bytes::from(raw),
                        waits: false,
                    };
                }
                Some((_, queue)) => {
                    tracing::error!("a message of {} bytes that was told to {queue} is too large", raw.len());
                }
                None => {}
            }
        }
    }
}
