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

// What comes in.
mod fetcher;
mod flood;
mod listener;
mod parked;
mod room;
mod strategy;

// The life of a task, and who goes next.
mod consumer;
mod done;
mod line;
mod rate_limit;
mod request;
#[cfg(test)]
mod request_walk;
mod reserved;
mod revoke;
mod timers;
mod unique;

// Running.
mod apart;
mod autoscale;
mod pool;
mod process;
mod tracer;

// What follows.
mod errback;
mod follow;
mod joiner;

// What goes out.
mod effects;
mod events;
mod keeper;
mod left_out;
mod outbox;
mod unheard;
mod unsent;
mod writer;

// Others: who asks, who watches, who works beside it.
mod control;
mod facts;
mod gossip;
mod metrics;
mod mingle;
mod spans;

// Putting it together.
mod options;
mod sending;
mod services;
mod start;
mod state_db;
mod stop;
mod watchdog;

// For `benches/`.
mod way;

pub use line::{Fairness, TenantIn};
pub use metrics::Watch;
pub(crate) use options::MOST_PLACES;
pub use options::{Options, TaskDefaults};
pub use process::{Child, Program};

pub use crate::task::RateLimit;
pub use start::{Error, Worker};
pub use stop::{Exit, Stop};
#[doc(hidden)]
pub use way::Way;
