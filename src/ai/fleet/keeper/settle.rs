//! Places for those who wait: what is new is written, the choice is made from what the ledger then says, and what can
//! be had of it is taken.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::super::super::ollama::Stood;
use super::super::ledger::{Book, Catalogs, Take, place};
use super::super::routing::{self, Nowhere, Placed, Waiting, Why};
use super::super::view::view;
use super::{Keeper, Place};
use crate::clock;
use crate::conn::Error;

/// Longest pause after Redis gave no answer.
const PAUSE: Duration = Duration::from_millis(500);

/// Gives places, for as long as there is a fleet.
pub(super) async fn settle(keeper: Weak<Keeper>, wake: Arc<Notify>) {
    loop {
        let Some(one) = keeper.upgrade() else { return };
        one.pay().await;
        let pause = if one.settle().await { one.pause() } else { PAUSE };
        tokio::select! {
            () = wake.notified() => {}
            () = one.ledger.news(), if one.is_used() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Keeper {
    /// Writes what is new, and gives places to those who wait. Whether all went well.
    async fn settle(self: &Arc<Self>) -> bool {
        loop {
            let entry = self.entry();
            let waits = !entry.waiting.is_empty();
            let had_shown = std::mem::replace(&mut self.state().shown, waits);
            if entry.is_empty() && !had_shown {
                return true;
            }
            let book = match self.ledger.write(&entry).await {
                Ok(book) => book,
                Err(error) => {
                    self.unanswered(&error);
                    self.put_back(entry);
                    return false;
                }
            };
            let (book, catalogs) = self.read(book);
            if !waits {
                return true;
            }
            if self.hosts.iter().any(|host| !catalogs.contains_key(host.url())) {
                // The first calls of all: what the hosts have is asked before one is chosen.
                self.first_look(&book, &catalogs).await;
                continue;
            }
            // Those that came since have no time yet.
            if entry.waiting.iter().any(|call| call.since == 0) {
                continue;
            }
            match self.give(&entry.waiting, &book, &catalogs).await {
                Some(0) => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }

    /// Gives places; how many calls had their answer or were too late with their choice, or nothing when Redis gave
    /// none.
    async fn give(self: &Arc<Self>, own: &[Waiting], book: &Book, catalogs: &Catalogs) -> Option<usize> {
        let view = view(&self.hosts, &self.rules, book, catalogs);
        let mut answered = 0;
        for call in own {
            if let Some(nowhere) = routing::nowhere(&view, call) {
                self.answer(&call.id, Err(nowhere));
                answered += 1;
            }
        }
        let is_own = |placed: &Placed| own.iter().any(|call| call.id == view.waiting[placed.call].id);
        let all = routing::assign(view.clone());
        let stood = routing::standings(&view, &all, is_own);
        let mut stood: BTreeMap<usize, Vec<Stood>> = all.iter().map(|placed| placed.call).zip(stood).collect();
        let placed = routing::own(&view, all, is_own);
        if placed.is_empty() {
            return Some(answered);
        }
        let takes: Vec<Take> = placed.iter().map(|placed| self.take(&view, book, placed)).collect();
        let had = match self.ledger.take(&self.worker, &takes).await {
            Ok(had) => had,
            Err(error) => {
                self.unanswered(&error);
                return None;
            }
        };
        self.state().is_refused = false;
        for ((placed, take), had) in placed.into_iter().zip(takes).zip(had) {
            // Too late: the ledger has changed since it was read, so it is worth another look at once.
            answered += 1;
            if !had {
                continue;
            }
            let Waiting { id, model, .. } = &view.waiting[placed.call];
            self.picture_with(placed.host, model, &placed.why);
            self.state().held.insert(take.place.clone());
            let place = Place {
                keeper: Arc::downgrade(self),
                name: take.place,
                host: placed.host,
                why: placed.why,
                waited: Duration::ZERO,
                stood: stood.remove(&placed.call).unwrap_or_default(),
                over: true,
            };
            self.answer(id, Ok(place));
        }
        Some(answered)
    }

    fn take(&self, view: &routing::View, book: &Book, placed: &Placed) -> Take {
        let call = &view.waiting[placed.call];
        let host = &view.hosts[placed.host];
        Take {
            place: place(&call.id, &host.url, &call.model),
            host: host.url.clone(),
            model: call.model.clone(),
            host_limit: if host.health == routing::Health::Trial {
                1
            } else {
                host.max_parallel
            },
            model_limit: view.limits.get(&call.model).copied().unwrap_or(0),
            cold: placed.why != Why::Warm,
            instead: match &placed.why {
                Why::Instead(victims) => victims.clone(),
                _ => Vec::new(),
            },
            turn: book.turns.get(&host.url).copied().unwrap_or(0),
        }
    }

    /// Redis gave no answer, which passes: calls wait. Where it refuses, waiting does not help, and they are told at
    /// once.
    fn unanswered(&self, error: &Error) {
        if error.is_transient() {
            tracing::debug!("the ledger of the fleet: {error}");
            return;
        }
        let (waiting, was_refused) = {
            let mut state = self.state();
            let was_refused = std::mem::replace(&mut state.is_refused, true);
            (std::mem::take(&mut state.waiting), was_refused)
        };
        if !was_refused {
            tracing::warn!("no model can be asked: workers agree in Redis on who asks which host, and {error}");
        }
        for waiter in waiting {
            // Whoever gave up meanwhile needs no answer.
            let _ = waiter.answer.send(Err(Nowhere::Refused(error.to_string())));
        }
    }

    fn answer(&self, id: &str, answer: Result<Place, Nowhere>) {
        let waiter = {
            let mut state = self.state();
            let at = state.waiting.iter().position(|waiter| waiter.call.id == id);
            at.map(|at| state.waiting.swap_remove(at))
        };
        // Whoever gave up meanwhile: the place goes back as it is dropped.
        let Some(waiter) = waiter else { return };
        let answer = answer.map(|mut place| {
            place.waited = clock::instant().saturating_duration_since(waiter.came);
            place.over = false;
            place
        });
        if let Err(Ok(mut place)) = waiter.answer.send(answer) {
            place.over = true;
        }
    }
}
