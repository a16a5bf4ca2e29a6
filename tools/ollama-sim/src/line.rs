//! The load queue: strictly in order, with a bound; whoever leaves it is taken off only when its turn comes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub struct Line {
    state: Mutex<State>,
    moved: watch::Sender<()>,
    /// Places behind the head.
    bound: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Ticket>,
    last: u64,
    longest: usize,
}

struct Ticket {
    id: u64,
    left: bool,
}

/// A place in the queue.
pub struct Place<'a> {
    line: &'a Line,
    id: u64,
}

impl Line {
    pub fn new(bound: usize) -> Self {
        Self {
            state: Mutex::default(),
            moved: watch::Sender::new(()),
            bound,
        }
    }

    /// A place at the end, unless the queue is full.
    pub fn join(&self) -> Option<Place<'_>> {
        let mut state = self.state();
        if state.waiting.len() > self.bound {
            return None;
        }
        state.last += 1;
        let id = state.last;
        state.waiting.push_back(Ticket { id, left: false });
        state.longest = state.longest.max(state.waiting.len());
        Some(Place { line: self, id })
    }

    /// How many wait, and the most that did.
    pub fn length(&self) -> (usize, usize) {
        let state = self.state();
        (state.waiting.len(), state.longest)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Waits until it is at the head.
    pub async fn turn(&self) {
        let mut moved = self.line.moved.subscribe();
        while self
            .line
            .state()
            .waiting
            .front()
            .is_none_or(|first| first.id != self.id)
        {
            // The sender is in the line.
            drop(moved.changed().await);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.line.state();
        if let Some(ticket) = state.waiting.iter_mut().find(|ticket| ticket.id == self.id) {
            ticket.left = true;
        }
        if state.waiting.front().is_some_and(|first| first.id == self.id) {
            while state.waiting.front().is_some_and(|first| first.left) {
                state.waiting.pop_front();
            }
            drop(state);
            self.line.moved.send_replace(());
        }
    }
}
