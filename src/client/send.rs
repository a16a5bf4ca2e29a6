//! Sending.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Pipeline;

use super::{Applied, Call, Client, Error, Pending};
use crate::backend;
use crate::broker::Write;
use crate::canvas::{GroupWrite, Parent, Plan, Planner};
use crate::clock;
use crate::conn::Link;
use crate::wire::{CallOptions, Event, Events, Limits, Outbound, Security, Signature, decode};

/// `task_publish_retry_policy`: how often, and the pause before each.
const RETRIES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(400)];

/// Where a call goes that does not say (`task_default_queue`).
pub(super) const QUEUE: &str = "celery";

impl Client {
    /// Sends a call; when this returns, Redis has it.
    ///
    /// # Errors
    /// An argument is not JSON, or Redis cannot be reached. A call whose confirmation was lost may have been sent.
    pub async fn send(&self, call: Call) -> Result<Pending, Error> {
        let id = call.id().to_owned();
        self.send_many(std::slice::from_ref(&call)).await?;
        Ok(self.result(id))
    }

    /// Sends many calls in one round trip.
    ///
    /// # Errors
    /// See [`send`](Self::send); none or some of them may have been sent.
    pub async fn send_many(&self, calls: &[Call]) -> Result<Vec<Pending>, Error> {
        let mut planner = Planner::new(None, self.results.oid());
        for call in calls {
            if let Some(wrong) = &call.wrong {
                return Err(Error::Argument(wrong.clone()));
            }
            planner.apply(call.signature.clone(), &[], CallOptions::default());
        }
        self.publish(planner.plan).await?;
        Ok(calls.iter().map(|call| self.result(call.id().to_owned())).collect())
    }

    /// Applies a signature: a call, a chain, a group or a chord.
    ///
    /// # Errors
    /// See [`send`](Self::send); an empty chain has nothing to apply.
    pub async fn apply(&self, signature: Signature) -> Result<Applied, Error> {
        self.apply_for(None, signature).await
    }

    /// Applies a signature on behalf of a task.
    pub(crate) async fn apply_for(&self, parent: Option<&Parent>, signature: Signature) -> Result<Applied, Error> {
        let mut planner = Planner::new(parent, self.results.oid());
        let handle = planner
            .apply(signature, &[], CallOptions::default())
            .ok_or_else(|| Error::Argument("an empty chain has nothing to run".into()))?;
        let children = std::mem::take(&mut planner.plan.children);
        self.publish(planner.plan).await?;
        Ok(Applied::new(self.clone(), handle, children))
    }

    /// What [`send`](Self::send) would put into the queue of a call, for a script that does more than that.
    ///
    /// # Errors
    /// An argument is not JSON.
    pub fn envelope(&self, call: &Call) -> Result<Vec<u8>, Error> {
        let mut planner = Planner::new(None, self.results.oid());
        planner.apply(call.signature.clone(), &[], CallOptions::default());
        let outbound = planner.plan.sends.first();
        let outbound = outbound.ok_or_else(|| Error::Argument("there is nothing to send".into()))?;
        let parcel = outbound.parcel(clock::now(), self.results.origin(), self.queue(outbound))?;
        self.signed(parcel.envelope)
    }

    /// Where a call goes that does not say.
    fn queue(&self, outbound: &Outbound) -> &str {
        self.routes.queue(&outbound.task).unwrap_or(QUEUE)
    }

    /// What is sent is signed, where this client signs.
    pub(super) fn signed(&self, envelope: Vec<u8>) -> Result<Vec<u8>, Error> {
        Security::signed(self.signer.as_deref(), envelope).map_err(Error::Sign)
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

    async fn publish(&self, plan: Plan) -> Result<(), Error> {
        let mut groups = Vec::with_capacity(plan.groups.len());
        for write in plan.groups {
            groups.push(group_write(write)?);
        }
        if !groups.is_empty() {
            let backend = self.backend.as_ref().ok_or(Error::NoBackend)?;
            let mut pipe = Pipeline::with_capacity(groups.len());
            backend.append(&mut pipe, &groups);
            insist(backend.link(), &pipe).await?;
        }
        let mut writes = Vec::with_capacity(plan.sends.len() + 1);
        for outbound in &plan.sends {
            let mut parcel = outbound.parcel(clock::now(), self.results.origin(), self.queue(outbound))?;
            parcel.envelope = self.signed(parcel.envelope)?;
            if parcel.exchange.is_empty() && self.results.declare(&parcel.routing_key) {
                writes.push(Write::Declare(parcel.routing_key.as_str().into()));
            }
            let event = self.sent_event(&parcel.envelope, &parcel.routing_key);
            writes.push(parcel.into());
            writes.extend(event);
        }
        if writes.is_empty() {
            // An empty group.
            return Ok(());
        }
        let mut pipe = Pipeline::with_capacity(writes.len());
        self.broker.append(&mut pipe, &writes);
        Ok(insist(self.broker.writer(), &pipe).await?)
    }
}

/// What is written down for the groups of a plan.
pub(crate) fn group_write(write: GroupWrite) -> Result<backend::Write, serde_json::Error> {
    Ok(match write {
        GroupWrite::Size { group, size } => backend::Write::ChordSize { group, size },
        GroupWrite::Results { handle } => backend::Write::Group {
            record: serde_json::to_vec(&serde_json::json!({"result": handle}))?.into(),
            group: handle.id,
        },
    })
}

/// Sends a pipeline, a few times if need be.
pub(super) async fn insist(link: &Link, pipe: &Pipeline) -> Result<(), crate::conn::Error> {
    let mut retries = RETRIES.iter();
    loop {
        let error = match link.pipeline(pipe).await {
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
                let _ = tokio::time::timeout(Duration::from_secs(1), link.ready()).await;
            }
            _ => return Err(error),
        }
    }
}
