//! The types of steps, one file each: which fields a step has, what can be known to be wrong with them before a run,
//! and what it does.

mod analyze;
mod approve;
mod embed;
mod execute_script;
mod format_output;
mod git_clone;
mod http_request;
mod model;
mod read_files;
mod render;
mod split;
mod store_result;
mod task;
mod tools;

use serde_json::{Map, Value};

use super::site::{Site, Stop};
pub(super) use http_request::Web;

/// Fields that are wrong, and what is wrong with them.
type Wrong = Vec<(&'static str, String)>;

/// A type of steps.
#[derive(Debug)]
pub(crate) struct Type {
    /// Its name in files.
    pub name: &'static str,
    /// What it does, for people.
    pub about: &'static str,
    /// The fields it has beside those of all steps.
    pub fields: &'static [Field],
    /// What is wrong with fields whose values are known when the file is read; the second are the names of all that
    /// are there.
    pub check: fn(&Map<String, Value>, &[&str]) -> Wrong,
    /// Whether its result goes with the worker: it is worked out again when a step needs it.
    pub is_local: bool,
}

/// A field of a step.
#[derive(Debug)]
pub(crate) struct Field {
    /// Its name.
    pub name: &'static str,
    /// Whether it is rendered to a text; otherwise it keeps its type.
    pub is_text: bool,
    /// Whether it must be there.
    pub needed: bool,
    /// What it is for.
    pub about: &'static str,
}

const fn text(name: &'static str, about: &'static str) -> Field {
    Field {
        name,
        is_text: true,
        needed: false,
        about,
    }
}

const fn value(name: &'static str, about: &'static str) -> Field {
    Field {
        name,
        is_text: false,
        needed: false,
        about,
    }
}

const fn needed(field: Field) -> Field {
    Field { needed: true, ..field }
}

fn nothing_to_check(_: &Map<String, Value>, _: &[&str]) -> Wrong {
    Vec::new()
}

/// All of them.
pub(crate) const TYPES: &[Type] = &[
    model::GENERATE,
    model::CHAT,
    embed::TYPE,
    analyze::TYPE,
    render::TYPE,
    format_output::TYPE,
    task::TYPE,
    approve::TYPE,
    http_request::TYPE,
    read_files::TYPE,
    store_result::TYPE,
    git_clone::TYPE,
    execute_script::TYPE,
];

/// Runs a step with its rendered fields.
pub(super) async fn run(fields: Map<String, Value>, site: &Site<'_>) -> Result<Value, Stop> {
    let fields = Fields(fields);
    match site.step.kind.name {
        "ollama_generate" => model::generate(fields, site).await,
        "ollama_chat" => model::chat(fields, site).await,
        "ollama_embed" => embed::run(fields, site).await,
        "ollama_analyze" => analyze::run(fields, site).await,
        "render" => render::run(fields),
        "format_output" => format_output::run(fields, site),
        "task" => task::run(fields, site).await,
        "approve" => approve::run(fields, site).await,
        "http_request" => http_request::run(fields, site).await,
        "read_files" => read_files::run(fields, site).await,
        "store_result" => store_result::run(fields, site).await,
        "git_clone" => git_clone::run(fields, site).await,
        "execute_script" => execute_script::run(fields, site).await,
        other => Err(Stop::wrong(format!("there is no type of step {other:?}"))),
    }
}

/// The rendered fields of a step.
struct Fields(Map<String, Value>);

impl Fields {
    /// Takes a field.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text.
    fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        }
    }

    /// Takes a text that must be there.
    fn need(&mut self, name: &str) -> Result<String, Stop> {
        self.text(name)
            .filter(|text| !text.is_empty())
            .ok_or_else(|| Stop::wrong(format!("{name}: is empty")))
    }

    /// Takes a whole number; one that is written as a text is one too.
    fn whole(&mut self, name: &str) -> Result<Option<u64>, Stop> {
        let wrong = |value: &Value| Stop::wrong(format!("{name}: must be a whole number, not {value}"));
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
            Some(Value::String(text)) => text.trim().parse().map(Some).map_err(|_| wrong(&text.into())),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(&value)),
        }
    }

    /// Takes true or false.
    fn flag(&mut self, name: &str) -> Result<Option<bool>, Stop> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(Stop::wrong(format!("{name}: must be true or false, not {other}"))),
        }
    }

    /// Takes a text or a list of texts.
    fn texts(&mut self, name: &str) -> Result<Vec<String>, Stop> {
        let wrong = || Stop::wrong(format!("{name}: must be a text or a list of texts"));
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(items)) => {
                let texts = items.into_iter().map(|item| match item {
                    Value::String(text) => Ok(text),
                    _ => Err(wrong()),
                });
                texts.collect()
            }
            Some(_) => Err(wrong()),
        }
    }
}
