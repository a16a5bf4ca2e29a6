//! What the settings say of every sender: a worker, beat and the command line send alike.

use std::sync::Arc;

use crate::canvas::{Priorities, Reach};
use crate::wire::{Routes, Security};

/// Celery's default.
pub(super) const CONTROL_EXCHANGE: &str = "celery";

/// How a client sends.
#[derive(Clone, Debug)]
pub struct Sending {
    /// What signs messages (`task_serializer = "auth"`).
    pub signer: Option<Arc<Security>>,
    /// Where tasks go: `task_routes`, `task_queues`, `task_default_queue`.
    pub routes: Routes,
    /// `task_default_priority` and `task_inherit_parent_priority`.
    pub priorities: Priorities,
    /// `task_allow_error_cb_on_chord_header`.
    pub reach: Reach,
    /// Where `task-sent` events go, if they are wanted (`task_send_sent_event`).
    pub sent_events: Option<String>,
    /// `control_exchange`, without `.pidbox`.
    pub control_exchange: String,
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            signer: None,
            routes: Routes::default(),
            priorities: Priorities::default(),
            reach: Reach::default(),
            sent_events: None,
            control_exchange: CONTROL_EXCHANGE.to_owned(),
        }
    }
}
