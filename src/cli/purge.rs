//! `orchestra purge`: what `celery purge` does, with its question.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::out::plain;
use super::program::{Common, Stopped, queue_names, usage, world};

/// Deletes what waits. What workers hold already, and dead letters, stay.
#[derive(Debug, Args)]
pub(super) struct Purge {
    /// Do not ask
    #[arg(short = 'f', long)]
    force: bool,
    /// These queues, separated by commas [default: those that a worker started here would consume]
    #[arg(short = 'Q', long, value_name = "QUEUES", value_delimiter = ',')]
    queues: Vec<String>,
    /// Not these
    #[arg(short = 'X', long, value_name = "QUEUES", value_delimiter = ',')]
    exclude_queues: Vec<String>,
}

impl Purge {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let settings = common.settings()?;
        let named = if self.queues.is_empty() {
            &settings.queues
        } else {
            &self.queues
        };
        queue_names("queues", named).map_err(usage)?;
        let queues: BTreeSet<&String> = named
            .iter()
            .filter(|queue| !self.exclude_queues.contains(queue))
            .collect();
        if queues.is_empty() {
            return Err(usage("there is no queue left to purge"));
        }
        let names = queues.iter().map(|queue| plain(queue)).collect::<Vec<_>>().join(", ");
        if !self.force && !confirmed(&names)? {
            return Err(world("nothing was deleted"));
        }
        let broker = common.broker(&settings).await?;
        let queues: Vec<Arc<str>> = queues.into_iter().map(|queue| queue.as_str().into()).collect();
        let count = broker.purge(&queues).await.map_err(world)?;
        println!("purged {} from {names}", crate::text::count(count, "message"));
        Ok(ExitCode::SUCCESS)
    }
}

fn confirmed(names: &str) -> Result<bool, Stopped> {
    if !std::io::stdin().is_terminal() {
        return Err(usage(format!(
            "this would delete all messages that wait in {names}; say --force to do it"
        )));
    }
    eprintln!("this deletes all messages that wait in {names}, and cannot be undone.");
    super::dead::yes("are you sure?")
}
