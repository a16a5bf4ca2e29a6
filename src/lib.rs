//! A distributed, Celery-compatible worker for AI work.
#![forbid(unsafe_code)]
pub mod backoff;
pub mod client;
pub mod clock;
pub mod conn;
pub mod task;
pub mod wire;
