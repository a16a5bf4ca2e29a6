//! `orchestra status` and `orchestra inspect`: what `celery status` and `celery inspect` show.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::doctor;
use super::program::{Common, Stopped, pretty, seconds, usage, world};

/// Methods that ask and change nothing.
const METHODS: &[&str] = &[
    "active",
    "active_queues",
    "clock",
    "conf",
    "memdump",
    "memsample",
    "ping",
    "query_task",
    "registered",
    "report",
    "reserved",
    "revoked",
    "scheduled",
    "stats",
];

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Seconds to wait for answers
    #[arg(short = 't', long, default_value_t = 1.0)]
    timeout: f64,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// What to ask: active, active_queues, clock, conf, ping, query_task, registered, report, reserved, revoked, scheduled, stats
    method: String,
    /// Arguments: ids of tasks for query_task
    arguments: Vec<String>,
    /// Ask only these workers, separated by commas
    #[arg(short = 'd', long, value_delimiter = ',')]
    destination: Option<Vec<String>>,
    /// Seconds to wait for answers
    #[arg(short = 't', long, default_value_t = 1.0)]
    timeout: f64,
    /// Print JSON
    #[arg(short = 'j', long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let timeout = seconds("timeout", self.timeout)?;
        let workers = common.client().await?.workers(timeout).await.map_err(world)?;
        if workers.is_empty() {
            return Err(world(format!("no worker answered within {} s", self.timeout)));
        }
        for worker in &workers {
            println!("->  {worker}: OK");
        }
        println!(
            "\n{} node{} online.",
            workers.len(),
            if workers.len() == 1 { "" } else { "s" }
        );
        for queue in common.dead_queues().await? {
            println!("{}", doctor::dead(&queue));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Inspect {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        if !METHODS.contains(&self.method.as_str()) {
            let meant = crate::text::closest(&self.method, METHODS.iter().copied());
            let meant = meant.map_or_else(
                || format!("use one of {}", METHODS.join(", ")),
                |close| format!("did you mean {close}?"),
            );
            return Err(usage(format!("workers cannot be asked for {:?}; {meant}", self.method)));
        }
        let arguments = match self.method.as_str() {
            "query_task" => json!({"ids": self.arguments}),
            "conf" => json!({"with_defaults": false}),
            _ => json!({}),
        };
        let timeout = seconds("timeout", self.timeout)?;
        let client = common.client().await?;
        let destination = self.destination.as_deref();
        let answers: Map<String, Value> = client
            .inspect(&self.method, &arguments, destination, timeout)
            .await
            .map_err(world)?;
        if answers.is_empty() {
            return Err(world(format!("no worker answered within {} s", self.timeout)));
        }
        if self.json {
            println!("{}", Value::Object(answers));
        } else {
            for (worker, answer) in &answers {
                println!("->  {worker}: {}", pretty(answer));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
