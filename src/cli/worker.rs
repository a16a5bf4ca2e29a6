//! `orchestra-worker`: Celery's own command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory as _, FromArgMatches as _, Parser};

use super::detach::Detached;
use super::log::Log;
use super::notify::Notify;
use super::pidfile::Pidfile;
use super::program::{Stopped, number_of_seconds, numbers, queue_names, usage, world};
use super::refusal::refuse;
use super::signals::Signals;
use super::{metrics, nodename};
use crate::ai::{Engine, Folder, Host};
use crate::config::Settings;
use crate::task::{RegisterError, Registry};
use crate::worker::{self, Child, Exit, MOST_PLACES, Program, Stop, Worker};

/// What the program is called.
const NAME: &str = "orchestra-worker";

/// Executes Celery tasks: those written in Rust, and AI tasks described in files.
#[derive(Debug, Parser)]
#[command(
    name = "orchestra-worker",
    version,
    disable_help_subcommand = true,
    args_override_self = true
)]
pub struct Arguments {
    /// Redis URL of the broker [default: redis://127.0.0.1:6379/0]
    #[arg(short = 'b', long, value_name = "URL")]
    broker: Option<String>,
    /// Redis URL of the result backend [default: the broker]
    #[arg(long, value_name = "URL")]
    result_backend: Option<String>,
    /// Queues to consume, separated by commas [default: celery]
    #[arg(short = 'Q', long, value_name = "QUEUES", value_delimiter = ',')]
    queues: Option<Vec<String>>,
    /// Queues of the default set not to consume
    #[arg(short = 'X', long, value_name = "QUEUES", value_delimiter = ',')]
    exclude_queues: Vec<String>,
    /// Node name; %h host, %n its first part, %d its domain [default: celery@%h]
    #[arg(short = 'n', long, value_name = "NAME")]
    hostname: Option<String>,
    /// How many tasks run at once; auto is the number of CPUs [default: auto]
    #[arg(short = 'c', long, value_name = "N", value_parser = concurrency)]
    concurrency: Option<usize>,
    /// DEBUG, INFO, WARNING, ERROR or CRITICAL
    #[arg(short = 'l', long, value_name = "LEVEL")]
    loglevel: Option<String>,
    /// Write the log to a file instead of stderr
    #[arg(short = 'f', long, value_name = "FILE")]
    logfile: Option<PathBuf>,
    /// Send task events from the start
    #[arg(short = 'E', long, visible_alias = "events", action = ArgAction::SetTrue)]
    task_events: bool,
    /// Send periodic tasks as well, as `orchestra beat` does
    #[arg(short = 'B', long, action = ArgAction::SetTrue)]
    beat: bool,
    /// Accepted for compatibility: the schedule of -B is kept in Redis
    #[arg(short = 's', long, visible_alias = "schedule", value_name = "FILE")]
    schedule_filename: Option<PathBuf>,
    /// Accepted for compatibility: -B has one scheduler
    #[arg(long, value_name = "CLASS")]
    scheduler: Option<String>,
    /// Messages held per place to run; 0 is without bound [default: 4]
    #[arg(long, value_name = "N")]
    prefetch_multiplier: Option<u32>,
    /// Take a message only when there is a place to run
    #[arg(long)]
    disable_prefetch: bool,
    /// Delete all messages of the queues before the start
    #[arg(long, visible_alias = "discard")]
    purge: bool,
    /// Hard time limit of tasks that have none, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = number_of_seconds)]
    time_limit: Option<f64>,
    /// Soft time limit of tasks that have none, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = number_of_seconds)]
    soft_time_limit: Option<f64>,
    /// Seconds between heartbeats [default: 2]
    #[arg(long, value_name = "SECONDS", value_parser = number_of_seconds)]
    heartbeat_interval: Option<f64>,
    /// Send no worker events
    #[arg(long)]
    without_heartbeat: bool,
    /// Accepted for compatibility, with a word about it: there is no Python app here
    #[arg(short = 'A', long, value_name = "APP")]
    app: Option<String>,
    /// Accepted for compatibility, with a word about it: there are no Python modules here
    #[arg(short = 'I', long, value_name = "MODULES")]
    include: Option<String>,
    /// Do not listen to what other workers say of themselves
    #[arg(long)]
    without_gossip: bool,
    /// Do not ask the other workers at start what they have revoked
    #[arg(long)]
    without_mingle: bool,
    /// As many places to run as there is work for, between these two: MAX,MIN
    #[arg(long, value_name = "MAX,MIN", value_parser = autoscale)]
    autoscale: Option<(usize, usize)>,
    /// Keep what was revoked in this file, across restarts
    #[arg(short = 'S', long, value_name = "FILE")]
    statedb: Option<PathBuf>,
    /// Serve /metrics for Prometheus, /healthz and /readyz at this address; :PORT is this machine only
    #[arg(long, value_name = "HOST:PORT")]
    metrics_addr: Option<String>,
    /// prefork: every task runs in a child process; threads: those that ask for one [default: threads]
    #[arg(short = 'P', long, value_name = "POOL")]
    pool: Option<String>,
    /// Accepted for compatibility: scheduling is always fair
    #[arg(short = 'O', long, value_name = "PROFILE")]
    optimization: Option<String>,
    /// Tasks that a child process runs before it is replaced
    #[arg(long, value_name = "N")]
    max_tasks_per_child: Option<u64>,
    /// Memory of a child process, in KiB, with which it is replaced after its task
    #[arg(long, value_name = "KIB")]
    max_memory_per_child: Option<u64>,
    /// Accepted for compatibility: a child process is always a new start of the program
    #[arg(long, value_name = "METHOD")]
    pool_start_method: Option<String>,
    /// Go on in the background when the start is done
    #[arg(short = 'D', long)]
    detach: bool,
    /// Write the number of the process to a file, and do not start while another worker holds it
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Settings file [default: ./orchestra.toml if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of templates [default: ./templates if there is one]
    #[arg(long, value_name = "DIR")]
    templates: Option<PathBuf>,
    /// Folder of task files [default: ./tasks if there is one]
    #[arg(long, value_name = "DIR")]
    tasks: Option<PathBuf>,
    /// Base URL of an Ollama server; may be given several times [default: http://127.0.0.1:11434]
    #[arg(long, value_name = "URL")]
    ollama_host: Vec<String>,
    /// Log as JSON, one object per line
    #[arg(long)]
    log_json: bool,
    /// Do not print the banner
    #[arg(short = 'q', long)]
    quiet: bool,
    /// `celery -A app worker …` becomes `orchestra-worker …`; the word is still in people's fingers.
    #[arg(hide = true)]
    word: Option<String>,
}

/// The whole of a worker program: command line, settings, built-in AI tasks, and the tasks that `register` adds.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     orchestra::cli::worker_main(|registry| {
///         // registry.register::<MyTask>(env)?;
///         Ok(())
///     })
/// }
/// ```
pub fn worker_main(register: impl FnOnce(&mut Registry) -> Result<(), RegisterError>) -> ExitCode {
    worker_main_from(std::env::args_os(), register)
}

/// [`worker_main`] with a command line of one's own; its first element is the program's name.
pub fn worker_main_from(
    arguments: impl IntoIterator<Item: Into<OsString>>,
    register: impl FnOnce(&mut Registry) -> Result<(), RegisterError>,
) -> ExitCode {
    let mut arguments = arguments.into_iter().map(Into::into);
    let (own, first) = (arguments.next(), arguments.next());
    if first.as_deref().is_some_and(|word| word == crate::ai::LIMITED) {
        return crate::ai::become_limited(std::env::args_os().skip(2));
    }
    let arguments = own.into_iter().chain(first).chain(arguments);
    let arguments = numbers(Arguments::command())
        .try_get_matches_from(arguments)
        .and_then(|matches| Arguments::from_arg_matches(&matches))
        .and_then(Arguments::with_the_word);
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return refuse("orchestra-worker", &error),
    };
    let ended = match Child::of_worker() {
        Some(child) => run_child(child, arguments, register),
        None => start(arguments, register),
    };
    match ended {
        Ok(code) => code,
        Err(Stopped { text, code }) => {
            eprintln!("orchestra-worker: {text}");
            ExitCode::from(code)
        }
    }
}

impl Arguments {
    /// # Errors
    /// There is a word that is not the name of this command.
    fn with_the_word(self) -> Result<Self, clap::Error> {
        match self.word.as_deref() {
            None | Some("worker") => Ok(self),
            Some(word) => Err(Self::command().error(
                ErrorKind::UnknownArgument,
                format!("unexpected argument '{word}' found; this is `celery worker`, all its other commands are `orchestra`'s"),
            )),
        }
    }
}

/// Runs tasks for the worker that has started this process.
fn run_child(
    child: Child,
    arguments: Arguments,
    register: impl FnOnce(&mut Registry) -> Result<(), RegisterError>,
) -> Result<ExitCode, Stopped> {
    let settings = settings(&arguments).map_err(usage)?;
    crate::ai::close_to_programs(&settings.ai.permits).map_err(world)?;
    let log = logfile(&arguments);
    super::log::start(NAME, &settings.log_level, log.as_deref(), settings.log_json).map_err(usage)?;
    let (mut registry, engine) = registry(&settings, register)?;
    engine.register(&mut registry).map_err(usage)?;
    let options = options(&arguments, &settings).map_err(usage)?;
    let traces = super::otel::start("orchestra-worker", &options.hostname).map_err(usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| world(format!("cannot start threads: {error}")))?;
    let served = runtime.block_on(async {
        let _ignored = super::signals::ignore();
        child.serve(options, registry).await
    });
    runtime.shutdown_background();
    drop(traces);
    served.map(|()| ExitCode::SUCCESS).map_err(world)
}

/// The tasks of the program, and the engine of those that are described in files.
fn registry(
    settings: &Settings,
    register: impl FnOnce(&mut Registry) -> Result<(), RegisterError>,
) -> Result<(Registry, Engine), Stopped> {
    let mut registry = Registry::new();
    register(&mut registry).map_err(usage)?;
    let engine = Engine::load(&settings.shared_ai().map_err(usage)?).map_err(usage)?;
    Ok((registry, engine))
}

fn start(
    arguments: Arguments,
    register: impl FnOnce(&mut Registry) -> Result<(), RegisterError>,
) -> Result<ExitCode, Stopped> {
    let detached = Detached::this();
    if arguments.detach && detached.is_none() {
        return super::detach::start().map_err(world);
    }
    let settings = settings(&arguments).map_err(usage)?;
    crate::ai::close_to_programs(&settings.ai.permits).map_err(world)?;
    let file = logfile(&arguments);
    let log = super::log::start(NAME, &settings.log_level, file.as_deref(), settings.log_json).map_err(usage)?;
    let done = work(arguments, &settings, detached, &log, register);
    Ok(done.unwrap_or_else(|stopped| log.end(stopped)))
}

/// From the first line of the log to the last.
fn work(
    arguments: Arguments,
    settings: &Settings,
    detached: Option<Detached>,
    log: &Log,
    register: impl FnOnce(&mut Registry) -> Result<(), RegisterError>,
) -> Result<ExitCode, Stopped> {
    if let Some(app) = &arguments.app {
        log.warn(format_args!(
            "-A {app} has no effect: tasks are written in Rust (docs/rust-tasks.md) or described in tasks/*.yaml"
        ));
    }
    if let Some(modules) = &arguments.include {
        log.warn(format_args!(
            "-I {modules} has no effect: no Python modules are imported"
        ));
    }
    for warning in settings.warnings.iter().chain(&settings.ai.permits.missing()) {
        log.warn(warning);
    }
    let (mut registry, engine) = registry(settings, register)?;
    let beat = arguments
        .beat
        .then(|| super::beat::plan(settings, &engine))
        .transpose()?;
    engine.register(&mut registry).map_err(usage)?;
    let mut options = options(&arguments, settings).map_err(usage)?;
    options.program = Some(Program {
        arguments: std::env::args_os().skip(1).collect(),
    });
    let pidfile = arguments.pidfile.as_deref().map(|path| expanded(&arguments, path));
    // It goes when this returns.
    let _pidfile = pidfile.as_deref().map(Pidfile::write).transpose().map_err(locked)?;
    if !arguments.quiet && !log.is_json() {
        eprintln!("{}", banner(&options, &registry, settings));
    }
    let cpus = std::thread::available_parallelism().map_or(1, Into::into);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Two at least: a task that computes must not keep heartbeats and leases from being sent.
        .worker_threads(cpus.max(2))
        .enable_all()
        .build()
        .map_err(|error| world(format!("cannot start threads: {error}")))?;
    let metrics_addr = arguments.metrics_addr.or_else(|| settings.metrics_addr());
    let traces = super::otel::start("orchestra-worker", &options.hostname).map_err(usage)?;
    let code = runtime.block_on(async {
        let stop = Stop::new();
        let soft = !settings.soft_shutdown_timeout().is_zero();
        let signals = Signals::listen(stop.clone(), soft, log.clone(), options.hostname.clone())
            .map_err(|error| world(format!("cannot listen to signals: {error}")))?;
        let worker = Worker::connect(options, registry).await;
        let worker = worker.map_err(world)?;
        if arguments.purge {
            let count = worker.purge().await.map_err(world)?;
            log.say(format_args!("purge: erased {count} messages from the queues"));
        }
        let beat = match beat {
            None => None,
            Some((options, entries)) => Some(super::beat::start(settings, options, entries).await?),
        };
        let watched = match &metrics_addr {
            Some(address) => Some((metrics::listen(address, log).await.map_err(world)?, worker.watch())),
            None => None,
        };
        let notify = Notify::from_environment().map(|notify| notify.run(worker.look(), stop.clone()));
        log.say("ready");
        if let Some(detached) = detached {
            detached.ready(log).map_err(world)?;
        }
        let working = async {
            let exit = match watched {
                None => worker.run(stop.clone()).await,
                Some((listener, watch)) => tokio::select! {
                    exit = worker.run(stop.clone()) => exit,
                    () = metrics::serve(listener, watch) => Exit::Cold,
                },
            };
            // However the worker came to its end, beat ends with it.
            stop.warm();
            exit
        };
        let working = async {
            match notify {
                None => working.await,
                Some(notify) => tokio::select! {
                    exit = working => exit,
                    () = notify => Exit::Cold,
                },
            }
        };
        let beating = async {
            if let Some(beat) = beat {
                beat.run(stop.asked()).await;
            }
        };
        Ok(signals.code(tokio::join!(working, beating).0))
    });
    // What blocks on a thread of its own cannot be interrupted; it must not keep the process either.
    runtime.shutdown_background();
    drop(traces);
    code
}

fn settings(arguments: &Arguments) -> Result<Settings, String> {
    let mut settings = Settings::load(arguments.config.as_deref())?;
    let seconds = |name: &str, value: f64| super::program::seconds(name, value).map_err(|stopped| stopped.text);
    if let Some(url) = &arguments.broker {
        settings.broker_url.clone_from(url);
    }
    if let Some(url) = &arguments.result_backend {
        settings.result_backend = Some(url.clone());
    }
    if let Some(queues) = &arguments.queues {
        settings.queues.clone_from(queues);
    }
    queue_names("queues", &settings.queues)?;
    settings
        .queues
        .retain(|queue| !arguments.exclude_queues.contains(queue));
    if let Some(queue) = settings.unknown_queue() {
        return Err(format!(
            "--queues: {queue} is not in task_queues, and task_create_missing_queues is false"
        ));
    }
    if let Some(concurrency) = arguments.concurrency {
        settings.concurrency = Some(concurrency);
    }
    if let Some(multiplier) = arguments.prefetch_multiplier {
        settings.prefetch_multiplier = multiplier;
    }
    settings.disable_prefetch |= arguments.disable_prefetch;
    if let Some(pool) = &arguments.pool {
        settings.pool.clone_from(pool);
    }
    settings.max_tasks_per_child = arguments.max_tasks_per_child.or(settings.max_tasks_per_child);
    settings.max_memory_per_child = arguments.max_memory_per_child.or(settings.max_memory_per_child);
    if let Some(limit) = arguments.time_limit {
        settings.time_limit = Some(seconds("time-limit", limit)?);
    }
    if let Some(limit) = arguments.soft_time_limit {
        settings.soft_time_limit = Some(seconds("soft-time-limit", limit)?);
    }
    if let Some(level) = &arguments.loglevel {
        settings.log_level.clone_from(level);
    }
    settings.task_events |= arguments.task_events;
    settings.log_json |= arguments.log_json;
    if let Some(pause) = arguments.heartbeat_interval {
        settings.heartbeat = Some(seconds("heartbeat-interval", pause)?);
    }
    if arguments.without_heartbeat {
        settings.heartbeat = None;
    }
    if let Some(folder) = &arguments.templates {
        settings.ai.templates = Folder::Named(folder.clone());
    }
    if let Some(folder) = &arguments.tasks {
        settings.ai.tasks = Folder::Named(folder.clone());
    }
    if !arguments.ollama_host.is_empty() {
        settings.ai.hosts = arguments.ollama_host.iter().map(|url| url.as_str().into()).collect();
    }
    Ok(settings)
}

fn hostname(arguments: &Arguments) -> String {
    nodename::expand(arguments.hostname.as_deref().unwrap_or("celery"), &nodename::host())
}

/// Where the log goes, if not to stderr.
fn logfile(arguments: &Arguments) -> Option<PathBuf> {
    arguments.logfile.as_deref().map(|path| expanded(arguments, path))
}

/// A path with the parts of the node name in it: `%n` and so on.
fn expanded(arguments: &Arguments, path: &Path) -> PathBuf {
    match path.to_str() {
        Some(text) => nodename::expand_path(text, &hostname(arguments)).into(),
        None => path.to_owned(),
    }
}

/// Another worker holds the pidfile: `EX_CANTCREAT`, as Celery ends then.
fn locked(text: String) -> Stopped {
    Stopped { text, code: 73 }
}

fn options(arguments: &Arguments, settings: &Settings) -> Result<worker::Options, String> {
    let mut options = settings.worker(hostname(arguments))?;
    if options.concurrency == 0 {
        return Err("--concurrency: at least one task must be able to run".into());
    }
    let most = arguments.autoscale.map_or(0, |(most, _)| most);
    if options.concurrency.max(most) > MOST_PLACES {
        let which = if most > MOST_PLACES {
            "--autoscale"
        } else {
            "--concurrency"
        };
        return Err(format!("{which}: at most {MOST_PLACES} tasks may run at once"));
    }
    if options.queues.is_empty() {
        return Err("--queues: there is no queue left to consume".into());
    }
    options.mingle = !arguments.without_mingle;
    options.gossip = !arguments.without_gossip;
    options.autoscale = arguments.autoscale;
    if let Some(path) = &arguments.statedb {
        options.state_db = Some(path.clone());
    }
    options.conf = settings.shown();
    options.conf_defaults = crate::config::defaults();
    Ok(options)
}

/// A number, or `auto`.
fn concurrency(text: &str) -> Result<usize, String> {
    if text == "auto" {
        return Ok(std::thread::available_parallelism().map_or(1, Into::into));
    }
    text.parse()
        .map_err(|_| format!("{text:?} is neither a whole number nor auto"))
}

/// `MAX,MIN`, or `MAX` alone.
fn autoscale(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.trim().parse().map_err(|_| format!("{text:?} is no whole number"));
    let (max, min) = text.split_once(',').unwrap_or((text, "0"));
    match (number(max)?, number(min)?) {
        (max, min) if max >= 1 && min <= max => Ok((max, min)),
        _ => Err("the first is the most, at least 1, the second the fewest".into()),
    }
}

fn banner(options: &worker::Options, registry: &Registry, settings: &Settings) -> String {
    let results = options
        .backend
        .as_ref()
        .map_or_else(|| "disabled".to_owned(), ToString::to_string);
    let events = if options.task_events {
        "ON"
    } else {
        "OFF (enable -E to monitor tasks in this worker)"
    };
    let tasks: Vec<String> = registry.entries().map(|entry| format!("  . {}", entry.name)).collect();
    let hosts = settings.ai.hosts.iter().filter_map(|host| Host::new(host).ok());
    let hosts: Vec<String> = hosts.map(|host| host.url().to_owned()).collect();
    let queues: Vec<String> = options.queues.iter().map(|queue| format!("  . {queue}")).collect();
    format!(
        "orchestra {version} on {hostname}\n\
         - transport:   {broker}\n- results:     {results}\n- concurrency: {concurrency}\n- task events: {events}\n\
         - models:      {hosts}\n[queues]\n{queues}\n[tasks]\n{tasks}",
        version = env!("CARGO_PKG_VERSION"),
        hostname = options.hostname,
        broker = options.broker,
        concurrency = options.concurrency,
        hosts = hosts.join(", "),
        queues = queues.join("\n"),
        tasks = tasks.join("\n"),
    )
}
