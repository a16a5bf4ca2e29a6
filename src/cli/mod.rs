//! The command lines: settings, wiring, signals. The only layer that knows all others.

mod log;
mod nodename;
mod signals;
pub mod worker;

pub use worker::worker_main;
