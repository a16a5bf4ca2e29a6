//! The loaded models: the load queue, who uses what, what has to go, `keep_alive` and expiry.
//!
//! `keep_alive` belongs to the runner, not to the request: the last request that gave one set it for everybody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::backend::{Backend, Model, Settings};
use crate::error::Error;
use crate::keep_alive::KeepAlive;
use crate::line::{Line, Place};
use crate::loads::{Load, Loads};

/// What `/api/ps` shows as "for ever": the longest duration that Go can hold.
const FOREVER: Duration = Duration::from_nanos(i64::MAX as u64);

pub struct Runners {
    backend: Arc<dyn Backend>,
    table: Mutex<HashMap<String, Runner>>,
    /// Changes whenever the table does.
    changed: watch::Sender<()>,
    /// Loads are done one at a time, in order.
    line: Line,
    pub loads: Loads,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that may wait for a load, besides the one being loaded for.
    pub max_queue: usize,
    pub keep_alive: KeepAlive,
    /// Models in memory at once; `None` for any number.
    pub max_loaded: Option<usize>,
    /// Memory of the video card in bytes; `None` where it is not looked at.
    pub vram: Option<u64>,
    /// Requests that a runner works on at once; `None` for any number.
    pub slots: Option<usize>,
}

struct Runner {
    model: Arc<Model>,
    settings: Settings,
    keep_alive: KeepAlive,
    running: usize,
    idle_since: Instant,
    slots: Option<Arc<Semaphore>>,
}

/// One line of `/api/ps`.
pub struct Loaded {
    pub model: Arc<Model>,
    pub settings: Settings,
    /// From now until it is unloaded.
    pub remaining: Duration,
}

enum Found {
    Leased(Lease),
    /// Loaded with other settings, or dead, and still in use.
    MustDrain,
    NotLoaded,
}

impl Runners {
    pub fn new(backend: Arc<dyn Backend>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            backend,
            table: Mutex::default(),
            changed: watch::Sender::new(()),
            line: Line::new(limits.max_queue),
            loads: Loads::default(),
            limits,
        })
    }

    /// Uses a model, after loading it where needed. Dropping the future gives up the wait, though the place in the
    /// queue only when its turn comes, and throws away a load in progress.
    pub async fn acquire(
        self: &Arc<Self>,
        model: &Arc<Model>,
        settings: Settings,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Lease, Error> {
        if let Found::Leased(lease) = self.find(model, settings, keep_alive) {
            return Ok(lease);
        }
        let place = self.line.join().ok_or_else(Error::busy)?;
        place.turn().await;
        self.load(&place, model, settings, keep_alive).await
    }

    /// The one at the head of the queue loads; whatever it waits for, all behind it wait as well.
    async fn load(
        self: &Arc<Self>,
        _place: &Place<'_>,
        model: &Arc<Model>,
        settings: Settings,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Lease, Error> {
        let mut changes = self.changed.subscribe();
        loop {
            match self.find(model, settings, keep_alive) {
                Found::Leased(lease) => return Ok(lease),
                Found::NotLoaded if self.make_room(model) => break,
                // The sender is in `self`: it cannot be gone.
                Found::NotLoaded | Found::MustDrain => drop(changes.changed().await),
            }
        }
        let load = self.loads.begin(&model.name.to_string());
        let loaded = self.backend.load(Arc::clone(model), settings).await;
        if loaded.as_ref().is_err_and(Error::is_out_of_memory) {
            self.expire_all();
        }
        loaded?;
        Ok(self.insert(model, settings, keep_alive, load))
    }

    fn find(self: &Arc<Self>, model: &Arc<Model>, settings: Settings, keep_alive: Option<KeepAlive>) -> Found {
        let mut table = self.table();
        let Some(runner) = table.get_mut(&model.name.key()) else {
            return Found::NotLoaded;
        };
        if runner.settings == settings && self.backend.is_alive(model) {
            runner.running += 1;
            runner.keep_alive = keep_alive.unwrap_or(runner.keep_alive);
            let slots = runner.slots.clone();
            return Found::Leased(self.lease(model, slots));
        }
        if runner.running > 0 {
            return Found::MustDrain;
        }
        table.remove(&model.name.key());
        self.backend.unload(model);
        self.loads.reload();
        Found::NotLoaded
    }

    /// Throws a model out, if one has to go for this one. Whether there is room now; if not, the victim drains first,
    /// and may be revived meanwhile by a request that brings a `keep_alive`.
    fn make_room(&self, model: &Model) -> bool {
        let mut table = self.table();
        loop {
            let taken: u64 = table.values().map(|runner| runner.model.size).sum();
            let full = self.limits.max_loaded.is_some_and(|most| table.len() >= most);
            // More than four fifths of what is free is too much.
            let tight = self
                .limits
                .vram
                .is_some_and(|vram| model.size * 5 > vram.saturating_sub(taken) * 4);
            if table.is_empty() || !(full || tight) {
                return true;
            }
            // An idle one with the shortest keep_alive; if none is idle, any with the shortest. Ties by path.
            let victim = table
                .iter()
                .min_by(|(a_key, a), (b_key, b)| {
                    (a.running > 0, a.keep_alive, *a_key).cmp(&(b.running > 0, b.keep_alive, *b_key))
                })
                .map(|(key, _)| key.clone());
            let Some(runner) = victim.as_ref().and_then(|key| table.get_mut(key)) else {
                return true;
            };
            if runner.running > 0 {
                runner.keep_alive = KeepAlive::ZERO;
                return false;
            }
            self.backend.unload(&runner.model);
            self.loads.evict();
            if let Some(key) = victim {
                table.remove(&key);
            }
        }
    }

    fn insert(
        self: &Arc<Self>,
        model: &Arc<Model>,
        settings: Settings,
        keep_alive: Option<KeepAlive>,
        load: Load<'_>,
    ) -> Lease {
        // Models that only embed have one slot, whatever the settings say.
        let only_embeds = model.can("embedding") && !model.can("completion");
        let slots = if only_embeds { Some(1) } else { self.limits.slots };
        let slots = slots.map(|slots| Arc::new(Semaphore::new(slots)));
        let runner = Runner {
            model: Arc::clone(model),
            settings,
            keep_alive: keep_alive.unwrap_or(self.limits.keep_alive),
            running: 1,
            idle_since: Instant::now(),
            slots: slots.clone(),
        };
        self.table().insert(model.name.key(), runner);
        load.done();
        self.lease(model, slots)
    }

    fn lease(self: &Arc<Self>, model: &Model, slots: Option<Arc<Semaphore>>) -> Lease {
        Lease {
            runners: Arc::clone(self),
            key: model.name.key(),
            slots,
        }
    }

    /// Requests that wait for a load now, and the most there were.
    pub fn queued(&self) -> (usize, usize) {
        self.line.length()
    }

    /// Unloads a model as soon as nobody uses it. Does not wait.
    pub fn unload(&self, model: &Model) {
        if let Some(runner) = self.table().get_mut(&model.name.key()) {
            runner.keep_alive = KeepAlive::ZERO;
        }
        self.sweep();
        self.changed.send_replace(());
    }

    /// After a load that found no memory, every model goes as soon as it is idle.
    fn expire_all(&self) {
        for runner in self.table().values_mut() {
            runner.keep_alive = KeepAlive::ZERO;
        }
        self.sweep();
    }

    /// The loaded models, longest remaining first.
    pub fn loaded(&self) -> Vec<Loaded> {
        let now = Instant::now();
        let mut loaded: Vec<_> = self.table().values().map(|runner| runner.loaded(now)).collect();
        loaded.sort_by_key(|runner| std::cmp::Reverse(runner.remaining));
        loaded
    }

    /// Unloads what has expired, for as long as the server runs.
    pub async fn expire(self: Arc<Self>) {
        let mut changes = self.changed.subscribe();
        loop {
            match self.sweep() {
                Some(next) => tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    _ = changes.changed() => {}
                },
                None => drop(changes.changed().await),
            }
        }
    }

    /// Unloads what has expired, and tells when the next one will.
    fn sweep(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut table = self.table();
        table.retain(|_, runner| {
            let keep = runner.expires().is_none_or(|at| at > now);
            if !keep {
                self.backend.unload(&runner.model);
            }
            keep
        });
        table.values().filter_map(Runner::expires).min()
    }

    fn release(&self, key: &str) {
        if let Some(runner) = self.table().get_mut(key) {
            runner.running = runner.running.saturating_sub(1);
            runner.idle_since = Instant::now();
        }
        self.sweep();
        self.changed.send_replace(());
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Runner>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runner {
    /// When it expires if nobody comes; `None` while it is in use, or if never.
    fn expires(&self) -> Option<Instant> {
        match self.keep_alive {
            KeepAlive::For(duration) if self.running == 0 => self.idle_since.checked_add(duration),
            _ => None,
        }
    }

    fn loaded(&self, now: Instant) -> Loaded {
        let remaining = match self.keep_alive {
            KeepAlive::Forever => FOREVER,
            KeepAlive::For(duration) if self.running > 0 => duration.min(FOREVER),
            KeepAlive::For(duration) => duration
                .min(FOREVER)
                .saturating_sub(now.duration_since(self.idle_since)),
        };
        Loaded {
            model: Arc::clone(&self.model),
            settings: self.settings,
            remaining,
        }
    }
}

/// The use of a loaded model by one request; the timer starts when the last one is dropped.
pub struct Lease {
    runners: Arc<Runners>,
    key: String,
    slots: Option<Arc<Semaphore>>,
}

impl Lease {
    /// Waits for a slot of the runner: first come, first served, without a limit on who waits. Gives nothing where
    /// there is no limit.
    pub async fn slot(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        // The semaphore is never closed.
        self.slots.clone()?.acquire_owned().await.ok()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.runners.release(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use futures_util::FutureExt;

    use super::*;
    use crate::cli::Args;
    use crate::script::Script;

    const SETTINGS: Settings = Settings {
        num_ctx: 2048,
        num_thread: 0,
        num_batch: 0,
        shift: true,
    };

    /// The scripted back end, whose loads are done at once, and two of its models.
    fn runners(max_queue: usize) -> (Arc<Runners>, [Arc<Model>; 2]) {
        limited(max_queue, None, None)
    }

    fn limited(max_queue: usize, max_loaded: Option<usize>, vram: Option<u64>) -> (Arc<Runners>, [Arc<Model>; 2]) {
        let script = Arc::new(Script::new(&Args::parse_from(["ollama-sim"])).expect("a script"));
        let models = [0, 1].map(|at| Arc::clone(&script.models()[at]));
        let limits = Limits {
            max_queue,
            keep_alive: KeepAlive::For(Duration::from_secs(300)),
            max_loaded,
            vram,
            slots: Some(1),
        };
        (Runners::new(script, limits), models)
    }

    fn lease(runners: &Arc<Runners>, model: &Arc<Model>, keep_alive: Option<KeepAlive>) -> Lease {
        let lease = runners.acquire(model, SETTINGS, keep_alive).now_or_never();
        lease.expect("no wait").expect("no error")
    }

    #[test]
    fn keep_alive_zero_unloads_when_the_last_request_ends() {
        let (runners, [model, _]) = runners(1);
        let first = lease(&runners, &model, Some(KeepAlive::ZERO));
        let second = lease(&runners, &model, None);
        drop(first);
        assert_eq!(runners.loaded().len(), 1);
        drop(second);
        assert!(runners.loaded().is_empty());
    }

    #[test]
    fn a_request_without_keep_alive_leaves_it_and_an_unload_waits_for_the_running_ones() {
        let (runners, [model, other]) = runners(1);
        drop(lease(&runners, &other, None));
        drop(lease(&runners, &model, Some(KeepAlive::Forever)));
        let running = lease(&runners, &model, None);
        assert_eq!(runners.loaded()[0].remaining, FOREVER);
        runners.unload(&model);
        assert_eq!(runners.loaded().len(), 2);
        drop(running);
        assert_eq!(runners.loaded().len(), 1);
        assert_eq!(runners.loaded()[0].model.name, other.name);
    }

    #[test]
    fn other_settings_wait_until_the_runner_is_idle() {
        let (runners, [model, _]) = runners(1);
        let running = lease(&runners, &model, None);
        let mut other = Box::pin(runners.acquire(
            &model,
            Settings {
                num_ctx: 512,
                ..SETTINGS
            },
            None,
        ));
        assert!((&mut other).now_or_never().is_none());
        drop(running);
        assert!(other.now_or_never().is_some_and(|lease| lease.is_ok()));
        assert_eq!(runners.loaded()[0].settings.num_ctx, 512);
    }

    #[test]
    fn a_full_load_queue_is_busy_and_a_loaded_model_never_is() {
        let (runners, [model, other]) = runners(1);
        let _running = lease(&runners, &model, None);
        let smaller = Settings {
            num_ctx: 512,
            ..SETTINGS
        };
        let mut waiting = [(); 2].map(|()| Box::pin(runners.acquire(&model, smaller, None)));
        for request in &mut waiting {
            assert!(request.now_or_never().is_none());
        }
        let refused = runners.acquire(&other, SETTINGS, None).now_or_never();
        assert_eq!(refused.and_then(Result::err).map(|error| error.status), Some(503));
        drop(lease(&runners, &model, None));
        drop(waiting);
        drop(lease(&runners, &other, None));
    }

    #[test]
    fn one_who_left_the_queue_counts_until_its_turn() {
        let (runners, [model, other]) = runners(1);
        let running = lease(&runners, &model, None);
        let smaller = Settings {
            num_ctx: 512,
            ..SETTINGS
        };
        let mut first = Box::pin(runners.acquire(&model, smaller, None));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(runners.acquire(&other, SETTINGS, None));
        assert!(
            (&mut second).now_or_never().is_none(),
            "the first one blocks those behind it"
        );
        drop(second);
        assert_eq!(runners.queued().0, 2, "its place is not free yet");
        let refused = runners.acquire(&other, SETTINGS, None).now_or_never();
        assert_eq!(refused.and_then(Result::err).map(|error| error.status), Some(503));
        drop(running);
        assert!(first.now_or_never().is_some_and(|lease| lease.is_ok()));
        assert_eq!(runners.queued(), (0, 2));
    }

    #[test]
    fn the_one_with_the_shortest_keep_alive_goes_and_only_when_it_is_idle() {
        for (max_loaded, vram) in [(Some(1), None), (None, Some(2_000_000))] {
            let (runners, [model, other]) = limited(1, max_loaded, vram);
            let running = lease(&runners, &model, None);
            let mut load = Box::pin(runners.acquire(&other, SETTINGS, None));
            assert!((&mut load).now_or_never().is_none());
            drop(running);
            assert!(load.now_or_never().is_some_and(|lease| lease.is_ok()));
            let names: Vec<_> = runners
                .loaded()
                .iter()
                .map(|loaded| loaded.model.name.to_string())
                .collect();
            assert_eq!(names, [other.name.to_string()]);
            assert_eq!(runners.loads.report()["loads"], 2);
        }
    }

    #[test]
    fn slots_belong_to_a_runner() {
        let (runners, [model, other]) = runners(1);
        let (first, second) = (lease(&runners, &model, None), lease(&runners, &model, None));
        let elsewhere = lease(&runners, &other, None);
        let slot = first.slot().now_or_never().expect("a slot");
        assert!(second.slot().now_or_never().is_none());
        assert!(elsewhere.slot().now_or_never().is_some());
        drop(slot);
        assert!(second.slot().now_or_never().is_some());
    }
}
