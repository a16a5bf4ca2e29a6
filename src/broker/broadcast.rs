//! What is told to everybody: queues of fanout exchanges (kombu's `Broadcast`). Each worker hears each message; nothing
//! is kept for those who do not listen, and nothing comes back when a worker dies with one.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Broker, Claimed, Error, Tag};
use crate::conn::{Link, Push};
use crate::wire::{Queue, fits};

/// What the tags of such messages begin with.
pub(super) const TOLD: &str = "told:";

/// Listens to queues of fanout exchanges, on connections of its own.
pub struct Broadcasts {
    link: Link,
    heard: mpsc::Receiver<Push>,
    /// Patterns of channels, and the queues that they stand for.
    channels: Vec<(String, Arc<str>)>,
    largest: usize,
}

impl Broker {
    /// The queues that have lists: those that messages are taken from.
    pub fn lists(&self, mut queues: Vec<Arc<str>>) -> Vec<Arc<str>> {
        if !self.options.queues.is_empty() {
            queues.retain(|queue| !self.is_broadcast(queue));
        }
        queues
    }

    /// Listens to those of `queues` that are told to everybody; `None` when there are none.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn broadcasts(&self, queues: &[Arc<str>]) -> Result<Option<Broadcasts>, Error> {
        let mut told: Vec<(&Arc<str>, &Queue)> = Vec::new();
        for name in queues {
            told.extend(
                self.known(name)
                    .filter(|queue| queue.is_broadcast())
                    .map(|queue| (name, queue)),
            );
        }
        if told.is_empty() {
            return Ok(None);
        }
        let link = Link::connect(self.main.endpoint(), self.options.link.clone()).await?;
        let mut broadcasts = Broadcasts {
            heard: link.pushes(),
            link,
            channels: Vec::new(),
            largest: self.options.max_message_bytes,
        };
        for (name, queue) in told {
            let channel = self.keys.channel(&queue.exchange, &queue.routing_key.replace('#', "*"));
            broadcasts.link.subscribe_matching(&channel).await?;
            broadcasts.channels.push((channel, name.clone()));
        }
        Ok(Some(broadcasts))
    }
}

impl Broadcasts {
    /// The next message. Cancel-safe.
    pub async fn next(&mut self) -> Option<Claimed> {
        loop {
            let Push {
                channel, payload: raw, ..
            } = self.heard.recv().await?;
            let queue = self.channels.iter().find(|(pattern, _)| fits(&channel, pattern));
            match queue {
                Some((_, queue)) if raw.len() <= self.largest => {
                    return Some(Claimed {
                        tag: Tag(format!("{TOLD}{}", Uuid::new_v4()).into()),
                        queue: queue.clone(),
                        raw: Bytes::from(raw),
                        waits: false,
                    });
                }
                Some((_, queue)) => {
                    tracing::error!("a message of {} bytes that was told to {queue} is too large", raw.len());
                }
                None => {}
            }
        }
    }
}
