//! The tasks of the tests that watch a worker: what it shows of secrets, and what of traces.

use std::time::Duration;

use orchestra::client::Signature;
use orchestra::task::{Context, Exception, Failure, Options, Redact, RegisterError, Task};
use serde::Deserialize;
use serde_json::json;

use crate::functions::Functions;

/// `watch.login(user, password, card="", mode="")`: `password` is secret by its name, `card` because its task says so.
#[derive(Deserialize)]
struct Login {
    user: String,
    password: String,
    #[serde(default)]
    card: String,
    #[serde(default)]
    mode: String,
}

impl Task for Login {
    const NAME: &'static str = "watch.login";
    const OPTIONS: Options = Options {
        redact: Redact::Fields(&["card"]),
        max_retries: Some(1),
        ..Options::DEFAULT
    };
    type Env = ();
    type Output = usize;

    async fn run(self, (): (), context: Context) -> Result<usize, Failure> {
        tracing::warn!(user = %self.user, password = %self.password, at = "redis://u:hunter2@h", "somebody logs in");
        match self.mode.as_str() {
            "retry" => {
                // Without a cause, the error that it cannot be retried tells the arguments.
                return Err(Failure::Retry {
                    after: Some(Duration::from_millis(10)),
                    cause: None,
                    arguments: None,
                });
            }
            "sleep" => tokio::time::sleep(Duration::from_secs(600)).await,
            "tell" => {
                let told = json!({"whom": self.user, "password": self.password, "deep": {"api_keys": [self.password]}});
                context.send_event("task-told", &told).await?;
            }
            "away" => {
                return Err(Failure::value_error(format!(
                    "no answer from redis://u:{}@h/0",
                    self.password
                )));
            }
            _ => {}
        }
        Ok(self.password.len() + self.card.len() + context.retries() as usize)
    }
}

/// `watch.vault(what)`: nothing of it is shown.
#[derive(Deserialize)]
struct Vault {
    what: String,
}

impl Task for Vault {
    const NAME: &'static str = "watch.vault";
    const OPTIONS: Options = Options {
        redact: Redact::Everything,
        ..Options::DEFAULT
    };
    type Env = ();
    type Output = String;

    async fn run(self, (): (), _: Context) -> Result<String, Failure> {
        match self.what.strip_prefix("bad ") {
            Some(what) => Err(Failure::value_error(format!("cannot keep {what}"))),
            None => Ok(self.what),
        }
    }
}

/// `watch.count(number, options=None)`: wrong arguments tell what is wrong and not a whole book.
#[derive(Deserialize)]
struct Count {
    number: u64,
    #[serde(default)]
    options: Option<Limits>,
}

#[derive(Deserialize)]
struct Limits {
    #[serde(default)]
    api_key: u64,
}

impl Task for Count {
    const NAME: &'static str = "watch.count";
    type Env = ();
    type Output = u64;

    async fn run(self, (): (), _: Context) -> Result<u64, Failure> {
        Ok(self.number + self.options.map_or(0, |options| options.api_key))
    }
}

/// `watch.relay(task)`: sends a task and does not wait for it.
#[derive(Deserialize)]
struct Relay {
    task: String,
}

impl Task for Relay {
    const NAME: &'static str = "watch.relay";
    type Env = ();
    type Output = String;

    async fn run(self, (): (), context: Context) -> Result<String, Failure> {
        context.apply(Signature::new(self.task)).await?;
        Ok("sent".to_owned())
    }
}

/// `watch.fail()`.
#[derive(Deserialize)]
struct Fails;

impl Task for Fails {
    const NAME: &'static str = "watch.fail";
    type Env = ();
    type Output = ();

    async fn run(self, (): (), _: Context) -> Result<(), Failure> {
        Err(Exception::builtin("KeyError", "not there").into())
    }
}

/// `watch.*`.
pub fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    functions.typed::<Login>()?;
    functions.typed::<Vault>()?;
    functions.typed::<Count>()?;
    functions.typed::<Relay>()?;
    functions.typed::<Fails>()
}
