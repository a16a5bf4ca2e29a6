//! Tasks written as functions: short for many small ones.

use std::future::Future;
use std::sync::Arc;

use orchestra::task::{Arguments, BoxFuture, Context, DynTask, Failure, Options, RegisterError, Registry, Task};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Adds functions to a registry.
pub struct Functions<'a> {
    registry: &'a mut Registry,
}

struct Function<F> {
    name: String,
    options: Options,
    run: F,
}

impl<'a> Functions<'a> {
    /// Into that registry.
    pub fn new(registry: &'a mut Registry) -> Self {
        Self { registry }
    }

    /// A task with a type, for those that are measured.
    ///
    /// # Errors
    /// The name is taken or impossible.
    pub fn typed<T: Task<Env = ()>>(&mut self) -> Result<(), RegisterError> {
        self.registry.register::<T>(())
    }

    /// A task whose parameters are the fields of `T`.
    ///
    /// # Errors
    /// The name is taken or impossible.
    pub fn add<T, O, R, F>(&mut self, name: &str, options: Options, run: F) -> Result<(), RegisterError>
    where
        T: DeserializeOwned + Send,
        O: Serialize,
        R: Future<Output = Result<O, Failure>> + Send + 'static,
        F: Fn(T, Context) -> R + Send + Sync + 'static,
    {
        // As Python names a function in its errors: without its module.
        let short = name.rsplit('.').next().unwrap_or(name).to_owned();
        self.insert(name, options, move |arguments, context| {
            let bound: Result<T, Failure> = arguments.bind(&short);
            let run = bound.map(|parameters| run(parameters, context));
            async move { Ok(serde_json::to_value(run?.await?)?) }
        })
    }

    /// A task that takes whatever it is called with.
    ///
    /// # Errors
    /// The name is taken or impossible.
    pub fn any<O, R, F>(&mut self, name: &str, options: Options, run: F) -> Result<(), RegisterError>
    where
        O: Serialize,
        R: Future<Output = Result<O, Failure>> + Send + 'static,
        F: Fn(Arguments, Context) -> R + Send + Sync + 'static,
    {
        self.insert(name, options, move |arguments, context| {
            let run = run(arguments, context);
            async move { Ok(serde_json::to_value(run.await?)?) }
        })
    }

    fn insert<R, F>(&mut self, name: &str, options: Options, run: F) -> Result<(), RegisterError>
    where
        R: Future<Output = Result<Value, Failure>> + Send + 'static,
        F: Fn(Arguments, Context) -> R + Send + Sync + 'static,
    {
        let name = name.to_owned();
        self.registry.register_dyn(Arc::new(Function { name, options, run }))
    }
}

impl<R, F> DynTask for Function<F>
where
    R: Future<Output = Result<Value, Failure>> + Send + 'static,
    F: Fn(Arguments, Context) -> R + Send + Sync + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn options(&self) -> Options {
        self.options.clone()
    }

    fn run(&self, arguments: Arguments, context: Context) -> BoxFuture<'static, Result<Value, Failure>> {
        Box::pin((self.run)(arguments, context))
    }
}
