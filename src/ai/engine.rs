//! Everything AI tasks share: the templates, the model servers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::embed::Embed;
use super::fault::template_not_found;
use super::fleet::Fleet;
use super::options::{Folder, Options};
use super::run;
use super::task_file::{Binding, Scheduled, files};
use super::tasks::{Chat, Generate, RunTemplate};
use super::template::{Problem, Template};
use crate::task::{Context, Failure, RegisterError, Registry};
use crate::text::closest;

/// Templates, task files and model servers.
#[derive(Debug)]
pub struct Engine {
    templates: BTreeMap<String, Arc<Template>>,
    bindings: Vec<Binding>,
    fleet: Fleet,
}

/// Why the AI layer cannot start: everything that is wrong, one line each.
#[derive(Debug)]
pub struct LoadError(Vec<Problem>);

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for LoadError {}

impl Engine {
    /// Reads the folders. Model servers are not asked: they may come up later.
    ///
    /// # Errors
    /// A folder somebody named is not there, a file is wrong, or a server's address is none.
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        let fleet = Fleet::new(options).map_err(|text| LoadError(vec![Problem::general(text)]))?;
        let mut problems = Vec::new();
        let templates = load_templates(&options.templates, &mut problems);
        let mut bindings = Vec::new();
        for path in list(&options.tasks, "task", &mut problems) {
            match Binding::load(&path, |name| templates.get(name).cloned()) {
                Ok(binding) => bindings.push(binding),
                Err(mut found) => problems.append(&mut found),
            }
        }
        if problems.is_empty() {
            Ok(Self {
                templates,
                bindings,
                fleet,
            })
        } else {
            Err(LoadError(problems))
        }
    }

    /// Adds the built-in tasks and one task for each task file.
    ///
    /// # Errors
    /// A name is taken.
    pub fn register(self, registry: &mut Registry) -> Result<(), RegisterError> {
        let bindings = self.bindings.clone();
        let engine = Arc::new(self);
        registry.register::<Generate>(engine.clone())?;
        registry.register::<Chat>(engine.clone())?;
        registry.register::<Embed>(engine.clone())?;
        registry.register::<RunTemplate>(engine.clone())?;
        for binding in bindings {
            if let Some(task) = binding.into_task(engine.clone()) {
                registry.register_dyn(Arc::new(task))?;
            }
        }
        Ok(())
    }

    /// All templates, by name.
    pub fn templates(&self) -> impl Iterator<Item = &Arc<Template>> {
        self.templates.values()
    }

    /// The task files that say when beat sends them.
    pub fn scheduled(&self) -> impl Iterator<Item = &Scheduled> {
        self.bindings.iter().filter_map(Binding::scheduled)
    }

    /// The model servers.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The template of that name.
    ///
    /// # Errors
    /// `TemplateNotFound`, with the name that was probably meant.
    pub fn template(&self, name: &str) -> Result<Arc<Template>, Failure> {
        self.templates.get(name).cloned().ok_or_else(|| {
            let names = || self.templates.keys().map(String::as_str);
            template_not_found(match closest(name, names()) {
                Some(close) => format!("there is no template {name:?}; did you mean {close:?}?"),
                None if self.templates.is_empty() => format!("there is no template {name:?}: this worker has none"),
                None => format!(
                    "there is no template {name:?}; there are {}",
                    names().collect::<Vec<_>>().join(", ")
                ),
            })
        })
    }

    /// Runs a template.
    ///
    /// # Errors
    /// `ValueError` for parameters, and what its steps fail with.
    pub async fn run(
        &self,
        template: &Template,
        params: Map<String, Value>,
        context: &Context,
    ) -> Result<Value, Failure> {
        run::run(self, template, params, context).await
    }
}

fn load_templates(folder: &Folder, problems: &mut Vec<Problem>) -> BTreeMap<String, Arc<Template>> {
    let mut templates: BTreeMap<String, Arc<Template>> = BTreeMap::new();
    for path in list(folder, "template", problems) {
        match Template::load(&path) {
            Ok(template) => {
                if let Some(other) = templates.get(template.name()) {
                    let text = format!(
                        "the template {:?} is in {} already",
                        template.name(),
                        other.path().display()
                    );
                    problems.push(Problem::file(&path, text));
                } else {
                    templates.insert(template.name().to_owned(), Arc::new(template));
                }
            }
            Err(mut found) => problems.append(&mut found),
        }
    }
    templates
}

fn list(folder: &Folder, what: &str, problems: &mut Vec<Problem>) -> Vec<std::path::PathBuf> {
    match files(folder.path()) {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && matches!(folder, Folder::Default(_)) => {
            Vec::new()
        }
        Err(error) => {
            problems.push(Problem::file(
                folder.path(),
                format!("cannot read the {what} folder: {error}"),
            ));
            Vec::new()
        }
    }
}
