//! Many calls, a bounded number of them at a time, none of them sent twice.

use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;

use super::{Call, Client, Error, Pending};
use crate::clock;
use crate::wire::{Record, State};

/// The pause before a call is tried again that Redis did not take.
const PAUSE: Duration = Duration::from_secs(1);

impl Client {
    /// Sends a call unless a task of its id is known to the result backend. For callers that may be started again: with
    /// ids that follow from their work, and with results that are kept, no call is sent twice.
    ///
    /// What is sent is noted as PENDING, which means "nothing is known" to everybody else (and Celery's default for
    /// tasks that nobody has heard of). The broker remembers that it was sent until that is noted: a caller that is
    /// killed in between sends nothing when it is started again within a day.
    ///
    /// # Errors
    /// As of [`send`](Self::send); there is no result backend.
    pub async fn send_once(&self, call: &Call) -> Result<Pending, Error> {
        let backend = self.backend().ok_or(Error::NoBackend)?;
        let id = call.id();
        if !backend.knows(id).await? {
            self.publish_once(call).await?;
            let record = Record::new(id, &State::Pending, Value::Null, clock::iso(clock::now()));
            backend.note(id, &serde_json::to_vec(&record)?).await?;
            self.broker.forget_once(id).await?;
        }
        Ok(self.result(id))
    }

    /// Runs many calls, with at most `in_flight` sent and not ended at any time, and gives each one's name and end, in
    /// the order in which they end. A call whose id is known already is not sent, only waited for. A Redis that is away
    /// is waited for as well.
    ///
    /// The stream does nothing unless it is polled; dropping it leaves what was sent to the workers.
    pub fn run_all<N>(
        &self,
        calls: impl IntoIterator<Item = (N, Call)>,
        in_flight: usize,
    ) -> impl Stream<Item = (N, Result<Value, Error>)> {
        let run = async |(name, call): (N, Call)| {
            let ended = loop {
                match self.run_one(&call).await {
                    Err(error) if error.is_transient() => tokio::time::sleep(PAUSE).await,
                    ended => break ended,
                }
            };
            (name, ended)
        };
        stream::iter(calls).map(run).buffer_unordered(in_flight.max(1))
    }

    async fn run_one(&self, call: &Call) -> Result<Value, Error> {
        self.send_once(call).await?.get(Duration::MAX).await
    }
}
