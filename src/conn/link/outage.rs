//! The state of an outage. A program has several connections to one Redis, which break within a moment of each other
//! and come back one by one; and a server that is not well may take a connection and refuse what comes on it, many
//! times. All that is one outage to whoever reads the log: one line when it begins, one when it is over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::clock::{self, Instant};

/// An outage is over when nothing broke for so long.
const QUIET: Duration = Duration::from_secs(1);

/// The sign of life of one connection.
pub(super) struct Pulse {
    heard: Mutex<Instant>,
    stands: AtomicBool,
    /// Of a list of brokers: which one it is connected to, or tries.
    turn: AtomicUsize,
}

impl Pulse {
    /// Of a connection that is to be made.
    pub(super) fn new() -> Self {
        Self {
            heard: Mutex::new(clock::instant()),
            stands: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn turn(&self) -> usize {
        self.turn.load(Ordering::Relaxed)
    }

    pub(super) fn turn_to(&self, turn: usize) {
        self.turn.store(turn, Ordering::Relaxed);
    }

    /// It said something.
    pub(super) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = clock::instant();
    }

    fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it has said nothing.
    pub(super) fn silence(&self) -> Duration {
        clock::instant().saturating_duration_since(self.heard())
    }
}

/// What is known of one endpoint: whether there is an outage.
#[derive(Default)]
pub(super) struct Outage(Mutex<State>);

#[derive(Default)]
struct State {
    /// All connections to it that were made.
    pulses: Vec<Weak<Pulse>>,
    lasts: Option<Lasts>,
}

struct Lasts {
    began: Instant,
    /// When something broke last.
    broke: Instant,
    /// When something came back last.
    back: Instant,
    /// The server does not know our login.
    is_refused: bool,
}

impl Outage {
    /// The one of an endpoint, by the name that is shown of it: whoever connects to the same place knows of the same
    /// outage.
    pub(super) fn of(endpoint: &str) -> Arc<Self> {
        static ALL: LazyLock<Mutex<HashMap<String, Weak<Outage>>>> = LazyLock::new(Mutex::default);
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(endpoint).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, outage| outage.strong_count() > 0);
        let outage = Arc::<Self>::default();
        all.insert(endpoint.to_owned(), Arc::downgrade(&outage));
        outage
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection was made, or made again.
    pub(super) fn returned(&self, pulse: &Arc<Pulse>, now: Instant) {
        let mut state = self.state();
        pulse.stands.store(true, Ordering::Relaxed);
        if let Some(lasts) = &mut state.lasts {
            lasts.back = now;
        }
        let own = Arc::downgrade(pulse);
        state
            .pulses
            .retain(|other| other.strong_count() > 0 && !other.ptr_eq(&own));
        state.pulses.push(own);
    }

    /// A connection broke; whether an outage begins with that.
    pub(super) fn broke(&self, pulse: &Pulse, now: Instant) -> bool {
        let mut state = self.state();
        pulse.stands.store(false, Ordering::Relaxed);
        if let Some(lasts) = &mut state.lasts {
            lasts.broke = now;
            return false;
        }
        state.lasts = Some(Lasts {
            began: now,
            broke: now,
            back: now,
            is_refused: false,
        });
        true
    }

    /// The server does not know our login, and somebody has to know: whether that is so for the first time in this
    /// outage.
    pub(super) fn is_first_refusal(&self) -> bool {
        let mut state = self.state();
        let lasts = state.lasts.as_mut();
        lasts.is_some_and(|lasts| !std::mem::replace(&mut lasts.is_refused, true))
    }

    pub(super) fn lasts(&self) -> bool {
        self.state().lasts.is_some()
    }

    /// Whether a connection to that broker of a list stands. One that said nothing within that time may be dead, and not
    /// know it yet.
    pub(super) fn is_there(&self, turn: usize, within: Duration) -> bool {
        let is_there = |pulse: Arc<Pulse>| {
            pulse.stands.load(Ordering::Relaxed) && pulse.turn() == turn && pulse.silence() <= within
        };
        self.state().pulses.iter().filter_map(Weak::upgrade).any(is_there)
    }

    /// Asked from time to time while one lasts: how long it took, once, when it is over. That is when all connections
    /// stand, have said something since it began (one that has not may be dead, and not know it yet), and stay.
    pub(super) fn over(&self, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        let Lasts { began, broke, back, .. } = state.lasts.as_ref()?;
        let is_well = |pulse: Arc<Pulse>| pulse.stands.load(Ordering::Relaxed) && pulse.heard() > *began;
        let is_over = now.saturating_duration_since(*broke) >= QUIET
            && state.pulses.iter().filter_map(Weak::upgrade).all(is_well);
        let long = back.saturating_duration_since(*began);
        is_over.then(|| {
            state.lasts = None;
            long
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulses(outage: &Outage, at: Instant) -> [Arc<Pulse>; 2] {
        let pulses = [Arc::new(Pulse::new()), Arc::new(Pulse::new())];
        for pulse in &pulses {
            outage.returned(pulse, at);
        }
        pulses
    }

    fn hear(pulse: &Pulse, at: Instant) {
        *pulse.heard.lock().unwrap() = at;
    }

    #[test]
    fn an_outage_of_many_connections_is_one() {
        let (outage, began) = (Outage::default(), clock::instant());
        let at = |ms| began + Duration::from_millis(ms);
        let [one, other] = pulses(&outage, began);
        assert_eq!((outage.lasts(), outage.over(at(0))), (false, None));
        assert!(outage.broke(&one, at(0)));
        assert!(!outage.broke(&other, at(3)));
        hear(&one, at(2000));
        outage.returned(&one, at(2000));
        assert_eq!(outage.over(at(2000)), None, "the other is not back");
        hear(&other, at(2500));
        outage.returned(&other, at(2500));
        assert_eq!(outage.over(at(2500)), Some(Duration::from_millis(2500)));
        assert_eq!(
            (outage.lasts(), outage.over(at(2600))),
            (false, None),
            "it is told once"
        );
    }

    #[test]
    fn a_server_that_takes_connections_and_refuses_is_not_back() {
        let (outage, began) = (Outage::default(), clock::instant());
        let at = |ms| began + Duration::from_millis(ms);
        let [one, other] = pulses(&outage, began);
        assert!(outage.broke(&one, at(0)));
        hear(&other, at(10));
        for round in 1..=30 {
            hear(&one, at(100 * round));
            outage.returned(&one, at(100 * round));
            assert_eq!(outage.over(at(100 * round + 40)), None);
            if round < 30 {
                assert!(!outage.broke(&one, at(100 * round + 50)));
            }
        }
        assert_eq!(outage.over(at(4000)), Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_connection_that_may_be_dead_is_waited_for() {
        let (outage, began) = (Outage::default(), clock::instant());
        let at = |ms| began + Duration::from_millis(ms);
        let [one, other] = pulses(&outage, began);
        hear(&other, began);
        assert!(outage.broke(&one, at(0)));
        hear(&one, at(1));
        outage.returned(&one, at(1));
        assert_eq!(outage.over(at(1500)), None, "nothing was heard of the other");
        hear(&other, at(1600));
        assert_eq!(outage.over(at(1600)), Some(Duration::from_millis(1)));
        // One that nobody needs any more is not waited for.
        assert!(outage.broke(&one, at(2000)));
        hear(&other, at(2100));
        drop(one);
        assert_eq!(outage.over(at(3000)), Some(Duration::ZERO));
    }

    #[test]
    fn a_broker_is_there_while_a_connection_to_it_stands_and_speaks() {
        let (outage, now, within) = (Outage::default(), clock::instant(), Duration::from_secs(60));
        let [one, other] = pulses(&outage, now);
        other.turn_to(1);
        assert!(outage.is_there(0, within) && outage.is_there(1, within) && !outage.is_there(2, within));
        outage.broke(&one, now);
        assert!(!outage.is_there(0, within) && outage.is_there(1, within));
        hear(&other, now.checked_sub(2 * within).unwrap());
        assert!(!outage.is_there(1, within), "it may be dead");
    }

    #[test]
    fn one_place_has_one_outage() {
        let (one, same, other) = (
            Outage::of("redis://h/0"),
            Outage::of("redis://h/0"),
            Outage::of("redis://h/1"),
        );
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
    }
}
