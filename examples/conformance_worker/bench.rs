//! The tasks of the benchmark.

use std::sync::OnceLock;
use std::time::Duration;

use orchestra::task::{Context, Failure, RegisterError, Task};
use serde::Deserialize;
use serde_json::Value;

use crate::functions::Functions;
use crate::python;

#[derive(Deserialize)]
struct Add {
    x: i64,
    y: i64,
}

#[derive(Deserialize)]
struct Payload {
    s: String,
}

#[derive(Deserialize)]
struct Http {
    url: String,
}

#[derive(Deserialize)]
struct Sum {
    nums: Value,
}

impl Task for Add {
    const NAME: &'static str = "bench.add";
    type Env = ();
    type Output = i64;

    async fn run(self, (): (), _: Context) -> Result<i64, Failure> {
        Ok(self.x + self.y)
    }
}

impl Task for Payload {
    const NAME: &'static str = "bench.payload";
    type Env = ();
    type Output = usize;

    async fn run(self, (): (), _: Context) -> Result<usize, Failure> {
        Ok(self.s.len())
    }
}

impl Task for Http {
    const NAME: &'static str = "bench.http";
    type Env = ();
    type Output = usize;

    async fn run(self, (): (), _: Context) -> Result<usize, Failure> {
        let answer = http()?.get(self.url).send().await?.error_for_status()?;
        Ok(answer.bytes().await?.len())
    }
}

impl Task for Sum {
    const NAME: &'static str = "bench.tsum";
    type Env = ();
    type Output = Value;

    async fn run(self, (): (), _: Context) -> Result<Value, Failure> {
        python::sum(&self.nums)
    }
}

/// One client for all runs: connections are kept.
fn http() -> Result<&'static reqwest::Client, Failure> {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client);
    }
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
    Ok(CLIENT.get_or_init(|| client))
}

/// `bench.*`.
pub fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    functions.typed::<Add>()?;
    functions.typed::<Payload>()?;
    functions.typed::<Http>()?;
    functions.typed::<Sum>()
}
