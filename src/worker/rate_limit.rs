//! Rate limits per task type and worker: a token bucket of capacity one (`celery.utils.rate`).

use std::collections::HashMap;
use std::sync::Arc;

use crate::clock::Instant;
use crate::task::RateLimit;

/// When each limited task may start next.
#[derive(Default)]
pub(crate) struct RateLimits {
    next: HashMap<Arc<str>, Instant>,
}

impl RateLimits {
    /// Takes a place for a start of `task`: `None` is now, otherwise when. Places are given in the order asked for.
    pub(crate) fn place(&mut self, task: &Arc<str>, limit: RateLimit, now: Instant) -> Option<Instant> {
        let next = self.next.entry(task.clone()).or_insert(now);
        let at = (*next).max(now);
        *next = at.checked_add(limit.interval()).unwrap_or(at);
        (at > now).then_some(at)
    }

    /// Forgets the places of a task whose limit changed.
    pub(crate) fn reset(&mut self, task: &str) {
        self.next.remove(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn p_106_starts_are_spread_by_the_limit() {
        let (mut limits, now) = (RateLimits::default(), crate::clock::instant());
        let limit = RateLimit::parse("10/s").unwrap().unwrap();
        let task: Arc<str> = "t".into();
        assert_eq!(limits.place(&task, limit, now), None);
        assert_eq!(limits.place(&task, limit, now), Some(now + Duration::from_millis(100)));
        assert_eq!(limits.place(&task, limit, now), Some(now + Duration::from_millis(200)));
        assert_eq!(limits.place(&task, limit, now + Duration::from_secs(1)), None);
    }
}
