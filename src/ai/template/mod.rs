//! Templates: `templates/*.yaml`, a workflow of parameters, steps and an output.
//!
//! Everything that can be known before a run is checked when the file is read: YAML, names, types, the graph of steps,
//! the syntax of every text, and that every variable exists. All that is wrong is told at once, with file, line, column
//! and what to do.

mod chains;
mod fields;
mod format;
mod graph;
mod labels;
mod node;
mod parameter;
mod policy;
mod problem;
mod prompts;
mod scope;
mod step;
mod workflow;
mod yaml;

pub(super) use fields::Fields;
pub use format::{task_schema, template_schema};
pub use labels::{LABELS, Label, Labels};
pub use parameter::Parameter;
pub(super) use policy::{OnError, Reason};
pub use problem::Problem;
pub(super) use problem::Problems;
pub(super) use scope::Scope;
pub(super) use step::Step;
pub use workflow::Template;
pub(super) use yaml::{Mark, Yaml, read};

/// A YAML file as a value.
///
/// # Errors
/// All that is wrong with it.
pub fn read_yaml(path: &std::path::Path) -> Result<serde_json::Value, Vec<Problem>> {
    let mut problems = Problems::of(path);
    match read(&mut problems) {
        Some(value) if problems.is_empty() => Ok(value.to_value()),
        _ => Err(problems.into_vec()),
    }
}
