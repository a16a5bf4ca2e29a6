//! The command lines: settings, wiring, signals. The only layer that knows all others.

mod batch;
mod beat;
mod children;
mod config;
mod control;
mod dead;
mod detach;
mod doctor;
mod inspect;
mod log;
mod metrics;
mod models;
mod nodename;
mod notify;
mod pidfile;
mod program;
mod schedule;
mod send;
mod signals;
mod templates;
mod up;
pub mod worker;

pub use program::program_main;
pub use worker::{worker_main, worker_main_from};
