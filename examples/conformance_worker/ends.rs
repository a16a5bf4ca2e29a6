//! The tasks of `tests/it/ends.rs`, which has the same in Python: every way in which a run may end.

use std::collections::BTreeMap;
use std::time::Duration;

use orchestra::task::{Context, Failure, Options, RegisterError, Task};
use serde::Deserialize;

use crate::functions::Functions;

#[derive(Deserialize)]
struct Nothing {}

/// `end.floats(numbers)`: gives back what it got, and what nobody can write down in JSON.
#[derive(Deserialize)]
struct Floats {
    numbers: Vec<f64>,
}

impl Task for Floats {
    const NAME: &'static str = "end.floats";
    type Env = ();
    type Output = Vec<f64>;

    async fn run(mut self, (): (), _: Context) -> Result<Vec<f64>, Failure> {
        self.numbers.extend([f64::NAN, f64::INFINITY]);
        Ok(self.numbers)
    }
}

/// `end.unwritable()`: a result that is no JSON.
#[derive(Deserialize)]
struct Unwritable {}

impl Task for Unwritable {
    const NAME: &'static str = "end.unwritable";
    type Env = ();
    type Output = BTreeMap<(u8, u8), u8>;

    async fn run(self, (): (), _: Context) -> Result<Self::Output, Failure> {
        Ok(BTreeMap::from([((1, 2), 3)]))
    }
}

/// `end.*`.
pub fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let plain = || Options::DEFAULT;
    let late = || Options {
        acks_late: true,
        ..Options::DEFAULT
    };
    let fails = |_: Nothing, _: Context| async { Err::<(), _>(Failure::value_error("no")) };
    let retry = || Failure::Retry {
        after: None,
        cause: None,
        arguments: None,
    };
    functions.typed::<Floats>()?;
    functions.typed::<Unwritable>()?;
    functions.add("end.well", plain(), |_: Nothing, _| async { Ok(1) })?;
    functions.add("end.ignore", plain(), |_: Nothing, _| async {
        Err::<(), _>(Failure::Ignore)
    })?;
    functions.add("end.requeue", late(), |_: Nothing, context: Context| async move {
        again(&context).ok_or_else(|| Failure::Reject {
            requeue: true,
            reason: "later".into(),
        })
    })?;
    functions.add("end.late_fail", late(), fails)?;
    let dropped = Options {
        acks_on_failure: false,
        ..late()
    };
    functions.add("end.dropped", dropped, fails)?;
    let slow = Options {
        acks_on_timeout: false,
        ..late()
    };
    functions.add("end.slow", slow, |_: Nothing, context: Context| async move {
        if again(&context).is_none() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Ok("again")
    })?;
    let never = Options {
        max_retries: Some(0),
        ..plain()
    };
    functions.add("end.gives_up", never, move |_: Nothing, _| async move {
        Err::<(), _>(retry())
    })?;
    functions.add("end.later", plain(), move |_: Nothing, _| async move {
        Err::<(), _>(retry())
    })?;
    functions.add("end.once_more", plain(), |_: Nothing, context: Context| async move {
        match context.retries() {
            0 => Err(Failure::Retry {
                after: Some(Duration::ZERO),
                cause: None,
                arguments: None,
            }),
            retries => Ok(retries),
        }
    })?;
    let unwanted = |store_errors_even_if_ignored| Options {
        ignore_result: true,
        track_started: true,
        store_errors_even_if_ignored,
        ..Options::DEFAULT
    };
    functions.add("end.unwanted", unwanted(false), fails)?;
    functions.add("end.unwanted_but_told", unwanted(true), fails)?;
    let silent = Options {
        send_events: false,
        ..plain()
    };
    functions.add("end.silent", silent, |_: Nothing, _| async { Ok(2) })?;
    functions.add("end.nap", plain(), |Nap { seconds }: Nap, _| async move {
        tokio::time::sleep(Duration::try_from_secs_f64(seconds)?).await;
        Ok(seconds)
    })
}

#[derive(Deserialize)]
struct Nap {
    seconds: f64,
}

/// Whether the message came before.
fn again(context: &Context) -> Option<&'static str> {
    context.details().redelivered.then_some("again")
}
