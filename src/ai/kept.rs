//! What a run has done already. Results of finished steps are kept with the task, so that a later delivery, after a
//! crash, a retry or a wait, does not run them again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tracing::warn;

use crate::task::{Context, Exception, Failure};

/// How long results are kept after the last step that ended.
const TIME: Duration = Duration::from_secs(86_400);
/// How long a task may be put down.
const PARKED: Duration = Duration::from_secs(30 * 86_400);
/// Where the version is kept that a label stood for.
const VERSION: &str = "version";
/// Pause before a run is tried again that could not look at what is kept.
const PAUSE: Duration = Duration::from_secs(1);

/// The kept results of a run. Names: `s:` is a result, `b:` something that was begun, `d:` what it came to.
pub(super) struct Kept {
    context: Context,
    values: Mutex<HashMap<String, Value>>,
}

impl Kept {
    /// Looks at what earlier deliveries kept.
    ///
    /// # Errors
    /// Redis cannot be reached: the run is tried again.
    pub(super) async fn load(context: &Context) -> Result<Self, Failure> {
        let kept = Self {
            context: context.clone(),
            values: Mutex::default(),
        };
        kept.reload().await?;
        Ok(kept)
    }

    async fn reload(&self) -> Result<(), Failure> {
        let values = self.context.kept().await.map_err(later)?;
        *self.lock() = values;
        Ok(())
    }

    /// The result of a step or of a part of one, if it was kept by the same step.
    pub(super) fn result(&self, key: &str, digest: u64) -> Option<Value> {
        let values = self.lock();
        let kept = values.get(&format!("s:{key}"))?;
        (kept.get("of")?.as_u64()? == digest).then(|| kept.get("is").cloned().unwrap_or_default())
    }

    /// Keeps a result.
    pub(super) async fn keep(&self, key: &str, digest: u64, value: &Value) {
        self.put(format!("s:{key}"), json!({"of": digest, "is": value})).await;
    }

    /// What was written down under a name.
    pub(super) fn decision(&self, name: &str) -> Option<Value> {
        self.lock().get(name).cloned()
    }

    /// Whether it was asked for.
    pub(super) fn has_begun(&self, name: &str) -> bool {
        self.lock().contains_key(&begun(name))
    }

    /// From now on things can be written down for this run.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub(super) async fn open(&self) -> Result<(), Failure> {
        let kept = self.context.keep("w", &true, TIME).await;
        kept.map(drop).map_err(later)
    }

    /// It was asked for.
    pub(super) async fn begin(&self, name: &str) {
        self.put(begun(name), Value::Bool(true)).await;
    }

    /// Something else that people may want to see beside it.
    pub(super) async fn note(&self, name: &str, value: Value) {
        self.put(name.to_owned(), value).await;
    }

    /// Puts the run down until one of `names` is written down. `false` when one is already; then it is known.
    ///
    /// # Errors
    /// Redis cannot be reached, or there is no worker around this run.
    pub(super) async fn park(&self, names: &[String]) -> Result<bool, Failure> {
        let parked = self.context.park(names, PARKED).await.map_err(later)?;
        if !parked {
            self.reload().await?;
            if !names.iter().any(|name| self.decision(name).is_some()) {
                let text = "what the task waits for is written down and cannot be read";
                return Err(Failure::retry_after(PAUSE, Exception::runtime_error(text)));
            }
        }
        Ok(parked)
    }

    async fn put(&self, name: String, value: Value) {
        // A result that cannot be kept is worked out again after a crash; that is no reason to lose it now.
        match self.context.keep(&name, &value, TIME).await {
            Ok(true) => {}
            Ok(false) if self.context.client().is_none_or(|client| client.backend().is_none()) => {}
            Ok(false) => warn!(
                task.id = self.context.id(),
                "{name} is not kept: the task has kept as much as it may (max_kept_bytes); a later delivery does it again"
            ),
            Err(failure) => warn!(task.id = self.context.id(), "{name} cannot be kept: {failure:?}"),
        }
        self.lock().insert(name, value);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Value>> {
        // A panic in between leaves a map that is whole.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The version of a template that a task began with, whatever became of its label since; the first time `choose` says
/// which.
///
/// # Errors
/// Redis cannot be reached: the run is tried again.
pub(super) async fn version(context: &Context, choose: impl FnOnce() -> u64) -> Result<u64, Failure> {
    let kept = context.kept().await.map_err(later)?;
    if let Some(version) = kept.get(VERSION).and_then(Value::as_u64) {
        return Ok(version);
    }
    let version = choose();
    context.keep(VERSION, &version, TIME).await.map_err(later)?;
    Ok(version)
}

/// Redis is away: the run is tried again.
fn later(failure: Failure) -> Failure {
    match failure {
        Failure::Fail(cause) => Failure::retry_after(PAUSE, cause),
        other => other,
    }
}

fn begun(name: &str) -> String {
    format!("b:{}", name.trim_start_matches("d:"))
}
