//! Runs a template: one step after the other, each seeing the parameters and the steps before it.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Engine;
use super::ask::{Question, ask};
use super::call::{Show, announce_attempt};
use super::fault::template_error;
use super::template::{Scope, Step, StepKind, Template};
use crate::task::{Context, Exception, Failure};

/// Runs the steps and makes the output.
pub(super) async fn run(
    engine: &Engine,
    template: &Template,
    params: Map<String, Value>,
    context: &Context,
) -> Result<Value, Failure> {
    let params = template.check(params).map_err(Failure::value_error)?;
    announce_attempt(context);
    let mut scope = Scope::new(params);
    let mut last = Value::Null;
    for step in template.steps() {
        let tell = |status: &str| {
            context.stream(&json!({"type": "step", "step": step.id, "status": status, "attempt": context.retries()}));
        };
        if !template.wanted(step, &scope).map_err(template_error)? {
            tell("skipped");
            scope.finish(&step.id, Value::Null);
            continue;
        }
        tell("started");
        let running = run_step(engine, template, step, &scope, context);
        let result = match step.timeout {
            Some(limit) => tokio::time::timeout(limit, running)
                .await
                .map_err(|_| too_slow(step, limit))?,
            None => running.await,
        };
        last = result?;
        scope.finish(&step.id, last.clone());
        tell("finished");
    }
    match template.output(&scope).map_err(template_error)? {
        Some(output) => Ok(output),
        None => Ok(last),
    }
}

async fn run_step(
    engine: &Engine,
    template: &Template,
    step: &Step,
    scope: &Scope,
    context: &Context,
) -> Result<Value, Failure> {
    match &step.kind {
        StepKind::Render(text) => template.text(text, scope).map(Value::String).map_err(template_error),
        StepKind::Model { kind, model, fields } => {
            let model = template.text(model, scope).map_err(template_error)?;
            let fields = template.fields(fields, scope).map_err(template_error)?;
            let show = Show {
                step: &step.id,
                stream: true,
                template: Some(template.name()),
                cache: None,
            };
            let answer = ask(engine, Question::new(*kind, model, fields), show, context).await?;
            Ok(serde_json::to_value(answer)?)
        }
    }
}

fn too_slow(step: &Step, limit: Duration) -> Failure {
    let text = format!("step {:?} took longer than {} s", step.id, limit.as_secs_f64());
    Failure::Fail(Exception::builtin("TimeoutError", text))
}
