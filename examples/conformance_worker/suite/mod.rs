//! The tasks that Celery's integration suite calls, under the names it knows.
//!
//! Every Redis that a task writes to is database 0 at `REDIS_HOST` and `REDIS_PORT`, as in the suite.

mod effects;
mod plain;
mod replacement;
mod requests;
mod retries;
mod signatures;

use orchestra::task::{Exception, RegisterError};
use serde_json::Value;

use crate::functions::Functions;

/// Where the suite's functions live in Python.
const MODULE: &str = "t.integration.tasks";

/// `t.integration.tasks.*`, `celery.ping` and `auto_retry_class_task`.
pub fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    plain::register(functions)?;
    effects::register(functions)?;
    retries::register(functions)?;
    requests::register(functions)?;
    replacement::register(functions)?;
    signatures::register(functions)
}

/// A task's full name.
fn named(short: &str) -> String {
    format!("{MODULE}.{short}")
}

/// The suite's own exception.
fn expected(args: Vec<Value>) -> Exception {
    let mut exception = Exception::new(MODULE, "ExpectedException", "");
    exception.args = args;
    exception
}

/// What a Python worker stores for an exception that a client could not build again.
fn unpickleable(foo: &Value) -> Exception {
    let mut exception = Exception::new("celery.utils.serialization", "UnpickleableExceptionWrapper", "");
    let class = "UnpickleableException";
    let shown = format!("{class}({})", orchestra::wire::repr(foo));
    exception.args = vec![
        MODULE.into(),
        class.into(),
        Value::Array(vec![foo.clone()]),
        shown.into(),
    ];
    exception
}
