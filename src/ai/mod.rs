//! AI work: templates, prompts, schemas, models. AI tasks are ordinary tasks, built on [`task`](crate::task) alone.

mod options;

pub use options::{CallLimits, DEFAULT_HOST, Folder, Options};
