//! `orchestra templates run`: a template without broker and worker, shown as it runs.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::out::plain_lines;
use super::program::{Common, Stopped, pretty, world};
use super::templates::{Params, failure, pairs};
use crate::ai::{Engine, Recorded};
use crate::task::{Context, Details, Exception, Failure, Note};

/// Notes that may wait to be shown.
const NOTES: usize = 1024;

/// Runs a template here.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Name of the template
    name: String,
    #[command(flatten)]
    params: Params,
    /// What a step gives instead of doing its work; for models and for steps that wait for others
    #[arg(long = "answer", value_name = "STEP=VALUE")]
    answers: Vec<String>,
    /// Show the result only
    #[arg(short = 'q', long)]
    quiet: bool,
}

impl Run {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let answers = pairs(&self.answers, "--answer")?;
        let engine = common.engine()?.with_recorded(Recorded::new(answers, false));
        let params = self.params.read()?;
        let shown = if self.quiet { None } else { Some(Shown::default()) };
        match run_here(&engine, &self.name, params, shown).await {
            Ok(Value::String(text)) => println!("{text}"),
            Ok(value) => println!("{}", pretty(&value)),
            Err(Failure::Fail(exception)) if exception.name == "TemplateNotFound" => {
                return Err(failure(Failure::Fail(exception)));
            }
            Err(failed) => return Err(world(why(&failed))),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs a template in this process; what it says goes to `shown`.
pub(super) async fn run_here(
    engine: &Engine,
    name: &str,
    params: Map<String, Value>,
    mut shown: Option<Shown>,
) -> Result<Value, Failure> {
    let template = engine.template(name)?;
    let details = Details {
        id: uuid::Uuid::new_v4().to_string().into(),
        name: name.into(),
        hostname: "here".into(),
        ..Details::default()
    };
    let (notes, mut heard) = mpsc::channel(NOTES);
    let context = Context::new(details, notes, None);
    let mut running = Box::pin(engine.run(&template, params, &context));
    let result = loop {
        tokio::select! {
            biased;
            Some(note) = heard.recv() => if let Some(shown) = &mut shown { shown.note(&note) },
            result = &mut running => break result,
        }
    };
    if let Some(shown) = &mut shown {
        while let Ok(note) = heard.try_recv() {
            shown.note(&note);
        }
        shown.line();
    }
    result
}

/// A failure in words.
pub(super) fn why(failure: &Failure) -> String {
    match failure {
        Failure::Fail(exception) => exception.to_string(),
        Failure::Retry { cause, .. } => cause
            .as_ref()
            .map_or_else(|| "it would be tried again".to_owned(), Exception::to_string),
        other => format!("{other:?}"),
    }
}

/// Shows what a run says on stderr, so that stdout has the result alone.
#[derive(Debug, Default)]
pub(super) struct Shown {
    in_line: bool,
}

impl Shown {
    fn note(&mut self, note: &Note) {
        let Note::Stream(_, entry) = note else { return };
        let Ok(entry) = serde_json::from_str::<Value>(entry.get()) else {
            return;
        };
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("type") {
            "token" => {
                eprint!("{}", plain_lines(text("text")));
                let _ = std::io::stderr().flush();
                self.in_line = true;
            }
            "step" => {
                self.line();
                let more = text("text");
                let more = if more.is_empty() {
                    String::new()
                } else {
                    format!(": {more}")
                };
                eprintln!("· {} {}{more}", text("step"), text("status"));
            }
            "repair" => {
                self.line();
                eprintln!("· {} asked again: the answer {}", text("step"), text("wrong"));
            }
            "fallback" => {
                self.line();
                eprintln!("· {} not with {}: {}", text("step"), text("model"), text("why"));
            }
            _ => {}
        }
    }

    fn line(&mut self) {
        if std::mem::take(&mut self.in_line) {
            eprintln!();
        }
    }
}
