//! What follows what: compositions of task calls (`celery.canvas`), as values and without I/O.
//!
//! A [`Signature`] is composed ([`chain`], [`group`], [`chord`], [`then`]), then *applied* by a [`Planner`]: that gives
//! ids to everything whose result somebody may wait for, and a [`Plan`] of what to write and send. The worker does the
//! same with what it finds in a message: the rest of a chain, callbacks, the body of a chord.

mod apply;
mod compose;
mod freeze;
mod replace;
mod results;
mod stamp;
mod steps;

pub use apply::{GroupWrite, Parent, Plan, Planner, Priorities};
pub use compose::{chain, chord, group, then};
pub use freeze::{Freeze, freeze};
pub use replace::{Replaced, ReplacementError, replacement};
pub use results::ResultNode;

use crate::wire::{Kind, Signature};

/// How many completions a signature stands for in the header of a chord (`celery.canvas._chord._descend`).
pub fn size(signature: &Signature) -> u64 {
    match &signature.kind {
        Kind::Task | Kind::Other(_) => 1,
        Kind::Group(tasks) => tasks.iter().map(size).sum(),
        Kind::Chain(tasks) => tasks.iter().rev().map(size).find(|size| *size > 0).unwrap_or(0),
        Kind::Chord(chord) => chord.body.as_ref().map_or(0, size),
    }
}
