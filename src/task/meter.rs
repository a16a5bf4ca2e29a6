//! Numbers that tasks keep about themselves.

use prometheus_client::registry::Registry;
use serde_json::Value;

/// What a set of tasks counts besides what the worker counts of every task; the AI tasks count their calls of models.
pub trait Meter: Send + Sync {
    /// Adds its numbers to those that `/metrics` shows.
    fn register(&self, registry: &mut Registry);

    /// What `inspect stats` shows of it, under this name; `None` while there is nothing to tell.
    fn stats(&self) -> Option<(&'static str, Value)>;
}
