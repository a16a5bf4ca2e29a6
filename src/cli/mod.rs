//! The command lines: settings, wiring, signals. The only layer that knows all others.

// First: what it defines stands for the others' `println!`.
#[macro_use]
mod out;

mod approve;
mod batch;
mod beat;
mod children;
mod commands;
mod config;
mod control;
mod dead;
mod detach;
mod doctor;
mod events;
mod explain;
mod inspect;
mod list;
mod log;
mod log_file;
mod metrics;
mod models;
mod nodename;
mod notify;
mod otel;
mod pidfile;
mod program;
mod purge;
mod refusal;
mod schedule;
mod send;
mod signals;
mod table;
mod template_label;
mod template_new;
mod template_run;
mod template_test;
mod templates;
mod top;
mod up;
mod visits;
pub mod worker;

pub use program::program_main;
pub use worker::{worker_main, worker_main_from};
