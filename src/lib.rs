//! A distributed, Celery-compatible worker for AI work.
#![forbid(unsafe_code)]
pub mod backend;
pub mod backoff;
pub mod broker;
pub mod client;
pub mod clock;
pub mod conn;
pub mod task;
pub mod wire;
pub mod worker;
