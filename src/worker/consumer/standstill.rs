//! A worker that stood still (SIGSTOP, a machine that was paused) for longer than its lease: others may have what waits
//! here by now, and run it. Nothing is started until the keeper has said what is still ours.

use std::time::Duration;

use super::LOOK;
use crate::clock::Instant;

/// What the loop may take beyond the pause between two looks, on a busy machine.
const LATE: Duration = Duration::from_millis(200);

/// When the loop went round, and when our leases were renewed.
pub(crate) struct Standstill {
    lease: Duration,
    round: Instant,
    renewed: Instant,
    /// Set while it is not known what is ours: since then.
    doubt: Option<Instant>,
}

impl Standstill {
    pub(crate) fn new(lease: Duration, now: Instant) -> Self {
        Self {
            lease,
            round: now,
            renewed: now,
            doubt: None,
        }
    }

    /// The loop goes round; whether it has just found out that it stood still, and leases ran out. That they ran out
    /// alone says nothing: while Redis is away they do, and nobody has them.
    pub(in crate::worker) fn goes_round(&mut self, now: Instant) -> bool {
        let stood = now.saturating_duration_since(self.round) > LOOK + LATE;
        self.round = now;
        let is_news = stood && now.saturating_duration_since(self.renewed) > self.lease;
        if is_news {
            self.doubt = Some(now);
        }
        is_news
    }

    /// What was asked for at that time has come now; whether it may be others' by now, since this or Redis took so long.
    pub(super) fn came(&mut self, asked: Instant, now: Instant) -> bool {
        let is_old = now.saturating_duration_since(asked) > self.lease;
        if is_old {
            self.doubt = Some(now);
        }
        is_old
    }

    /// The keeper was told at that time what is held, and has renewed all of it that is still ours.
    pub(super) fn renewed(&mut self, at: Instant) {
        self.renewed = at;
        self.doubt = self.doubt.filter(|since| *since > at);
    }

    /// Whether others may have what is held here.
    pub(in crate::worker) fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::instant;

    #[test]
    fn who_stood_still_knows_what_is_his_when_it_was_renewed_since() {
        let (began, second) = (instant(), Duration::from_secs(1));
        let mut standstill = Standstill::new(second * 5, began);
        assert!(!standstill.goes_round(began + second));
        standstill.renewed(began + second);
        // Shorter than the lease, and then as long as Redis is away.
        assert!(!standstill.goes_round(began + second * 4));
        for n in 5..60 {
            assert!(!standstill.goes_round(began + second * n) && !standstill.is_in_doubt());
        }
        assert!(standstill.goes_round(began + second * 62) && standstill.is_in_doubt());
        // What was on its way before.
        standstill.renewed(began + second * 59);
        assert!(!standstill.goes_round(began + second * 63) && standstill.is_in_doubt());
        standstill.renewed(began + second * 63);
        assert!(!standstill.is_in_doubt());
        // What was on its way to us while we stood still.
        assert!(!standstill.came(began + second * 62, began + second * 64) && !standstill.is_in_doubt());
        assert!(standstill.came(began + second * 5, began + second * 64) && standstill.is_in_doubt());
    }
}
