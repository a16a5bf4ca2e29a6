//! `orchestra send`, `result`, `stream`, `revoke`: tasks from the shell.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};

use super::program::{Common, Stopped, pretty, seconds, usage, world};
use crate::client::{Call, Error, Pending};
use crate::wire::State;

/// How often a token stream is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// `orchestra send math.add 2 3`, `orchestra send orchestra.run -k template=summarize -k params='{"text": "…"}'`.
#[derive(Debug, Args)]
pub(super) struct Send {
    /// Name of the task
    task: String,
    /// Positional arguments: JSON, or text if it is none
    args: Vec<String>,
    /// A keyword argument: JSON, or text if it is none
    #[arg(short = 'k', long = "kwarg", value_name = "NAME=VALUE")]
    kwargs: Vec<String>,
    /// Queue [default: that of the task's route, else task_default_queue]
    #[arg(short = 'Q', long)]
    queue: Option<String>,
    /// 0 to 9; what a number means is the workers' setting
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Run it so many seconds from now
    #[arg(long, value_name = "SECONDS")]
    countdown: Option<f64>,
    /// Do not run it later than so many seconds from now
    #[arg(long, value_name = "SECONDS")]
    expires: Option<f64>,
    /// Wait so many seconds for the result and print it
    #[arg(short = 'w', long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600")]
    wait: Option<f64>,
    /// Print tokens as they come
    #[arg(short = 's', long)]
    stream: bool,
}

/// `orchestra result <id>`.
#[derive(Debug, Args)]
pub(super) struct ShowResult {
    /// Task id
    id: String,
    /// Wait so many seconds for it
    #[arg(short = 'w', long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600")]
    wait: Option<f64>,
}

/// `orchestra stream <id>`.
#[derive(Debug, Args)]
pub(super) struct Follow {
    /// Task id
    id: String,
}

/// `orchestra revoke <id>`.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Task id
    id: String,
    /// End it if it runs
    #[arg(long)]
    terminate: bool,
}

impl Send {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let mut call = Call::new(self.task);
        if let Some(queue) = self.queue {
            call = call.queue(queue);
        }
        for arg in &self.args {
            call = call.arg(value(arg));
        }
        for (name, value) in pairs("kwarg", &self.kwargs)? {
            call = call.kwarg(name, value);
        }
        if let Some(priority) = self.priority {
            call = call.priority(priority);
        }
        if let Some(pause) = self.countdown {
            call = call.countdown(seconds("countdown", pause)?);
        }
        if let Some(after) = self.expires {
            call = call.expires(seconds("expires", after)?);
        }
        let wait = self.wait.map(|wait| seconds("wait", wait)).transpose()?;
        let client = common.client().await?;
        let pending = client.send(call).await.map_err(world)?;
        if self.stream {
            follow(&pending).await?;
        }
        match wait {
            Some(wait) => show(&pending, wait).await,
            None if self.stream => show(&pending, Duration::from_secs(10)).await,
            None => {
                println!("{}", pending.id());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl ShowResult {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let pending = common.client().await?.result(self.id);
        if let Some(wait) = self.wait {
            return show(&pending, seconds("wait", wait)?).await;
        }
        let state = pending.state().await.map_err(world)?;
        if state.is_ready() {
            return show(&pending, Duration::from_secs(10)).await;
        }
        println!("{}", state.as_str());
        Ok(ExitCode::SUCCESS)
    }
}

impl Follow {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        follow(&common.client().await?.result(self.id)).await?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Revoke {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let client = common.client().await?;
        client.result(self.id).revoke(self.terminate).await.map_err(world)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Waits for a result and prints it; a failed task is exit code 1.
async fn show(pending: &Pending, wait: Duration) -> Result<ExitCode, Stopped> {
    match pending.get::<Value>(wait).await {
        Ok(Value::String(text)) => println!("{text}"),
        Ok(value) => println!("{}", pretty(&value)),
        Err(Error::Failed { exception, .. }) => return Err(world(exception.repr())),
        Err(error) => return Err(world(error)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints tokens until the stream ends, or the task has ended without one.
async fn follow(pending: &Pending) -> Result<(), Stopped> {
    let mut after = "0".to_owned();
    let mut out = std::io::stdout();
    loop {
        // The state first: what is in the stream by then is all there will be.
        let ready = pending.state().await.map_err(world)?.is_ready();
        let entries = pending.stream(&after).await.map_err(world)?;
        let quiet = entries.is_empty();
        for entry in entries {
            after.clone_from(&entry.id);
            let entry: Map<String, Value> = serde_json::from_str(entry.entry.get()).unwrap_or_default();
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
            let written = match text("type") {
                "token" => out.write_all(text("text").as_bytes()).and_then(|()| out.flush()),
                "restart" => writeln!(out, "\n[the model is asked again]"),
                "end" if text("state") != State::Retry.as_str() => return writeln!(out).map_err(world),
                _ => Ok(()),
            };
            written.map_err(world)?;
        }
        if quiet && ready {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Named values of a command line.
pub(super) fn pairs(option: &str, pairs: &[String]) -> Result<Map<String, Value>, Stopped> {
    let pair = |pair: &String| match pair.split_once('=') {
        Some((name, text)) => Ok((name.to_owned(), value(text))),
        None => Err(usage(format!("--{option} {pair:?}: write NAME=VALUE"))),
    };
    pairs.iter().map(pair).collect()
}

/// JSON, or the text itself.
pub(super) fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}
