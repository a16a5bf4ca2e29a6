//! Sends pipelines until Redis has taken them, and says what it refuses for good.

use std::time::Duration;

use redis::Pipeline;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::metrics::Metrics;
use super::unsent::{Messages, Refused, Unsent};
use crate::backend::{self, Backend};
use crate::broker::{self, Broker, Tag};
use crate::clock;
use crate::conn::{Errand, Link, Patience, refusal};

/// So much of a key is said, in characters.
const LONGEST_KEY: usize = 200;

/// A server that is there and would not do something for so long is spoken of.
const UNWILLING: Duration = Duration::from_secs(1);

/// Who sends. Clones do it beside each other.
#[derive(Clone)]
pub(super) struct Sending {
    pub broker: Broker,
    pub backend: Option<Backend>,
    pub metrics: Metrics,
    pub news: News,
}

/// What the consumer loop hears of what was sent.
#[derive(Clone)]
pub(crate) struct News {
    /// Messages that stay here are in Redis.
    pub stays: mpsc::UnboundedSender<Vec<Tag>>,
    /// A message cannot be sent.
    pub unsent: mpsc::UnboundedSender<Unsent>,
}

/// What Redis said to a pipeline.
#[derive(Default)]
pub(super) struct Said {
    /// The keys of results that somebody should have heard of, and nobody has.
    pub unheard: Vec<Vec<u8>>,
    pub refused: Refused,
}

impl Sending {
    /// What stays here is in Redis.
    pub(super) fn tell_stays(&self, stays: &mut Vec<Tag>) {
        if !stays.is_empty() {
            // A loop that is gone has ended the worker.
            let _ = self.news.stays.send(std::mem::take(stays));
        }
    }

    /// Compressed results are looked at before they are replaced.
    pub(super) async fn look(&self, backend: &Backend, results: &mut Vec<backend::Write>) {
        while let Err(error) = backend.look(results).await {
            if !error.is_transient() {
                error!(%error, "results that are there cannot be looked at");
                return;
            }
            backend.link().ready().await;
        }
    }

    /// Others compress results.
    fn notice(&self) {
        if let Some(backend) = &self.backend {
            backend.look_from_now_on();
        }
    }

    /// Sends a pipeline until Redis has taken it, but for what it refuses for good; and which messages stand in it from
    /// where on.
    pub(super) async fn insist(
        &self,
        server: &'static str,
        link: &Link,
        pipe: &Pipeline,
        sent: &[(&Messages, usize)],
    ) -> Said {
        let mut said = Said::default();
        if pipe.is_empty() {
            return said;
        }
        let (mut errand, patience) = (Errand::new(pipe), Patience::default());
        let (mut is_looked_for, mut is_said) = (false, false);
        let asked = clock::instant();
        loop {
            let began = clock::instant();
            match link.run(&mut errand, &patience).await {
                Ok(()) => {
                    self.metrics
                        .wrote(server, clock::instant().saturating_duration_since(began));
                    if is_said {
                        info!("Redis at {} takes what it would not", link.endpoint());
                    }
                    break;
                }
                Err(error) if error.is_transient() => {
                    if errand.is_unsure() && !std::mem::replace(&mut is_looked_for, true) {
                        for (messages, at) in sent {
                            messages.repeat(*at, &mut errand, &self.broker);
                        }
                    }
                    link.ready().await;
                    // Of a connection that broke the link speaks.
                    let is_long = clock::instant().saturating_duration_since(asked) > UNWILLING;
                    if is_long && errand.is_put_off() && !std::mem::replace(&mut is_said, true) {
                        warn!("{server}: {error}; trying again until it is taken");
                    }
                }
                Err(error) => {
                    let why = error.to_string();
                    said.refused
                        .extend(errand.left().iter().map(|place| (*place, why.clone())));
                    break;
                }
            }
        }
        for (place, reply) in errand.into_answers().into_iter().enumerate() {
            match reply {
                redis::Value::ServerError(error) if said.refused.iter().all(|(refused, _)| *refused != place) => {
                    said.refused.push((place, refusal(error)));
                }
                // A script met a compressed result that nobody had looked at.
                redis::Value::BulkString(word) if word == b"opaque" => self.notice(),
                // Dead letters had to make room (`bury.lua`).
                redis::Value::Array(words) if begins_with(&words, b"full") => {
                    if let Some(redis::Value::Int(letters)) = words.get(1) {
                        self.broker.note_pushed_out(letters.unsigned_abs());
                    }
                }
                // Results that nobody has heard of (`store.lua`).
                redis::Value::Array(words) if begins_with(&words, b"unheard") => {
                    said.unheard
                        .extend(words.into_iter().skip(1).filter_map(|key| match key {
                            redis::Value::BulkString(key) => Some(key),
                            _ => None,
                        }));
                }
                _ => {}
            }
        }
        for _ in &said.refused {
            self.metrics.write_refused();
        }
        said
    }

    /// The same for what nothing hangs on: what is refused is only said. The keys of results that nobody has heard of.
    pub(super) async fn insist_or_say(&self, server: &'static str, link: &Link, pipe: &Pipeline) -> Vec<Vec<u8>> {
        let said = self.insist(server, link, pipe, &[]).await;
        self.say_refused(pipe, &said.refused);
        said.unheard
    }

    pub(super) fn say_refused(&self, pipe: &Pipeline, refused: &Refused) {
        for (place, why) in refused {
            let what = pipe.cmd_iter().nth(*place).map(described).unwrap_or_default();
            error!(error = %why, "Redis refused a write: {what}");
        }
    }

    /// Keeps a message as a dead letter; why that was refused.
    pub(super) async fn bury(&self, letter: broker::Letter) -> Option<String> {
        let mut pipe = Pipeline::with_capacity(1);
        self.broker.append(&mut pipe, &[broker::Write::Letter(letter.into())]);
        let said = self.insist("broker", self.broker.writer(), &pipe, &[]).await;
        said.refused.into_iter().next().map(|(_, why)| why)
    }

    pub(super) fn tell_unsent(&self, unsent: Unsent) {
        // A loop that is gone has ended the worker.
        let _ = self.news.unsent.send(unsent);
    }
}

/// A command and its first key.
fn described(command: &redis::Cmd) -> String {
    let mut words = command.args_iter().filter_map(|word| match word {
        redis::Arg::Simple(word) => Some(String::from_utf8_lossy(word)),
        _ => None,
    });
    let name = words.next().unwrap_or_default();
    // The key of a script stands behind its name and the number of its keys.
    let key = words.nth(if name == "EVALSHA" { 2 } else { 0 }).unwrap_or_default();
    let key: String = key.chars().take(LONGEST_KEY).collect();
    format!("{name} {key}")
}

/// Whether it is the answer of a script that has more to say, and begins with this word.
fn begins_with(words: &[redis::Value], first: &[u8]) -> bool {
    matches!(words.first(), Some(redis::Value::BulkString(word)) if word == first)
}
