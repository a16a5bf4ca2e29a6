//! A distributed, Celery-compatible worker for AI work.
#![forbid(unsafe_code)]
#[cfg(feature = "ai")]
pub mod ai;
pub mod backend;
pub mod backoff;
pub mod broker;
#[cfg(feature = "server")]
pub mod cli;
pub mod client;
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
pub mod conn;
pub mod task;
#[cfg(feature = "ai")]
mod text;
pub mod wire;
pub mod worker;
