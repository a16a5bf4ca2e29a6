//! Commands for the pool: grow, shrink, restart, autoscale.

use tracing::info;

use super::{Answer, Arguments, error_reply, ok};
use crate::worker::MOST_PLACES;
use crate::worker::consumer::{Consumer, Key};
use crate::worker::request::{Input, State};
use crate::worker::services::spawn_run;

impl Consumer {
    pub(super) fn grow(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let by = arguments.number("n")?.unwrap_or(1);
        if self.autoscaler.is_some() {
            return error_reply("pool_grow is not supported with autoscale. Adjust autoscale range instead.");
        }
        if self.pool.size().saturating_add(by) > MOST_PLACES {
            return Err(format!("ValueError('a pool has at most {MOST_PLACES} places')"));
        }
        self.pool.grow(by);
        self.children.resize(self.pool.size());
        self.hold_more(by);
        ok("pool will grow")
    }

    pub(super) fn shrink(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let by = arguments.number("n")?.unwrap_or(1);
        if self.autoscaler.is_some() {
            return error_reply("pool_shrink is not supported with autoscale. Adjust autoscale range instead.");
        }
        if !self.pool.shrink(by) {
            return Err("ValueError(\"Can't shrink pool. All processes busy!\")".into());
        }
        self.children.resize(self.pool.size());
        self.hold_less(by);
        ok("pool will shrink")
    }

    /// Renews the child processes: those that run a task when it is done. What runs in this process leaves nothing
    /// behind to renew. The answer is Celery's.
    pub(super) fn restart(&mut self) -> Result<Answer, String> {
        if !self.options.pool_restarts {
            return Err("ValueError('Pool restarts not enabled')".into());
        }
        info!("pool restart asked for by remote control: child processes are replaced");
        self.children.restart();
        ok("reload started")
    }

    pub(super) fn set_autoscale(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let (max, min) = (arguments.number("max")?, arguments.number("min")?);
        let Some(scaler) = &mut self.autoscaler else {
            return Err("ValueError('Autoscale not enabled')".into());
        };
        let before = scaler.max;
        let (new_max, new_min) = (max.unwrap_or(scaler.max), min.unwrap_or(scaler.min));
        if new_max == 0 || new_max > MOST_PLACES || new_min > new_max {
            return Err(format!(
                "ValueError('autoscale: max is 1 to {MOST_PLACES}, and min not above it')"
            ));
        }
        (scaler.max, scaler.min) = (new_max, new_min);
        if new_max > before {
            self.hold_more(new_max - before);
        } else {
            self.hold_less(before - new_max);
        }
        let size = self.pool.size();
        self.resize(size.clamp(new_min.max(1), new_max));
        ok(format!("autoscale now max={new_max} min={new_min}"))
    }

    /// As many places as there is work for, within the range.
    pub(crate) fn autoscale(&mut self) {
        let waiting = self.reserved.len() + self.running;
        let size = self.pool.size();
        if let Some(scaler) = &mut self.autoscaler
            && let Some(wanted) = scaler.step(waiting, size, crate::clock::instant())
        {
            self.resize(wanted);
        }
    }

    fn resize(&mut self, wanted: usize) {
        let size = self.pool.size();
        if wanted > size {
            info!("Scaling up {} processes.", wanted - size);
            self.pool.grow(wanted - size);
        } else if wanted < size && self.pool.shrink(size - wanted) {
            info!("Scaling down {} processes.", size - wanted);
        }
        self.children.resize(self.pool.size());
    }

    /// So many workers look ahead together as far as one would alone.
    pub(crate) fn share_lookahead(&mut self, workers: usize) {
        let Some(fair) = &self.options.fair else { return };
        let wanted = (fair.lookahead / workers.max(1)).saturating_sub(self.prefetch);
        let before = std::mem::replace(&mut self.ahead, wanted);
        if wanted > before {
            self.credit.add_permits(wanted - before);
        } else if wanted < before {
            self.give_back(self.prefetch + wanted);
            self.take_credit(before - wanted);
        }
    }

    /// Holds so many requests that wait for a place; the others go back as they came, for workers that have less to do.
    fn give_back(&mut self, most: usize) {
        let waits = self.active.iter();
        let waits = waits.filter(|(_, active)| matches!(active.state, State::Reserved { .. }));
        let mut waiting: Vec<Key> = waits.map(|(key, _)| *key).collect();
        waiting.sort_unstable();
        // The oldest goes back last, to the front.
        for key in waiting.into_iter().skip(most).rev() {
            self.step(key, Input::Stop { cold: false });
        }
    }

    /// The prefetch count follows the pool.
    fn hold_more(&mut self, places: usize) {
        let credit = places.saturating_mul(self.options.prefetch_multiplier as usize);
        self.prefetch += credit;
        self.credit.add_permits(credit);
    }

    fn hold_less(&mut self, places: usize) {
        let credit = places.saturating_mul(self.options.prefetch_multiplier as usize);
        let credit = credit.min(self.prefetch);
        self.prefetch -= credit;
        self.take_credit(credit);
    }

    fn take_credit(&self, credit: usize) {
        // What is in use stays so; it is taken away when it comes back, before the fetcher gets it.
        if let Some(n) = u32::try_from(credit).ok().filter(|n| *n > 0) {
            let permits = self.credit.clone();
            spawn_run(async move {
                if let Ok(taken) = permits.acquire_many_owned(n).await {
                    taken.forget();
                }
            });
        }
    }
}
