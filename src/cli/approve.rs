//! `orchestra approve`: what templates wait for a person to decide.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::out::plain;
use super::program::{Common, Stopped, number_of_seconds, seconds, usage, world};
use crate::client::{Call, Error};

/// Decides a step of type `approve`.
#[derive(Debug, Args)]
pub(super) struct Approve {
    /// Id of the task; without it, everything that waits is listed
    id: Option<String>,
    /// The step, if the task waits for several decisions
    #[arg(long, value_name = "STEP")]
    step: Option<String>,
    /// Say no
    #[arg(long)]
    reject: bool,
    /// Who decides [default: $USER]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Why
    #[arg(short = 'm', long, value_name = "TEXT")]
    comment: Option<String>,
    /// Answers to the form of the step: JSON
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// Queue of the workers that run the template [default: where the routes send it]
    #[arg(short = 'Q', long, value_name = "QUEUE", short_alias = 'q')]
    queue: Option<String>,
    /// Seconds to wait for a worker to take it
    #[arg(long, value_name = "SECONDS", value_parser = number_of_seconds, default_value = "10")]
    timeout: f64,
}

impl Approve {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let client = common.client().await?;
        let Some(id) = &self.id else {
            let (parked, more) = client.parked().await.map_err(world)?;
            for (id, kept) in parked {
                for (name, question) in &kept {
                    let awaited = question.get("name").and_then(Value::as_str).unwrap_or_default();
                    if !name.starts_with("q:") || kept.contains_key(awaited) {
                        continue;
                    }
                    let text = |name: &str| question.get(name).and_then(Value::as_str).unwrap_or_default();
                    let line = format!("{id}  {}.{}  {}", text("template"), text("step"), text("message"));
                    println!("{}", plain(&line));
                }
            }
            if more > 0 {
                eprintln!("orchestra: {more} more wait that came later; decide these first");
            }
            return Ok(ExitCode::SUCCESS);
        };
        let data = match &self.data {
            None => Value::Null,
            Some(text) => serde_json::from_str(text).map_err(|error| usage(format!("--data: is no JSON: {error}")))?,
        };
        if !client
            .kept_of(id)
            .await
            .map_err(world)?
            .keys()
            .any(|name| name.starts_with("q:"))
        {
            return Err(usage(format!(
                "{id} waits for no decision; `orchestra approve` lists what does"
            )));
        }
        let mut call = Call::new("orchestra.approve")
            .arg(id)
            .kwarg("approved", !self.reject)
            .kwarg("by", self.by.or_else(|| std::env::var("USER").ok()))
            .kwarg("comment", self.comment)
            .kwarg("data", data);
        if let Some(step) = self.step {
            call = call.kwarg("step", step);
        }
        if let Some(queue) = self.queue {
            call = call.queue(queue);
        }
        let timeout = seconds("timeout", self.timeout)?.max(Duration::from_millis(1));
        let pending = client.send(call).await.map_err(world)?;
        match pending.get::<String>(timeout).await {
            Ok(what) => println!("{}", plain(&format!("{id} {what}"))),
            Err(Error::Timeout { .. }) => {
                return Err(world(format!(
                    "{id}: no worker has taken the decision yet; it waits in its queue"
                )));
            }
            Err(Error::Failed { exception, .. }) => return Err(usage(exception.message())),
            Err(error) => return Err(world(error)),
        }
        Ok(ExitCode::SUCCESS)
    }
}
