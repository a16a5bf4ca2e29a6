//! `orchestra`: the commands, and what they share.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::refusal::refuse;
use super::{
    approve, batch, beat, config, control, dead, doctor, events, inspect, list, models, purge, schedule, send,
    templates, top, up,
};
use crate::ai::{Engine, Folder};
use crate::backend::Backend;
use crate::broker::{self, Broker, DeadQueue};
use crate::client::Client;
use crate::config::Settings;
use crate::conn::{Link, LinkOptions};

/// How long all keys are looked through for dead letters by what does not live from them.
const LONGEST_SCAN: Duration = Duration::from_secs(2);

/// How a command ends when it does not: text and exit code.
pub(super) struct Stopped {
    pub text: String,
    pub code: u8,
}

/// The user wrote something wrong.
pub(super) fn usage(text: impl ToString) -> Stopped {
    Stopped {
        text: text.to_string(),
        code: 2,
    }
}

/// The world is not as it should be.
pub(super) fn world(text: impl ToString) -> Stopped {
    Stopped {
        text: text.to_string(),
        code: 1,
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "orchestra",
    version,
    about = "Tasks and models: start, send, look, check",
    // As with click, of an option that is given twice the last counts.
    args_override_self = true
)]
struct Program {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Where things are.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where things are")]
pub(super) struct Common {
    /// Redis URL of the broker [default: redis://127.0.0.1:6379/0]
    #[arg(short = 'b', long, value_name = "URL", global = true)]
    pub broker: Option<String>,
    /// Redis URL of the result backend [default: the broker]
    #[arg(long, value_name = "URL", global = true)]
    pub result_backend: Option<String>,
    /// Settings file [default: ./orchestra.toml if there is one]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Folder of templates [default: ./templates if there is one]
    #[arg(long, value_name = "DIR", global = true)]
    pub templates: Option<PathBuf>,
    /// Folder of task files [default: ./tasks if there is one]
    #[arg(long, value_name = "DIR", global = true)]
    pub tasks: Option<PathBuf>,
    /// Base URL of an Ollama server; may be given several times [default: http://127.0.0.1:11434]
    #[arg(long, value_name = "URL", global = true)]
    pub ollama_host: Vec<String>,
    /// As in `celery -A proj …`; there is no Python app here
    #[arg(short = 'A', long, value_name = "APP", global = true, hide = true)]
    app: Option<String>,
    /// Whether the warnings of the settings were shown.
    #[arg(skip)]
    warned: AtomicBool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything a first try needs, and stop it with Ctrl-C
    Up(up::Up),
    /// The worker is a program of its own
    #[command(hide = true)]
    Worker(Elsewhere),
    /// Send a task
    #[command(visible_alias = "call")]
    Send(Box<send::Send>),
    /// Show the result of a task
    Result(send::ShowResult),
    /// Follow the token stream of a task
    Stream(send::Follow),
    /// Tell all workers not to run a task, or to end it
    Revoke(send::Revoke),
    /// Run a task or a template once for every row of a file
    #[command(subcommand)]
    Batch(batch::Batch),
    /// Send periodic tasks when they are due
    Beat(beat::Beat),
    /// See and change what beat sends: list, add, remove, enable, disable, run-now, next
    #[command(subcommand)]
    Schedule(schedule::Schedule),
    /// Decide what a template waits for; without an id, list what is to be decided
    Approve(approve::Approve),
    /// Which workers are there
    Status(inspect::Status),
    /// Ask workers: active, scheduled, reserved, registered, stats, conf, …
    Inspect(inspect::Inspect),
    /// Tell workers: revoke, rate_limit, time_limit, pool_grow, autoscale, add_consumer, shutdown, …
    Control(control::Control),
    /// Which queues hang on which exchanges: bindings
    #[command(subcommand)]
    List(list::List),
    /// Delete all messages that wait in queues
    Purge(purge::Purge),
    /// What could not be run: list, show, requeue, drop
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Print events as they come
    Events(events::Events),
    /// Watch workers, queues, tasks and models, live
    Top(top::Top),
    /// List, check and try templates
    #[command(subcommand)]
    Templates(templates::Templates),
    /// See and tell the model servers: list, ps, warm, unload, pull, usage
    #[command(subcommand)]
    Models(models::Models),
    /// The tasks that a worker started here would have
    Tasks {
        /// Print JSON
        #[arg(short = 'j', long)]
        json: bool,
    },
    /// Show the settings as they are now
    Config(config::Config),
    /// Check that Redis, workers, models and files are in order
    Doctor(doctor::Doctor),
}

/// The words behind a command that is not here.
#[derive(Debug, Args)]
struct Elsewhere {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _words: Vec<String>,
}

/// The whole of the `orchestra` program.
pub fn program_main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == crate::ai::LIMITED)
    {
        return crate::ai::become_limited(std::env::args_os().skip(2));
    }
    let program = command()
        .try_get_matches()
        .and_then(|matches| Program::from_arg_matches(&matches));
    let program = match program {
        Ok(program) => program,
        Err(error) => return refuse("orchestra", &error),
    };
    let node = format!("orchestra@{}", super::nodename::host());
    let _traces = match super::otel::start("orchestra", &node) {
        Ok(traces) => traces,
        Err(text) => {
            eprintln!("orchestra: {text}");
            return ExitCode::from(2);
        }
    };
    // One thread: everything here waits for others.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(program)),
        Err(error) => Err(world(format!("cannot start: {error}"))),
    };
    match done {
        Ok(code) => code,
        Err(Stopped { text, code }) => {
            eprintln!("orchestra: {text}");
            ExitCode::from(code)
        }
    }
}

/// Options that stand everywhere, and the commands that have a use for them: the help of others does not show them.
const OF_AI: [&str; 3] = ["templates", "tasks", "ollama_host"];
const AI: [&str; 8] = [
    "up",
    "batch",
    "beat",
    "templates",
    "models",
    "tasks",
    "config",
    "doctor",
];

/// The whole command line.
fn command() -> clap::Command {
    let command = numbers(Program::command());
    let of_ai = command
        .get_arguments()
        .filter(|option| OF_AI.contains(&option.get_id().as_str()));
    let hidden: Vec<Arg> = of_ai.map(|option| option.clone().hide(true)).collect();
    command.mut_subcommands(|command| match AI.contains(&command.get_name()) {
        true => command,
        false => command.args(&hidden),
    })
}

/// `-1` is a number everywhere, which may be a wrong one, and no option.
pub(super) fn numbers(command: clap::Command) -> clap::Command {
    let read = |option: Arg| match option.get_action().takes_values() {
        true => option.allow_negative_numbers(true),
        false => option,
    };
    command.mut_args(read).mut_subcommands(numbers)
}

async fn run(program: Program) -> Result<ExitCode, Stopped> {
    let common = program.common;
    // Beat says so in its log.
    if let (Some(app), false) = (&common.app, matches!(program.command, Command::Beat(_))) {
        eprintln!(
            "orchestra: -A {app} has no effect: where Redis is say --broker, CELERY_BROKER_URL or orchestra.toml"
        );
    }
    match program.command {
        Command::Up(up) => up.run(&common).await,
        Command::Worker(_) => Err(usage(
            "the worker is a program of its own: run orchestra-worker, which has the options of `celery worker`",
        )),
        Command::Send(send) => send.run(&common).await,
        Command::Result(result) => result.run(&common).await,
        Command::Stream(follow) => follow.run(&common).await,
        Command::Revoke(revoke) => revoke.run(&common).await,
        Command::Batch(batch) => batch.run(&common).await,
        Command::Beat(beat) => beat.run(&common).await,
        Command::Schedule(schedule) => schedule.run(&common).await,
        Command::Approve(approve) => approve.run(&common).await,
        Command::Status(status) => status.run(&common).await,
        Command::Inspect(inspect) => inspect.run(&common).await,
        Command::Control(control) => control.run(&common).await,
        Command::List(list) => list.run(&common).await,
        Command::Purge(purge) => purge.run(&common).await,
        Command::Dead(dead) => dead.run(&common).await,
        Command::Events(events) => events.run(&common).await,
        Command::Top(top) => top.run(&common).await,
        Command::Templates(templates) => templates.run(&common).await,
        Command::Models(models) => models.run(&common).await,
        Command::Tasks { json } => templates::tasks(&common, json),
        Command::Config(config) => config.run(&common),
        Command::Doctor(doctor) => doctor.run(&common).await,
    }
}

impl Common {
    /// File, environment and command line together.
    pub(super) fn settings(&self) -> Result<Settings, Stopped> {
        let mut settings = Settings::load(self.config.as_deref()).map_err(usage)?;
        if !self.warned.swap(true, Ordering::Relaxed) {
            for warning in &settings.warnings {
                eprintln!("orchestra: {warning}");
            }
        }
        if let Some(url) = &self.broker {
            settings.broker_url.clone_from(url);
        }
        if let Some(url) = &self.result_backend {
            settings.result_backend = Some(url.clone());
        }
        if let Some(folder) = &self.templates {
            settings.ai.templates = Folder::Named(folder.clone());
        }
        if let Some(folder) = &self.tasks {
            settings.ai.tasks = Folder::Named(folder.clone());
        }
        if !self.ollama_host.is_empty() {
            settings.ai.hosts = self.ollama_host.iter().map(|url| url.as_str().into()).collect();
        }
        Ok(settings)
    }

    /// The broker.
    pub(super) async fn broker(&self, settings: &Settings) -> Result<Broker, Stopped> {
        let endpoint = settings.broker().map_err(usage)?;
        let broker = Broker::connect(&endpoint, settings.broker_options()).await;
        broker.map_err(world)
    }

    /// A client of the broker alone: what sends, asks and tells goes on while the result backend is away.
    pub(super) async fn sender(&self) -> Result<Client, Stopped> {
        let settings = self.settings()?;
        let broker = self.broker(&settings).await?;
        let sending = settings.sending().map_err(usage)?;
        Ok(Client::new(broker, None).sending(sending))
    }

    /// A client of the broker and the result backend.
    pub(super) async fn client(&self) -> Result<Client, Stopped> {
        let settings = self.settings()?;
        let backend = settings.backend().map_err(usage)?;
        let broker = self.broker(&settings).await?;
        let backend = match backend {
            None => None,
            Some(endpoint) => {
                let link = Link::connect(&endpoint, LinkOptions::default()).await.map_err(world)?;
                Some(
                    Backend::new(link, settings.backend_options().map_err(usage)?)
                        .await
                        .map_err(world)?,
                )
            }
        };
        let sending = settings.sending().map_err(usage)?;
        Ok(Client::new(broker, backend).sending(sending))
    }

    /// The AI layer as a worker started here would have it.
    pub(super) fn engine(&self) -> Result<Engine, Stopped> {
        Engine::load(&self.settings()?.ai).map_err(usage)
    }
}

/// The queues that have dead letters, whoever consumes them.
///
/// # Errors
/// Redis cannot be reached, or refuses.
pub(super) async fn dead_queues(broker: &Broker, settings: &Settings) -> Result<Vec<DeadQueue>, broker::Error> {
    let names = tokio::time::timeout(LONGEST_SCAN, broker.scan_dead_queues()).await;
    let names: BTreeSet<String> = match names {
        Ok(Err(error)) if error.is_transient() => return Err(error),
        Ok(Ok(names)) => names,
        // An ACL without SCAN, or very many keys: those we know of.
        Ok(Err(_)) | Err(_) => settings.named_queues(),
    };
    broker.dead_queues(names.iter().map(String::as_str)).await
}

/// A number of seconds, as a word of a command line.
pub(super) fn number_of_seconds(word: &str) -> Result<f64, String> {
    match word.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("that is no number of seconds".to_owned()),
    }
}

/// Whether workers take queues of these names; what is said where they do not.
pub(super) fn queue_names<'a>(option: &str, names: impl IntoIterator<Item = &'a String>) -> Result<(), String> {
    if names.into_iter().any(|name| name.is_empty() || name.len() > 255) {
        return Err(format!("--{option}: the name of a queue has 1 to 255 characters"));
    }
    Ok(())
}

/// Seconds of a command line.
pub(super) fn seconds(name: &str, value: f64) -> Result<Duration, Stopped> {
    Duration::try_from_secs_f64(value).map_err(|_| {
        usage(format!(
            "--{name}: {} is no number of seconds",
            crate::text::number(value)
        ))
    })
}

/// A value as people read it.
pub(super) fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}
