//! The model servers as one: which of them answers a call, and when; what is used, and how much may be.
//!
//! A call waits until [`routing`] gives it a place on a host, asks that host, and goes to another one when it fails.
//! What all workers must agree on is in the [`ledger`].

mod abilities;
mod accounts;
mod breaker;
mod cache;
mod calls;
mod catalog;
mod flight;
mod host;
mod keeper;
mod ledger;
mod profile;
mod pull;
mod rates;
mod routing;
mod seen;
mod shared;
mod strategy;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use accounts::{Budget, Period, Used};
pub use catalog::canonical;
pub use host::{Host, HostOptions};
pub use profile::Profile;
pub use rates::Rate;
pub use seen::Seen;
pub use strategy::Strategy;

pub(super) use accounts::Caller;
pub(super) use calls::{Heard, Trouble};

use super::ollama::Ollama;
use super::options::Options;
use crate::conn::Link;
use keeper::Keeper;
use ledger::Ledger;
use shared::Shared;
use view::Rules;

/// What a load takes until one was seen.
const USUAL_LOAD: Duration = Duration::from_secs(5);

/// All model servers that this process may use. Clones share everything.
#[derive(Clone, Debug)]
pub struct Fleet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    keeper: Arc<Keeper>,
    options: Options,
    profiles: BTreeMap<String, Profile>,
    abilities: abilities::Abilities,
}

impl Fleet {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// A text for people: a host is none, or TLS cannot be set up.
    pub fn new(options: &Options) -> Result<Self, String> {
        let hosts = options.hosts.iter().map(Host::new).collect::<Result<Vec<_>, _>>()?;
        if hosts.is_empty() {
            return Err("ai_hosts: there is no model server; write http://127.0.0.1:11434".into());
        }
        for (at, host) in hosts.iter().enumerate() {
            if hosts[..at].iter().any(|other| other.url() == host.url()) {
                return Err(format!("ai_hosts: {} is there twice", host.url()));
            }
            if host.is_in_the_clear() {
                tracing::warn!(
                    "prompts and answers go to {} in the clear; https keeps them from others",
                    host.url()
                );
            }
        }
        for (at, rate) in options.rates.iter().enumerate() {
            rate.check(&options.rates[..at])?;
        }
        let profiles: BTreeMap<String, Profile> = options
            .models
            .iter()
            .map(|(name, profile)| (canonical(name), profile.clone()))
            .collect();
        let limits = profiles
            .iter()
            .filter_map(|(name, profile)| Some((name.clone(), profile.max_parallel?)))
            .collect();
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let rules = Rules {
            limits,
            usual_load: milliseconds(USUAL_LOAD),
            switch_after: milliseconds(options.switch_after),
        };
        let ledger = match &options.redis {
            Some((endpoint, prefix)) => Ledger::Shared(Box::new(Shared::new(endpoint.clone(), prefix))),
            None => Ledger::Local(Box::default()),
        };
        let ollama = Ollama::new(options.limits)?;
        Ok(Self {
            inner: Arc::new(Inner {
                keeper: Keeper::new(hosts, rules, ledger, ollama, options.allow_cloud),
                options: options.clone(),
                profiles,
                abilities: abilities::Abilities::default(),
            }),
        })
    }

    /// Whether models may be asked that run on ollama.com.
    pub(super) fn allow_cloud(&self) -> bool {
        self.inner.options.allow_cloud
    }

    /// The client of the servers.
    pub fn ollama(&self) -> &Ollama {
        &self.inner.keeper.ollama
    }

    /// The servers, in the order of the settings.
    pub fn hosts(&self) -> &[Host] {
        &self.inner.keeper.hosts
    }

    /// How a model is loaded, if the settings say so.
    pub fn profile(&self, model: &str) -> Option<&Profile> {
        self.inner.profiles.get(&canonical(model))
    }

    /// How a call's host is chosen. One without the header that a sticky choice goes by goes by memory.
    fn strategy(&self, model: &str, caller: &Caller<'_>) -> Strategy {
        let of_model = || self.profile(model)?.routing.as_ref();
        match caller.routing.or_else(of_model).unwrap_or(&self.options().routing) {
            Strategy::Sticky(name) => caller.named(name).map_or(Strategy::WarmFirst, Strategy::Sticky),
            other => other.clone(),
        }
    }

    /// Whether a model is in memory somewhere, or can be loaded without throwing another out; while nothing is known of
    /// the hosts, all are.
    pub(super) fn is_at_hand(&self, model: &str) -> bool {
        let picture = self.keeper().picture();
        picture.is_none_or(|view| view.is_at_hand(model))
    }

    fn keeper(&self) -> &Arc<Keeper> {
        &self.inner.keeper
    }

    fn abilities(&self) -> &abilities::Abilities {
        &self.inner.abilities
    }

    pub(super) fn options(&self) -> &Options {
        &self.inner.options
    }

    /// The Redis that workers share, while it can be reached.
    async fn link(&self) -> Option<&Link> {
        match &self.inner.keeper.ledger {
            Ledger::Shared(shared) => shared.link().await.ok(),
            Ledger::Local(_) => None,
        }
    }

    fn urls(&self) -> String {
        let urls: Vec<&str> = self.hosts().iter().map(Host::url).collect();
        urls.join(", ")
    }
}
