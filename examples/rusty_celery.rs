//! Tasks of the `celery` crate (rusty-celery), unchanged, in our worker; needs the feature `rusty-celery`.
//!
//! `rusty_celery OPTIONS…` is our worker with its usual command line. `rusty_celery theirs URL` is the crate's own
//! worker with the same tasks, and `rusty_celery send URL X Y` sends `add` with the crate and prints the task's id.

#![allow(non_local_definitions, reason = "what the macro of that crate makes")]

use std::process::ExitCode;
use std::time::Duration;

use celery::error::TaskError;
use celery::prelude::*;

#[celery::task]
fn add(x: i32, y: i32) -> TaskResult<i32> {
    Ok(x + y)
}

/// Fails until it was tried so often.
#[celery::task(bind = true, max_retries = 3, max_retry_delay = 0)]
fn flaky(task: &Self, times: u32) -> TaskResult<u32> {
    let tried = task.request.retries;
    if tried < times {
        return Err(TaskError::ExpectedError(format!("try {tried}")));
    }
    Ok(tried)
}

#[celery::task(retry_for_unexpected = false)]
async fn buggy(path: Option<String>) -> TaskResult<()> {
    let path = path.unwrap_or_else(|| "this-file-does-not-exist".to_owned());
    std::fs::read(path).with_unexpected_err(|| "it cannot be read")?;
    Ok(())
}

#[celery::task(time_limit = 1, max_retries = 0)]
async fn long(seconds: u64) -> TaskResult<()> {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    Ok(())
}

/// Sends another task, through its app; the id of that.
#[celery::task(bind = true)]
async fn sender(task: &Self, x: i32) -> TaskResult<String> {
    let sent = task.request.app.send_task(add::new(x, 1)).await;
    Ok(sent.with_unexpected_err(|| "it cannot be sent")?.task_id)
}

/// Leaves a trace without a result backend, which the crate's own worker has not.
#[celery::task]
fn note(path: String, text: String) -> TaskResult<()> {
    std::fs::write(path, text).with_unexpected_err(|| "it cannot be written")
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // The app of the tasks has a connection of its own, which lives on this runtime.
    let runtime = tokio::runtime::Runtime::new()?;
    let url = match words[..] {
        [_, "theirs" | "send", url, ..] => url,
        _ => words
            .iter()
            .skip_while(|word| !matches!(**word, "-b" | "--broker"))
            .nth(1)
            .unwrap_or(&"redis://127.0.0.1:6379/0"),
    };
    let app = runtime.block_on(celery::app!(
        broker = RedisBroker { url },
        tasks = [add, flaky, buggy, long, sender, note],
        task_routes = [],
        prefetch_count = 2,
    ))?;
    match words[..] {
        [_, "theirs", _] => runtime.block_on(app.consume())?,
        [_, "send", _, x, y] => {
            let sent = runtime.block_on(app.send_task(add::new(x.parse()?, y.parse()?)))?;
            println!("{}", sent.task_id);
        }
        _ => {
            return Ok(orchestra::cli::worker_main(|registry| {
                use orchestra::rusty_celery::register;
                register::<add>(registry, &app)?;
                register::<flaky>(registry, &app)?;
                register::<buggy>(registry, &app)?;
                register::<long>(registry, &app)?;
                register::<sender>(registry, &app)?;
                register::<note>(registry, &app)
            }));
        }
    }
    Ok(ExitCode::SUCCESS)
}
