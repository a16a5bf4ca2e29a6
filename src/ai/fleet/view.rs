//! The ledger and the settings, as what a choice needs. Pure.

use std::collections::BTreeMap;

use super::catalog::{Catalog, fits};
use super::host::Host;
use super::ledger::{Book, Catalogs, Memory};
use super::routing;

/// In milliseconds: what was written a moment before a host was asked, it may not have known yet.
const MOMENT: u64 = 1_000;
/// In milliseconds: what was measured longer ago says nothing, so that a host that was slow once is tried again.
const LATELY: u64 = 600_000;

/// What the settings say that is the same for all hosts.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Calls of a model at once, on all hosts together.
    pub limits: BTreeMap<String, usize>,
    /// What a load takes where nothing is known, in milliseconds.
    pub usual_load: u64,
    /// After this a cold model's call has its turn, in milliseconds.
    pub switch_after: u64,
}

pub(super) fn view(hosts: &[Host], rules: &Rules, book: &Book, catalogs: &Catalogs) -> routing::View {
    routing::View {
        now: book.now,
        hosts: hosts
            .iter()
            .map(|host| one(host, book, catalogs.get(host.url())))
            .collect(),
        waiting: book.waiting.clone(),
        limits: rules.limits.clone(),
        loads: book.loads.clone(),
        usual_load: rules.usual_load,
        switch_after: rules.switch_after,
    }
}

fn one(host: &Host, book: &Book, catalog: Option<&Catalog>) -> routing::Host {
    let url = host.url();
    let busy: BTreeMap<String, usize> = book
        .busy
        .iter()
        .filter(|(on, _, _)| on == url)
        .map(|(_, model, calls)| (model.clone(), *calls))
        .collect();
    let (warm, loading) = memory(url, book, catalog, &busy);
    let patterns = &host.options.models;
    let wanted = |model: &str| patterns.is_empty() || patterns.iter().any(|pattern| fits(model, pattern));
    let known = catalog.filter(|catalog| !catalog.models.is_empty() || catalog.trouble.is_none());
    let serves = match known {
        Some(catalog) => Some(catalog.models.keys().filter(|model| wanted(model)).cloned().collect()),
        // Not asked yet: names without a star say enough.
        None if !patterns.is_empty() && patterns.iter().all(|pattern| !pattern.contains('*')) => {
            Some(patterns.iter().map(|name| super::catalog::canonical(name)).collect())
        }
        None => None,
    };
    let failed = || {
        book.breakers.iter().filter_map(|(of, breaker)| {
            let model = of.strip_prefix(url)?.strip_prefix('\t')?;
            Some((model.to_owned(), *breaker))
        })
    };
    routing::Host {
        url: url.to_owned(),
        weight: host.options.weight,
        max_parallel: host.options.max_parallel,
        max_loaded: host.options.max_loaded,
        vram: host.options.vram,
        sizes: match host.options.vram {
            Some(_) => catalog.map_or_else(BTreeMap::new, Catalog::sizes),
            None => BTreeMap::new(),
        },
        busy,
        warm,
        loading,
        serves,
        // Whoever asks hosts what they have is the one that tries whether they are there again.
        health: match catalog {
            Some(catalog) if catalog.gone => routing::Health::Broken,
            _ => book.breakers.get(url).copied().unwrap_or_default().health(book.now),
        },
        gone: catalog.is_some_and(|catalog| catalog.gone),
        shaky: failed()
            .filter(|(_, breaker)| breaker.failures > 0)
            .map(|(model, _)| model)
            .collect(),
        paces: book
            .paces
            .iter()
            .filter(|((on, _), (_, at))| on == url && at + LATELY > book.now)
            .map(|((_, model), (pace, _))| (model.clone(), *pace))
            .collect(),
        sick: failed()
            .map(|(model, breaker)| (model, breaker.health(book.now)))
            .collect(),
    }
}

/// What is in a host's memory, the last used first, and how many loads run: its own words, and what was written since.
fn memory(url: &str, book: &Book, catalog: Option<&Catalog>, busy: &BTreeMap<String, usize>) -> (Vec<String>, usize) {
    let said_at = catalog.map_or(0, |catalog| catalog.at);
    let mut used: BTreeMap<&str, u64> = BTreeMap::new();
    let loaded = catalog.map_or(&[][..], |catalog| &catalog.loaded);
    for model in loaded {
        used.insert(model, 0);
    }
    let mut loading = 0;
    for ((_, model), what) in book.memory.iter().filter(|((on, _), _)| on == url) {
        let in_use = busy.get(model).is_some_and(|calls| *calls > 0);
        match *what {
            // A load without a call is one that was given up.
            Memory::Loading(at) if in_use => {
                loading += 1;
                used.insert(model, at);
            }
            // What the host has not said since, it has forgotten.
            Memory::Warm(at) if in_use || at + MOMENT > said_at || loaded.contains(model) => {
                used.insert(model, at);
            }
            Memory::Gone(at) if at + MOMENT > said_at && !in_use => {
                used.remove(model.as_str());
            }
            _ => {}
        }
    }
    let mut warm: Vec<(&str, u64)> = used.into_iter().collect();
    warm.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
    (warm.into_iter().map(|(model, _)| model.to_owned()).collect(), loading)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::super::breaker::{Breaker, Told};
    use super::*;

    fn view_of(memory: &[(&str, Memory)], busy: &[(&str, usize)], loaded: &[&str]) -> routing::Host {
        let hosts = [Host::new(&"http://h:1".into()).unwrap()];
        let url = || hosts[0].url().to_owned();
        let catalog = Catalog {
            at: 10_000,
            models: ["a:latest", "b:latest"]
                .map(|name| (name.to_owned(), String::new()))
                .into(),
            loaded: loaded.iter().map(|model| (*model).to_owned()).collect(),
            ..Catalog::default()
        };
        let book = Book {
            now: 20_000,
            busy: busy
                .iter()
                .map(|(model, calls)| (url(), (*model).into(), *calls))
                .collect(),
            memory: memory
                .iter()
                .map(|(model, what)| ((url(), (*model).into()), *what))
                .collect(),
            breakers: HashMap::from([(url(), Breaker::default().after(Told::Busy, 19_500))]),
            ..Book::default()
        };
        let rules = Rules {
            limits: BTreeMap::new(),
            usual_load: 1,
            switch_after: 1,
        };
        view(&hosts, &rules, &book, &Arc::new(HashMap::from([(url(), catalog)])))
            .hosts
            .remove(0)
    }

    #[test]
    fn memory_is_what_the_host_said_and_what_happened_since() {
        let host = view_of(
            &[
                ("a:latest", Memory::Warm(5_000)),
                ("b:latest", Memory::Warm(15_000)),
                ("c:latest", Memory::Loading(16_000)),
                ("d:latest", Memory::Loading(17_000)),
                ("e:latest", Memory::Warm(6_000)),
                ("f:latest", Memory::Gone(12_000)),
            ],
            &[("c:latest", 1)],
            &["a:latest", "f:latest"],
        );
        assert_eq!(host.warm, ["c:latest", "b:latest", "a:latest"]);
        assert_eq!(host.loading, 1, "the load of d was given up");
        assert_eq!(host.room("a:latest"), 0, "it said a moment ago that it is busy");
        assert!(host.may_serve("a:latest") && !host.may_serve("c:latest"));
    }
}
