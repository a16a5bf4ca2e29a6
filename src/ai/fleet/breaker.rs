//! When a host that failed, or a model on it, is left alone, and when it is tried again. Pure; the states are in the
//! ledger, so that what one worker found out all know.

use serde::{Deserialize, Serialize};

use super::routing::Health;

/// So many broken answers in a row open the breaker; a host that cannot be reached needs one.
const BROKEN_ANSWERS: u32 = 3;
/// First pause, in milliseconds; it doubles.
const FIRST_PAUSE: u64 = 1_000;
/// Longest pause.
const LONGEST_PAUSE: u64 = 60_000;

/// What is known of failures.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Breaker {
    /// Failures since the last answer.
    pub failures: u32,
    /// Not asked before this time, in milliseconds.
    pub until: u64,
}

/// How a call ended, for its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It answered, be it that the request is wrong.
    Answered,
    /// It has too much to do (503).
    Busy,
    /// The answer broke off, or did not come.
    Broke,
    /// Nobody is there.
    Unreachable,
}

impl Breaker {
    /// The state after a call.
    #[must_use]
    pub fn after(self, told: Told, now: u64) -> Self {
        let failures = self.failures.saturating_add(1);
        let pause = |failures: u32| LONGEST_PAUSE.min(FIRST_PAUSE << failures.saturating_sub(1).min(16));
        match told {
            Told::Answered => Self::default(),
            Told::Busy => Self {
                until: now + FIRST_PAUSE,
                ..self
            },
            Told::Broke if failures < BROKEN_ANSWERS => Self { failures, ..self },
            Told::Broke => Self {
                failures,
                until: now + pause(failures + 1 - BROKEN_ANSWERS),
            },
            Told::Unreachable => Self {
                failures: failures.max(BROKEN_ANSWERS),
                until: now + pause((failures + 1).saturating_sub(BROKEN_ANSWERS).max(1)),
            },
        }
    }

    /// What it says now.
    pub fn health(self, now: u64) -> Health {
        match (self.until > now, self.failures >= BROKEN_ANSWERS) {
            (true, _) => Health::Broken,
            (false, true) => Health::Trial,
            (false, false) => Health::Well,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_gone_is_left_alone_for_longer_and_longer() {
        let mut breaker = Breaker::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            breaker = breaker.after(Told::Unreachable, 0);
            pauses.push(breaker.until);
        }
        assert_eq!(
            pauses,
            [
                1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000, 60_000
            ]
        );
        assert_eq!(
            (breaker.health(59_999), breaker.health(60_000)),
            (Health::Broken, Health::Trial)
        );
        assert_eq!(breaker.after(Told::Answered, 61_000).health(61_000), Health::Well);
    }

    #[test]
    fn one_broken_answer_says_little_three_in_a_row_say_much() {
        let once = Breaker::default().after(Told::Broke, 5);
        assert_eq!(once.health(5), Health::Well);
        let thrice = once.after(Told::Broke, 5).after(Told::Broke, 5);
        assert_eq!((thrice.health(5), thrice.until), (Health::Broken, 1_005));
        assert_eq!(
            once.after(Told::Answered, 5).after(Told::Broke, 5).health(5),
            Health::Well
        );
    }

    #[test]
    fn a_full_queue_is_no_failure() {
        let busy = Breaker::default().after(Told::Busy, 10);
        assert_eq!((busy.health(11), busy.health(1_010)), (Health::Broken, Health::Well));
    }
}
