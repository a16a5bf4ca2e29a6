//! Where a step runs: what it can see, and what it may do with the world.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Engine;
use super::kept::Kept;
use super::template::{Scope, Step, Template};
use super::workspace::Workspace;
use crate::clock::{self, Instant};
use crate::task::{Context, Exception, Failure};
use crate::wire::Signature;
use crate::wire::python_modules::ORCHESTRA;
use crate::wire::redact::hide_passwords;

/// Why a step gives no result now.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It failed.
    Failed(Failure),
    /// It waits for what is written down under these names, and holds nothing meanwhile.
    Waits(Vec<String>),
    /// It goes on at that time, and holds nothing until then.
    Later(Instant),
}

impl Stop {
    /// Fails as Python's `ValueError`.
    pub(super) fn wrong(text: impl Into<String>) -> Self {
        Self::Failed(Failure::value_error(without_passwords(text.into())))
    }

    /// Fails as one of our exceptions.
    pub(super) fn failed(name: &str, text: impl Into<String>) -> Self {
        Self::Failed(Failure::Fail(Exception::new(
            ORCHESTRA,
            name,
            without_passwords(text.into()),
        )))
    }

    /// Fails as Python's `TimeoutError`.
    pub(super) fn timed_out(text: impl Into<String>) -> Self {
        let text = without_passwords(text.into());
        Self::Failed(Failure::Fail(Exception::builtin("TimeoutError", text)))
    }
}

/// What a step says names addresses, with what their authors wrote into them; results are read by more people than
/// templates.
pub(super) fn without_passwords(text: String) -> String {
    hide_passwords(&text).unwrap_or(text)
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Later(after) => Self::Later(clock::instant() + after),
            failure => Self::Failed(failure),
        }
    }
}

/// Where a step runs.
pub(super) struct Site<'a> {
    /// Models, settings.
    pub engine: &'a Engine,
    /// Its template.
    pub template: &'a Template,
    /// The step.
    pub step: &'a Step,
    /// Its item of a `foreach`.
    pub index: Option<usize>,
    /// Which try it is, from one.
    pub attempt: u64,
    /// What its texts see.
    pub scope: Scope,
    /// The result of the step before it.
    pub input: Arc<Value>,
    /// The task.
    pub context: &'a Context,
    /// What was done before.
    pub kept: &'a Kept,
    /// A folder of the run's own.
    pub workspace: &'a Workspace,
}

impl Site<'_> {
    /// The step's name in what is kept: `id`, or `id[3]`.
    pub(super) fn key(&self) -> String {
        match self.index {
            Some(index) => format!("{}[{index}]", self.step.id),
            None => self.step.id.clone(),
        }
    }

    /// A part of the step that is done once: what it gave is kept, and not worked out again by a later delivery.
    pub(super) async fn once(
        &self,
        part: &str,
        work: impl Future<Output = Result<Value, Stop>>,
    ) -> Result<Value, Stop> {
        let key = format!("{}#{part}", self.key());
        if let Some(value) = self.kept.result(&key, self.step.digest) {
            return Ok(value);
        }
        let value = work.await?;
        self.kept.keep(&key, self.step.digest, &value).await;
        Ok(value)
    }

    /// The name under which the step, or a part of it, waits: another one for each try.
    pub(super) fn awaited(&self, part: &str) -> String {
        let part = if part.is_empty() {
            String::new()
        } else {
            format!("#{part}")
        };
        let attempt = if self.attempt > 1 {
            format!("~{}", self.attempt)
        } else {
            String::new()
        };
        format!("d:{}{part}{attempt}", self.key())
    }

    /// The result of a Celery task. The first time it is sent, and the step waits; the run goes on when the task has
    /// ended.
    pub(super) async fn call(&self, part: &str, mut call: Signature, limit: Option<Duration>) -> Result<Value, Stop> {
        let name = self.awaited(part);
        let resume = |task: &str| self.back(Signature::new(task)).arg(self.context.id()).arg(&name);
        // The same id each time: who sends it again after a crash asks for the same task.
        call = call.option("task_id", format!("{}-{}", self.context.id(), tail(&name)));
        call.options.add_link(resume(super::tasks::RESUME));
        call.options.add_link_error(resume(super::tasks::RESUME_FAILED));
        self.wait(&name, limit, async { self.context.apply(call).await.map(drop) })
            .await
    }

    /// Waits for what somebody else writes down under a name; `begin` asks for it, once. After `limit` the wait fails.
    pub(super) async fn wait(
        &self,
        name: &str,
        limit: Option<Duration>,
        begin: impl Future<Output = Result<(), Failure>>,
    ) -> Result<Value, Stop> {
        let limit = limit.or(self.step.timeout);
        if let Some(decision) = self.kept.decision(name) {
            return decided(decision);
        }
        if self.context.client().is_none() {
            let text = format!(
                "step {:?} waits for others, and there is no worker around this run",
                self.step.id
            );
            return Err(Stop::wrong(text));
        }
        if !self.kept.has_begun(name) {
            // What is asked may answer before this run is put down.
            self.kept.open().await?;
            begin.await?;
            if let Some(limit) = limit {
                self.expire(name, limit).await?;
            }
            self.kept.begin(name).await;
        }
        Err(Stop::Waits(vec![name.to_owned()]))
    }

    /// A call that comes back to the queue of this run, whose workers know what it is.
    fn back(&self, call: Signature) -> Signature {
        let message = self.context.details().message.as_ref();
        match message.and_then(|message| message.properties.routing_key()) {
            Some(queue) => call.option("queue", queue),
            None => call,
        }
    }

    /// Lets the wait end with a `TimeoutError`.
    async fn expire(&self, name: &str, limit: Duration) -> Result<(), Failure> {
        let text = format!("step {:?} waited longer than {} s", self.step.id, limit.as_secs_f64());
        let error = Exception::builtin("TimeoutError", text);
        let late = self
            .back(Signature::new(super::tasks::RESUME))
            .arg(Value::Null)
            .arg(self.context.id())
            .arg(name)
            .kwarg("error", error)
            .option("countdown", limit.as_secs_f64())
            .option("task_id", format!("{}-{}-late", self.context.id(), tail(name)));
        self.context.apply(late).await.map(drop)
    }
}

/// A name as a part of a task id.
fn tail(name: &str) -> String {
    name.chars()
        .map(|char| if char.is_alphanumeric() { char } else { '-' })
        .collect()
}

/// What was written down: `{"ok": value}` or `{"error": exception}`.
fn decided(decision: Value) -> Result<Value, Stop> {
    match decision {
        Value::Object(mut decision) => match decision.remove("error") {
            Some(error) => {
                let exception = serde_json::from_value(error.clone());
                Err(Stop::Failed(Failure::Fail(exception.unwrap_or_else(|_| {
                    Exception::builtin("Exception", error.to_string())
                }))))
            }
            None => Ok(decision.remove("ok").unwrap_or_default()),
        },
        other => Ok(json!(other)),
    }
}

/// Work that blocks, on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Stop::Failed(Failure::Fail(Exception::runtime_error(error.to_string()))))
}
