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
use crate::clock;

/// Between two tries to listen.
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
        let mut told = self.broker.broadcasts();
        loop {
            let queues = self.queues.borrow_and_update().clone();
            let heard = told.listen_to(&queues).await;
            if let Err(error) = &heard {
                warn!(%error, "what is told to everybody is not heard");
            }
            let again = clock::instant() + AGAIN;
            loop {
                let message = tokio::select! {
                    message = told.next() => message,
                    changed = self.queues.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    () = tokio::time::sleep_until(again), if heard.is_err() => break,
                };
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
