//! `orchestra send`, `result`, `stream`, `revoke`: tasks from the shell.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::commands::Audience;
use super::control::told;
use super::out::{self, plain, shown};
use super::program::{Common, Stopped, number_of_seconds, pretty, queue_names, seconds, usage, world};
use super::signals::interrupted;
use crate::client::{Call, Error, Pending};
use crate::clock::{self, Timestamp};
use crate::config::Settings;
use crate::wire::State;

/// How often a token stream is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often while nothing comes.
const SELDOM: Duration = Duration::from_millis(400);
/// How long nothing may come where no time is given: an id that is mistyped has nothing for ever.
const SILENCE: Duration = Duration::from_secs(600);
/// How long a result may take that is there already.
const SOON: Duration = Duration::from_secs(10);

/// `orchestra send math.add 2 3`, `orchestra send orchestra.run -k template=summarize -k params='{"text": "…"}'`, or
/// with the options of `celery call`.
#[derive(Debug, Args)]
pub(super) struct Send {
    /// Name of the task
    task: String,
    /// Positional arguments: JSON, or text if it is none
    #[arg(value_name = "ARGS")]
    words: Vec<String>,
    /// Positional arguments before these, as one JSON array
    #[arg(short = 'a', long, value_name = "JSON", value_parser = array)]
    args: Option<Value>,
    /// A keyword argument: JSON, or text if it is none; or all of them as one JSON object
    #[arg(
        short = 'k',
        long = "kwarg",
        visible_alias = "kwargs",
        value_name = "NAME=VALUE|JSON"
    )]
    kwargs: Vec<String>,
    /// Do not run it before this time: ISO 8601, in UTC unless it says otherwise
    #[arg(long, value_name = "TIME", value_parser = time)]
    eta: Option<Timestamp>,
    /// Run it so many seconds from now
    #[arg(long, value_name = "SECONDS", value_parser = countdown, conflicts_with = "eta")]
    countdown: Option<Timestamp>,
    /// Do not run it later than so many seconds from now, or than this time
    #[arg(long, value_name = "SECONDS|TIME", value_parser = expiry)]
    expires: Option<Timestamp>,
    /// Accepted for compatibility: messages are JSON, and signed where the settings say so
    #[arg(long, value_name = "NAME", value_parser = ["json"])]
    serializer: Option<String>,
    /// Queue [default: that of the task's route, else task_default_queue]
    #[arg(short = 'Q', long)]
    queue: Option<String>,
    /// Exchange, with a routing key
    #[arg(long, value_name = "NAME")]
    exchange: Option<String>,
    /// Routing key, with an exchange
    #[arg(long, value_name = "KEY")]
    routing_key: Option<String>,
    /// 0 to 9; what a number means is the workers' setting
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Wait so many seconds for the result and print it
    #[arg(short = 'w', long, value_name = "SECONDS", value_parser = number_of_seconds, num_args = 0..=1, default_missing_value = "600")]
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
    #[arg(short = 'w', long, value_name = "SECONDS", value_parser = number_of_seconds, num_args = 0..=1, default_missing_value = "600")]
    wait: Option<f64>,
    /// Print the traceback of a task that failed instead
    #[arg(long)]
    traceback: bool,
    /// Print JSON: all that is stored
    #[arg(short = 'j', long, conflicts_with = "traceback")]
    json: bool,
    /// Accepted for compatibility: there is one result backend for all tasks
    #[arg(short = 't', long, value_name = "NAME", hide = true)]
    task: Option<String>,
}

/// `orchestra stream <id>`.
#[derive(Debug, Args)]
pub(super) struct Follow {
    /// Task id
    id: String,
    /// End after so many seconds [default: when nothing has come for 600]
    #[arg(short = 'w', long, alias = "timeout", value_name = "SECONDS", value_parser = number_of_seconds)]
    wait: Option<f64>,
}

/// `orchestra revoke <id> …`.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Task ids
    #[arg(required = true, value_parser = NonEmptyStringValueParser::new())]
    ids: Vec<String>,
    /// End them if they run
    #[arg(long)]
    terminate: bool,
    /// With which signal, where a task runs in a process: TERM, KILL, …
    #[arg(long, value_name = "SIGNAL", default_value = "SIGTERM", requires = "terminate")]
    signal: String,
    #[command(flatten)]
    audience: Audience,
}

impl Send {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let wait = self.wait.map(|wait| seconds("wait", wait)).transpose()?;
        let stream = self.stream;
        let call = self.call(&common.settings()?)?;
        if wait.is_none() && !stream {
            let pending = common.sender().await?.send(call).await.map_err(world)?;
            println!("{}", pending.id());
            return Ok(ExitCode::SUCCESS);
        }
        let client = common.client().await?;
        let pending = client.send(call).await.map_err(world)?;
        // Whoever waits no longer has it then.
        eprintln!("task {}", pending.id());
        let started = clock::instant();
        let shown = async {
            if stream {
                drop(follow(&pending, wait).await?);
            }
            // What is waited for is the whole.
            let left = wait.map_or(SOON, |wait| wait.saturating_sub(started.elapsed()).max(LOOK));
            show(&pending, left, wait.unwrap_or(SOON)).await
        };
        unless_interrupted(pending.id(), shown).await
    }

    fn call(self, settings: &Settings) -> Result<Call, Stopped> {
        if self.task.trim().is_empty() {
            return Err(usage(
                "the name of the task is empty; `orchestra inspect registered` lists those there are",
            ));
        }
        let longest = settings.max_name_bytes();
        if self.task.len() > longest {
            return Err(usage(format!(
                "the name of the task has {} bytes: workers take no more than {longest} (max_name_bytes)",
                self.task.len()
            )));
        }
        queue_names("queue", &self.queue).map_err(usage)?;
        let mut call = Call::new(self.task);
        for arg in self.args.iter().filter_map(Value::as_array).flatten() {
            call = call.arg(arg);
        }
        for word in &self.words {
            call = call.arg(value(word));
        }
        for (name, value) in pairs("kwarg", &self.kwargs)? {
            call = call.kwarg(name, value);
        }
        if let Some(queue) = self.queue {
            call = call.queue(queue);
        }
        if self.exchange.is_some() || self.routing_key.is_some() {
            call = call.exchange(self.exchange.unwrap_or_default(), self.routing_key.unwrap_or_default());
        }
        if let Some(priority) = self.priority {
            call = call.priority(priority);
        }
        if let Some(at) = self.eta.or(self.countdown) {
            call = call.eta(at);
        }
        if let Some(at) = self.expires {
            call = call.expires_at(at);
        }
        Ok(call)
    }
}

impl ShowResult {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let pending = common.client().await?.result(self.id);
        if let Some(wait) = self.wait {
            let wait = seconds("wait", wait)?;
            let waited = unless_interrupted(pending.id(), async { Ok(pending.get::<IgnoredAny>(wait).await) });
            if let Err(error @ Error::Timeout { .. }) = waited.await? {
                return Err(failed(error));
            }
        }
        if self.json {
            return show_stored(&pending).await;
        }
        let state = pending.state().await.map_err(world)?;
        if !state.is_ready() {
            println!("{}", plain(state.as_str()));
            return Ok(ExitCode::SUCCESS);
        }
        if self.traceback {
            let traceback = match pending.get::<IgnoredAny>(SOON).await {
                Err(Error::Failed { traceback, .. }) => traceback,
                _ => None,
            };
            println!("{}", traceback.as_deref().unwrap_or("None"));
            return Ok(ExitCode::SUCCESS);
        }
        show(&pending, SOON, SOON).await
    }
}

impl Follow {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let wait = self.wait.map(|wait| seconds("wait", wait)).transpose()?;
        let pending = common.client().await?.result(self.id);
        let ended = unless_interrupted(pending.id(), follow(&pending, wait)).await?;
        if ended.as_deref() == Some(State::Success.as_str()) {
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
        let arguments = json!({"task_id": self.ids, "terminate": self.terminate, "signal": self.signal});
        let answers = self.audience.ask_anybody(common, "revoke", &arguments).await?;
        if answers.is_empty() && self.audience.is_for_all() {
            if self.audience.json {
                println!("{{}}");
            } else {
                println!("no worker answered; those that start within three hours will not run them");
            }
            return Ok(ExitCode::SUCCESS);
        }
        if answers.is_empty() {
            return Err(self.audience.unheard());
        }
        Ok(told(answers, self.audience.json))
    }
}

/// Waits for something of a task until Ctrl-C, which does not end the task.
async fn unless_interrupted<T>(id: &str, what: impl Future<Output = Result<T, Stopped>>) -> Result<T, Stopped> {
    tokio::select! {
        what = what => what,
        () = interrupted() => Err(Stopped {
            text: format!("no longer waiting; the task goes on: orchestra result {id} --wait"),
            code: 130,
        }),
    }
}

/// Prints all that is stored of a task, as it is where we cannot read it: somebody else may. Exit code 1 is that the
/// task failed.
async fn show_stored(pending: &Pending) -> Result<ExitCode, Stopped> {
    match pending.record().await {
        Ok(Some(record)) => println!("{}", pretty(&record)),
        Ok(None) => {
            let nothing = json!({"task_id": pending.id(), "status": State::Pending.as_str()});
            println!("{}", pretty(&nothing));
        }
        Err(error) => match pending.stored().await {
            Ok(Some(stored)) => out::stored(&stored),
            _ => return Err(world(error)),
        },
    }
    let failed = pending.state().await.is_ok_and(|state| state.is_failed());
    Ok(ExitCode::from(u8::from(failed)))
}

/// Waits for a result and prints it; a failed task is exit code 1. `left` is what is left of the time that somebody
/// gave it.
async fn show(pending: &Pending, left: Duration, given: Duration) -> Result<ExitCode, Stopped> {
    match pending.get::<Value>(left).await {
        Err(Error::Timeout { id, .. }) => {
            let seconds = given.as_secs_f64();
            return Err(failed(Error::Timeout { id, seconds }));
        }
        Ok(Value::String(text)) => println!("{text}"),
        Ok(value) => println!("{}", pretty(&value)),
        Err(error) => return Err(failed(error)),
    }
    Ok(ExitCode::SUCCESS)
}

fn failed(error: Error) -> Stopped {
    match error {
        Error::Failed { exception, .. } => world(plain(&exception.repr())),
        error => world(error),
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

/// Named values of a command line: `NAME=VALUE`, or several as a JSON object.
pub(super) fn pairs(option: &str, words: &[String]) -> Result<Map<String, Value>, Stopped> {
    let mut map = Map::new();
    for word in words {
        if let Ok(Value::Object(all)) = serde_json::from_str(word) {
            map.extend(all);
        } else if let Some((name, text)) = word.split_once('=').filter(|(name, _)| !name.starts_with('{')) {
            map.insert(name.to_owned(), value(text));
        } else {
            return Err(usage(format!(
                "--{option} {word:?}: write NAME=VALUE, or a JSON object"
            )));
        }
    }
    Ok(map)
}

/// JSON, or the text itself.
pub(super) fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// A JSON array.
fn array(word: &str) -> Result<Value, &'static str> {
    serde_json::from_str(word)
        .ok()
        .filter(Value::is_array)
        .ok_or("that is no JSON array, such as '[1, \"two\"]'")
}

/// A time as `celery call` takes it.
fn time(word: &str) -> Result<Timestamp, &'static str> {
    clock::parse_iso(word).map_err(|_| "that is no time; write it as 2026-11-26T10:30:00")
}

/// Seconds from now, which may be below zero, as for Celery.
fn countdown(word: &str) -> Result<Timestamp, &'static str> {
    let seconds = word.parse().map_err(|_| "that is no number of seconds")?;
    from_now(seconds)
}

/// Seconds from now, or a time.
fn expiry(word: &str) -> Result<Timestamp, &'static str> {
    match word.parse() {
        Ok(seconds) => from_now(seconds),
        Err(_) => time(word).map_err(|_| "that is neither a number of seconds nor a time such as 2026-11-26T10:30:00"),
    }
}

/// So many seconds from now; below zero that is past.
fn from_now(seconds: f64) -> Result<Timestamp, &'static str> {
    let at = Some(seconds)
        .filter(|seconds| seconds.is_finite())
        .and_then(|seconds| clock::from_epoch_seconds(clock::epoch_seconds(clock::now()) + seconds));
    at.ok_or("that is no number of seconds")
}
