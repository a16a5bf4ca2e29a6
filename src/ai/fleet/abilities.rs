//! What models can do, as their hosts say, and what a request may therefore not ask of them (O-079, O-080).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::super::ollama::{Request, Speaks};
use super::Fleet;
use super::calls::Trouble;
use super::keeper::Place;

/// Models that are remembered; more are asked again.
const KNOWN: usize = 1_000;

/// What models can do, by the digest of their weights.
#[derive(Debug, Default)]
pub(super) struct Abilities(Mutex<BTreeMap<String, Vec<String>>>);

impl Abilities {
    fn of(&self, digest: &str) -> Option<Vec<String>> {
        self.lock().get(digest).cloned()
    }

    fn note(&self, digest: &str, abilities: &[String]) {
        let mut known = self.lock();
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(digest.to_owned(), abilities.to_vec());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fleet {
    /// The request that a host's model can answer, where that is another one: without `think` for a model that does not
    /// think. Pictures for a model that sees none are refused here, which saves a load.
    pub(super) async fn within_abilities(&self, place: &Place, request: &Request) -> Result<Option<Request>, Trouble> {
        let asks_to_think = request
            .body()
            .get("think")
            .is_some_and(|think| *think != Value::Bool(false));
        let shows_pictures = has_pictures(request);
        let server = &self.keeper().hosts[place.host].server;
        if !(asks_to_think || shows_pictures) || server.speaks == Speaks::Openai {
            return Ok(None);
        }
        let digest = self.digest(place, request.model());
        let known = digest.as_ref().and_then(|digest| self.abilities().of(digest));
        let abilities = match known {
            Some(known) => known,
            None => {
                let Some(said) = self.ollama().capabilities(server, request.model()).await else {
                    // What nobody knows is no reason to refuse anything.
                    return Ok(None);
                };
                if let Some(digest) = &digest {
                    self.abilities().note(digest, &said);
                }
                said
            }
        };
        let can = |what: &str| abilities.iter().any(|ability| ability == what);
        if shows_pictures && !can("vision") {
            let text = format!(
                "images: {} sees no pictures; {} says that it can do {}",
                request.model(),
                server.url,
                abilities.join(", ")
            );
            return Err(Trouble::Value(text));
        }
        Ok((asks_to_think && !can("thinking")).then(|| request.without("think")))
    }

    fn digest(&self, place: &Place, model: &str) -> Option<String> {
        let catalogs = self.keeper().catalogs();
        let catalog = catalogs.get(self.keeper().hosts[place.host].url())?;
        let digest = catalog.models.get(&super::canonical(model))?;
        (!digest.is_empty()).then(|| digest.clone())
    }
}

fn has_pictures(request: &Request) -> bool {
    let some = |images: Option<&Value>| {
        images
            .and_then(Value::as_array)
            .is_some_and(|images| !images.is_empty())
    };
    let messages = request.body().get("messages").and_then(Value::as_array);
    some(request.body().get("images"))
        || messages
            .into_iter()
            .flatten()
            .any(|message| some(message.get("images")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_whose_abilities_are_known_are_bounded() {
        let abilities = Abilities::default();
        for n in 0..KNOWN + 10 {
            abilities.note(&n.to_string(), &[]);
        }
        assert!(abilities.lock().len() <= KNOWN);
        assert!(abilities.of(&(KNOWN + 9).to_string()).is_some());
    }
}
