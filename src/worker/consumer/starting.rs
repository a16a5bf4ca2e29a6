//! From the line of those that wait to a run.

use std::sync::Arc;

use tracing::error;

use super::{Consumer, FURTHEST, Key};
use crate::clock::{self, Instant, Timestamp};
use crate::task::Context;
use crate::worker::process::Children;
use crate::worker::request::{Input, Request, RunId, State};
use crate::worker::reserved::Need;
use crate::worker::spans;
use crate::worker::tracer::Place;

impl Consumer {
    pub(super) fn wait(&mut self, key: Key, eta: Timestamp) {
        if self.park(key, eta) {
            return;
        }
        if let Some(active) = self.active.get_mut(&key) {
            active.eta = Some(eta);
        }
        let pause = clock::until(eta, clock::now());
        self.wake_at(key, clock::instant() + pause.min(FURTHEST));
    }

    /// It is woken then, and at no time that was set before.
    fn wake_at(&mut self, key: Key, at: Instant) {
        if let Some(active) = self.active.get_mut(&key) {
            active.due = Some(at);
            self.timers.set(at, key);
        }
    }

    /// Starts what waits, as long as there are places.
    pub(super) fn start_reserved(&mut self) {
        while !self.reserved.is_empty() {
            // What it would say has nowhere to go, or others may run it; the next look at the clock tries again.
            if self.outbox.is_full() || self.standstill.is_in_doubt() {
                return;
            }
            let Some(slot) = self.pool.slot() else { return };
            let now = clock::instant();
            let active = &self.active;
            let Some(key) = self.reserved.take(now, |key| active.contains_key(&key)) else {
                return;
            };
            let Some(active) = self.active.get(&key) else { continue };
            let request = active.request.clone();
            // The task's own limit as it stands now, not as it stood when the message came: it can be changed.
            let limit = self
                .registry
                .get(&request.entry.name)
                .and_then(|entry| entry.options.rate_limit);
            if let Some(limit) = limit
                && !self.options.disable_rate_limits
                && !self.active.get(&key).is_some_and(|active| active.has_place)
                && let Some(at) = self.rate_limits.place(&request.entry.name, limit, now)
            {
                self.hold_for_rate(key, at);
                continue;
            }
            match self.ask_unique(key, &request, slot) {
                Ok(()) => {}
                Err(slot) => self.start(key, &request, slot, now),
            }
        }
    }

    /// Waits for a place to run.
    pub(in crate::worker) fn reserve(&mut self, key: Key, request: &Request) {
        let tenant = self.tenant(key, request);
        if request.restored {
            return self.reserved.push_restored(key);
        }
        let need = request.entry.affinity.as_ref().and_then(|of| {
            let body = &request.message.body;
            let what = of.need(&request.entry.name, body.args(), body.kwargs())?;
            Some(Need { of: of.clone(), what })
        });
        let priority = request.message.properties.priority();
        self.reserved.push(key, tenant, need, priority, clock::instant());
    }

    /// Whose a request is, where tenants take turns.
    pub(super) fn tenant(&mut self, key: Key, request: &Request) -> Option<Arc<str>> {
        if !self.reserved.is_fair() {
            return None;
        }
        let active = self.active.get_mut(&key)?;
        let queue = active.state.queue().unwrap_or_default();
        active.tenant = self.reserved.tenant(request, queue);
        active.tenant.clone()
    }

    pub(super) fn hold_for_rate(&mut self, key: Key, at: Instant) {
        if let Some(active) = self.active.get_mut(&key) {
            active.has_place = true;
        }
        self.step(key, Input::RateLimited);
        self.wake_at(key, at);
    }

    pub(in crate::worker) fn start(
        &mut self,
        key: Key,
        request: &Arc<Request>,
        slot: tokio::sync::OwnedSemaphorePermit,
        now: Instant,
    ) {
        let run: RunId = key;
        let (hard, _) = request.limits();
        let deadline = hard.and_then(|limit| now.checked_add(limit));
        let (span, trace) = spans::begin(request, &self.scribe.hostname);
        let details = request.details(self.scribe.hostname.clone(), deadline, trace);
        let context = Context::new(details, self.notes.clone(), Some(self.client.clone()));
        let place = self.place(request);
        let pid = match &place {
            Place::Child(child) => child.pid,
            _ => std::process::id(),
        };
        if let Some(active) = self.active.get_mut(&key) {
            active.context = Some(context.clone());
            active.span = span;
            active.started = Some(clock::now());
            active.pid = pid;
            let waited = now.saturating_duration_since(active.since);
            self.metrics.waited(&request.entry.name, waited);
        }
        if self.options.disable_prefetch
            && let Some(active) = self.active.get_mut(&key)
            && let State::Reserved { delivery } = &mut active.state
        {
            // Its place in the prefetch count is its place to run: kept to the end, whenever it is acknowledged.
            active.credit = delivery.credit.take();
        }
        let revoked = self.revoked.covers(&request.id, &request.message.headers);
        self.step(
            key,
            Input::Slot {
                run,
                since: now,
                revoked,
                pid,
            },
        );
        if let Some(active) = self.active.get(&key) {
            self.reserved.begins(key, active.tenant.as_ref());
            self.processed += 1;
            self.running += 1;
            *self.totals.entry(request.entry.name.clone()).or_default() += 1;
            self.pool.run(key, request.clone(), context, place, slot, now);
        } else if let Place::Child(child) = place {
            Children::give_back(*child);
        }
    }

    /// Where a task runs; a child that must be started for it is started at once, so that it is known who runs it.
    pub(super) fn place(&self, request: &Request) -> Place {
        if request.may_be_done && self.done.has(&request.id, clock::instant()) {
            return Place::Known;
        }
        if !request.policy.process {
            return Place::Here;
        }
        match self.children.take() {
            Ok(child) => Place::Child(Box::new(child)),
            Err(error) => {
                error!("no process for {}[{}]: {error}", request.entry.name, request.id);
                Place::Nowhere(format!("Worker could not be started: {error}."))
            }
        }
    }
}
