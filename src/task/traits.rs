//! The two ways to write a task: with a type, or with a name known only at run time.

use std::future::Future;
use std::pin::Pin;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Arguments, Context, Failure, Options, Parameter};

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A task whose arguments are the fields of the type, in the order of the Python parameters.
pub trait Task: DeserializeOwned + Send + 'static {
    /// The Celery name, as clients send it.
    const NAME: &'static str;
    /// Policy; a message may override parts of it.
    const OPTIONS: Options = Options::DEFAULT;
    /// One line for people, shown by `orchestra tasks`.
    const DESCRIPTION: Option<&'static str> = None;
    /// What every run of the task shares (a database pool, a client); given at registration, cloned into each run.
    type Env: Clone + Send + Sync + 'static;
    /// The result, stored as JSON.
    type Output: Serialize + Send + 'static;

    /// Does the work. Dropping the future is how a run is cancelled: what it holds must clean up when dropped.
    ///
    /// # Errors
    /// A [`Failure`] says what the worker does next.
    fn run(self, env: Self::Env, context: Context) -> impl Future<Output = Result<Self::Output, Failure>> + Send;
}

/// A task made at run time, such as one described in a file.
pub trait DynTask: Send + Sync + 'static {
    /// The Celery name.
    fn name(&self) -> &str;

    /// Policy.
    fn options(&self) -> Options {
        Options::DEFAULT
    }

    /// One line for people.
    fn description(&self) -> Option<&str> {
        None
    }

    /// Which version of it runs now, for people.
    fn version(&self) -> Option<String> {
        None
    }

    /// Its parameters in order, for hiding what is secret among positional arguments.
    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// Does the work; see [`Task::run`].
    fn run(&self, arguments: Arguments, context: Context) -> BoxFuture<'static, Result<Value, Failure>>;
}
