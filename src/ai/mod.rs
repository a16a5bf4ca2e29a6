//! AI work: templates, prompts, schemas, models.
//!
//! AI tasks are ordinary tasks: they are built on [`task`](crate::task) and know neither the worker nor the broker.
//! What all workers share about model servers (`fleet`: places, budgets, limits, answers) has keys and scripts of its
//! own in Redis, over [`conn`](crate::conn).

// What there is to run: files in folders.
mod library;
mod options;
mod task_file;
pub mod template;

// A run, and its steps.
mod kept;
mod run;
mod site;
mod steps;
mod workspace;

// A question to a model, and where it goes.
mod affinity;
mod ask;
mod batcher;
mod call;
mod calls;
mod fleet;
pub mod ollama;
mod recorded;
mod schema;

// What templates may do with the host.
mod hosts;
mod limited;
mod permits;
mod program;
mod tree;

// The tasks that the worker gets.
mod embed;
mod engine;
mod fault;
mod tasks;

pub use embed::{Embed, Vectors};
pub use engine::{Engine, LoadError};
pub use fleet::{Budget, Fleet, Host, HostOptions, Period, Profile, Rate, Seen, Strategy, Used, canonical};
pub use hosts::HttpHost;
pub use limited::{LIMITED, become_limited};
pub use options::{Batches, CallLimits, DEFAULT_HOST, Folder, Options, TextLimits};
pub use permits::{Permits, ProgramLimits, Sizes};
pub use program::close_to_programs;
pub use recorded::Recorded;
pub use task_file::Scheduled;
pub use tasks::{Approve, Chat, Generate, Resume, ResumeFailed, RunTemplate};
