//! What a run needs that is not always at hand and is dear to fetch, as a model in a host's memory is.

use std::sync::Arc;
use std::time::Duration;

/// Knows what calls of some tasks need. Of those that wait for a place in a worker, one whose need is at hand goes
/// before one whose need would have to be fetched in its place; not often, and not for long.
pub trait Affinity: Send + Sync {
    /// What a call needs, by its arguments: the JSON texts of a list and of an object. `None` is nothing of the kind.
    fn need(&self, task: &str, args: &str, kwargs: &str) -> Option<Arc<str>>;

    /// Whether it is at hand, or can be had without putting away what others need.
    fn is_at_hand(&self, need: &str) -> bool;

    /// How many may go before one that came earlier; 0 keeps the order.
    fn overtaking(&self) -> u32;

    /// How long others may go before it.
    fn patience(&self) -> Duration;
}
