//! AI work: templates, prompts, schemas, models. AI tasks are ordinary tasks, built on [`task`](crate::task) alone.

mod ask;
mod call;
mod embed;
mod engine;
mod fault;
mod fleet;
pub mod ollama;
mod options;
mod run;
mod schema;
mod task_file;
mod tasks;
pub mod template;

pub use embed::{Embed, Vectors};
pub use engine::{Engine, LoadError};
pub use fleet::{Budget, Fleet, Host, HostOptions, Period, Profile, Seen, Used, canonical};
pub use options::{CallLimits, DEFAULT_HOST, Folder, Options};
pub use task_file::Scheduled;
pub use tasks::{Chat, Generate, RunTemplate};
