//! Sending.

use std::time::Duration;

use redis::Pipeline;

use super::{Call, Client, Error, Pending};
use crate::broker::Write;
use crate::wire::Security;

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

    /// What is sent is signed, where this client signs.
    pub(super) fn signed(&self, envelope: Vec<u8>) -> Result<Vec<u8>, Error> {
        Security::signed(self.signer.as_deref(), envelope).map_err(Error::Sign)
    }

    async fn publish(&self, calls: &[Call]) -> Result<(), Error> {
        let (origin, reply_to) = (self.results.origin(), self.results.oid());
        let mut writes = Vec::with_capacity(calls.len() + 1);
        for call in calls {
            if self.results.declare(&call.queue) {
                writes.push(Write::Declare(call.queue.as_str().into()));
            }
            writes.push(Write::Publish {
                exchange: String::new(),
                routing_key: call.queue.clone(),
                priority: call.priority,
                envelope: self.signed(call.envelope(origin, reply_to)?)?.into(),
            });
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
