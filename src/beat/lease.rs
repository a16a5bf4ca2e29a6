//! The right to send, for as long as we know that we have it; and the time that it is.
//!
//! A lease ends when it was not renewed in time, whatever Redis would say: it is lost rather than assumed. Redis checks
//! the token once more with every message that is sent, so that a beat that slept cannot send either.

use std::time::Duration;

use crate::clock::{self, Instant, Timestamp};

/// A lease and the clock of the Redis that gave it. That one clock counts for all beats, and this machine's wall clock
/// for none: it may be wrong or jump.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    ends: Instant,
    /// The time of Redis at an instant of ours.
    time: (Timestamp, Instant),
}

impl Lease {
    /// A lease that was asked for at `asked`, with the time that Redis told.
    pub(super) fn new(asked: Instant, lifetime: Duration, time: Timestamp) -> Self {
        Self {
            // From before the question: Redis cannot have counted from earlier.
            ends: asked + lifetime,
            time: (time, clock::instant()),
        }
    }

    /// Whether we may send.
    pub(super) fn stands(&self) -> bool {
        clock::instant() < self.ends
    }

    /// The time that it is.
    pub(super) fn now(&self) -> Timestamp {
        let (time, at) = self.time;
        clock::after(time, clock::instant().saturating_duration_since(at))
    }
}
