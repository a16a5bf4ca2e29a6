//! The keeper of a process: it holds the calls that wait, asks for places for all of them at once ([`settle`]), keeps
//! those that are held, gives back what was let go, and looks at the hosts from time to time ([`scout`]).
//!
//! Two loops per process, however many calls there are. They end with the fleet.

mod scout;
mod settle;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::super::ollama::{Ollama, Stood};
use super::accounts::{Caller, write_down};
use super::breaker::Told;
use super::host::Host;
use super::ledger::{Book, Catalogs, Entry, Ledger};
use super::routing::{self, Nowhere, View, Waiting, Why};
use super::strategy::Strategy;
use super::view::{Rules, view};
use crate::clock::{self, Instant};

/// Calls of one worker that are chosen from, and that others hear of; the rest has its turn later.
const SHOWN: usize = 64;
/// Between two words about the places that are held.
const RENEW: Duration = Duration::from_secs(5);
/// Between two looks while calls wait: some rules depend on time alone.
const LOOK: Duration = Duration::from_millis(200);
/// A slot is free only when the engine has finished its batch after a call was given up (O-058).
const AFTERMATH: u64 = 300;

/// What the loops and the calls share.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) hosts: Vec<Host>,
    pub(super) rules: Rules,
    pub(super) ledger: Ledger,
    pub(super) ollama: Ollama,
    pub(super) allow_cloud: bool,
    worker: String,
    started: AtomicBool,
    wake: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Waiter>,
    /// What is written with the next entry.
    todo: Entry,
    /// What calls used that were given up, for the accounts.
    owed: Vec<redis::Pipeline>,
    told: Vec<(String, Told)>,
    /// Whether others see calls of ours wait.
    shown: bool,
    /// Whether Redis refused what was written last, which is said once.
    is_refused: bool,
    /// Places of this process.
    held: BTreeSet<String>,
    renewed: Option<Instant>,
    book: Arc<Book>,
    catalogs: Catalogs,
    version: u64,
    /// The fleet as it is known here, for whoever chooses what to run; made when it is wanted.
    picture: Option<Arc<View>>,
    /// Whether anybody ever wanted it.
    is_pictured: bool,
    /// When hosts were last asked in vain what they have.
    silent: Option<Instant>,
    /// The ledger's clock and ours at one moment.
    clock: Option<(u64, Instant)>,
}

#[derive(Debug)]
struct Waiter {
    call: Waiting,
    came: Instant,
    answer: oneshot::Sender<Result<Place, Nowhere>>,
}

/// A place for one call on a host. It goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    keeper: Weak<Keeper>,
    name: String,
    /// Which of the hosts.
    pub host: usize,
    /// Why there.
    pub why: Why,
    /// How long it was waited for.
    pub waited: Duration,
    /// How all hosts stood when it was given.
    pub stood: Vec<Stood>,
    over: bool,
}

impl Place {
    /// The call came to its end, so that the place is free at once.
    pub(super) fn end(mut self) {
        self.over = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(keeper) = self.keeper.upgrade() else { return };
        let mut state = keeper.state();
        state.held.remove(&self.name);
        let after = if self.over { 0 } else { AFTERMATH };
        state.todo.drop.push((std::mem::take(&mut self.name), after));
        drop(state);
        keeper.wake.notify_one();
    }
}

impl Keeper {
    pub(super) fn new(hosts: Vec<Host>, rules: Rules, ledger: Ledger, ollama: Ollama, allow_cloud: bool) -> Arc<Self> {
        Arc::new(Self {
            hosts,
            rules,
            ledger,
            ollama,
            allow_cloud,
            worker: uuid::Uuid::new_v4().simple().to_string(),
            started: AtomicBool::new(false),
            wake: Arc::default(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. Dropping the future gives up the wait.
    pub(super) async fn place(
        self: &Arc<Self>,
        model: &str,
        caller: &Caller<'_>,
        not: &[String],
        by: &Strategy,
    ) -> Result<Place, Nowhere> {
        self.start();
        let (answer, given) = oneshot::channel();
        let call = Waiting {
            id: uuid::Uuid::new_v4().simple().to_string(),
            model: model.to_owned(),
            priority: caller.priority,
            since: 0,
            not: not.to_vec(),
            tenant: caller.tenant.map(str::to_owned),
            by: by.clone(),
        };
        let came = clock::instant();
        self.state().waiting.push(Waiter { call, came, answer });
        self.wake.notify_one();
        // The sender goes only with the keeper, which `self` holds.
        given.await.unwrap_or(Err(Nowhere::Failed))
    }

    /// Notes how a host was found. A model that fails on a host says nothing of the others there.
    pub(super) fn tell(&self, host: &str, model: &str, told: Told) {
        let of_model = format!("{host}\t{model}");
        let mut state = self.state();
        let mut note = |of: String| {
            let known = state.book.breakers.get(&of).copied().unwrap_or_default();
            let pending = state.told.iter().any(|(other, _)| *other == of);
            // What answers as ever is no news.
            if told != Told::Answered || known.failures > 0 || pending {
                state.told.push((of, told));
            }
        };
        match told {
            Told::Answered => {
                note(host.to_owned());
                note(of_model);
            }
            Told::Broke => note(of_model),
            Told::Busy | Told::Unreachable => note(host.to_owned()),
        }
        let is_news = !state.told.is_empty();
        drop(state);
        if is_news {
            self.wake.notify_one();
        }
    }

    /// Notes that a model answered, and how long its load took, if there was one.
    pub(super) fn warmed(&self, host: &str, model: &str, load: Option<Duration>) {
        let mut state = self.state();
        state.todo.warmed.push((host.to_owned(), model.to_owned()));
        if let Some(load) = load {
            let load = u64::try_from(load.as_millis()).unwrap_or(u64::MAX);
            state.todo.loads.push((model.to_owned(), load));
        }
    }

    /// Notes what a call used that was given up: nobody is left to write it down.
    pub(super) fn owe(&self, bill: redis::Pipeline) {
        self.state().owed.push(bill);
        self.wake.notify_one();
    }

    /// Writes down what was used.
    async fn pay(&self) {
        let owed = std::mem::take(&mut self.state().owed);
        let Ledger::Shared(shared) = &self.ledger else { return };
        for bill in owed {
            match shared.link().await {
                Ok(link) => write_down(link, &bill).await,
                Err(error) => tracing::warn!("what a call used is not in the accounts: {error}"),
            }
        }
    }

    /// Notes what an answer took.
    pub(super) fn paced(&self, host: &str, model: &str, pace: Duration) {
        let pace = u64::try_from(pace.as_millis()).unwrap_or(u64::MAX);
        self.state().todo.paces.push((host.to_owned(), model.to_owned(), pace));
    }

    /// Notes that a host lacks a model, or has it no longer in memory.
    pub(super) fn cooled(&self, host: &str, model: &str) {
        self.state().todo.cooled.push((host.to_owned(), model.to_owned()));
    }

    /// What hosts said, as far as it is known.
    pub(super) fn catalogs(&self) -> Catalogs {
        self.state().catalogs.clone()
    }

    /// The fleet as it was last read; `None` before that.
    pub(super) fn picture(&self) -> Option<Arc<View>> {
        let mut state = self.state();
        state.is_pictured = true;
        state.clock?;
        if state.picture.is_none() {
            state.picture = Some(Arc::new(view(&self.hosts, &self.rules, &state.book, &state.catalogs)));
        }
        state.picture.clone()
    }

    /// Notes a place that was had since the fleet was read: the next task is chosen before it is read again.
    fn picture_with(&self, host: usize, model: &str, why: &Why) {
        if !self.state().is_pictured {
            return;
        }
        // As it was read, at least.
        drop(self.picture());
        let mut state = self.state();
        if let Some(picture) = &mut state.picture
            && let Some(host) = Arc::make_mut(picture).hosts.get_mut(host)
        {
            host.accept(model, why);
        }
    }

    fn start(self: &Arc<Self>) {
        if !self.started.swap(true, Ordering::AcqRel) {
            tokio::spawn(settle::settle(Arc::downgrade(self), self.wake.clone()));
            tokio::spawn(scout::scout(Arc::downgrade(self)));
        }
    }

    /// Takes what is to be written.
    fn entry(&self) -> Entry {
        let mut state = self.state();
        let state = &mut *state;
        let now = clock::instant();
        let (ledger_now, at) = state.clock.unwrap_or((0, now));
        state.waiting.retain(|waiter| !waiter.answer.is_closed());
        for waiter in &mut state.waiting {
            if waiter.call.since == 0 && state.clock.is_some() {
                let since_then = now.saturating_duration_since(at).as_millis();
                let waited = now.saturating_duration_since(waiter.came).as_millis();
                let shift = u64::try_from(since_then).unwrap_or(0);
                waiter.call.since = (ledger_now + shift)
                    .saturating_sub(u64::try_from(waited).unwrap_or(0))
                    .max(1);
            }
        }
        let mut entry = std::mem::take(&mut state.todo);
        let told = std::mem::take(&mut state.told);
        let mut breakers: HashMap<String, super::breaker::Breaker> = HashMap::new();
        for (host, told) in told {
            let before = breakers.get(&host).or(state.book.breakers.get(&host)).copied();
            breakers.insert(
                host,
                before.unwrap_or_default().after(told, ledger_now + elapsed(at, now)),
            );
        }
        entry.breakers = breakers.into_iter().collect();
        let calls: Vec<&Waiting> = state.waiting.iter().map(|waiter| &waiter.call).collect();
        let shown = routing::shown(&calls, SHOWN);
        entry.waiting = shown.into_iter().map(|at| calls[at].clone()).collect();
        if state
            .renewed
            .is_none_or(|at| now.saturating_duration_since(at) >= RENEW)
        {
            entry.renew = state.held.iter().cloned().collect();
            state.renewed = Some(now);
        }
        entry.worker.clone_from(&self.worker);
        entry.seen = state.version;
        entry
    }

    /// Notes what was read.
    fn read(&self, mut book: Book) -> (Arc<Book>, Catalogs) {
        let mut state = self.state();
        if let Some(catalogs) = book.catalogs.take() {
            state.catalogs = Arc::new(catalogs);
            state.version = book.version;
        }
        state.clock = Some((book.now, clock::instant()));
        state.book = Arc::new(book);
        state.picture = None;
        (state.book.clone(), state.catalogs.clone())
    }

    /// After Redis gave no answer: what was to be written is written later.
    fn put_back(&self, entry: Entry) {
        let mut state = self.state();
        state.todo.drop.extend(entry.drop);
        state.todo.warmed.extend(entry.warmed);
        state.todo.cooled.extend(entry.cooled);
        state.todo.paces.extend(entry.paces);
        // What a host said since is newer.
        let said: Vec<String> = state.todo.catalogs.iter().map(|(host, _)| host.clone()).collect();
        let older = entry.catalogs.into_iter().filter(|(host, _)| !said.contains(host));
        state.todo.catalogs.extend(older);
        state.renewed = None;
    }

    /// The ledger's time; 0 before it was read once.
    fn now(&self) -> u64 {
        let clock = self.state().clock;
        clock.map_or(0, |(then, at)| then + elapsed(at, clock::instant()))
    }

    /// Writes what is new at once, so that what was found out is known before a place is asked for.
    pub(super) async fn flush(&self) {
        let entry = self.entry();
        self.state().shown |= !entry.waiting.is_empty();
        match self.ledger.write(&entry).await {
            Ok(book) => drop(self.read(book)),
            Err(_) => self.put_back(entry),
        }
    }

    fn is_used(&self) -> bool {
        let state = self.state();
        !state.waiting.is_empty() || !state.held.is_empty()
    }

    fn pause(&self) -> Duration {
        let state = self.state();
        match (state.waiting.is_empty(), state.held.is_empty()) {
            (false, _) => LOOK,
            (true, false) => RENEW,
            (true, true) => Duration::from_secs(60),
        }
    }
}

fn elapsed(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(0)
}
