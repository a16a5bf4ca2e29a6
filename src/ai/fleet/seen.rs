//! The fleet as people see it: hosts, who is on them, what is in their memory; and what they can tell it to do.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::ollama::{Fault, Progress};
use super::Fleet;
use super::catalog::{Catalog, canonical};
use super::host::Host;
use super::ledger::Entry;
use super::routing::Health;
use super::view::view;

/// A host now.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Its base URL.
    pub url: String,
    /// `ok`, `trial` or `broken`, or what it said instead of an answer.
    pub state: String,
    /// Whether it answered.
    #[serde(skip)]
    pub answers: bool,
    /// Calls now, by model.
    pub calls: std::collections::BTreeMap<String, usize>,
    /// Calls at once.
    pub max_parallel: usize,
    /// Models in memory.
    pub loaded: Vec<String>,
    /// Models it has.
    pub models: Vec<String>,
}

impl Fleet {
    /// All hosts, asked now; and how many calls wait for a place.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn seen(&self) -> Result<(Vec<Seen>, usize), String> {
        let keeper = self.keeper();
        let entry = Entry {
            worker: "seen".into(),
            ..Entry::default()
        };
        let book = keeper.ledger.write(&entry).await.map_err(|error| error.to_string())?;
        let waiting = book.waiting.len();
        let catalogs = std::sync::Arc::new(book.catalogs.clone().unwrap_or_default());
        let view = view(&keeper.hosts, &keeper.rules, &book, &catalogs);
        let asked = keeper
            .hosts
            .iter()
            .map(|host| Catalog::ask(&keeper.ollama, &host.server, keeper.allow_cloud));
        let asked = futures_util::future::join_all(asked).await;
        let hosts = view.hosts.into_iter().zip(asked).map(|(host, asked)| {
            let state = match (&asked, host.health) {
                (Err(fault), _) => fault.text.clone(),
                (Ok(_), Health::Well) => "ok".into(),
                (Ok(_), Health::Trial) => "trial".into(),
                (Ok(_), Health::Broken) => "broken".into(),
            };
            let answers = asked.is_ok();
            let catalog = asked.unwrap_or_default();
            Seen {
                url: host.url,
                state,
                answers,
                calls: host.busy,
                max_parallel: host.max_parallel,
                loaded: catalog.loaded,
                models: catalog.models.into_keys().collect(),
            }
        });
        Ok((hosts.collect(), waiting))
    }

    /// The hosts with a URL, or all.
    ///
    /// # Errors
    /// There is none with that URL.
    pub fn named(&self, url: Option<&str>) -> Result<Vec<&Host>, String> {
        let Some(url) = url else {
            return Ok(self.hosts().iter().collect());
        };
        let wanted = url.trim_end_matches('/');
        match self.hosts().iter().find(|host| host.url() == wanted) {
            Some(host) => Ok(vec![host]),
            None => Err(format!("{url} is no host of ai_hosts; there are {}", self.urls())),
        }
    }

    /// Whether a host has a model, as it says now.
    ///
    /// # Errors
    /// It did not say.
    pub async fn has(&self, host: &Host, model: &str) -> Result<bool, Fault> {
        let catalog = Catalog::ask(self.ollama(), &host.server, self.allow_cloud()).await?;
        Ok(catalog.models.contains_key(&canonical(model)))
    }

    /// Loads a model into a host's memory, as calls will want it.
    ///
    /// # Errors
    /// It could not be loaded.
    pub async fn warm(&self, host: &Host, model: &str, keep_alive: Option<&Value>) -> Result<(), Fault> {
        let mut body = json!({"model": model, "stream": false});
        if let Some(body) = body.as_object_mut() {
            if let Some(profile) = self.profile(model) {
                profile
                    .apply(model, body)
                    .map_err(|text| Fault::refused(host.url(), text))?;
            }
            if let Some(keep) = keep_alive {
                body.insert("keep_alive".into(), keep.clone());
            }
        }
        let limits = self.ollama().limits();
        self.ollama()
            .load(&host.server, &body, limits.load + Duration::from_secs(5))
            .await
    }

    /// Throws a model out of a host's memory as soon as nobody uses it.
    ///
    /// # Errors
    /// It did not hear.
    pub async fn unload(&self, host: &Host, model: &str) -> Result<(), Fault> {
        self.ollama().unload(&host.server, model).await
    }

    /// Removes a model from a host's disk.
    ///
    /// # Errors
    /// It did not.
    pub async fn delete(&self, host: &Host, model: &str) -> Result<(), Fault> {
        self.ollama().delete(&host.server, model).await
    }

    /// Gives a model of a host one more name.
    ///
    /// # Errors
    /// It did not.
    pub async fn copy(&self, host: &Host, model: &str, name: &str) -> Result<(), Fault> {
        self.ollama().copy(&host.server, model, name).await
    }

    /// Lets a host fetch a model.
    ///
    /// # Errors
    /// It could not.
    pub async fn pull(&self, host: &Host, model: &str, tell: &mut (dyn FnMut(&Progress) + Send)) -> Result<(), Fault> {
        self.ollama().pull(&host.server, model, tell).await
    }
}
