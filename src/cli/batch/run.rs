//! `orchestra batch run`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args};
use futures_util::StreamExt;
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use serde_json::{Map, Value};

use super::journal::{Ended, Journal, Line};
use super::rows::rows;
use crate::cli::models;
use crate::cli::program::{Common, Stopped, usage, world};
use crate::cli::send::pairs;
use crate::client::{Call, Error};
use crate::text;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub(in crate::cli) struct Run {
    /// Rows: one JSON object (or list) per line, or a file `….csv` with a head
    rows: PathBuf,
    /// Template that is run with each row as its parameters
    #[arg(short = 't', long, group = "what")]
    template: Option<String>,
    /// Task that is called with each row as its arguments
    #[arg(long, group = "what")]
    task: Option<String>,
    /// A parameter that all rows have unless they have it themselves: JSON, or text if it is none
    #[arg(short = 'p', long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
    /// File of results [default: the rows' with `.results.jsonl`]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How many rows are sent and not yet done at any time
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    /// Run rows again that failed
    #[arg(long)]
    retry_failed: bool,
    /// A column of CSV that holds JSON, not text; may be given several times
    #[arg(long = "json-column", value_name = "NAME")]
    json_columns: Vec<String>,
    /// Queue
    #[arg(short = 'Q', long)]
    queue: Option<String>,
    /// 0 to 9; what a number means is the workers' setting
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// A model that is loaded, on all hosts that have it, before the first row is sent; may be given several times
    #[arg(long, value_name = "MODEL")]
    warm: Vec<String>,
    /// No progress bar
    #[arg(short, long)]
    quiet: bool,
}

/// What of a row is remembered while it runs.
struct Sent {
    row: u64,
    attempt: u32,
    id: String,
    input: Value,
}

/// What has come of the rows.
#[derive(Default)]
struct Count {
    done: u64,
    failed: u64,
    tokens: u64,
}

impl Count {
    fn add(&mut self, succeeded: bool, tokens: u64) {
        self.done += 1;
        self.failed += u64::from(!succeeded);
        self.tokens += tokens;
    }

    fn show(&self, bar: &ProgressBar) {
        let tokens = if self.tokens > 0 {
            format!(" · {} tokens", self.tokens)
        } else {
            String::new()
        };
        let failed = if self.failed > 0 {
            format!(" · {} failed", self.failed)
        } else {
            String::new()
        };
        bar.set_message(format!("{tokens}{failed}"));
    }
}

impl Run {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let output = match &self.output {
            Some(output) => output.clone(),
            None => self.rows.with_extension("results.jsonl"),
        };
        let fixed = pairs("param", &self.params)?;
        self.is_file()?;
        let task = self.task.as_deref().unwrap_or("orchestra.run");
        let (mut journal, known) = Journal::open(&output, task, self.template.as_deref()).map_err(world)?;
        let batch = known.head.batch;
        let last = known.last;
        // Every row is looked at before the first is sent: a mistake in the last one would be found an hour late.
        let mut total = 0;
        for row in rows(&self.rows, &self.json_columns).map_err(usage)? {
            self.check(total, &row.map_err(usage)?, &last, &fixed)?;
            total += 1;
        }
        let known = || {
            last.range(..total)
                .map(|(_, ended)| ended)
                .filter(|ended| self.keeps(ended))
        };
        if total > known().count() as u64 {
            models::warm_all(common, &self.warm).await?;
        }
        let client = common.client().await?;
        let bar = self.bar(total);
        let mut count = Count::default();
        known().for_each(|ended| count.add(ended.succeeded, ended.tokens));
        count.show(&bar);
        bar.set_position(count.done);
        bar.reset_eta();

        // The rows are read again as they are sent: what is in memory is those in flight.
        let wrong = RefCell::new(None);
        let rows = rows(&self.rows, &self.json_columns).map_err(usage)?;
        let rows = rows.map_while(|row| row.map_err(|error| *wrong.borrow_mut() = Some(error)).ok());
        let calls = (0_u64..total).zip(rows).filter_map(|(row, input)| {
            let attempt = match last.get(&row) {
                None => 0,
                Some(ended) if self.keeps(ended) => return None,
                Some(ended) => ended.attempt + 1,
            };
            let id = format!("{batch}-{row}-{attempt}");
            let call = self.call(task, &id, &input, &fixed);
            let sent = Sent {
                row,
                attempt,
                id,
                input,
            };
            Some((sent, call))
        });
        let mut ends = pin!(client.run_all(calls, self.in_flight.into()));
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        loop {
            let (sent, ended) = tokio::select! {
                next = ends.next() => match next {
                    Some(end) => end,
                    None => break,
                },
                _ = &mut interrupted => {
                    bar.abandon();
                    let left = total.saturating_sub(count.done);
                    let text = format!("stopped with {} left; the same command goes on, and sends no row twice", text::count(left, "row"));
                    return Err(Stopped { text, code: 130 });
                }
            };
            let line = sent.end(ended).map_err(world)?;
            journal.append(&line).map_err(world)?;
            count.add(line.succeeded(), line.tokens());
            count.show(&bar);
            bar.inc(1);
        }
        bar.abandon();
        if let Some(error) = wrong.take() {
            return Err(world(error));
        }
        let Count { done, failed, .. } = count;
        if done < total {
            return Err(world(format!(
                "{} had {}, and only {done} were there when they were sent: leave the file as it is until the \
                 batch is done",
                self.rows.display(),
                text::count(total, "row")
            )));
        }
        eprintln!(
            "{}, {failed} failed; results are in {}",
            text::count(done, "row"),
            output.display()
        );
        if failed > 0 {
            eprintln!(
                "`orchestra batch failed {}` lists them, --retry-failed runs them again",
                output.display()
            );
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// A pipe has its rows once, and they are read twice: to find mistakes, and to send them.
    fn is_file(&self) -> Result<(), Stopped> {
        let shown = self.rows.display();
        let about = std::fs::metadata(&self.rows).map_err(|error| usage(format!("cannot read {shown}: {error}")))?;
        if about.is_file() {
            return Ok(());
        }
        Err(usage(format!(
            "{shown} is no regular file, and rows are read twice, first to check them: write them to a file"
        )))
    }

    /// Whether a row that ended is left as it is.
    fn keeps(&self, ended: &Ended) -> bool {
        ended.succeeded || !self.retry_failed
    }

    fn check(
        &self,
        row: u64,
        input: &Value,
        last: &BTreeMap<u64, Ended>,
        fixed: &Map<String, Value>,
    ) -> Result<(), Stopped> {
        let shown = self.rows.display();
        if input.is_array() && (self.template.is_some() || !fixed.is_empty()) {
            return Err(usage(format!(
                "{shown}: row {row} is a list, and parameters have names: write an object"
            )));
        }
        match last.get(&row) {
            Some(ended) if !ended.is_of(input) => Err(usage(format!(
                "{shown}: row {row} is not the one that was run before; name another file of results with --output"
            ))),
            _ => Ok(()),
        }
    }

    fn call(&self, task: &str, id: &str, input: &Value, fixed: &Map<String, Value>) -> Call {
        let mut call = Call::new(task).task_id(id);
        if let Some(queue) = &self.queue {
            call = call.queue(queue.clone());
        }
        if let Some(priority) = self.priority {
            call = call.priority(priority);
        }
        let mut named = fixed.clone();
        match input {
            Value::Array(items) => return items.iter().fold(call, Call::arg),
            Value::Object(fields) => named.extend(fields.clone()),
            _ => {}
        }
        match &self.template {
            Some(template) => call.kwarg("template", template).kwarg("params", named),
            None => named
                .into_iter()
                .fold(call, |call, (name, value)| call.kwarg(name, value)),
        }
    }

    fn bar(&self, total: u64) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} · {per_sec} · {left}{msg}");
        let bar = ProgressBar::new(total);
        if let Ok(style) = style {
            // Nobody knows how long it takes while nothing is done.
            let left = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = match state.eta() {
                    left if left.is_zero() && state.pos() < state.len().unwrap_or(0) => write!(out, "… left"),
                    left => write!(out, "{} left", HumanDuration(left)),
                };
            };
            bar.set_style(style.with_key("left", left));
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }
}

impl Sent {
    /// The line of a row that ended; the error is of the batch, not of the row.
    fn end(self, ended: Result<Value, Error>) -> Result<Line, Error> {
        let (state, result, error) = match ended {
            Ok(value) => ("SUCCESS", Some(value), None),
            Err(Error::Failed { exception, .. }) => ("FAILURE", None, Some(exception.repr())),
            Err(Error::Revoked(text)) => ("REVOKED", None, Some(format!("TaskRevokedError({text:?})"))),
            Err(error) => return Err(error),
        };
        Ok(Line {
            row: self.row,
            attempt: self.attempt,
            id: self.id,
            state: state.to_owned(),
            input: self.input,
            result,
            error,
        })
    }
}
