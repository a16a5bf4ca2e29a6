//! What authors of Rust tasks write: a struct of arguments that knows how to [`run`](Task::run).
//!
//! ```
//! use orchestra::task::{Context, Failure, Options, Registry, Task};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! struct Add { x: i64, #[serde(default)] y: i64 }
//!
//! impl Task for Add {
//!     const NAME: &'static str = "math.add";
//!     const OPTIONS: Options = Options { acks_late: true, ..Options::DEFAULT };
//!     type Env = ();
//!     type Output = i64;
//!
//!     async fn run(self, _: (), _: Context) -> Result<i64, Failure> {
//!         self.x.checked_add(self.y).ok_or_else(|| Failure::value_error("the sum is too large"))
//!     }
//! }
//!
//! let mut registry = Registry::new();
//! registry.register::<Add>(())?;
//! # Ok::<(), orchestra::task::RegisterError>(())
//! ```
//!
//! A Python client calls it as `app.send_task("math.add", (2,), {"y": 3})`: positional arguments bind in the order of
//! the fields, keyword arguments by name, and a mismatch is the `TypeError` that Python would raise.

mod affinity;
mod bind;
pub(crate) mod builtins;
mod chord_unlock;
mod context;
mod current;
mod failure;
mod flag;
mod hides;
mod meter;
mod options;
mod registry;
mod traits;
mod unique;

pub use crate::client::Resumption;
pub use crate::wire::{Arguments, Exception, python};
pub use affinity::Affinity;
pub use context::{Context, Details, Note, Notes};
pub use current::current;
pub use failure::Failure;
pub use hides::{Hides, Parameter, Redact};
pub use meter::Meter;
pub use options::{Options, RateLimit};
pub(crate) use registry::not_registered;
pub use registry::{Entry, RegisterError, Registry, Run};
pub use traits::{BoxFuture, DynTask, Task};
pub use unique::Unique;
