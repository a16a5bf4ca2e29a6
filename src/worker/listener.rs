//! Takes what is told to everybody: messages of fanout exchanges (`kombu.common.Broadcast`). They go the way of all
//! others, within the prefetch count, but lie nowhere: a worker that ends with one gives nothing back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tracing::warn;

use super::fetcher::{Fetched, Taken};
use super::request::Delivery;
use super::room::Room;
use super::stop::Phase;
use crate::broker::Broker;

/// Between two tries to connect.
const AGAIN: Duration = Duration::from_secs(1);

/// The service that listens.
pub(crate) struct Listener {
    pub broker: Broker,
    /// The prefetch count.
    pub credit: Arc<Semaphore>,
    /// The bound in bytes.
    pub room: Room,
    /// Queues of the worker; remote control changes them.
    pub queues: watch::Receiver<Vec<Arc<str>>>,
    pub stop: watch::Receiver<Phase>,
    pub to: mpsc::Sender<Vec<Fetched>>,
}

impl Listener {
    /// Runs until the worker stops.
    pub(crate) async fn run(mut self) {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = self.listen() => {}
            _ = stop.wait_for(|phase| *phase != Phase::Run) => {}
        }
    }

    async fn listen(&mut self) {
        loop {
            let queues = self.queues.borrow_and_update().clone();
            let mut told = match self.broker.broadcasts(&queues).await {
                Ok(told) => told,
                Err(error) => {
                    warn!(%error, "what is told to everybody is not heard");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            loop {
                let next = async {
                    match &mut told {
                        Some(told) => told.next().await,
                        None => std::future::pending().await,
                    }
                };
                let message = tokio::select! {
                    message = next => message,
                    changed = self.queues.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                };
                let Some(message) = message else { break };
                let Ok(credit) = self.credit.clone().acquire_owned().await else {
                    return;
                };
                let delivery = Delivery::new(message.tag, message.queue, Some(credit));
                let share = self.room.take(message.raw.len());
                let raw = message.raw;
                let fetched = Fetched::Message(Taken { delivery, raw, share });
                if self.to.send(vec![fetched]).await.is_err() {
                    return;
                }
            }
        }
    }
}
