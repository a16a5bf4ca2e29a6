//! Tasks written for the `celery` crate (rusty-celery) run in our worker unchanged: `#[celery::task]` functions are
//! registered like tasks of our own. What that crate's worker does around a task is done here: its time limit, its
//! retries with their pauses, `on_success` and `on_failure`; everything else is our worker's.
//!
//! ```no_run
//! use celery::prelude::*;
//!
//! #[celery::task(max_retries = 3)]
//! fn add(x: i32, y: i32) -> TaskResult<i32> {
//!     Ok(x + y)
//! }
//!
//! fn main() -> Result<std::process::ExitCode, Box<dyn std::error::Error>> {
//!     // Tasks may send tasks through their app, so there is one, and a runtime for its connection.
//!     let runtime = celery::export::Runtime::new()?;
//!     let url = "redis://127.0.0.1:6379/0";
//!     let app = runtime.block_on(celery::app!(
//!         broker = RedisBroker { url }, tasks = [add], task_routes = [],
//!     ))?;
//!     Ok(orchestra::cli::worker_main(|registry| orchestra::rusty_celery::register::<add>(registry, &app)))
//! }
//! ```

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use celery::Celery;
use celery::error::TaskError;
use celery::task::{Request, Task};
use serde::Serialize;
use serde_json::Value;

use crate::clock;
use crate::task::{Arguments, BoxFuture, Context, DynTask, Exception, Failure, Options, RegisterError, Registry};

/// The module that exceptions of such tasks are said to come from.
const MODULE: &str = "rusty_celery";

/// Adds a task of the `celery` crate. What it returns must be serializable, which that crate itself does not ask for:
/// it stores no results.
///
/// # Errors
/// The name is taken or impossible.
pub fn register<T>(registry: &mut Registry, app: &Arc<Celery>) -> Result<(), RegisterError>
where
    T: Task + 'static,
    T::Returns: Serialize,
{
    registry.register_dyn(Arc::new(Adapted::<T> {
        app: app.clone(),
        task: PhantomData,
    }))
}

struct Adapted<T> {
    app: Arc<Celery>,
    task: PhantomData<fn() -> T>,
}

impl<T> DynTask for Adapted<T>
where
    T: Task + 'static,
    T::Returns: Serialize,
{
    fn name(&self) -> &str {
        T::NAME
    }

    fn options(&self) -> Options {
        let (own, of_app) = (T::DEFAULTS, &self.app.task_options);
        Options {
            acks_late: own.acks_late.or(of_app.acks_late).unwrap_or(false),
            max_retries: own.max_retries.or(of_app.max_retries),
            ..Options::DEFAULT
        }
    }

    fn run(&self, arguments: Arguments, context: Context) -> BoxFuture<'static, Result<Value, Failure>> {
        let app = self.app.clone();
        Box::pin(async move {
            let options = app.task_options;
            let task = T::from_request(request(app, params::<T>(arguments)?, &context), options);
            let run = task.run(task.request().params.clone());
            let result = match task.time_limit() {
                Some(seconds) => tokio::time::timeout(Duration::from_secs(seconds.into()), run)
                    .await
                    .unwrap_or(Err(TaskError::TimeoutError)),
                None => run.await,
            };
            match result {
                Ok(returned) => {
                    task.on_success(&returned).await;
                    Ok(serde_json::to_value(&returned)?)
                }
                Err(error) => {
                    task.on_failure(&error).await;
                    Err(failure(&task, &error))
                }
            }
        })
    }
}

/// Positional arguments by the names of the parameters, as the crate binds them; too many are an error here.
fn params<T: Task>(arguments: Arguments) -> Result<T::Params, Failure> {
    let Arguments { args, mut kwargs } = arguments;
    if args.len() > T::ARGS.len() {
        let (name, most, given) = (T::NAME, T::ARGS.len(), args.len());
        return Err(Failure::type_error(format!(
            "{name}() takes {most} positional arguments but {given} were given"
        )));
    }
    for (name, value) in T::ARGS.iter().zip(args) {
        kwargs.insert((*name).to_owned(), value);
    }
    serde_json::from_value(Value::Object(kwargs)).map_err(|error| Failure::type_error(format!("{}() {error}", T::NAME)))
}

fn request<T: Task>(app: Arc<Celery>, params: T::Params, context: &Context) -> Request<T> {
    let details = context.details();
    let message = details.message.as_deref();
    let headers = message.map(|message| &message.headers);
    let properties = message.map(|message| &message.properties);
    Request {
        app,
        id: context.id().to_owned(),
        group: details.group.clone(),
        // The crate's own worker leaves it out, too.
        chord: None,
        correlation_id: properties
            .and_then(|properties| properties.correlation_id.clone())
            .unwrap_or_else(|| context.id().to_owned()),
        params,
        origin: headers.and_then(|headers| headers.origin.clone()),
        retries: context.retries(),
        eta: headers.and_then(|headers| headers.eta.as_deref()?.parse().ok()),
        expires: headers.and_then(|headers| headers.expires.as_deref()?.parse().ok()),
        hostname: Some(details.hostname.to_string()),
        reply_to: properties.and_then(|properties| properties.reply_to.clone()),
        // Limits of the message are those of our worker.
        time_limit: None,
    }
}

/// What that crate's worker would do next: a task is tried again unless it says otherwise.
fn failure<T: Task>(task: &T, error: &TaskError) -> Failure {
    let name = match error {
        TaskError::ExpectedError(_) => "ExpectedError",
        TaskError::UnexpectedError(_) => "UnexpectedError",
        TaskError::TimeoutError => "TimeoutError",
        TaskError::Retry(_) => "Retry",
    };
    let exception = Exception::new(MODULE, name, error.to_string());
    let eta = match error {
        TaskError::UnexpectedError(_) if !task.retry_for_unexpected() => return Failure::Fail(exception),
        TaskError::Retry(Some(eta)) => Some(*eta),
        _ => task.retry_eta(),
    };
    let pause = eta.map_or(0, |eta| eta.timestamp_millis() - clock::now().as_millisecond());
    Failure::retry_after(Duration::from_millis(pause.try_into().unwrap_or(0)), exception)
}
