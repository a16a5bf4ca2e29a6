//! Asking and telling workers (`celery.app.control`, `kombu.pidbox`).

use std::time::Duration;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Client, Error};
use crate::clock;
use crate::wire::{Accept, pidbox};

impl Client {
    /// Tells workers something and does not wait for answers; `None` tells all of them.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn cast(&self, method: &str, arguments: &Value, destination: Option<&[String]>) -> Result<(), Error> {
        let payload = pidbox::encode_request(&self.control_exchange, method, arguments, destination, None)?;
        self.note_revoked(method, arguments, destination).await?;
        self.broadcast(payload).await
    }

    /// Asks workers something: the answers by node name, those that came within `timeout`, or as soon as all of
    /// `destination` have answered.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn inspect(
        &self,
        method: &str,
        arguments: &Value,
        destination: Option<&[String]>,
        timeout: Duration,
    ) -> Result<Map<String, Value>, Error> {
        let (oid, ticket) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let exchange = pidbox::reply_exchange(&self.control_exchange);
        self.broker.bind_replies(&exchange, &oid).await?;
        let payload = pidbox::encode_request(
            &self.control_exchange,
            method,
            arguments,
            destination,
            Some((&oid, &ticket)),
        )?;
        self.note_revoked(method, arguments, destination).await?;
        let asked = self.broadcast(payload).await;
        let accept = Accept::json_and_signed(self.signer.clone());
        let (mut answers, end) = (Map::new(), clock::instant() + timeout);
        while asked.is_ok() && clock::instant() < end {
            for payload in self.broker.take_replies(&exchange, &oid).await? {
                if let Ok((theirs, answer)) = pidbox::decode_reply(&payload, &accept)
                    && theirs.is_none_or(|theirs| theirs == ticket)
                {
                    answers.extend(answer);
                }
            }
            if destination.is_some_and(|nodes| nodes.len() <= answers.len()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.broker.unbind_replies(&exchange, &oid).await?;
        asked.map(|()| answers)
    }

    /// What all workers are told not to run is noted first: one that is not there reads it when it comes. Where Redis
    /// does not let us, those that hear it do.
    async fn note_revoked(&self, method: &str, arguments: &Value, destination: Option<&[String]>) -> Result<(), Error> {
        if destination.is_some() || !matches!(method, "revoke" | "terminate") {
            return Ok(());
        }
        let ids: Vec<&str> = match arguments.get("task_id") {
            Some(Value::String(id)) => vec![id],
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        match self.broker.note_revoked(&ids).await {
            Err(error) if error.is_transient() => Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, "what is revoked cannot be noted");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn broadcast(&self, payload: Vec<u8>) -> Result<(), Error> {
        let payload = self.signed(payload)?;
        self.broker
            .tell(&format!("{}.pidbox", self.control_exchange), &payload)
            .await?;
        Ok(())
    }

    /// How many messages wait in a queue.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn queue_length(&self, queue: &str) -> Result<u64, Error> {
        Ok(self.broker.length(queue).await?)
    }

    /// The names of all workers that answer within `timeout`.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn workers(&self, timeout: Duration) -> Result<Vec<String>, Error> {
        let answers = self.inspect("ping", &json!({}), None, timeout).await?;
        Ok(answers.keys().cloned().collect())
    }
}
