//! Templates: `templates/*.yaml`, a workflow of parameters, steps and an output.
//!
//! Everything that can be known before a run is checked when the file is read: YAML, names, types, the syntax of every
//! text, and that every variable exists. What is wrong is told with file, line and name.

mod file;
mod locate;
mod node;
mod parameter;
mod problem;
mod prompts;
mod scope;
mod step;
mod workflow;

pub(super) use file::read;
pub use parameter::Parameter;
pub use problem::Problem;
pub(super) use scope::Scope;
pub(super) use step::{Step, StepKind};
pub use workflow::Template;
