//! The runtime: fetches deliveries, runs them, and makes what follows happen.
//!
//! ```text
//! fetcher ─▶ strategy ─▶ request ─▶ consumer loop ─▶ pool ─▶ tracer ─▶ outcome ─┐
//!                                        ▲                                      │
//!        writer ◀─ effects ◀─ request.step(input) ◀─────────────────────────────┘
//! ```
//!
//! One loop ([`consumer`]) owns all state. Fetching, running, writing and keeping leases happen in services around it
//! and reach it as inputs; what it decides leaves it as effects. [`request`] alone decides what happens to a task.

mod autoscale;
mod consumer;
mod control;
mod done;
mod effects;
mod errback;
mod events;
mod facts;
mod fetcher;
mod flood;
mod follow;
mod gossip;
mod joiner;
mod keeper;
mod line;
mod listener;
mod metrics;
mod mingle;
mod options;
mod parked;
mod pool;
mod process;
mod rate_limit;
mod request;
#[cfg(test)]
mod request_walk;
mod reserved;
mod revoke;
mod room;
mod services;
mod spans;
mod start;
mod state_db;
mod stop;
mod strategy;
mod timers;
mod tracer;
mod unheard;
mod unique;
mod way;
mod writer;

pub use line::{Fairness, TenantIn};
pub use metrics::Watch;
pub use options::{Options, TaskDefaults};
pub use process::{Child, Program};

pub use crate::task::RateLimit;
pub use start::{Error, Worker};
pub use stop::{Exit, Stop};
#[doc(hidden)]
pub use way::Way;
