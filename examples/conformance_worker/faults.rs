//! The tasks of the fault injection. Each tells a ledger, a Redis that no fault touches, what happened to it.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use orchestra::task::{Context, Exception, Failure, Options, RegisterError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::functions::Functions;
use crate::python;
use crate::store::Store;

#[derive(Deserialize)]
struct Record {
    n: Value,
    #[serde(default)]
    ms: u64,
}

#[derive(Deserialize)]
struct Boom {
    n: Value,
}

#[derive(Deserialize)]
struct Retry {
    n: Value,
    #[serde(default = "two")]
    fail_times: u32,
}

fn two() -> u32 {
    2
}

#[derive(Deserialize)]
struct Die {
    n: Value,
    #[serde(default = "nine")]
    sig: i32,
}

fn nine() -> i32 {
    9
}

#[derive(Deserialize)]
struct Hog {
    n: Value,
    #[serde(default = "megabytes")]
    mb: usize,
}

fn megabytes() -> usize {
    256
}

#[derive(Deserialize)]
struct Body {
    parts: Value,
    #[serde(default)]
    n: Value,
}

/// Where notes go, and who writes them.
#[derive(Clone)]
struct Ledger {
    store: Store,
    node: Arc<str>,
}

impl Ledger {
    fn from_environment() -> Self {
        Self {
            store: Store::new(&variable("FAULTS_LEDGER", "redis://127.0.0.1:7403/0")),
            node: variable("FAULTS_NODE", "?").into(),
        }
    }

    async fn note(&self, context: &Context, phase: &str, n: &Value, parts: Option<usize>) -> Result<(), Failure> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the ledger compares clocks of several processes, also where one of them is set"
        )]
        let now = std::time::SystemTime::now();
        let details = context.details();
        let mut note = json!({
            "id": details.id,
            "n": n,
            "node": self.node,
            "pid": std::process::id(),
            "t": now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            "steady": Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_secs_f64(),
            "redelivered": details.redelivered,
            "retries": details.retries,
        });
        if let Some(parts) = parts {
            note["parts"] = parts.into();
        }
        Ok(self.store.push(&format!("faults:{phase}"), &note.to_string()).await?)
    }

    /// Both notes around a sleep.
    async fn record(self, Record { n, ms }: Record, context: Context) -> Result<Value, Failure> {
        self.note(&context, "start", &n, None).await?;
        tokio::time::sleep(Duration::from_millis(ms)).await;
        self.note(&context, "done", &n, None).await?;
        Ok(n)
    }

    async fn boom(self, Boom { n }: Boom, context: Context) -> Result<(), Failure> {
        self.note(&context, "start", &n, None).await?;
        Err(Exception::runtime_error(format!("boom {n}")).into())
    }

    async fn retry(self, Retry { n, fail_times }: Retry, context: Context) -> Result<Value, Failure> {
        self.note(&context, "start", &n, None).await?;
        if context.retries() < fail_times {
            return Err(Failure::Retry {
                after: Some(Duration::from_millis(500)),
                cause: None,
                arguments: None,
            });
        }
        self.note(&context, "done", &n, None).await?;
        Ok(n)
    }

    /// Kills the process it runs in.
    async fn die(self, Die { n, sig }: Die, context: Context) -> Result<(), Failure> {
        self.note(&context, "start", &n, None).await?;
        kill(Pid::this(), Signal::try_from(sig)?)?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(())
    }

    async fn hog(self, Hog { n, mb }: Hog, context: Context) -> Result<usize, Failure> {
        self.note(&context, "start", &n, None).await?;
        // Not zero: pages of zeros are not real until they are written.
        let memory = vec![1_u8; mb << 20];
        self.note(&context, "done", &n, None).await?;
        Ok(std::hint::black_box(memory).len())
    }

    async fn body(self, Body { parts, n }: Body, context: Context) -> Result<Value, Failure> {
        let count = parts.as_array().map_or(0, Vec::len);
        self.note(&context, "body", &n, Some(count)).await?;
        python::sum(&parts)
    }
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// `faults.*`.
pub fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let options = Options {
        acks_late: variable("FAULTS_ACKS_LATE", "1") == "1",
        ..Options::DEFAULT
    };
    let ledger = Ledger::from_environment();
    let own = ledger.clone();
    functions.add("faults.record", options.clone(), move |a, c| own.clone().record(a, c))?;
    let own = ledger.clone();
    let early = Options {
        acks_late: false,
        ..Options::DEFAULT
    };
    functions.add("faults.early", early, move |a, c| own.clone().record(a, c))?;
    let own = ledger.clone();
    functions.add("faults.chord_part", options.clone(), move |a, c| {
        own.clone().record(a, c)
    })?;
    let own = ledger.clone();
    functions.add("faults.boom", options.clone(), move |a, c| own.clone().boom(a, c))?;
    let own = ledger.clone();
    functions.add("faults.retry", options.clone(), move |a, c| own.clone().retry(a, c))?;
    let own = ledger.clone();
    functions.add("faults.die", options.clone(), move |a, c| own.clone().die(a, c))?;
    let own = ledger.clone();
    functions.add("faults.hog", options.clone(), move |a, c| own.clone().hog(a, c))?;
    functions.add("faults.chord_body", options, move |a, c| ledger.clone().body(a, c))
}
