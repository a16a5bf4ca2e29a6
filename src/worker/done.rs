//! What has succeeded here, for messages that come a second time (`celery.worker.state.successful_requests`, a
//! `LimitedSet`): bounded in number and age. Results tell the same, where there are some.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;

const MAX: usize = 1000;
const EXPIRE: Duration = Duration::from_secs(10_800);

/// Ids of tasks that succeeded.
#[derive(Default)]
pub(crate) struct Succeeded {
    ids: HashMap<Arc<str>, Instant>,
    order: VecDeque<Arc<str>>,
}

impl Succeeded {
    /// Remembers one; the oldest go when there are too many.
    pub(crate) fn add(&mut self, id: Arc<str>, now: Instant) {
        if self.ids.insert(id.clone(), now).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    /// Whether it succeeded here, and not too long ago.
    pub(crate) fn has(&self, id: &str, now: Instant) -> bool {
        self.ids
            .get(id)
            .is_some_and(|at| now.saturating_duration_since(*at) < EXPIRE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_111_successes_are_remembered_in_number_and_age() {
        let (mut done, now) = (Succeeded::default(), crate::clock::instant());
        for n in 0..MAX + 5 {
            done.add(n.to_string().into(), now);
        }
        assert!(!done.has("4", now) && done.has("5", now));
        assert!(!done.has("5", now + EXPIRE));
    }
}
