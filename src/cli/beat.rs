//! `orchestra beat`: Celery's own command line for the sender of periodic tasks.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::nodename;
use super::program::{Common, Stopped, number_of_seconds, seconds, usage, world};
use super::signals;
use crate::ai::Engine;
use crate::beat::{self, Definition, Entry};
use crate::config::Settings;

/// Name half of beat's node name, as in Celery.
const NODE: &str = "celerybeat";

#[derive(Debug, Args)]
pub(super) struct Beat {
    /// Longest sleep, in seconds [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = number_of_seconds)]
    max_interval: Option<f64>,
    /// Answer `celery inspect ping`, so that beat can be health-checked
    #[arg(long, overrides_with = "no_enable_remote_control")]
    enable_remote_control: bool,
    /// Do not, whatever the settings say
    #[arg(long)]
    no_enable_remote_control: bool,
    /// Node name; %h host, %n its first part, %d its domain [default: celerybeat@%h]
    #[arg(short = 'n', long, value_name = "NAME")]
    hostname: Option<String>,
    /// DEBUG, INFO, WARNING, ERROR or CRITICAL
    #[arg(short = 'l', long, value_name = "LEVEL")]
    loglevel: Option<String>,
    /// Write the log to a file instead of stderr
    #[arg(short = 'f', long, value_name = "FILE")]
    logfile: Option<PathBuf>,
    /// Log as JSON, one object per line
    #[arg(long)]
    log_json: bool,
    /// Accepted for compatibility: the schedule is kept in Redis
    #[arg(short = 's', long, value_name = "FILE")]
    schedule: Option<PathBuf>,
    /// Accepted for compatibility: there is one scheduler
    #[arg(short = 'S', long, value_name = "CLASS")]
    scheduler: Option<String>,
    /// Accepted for compatibility, with a word about it: there is no Python app here
    #[arg(short = 'A', long, value_name = "APP")]
    app: Option<String>,
}

impl Beat {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let mut settings = common.settings()?;
        // A worker beside it may run programs, with the same settings and the same user.
        crate::ai::close_to_programs(&settings.ai.permits).map_err(world)?;
        if let Some(level) = &self.loglevel {
            settings.log_level.clone_from(level);
        }
        let without_effect = [
            ("-s", self.schedule.is_some(), "the schedule is kept in Redis"),
            (
                "-S",
                self.scheduler.is_some(),
                "there is one scheduler, and it keeps the schedule in Redis",
            ),
            (
                "-A",
                self.app.is_some(),
                "the schedule is in orchestra.toml, tasks/*.yaml and Redis (docs/beat.md)",
            ),
        ];
        let log = super::log::start(
            "orchestra",
            &settings.log_level,
            self.logfile.as_deref(),
            settings.log_json | self.log_json,
        )
        .map_err(usage)?;
        for (option, _, why) in without_effect.iter().filter(|(_, given, _)| *given) {
            log.warn(format_args!("{option} has no effect: {why}"));
        }
        let engine = Engine::load(&settings.ai).map_err(usage)?;
        let (mut options, entries) = plan(&settings, &engine)?;
        if let Some(name) = &self.hostname {
            // As in Celery, a name without `@` is a host.
            let name = if name.contains('@') {
                name.clone()
            } else {
                format!("{NODE}@{name}")
            };
            options.hostname = nodename::expand(&name, &nodename::host());
        }
        // As in Celery, 0 is the default.
        if let Some(longest) = self.max_interval.filter(|longest| *longest != 0.0) {
            options.max_interval = seconds("max-interval", longest)?;
        }
        options.remote_control =
            (options.remote_control || self.enable_remote_control) && !self.no_enable_remote_control;
        let stop = signals::asked_to_stop(Some((log.clone(), "`orchestra schedule list` shows what beat sends")))
            .map_err(|error| world(format!("cannot listen to signals: {error}")))?;
        let beat = start(&settings, options, entries).await?;
        log.say("beat is ready");
        beat.run(stop).await;
        Ok(ExitCode::SUCCESS)
    }
}

/// The options of beat, and the entries of all files.
pub(super) fn plan(settings: &Settings, engine: &Engine) -> Result<(beat::Options, Vec<Entry>), Stopped> {
    let hostname = nodename::expand(NODE, &nodename::host());
    let options = settings.beat(hostname).map_err(usage)?;
    let mut entries = settings.beat_schedule(&options.zone).map_err(usage)?;
    for task in engine.scheduled() {
        if entries.iter().any(|entry| entry.name == task.name) {
            let place = &task.place;
            return Err(usage(format!(
                "{place}: beat_schedule has an entry {:?} already",
                task.name
            )));
        }
        let definition = Definition {
            task: task.name.clone(),
            schedule: task.schedule.clone(),
            args: Vec::new(),
            kwargs: serde_json::Map::new(),
            options: beat::CallOptions::default(),
            relative: false,
        };
        let entry = Entry::new(&task.name, definition, &options.zone);
        entries.push(entry.map_err(|error| usage(format!("{}: {error}", task.place)))?);
    }
    Ok((options, entries))
}

/// Connects beat.
pub(super) async fn start(
    settings: &Settings,
    options: beat::Options,
    entries: Vec<Entry>,
) -> Result<beat::Beat, Stopped> {
    let endpoint = settings.broker().map_err(usage)?;
    let sending = settings.sending().map_err(usage)?;
    beat::Beat::connect(&endpoint, settings.broker_options(), sending, options, entries)
        .await
        .map_err(world)
}
