//! `orchestra schedule`: the schedule of beat, seen and changed while beat runs.

use std::process::ExitCode;

use clap::{ArgGroup, Args, Subcommand};
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::out::plain;
use super::program::{Common, Stopped, number_of_seconds, usage, world};
use super::send::{pairs, value};
use crate::beat::{CallOptions, Definition, Entry, Store, Stored};
use crate::broker::Broker;
use crate::clock::{self, Timestamp};

#[derive(Debug, Subcommand)]
pub(super) enum Schedule {
    /// All entries: when each was sent last and is due next
    List {
        /// Print JSON
        #[arg(short = 'j', long)]
        json: bool,
    },
    /// Add an entry, or replace one that was added here
    Add(Add),
    /// Remove an entry that was added here
    Remove {
        /// Name of the entry
        name: String,
    },
    /// Send an entry again when it is due
    Enable {
        /// Name of the entry
        name: String,
    },
    /// Do not send an entry for the time being
    Disable {
        /// Name of the entry
        name: String,
    },
    /// Send an entry now; when it is due next stays as it is
    RunNow {
        /// Name of the entry
        name: String,
    },
    /// The next times at which an entry is due
    Next {
        /// Name of the entry
        name: String,
        /// How many
        #[arg(short = 'n', long, default_value_t = 5)]
        count: usize,
    },
}

/// `orchestra schedule add tidy files.tidy /tmp --crontab '0 4 * * *'`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("when").required(true))]
pub(super) struct Add {
    /// Name of the entry
    name: String,
    /// Name of the task
    task: String,
    /// Positional arguments: JSON, or text if it is none
    args: Vec<String>,
    /// A keyword argument: JSON, or text if it is none; or all of them as one JSON object
    #[arg(
        short = 'k',
        long = "kwarg",
        visible_alias = "kwargs",
        value_name = "NAME=VALUE|JSON"
    )]
    kwargs: Vec<String>,
    /// Every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = number_of_seconds, group = "when")]
    every: Option<f64>,
    /// At full days, hours or minutes
    #[arg(long, requires = "every")]
    relative: bool,
    /// Minute, hour, day of month, month, day of week
    #[arg(long, value_name = "'M H D M W'", group = "when")]
    crontab: Option<String>,
    /// Time zone of the crontab [default: the setting timezone]
    #[arg(long, value_name = "NAME", requires = "crontab")]
    timezone: Option<String>,
    /// An event of the sun (sunrise, sunset, solar_noon, dawn_civil, …) at a latitude and a longitude
    #[arg(long, value_names = ["EVENT", "LAT", "LON"], num_args = 3, group = "when", allow_negative_numbers = true)]
    solar: Option<Vec<String>>,
    /// Queue
    #[arg(short = 'Q', long)]
    queue: Option<String>,
    /// 0 to 9; what a number means is the workers' setting
    #[arg(long)]
    priority: Option<u8>,
    /// Do not run it later than so many seconds after it was sent
    #[arg(long, value_name = "SECONDS", value_parser = number_of_seconds)]
    expires: Option<f64>,
}

impl Schedule {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let settings = common.settings()?;
        let zone = settings.beat(String::new()).map_err(usage)?.zone;
        // What is wrong with the words is said before anybody is asked.
        let added = match &self {
            Self::Add(add) => Some(add.entry(&zone)?),
            _ => None,
        };
        let broker = Broker::connect(&settings.broker().map_err(usage)?, settings.broker_options())
            .await
            .map_err(world)?;
        let store = Store::new(broker).await.map_err(world)?;
        let entries = store.entries().await.map_err(world)?;
        let known = |name: &str| entries.get(name).ok_or_else(|| unknown(name, entries.keys()));
        let read = |name: &str| {
            let stored = known(name)?;
            let entry = Entry::parse(name, &stored.text, &zone);
            entry
                .map(|entry| (entry, stored))
                .map_err(|error| world(format!("the entry {name:?} cannot be sent: {error}")))
        };
        let changeable = |name: &str, stored: Option<&Stored>| match stored {
            Some(stored) if stored.from_file => Err(usage(format!(
                "the entry {name:?} comes from a file of beat; change it there, or disable it here"
            ))),
            _ => Ok(()),
        };
        match &self {
            Self::List { json } => {
                let holder = store.holder().await.map_err(world)?;
                if *json {
                    let all: Map<String, Value> = entries
                        .iter()
                        .map(|(name, stored)| (name.clone(), shown(name, stored, &zone)))
                        .collect();
                    println!("{}", Value::Object(all));
                } else {
                    for (name, stored) in &entries {
                        println!("{}", line(name, stored, &zone));
                    }
                    let node = holder.as_deref().and_then(|token| token.split(' ').next());
                    println!(
                        "{}",
                        node.map_or_else(|| "no beat is running".into(), |node| format!("sent by {node}"))
                    );
                }
            }
            Self::Add(_) => {
                if let Some(entry) = added {
                    let known = entries.get(&entry.name);
                    changeable(&entry.name, known)?;
                    if known.is_none() {
                        // One of that name that was disabled, and went with its file, says nothing of this one.
                        store.remove(&entry.name).await.map_err(world)?;
                    }
                    store.add(&entry).await.map_err(world)?;
                }
            }
            Self::Remove { name } => {
                changeable(name, Some(known(name)?))?;
                store.remove(name).await.map_err(world)?;
            }
            Self::Enable { name } | Self::Disable { name } => {
                let enabled = matches!(self, Self::Enable { .. });
                if known(name)?.enabled != enabled {
                    store.enable(name, enabled).await.map_err(world)?;
                }
            }
            Self::RunNow { name } => {
                let (entry, _) = read(name)?;
                let pending = common.sender().await?.send(entry.call(None)).await.map_err(world)?;
                println!("{}", pending.id());
            }
            Self::Next { name, count } => {
                let (entry, stored) = read(name)?;
                let now = clock::now();
                // What was missed is made up for by one run, as soon as somebody sends.
                let mut at = entry.schedule.next(stored.last_run_at().unwrap_or(now)).max(now);
                for _ in 0..*count {
                    println!("{}", local(at, &zone));
                    at = entry.schedule.next(at);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Add {
    fn entry(&self, zone: &TimeZone) -> Result<Entry, Stopped> {
        let schedule = match (&self.crontab, &self.timezone, self.solar.as_deref()) {
            (Some(line), None, _) => json!(line),
            (_, _, Some([event, lat, lon])) => json!({"event": event, "lat": value(lat), "lon": value(lon)}),
            (Some(line), Some(zone), _) => {
                let mut fields = crate::beat::fields(line).map_err(|error| usage(format!("--crontab: {error}")))?;
                fields.insert("timezone".into(), json!(zone));
                Value::Object(fields)
            }
            (None, ..) => json!(self.every),
        };
        let definition = Definition {
            task: self.task.clone(),
            schedule,
            args: self.args.iter().map(|arg| value(arg)).collect(),
            kwargs: pairs("kwarg", &self.kwargs)?,
            options: CallOptions {
                queue: self.queue.clone(),
                priority: self.priority,
                expires: self.expires,
                ..CallOptions::default()
            },
            relative: self.relative,
        };
        Entry::new(&self.name, definition, zone).map_err(usage)
    }
}

fn unknown<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> Stopped {
    let meant = crate::text::closest(name, names.map(String::as_str));
    let meant = meant.map(|close| format!("; did you mean {close:?}?"));
    usage(format!("there is no entry {name:?}{}", meant.unwrap_or_default()))
}

/// When an entry is due next; `None` if it cannot be sent or has not been seen by beat.
fn next(name: &str, stored: &Stored, zone: &TimeZone) -> Option<Timestamp> {
    let entry = Entry::parse(name, &stored.text, zone).ok()?;
    Some(entry.schedule.next(stored.last_run_at()?)).filter(|_| stored.enabled)
}

fn shown(name: &str, stored: &Stored, zone: &TimeZone) -> Value {
    json!({
        "entry": serde_json::from_str::<Value>(&stored.text).unwrap_or_else(|_| stored.text.clone().into()),
        "enabled": stored.enabled,
        "from_file": stored.from_file,
        "last_run_at": stored.last_run_at().map(clock::iso),
        "total_run_count": stored.total_run_count,
        "next_run_at": next(name, stored, zone).map(clock::iso),
    })
}

fn line(name: &str, stored: &Stored, zone: &TimeZone) -> String {
    let count = stored.total_run_count;
    let line = match Entry::parse(name, &stored.text, zone) {
        Err(error) => format!("{name}: cannot be sent: {error}"),
        Ok(entry) => {
            let when = match next(name, stored, zone) {
                _ if !stored.enabled => "disabled".to_owned(),
                Some(at) => format!("due {}", local(at, zone)),
                None => "waits for a beat".to_owned(),
            };
            let source = if stored.from_file { " (from a file)" } else { "" };
            let Definition { task, schedule, .. } = &entry.definition;
            format!("{name}: {task} {schedule}, {when}, sent {count} times{source}")
        }
    };
    plain(&line)
}

fn local(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}
