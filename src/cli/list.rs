//! `orchestra list bindings`: what `celery list bindings` shows.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::program::{Common, Stopped, pretty, world};
use super::table::Table;

#[derive(Debug, Subcommand)]
pub(super) enum List {
    /// Which queues hang on which exchanges
    Bindings {
        /// Print JSON
        #[arg(short = 'j', long)]
        json: bool,
    },
}

impl List {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let Self::Bindings { json } = self;
        let broker = common.broker(&common.settings()?).await?;
        let bindings = broker.bindings().await.map_err(world)?;
        if json {
            let shown = bindings.iter().map(
                |binding| json!({"queue": binding.queue, "exchange": binding.exchange, "routing_key": binding.routing_key}),
            );
            println!("{}", pretty(&shown.collect::<Value>()));
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(&["QUEUE", "EXCHANGE", "ROUTING KEY"]);
        for binding in bindings {
            table.row([binding.queue, binding.exchange, binding.routing_key]);
        }
        print!("{table}");
        Ok(ExitCode::SUCCESS)
    }
}
