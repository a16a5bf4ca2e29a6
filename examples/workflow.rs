//! A worker whose tasks send, replace and follow others, and a producer that composes them.
//!
//! ```sh
//! cargo run --example workflow -- --broker redis://127.0.0.1:6379/0
//! cargo run --example workflow -- run redis://127.0.0.1:6379/0
//! ```

use std::time::Duration;

use orchestra::canvas::{chain, chord, group};
use orchestra::client::{Client, Signature};
use orchestra::task::{Context, Failure, Options, Task};
use serde::Deserialize;
use serde_json::Value;

/// `flow.add(x, y)`.
#[derive(Deserialize)]
struct Add {
    x: i64,
    y: i64,
}

impl Task for Add {
    const NAME: &'static str = "flow.add";
    type Env = ();
    type Output = i64;

    async fn run(self, (): (), _: Context) -> Result<i64, Failure> {
        Ok(self.x + self.y)
    }
}

/// `flow.sum(numbers)`: the body of a chord gets the results of its header as one list.
#[derive(Deserialize)]
struct Sum {
    numbers: Vec<i64>,
}

impl Task for Sum {
    const NAME: &'static str = "flow.sum";
    type Env = ();
    type Output = i64;

    async fn run(self, (): (), _: Context) -> Result<i64, Failure> {
        Ok(self.numbers.iter().sum())
    }
}

/// `flow.careful(ms, n)`: sleeps and gives `n` back; acknowledged late, so that it is not lost with its worker.
#[derive(Deserialize)]
struct Careful {
    ms: u64,
    n: i64,
}

impl Task for Careful {
    const NAME: &'static str = "flow.careful";
    const OPTIONS: Options = Options {
        acks_late: true,
        ..Options::DEFAULT
    };
    type Env = ();
    type Output = i64;

    async fn run(self, (): (), _: Context) -> Result<i64, Failure> {
        tokio::time::sleep(Duration::from_millis(self.ms)).await;
        Ok(self.n)
    }
}

/// `flow.fail(reason, …)`.
#[derive(Deserialize)]
struct Fail {
    reason: Value,
    #[serde(default)]
    #[expect(dead_code, reason = "in a chain the result of the step before comes first")]
    more: Value,
}

impl Task for Fail {
    const NAME: &'static str = "flow.fail";
    type Env = ();
    type Output = ();

    async fn run(self, (): (), _: Context) -> Result<(), Failure> {
        let reason = match self.reason {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Err(Failure::value_error(reason))
    }
}

/// `flow.triple(n)`: puts a group in its place; the result is the list of theirs.
#[derive(Deserialize)]
struct Triple {
    n: i64,
}

impl Task for Triple {
    const NAME: &'static str = "flow.triple";
    type Env = ();
    type Output = ();

    async fn run(self, (): (), _: Context) -> Result<(), Failure> {
        let once = || Signature::new("flow.add").arg(self.n).arg(0);
        Err(Failure::replace(group([once(), once(), once()])))
    }
}

/// `flow.grow(n)`: adds `n` more tasks to the chord it is in.
#[derive(Deserialize)]
struct Grow {
    n: i64,
}

impl Task for Grow {
    const NAME: &'static str = "flow.grow";
    type Env = ();
    type Output = i64;

    async fn run(self, (): (), context: Context) -> Result<i64, Failure> {
        for n in 0..self.n {
            context.add_to_chord(Signature::new("flow.add").arg(n).arg(1)).await?;
        }
        Ok(0)
    }
}

/// `flow.apology(request, exc, traceback, ms=0)`: an error callback that runs where the failure is handled.
#[derive(Deserialize)]
struct Apology {
    request: Value,
    exc: Value,
    #[expect(dead_code, reason = "part of the call")]
    traceback: String,
    #[serde(default)]
    ms: u64,
}

impl Task for Apology {
    const NAME: &'static str = "flow.apology";
    const OPTIONS: Options = Options {
        errback_inline: true,
        ..Options::DEFAULT
    };
    type Env = ();
    type Output = ();

    async fn run(self, (): (), context: Context) -> Result<(), Failure> {
        tokio::time::sleep(Duration::from_millis(self.ms)).await;
        // Whoever waits for `sorry-<id>` hears of it.
        let text = format!("{} said {}", self.request["task"], self.exc["exc_message"][0]);
        let note = Signature::new("flow.note")
            .arg(text)
            .option("task_id", format!("sorry-{}", context.id()));
        context.apply(note).await?;
        Ok(())
    }
}

/// `flow.note(text)`: gives its argument back.
#[derive(Deserialize)]
struct Note {
    text: Value,
}

impl Task for Note {
    const NAME: &'static str = "flow.note";
    type Env = ();
    type Output = Value;

    async fn run(self, (): (), _: Context) -> Result<Value, Failure> {
        Ok(self.text)
    }
}

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, url] = &words[..]
        && word == "run"
    {
        return produce(url);
    }
    orchestra::cli::worker_main(|registry| {
        registry.register::<Add>(())?;
        registry.register::<Sum>(())?;
        registry.register::<Careful>(())?;
        registry.register::<Fail>(())?;
        registry.register::<Triple>(())?;
        registry.register::<Grow>(())?;
        registry.register::<Apology>(())?;
        registry.register::<Note>(())
    })
}

#[tokio::main]
async fn produce(url: &str) -> std::process::ExitCode {
    match workflow(url).await {
        Ok(sum) => {
            println!("the sum of it all: {sum}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("workflow: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn workflow(url: &str) -> Result<i64, orchestra::client::Error> {
    let client = Client::connect(url).await?;
    let add = |y: i64| Signature::new("flow.add").arg(y);
    // 1 + 2, then 10, 20 and 30 more at once, then all of it together, then one more.
    let all = chord([add(10), add(20), add(30)], Signature::new("flow.sum"));
    let steps = chain([add(1).arg(2), all, add(1)]);
    client.apply(steps).await?.get(Duration::from_secs(20)).await
}
