//! What was loaded, thrown out and given up: counters for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

/// The counters of loads.
#[derive(Default)]
pub struct Loads(Mutex<Table>);

#[derive(Default)]
struct Table {
    loads: u64,
    by_model: BTreeMap<String, u64>,
    given_up: u64,
    evictions: u64,
    reloads: u64,
    loading: Option<String>,
    seconds: f64,
}

/// A load in progress. Dropped before [`Load::done`], it was given up or failed.
pub struct Load<'a> {
    loads: &'a Loads,
    model: String,
    began: Instant,
    done: bool,
}

impl Loads {
    pub fn begin(&self, model: &str) -> Load<'_> {
        self.table().loading = Some(model.to_owned());
        Load {
            loads: self,
            model: model.to_owned(),
            began: Instant::now(),
            done: false,
        }
    }

    pub fn evict(&self) {
        self.table().evictions += 1;
    }

    /// A loaded model goes because a request wants it with other settings.
    pub fn reload(&self) {
        self.table().reloads += 1;
    }

    pub fn report(&self) -> Value {
        let table = self.table();
        json!({
            "loads": table.loads,
            "loads_by_model": table.by_model,
            "loads_given_up": table.given_up,
            "load_seconds": table.seconds,
            "loading": table.loading,
            "evictions": table.evictions,
            "reloads": table.reloads,
        })
    }

    pub fn reset(&self) {
        let mut table = self.table();
        *table = Table {
            loading: table.loading.take(),
            ..Table::default()
        };
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load<'_> {
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let mut table = self.loads.table();
        table.loading = None;
        table.seconds += self.began.elapsed().as_secs_f64();
        if self.done {
            table.loads += 1;
            *table.by_model.entry(std::mem::take(&mut self.model)).or_default() += 1;
        } else {
            table.given_up += 1;
        }
    }
}
