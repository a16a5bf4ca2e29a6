//! What a host has and what is in its memory, as it said itself a moment ago.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::ollama::{Fault, Ollama, Server};

/// A host's own words.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Catalog {
    /// When it was asked, in milliseconds of the ledger's clock.
    #[serde(default)]
    pub at: u64,
    /// The models it has, by canonical name, with the digest of their weights.
    pub models: BTreeMap<String, String>,
    /// Those in its memory; the one that stays longest comes first.
    pub loaded: Vec<String>,
    /// Bytes of the weights on its disk.
    #[serde(default)]
    pub on_disk: BTreeMap<String, u64>,
    /// Bytes of video memory that models took, when they were last seen there.
    #[serde(default)]
    pub in_memory: BTreeMap<String, u64>,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trouble: Option<String>,
    /// Nobody is there.
    #[serde(default)]
    pub gone: bool,
}

impl Catalog {
    /// Asks a host. Models of the cloud under harmless names are left out unless they are allowed (O-025).
    pub(super) async fn ask(ollama: &Ollama, server: &Server, allow_cloud: bool) -> Result<Self, Fault> {
        let models = ollama.installed(server).await?;
        let loaded = ollama.loaded(server).await?;
        let local = models
            .into_iter()
            .filter(|model| allow_cloud || model.remote_host.as_deref().is_none_or(str::is_empty));
        let local: Vec<_> = local.map(|model| (canonical(&model.name), model)).collect();
        let in_memory = loaded.iter().filter(|model| model.size_vram > 0);
        Ok(Self {
            on_disk: local.iter().map(|(name, model)| (name.clone(), model.size)).collect(),
            models: local
                .into_iter()
                .map(|(name, model)| (name, model.digest.unwrap_or_default()))
                .collect(),
            in_memory: in_memory
                .map(|model| (canonical(&model.name), model.size_vram))
                .collect(),
            loaded: loaded.iter().map(|model| canonical(&model.name)).collect(),
            ..Self::default()
        })
    }

    /// What is known of models that are not in memory now stays known.
    pub(super) fn remember(&mut self, before: &Self) {
        for (model, bytes) in &before.in_memory {
            if self.models.contains_key(model) {
                self.in_memory.entry(model.clone()).or_insert(*bytes);
            }
        }
    }

    /// What models take of the video memory: as it was seen, or else what they have on disk.
    pub(super) fn sizes(&self) -> BTreeMap<String, u64> {
        let mut sizes = self.on_disk.clone();
        sizes.extend(self.in_memory.clone());
        sizes
    }
}

/// The one name of a model that has several: `m`, `M:latest` and `registry.ollama.ai/library/m` are the same (O-023).
pub fn canonical(name: &str) -> String {
    let name = name.trim().to_lowercase();
    let name = name.strip_prefix("registry.ollama.ai/").unwrap_or(&name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    match name.rsplit('/').next() {
        Some(last) if last.contains(':') => name.to_owned(),
        _ => format!("{name}:latest"),
    }
}

/// Whether a name fits a pattern, in which `*` stands for anything.
pub(super) fn fits(name: &str, pattern: &str) -> bool {
    let pattern = pattern.trim().to_lowercase();
    let pattern = if pattern.contains('*') {
        pattern
    } else {
        canonical(&pattern)
    };
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o_023_a_model_has_one_name() {
        for name in ["m", "M:latest", "library/m", "registry.ollama.ai/library/m:Latest"] {
            assert_eq!(canonical(name), "m:latest", "{name}");
        }
        assert_eq!(canonical("me/m:q4"), "me/m:q4");
        assert_eq!(canonical("host:5000/me/m"), "host:5000/me/m:latest");
    }

    #[test]
    fn patterns_have_stars() {
        for (pattern, is_so) in [
            ("m", true),
            ("m:latest", true),
            ("m*", true),
            ("*", true),
            ("*:latest", true),
            ("*a*st", true),
            ("n*", false),
            ("m:q4", false),
            ("*x*", false),
        ] {
            assert_eq!(fits("m:latest", pattern), is_so, "{pattern}");
        }
    }
}
