//! A distributed, Celery-compatible worker for AI work.
//!
//! A team with a Python Celery app keeps its code: `send_task`, `delay`, `AsyncResult`, Flower, `celery inspect`. What
//! executes is `orchestra-worker`: it speaks Celery's protocol over Redis, runs tasks written in Rust, and runs AI jobs
//! described as YAML templates against Ollama servers.
//!
//! - [`task`]: write tasks.
//! - [`canvas`]: compose them: chains, groups, chords.
//! - [`client`]: send them and wait.
//! - [`worker`]: run them in a process of your own, or use [`cli::worker_main`] for a whole worker program.
//! - [`ai`]: templates and models.
//! - [`beat`]: periodic tasks.
//!
//! Modules are layers, and imports point down; `docs/architecture.md` has the map.
#![forbid(unsafe_code)]

#[cfg(all(feature = "server", not(target_os = "linux")))]
compile_error!("the programs of orchestra are for Linux: they use its sockets, process limits and /proc");

#[cfg(feature = "ai")]
pub mod ai;
pub mod backend;
pub mod backoff;
pub mod beat;
pub mod broker;
pub mod canvas;
#[cfg(feature = "server")]
pub mod cli;
pub mod client;
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
pub mod conn;
#[cfg(feature = "rusty-celery")]
pub mod rusty_celery;
pub mod task;
#[cfg(feature = "ai")]
mod text;
pub mod trace;
pub mod wire;
pub mod worker;

/// The pages for readers: their Rust is compiled as a test.
#[cfg(all(doctest, feature = "server"))]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/rust-tasks.md")]
    struct RustTasks;
}
