//! Asks workers again and again, and listens to their events.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::{Notify, mpsc};

use crate::client::{Client, Error, Events};
use crate::wire::Heard;

/// How long answers are waited for while it is not known who will answer.
const PATIENCE: Duration = Duration::from_millis(800);
/// Every so many rounds all are asked, not only those that are known.
const ALL: u32 = 5;

/// What was found out.
pub(super) enum News {
    /// One round of questions.
    Round(Round),
    /// An event.
    Event(Heard),
    /// Redis cannot be asked.
    Trouble(String),
}

/// Answers by worker, and the lengths of queues.
#[derive(Default)]
pub(super) struct Round {
    pub stats: Map<String, Value>,
    pub active: Map<String, Value>,
    pub queues: Map<String, Value>,
    pub lengths: Vec<(String, u64)>,
}

/// Who asks.
pub(super) struct Watch {
    client: Client,
    events: Mutex<Option<Events>>,
    interval: Duration,
    news: mpsc::UnboundedSender<News>,
    orders: Mutex<Vec<(&'static str, Value)>>,
    ordered: Notify,
}

impl Watch {
    pub(super) async fn start(
        client: Client,
        exchange: &str,
        interval: Duration,
        news: mpsc::UnboundedSender<News>,
    ) -> Result<Self, Error> {
        Ok(Self {
            events: Mutex::new(Some(client.events(exchange).await?)),
            client,
            interval,
            news,
            orders: Mutex::default(),
            ordered: Notify::new(),
        })
    }

    /// Tells all workers something, soon.
    pub(super) fn tell(&self, method: &'static str, arguments: Value) {
        self.orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((method, arguments));
        self.ordered.notify_one();
    }

    /// Goes on until it is dropped.
    pub(super) async fn run(&self) {
        tokio::join!(self.ask(), self.listen(), self.obey());
    }

    async fn listen(&self) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut events) = events else { return };
        while let Some(event) = events.next().await {
            let _ = self.news.send(News::Event(event));
        }
    }

    async fn obey(&self) {
        loop {
            self.ordered.notified().await;
            let orders = std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner));
            for (method, arguments) in orders {
                if let Err(error) = self.client.cast(method, &arguments, None).await {
                    let _ = self.news.send(News::Trouble(error.to_string()));
                }
            }
        }
    }

    async fn ask(&self) {
        let mut known: Vec<String> = Vec::new();
        for round in 0_u32.. {
            let all = known.is_empty() || round % ALL == 0;
            let news = match self.round((!all).then_some(&known)).await {
                Ok(found) => {
                    known = found.stats.keys().cloned().collect();
                    News::Round(found)
                }
                Err(error) => {
                    known.clear();
                    News::Trouble(error.to_string())
                }
            };
            if self.news.send(news).is_err() {
                return;
            }
            tokio::time::sleep(self.interval).await;
        }
    }

    /// Those who are known end the wait with their answers.
    async fn round(&self, known: Option<&Vec<String>>) -> Result<Round, Error> {
        let destination = known.map(Vec::as_slice);
        let question = |method: &'static str, arguments: Value| async move {
            self.client.inspect(method, &arguments, destination, PATIENCE).await
        };
        let (stats, active, queues) = tokio::join!(
            question("stats", json!({})),
            question("active", json!({"safe": true})),
            question("active_queues", json!({}))
        );
        let (stats, active, queues) = (stats?, active?, queues?);
        let names: BTreeSet<&str> = queues
            .values()
            .filter_map(Value::as_array)
            .flatten()
            .filter_map(|queue| queue.get("name")?.as_str())
            .collect();
        let mut lengths = Vec::with_capacity(names.len());
        for name in names {
            lengths.push((name.to_owned(), self.client.queue_length(name).await?));
        }
        Ok(Round {
            stats,
            active,
            queues,
            lengths,
        })
    }
}
