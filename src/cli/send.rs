//! `orchestra send`, `result`, `stream`, `revoke`: tasks from the shell.

use std::borrow::Cow;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::commands::Audience;
use super::control::told;
use super::program::{Common, Stopped, pretty, seconds, usage, world};
use crate::client::{Call, Error, Pending};
use crate::clock;
use crate::wire::State;

/// How often a token stream is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often while nothing comes.
const SELDOM: Duration = Duration::from_millis(400);
/// How long nothing may come where no time is given: an id that is mistyped has nothing for ever.
const SILENCE: Duration = Duration::from_secs(600);
/// How long a result may take that is there already.
const SOON: Duration = Duration::from_secs(10);

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
    /// End after so many seconds [default: when nothing has come for 600]
    #[arg(short = 'w', long, alias = "timeout", value_name = "SECONDS")]
    wait: Option<f64>,
}

/// `orchestra revoke <id> …`.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Task ids
    #[arg(required = true)]
    ids: Vec<String>,
    /// End them if they run
    #[arg(long)]
    terminate: bool,
    #[command(flatten)]
    audience: Audience,
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
        if wait.is_none() && !self.stream {
            let pending = common.sender().await?.send(call).await.map_err(world)?;
            println!("{}", pending.id());
            return Ok(ExitCode::SUCCESS);
        }
        let client = common.client().await?;
        let pending = client.send(call).await.map_err(world)?;
        let started = clock::instant();
        if self.stream {
            drop(follow(&pending, wait).await?);
        }
        // What is waited for is the whole.
        let left = wait.map_or(SOON, |wait| wait.saturating_sub(started.elapsed()).max(LOOK));
        show(&pending, left).await
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
            return show(&pending, SOON).await;
        }
        println!("{}", state.as_str());
        Ok(ExitCode::SUCCESS)
    }
}

impl Follow {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let wait = self.wait.map(|wait| seconds("wait", wait)).transpose()?;
        let pending = common.client().await?.result(self.id);
        if follow(&pending, wait).await?.as_deref() == Some(State::Success.as_str()) {
            // It may have a result that nobody keeps.
            return Ok(ExitCode::SUCCESS);
        }
        // Its result is not asked for, but whether there is one.
        match pending.get::<IgnoredAny>(SOON).await {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Revoke {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let arguments = json!({"task_id": self.ids, "terminate": self.terminate, "signal": "SIGTERM"});
        let answers = self.audience.ask(common, "revoke", &arguments).await?;
        Ok(told(answers, self.audience.json))
    }
}

/// Waits for a result and prints it; a failed task is exit code 1.
async fn show(pending: &Pending, wait: Duration) -> Result<ExitCode, Stopped> {
    match pending.get::<Value>(wait).await {
        Ok(Value::String(text)) => println!("{}", shown(&text)),
        Ok(value) => println!("{}", pretty(&value)),
        Err(error) => return Err(failed(error)),
    }
    Ok(ExitCode::SUCCESS)
}

fn failed(error: Error) -> Stopped {
    match error {
        Error::Failed { exception, .. } => world(exception.repr()),
        error => world(error),
    }
}

/// A text that a task or a model has written: whole in a file, and on a terminal without what would be a command to it.
fn shown(text: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() {
        text.replace(
            |char: char| char.is_control() && !matches!(char, '\n' | '\t'),
            "\u{fffd}",
        )
        .into()
    } else {
        text.into()
    }
}

/// Prints tokens until the stream ends, or the task has ended without one. That takes no longer than `wait` in all, or
/// without one goes on as long as something comes. The state that the stream ended with, if it did.
async fn follow(pending: &Pending, wait: Option<Duration>) -> Result<Option<String>, Stopped> {
    let mut after = "0".to_owned();
    let (mut heard, mut pause) = (clock::instant(), LOOK);
    let longest = wait.unwrap_or(SILENCE);
    loop {
        // The state first: what is in the stream by then is all there will be.
        let ready = pending.state().await.map_err(world)?.is_ready();
        let entries = pending.stream(&after).await.map_err(world)?;
        let quiet = entries.is_empty();
        for entry in entries {
            after.clone_from(&entry.id);
            let entry: Map<String, Value> = serde_json::from_str(entry.entry.get()).unwrap_or_default();
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
            match text("type") {
                "token" => print!("{}", shown(text("text"))),
                "restart" => println!("\n[the model is asked again]"),
                "end" if text("state") != State::Retry.as_str() => {
                    println!();
                    return Ok(Some(text("state").to_owned()));
                }
                _ => {}
            }
        }
        if quiet && ready {
            return Ok(None);
        }
        if !quiet {
            pause = LOOK;
            // Of the whole time nothing is given back.
            heard = if wait.is_none() { clock::instant() } else { heard };
        }
        if heard.elapsed() >= longest {
            return Err(world(Error::Timeout {
                id: pending.id().to_owned(),
                seconds: longest.as_secs_f64(),
            }));
        }
        tokio::time::sleep(pause.min(longest.saturating_sub(heard.elapsed()))).await;
        pause = (pause * 5 / 4).min(SELDOM);
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
