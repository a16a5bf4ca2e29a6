//! Everything AI tasks share: the templates, the model servers, what the operator allows.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::affinity::ModelAffinity;
use super::batcher::Batcher;
use super::calls::Calls;
use super::embed::Embed;
use super::fault::template_not_found;
use super::fleet::Fleet;
use super::kept;
use super::library::{Library, Shelf};
use super::options::Options;
use super::permits::Permits;
use super::recorded::Recorded;
use super::run;
use super::steps::Web;
use super::task_file::{FileTask, Scheduled};
use super::tasks::{Approve, Chat, Generate, Resume, ResumeFailed, RunTemplate};
use super::template::{Labels, Problem, Template};
use super::workspace;
use crate::task::{Affinity, Context, Failure, RegisterError, Registry, Task as _};
use crate::text::closest;

/// Templates, task files and model servers.
#[derive(Debug)]
pub struct Engine {
    library: Library,
    fleet: Fleet,
    calls: Calls,
    batcher: Batcher,
    permits: Arc<Permits>,
    web: Web,
    recorded: Option<Recorded>,
}

/// Why the AI layer cannot start: everything that is wrong, one line each.
#[derive(Debug)]
pub struct LoadError(Vec<Problem>);

impl LoadError {
    /// Each thing that is wrong.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

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
        let general = |text| LoadError(vec![Problem::general(text)]);
        let permits = Arc::new(options.permits.clone());
        workspace::clean();
        Ok(Self {
            fleet: Fleet::new(options).map_err(general)?,
            web: Web::new(permits.clone()).map_err(general)?,
            library: Library::open(&options.templates, &options.tasks, options.texts).map_err(LoadError)?,
            permits,
            recorded: None,
            calls: Calls::default(),
            batcher: Batcher::new(options.batches),
        })
    }

    /// Plays or notes answers; for trying and testing templates.
    #[must_use]
    pub fn with_recorded(mut self, recorded: Recorded) -> Self {
        self.recorded = Some(recorded);
        self
    }

    /// Answers that are played or noted.
    pub fn recorded(&self) -> Option<&Recorded> {
        self.recorded.as_ref()
    }

    /// Adds the built-in tasks and one task for each task file.
    ///
    /// # Errors
    /// A name is taken.
    pub fn register(self, registry: &mut Registry) -> Result<(), RegisterError> {
        registry.add_meter(Arc::new(self.calls.clone()));
        let engine = Arc::new(self);
        registry.register::<Generate>(engine.clone())?;
        registry.register::<Chat>(engine.clone())?;
        registry.register::<Embed>(engine.clone())?;
        registry.register::<RunTemplate>(engine.clone())?;
        registry.register::<Approve>(())?;
        registry.register::<Resume>(())?;
        registry.register::<ResumeFailed>(())?;
        for binding in engine.shelf().bindings() {
            registry.register_dyn(Arc::new(FileTask::new(engine.clone(), binding)))?;
        }
        let options = engine.fleet.options();
        if options.overtaking > 0 {
            let affinity = ModelAffinity::new(engine.clone(), options.overtaking, options.switch_after);
            let affinity: Arc<dyn Affinity> = Arc::new(affinity);
            let built_in = [Generate::NAME, Chat::NAME, Embed::NAME, RunTemplate::NAME];
            let shelf = engine.shelf();
            for name in shelf.bindings().map(|binding| binding.name()).chain(built_in) {
                registry.set_affinity(name, affinity.clone());
            }
        }
        Ok(())
    }

    /// Templates and task files as they are now.
    pub(super) fn shelf(&self) -> Arc<Shelf> {
        self.library.shelf()
    }

    /// All templates, by name and version.
    pub fn templates(&self) -> impl Iterator<Item = Arc<Template>> {
        self.shelf().templates().cloned().collect::<Vec<_>>().into_iter()
    }

    /// The task files that say when beat sends them.
    pub fn scheduled(&self) -> impl Iterator<Item = Scheduled> {
        let shelf = self.shelf();
        let scheduled = shelf.bindings().filter_map(|binding| binding.scheduled().cloned());
        scheduled.collect::<Vec<_>>().into_iter()
    }

    /// The model servers.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// What calls cost.
    pub(super) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Texts that go to models together.
    pub(super) fn batcher(&self) -> &Batcher {
        &self.batcher
    }

    /// What the operator allows.
    pub(super) fn permits(&self) -> &Permits {
        &self.permits
    }

    /// Servers that are asked by steps.
    pub(super) fn web(&self) -> &Web {
        &self.web
    }

    /// The template of that name: `name@2`, or `name` for its newest version.
    ///
    /// # Errors
    /// `TemplateNotFound`, with the name that was probably meant.
    pub fn template(&self, name: &str) -> Result<Arc<Template>, Failure> {
        let shelf = self.shelf();
        shelf.template(name).cloned().ok_or_else(|| {
            let mut names: Vec<&str> = shelf.templates().map(|template| template.name()).collect();
            names.dedup();
            let bare = name.split('@').next().unwrap_or(name);
            template_not_found(match closest(bare, names.iter().copied()) {
                Some(same) if same == bare => {
                    let of = shelf.templates().filter(|template| template.name() == bare);
                    let versions: Vec<String> = of.map(|template| template.version().to_string()).collect();
                    let labels: Vec<&str> = shelf.labels().of_template(bare).map(|(label, _)| label).collect();
                    let labels = match &labels[..] {
                        [] => String::new(),
                        labels => format!(" and the labels {}", labels.join(", ")),
                    };
                    format!(
                        "there is no template {name:?}; {bare:?} has the versions {}{labels}",
                        versions.join(", ")
                    )
                }
                Some(close) => format!("there is no template {name:?}; did you mean {close:?}?"),
                None if names.is_empty() => format!(
                    "there is no template {name:?}, nor any other; is their folder named with --templates or ai_templates?"
                ),
                None => format!("there is no template {name:?}; there are {}", names.join(", ")),
            })
        })
    }

    /// The template of that name for a task: where it is a label with a share, that of its part.
    ///
    /// # Errors
    /// As for [`template`](Self::template); or what the task began with cannot be looked at.
    pub(super) async fn template_for(&self, name: &str, context: &Context) -> Result<Arc<Template>, Failure> {
        let shelf = self.shelf();
        let Some((template, label)) = shelf.label(name) else {
            return self.template(name);
        };
        let version = kept::version(context, || label.choose(name, context.id())).await?;
        self.template(&format!("{template}@{version}"))
    }

    /// The labels of templates.
    pub fn labels(&self) -> Labels {
        self.shelf().labels().clone()
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
