//! `orchestra doctor`: looks at everything a task needs, and says what to do about what is missing.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::out::{plain, plain_lines};
use super::program::{Common, Stopped, dead_queues};
use crate::beat::Store;
use crate::broker::{Broker, DeadQueue};
use crate::config::Settings;
use crate::conn::{Link, LinkOptions};
use crate::text::count;

#[derive(Debug, Args)]
pub(super) struct Doctor {}

/// What was found; anything bad makes the command fail.
#[derive(Default)]
struct Report {
    bad: bool,
}

impl Report {
    fn good(&self, text: impl ToString) {
        self.line("ok  ", text);
    }

    fn note(&self, text: impl ToString) {
        self.line("note", text);
    }

    fn bad(&mut self, text: impl ToString) {
        self.bad = true;
        self.line("BAD ", text);
    }

    fn line(&self, mark: &str, text: impl ToString) {
        println!("{mark}  {}", plain_lines(&text.to_string()));
    }
}

impl Doctor {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let mut report = Report::default();
        let settings = common.settings()?;
        match common.client().await {
            Ok(client) => {
                report.good(format_args!(
                    "Redis answers and lets us use it ({})",
                    settings.shown()["broker_url"]
                ));
                match client.workers(Duration::from_secs(1)).await {
                    Ok(workers) if workers.is_empty() => {
                        report.note("no worker is running; start one with orchestra-worker")
                    }
                    Ok(workers) => report.good(format!("workers: {}", plain(&workers.join(", ")))),
                    Err(error) => report.bad(error),
                }
                periodic(&settings, &mut report).await;
                redis(&settings, &mut report).await;
            }
            Err(stopped) => report.bad(stopped.text),
        }
        match common.engine() {
            Ok(engine) => {
                report.good(super::templates::in_order(&engine));
                for host in engine.fleet().hosts() {
                    match engine.fleet().ollama().version(&host.server).await {
                        Ok(version) => {
                            report.good(format_args!("Ollama {} answers at {}", plain(&version), host.url()))
                        }
                        Err(fault) => report.bad(plain(&fault.to_string())),
                    }
                }
            }
            Err(stopped) => report.bad(stopped.text),
        }
        Ok(if report.bad {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// What can lose messages, and which could not be run.
async fn redis(settings: &Settings, report: &mut Report) {
    let Ok(endpoint) = settings.broker() else { return };
    let seen = async {
        let broker = Broker::connect(&endpoint, settings.broker_options()).await?;
        let mut advice = crate::conn::advice(broker.writer()).await;
        if let Ok(Some(results)) = settings.backend()
            && !results.is_same_server(&endpoint)
        {
            let link = Link::connect(&results, LinkOptions::default()).await?;
            advice.extend(crate::conn::advice_on_results(&link).await);
        }
        advice.into_iter().for_each(|line| report.note(line));
        dead_queues(&broker, settings).await
    };
    match seen.await {
        Ok(queues) => queues.iter().for_each(|queue| report.note(dead(queue))),
        Err(error) => report.bad(error),
    }
}

/// A line about the dead letters of a queue.
pub(super) fn dead(queue: &DeadQueue) -> String {
    let (name, letters) = (plain(&queue.name), queue.letters);
    format!(
        "queue {name:?} has {} that could not be run; orchestra dead list -Q {name} says why",
        count(letters, "message")
    )
}

/// Whether periodic tasks are sent, if there are any.
async fn periodic(settings: &Settings, report: &mut Report) {
    let Ok(endpoint) = settings.broker() else { return };
    let seen = async {
        let store = Store::new(Broker::connect(&endpoint, settings.broker_options()).await?).await?;
        Ok::<_, crate::broker::Error>((store.entries().await?.len(), store.holder().await?))
    };
    match seen.await {
        Ok((0, None)) => {}
        Ok((count, None)) => report.note(format_args!(
            "no beat is running, but the schedule has entries ({count}); start orchestra beat, or workers with -B"
        )),
        Ok((count, Some(token))) => {
            let node = plain(token.split(' ').next().unwrap_or_default());
            report.good(format_args!("periodic tasks are sent by {node} ({count} entries)"));
        }
        Err(error) => report.bad(error),
    }
}
