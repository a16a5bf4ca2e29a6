//! `orchestra models`: what the model servers have, and telling them to load, unload and fetch.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::explain::explain;
use super::out::plain;
use super::program::{Common, Stopped, pretty, usage, world};
use crate::ai::ollama::{Class, Fault};
use crate::ai::{Engine, Fleet, Seen, canonical};
use crate::text::count;

#[derive(Debug, Subcommand)]
pub(super) enum Models {
    /// All models, which hosts have them, and where they are in memory
    List {
        /// Print JSON
        #[arg(short = 'j', long)]
        json: bool,
    },
    /// The hosts: calls now, models in memory, whether they answer
    Ps {
        /// Print JSON
        #[arg(short = 'j', long)]
        json: bool,
    },
    /// Load a model before it is needed
    Warm {
        /// The model
        model: String,
        /// On this host only [default: on all that have it]
        #[arg(long, value_name = "URL")]
        host: Option<String>,
        /// How long it stays: a duration such as 1h, or -1 for ever
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        keep_alive: Option<String>,
    },
    /// Throw a model out of memory, as soon as nobody uses it
    Unload {
        /// The model
        model: String,
        /// On this host only [default: on all]
        #[arg(long, value_name = "URL")]
        host: Option<String>,
    },
    /// Fetch a model
    Pull {
        /// The model
        model: String,
        /// On this host [default: the first]
        #[arg(long, value_name = "URL")]
        host: Option<String>,
    },
    /// Give a model one more name
    Copy {
        /// The model
        model: String,
        /// The other name
        name: String,
        /// On this host only [default: on all that have it]
        #[arg(long, value_name = "URL")]
        host: Option<String>,
    },
    /// Remove a model from a host's disk
    Delete {
        /// The model
        model: String,
        /// On this host
        #[arg(long, value_name = "URL")]
        host: String,
    },
    /// Which hosts the calls of a task went to, and what was known of all hosts when they were chosen
    Explain {
        /// Id of the task
        id: String,
        /// Print JSON: the records
        #[arg(short = 'j', long)]
        json: bool,
    },
    /// Tokens, seconds and calls of a day, by task, template, model and tenant; and of budgets
    Usage {
        /// The day, such as 2026-11-25 [default: today]
        #[arg(long, value_name = "DAY", value_parser = day)]
        day: Option<String>,
        /// Print JSON
        #[arg(short = 'j', long)]
        json: bool,
    },
}

/// A day, as it is written in the name of its accounts.
fn day(word: &str) -> Result<String, &'static str> {
    let day: Result<jiff::civil::Date, _> = word.parse();
    day.map(|day| day.to_string())
        .map_err(|_| "that is no day; write it as 2026-11-25")
}

impl Models {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        if let Self::Explain { id, json } = &self {
            explain(&common.client().await?, id, *json).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let options = common.settings()?.shared_ai().map_err(usage)?;
        let engine = Engine::load(&options).map_err(usage)?;
        let fleet = engine.fleet();
        match self {
            // Needs no model server.
            Self::Explain { .. } => Ok(ExitCode::SUCCESS),
            Self::List { json } => list(fleet, json).await,
            Self::Ps { json } => ps(fleet, json).await,
            Self::Warm {
                model,
                host,
                keep_alive,
            } => warm(fleet, &model, host.as_deref(), keep_alive).await?.end(),
            Self::Unload { model, host } => each(fleet, &model, host.as_deref(), "unloaded", async |host| {
                fleet.unload(host, &model).await
            })
            .await?
            .end(),
            Self::Pull { model, host } => pull(fleet, &model, host.as_deref()).await,
            Self::Copy { model, name, host } => {
                let done = format!("copied to {}", canonical(&name));
                each(fleet, &model, host.as_deref(), &done, async |host| {
                    fleet.copy(host, &model, &name).await
                })
                .await?
                .end()
            }
            Self::Delete { model, host } => each(fleet, &model, Some(&host), "deleted", async |host| {
                fleet.delete(host, &model).await
            })
            .await?
            .end(),
            Self::Usage { day, json } => used(fleet, day.as_deref(), json).await,
        }
    }
}

/// Loads models on all hosts that have them: before a batch.
pub(super) async fn warm_all(common: &Common, models: &[String]) -> Result<(), Stopped> {
    if models.is_empty() {
        return Ok(());
    }
    let options = common.settings()?.shared_ai().map_err(usage)?;
    let engine = Engine::load(&options).map_err(usage)?;
    for model in models {
        // One host that has it is enough to begin.
        match warm(engine.fleet(), model, None, None).await? {
            Done {
                worked: false,
                failed: Some(stopped),
            } => return Err(stopped),
            Done { failed, .. } => failed
                .into_iter()
                .for_each(|stopped| eprintln!("orchestra: {}", stopped.text)),
        }
    }
    Ok(())
}

async fn list(fleet: &Fleet, json: bool) -> Result<ExitCode, Stopped> {
    let (hosts, _) = fleet.seen().await.map_err(world)?;
    if json {
        let shown = hosts.iter().flat_map(|host| {
            let of = move |model: &String| json!({"model": model, "host": host.url, "in_memory": host.loaded.contains(model)});
            host.models.iter().map(of)
        });
        println!("{}", pretty(&shown.collect()));
        return ended(&hosts);
    }
    let mut models: std::collections::BTreeMap<&str, Vec<String>> = std::collections::BTreeMap::new();
    for host in &hosts {
        for model in &host.models {
            let warm = if host.loaded.contains(model) {
                " (in memory)"
            } else {
                ""
            };
            models.entry(model).or_default().push(format!("{}{warm}", host.url));
        }
    }
    for (model, places) in models {
        println!("{:<32} {}", plain(model), places.join(", "));
    }
    for host in hosts.iter().filter(|host| host.models.is_empty()) {
        eprintln!(
            "orchestra: {}: {}",
            host.url,
            if host.answers { "has no models" } else { &host.state }
        );
    }
    ended(&hosts)
}

/// It worked where at least one of the hosts said something.
fn ended(hosts: &[Seen]) -> Result<ExitCode, Stopped> {
    if hosts.iter().any(|host| host.answers) {
        return Ok(ExitCode::SUCCESS);
    }
    Err(world(
        "no model server answers; name others with --ollama-host or ai_hosts",
    ))
}

async fn ps(fleet: &Fleet, json: bool) -> Result<ExitCode, Stopped> {
    let (hosts, waiting) = fleet.seen().await.map_err(world)?;
    if json {
        println!("{}", pretty(&json!({"hosts": hosts, "waiting": waiting})));
        return ended(&hosts);
    }
    for host in &hosts {
        let calls: usize = host.calls.values().sum();
        println!(
            "{}  {} of {} calls  {}",
            host.url,
            calls,
            host.max_parallel,
            plain(&host.state)
        );
        for model in &host.loaded {
            let calls = host.calls.get(model).copied().unwrap_or(0);
            println!("  {:<32} {}", plain(model), count(calls, "call"));
        }
    }
    match waiting {
        1 => println!("1 call waits"),
        waiting => println!("{waiting} calls wait"),
    }
    ended(&hosts)
}

async fn warm(fleet: &Fleet, model: &str, host: Option<&str>, keep_alive: Option<String>) -> Result<Done, Stopped> {
    // A number is seconds; -1 is for ever.
    let keep = keep_alive.map(|text| {
        text.parse::<i64>()
            .map_or_else(|_| text.into(), serde_json::Value::from)
    });
    let all = host.is_none();
    each(fleet, model, host, "loaded", async |host| {
        if all && !fleet.has(host, model).await? {
            return Err(Fault::not_found(host.url(), "it does not have it"));
        }
        fleet.warm(host, model, keep.as_ref()).await
    })
    .await
}

/// Does something on hosts. What failed is told, and fails the command; a host that does not have the model is no
/// failure where none is named and another has it.
async fn each(
    fleet: &Fleet,
    model: &str,
    host: Option<&str>,
    done: &str,
    what: impl AsyncFn(&crate::ai::Host) -> Result<(), Fault>,
) -> Result<Done, Stopped> {
    let (mut failed, mut missing) = (Vec::new(), None);
    let mut worked = false;
    for at in fleet.named(host).map_err(usage)? {
        match what(at).await {
            Ok(()) => {
                worked = true;
                println!("{} {done} on {}", canonical(model), at.url());
            }
            Err(fault) if host.is_none() && fault.class == Class::NotFound => missing = Some(fault),
            Err(fault) => failed.push(fault),
        }
    }
    if !worked && failed.is_empty() {
        failed.extend(missing);
    }
    let told = |fault: &Fault| plain(&format!("{model}: {fault}"));
    let last = failed.pop();
    failed.iter().for_each(|fault| eprintln!("orchestra: {}", told(fault)));
    let failed = last.map(|last| world(told(&last)));
    Ok(Done { worked, failed })
}

/// What became of something that was asked of several hosts.
struct Done {
    worked: bool,
    /// The last host's failure; those of others were told.
    failed: Option<Stopped>,
}

impl Done {
    fn end(self) -> Result<ExitCode, Stopped> {
        self.failed.map_or(Ok(ExitCode::SUCCESS), Err)
    }
}

async fn pull(fleet: &Fleet, model: &str, host: Option<&str>) -> Result<ExitCode, Stopped> {
    let hosts = fleet.named(host).map_err(usage)?;
    let Some(host) = hosts.first() else {
        return Err(usage("there is no model server"));
    };
    // A terminal shows one line that changes, a file a line for each stage.
    let live = std::io::stdout().is_terminal();
    let mut last = String::new();
    let mut tell = |progress: &crate::ai::ollama::Progress| {
        let percent = (progress.completed * 100).checked_div(progress.total);
        let line = match percent {
            Some(percent) if live => format!("{} {percent} %", plain(&progress.status)),
            _ => plain(&progress.status),
        };
        if line != last {
            if live {
                print!("\r\x1b[2K{line}");
            } else {
                println!("{line}");
            }
            last = line;
        }
    };
    let pulled = fleet.pull(host, model, &mut tell).await;
    if live {
        println!();
    }
    pulled.map_err(world)?;
    println!("{} is on {}", canonical(model), host.url());
    Ok(ExitCode::SUCCESS)
}

async fn used(fleet: &Fleet, day: Option<&str>, json: bool) -> Result<ExitCode, Stopped> {
    let used = fleet.used(day).await.map_err(world)?;
    if json {
        println!("{}", pretty(&json!(used)));
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<9} {:<36} {:<6} {:>8} {:>12} {:>12} {:>10}",
        "", "", "per", "calls", "tokens in", "tokens out", "seconds"
    );
    for line in used {
        println!(
            "{:<9} {:<36} {:<6} {:>8} {:>12} {:>12} {:>10.1}",
            plain(&line.what),
            plain(&line.name),
            line.per.name(),
            line.calls,
            line.prompt_tokens,
            line.completion_tokens,
            line.seconds
        );
    }
    Ok(ExitCode::SUCCESS)
}
