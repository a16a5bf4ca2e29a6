//! AI work: templates, prompts, schemas, models. AI tasks are ordinary tasks, built on [`task`](crate::task) alone.

mod affinity;
mod ask;
mod batcher;
mod call;
mod calls;
mod embed;
mod engine;
mod fault;
mod fleet;
mod kept;
mod library;
pub mod ollama;
mod options;
mod permits;
mod program;
mod recorded;
mod run;
mod schema;
mod site;
mod steps;
mod task_file;
mod tasks;
pub mod template;
mod workspace;

pub use embed::{Embed, Vectors};
pub use engine::{Engine, LoadError};
pub use fleet::{Budget, Fleet, Host, HostOptions, Period, Profile, Rate, Seen, Strategy, Used, canonical};
pub use options::{Batches, CallLimits, DEFAULT_HOST, Folder, Options, TextLimits};
pub use permits::{Permits, ProgramLimits};
pub use program::{LIMITED, become_limited};
pub use recorded::Recorded;
pub use task_file::Scheduled;
pub use tasks::{Approve, Chat, Generate, Resume, ResumeFailed, RunTemplate};
