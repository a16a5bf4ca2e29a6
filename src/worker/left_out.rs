//! Queues that Redis refuses for good, to a user who may not use them. It refuses a claim as a whole, so that one of them
//! would keep all others from being served: each is left out for a while.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;

/// So long; then it is tried again.
const LONG: Duration = Duration::from_secs(60);

/// The queues that are left out, and until when.
#[derive(Default)]
pub(super) struct LeftOut(Vec<(Arc<str>, Instant)>);

impl LeftOut {
    pub(super) fn add(&mut self, queue: Arc<str>, now: Instant) {
        self.0.push((queue, now + LONG));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes them out of all the worker's queues. One that is none of these any more is forgotten: whoever adds it again
    /// has seen to it.
    pub(super) fn take_out_of(&mut self, queues: &mut Vec<Arc<str>>, now: Instant) {
        self.0.retain(|(queue, until)| *until > now && queues.contains(queue));
        queues.retain(|queue| self.0.iter().all(|(left_out, _)| left_out != queue));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_queue_is_left_out_for_a_while_or_until_it_is_taken_away() {
        let (mut left_out, began) = (LeftOut::default(), clock::instant());
        let mut rest = |all: [&str; 2], seconds| {
            let mut queues = all.map(Arc::from).to_vec();
            let now = began + Duration::from_secs(seconds);
            if seconds == 0 {
                left_out.add("b".into(), now);
            }
            left_out.take_out_of(&mut queues, now);
            queues.join(" ")
        };
        assert_eq!(rest(["a", "b"], 0), "a");
        assert_eq!(rest(["a", "b"], 59), "a");
        assert_eq!(rest(["a", "b"], 60), "a b", "it is tried again");
        assert_eq!(rest(["a", "b"], 0), "a");
        assert_eq!(rest(["a", "c"], 1), "a c");
        assert_eq!(rest(["a", "b"], 2), "a b", "it was added again");
    }
}
