//! Periodic tasks (`celery.beat`): sends what is due. The schedule is in Redis and can be changed there; any number of
//! beats may run, one of them sends, and another takes over when it is gone. No due time is sent twice.
//!
//! ```text
//! files ─▶ store (Redis) ─▶ agenda ─▶ service ─▶ one script: lock ours? entry unchanged? publish, note last_run_at
//! ```

mod agenda;
mod control;
mod crontab;
mod entry;
mod interval;
mod lease;
mod schedule;
mod service;
mod solar;
mod store;

pub use crontab::{Crontab, fields};
pub use entry::{CallOptions, Definition, Entry};
pub use schedule::{Due, Schedule, time_zone};
pub use service::{Beat, Options};
pub use store::{Store, Stored};
