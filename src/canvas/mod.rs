//! What follows what: compositions of task calls (`celery.canvas`), as values and without I/O.
//!
//! A [`Signature`] is composed ([`chain`], [`group`], [`chord`], [`then`]), then *applied* by a [`Planner`]: that gives
//! ids to everything whose result somebody may wait for, and a [`Plan`] of what to write and send. The worker does the
//! same with what it finds in a message: the rest of a chain, callbacks, the body of a chord.

mod apply;
mod compose;
mod forms;
mod freeze;
mod replace;
mod results;
mod stamp;
mod steps;
mod visit;

pub use apply::{GroupWrite, Parent, Plan, Planner, Priorities};
pub use compose::{Reach, chain, chord, group, then};
pub use forms::{accumulate, chunks, map, starmap};
pub use freeze::{Freeze, freeze};
pub use replace::{Replaced, ReplacementError, replacement};
pub use results::ResultNode;
pub use visit::{StampingVisitor, Stamps};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chord_waits_for_as_many_as_celery_counts() {
        let s = Signature::new;
        let pair = || group([s("a"), s("b")]);
        for (signature, expected) in [
            (s("a"), 1),
            (pair(), 2),
            (group([pair(), s("c")]), 3),
            (group([]), 0),
            // Of a chain its end, of a chord its body.
            (chain([s("a"), s("b")]), 1),
            (Signature::of(Kind::Chain(vec![s("a"), pair()])), 2),
            (Signature::of(Kind::Chain(vec![s("a"), group([])])), 1),
            (Signature::of(Kind::Chain(vec![group([])])), 0),
            (chord([s("a"), s("b")], s("c")), 1),
            (chord([s("a")], pair()), 2),
            (chord([s("a")], chord([s("b")], pair())), 2),
            (chunks(&s("a"), 0..5, 2), 3),
            (map(s("a"), 0..5), 1),
        ] {
            assert_eq!(size(&signature), expected, "{signature:?}");
        }
    }
}
