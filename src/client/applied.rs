//! What was applied: one result, or those of a group.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Client, Error, Pending};
use crate::canvas::ResultNode;

/// The results of a signature that was applied.
#[derive(Clone, Debug)]
pub struct Applied {
    client: Client,
    handle: ResultNode,
    children: Vec<ResultNode>,
}

impl Applied {
    pub(super) fn new(client: Client, handle: ResultNode, children: Vec<ResultNode>) -> Self {
        Self {
            client,
            handle,
            children,
        }
    }

    /// The handle, as Celery writes it down.
    pub fn handle(&self) -> &ResultNode {
        &self.handle
    }

    /// What was sent at once, for the `children` of a task's record.
    pub(crate) fn children(&self) -> &[ResultNode] {
        &self.children
    }

    /// The result of a call, of the last step of a chain, or of the body of a chord.
    pub fn result(&self) -> Pending {
        self.client.result(self.handle.id.as_str())
    }

    /// The results of a group, in order; otherwise the one there is.
    pub fn results(&self) -> Vec<Pending> {
        let mut ids = Vec::new();
        leaves(&self.handle, &mut ids);
        ids.into_iter().map(|id| self.client.result(id)).collect()
    }

    /// Waits for the result; see [`Pending::get`].
    ///
    /// # Errors
    /// See [`Pending::get`].
    pub async fn get<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, Error> {
        self.result().get(timeout).await
    }

    /// Waits for all results of a group (`GroupResult.join`), `timeout` for each.
    ///
    /// # Errors
    /// The first failure; see [`Pending::get`].
    pub async fn join<T: DeserializeOwned>(&self, timeout: Duration) -> Result<Vec<T>, Error> {
        let mut values = Vec::new();
        for result in self.results() {
            values.push(result.get(timeout).await?);
        }
        Ok(values)
    }
}

fn leaves(node: &ResultNode, ids: &mut Vec<String>) {
    match &node.children {
        Some(children) => children.iter().for_each(|child| leaves(child, ids)),
        None => ids.push(node.id.clone()),
    }
}
