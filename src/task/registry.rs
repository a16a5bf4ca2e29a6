//! The tasks a worker can run, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::bind::bind;
use super::current::scope;
use super::{Affinity, BoxFuture, Context, DynTask, Failure, Hides, Meter, Options, Task};
use crate::wire::floats::to_raw;
use crate::wire::{Arguments, Body, Exception, python_modules};

/// A run that has its arguments: its result is JSON text.
pub type Run = BoxFuture<'static, Result<Box<RawValue>, Failure>>;

type Start = dyn Fn(&Body, Context) -> Result<Run, Failure> + Send + Sync;

/// A registered task.
#[derive(Clone)]
pub struct Entry {
    /// Celery name.
    pub name: Arc<str>,
    /// Policy.
    pub options: Options,
    /// One line for people.
    pub description: Option<Arc<str>>,
    /// What of it is not shown.
    pub hides: Arc<Hides>,
    /// Who knows what its calls need.
    pub affinity: Option<Arc<dyn Affinity>>,
    /// A task made at run time.
    made: Option<Arc<dyn DynTask>>,
    start: Arc<Start>,
}

/// A name was registered twice, or cannot be a task name.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Two tasks of one name.
    #[error("a task named {0:?} is registered already")]
    Twice(String),
    /// Empty, too long, or with control characters.
    #[error("{0:?} cannot be a task name: 1 to 255 characters without control characters")]
    Name(String),
}

/// The tasks of a worker.
#[derive(Clone, Default)]
pub struct Registry {
    entries: BTreeMap<Arc<str>, Entry>,
    meters: Vec<Arc<dyn Meter>>,
}

impl Entry {
    /// Which version of it runs now, for people.
    pub fn version(&self) -> Option<String> {
        self.made.as_ref()?.version()
    }

    /// Binds the arguments and makes the future of the run.
    ///
    /// # Errors
    /// The arguments do not fit the task.
    pub fn start(&self, body: &Body, context: Context) -> Result<Run, Failure> {
        (self.start)(body, context)
    }
}

impl Registry {
    /// No tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task type with what its runs share.
    ///
    /// # Errors
    /// The name is taken or impossible.
    pub fn register<T: Task>(&mut self, env: T::Env) -> Result<(), RegisterError> {
        self.insert(Entry {
            name: T::NAME.into(),
            options: T::OPTIONS,
            description: T::DESCRIPTION.map(Into::into),
            hides: Arc::new(Hides::new(&T::OPTIONS, &Hides::parameters::<T>())),
            affinity: None,
            made: None,
            start: Arc::new(move |body, context| {
                let task: T = bind(T::NAME, body.args(), body.kwargs(), T::OPTIONS.redact)?;
                let env = env.clone();
                Ok(Box::pin(scope(context.clone(), async move {
                    let output = task.run(env, context).await?;
                    to_raw(&output).map_err(encode_error)
                })))
            }),
        })
    }

    /// Adds a task made at run time.
    ///
    /// # Errors
    /// The name is taken or impossible.
    pub fn register_dyn(&mut self, task: Arc<dyn DynTask>) -> Result<(), RegisterError> {
        self.insert(Entry {
            name: task.name().into(),
            options: task.options(),
            description: task.description().map(Into::into),
            hides: Arc::new(Hides::new(&task.options(), &task.parameters())),
            affinity: None,
            made: Some(task.clone()),
            start: Arc::new(move |body, context| {
                let unreadable = |_| Failure::value_error(format!("{}(): {}", task.name(), body.unreadable()));
                let arguments: Arguments = body.arguments().map_err(unreadable)?;
                let run = task.run(arguments, context.clone());
                Ok(Box::pin(scope(context, async move {
                    to_raw(&run.await?).map_err(encode_error)
                })))
            }),
        })
    }

    /// The task of that name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Says who knows what the calls of a task need. Whether there is such a task.
    pub fn set_affinity(&mut self, name: &str, affinity: Arc<dyn Affinity>) -> bool {
        match self.entries.get_mut(name) {
            Some(entry) => {
                entry.affinity = Some(affinity);
                true
            }
            None => false,
        }
    }

    /// Adds numbers that tasks keep about themselves.
    pub fn add_meter(&mut self, meter: Arc<dyn Meter>) {
        self.meters.push(meter);
    }

    /// The numbers that tasks keep about themselves.
    pub fn meters(&self) -> &[Arc<dyn Meter>] {
        &self.meters
    }

    /// All tasks, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Changes the policy of a task; used by remote control. Whether there is such a task.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut Options)) -> bool {
        match self.entries.get_mut(name) {
            Some(entry) => {
                change(&mut entry.options);
                true
            }
            None => false,
        }
    }

    fn insert(&mut self, entry: Entry) -> Result<(), RegisterError> {
        let name = &entry.name;
        if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
            return Err(RegisterError::Name(name.to_string()));
        }
        if self.entries.contains_key(name) {
            return Err(RegisterError::Twice(name.to_string()));
        }
        self.entries.insert(name.clone(), entry);
        Ok(())
    }
}

/// P-074: a result that is no JSON fails the task, it does not vanish.
fn encode_error(error: serde_json::Error) -> Failure {
    Failure::Fail(Exception::new(
        "kombu.exceptions",
        "EncodeError",
        format!("the result cannot be stored as JSON: {error}"),
    ))
}

/// The exception of a task nobody registered (`celery.exceptions.NotRegistered`).
pub(crate) fn not_registered(name: &str) -> Exception {
    Exception::new(python_modules::CELERY, "NotRegistered", name)
}
