//! `orchestra control`: what `celery control` tells workers.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::commands::{Audience, Kind, find, list};
use super::program::{Common, Stopped, usage};

#[derive(Debug, Args)]
pub(super) struct Control {
    /// What to tell; `list` shows what there is
    method: String,
    /// Its arguments, in the order of `celery control`
    arguments: Vec<String>,
    #[command(flatten)]
    audience: Audience,
}

impl Control {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        if self.method == "list" {
            println!("{}", list(Kind::Control));
            return Ok(ExitCode::SUCCESS);
        }
        let command = find(Kind::Control, &self.method).map_err(usage)?;
        let arguments = command.arguments(&self.arguments).map_err(usage)?;
        if command.name == "shutdown" {
            self.audience
                .tell(&common.client().await?, command.name, &arguments)
                .await?;
            println!("asked to shut down");
            return Ok(ExitCode::SUCCESS);
        }
        let answers = self.audience.ask(common, command.name, &arguments).await?;
        let failed = answers.values().any(|answer| answer.get("error").is_some());
        if self.audience.json {
            println!("{}", Value::Object(answers));
        } else {
            for (worker, answer) in &answers {
                println!("->  {worker}: {}", shown(answer));
            }
        }
        Ok(ExitCode::from(u8::from(failed)))
    }
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
