//! Fetching a model that no host has, where the settings allow it; one host fetches it, whoever asks (O-089).

use std::time::Duration;

use super::super::ollama::{Fault, Progress, Speaks};
use super::Fleet;
use super::calls::{Hear, Heard, Trouble};
use super::catalog::{canonical, fits};
use super::host::Host;
use crate::clock;

/// Whoever pulls says so again within this time.
const HELD: u64 = 10_000;
/// Between two words about how it goes.
const WORD: Duration = Duration::from_secs(1);

impl Fleet {
    /// Whether a model may be fetched.
    pub(super) fn may_pull(&self, key: &str) -> bool {
        self.options().pull.iter().any(|pattern| fits(key, pattern))
    }

    /// Lets a host fetch a model, or waits until another worker's call has done so.
    pub(super) async fn pull_somewhere(&self, model: &str, hear: Hear<'_>) -> Result<(), Trouble> {
        let key = canonical(model);
        let claim = format!("pull:{key}");
        loop {
            if self
                .keeper()
                .catalogs()
                .values()
                .any(|catalog| catalog.models.contains_key(&key))
            {
                return Ok(());
            }
            if self.keeper().ledger.claim(&claim, HELD).await {
                break;
            }
            // Another worker fetches it: the hosts say when it is there.
            tokio::time::sleep(WORD).await;
            for host in self
                .keeper()
                .hosts
                .iter()
                .filter(|host| host.server.speaks == Speaks::Ollama)
            {
                self.keeper().look_at(host, &self.keeper().catalogs()).await;
            }
            self.keeper().flush().await;
        }
        let catalogs = self.keeper().catalogs();
        let takes = |host: &&Host| {
            let known = catalogs.get(host.url());
            let patterns = &host.options.models;
            host.server.speaks == Speaks::Ollama
                && known.is_none_or(|catalog| catalog.trouble.is_none())
                && (patterns.is_empty() || patterns.iter().any(|pattern| fits(&key, pattern)))
        };
        // The one that has the fewest, so that models spread.
        let emptiest = |host: &&Host| catalogs.get(host.url()).map_or(0, |catalog| catalog.models.len());
        let Some(host) = self.keeper().hosts.iter().filter(takes).min_by_key(emptiest) else {
            let text = format!("model {model:?} is on no host, and none can fetch it now");
            return Err(Trouble::Fault(Fault::unavailable(&self.urls(), text)));
        };
        let mut told = clock::instant();
        let mut tell = |progress: &Progress| {
            let now = clock::instant();
            if now.saturating_duration_since(told) >= WORD {
                told = now;
                hear(Heard::Pulling(progress.clone()));
            }
        };
        let pulling = self.keeper().ollama.pull(&host.server, model, &mut tell);
        let mut pulling = std::pin::pin!(pulling);
        loop {
            tokio::select! {
                done = &mut pulling => {
                    done?;
                    break;
                }
                () = tokio::time::sleep(Duration::from_millis(HELD / 3)) => self.keeper().ledger.hold(&claim, HELD).await,
            }
        }
        self.keeper().look_at(host, &self.keeper().catalogs()).await;
        self.keeper().flush().await;
        Ok(())
    }
}
