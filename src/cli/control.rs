//! `orchestra control`: what `celery control` tells workers.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value};

use super::commands::{Audience, Kind, find, list};
use super::out::plain;
use super::program::{Common, Stopped, usage};

#[derive(Debug, Args)]
pub(super) struct Control {
    /// What to tell; `list` shows what there is
    #[arg(required_unless_present = "list")]
    method: Option<String>,
    /// Its arguments, in the order of `celery control`
    arguments: Vec<String>,
    /// Show what there is
    #[arg(short = 'l', long)]
    list: bool,
    #[command(flatten)]
    audience: Audience,
}

impl Control {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let method = self.method.filter(|_| !self.list).unwrap_or_else(|| "list".into());
        if method == "list" {
            println!("{}", list(Kind::Control));
            return Ok(ExitCode::SUCCESS);
        }
        let command = find(Kind::Control, &method).map_err(usage)?;
        let arguments = command.arguments(&self.arguments).map_err(usage)?;
        if command.name == "shutdown" {
            self.audience
                .tell(&common.sender().await?, command.name, &arguments)
                .await?;
            // Nobody answers: they are busy with it.
            println!("{}", if self.audience.json { "{}" } else { "asked to shut down" });
            return Ok(ExitCode::SUCCESS);
        }
        let answers = self.audience.ask(common, command.name, &arguments).await?;
        Ok(told(answers, self.audience.json))
    }
}

/// Prints what workers answered to an order; it failed when it failed anywhere.
pub(super) fn told(answers: Map<String, Value>, json: bool) -> ExitCode {
    let failed = answers.values().any(|answer| answer.get("error").is_some());
    if json {
        println!("{}", Value::Object(answers));
    } else {
        for (worker, answer) in &answers {
            println!("{}", plain(&format!("->  {worker}: {}", shown(answer))));
        }
    }
    ExitCode::from(u8::from(failed))
}

/// What a worker answers to a command.
pub(super) fn shown(answer: &Value) -> String {
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    match (text("ok"), text("error")) {
        (Some(text), _) => text.to_owned(),
        (_, Some(text)) => format!("error: {text}"),
        _ => "done".to_owned(),
    }
}
