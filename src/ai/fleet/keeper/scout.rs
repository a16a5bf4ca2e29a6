//! What hosts have and hold, asked of them from time to time while they are used; one worker asks for all.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;

use super::super::super::ollama::Class;
use super::super::catalog::Catalog;
use super::super::host::Host;
use super::super::ledger::{Book, Catalogs};
use super::Keeper;
use crate::clock::{self, Instant};

/// A host's words are this old at most, while it is used.
const FRESH: u64 = 3_000;
/// How long the first calls wait until the hosts have said what they have.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// Between two looks whether another worker has heard from them.
const AGAIN: Duration = Duration::from_millis(50);

/// Looks at the hosts while they are used.
pub(super) async fn scout(keeper: Weak<Keeper>) {
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

impl Keeper {
    /// Waits until it is known what the hosts have now, or that they do not say: a model may have been fetched anew
    /// since.
    pub(in super::super) async fn know(self: &Arc<Self>) {
        self.start();
        if self.is_known() {
            return;
        }
        self.flush().await;
        let began = clock::instant();
        let is_silent = |at: Instant| began.saturating_duration_since(at) < Duration::from_millis(FRESH);
        if self.state().silent.is_some_and(is_silent) {
            return;
        }
        while !self.is_known() {
            // One after the other: both take the lock.
            let book = self.state().book.clone();
            let catalogs = self.catalogs();
            self.first_look(&book, &catalogs).await;
            self.flush().await;
            if self.is_known() {
                break;
            }
            if clock::instant().saturating_duration_since(began) >= FIRST_LOOK {
                self.state().silent = Some(clock::instant());
                break;
            }
            // Another worker asks them at this moment.
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether it is known what all hosts have, from their words of a moment ago.
    fn is_known(&self) -> bool {
        let (now, catalogs) = (self.now(), self.catalogs());
        let is_fresh = |host: &Host| {
            let catalog = catalogs.get(host.url());
            catalog.is_some_and(|catalog| now.saturating_sub(catalog.at) < FRESH)
        };
        self.hosts.iter().all(is_fresh)
    }

    /// Asks hosts that were never asked. Calls do not wait for those that say nothing for the moment.
    pub(super) async fn first_look(&self, book: &Book, catalogs: &Catalogs) {
        let asked = tokio::time::timeout(FIRST_LOOK, self.scout(book, catalogs));
        if asked.await.is_err() {
            self.give_up_on(catalogs);
        }
    }

    /// Asks the hosts whose words are old, unless another worker does.
    async fn scout(&self, book: &Book, catalogs: &Catalogs) {
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
    pub(in super::super) async fn look_at(&self, host: &Host, catalogs: &Catalogs) {
        // Before it is asked: what happens meanwhile is newer than its answer.
        let at = self.now();
        let catalog = match Catalog::ask(&self.ollama, &host.server, self.allow_cloud).await {
            Ok(mut catalog) => {
                if let Some(known) = catalogs.get(host.url()) {
                    catalog.remember(known);
                }
                catalog
            }
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

    /// What is not known of a host that says nothing is noted as such.
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
}
