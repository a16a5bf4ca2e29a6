//! Sending.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Pipeline;

use super::{Call, Client, Error, Pending};
use crate::broker::Write;
use crate::wire::{Event, Events, Limits, decode};

/// `task_publish_retry_policy`: how often, and the pause before each.
const RETRIES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(400)];

impl Client {
    /// Sends a call; when this returns, Redis has it.
    ///
    /// # Errors
    /// An argument is not JSON, or Redis cannot be reached. A call whose confirmation was lost may have been sent.
    pub async fn send(&self, call: Call) -> Result<Pending, Error> {
        let id = call.headers.id.clone();
        self.publish(std::slice::from_ref(&call)).await?;
        Ok(self.result(id))
    }

    /// Sends many calls in one round trip.
    ///
    /// # Errors
    /// See [`send`](Self::send); none or some of them may have been sent.
    pub async fn send_many(&self, calls: &[Call]) -> Result<Vec<Pending>, Error> {
        self.publish(calls).await?;
        Ok(calls.iter().map(|call| self.result(call.headers.id.clone())).collect())
    }

    /// Tells monitors of the message, if they are to be told.
    fn sent_event(&self, envelope: &[u8], queue: &str) -> Option<Write> {
        let sent = self.sent_events.as_ref()?;
        let headers = decode(envelope, &Limits::default()).ok()?.headers;
        let clock = sent.clock.fetch_add(1, Ordering::Relaxed) + 1;
        let event = Event::sent(&headers, "", queue, self.results.origin(), clock);
        let (routing_key, payload) = Events::one(&event, &sent.exchange).ok()?;
        Some(Write::Broadcast {
            exchange: sent.exchange.clone(),
            routing_key,
            payload: payload.into(),
        })
    }

    async fn publish(&self, calls: &[Call]) -> Result<(), Error> {
        let (origin, reply_to) = (self.results.origin(), self.results.oid());
        let mut writes = Vec::with_capacity(calls.len() + 1);
        for call in calls {
            if self.results.declare(&call.queue) {
                writes.push(Write::Declare(call.queue.as_str().into()));
            }
            let envelope = call.envelope(origin, reply_to)?;
            let event = self.sent_event(&envelope, &call.queue);
            writes.push(Write::Publish {
                exchange: String::new(),
                routing_key: call.queue.clone(),
                priority: call.priority,
                envelope: envelope.into(),
            });
            writes.extend(event);
        }
        let mut pipe = Pipeline::with_capacity(writes.len());
        self.broker.append(&mut pipe, &writes);
        let mut retries = RETRIES.iter();
        loop {
            let error = match self.broker.writer().pipeline(&pipe).await {
                Ok(replies) => match replies.into_iter().find_map(|reply| match reply {
                    redis::Value::ServerError(error) => Some(error),
                    _ => None,
                }) {
                    None => return Ok(()),
                    Some(error) => crate::conn::Error::Refused(format!("Redis refused the message: {error}")),
                },
                Err(error) => error,
            };
            match retries.next() {
                Some(pause) if error.is_transient() => {
                    tokio::time::sleep(*pause).await;
                    let _ = tokio::time::timeout(Duration::from_secs(1), self.broker.writer().ready()).await;
                }
                _ => return Err(error.into()),
            }
        }
    }
}
