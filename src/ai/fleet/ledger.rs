//! What all workers write down together: who has which place, who waits, which host failed, what is in memory where.
//!
//! The ledger is in Redis, so that fifty workers are one fleet; without a Redis (a template that is run by hand) it is
//! in the process. Places are leases by the clock of Redis: those of a worker that died come back by themselves.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::breaker::Breaker;
use super::catalog::Catalog;
use super::routing::Waiting;
use super::shared::Shared;
use crate::clock;
use crate::conn::Error;

/// How long a place outlives its worker's last word, in milliseconds.
pub(super) const LEASE: u64 = 15_000;
/// How long a call that waits counts without a word of its worker: it holds up others.
pub(super) const PATIENCE: u64 = 3_000;

/// What a worker writes.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Entry {
    /// The worker.
    pub worker: String,
    /// Places it has.
    pub renew: Vec<String>,
    /// Places it gives back, each after so many milliseconds.
    pub drop: Vec<(String, u64)>,
    /// Its calls that wait; the first ones, where they are many.
    pub waiting: Vec<Waiting>,
    /// What it found out of hosts.
    pub breakers: Vec<(String, Breaker)>,
    /// Models that answered: host and model.
    pub warmed: Vec<(String, String)>,
    /// Models that are gone from a host's memory.
    pub cooled: Vec<(String, String)>,
    /// What loads took, in milliseconds.
    pub loads: Vec<(String, u64)>,
    /// What an answer of a hundred tokens took, in milliseconds: host, model, and that.
    pub paces: Vec<(String, String, u64)>,
    /// What hosts said of themselves.
    pub catalogs: Vec<(String, Catalog)>,
    /// Which catalogs it has read.
    pub seen: u64,
}

impl Entry {
    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.renew.is_empty()
            && self.drop.is_empty()
            && self.waiting.is_empty()
            && self.breakers.is_empty()
            && self.warmed.is_empty()
            && self.cooled.is_empty()
            && self.loads.is_empty()
            && self.paces.is_empty()
            && self.catalogs.is_empty()
    }
}

/// What is written of a model on a host.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) enum Memory {
    /// It answered then.
    Warm(u64),
    /// A call went there then that makes it load.
    Loading(u64),
    /// It was thrown out then.
    Gone(u64),
}

/// What a worker reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    /// Milliseconds, by the ledger's clock.
    pub now: u64,
    /// Calls by host and model.
    pub busy: Vec<(String, String, usize)>,
    /// All calls that wait.
    pub waiting: Vec<Waiting>,
    /// By host.
    pub breakers: HashMap<String, Breaker>,
    /// By host and model.
    pub memory: HashMap<(String, String), Memory>,
    /// By model, in milliseconds.
    pub loads: BTreeMap<String, u64>,
    /// By host and model: milliseconds for a hundred tokens, and when that was measured.
    pub paces: HashMap<(String, String), (u64, u64)>,
    /// By host; those of before where nothing is new.
    pub catalogs: Option<HashMap<String, Catalog>>,
    /// Grows with every change of the catalogs.
    pub version: u64,
    /// How many loads were ordered, by host: what was chosen is had only where none was ordered since.
    pub turns: BTreeMap<String, u64>,
}

/// A place that is wanted.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Take {
    /// Names the place: id, host and model.
    pub place: String,
    /// The host.
    pub host: String,
    /// The model.
    pub model: String,
    /// Calls at once on the host.
    pub host_limit: usize,
    /// Calls at once of the model; 0 is no limit.
    pub model_limit: usize,
    /// Whether the model has to be loaded.
    pub cold: bool,
    /// The models that go.
    pub instead: Vec<String>,
    /// How many loads had been ordered on the host when it was chosen.
    pub turn: u64,
}

/// The name of a place.
pub(super) fn place(id: &str, host: &str, model: &str) -> String {
    format!("{id}\t{host}\t{model}")
}

/// Host and model of a place.
pub(super) fn whose(place: &str) -> (&str, &str) {
    let mut parts = place.split('\t').skip(1);
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// Where it is.
#[derive(Debug)]
pub(super) enum Ledger {
    /// In Redis.
    Shared(Box<Shared>),
    /// In this process.
    Local(Box<Mutex<Local>>),
}

impl Ledger {
    /// Writes, and reads what there is.
    pub(super) async fn write(&self, entry: &Entry) -> Result<Book, Error> {
        match self {
            Self::Shared(shared) => shared.write(entry).await,
            Self::Local(local) => Ok(lock(local).write(entry, milliseconds())),
        }
    }

    /// Takes places, those that can still be had; in the same order.
    pub(super) async fn take(&self, worker: &str, takes: &[Take]) -> Result<Vec<bool>, Error> {
        match self {
            Self::Shared(shared) => shared.take(worker, takes).await,
            Self::Local(local) => Ok(lock(local).take(takes, milliseconds())),
        }
    }

    /// Whether this worker is the one that does something now, such as asking a host what it has; for so many
    /// milliseconds nobody else is.
    pub(super) async fn claim(&self, what: &str, for_ms: u64) -> bool {
        match self {
            Self::Shared(shared) => shared.claim(what, for_ms).await,
            Self::Local(_) => true,
        }
    }

    /// Keeps a claim.
    pub(super) async fn hold(&self, what: &str, for_ms: u64) {
        if let Self::Shared(shared) = self {
            shared.hold(what, for_ms).await;
        }
    }

    /// Waits until another worker freed a place.
    pub(super) async fn news(&self) {
        match self {
            Self::Shared(shared) => shared.news().await,
            Self::Local(_) => std::future::pending().await,
        }
    }
}

fn lock(local: &Mutex<Local>) -> std::sync::MutexGuard<'_, Local> {
    local.lock().unwrap_or_else(PoisonError::into_inner)
}

fn milliseconds() -> u64 {
    u64::try_from(clock::Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// A ledger of one process.
#[derive(Debug, Default)]
pub(super) struct Local {
    places: BTreeMap<String, u64>,
    waiting: Vec<Waiting>,
    breakers: HashMap<String, Breaker>,
    memory: HashMap<(String, String), Memory>,
    loads: BTreeMap<String, u64>,
    paces: HashMap<(String, String), (u64, u64)>,
    catalogs: HashMap<String, Catalog>,
    version: u64,
}

impl Local {
    fn write(&mut self, entry: &Entry, now: u64) -> Book {
        for (place, after) in &entry.drop {
            if *after == 0 {
                self.places.remove(place);
            } else {
                self.places.insert(place.clone(), now + after);
            }
        }
        for place in &entry.renew {
            self.places.insert(place.clone(), u64::MAX);
        }
        self.places.retain(|_, until| *until > now);
        self.waiting.clone_from(&entry.waiting);
        self.breakers.extend(entry.breakers.iter().cloned());
        let memory =
            |of: &[(String, String)], what: Memory| of.iter().cloned().map(|key| (key, what)).collect::<Vec<_>>();
        self.memory.extend(memory(&entry.warmed, Memory::Warm(now)));
        self.memory.extend(memory(&entry.cooled, Memory::Gone(now)));
        for (model, took) in &entry.loads {
            let mean = self.loads.get(model).map_or(*took, |before| (before * 3 + took) / 4);
            self.loads.insert(model.clone(), mean);
        }
        for (host, model, pace) in &entry.paces {
            let key = (host.clone(), model.clone());
            let mean = self
                .paces
                .get(&key)
                .map_or(*pace, |(before, _)| (before * 3 + pace) / 4);
            self.paces.insert(key, (mean, now));
        }
        if !entry.catalogs.is_empty() {
            self.version += 1;
            for (host, catalog) in &entry.catalogs {
                let at = if catalog.at == 0 { now } else { catalog.at };
                self.catalogs.insert(host.clone(), Catalog { at, ..catalog.clone() });
            }
        }
        let mut busy: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for place in self.places.keys() {
            *busy.entry(whose(place)).or_default() += 1;
        }
        Book {
            now,
            busy: busy
                .into_iter()
                .map(|((host, model), calls)| (host.to_owned(), model.to_owned(), calls))
                .collect(),
            waiting: self.waiting.clone(),
            breakers: self.breakers.clone(),
            memory: self.memory.clone(),
            loads: self.loads.clone(),
            paces: self.paces.clone(),
            catalogs: (self.version != entry.seen).then(|| self.catalogs.clone()),
            version: self.version,
            // Nobody else chooses between a look and a take.
            turns: BTreeMap::new(),
        }
    }

    fn take(&mut self, takes: &[Take], now: u64) -> Vec<bool> {
        takes.iter().map(|take| self.take_one(take, now)).collect()
    }

    fn take_one(&mut self, take: &Take, now: u64) -> bool {
        let on_host = self.places.keys().filter(|place| whose(place).0 == take.host).count();
        let of_model = self.places.keys().filter(|place| whose(place).1 == take.model).count();
        if on_host >= take.host_limit || (take.model_limit > 0 && of_model >= take.model_limit) {
            return false;
        }
        self.places.insert(take.place.clone(), u64::MAX);
        let key = |model: &str| (take.host.clone(), model.to_owned());
        if take.cold {
            self.memory.insert(key(&take.model), Memory::Loading(now));
        }
        for victim in &take.instead {
            self.memory.insert(key(victim), Memory::Gone(now));
        }
        true
    }
}

/// Shares what does not change between two readings.
pub(super) type Catalogs = Arc<HashMap<String, Catalog>>;
