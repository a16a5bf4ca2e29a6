//! What happened to each request for a model: the record that tests read on the control port.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::HeaderMap;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

/// How many ended requests are remembered.
const RECENT: usize = 10_000;

/// How many requests are kept as they came.
const RECEIVED: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Completed,
    ClientLeft,
    Error,
}

#[derive(Debug, Default)]
pub struct Stats {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    requests: u64,
    peak_open: usize,
    completed: u64,
    client_left: u64,
    errors: u64,
    pulls: u64,
    to_the_cloud: u64,
    open: BTreeMap<u64, Open>,
    recent: VecDeque<Value>,
    received: VecDeque<Received>,
    working: usize,
    peak_working: usize,
    peak_working_by_model: BTreeMap<String, usize>,
    working_by_model: BTreeMap<String, usize>,
}

/// A request that an engine works on now.
#[derive(Debug)]
pub struct Working {
    stats: Arc<Stats>,
    model: String,
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut table = self.stats.table();
        table.working = table.working.saturating_sub(1);
        if let Some(working) = table.working_by_model.get_mut(&self.model) {
            *working = working.saturating_sub(1);
        }
    }
}

/// A request as it came.
#[derive(Debug)]
struct Received {
    id: u64,
    path: &'static str,
    headers: HeaderMap,
    body: Bytes,
}

impl Received {
    fn report(&self) -> Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value.as_bytes()).into()));
        json!({
            "id": self.id,
            "path": self.path,
            "headers": headers.collect::<serde_json::Map<_, _>>(),
            "body": text(&self.body),
        })
    }
}

#[derive(Debug)]
struct Open {
    model: String,
    path: &'static str,
    started: f64,
    tokens: Arc<AtomicU64>,
}

impl Open {
    fn record(&self, id: u64, ended: Option<f64>, outcome: Option<Outcome>) -> Value {
        json!({
            "id": id,
            "model": self.model,
            "path": self.path,
            "started_s": self.started,
            "ended_s": ended,
            "outcome": outcome,
            "tokens": self.tokens.load(Ordering::Relaxed),
        })
    }
}

impl Stats {
    /// Opens the record of a request. Dropped before [`Track::finish`], the request counts as given up by its client.
    pub fn begin(self: &Arc<Self>, path: &'static str, headers: HeaderMap, body: Bytes) -> Track {
        let tokens = Arc::new(AtomicU64::new(0));
        let mut table = self.table();
        table.last_id += 1;
        table.requests += 1;
        let id = table.last_id;
        if table.received.len() == RECEIVED {
            table.received.pop_front();
        }
        table.received.push_back(Received {
            id,
            path,
            headers,
            body,
        });
        let open = Open {
            model: String::new(),
            path,
            started: unix_now(),
            tokens: Arc::clone(&tokens),
        };
        table.open.insert(id, open);
        table.peak_open = table.peak_open.max(table.open.len());
        Track {
            stats: Arc::clone(self),
            id,
            tokens,
            finished: false,
        }
    }

    /// Counts a request for a model that runs in the cloud.
    pub fn to_the_cloud(&self) {
        self.table().to_the_cloud += 1;
    }

    /// Counts a pull that came to its end.
    pub fn pulled(&self) {
        self.table().pulls += 1;
    }

    /// Counts a request that has its slot, until the guard is dropped.
    pub fn work(self: &Arc<Self>, model: &str) -> Working {
        let mut table = self.table();
        table.working += 1;
        table.peak_working = table.peak_working.max(table.working);
        let now = table.working_by_model.entry(model.to_owned()).or_default();
        *now += 1;
        let now = *now;
        let peak = table.peak_working_by_model.entry(model.to_owned()).or_default();
        *peak = now.max(*peak);
        Working {
            stats: Arc::clone(self),
            model: model.to_owned(),
        }
    }

    /// The answer of `GET /_stats`. Times are Unix seconds; `running` lists the open requests like `recent` the ended
    /// ones.
    pub fn report(&self) -> Value {
        let table = self.table();
        let running: Vec<_> = table
            .open
            .iter()
            .map(|(id, open)| open.record(*id, None, None))
            .collect();
        json!({
            "requests": table.requests,
            "open": table.open.len(),
            "peak_open": table.peak_open,
            "client_left_early": table.client_left,
            "completed": table.completed,
            "errors": table.errors,
            "pulls": table.pulls,
            "to_the_cloud": table.to_the_cloud,
            "working": table.working,
            "peak_working": table.peak_working,
            "peak_working_by_model": table.peak_working_by_model,
            "running": running,
            "recent": table.recent,
        })
    }

    /// The answer of `GET /_requests`: the latest requests as they came, oldest first.
    pub fn received(&self) -> Value {
        self.table().received.iter().map(Received::report).collect()
    }

    /// Starts counting anew; open requests stay open.
    pub fn reset(&self) {
        let mut table = self.table();
        let (open, last_id) = (std::mem::take(&mut table.open), table.last_id);
        *table = Table {
            peak_open: open.len(),
            peak_working: table.working,
            working: table.working,
            working_by_model: std::mem::take(&mut table.working_by_model),
            last_id,
            open,
            ..Table::default()
        };
    }

    fn end(&self, id: u64, outcome: Outcome) {
        let mut table = self.table();
        let Some(open) = table.open.remove(&id) else { return };
        match outcome {
            Outcome::Completed => table.completed += 1,
            Outcome::ClientLeft => table.client_left += 1,
            Outcome::Error => table.errors += 1,
        }
        if table.recent.len() == RECENT {
            table.recent.pop_front();
        }
        table.recent.push_back(open.record(id, Some(unix_now()), Some(outcome)));
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open record of one request.
#[derive(Debug)]
pub struct Track {
    stats: Arc<Stats>,
    id: u64,
    tokens: Arc<AtomicU64>,
    finished: bool,
}

impl Track {
    pub fn model(&self, name: &str) {
        if let Some(open) = self.stats.table().open.get_mut(&self.id) {
            name.clone_into(&mut open.model);
        }
    }

    /// The counter of the tokens that were worked out for this request.
    pub fn tokens(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.tokens)
    }

    /// Closes the record; only the first call counts.
    pub fn finish(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.finished, true) {
            self.stats.end(self.id, outcome);
        }
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        self.finish(Outcome::ClientLeft);
    }
}

fn unix_now() -> f64 {
    jiff::Timestamp::now().as_microsecond() as f64 / 1e6
}
