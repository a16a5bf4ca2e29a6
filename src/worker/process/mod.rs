//! Processes for tasks that must be killable ([`task::Options::process`](crate::task::Options)).
//!
//! A child is this program once more, started by the worker with a socket for its standard input. It gets a message
//! at a time, runs it, and says what the run says; the worker alone talks to the broker about the message, so that
//! nothing is lost with a child. There is none before a task wants one, and one that is idle is used again; a pool of
//! processes (`-P prefork`) has one ready for each place.

mod child;
mod frame;
mod parent;

pub use child::Child;
pub(crate) use parent::{Children, Running};

use std::ffi::OsString;

/// Names the parent to a child.
const CHILD_OF: &str = "ORCHESTRA_CHILD_OF";

/// How this program is started again, as a child that finds its way to [`Child::of_worker`].
#[derive(Clone, Debug)]
pub struct Program {
    /// Its own words, without the program's name.
    pub arguments: Vec<OsString>,
}
