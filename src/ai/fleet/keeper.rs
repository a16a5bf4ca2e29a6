//! The keeper of a process: it holds the calls that wait, asks for places for all of them at once, keeps those that are
//! held, gives back what was let go, and looks at the hosts from time to time.
//!
//! Two loops per process, however many calls there are. They end with the fleet.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, oneshot};

use super::super::ollama::{Class, Ollama};
use super::breaker::Told;
use super::catalog::Catalog;
use super::host::Host;
use super::ledger::{Book, Catalogs, Entry, Ledger, Take, place};
use super::routing::{self, Nowhere, Placed, Waiting, Why};
use super::view::{Rules, view};
use crate::clock::{self, Instant};

/// Calls of one worker that others hear of; the rest has its turn later.
const SHOWN: usize = 64;
/// Between two words about the places that are held.
const RENEW: Duration = Duration::from_secs(5);
/// Between two looks while calls wait: some rules depend on time alone.
const LOOK: Duration = Duration::from_millis(200);
/// A host's words are this old at most, while it is used.
const FRESH: u64 = 3_000;
/// How long the first calls wait until the hosts have said what they have.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// A slot is free only when the engine has finished its batch after a call was given up (O-058).
const AFTERMATH: u64 = 300;
/// Longest pause after Redis gave no answer.
const PAUSE: Duration = Duration::from_millis(500);

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
    told: Vec<(String, Told)>,
    /// Whether others see calls of ours wait.
    shown: bool,
    /// Places of this process.
    held: BTreeSet<String>,
    renewed: Option<Instant>,
    book: Arc<Book>,
    catalogs: Catalogs,
    version: u64,
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
    pub(super) async fn place(self: &Arc<Self>, model: &str, priority: u8, not: &[String]) -> Result<Place, Nowhere> {
        self.start();
        let (answer, given) = oneshot::channel();
        let call = Waiting {
            id: uuid::Uuid::new_v4().simple().to_string(),
            model: model.to_owned(),
            priority,
            since: 0,
            not: not.to_vec(),
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

    /// Notes that a host lacks a model, or has it no longer in memory.
    pub(super) fn cooled(&self, host: &str, model: &str) {
        self.state().todo.cooled.push((host.to_owned(), model.to_owned()));
    }

    /// What hosts said, as far as it is known.
    pub(super) fn catalogs(&self) -> Catalogs {
        self.state().catalogs.clone()
    }

    /// Waits until it is known what the hosts have, or that they do not say.
    pub(super) async fn know(self: &Arc<Self>) {
        self.start();
        let is_known = || {
            let catalogs = self.catalogs();
            self.hosts.iter().all(|host| catalogs.contains_key(host.url()))
        };
        if is_known() {
            return;
        }
        self.flush().await;
        if !is_known() {
            let (book, catalogs) = (self.state().book.clone(), self.catalogs());
            if tokio::time::timeout(FIRST_LOOK, self.scout(&book, &catalogs))
                .await
                .is_err()
            {
                self.give_up_on(&catalogs);
            }
            self.flush().await;
        }
    }

    fn start(self: &Arc<Self>) {
        if !self.started.swap(true, Ordering::AcqRel) {
            tokio::spawn(settle(Arc::downgrade(self), self.wake.clone()));
            tokio::spawn(scout(Arc::downgrade(self)));
        }
    }

    /// Takes what is to be written.
    fn entry(&self) -> Entry {
        let mut state = self.state();
        let state = &mut *state;
        let now = clock::instant();
        let (ledger_now, at) = state.clock.unwrap_or((0, now));
        // What is late in a queue of thousands is told when it is among the first.
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
        state
            .waiting
            .sort_by_key(|waiter| (std::cmp::Reverse(waiter.call.priority), waiter.came));
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
        entry.waiting = state
            .waiting
            .iter()
            .take(SHOWN)
            .map(|waiter| waiter.call.clone())
            .collect();
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
        (state.book.clone(), state.catalogs.clone())
    }

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
                    tracing::debug!("the ledger of the fleet: {error}");
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
                if tokio::time::timeout(FIRST_LOOK, self.scout(&book, &catalogs))
                    .await
                    .is_err()
                {
                    self.give_up_on(&catalogs);
                }
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

    /// Gives places; how many calls had their answer, or nothing when Redis gave none.
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
        let placed: Vec<Placed> = routing::assign(view.clone()).into_iter().filter(is_own).collect();
        if placed.is_empty() {
            return Some(answered);
        }
        let takes: Vec<Take> = placed.iter().map(|placed| self.take(&view, placed)).collect();
        let had = match self.ledger.take(&takes).await {
            Ok(had) => had,
            Err(error) => {
                tracing::debug!("the ledger of the fleet: {error}");
                return None;
            }
        };
        for ((placed, take), had) in placed.into_iter().zip(takes).zip(had) {
            if !had {
                continue;
            }
            answered += 1;
            let id = &view.waiting[placed.call].id;
            self.state().held.insert(take.place.clone());
            let place = Place {
                keeper: Arc::downgrade(self),
                name: take.place,
                host: placed.host,
                why: placed.why,
                waited: Duration::ZERO,
                over: true,
            };
            self.answer(id, Ok(place));
        }
        Some(answered)
    }

    fn take(&self, view: &routing::View, placed: &Placed) -> Take {
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
                Why::Instead(victim) => Some(victim.clone()),
                _ => None,
            },
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

    /// After Redis gave no answer: what was to be written is written later.
    fn put_back(&self, entry: Entry) {
        let mut state = self.state();
        state.todo.drop.extend(entry.drop);
        state.todo.warmed.extend(entry.warmed);
        state.todo.cooled.extend(entry.cooled);
        state.todo.catalogs.extend(entry.catalogs);
        state.renewed = None;
    }

    /// Asks the hosts whose words are old, unless another worker does.
    pub(super) async fn scout(&self, book: &Book, catalogs: &Catalogs) {
        let old = |host: &&Host| {
            let known = catalogs.get(host.url());
            known.is_none_or(|catalog| book.now.saturating_sub(catalog.at) >= FRESH)
        };
        let asked = self.hosts.iter().filter(old).map(async |host| {
            let is_new = !catalogs.contains_key(host.url());
            if !is_new
                && !self
                    .ledger
                    .claim(&format!("asked:{}", host.url()), FRESH * 9 / 10)
                    .await
            {
                return;
            }
            self.look_at(host, catalogs).await;
        });
        join_all(asked).await;
        self.wake.notify_one();
    }

    /// Asks one host, and notes what it said.
    pub(super) async fn look_at(&self, host: &Host, catalogs: &Catalogs) {
        // Before it is asked: what happens meanwhile is newer than its answer.
        let at = self.now();
        let catalog = match Catalog::ask(&self.ollama, &host.server, self.allow_cloud).await {
            Ok(catalog) => catalog,
            Err(fault) => {
                let known = catalogs.get(host.url()).cloned().unwrap_or_default();
                Catalog {
                    loaded: Vec::new(),
                    gone: fault.class == Class::Unreachable,
                    trouble: Some(fault.text),
                    ..known
                }
            }
        };
        let catalog = Catalog { at, ..catalog };
        self.state().todo.catalogs.push((host.url().to_owned(), catalog));
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

    /// Calls do not wait for hosts that say nothing for the moment.
    fn give_up_on(&self, catalogs: &Catalogs) {
        let mut state = self.state();
        for host in &self.hosts {
            let asked = state.todo.catalogs.iter().any(|(url, _)| url == host.url());
            if !asked && !catalogs.contains_key(host.url()) {
                let silent = Catalog {
                    trouble: Some("it did not say yet what it has".into()),
                    ..Catalog::default()
                };
                state.todo.catalogs.push((host.url().to_owned(), silent));
            }
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

/// Gives places, for as long as there is a fleet.
async fn settle(keeper: Weak<Keeper>, wake: Arc<Notify>) {
    loop {
        let Some(one) = keeper.upgrade() else { return };
        let pause = if one.settle().await { one.pause() } else { PAUSE };
        tokio::select! {
            () = wake.notified() => {}
            () = one.ledger.news(), if one.is_used() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Looks at the hosts while they are used.
async fn scout(keeper: Weak<Keeper>) {
    loop {
        tokio::time::sleep(Duration::from_millis(FRESH / 3)).await;
        let Some(one) = keeper.upgrade() else { return };
        if one.is_used() {
            let (book, catalogs) = {
                let state = one.state();
                (state.book.clone(), state.catalogs.clone())
            };
            let book = Book {
                now: one.now(),
                ..(*book).clone()
            };
            one.scout(&book, &catalogs).await;
        }
    }
}
