//! Events, as monitors hear them (`celery.events.receiver`).

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tracing::debug;

use super::{Client, Error};
use crate::conn::{Link, Push};
use crate::wire::Heard;

/// Events as they come. The connection comes back by itself; what is said meanwhile is not heard.
#[derive(Debug)]
pub struct Events {
    messages: mpsc::Receiver<Push>,
    waiting: VecDeque<Heard>,
    /// What they come on.
    _link: Link,
}

impl Client {
    /// Listens to events of workers and senders; the exchange is `event_exchange`, mostly `celeryev`.
    ///
    /// # Errors
    /// Redis cannot be reached or refuses.
    pub async fn events(&self, exchange: &str) -> Result<Events, Error> {
        let (link, messages) = self.broker.subscribe_events(exchange).await?;
        Ok(Events {
            messages,
            waiting: VecDeque::new(),
            _link: link,
        })
    }
}

impl Events {
    /// The next one. Cancel-safe.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            let Push { channel, payload, .. } = self.messages.recv().await?;
            match Heard::decode_all(&payload) {
                Ok(events) => self.waiting.extend(events),
                Err(error) => debug!("a message on {channel} is no event: {error}"),
            }
        }
    }
}
