//! A worker with tasks of its own.
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
        self.x
            .checked_add(self.y)
            .ok_or_else(|| Failure::value_error("the sum is too large"))
    }
}

/// `hello.sleep(seconds)`: late acks, progress, and it can be revoked while it runs.
#[derive(Deserialize)]
struct Sleep {
    seconds: u64,
}

impl Task for Sleep {
    const NAME: &'static str = "hello.sleep";
    const OPTIONS: Options = Options {
        acks_late: true,
        track_started: true,
        ..Options::DEFAULT
    };
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

/// `hello.nap(ms, n)`: sleeps and gives `n` back.
#[derive(Deserialize)]
struct Nap {
    ms: u64,
    n: u64,
}

impl Task for Nap {
    const NAME: &'static str = "hello.nap";
    type Env = ();
    type Output = u64;

    async fn run(self, (): (), _: Context) -> Result<u64, Failure> {
        tokio::time::sleep(Duration::from_millis(self.ms)).await;
        Ok(self.n)
    }
}

/// `hello.panic(ended=False)`: a bug in a task is the task's failure, not the worker's. With `ended` it is a bug that
/// shows when the task is ended.
#[derive(Deserialize)]
struct Panics {
    #[serde(default)]
    ended: bool,
}

/// Panics when it is dropped.
struct Fragile;

impl Drop for Fragile {
    fn drop(&mut self) {
        #[expect(clippy::panic, reason = "that is what it is for")]
        {
            panic!("on purpose, when it ended")
        }
    }
}

impl Task for Panics {
    const NAME: &'static str = "hello.panic";
    type Env = ();
    type Output = ();

    async fn run(self, (): (), _: Context) -> Result<(), Failure> {
        if self.ended {
            let _fragile = Fragile;
            std::future::pending::<()>().await;
        }
        #[expect(clippy::panic, reason = "that is what it is for")]
        {
            panic!("on purpose")
        }
    }
}

/// `hello.die()`: takes the whole worker with it, as code that exhausts the memory would.
#[derive(Deserialize)]
struct Dies;

impl Task for Dies {
    const NAME: &'static str = "hello.die";
    type Env = ();
    type Output = ();

    async fn run(self, (): (), _: Context) -> Result<(), Failure> {
        std::process::abort()
    }
}

fn main() -> std::process::ExitCode {
    orchestra::cli::worker_main(|registry| {
        registry.register::<Add>(())?;
        registry.register::<Sleep>(())?;
        registry.register::<Flaky>(())?;
        registry.register::<Nap>(())?;
        registry.register::<Panics>(())?;
        registry.register::<Dies>(())
    })
}
