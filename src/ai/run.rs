//! Runs a template: each step as soon as those it needs have ended, what does not depend on each other at once. Results
//! are kept with the task; a run that only waits for others is put down.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde_json::{Map, Value, json};

use super::Engine;
use super::call::announce_attempt;
use super::fault::{invalid_output, reason, template_error, words};
use super::kept::Kept;
use super::site::{Site, Stop};
use super::steps;
use super::template::{OnError, Scope, Step, Template};
use super::workspace::Workspace;
use crate::clock;
use crate::task::{Context, Exception, Failure};

/// Most items of a `foreach`.
const ITEMS: usize = 10_000;
/// How often the progress of a `foreach` is told, at most.
const TELL: Duration = Duration::from_millis(500);

/// Runs the steps and makes the output.
pub(super) async fn run(
    engine: &Engine,
    template: &Template,
    params: Map<String, Value>,
    context: &Context,
) -> Result<Value, Failure> {
    let params = template.check(params).map_err(Failure::value_error)?;
    announce_attempt(context);
    let run = Run {
        engine,
        template,
        context,
        kept: &Kept::load(context).await?,
        workspace: &Workspace::default(),
    };
    let (scope, last) = run.steps(Scope::new(&params)).await?;
    let output = match template.output(&scope).map_err(template_error)? {
        Some(output) => output,
        None => last,
    };
    let misfits = template.misfits(&output);
    if misfits.is_empty() {
        Ok(output)
    } else {
        let text = format!(
            "the output of template {:?} does not fit its schema: {}",
            template.name(),
            misfits.join("; ")
        );
        Err(invalid_output(text))
    }
}

/// What all steps of a run share.
#[derive(Clone, Copy)]
struct Run<'a> {
    engine: &'a Engine,
    template: &'a Template,
    context: &'a Context,
    kept: &'a Kept,
    workspace: &'a Workspace,
}

/// Where a step is.
enum Place {
    /// Not begun.
    Waiting,
    /// Begun.
    Running,
    /// Waits for what is written down under these names.
    Parked(Vec<String>),
    /// Goes on at that time.
    Later(clock::Instant),
    /// Ended with this.
    Done(Arc<Value>),
}

impl<'a> Run<'a> {
    /// Runs all steps; what they gave, and what the last one gave that ran.
    async fn steps(self, mut scope: Scope) -> Result<(Scope, Value), Failure> {
        let steps = self.template.steps();
        let mut places: Vec<Place> = steps.iter().map(|_| Place::Waiting).collect();
        let mut last = Value::Null;
        let mut running: FuturesUnordered<BoxFuture<'_, (usize, Result<Value, Stop>)>> = FuturesUnordered::new();
        loop {
            // Steps that end at once let others begin.
            while let Some(number) = ready(steps, &places) {
                let step = &steps[number];
                let result = if let Some(result) = self.done_before(number) {
                    self.tell(step, "kept");
                    last = result.clone();
                    result
                } else if self.template.wanted(step, &scope).map_err(template_error)? {
                    self.tell(step, "started");
                    self.progress(step, &places).await?;
                    let input = input(step, &places);
                    running.push(Box::pin(self.begin(number, scope.clone(), input)));
                    places[number] = Place::Running;
                    continue;
                } else {
                    self.tell(step, "skipped");
                    Value::Null
                };
                scope.finish(&step.id, &result);
                places[number] = Place::Done(Arc::new(result));
            }
            let Some((number, ended)) = running.next().await else {
                if self.put_down(&mut places).await? {
                    continue;
                }
                return Ok((scope, last));
            };
            let step = &steps[number];
            match ended {
                Ok(result) => {
                    self.kept.keep(&step.id, step.digest, &result).await;
                    scope.finish(&step.id, &result);
                    self.tell(step, "finished");
                    last = result.clone();
                    places[number] = Place::Done(Arc::new(result));
                }
                Err(Stop::Waits(names)) => {
                    self.tell(step, "waiting");
                    places[number] = Place::Parked(names);
                }
                Err(Stop::Later(until)) => {
                    self.tell(step, "waiting");
                    places[number] = Place::Later(until);
                }
                Err(Stop::Failed(failure)) => {
                    self.tell(step, "failed");
                    return Err(self.named(step, failure));
                }
            }
        }
    }

    /// The result of an earlier delivery. What goes with a worker is no use to a step that is still to run.
    fn done_before(&self, number: usize) -> Option<Value> {
        let steps = self.template.steps();
        let step = &steps[number];
        if let Some(recorded) = self.engine.recorded()
            && !step.kind.name.starts_with("ollama")
            && step.foreach.is_none()
            && let Some(result) = recorded.result(&step.id)
        {
            return Some(result);
        }
        let result = self.kept.result(&step.id, step.digest)?;
        let is_needed =
            |later: &Step| later.after.contains(&number) && self.kept.result(&later.id, later.digest).is_none();
        (!step.kind.is_local || !steps.iter().any(is_needed)).then_some(result)
    }

    /// When nothing runs any more: puts the run off if steps wait for a time, and down if they wait for others. Whether
    /// to go on, because one of them need not wait any more.
    async fn put_down(&self, places: &mut [Place]) -> Result<bool, Failure> {
        let names: Vec<String> = places
            .iter()
            .filter_map(|place| match place {
                Place::Parked(names) => Some(names.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        let until = places.iter().filter_map(|place| match place {
            Place::Later(until) => Some(*until),
            _ => None,
        });
        let until = until.min();
        if names.is_empty() && until.is_none() {
            return Ok(false);
        }
        let waits = |place: &Place| matches!(place, Place::Parked(_) | Place::Later(_));
        let steps = self.template.steps().iter().zip(&*places);
        let ids: Vec<&str> = steps
            .filter(|(_, place)| waits(place))
            .map(|(step, _)| step.id.as_str())
            .collect();
        let done = places.iter().filter(|place| matches!(place, Place::Done(_))).count();
        let meta = json!({"step": ids.first(), "waiting": ids, "done": done, "total": places.len()});
        self.context.update_state("WAITING", &meta).await?;
        // What others write down meanwhile is found then.
        if let Some(until) = until {
            return Err(Failure::Later(until.saturating_duration_since(clock::instant())));
        }
        if self.kept.park(&names).await? {
            return Err(Failure::Park);
        }
        for place in places {
            if waits(place) {
                *place = Place::Waiting;
            }
        }
        Ok(true)
    }

    async fn begin(self, number: usize, scope: Scope, input: Arc<Value>) -> (usize, Result<Value, Stop>) {
        let step = &self.template.steps()[number];
        let ended = match &step.foreach {
            None => self.tried(step, None, scope, input).await,
            Some(list) => match self.template.value(list, &scope) {
                Ok(Value::Array(items)) if items.len() > ITEMS => {
                    let text = format!("steps.{}.foreach has {} items, more than {ITEMS}", step.id, items.len());
                    Err(Stop::wrong(text))
                }
                Ok(Value::Array(items)) => self.items(step, &items, &scope, &input).await,
                Ok(other) => {
                    let shown: String = other.to_string().chars().take(100).collect();
                    Err(Stop::wrong(format!("steps.{}.foreach is no list but {shown}", step.id)))
                }
                Err(text) => Err(template_error(text).into()),
            },
        };
        (number, ended)
    }

    /// Runs a step for each item, so many at once, and gives the results in order.
    async fn items(self, step: &'a Step, items: &[Value], scope: &Scope, input: &Arc<Value>) -> Result<Value, Stop> {
        let mut results: Vec<Option<Value>> = vec![None; items.len()];
        let mut running: FuturesUnordered<BoxFuture<'_, (usize, Result<Value, Stop>)>> = FuturesUnordered::new();
        let mut waits: Vec<String> = Vec::new();
        let mut later: Vec<clock::Instant> = Vec::new();
        let mut next = 0;
        let mut done = 0;
        let mut told: Option<clock::Instant> = None;
        loop {
            while next < items.len() && running.len() + waits.len() + later.len() < step.parallel {
                let index = next;
                next += 1;
                let key = format!("{}[{index}]", step.id);
                if let Some(result) = self.kept.result(&key, step.digest) {
                    results[index] = Some(result);
                    done += 1;
                    continue;
                }
                let (scope, input) = (scope.with_item(index, &items[index]), input.clone());
                running.push(Box::pin(async move {
                    (index, self.tried(step, Some(index), scope, input).await)
                }));
            }
            let Some((index, ended)) = running.next().await else {
                break;
            };
            match ended {
                Ok(result) => {
                    self.kept
                        .keep(&format!("{}[{index}]", step.id), step.digest, &result)
                        .await;
                    results[index] = Some(result);
                    done += 1;
                }
                Err(Stop::Waits(names)) => waits.extend(names),
                Err(Stop::Later(until)) => later.push(until),
                Err(Stop::Failed(failure)) => return Err(Stop::Failed(failure)),
            }
            let now = clock::instant();
            if told.is_none_or(|told| now.saturating_duration_since(told) >= TELL) {
                told = Some(now);
                let meta = json!({"step": step.id, "item": done, "items": items.len()});
                self.context.update_state("PROGRESS", &self.counted(meta)).await?;
            }
        }
        if let Some(until) = later.into_iter().min() {
            return Err(Stop::Later(until));
        }
        if !waits.is_empty() {
            return Err(Stop::Waits(waits));
        }
        Ok(results.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Runs a step, or one item of it, as often as it may be tried.
    async fn tried(self, step: &'a Step, index: Option<usize>, scope: Scope, input: Arc<Value>) -> Result<Value, Stop> {
        let mut attempt = 1;
        let failure = loop {
            let site = Site {
                engine: self.engine,
                template: self.template,
                step,
                index,
                attempt,
                scope: scope.clone(),
                input: input.clone(),
                context: self.context,
                kept: self.kept,
                workspace: self.workspace,
            };
            let failure = match self.once(&site).await {
                Err(Stop::Failed(failure)) => failure,
                // Who is put off begins with the first try again, without end. The limit keeps the turn.
                Err(Stop::Later(until)) if attempt > 1 => {
                    tokio::time::sleep_until(until).await;
                    continue;
                }
                ended => return ended,
            };
            let why = reason(&failure);
            if attempt > step.retry.times || !step.retry.on.contains(&why) {
                break failure;
            }
            let entry = json!({
                "type": "step", "step": site.key(), "status": "retry", "why": why.as_str(), "text": words(&failure),
                "attempt": self.context.retries(),
            });
            self.context.stream(&entry);
            tokio::time::sleep(step.retry.pause_before(attempt)).await;
            attempt += 1;
        };
        let instead = match &step.on_error {
            OnError::Fail => return Err(Stop::Failed(failure)),
            OnError::Continue => Value::Null,
            OnError::Value(node) => self.template.value(node, &scope).map_err(template_error)?,
        };
        let entry = json!({
            "type": "step", "step": step.id, "status": "passed over", "text": words(&failure),
            "attempt": self.context.retries(),
        });
        self.context.stream(&entry);
        Ok(instead)
    }

    async fn once(self, site: &Site<'_>) -> Result<Value, Stop> {
        let step = site.step;
        let work = async {
            let fields = self.template.fields(step, &site.scope).map_err(template_error)?;
            steps::run(fields, site).await
        };
        match step.timeout {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work)
                .await
                .unwrap_or_else(|_| Err(too_slow(step, limit))),
        }
    }

    fn tell(&self, step: &Step, status: &str) {
        let attempt = self.context.retries();
        let entry = json!({"type": "step", "step": step.id, "status": status, "attempt": attempt});
        self.context.stream(&entry);
    }

    /// State `PROGRESS`, for a template that has more than one step.
    async fn progress(&self, step: &Step, places: &[Place]) -> Result<(), Failure> {
        if places.len() < 2 {
            return Ok(());
        }
        let done = places.iter().filter(|place| matches!(place, Place::Done(_))).count();
        let meta = json!({"step": step.id, "done": done, "total": places.len(), "template": self.template.title()});
        self.context.update_state("PROGRESS", &meta).await
    }

    /// Meta data of the progress of a loop, with that of the run.
    fn counted(&self, mut meta: Value) -> Value {
        let steps = self.template.steps();
        let done = steps
            .iter()
            .filter(|step| self.kept.result(&step.id, step.digest).is_some())
            .count();
        if let Value::Object(meta) = &mut meta {
            meta.insert("done".into(), done.into());
            meta.insert("total".into(), steps.len().into());
            meta.insert("template".into(), self.template.title().into());
        }
        meta
    }

    /// The same failure, saying which step it was where there are several.
    fn named(&self, step: &Step, failure: Failure) -> Failure {
        let name = |mut exception: Exception| {
            if let (true, Some(Value::String(text))) = (self.template.steps().len() > 1, exception.args.first_mut()) {
                *text = format!("step {:?}: {text}", step.id);
            }
            exception
        };
        match failure {
            Failure::Fail(exception) => Failure::Fail(name(exception)),
            Failure::Retry {
                after,
                cause,
                arguments,
            } => Failure::Retry {
                after,
                cause: cause.map(name),
                arguments,
            },
            other => other,
        }
    }
}

/// A step that has not begun and whose needs have ended.
fn ready(steps: &[Step], places: &[Place]) -> Option<usize> {
    let ended = |number: &usize| matches!(places[*number], Place::Done(_));
    steps
        .iter()
        .zip(places)
        .position(|(step, place)| matches!(place, Place::Waiting) && step.needs.iter().all(ended))
}

/// What a step takes that says nothing about it: the result of the step it needs, the last one if there are several.
fn input(step: &Step, places: &[Place]) -> Arc<Value> {
    let before = step.needs.last().and_then(|number| match &places[*number] {
        Place::Done(result) => Some(result.clone()),
        _ => None,
    });
    before.unwrap_or_default()
}

fn too_slow(step: &Step, limit: Duration) -> Stop {
    Stop::timed_out(format!("step {:?} took longer than {} s", step.id, limit.as_secs_f64()))
}
