//! Tasks in processes of their own: they can be killed, whatever they do, and nothing else dies with them.
//!
//! ```sh
//! cargo run --example processes -- -l INFO
//! python -c "from celery import Celery
//! app = Celery(broker='redis://', backend='redis://')
//! app.send_task('process.spin', time_limit=2).get()"      # TimeLimitExceeded
//! ```

use std::time::Duration;

use orchestra::client::Signature;
use orchestra::task::{Context, Exception, Failure, Options, Task};
use serde::Deserialize;

const PROCESS: Options = Options {
    process: true,
    ..Options::DEFAULT
};

/// `process.pid()`: the process it runs in.
#[derive(Deserialize)]
struct Pid;

impl Task for Pid {
    const NAME: &'static str = "process.pid";
    const OPTIONS: Options = PROCESS;
    type Env = ();
    type Output = u32;

    async fn run(self, (): (), _: Context) -> Result<u32, Failure> {
        Ok(std::process::id())
    }
}

/// `process.spin()`: computes and never comes to an end.
#[derive(Deserialize)]
struct Spin;

impl Task for Spin {
    const NAME: &'static str = "process.spin";
    const OPTIONS: Options = Options {
        track_started: true,
        ..PROCESS
    };
    type Env = ();
    type Output = ();

    async fn run(self, (): (), _: Context) -> Result<(), Failure> {
        loop {
            std::hint::spin_loop();
        }
    }
}

/// `process.end(how)`: `abort`, `exit` or `panic`.
#[derive(Deserialize)]
struct End {
    how: String,
}

impl Task for End {
    const NAME: &'static str = "process.end";
    const OPTIONS: Options = Options {
        acks_late: true,
        ..PROCESS
    };
    type Env = ();
    type Output = ();

    async fn run(self, (): (), _: Context) -> Result<(), Failure> {
        match self.how.as_str() {
            "abort" => std::process::abort(),
            "exit" => std::process::exit(3),
            #[expect(clippy::panic, reason = "that is what it is for")]
            "panic" => panic!("on purpose"),
            other => Err(Failure::value_error(format!("{other:?} is no end"))),
        }
    }
}

/// `process.once(file)`: takes its process with it the first time, and succeeds the second.
#[derive(Deserialize)]
struct Once {
    file: String,
}

impl Task for Once {
    const NAME: &'static str = "process.once";
    const OPTIONS: Options = Options {
        acks_late: true,
        reject_on_worker_lost: true,
        ..PROCESS
    };
    type Env = ();
    type Output = bool;

    async fn run(self, (): (), context: Context) -> Result<bool, Failure> {
        if std::fs::exists(&self.file)? {
            return Ok(context.details().redelivered);
        }
        std::fs::write(&self.file, "")?;
        std::process::abort()
    }
}

/// `process.stubborn(times)`: comes to no end before it was delivered that often; how often it was.
#[derive(Deserialize)]
struct Stubborn {
    times: u32,
}

impl Task for Stubborn {
    const NAME: &'static str = "process.stubborn";
    const OPTIONS: Options = Options {
        acks_late: true,
        track_started: true,
        ..PROCESS
    };
    type Env = ();
    type Output = u32;

    async fn run(self, (): (), context: Context) -> Result<u32, Failure> {
        while context.deliveries() < self.times {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(context.deliveries())
    }
}

/// `process.again()`: lost, and retried by itself.
#[derive(Deserialize)]
struct Again;

impl Task for Again {
    const NAME: &'static str = "process.again";
    const OPTIONS: Options = Options {
        retry_on_worker_lost: true,
        max_retries: Some(1),
        default_retry_delay: Duration::from_millis(100),
        ..PROCESS
    };
    type Env = ();
    type Output = ();

    async fn run(self, (): (), _: Context) -> Result<(), Failure> {
        std::process::abort()
    }
}

/// `process.talk()`: says what it does, and sends another task.
#[derive(Deserialize)]
struct Talk;

impl Task for Talk {
    const NAME: &'static str = "process.talk";
    const OPTIONS: Options = PROCESS;
    type Env = ();
    type Output = String;

    async fn run(self, (): (), context: Context) -> Result<String, Failure> {
        context.progress(1, 2).await?;
        context.stream_text("hello");
        context
            .send_event("task-greeted", &serde_json::json!({"whom": "everybody"}))
            .await?;
        let child = context.apply(Signature::new("process.pid")).await?;
        Ok(child.handle().id.clone())
    }
}

/// `process.decide(what)`: everything that a task may do instead of succeeding.
#[derive(Deserialize)]
struct Decide {
    what: String,
}

impl Task for Decide {
    const NAME: &'static str = "process.decide";
    const OPTIONS: Options = Options {
        max_retries: Some(2),
        ..PROCESS
    };
    type Env = ();
    type Output = u32;

    async fn run(self, (): (), context: Context) -> Result<u32, Failure> {
        match self.what.as_str() {
            "retry" if context.retries() == 2 => Ok(2),
            "retry" => {
                let cause = Exception::builtin("ConnectionError", "not yet");
                Err(Failure::retry_after(Duration::from_millis(50), cause))
            }
            "reject" => Err(Failure::Reject {
                requeue: false,
                reason: "no".into(),
            }),
            "replace" => Err(Failure::replace(Signature::new("process.pid"))),
            other => Err(Failure::value_error(other)),
        }
    }
}

/// `process.soft()`: told of its soft limit it ends by itself.
#[derive(Deserialize)]
struct Soft;

impl Task for Soft {
    const NAME: &'static str = "process.soft";
    const OPTIONS: Options = PROCESS;
    type Env = ();
    type Output = String;

    async fn run(self, (): (), context: Context) -> Result<String, Failure> {
        context.soft_limit().await;
        Ok("in time".into())
    }
}

/// `process.eat(mib)`: takes memory and gives it back to nobody.
#[derive(Deserialize)]
struct Eat {
    mib: usize,
}

impl Task for Eat {
    const NAME: &'static str = "process.eat";
    const OPTIONS: Options = PROCESS;
    type Env = ();
    type Output = u32;

    async fn run(self, (): (), _: Context) -> Result<u32, Failure> {
        std::mem::forget(vec![1_u8; self.mib << 20]);
        Ok(std::process::id())
    }
}

/// `process.nap(seconds)`: in the worker itself.
#[derive(Deserialize)]
struct Nap {
    seconds: f64,
}

impl Task for Nap {
    const NAME: &'static str = "process.nap";
    const OPTIONS: Options = Options {
        acks_late: true,
        track_started: true,
        ..Options::DEFAULT
    };
    type Env = ();
    type Output = u32;

    async fn run(self, (): (), _: Context) -> Result<u32, Failure> {
        tokio::time::sleep(Duration::try_from_secs_f64(self.seconds)?).await;
        Ok(std::process::id())
    }
}

fn main() -> std::process::ExitCode {
    orchestra::cli::worker_main(|registry| {
        registry.register::<Pid>(())?;
        registry.register::<Spin>(())?;
        registry.register::<End>(())?;
        registry.register::<Once>(())?;
        registry.register::<Stubborn>(())?;
        registry.register::<Again>(())?;
        registry.register::<Talk>(())?;
        registry.register::<Decide>(())?;
        registry.register::<Soft>(())?;
        registry.register::<Eat>(())?;
        registry.register::<Nap>(())
    })
}
