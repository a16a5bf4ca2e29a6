//! A worker with three tasks of its own.
//!
//! ```sh
//! cargo run --example hello_task -- -l INFO
//! python -c "from celery import Celery
//! app = Celery(broker='redis://', backend='redis://')
//! print(app.send_task('hello.add', (2, 3)).get(timeout=5))"
//! ```

use std::time::Duration;

use orchestra::task::{Context, Exception, Failure, Options, Task};
use serde::Deserialize;

/// `hello.add(x, y=0)`.
#[derive(Deserialize)]
struct Add {
    x: i64,
    #[serde(default)]
    y: i64,
}

impl Task for Add {
    const NAME: &'static str = "hello.add";
    type Env = ();
    type Output = i64;

    async fn run(self, (): (), _: Context) -> Result<i64, Failure> {
        self.x.checked_add(self.y).ok_or_else(|| Failure::value_error("the sum is too large"))
    }
}

/// `hello.sleep(seconds)`: late acks, progress, and it can be revoked while it runs.
#[derive(Deserialize)]
struct Sleep {
    seconds: u64,
}

impl Task for Sleep {
    const NAME: &'static str = "hello.sleep";
    const OPTIONS: Options = Options { acks_late: true, track_started: true, ..Options::DEFAULT };
    type Env = ();
    type Output = String;

    async fn run(self, (): (), context: Context) -> Result<String, Failure> {
        for second in 0..self.seconds {
            context.progress(second, self.seconds).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok("rested".into())
    }
}

/// `hello.flaky(fails=2)`: fails that often, is tried again each time, and then succeeds.
#[derive(Deserialize)]
struct Flaky {
    fails: u32,
}

impl Task for Flaky {
    const NAME: &'static str = "hello.flaky";
    type Env = ();
    type Output = u32;

    async fn run(self, (): (), context: Context) -> Result<u32, Failure> {
        if context.retries() < self.fails {
            let cause = Exception::builtin("ConnectionError", "not yet");
            return Err(Failure::retry_after(Duration::from_millis(100), cause));
        }
        Ok(context.retries())
    }
}

fn main() -> std::process::ExitCode {
    orchestra::cli::worker_main(|registry| {
        registry.register::<Add>(())?;
        registry.register::<Sleep>(())?;
        registry.register::<Flaky>(())
    })
}
