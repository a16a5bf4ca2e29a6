//! Pauses between attempts: doubling, bounded, with jitter so that a fleet does not come back in step.

use std::time::Duration;

/// Doubles from 50 ms to half a second: whoever waits for a server is back soon after it.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(500);

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next pause: between half and the whole of it.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        pause.mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// The pause before try number `tries + 1`: `first` doubled `tries` times, at most `longest`, less up to a quarter.
pub fn delay(first: Duration, longest: Duration, tries: u32) -> Duration {
    let factor = 2_u32.saturating_pow(tries);
    first
        .saturating_mul(factor)
        .min(longest)
        .mul_f64(rand::random_range(0.75..=1.0))
}
