//! The tasks of the probe that looks at a worker through Flower and the `celery` command line.

use std::time::Duration;

use orchestra::task::{Context, Exception, Failure, Options, RegisterError};
use serde::Deserialize;

use crate::functions::Functions;
use crate::python::seconds;

#[derive(Deserialize)]
struct Add {
    x: i64,
    y: i64,
}

#[derive(Deserialize)]
struct Fail {
    #[serde(default = "failure")]
    message: String,
}

fn failure() -> String {
    "probe failure".into()
}

#[derive(Deserialize)]
struct Sleep {
    seconds: f64,
}

#[derive(Deserialize)]
struct Retry {
    #[serde(default = "two")]
    times: u32,
}

fn two() -> u32 {
    2
}

#[derive(Deserialize)]
struct Reject;

#[derive(Deserialize)]
struct Abortable {
    #[serde(default = "minute")]
    seconds: f64,
}

fn minute() -> f64 {
    60.0
}

/// `probe.*`.
pub fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let plain = Options {
        track_started: true,
        ..Options::DEFAULT
    };
    functions.add("probe.add", plain.clone(), |Add { x, y }, _| async move { Ok(x + y) })?;
    functions.add("probe.fail", plain.clone(), |Fail { message }, _| async move {
        Err::<(), _>(Failure::value_error(message))
    })?;
    functions.add("probe.sleep", plain.clone(), |Sleep { seconds: long }, _| async move {
        tokio::time::sleep(seconds(long)?).await;
        Ok(long)
    })?;
    let retries = Options {
        max_retries: Some(5),
        ..plain.clone()
    };
    functions.add("probe.retry", retries, |Retry { times }, context: Context| async move {
        if context.retries() < times {
            let cause = Exception::builtin("KeyError", "not yet");
            return Err(Failure::retry_after(Duration::from_secs(1), cause));
        }
        Ok(context.retries())
    })?;
    let late = Options {
        acks_late: true,
        ..plain.clone()
    };
    functions.add("probe.reject", late, |_: Reject, _| async move {
        Err::<(), _>(Failure::Reject {
            requeue: false,
            reason: "not wanted".into(),
        })
    })?;
    functions.add("probe.abortable", plain, |Abortable { seconds }, context| {
        abortable(seconds, context)
    })
}

/// Looks at its own state, as `celery.contrib.abortable` does, until somebody has set it to ABORTED.
async fn abortable(long: f64, context: Context) -> Result<&'static str, Failure> {
    let Some(client) = context.client() else {
        return Err(Failure::value_error("there is no result backend to be aborted through"));
    };
    let own = client.result(context.id());
    let watch = async {
        while own.state().await?.as_str() != "ABORTED" {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok::<_, Failure>("aborted")
    };
    tokio::time::timeout(seconds(long)?, watch)
        .await
        .unwrap_or(Ok("finished"))
}
