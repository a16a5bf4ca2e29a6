//! A call, from its budget to its record: which host it goes to, where it goes when that fails, what is written of it.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::super::ollama::{
    Answer, Class, Embedded, Embedding, Failed, Fault, Kind, Piece, Progress, Request, Route, Usage,
};
use super::Fleet;
use super::accounts::{Caller, Unpaid};
use super::breaker::Told;
use super::cache::Flight;
use super::catalog::canonical;
use super::flight::pieces;
use super::keeper::Place;
use super::rates::Turn;
use super::routing::{Nowhere, Why};
use super::strategy::Strategy;
use crate::clock::{self, Instant};

/// How many hosts a call tries.
const TRIES: usize = 4;
/// Texts that are embedded with one request.
const BATCH: usize = 64;
/// Before a batch goes there again; longer each time.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a batch goes to hosts again that all failed it, where others of its list are done.
const AGAIN: u32 = 3;
/// What each text of a batch adds to the time that its answer may take (O-084).
const EACH: Duration = Duration::from_secs(10);

/// What is heard of a call while it runs.
#[derive(Debug)]
pub(in crate::ai) enum Heard {
    /// A piece of the answer.
    Piece(Piece),
    /// It waits for its turn in a limit, so long.
    Limited(String, Duration),
    /// The host loads the model first.
    Loading(String),
    /// The host fetches the model first.
    Pulling(Progress),
    /// What came so far counts for nothing: another host is asked.
    Again,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(in crate::ai) enum Trouble {
    /// What a host said, or the last of several.
    Fault(Fault),
    /// The call is wrong.
    Value(String),
    /// A budget is used up.
    Budget(String),
    /// A limit lets the call go on so much later.
    Later(String, Duration),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What is passed on while a call runs.
pub(in crate::ai) type Hear<'a> = &'a mut (dyn FnMut(Heard) + Send);

impl Fleet {
    /// Asks a host that can answer, and another one where that fails.
    ///
    /// Dropping the future gives up the wait, or closes the connection, which stops the model.
    pub(in crate::ai) async fn ask(
        &self,
        mut request: Request,
        caller: &Caller<'_>,
        hear: Hear<'_>,
    ) -> Result<Box<Answer>, Trouble> {
        // What is over soon, or begins when the answer is there, is boxed, here and below: all of a future is held for
        // as long as its call runs, and there may be ten thousand.
        let downgraded = Box::pin(self.keep_to_budget(request.model(), caller)).await?;
        let asked = request.model().to_owned();
        if let Some(model) = &downgraded {
            request.set_model(model);
        }
        let model = request.model().to_owned();
        if let Some(profile) = self.profile(&model) {
            profile.apply(&model, request.body_mut()).map_err(Trouble::Value)?;
        }
        let mut route = Box::new(self.route(&request));
        route.downgraded_from = downgraded.map(|_| asked);
        let answer = match caller.cache {
            None => self.ask_hosts(&request, caller, route, hear).await?,
            Some(time) => {
                let asked = Box::pin(self.ask_once(&request, time, caller, route, hear)).await?;
                if asked.route.is_known() {
                    return Ok(asked);
                }
                asked
            }
        };
        Box::pin(self.account(caller, &model, answer.usage, answer.timing.total_s)).await;
        Ok(answer)
    }

    /// Asks, unless the answer is known or another asks the same.
    async fn ask_once(
        &self,
        request: &Request,
        time: Duration,
        caller: &Caller<'_>,
        route: Box<Route>,
        hear: Hear<'_>,
    ) -> Result<Box<Answer>, Trouble> {
        let kept = match self.flight(request, time, caller.shape, hear).await {
            Flight::Known(mut answer, why) => {
                answer.route = Route {
                    why: why.into(),
                    ..*route
                };
                return Ok(answer);
            }
            Flight::Ours(kept) => kept,
            Flight::Alone => return self.ask_hosts(request, caller, route, hear).await,
        };
        let (mut pieces, said) = pieces();
        let mut both = |heard| {
            pieces.pass_on(&heard);
            hear(heard);
        };
        let asking = self.ask_hosts(request, caller, route, &mut both);
        let asked = kept.guard(asking, said).await;
        kept.land(caller.shape, asked.as_deref().ok()).await;
        asked
    }

    async fn ask_hosts(
        &self,
        request: &Request,
        caller: &Caller<'_>,
        route: Box<Route>,
        hear: Hear<'_>,
    ) -> Result<Box<Answer>, Trouble> {
        let mut way = Way::new(request.model(), route, self.strategy(request.model(), caller));
        let turn = self.own_turn(&mut way, || size(request), caller, hear).await?;
        let mut said_something = false;
        loop {
            let place = self.next_place(&mut way, caller, hear).await?;
            // Only now is it known that there is another host: if not, the task is tried again, and says so itself.
            if std::mem::take(&mut said_something) {
                hear(Heard::Again);
            }
            let server = &self.keeper().hosts[place.host].server;
            let fitting = match Box::pin(self.within_abilities(&place, request)).await {
                Ok(fitting) => fitting,
                Err(trouble) => {
                    place.end();
                    return Err(trouble);
                }
            };
            way.route.left_out = fitting.as_ref().map(|_| "think".to_owned());
            let request = fitting.as_ref().unwrap_or(request);
            let began = clock::instant();
            let mut unpaid = Unpaid::begin(self, caller, request.model(), size(request));
            let first = self.prepare(&place, &way.model, hear).await;
            let mut on_piece = |piece| {
                said_something = true;
                unpaid.pieces += 1;
                hear(Heard::Piece(piece));
            };
            // Boxed, since each that it is handed to would hold it once more.
            let asking = self.keeper().ollama.ask(server, request, first, &mut on_piece);
            let asking = Box::pin(async { asking.await.map(Box::new) });
            match self.within_whole(&server.url, asking).await {
                Ok(mut answer) => {
                    unpaid.paid();
                    if way.strategy == Strategy::Latency {
                        let url = self.keeper().hosts[place.host].url();
                        self.keeper().paced(url, &way.key, pace(&answer));
                    }
                    way.answered(self, place, began, answer.timing.load_s);
                    answer.route = *way.route;
                    return Ok(match turn {
                        Some(turn) => Box::pin(self.settled(*turn, answer)).await,
                        None => answer,
                    });
                }
                Err(fault) => {
                    unpaid.broke();
                    way.failed(self, place, fault)?;
                }
            }
        }
    }

    /// Vectors of all texts, in batches.
    pub(in crate::ai) async fn embed(
        &self,
        mut embedding: Embedding,
        caller: &Caller<'_>,
        hear: Hear<'_>,
    ) -> Result<(Embedded, String, Route), Trouble> {
        if let Some(model) = self.keep_to_budget(&embedding.model, caller).await? {
            embedding.model = model;
        }
        if let Some(profile) = self.profile(&embedding.model) {
            profile
                .apply(&embedding.model, &mut embedding.fields)
                .map_err(Trouble::Value)?;
            embedding.fields.remove("shift");
        }
        let strategy = self.strategy(&embedding.model, caller);
        let mut way = Way::new(&embedding.model, Box::default(), strategy);
        way.route.prompt_sha256 = hash(&json!([embedding.model, embedding.inputs, embedding.fields]));
        let bytes = || embedding.inputs.iter().map(String::len).sum();
        let turn = self.own_turn(&mut way, bytes, caller, hear).await?;
        let mut all = Embedded::default();
        let mut host = String::new();
        let began = clock::instant();
        // The batches that are done, should the rest fail.
        let mut done: Option<Unpaid<'_>> = None;
        for batch in embedding.inputs.chunks(BATCH) {
            let mut again = 0;
            loop {
                let place = match self.next_place(&mut way, caller, hear).await {
                    // A fault that passes must not cost the batches that are done.
                    Err(Trouble::Fault(fault))
                        if done.is_some() && again < AGAIN && !way.not.is_empty() && fault.class.is_transient() =>
                    {
                        again += 1;
                        way.not.clear();
                        tokio::time::sleep(PAUSE * again).await;
                        continue;
                    }
                    other => other?,
                };
                let server = &self.keeper().hosts[place.host].server;
                let started = clock::instant();
                let bytes = batch.iter().map(String::len).sum();
                let unpaid = Unpaid::begin(self, caller, &embedding.model, bytes);
                let first = self.prepare(&place, &way.model, hear).await;
                let limit = first + EACH * u32::try_from(batch.len()).unwrap_or(1);
                let asking = Box::pin(self.keeper().ollama.embed(server, &embedding, batch, limit));
                match self.within_whole(&server.url, asking).await {
                    Ok(mut embedded) => {
                        match &mut done {
                            Some(done) => {
                                done.add(embedded.prompt_tokens);
                                unpaid.paid();
                            }
                            None => done = Some(unpaid.done(embedded.prompt_tokens)),
                        }
                        way.answered(self, place, started, embedded.load_s);
                        let dimension = |vectors: &[Vec<f32>]| vectors.first().map_or(0, Vec::len);
                        // O-082: another host has other weights under this name.
                        if !all.vectors.is_empty() && dimension(&all.vectors) != dimension(&embedded.vectors) {
                            let text = format!("{} gives vectors of another length than {host}", server.url);
                            return Err(Trouble::Fault(Fault::refused(&server.url, text)));
                        }
                        all.vectors.append(&mut embedded.vectors);
                        all.prompt_tokens += embedded.prompt_tokens;
                        all.load_s += embedded.load_s;
                        host.clone_from(&server.url);
                        // A host that failed one batch of a thousand may have the next.
                        way.not.clear();
                        way.last = None;
                        break;
                    }
                    Err(fault) => {
                        unpaid.broke();
                        way.failed(self, place, fault)?;
                    }
                }
            }
        }
        let usage = Usage {
            prompt_tokens: all.prompt_tokens,
            completion_tokens: 0,
            total_tokens: all.prompt_tokens,
        };
        if let Some(done) = done {
            done.paid();
        }
        let took = clock::instant().saturating_duration_since(began).as_secs_f64();
        if let Some(turn) = turn {
            Box::pin(self.settle_turn(*turn, usage, took)).await;
        }
        self.account(caller, &embedding.model, usage, took).await;
        Ok((all, host, *way.route))
    }

    /// Waits for a call's turn, where there are limits.
    async fn own_turn(
        &self,
        way: &mut Way,
        bytes: impl FnOnce() -> usize,
        caller: &Caller<'_>,
        hear: Hear<'_>,
    ) -> Result<Option<Box<Turn>>, Trouble> {
        if self.options().rates.is_empty() {
            return Ok(None);
        }
        // A task that was put off comes back with the same question.
        let ticket = way.route.prompt_sha256.get(..16).unwrap_or_default();
        let mut turn = Box::pin(self.turn(&way.model, bytes(), ticket, caller, hear)).await?;
        way.route.limited = turn.limited.take();
        Ok(Some(Box::new(turn)))
    }

    /// Waits for a place on a host that did not fail this call yet.
    async fn next_place(&self, way: &mut Way, caller: &Caller<'_>, hear: Hear<'_>) -> Result<Place, Trouble> {
        let mut pulled = false;
        loop {
            let waiting = Box::pin(self.keeper().place(&way.key, caller, &way.not, &way.strategy));
            let nowhere = match tokio::time::timeout(self.options().queue, waiting).await {
                Ok(Ok(place)) => {
                    way.route.waited_s += place.waited.as_secs_f64();
                    return Ok(place);
                }
                Ok(Err(nowhere)) => nowhere,
                Err(_) => return Err(Trouble::Fault(self.still_waiting(&way.model))),
            };
            match nowhere {
                Nowhere::Lacking if !pulled && self.may_pull(&way.key) => {
                    Box::pin(self.pull_somewhere(&way.model, hear)).await?;
                    pulled = true;
                }
                Nowhere::Refused(why) => {
                    let text = format!(
                        "no place for {}: {why}; what AI tasks need there is in docs/redis.md",
                        way.model
                    );
                    return Err(Trouble::Fault(Fault::refused(&self.urls(), text)));
                }
                Nowhere::Gone => return Err(Trouble::Fault(way.last.take().unwrap_or_else(|| self.gone()))),
                _ => {
                    return Err(Trouble::Fault(
                        way.last.take().unwrap_or_else(|| self.lacking(&way.model)),
                    ));
                }
            }
        }
    }

    /// What is done before a host is asked; the time until its first word.
    async fn prepare(&self, place: &Place, model: &str, hear: Hear<'_>) -> Duration {
        let host = &self.keeper().hosts[place.host];
        let limits = self.keeper().ollama.limits();
        match &place.why {
            Why::Warm => return limits.first_token,
            Why::Load => {}
            // The host would choose by itself which ones go, and perhaps one that is needed.
            Why::Instead(victims) => {
                for victim in victims {
                    if let Err(fault) = Box::pin(self.keeper().ollama.unload(&host.server, victim)).await {
                        tracing::debug!("{victim} cannot be unloaded: {fault}");
                    }
                }
            }
        }
        tracing::debug!(model, host = host.url(), "a load");
        hear(Heard::Loading(host.url().to_owned()));
        limits.load + limits.first_token
    }

    async fn within_whole<T>(&self, host: &str, asking: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let Some(limit) = self.keeper().ollama.limits().whole else {
            return asking.await;
        };
        match tokio::time::timeout(limit, asking).await {
            Ok(answer) => answer,
            Err(_) => {
                let text = format!("the call took longer than {} s (ai_call_timeout)", limit.as_secs_f64());
                Err(Fault::refused(host, text))
            }
        }
    }

    fn still_waiting(&self, model: &str) -> Fault {
        let limit = self.options().queue.as_secs_f64();
        let text = format!("no host had a place for {model} within {limit} s (ai_queue_timeout)");
        Fault::unavailable(&self.urls(), text)
    }

    /// Nobody is there: what the hosts said instead of an answer.
    fn gone(&self) -> Fault {
        let catalogs = self.keeper().catalogs();
        let gone = catalogs.iter().find(|(_, catalog)| catalog.gone);
        let (url, text) = gone.map_or((self.urls(), None), |(url, catalog)| {
            (url.clone(), catalog.trouble.clone())
        });
        Fault::unavailable(&url, text.unwrap_or_else(|| "no model server can be reached".into()))
    }

    fn lacking(&self, model: &str) -> Fault {
        let catalogs = self.keeper().catalogs();
        let silent: Vec<&str> = self
            .keeper()
            .hosts
            .iter()
            .map(super::host::Host::url)
            .filter(|url| catalogs.get(*url).is_some_and(|catalog| catalog.trouble.is_some()))
            .collect();
        if silent.is_empty() {
            return Fault::not_found(&self.urls(), format!("model {model:?} is on none of the hosts"));
        }
        let text = format!(
            "model {model:?} is on no host that answers; {} cannot be reached",
            silent.join(", ")
        );
        Fault::unavailable(&self.urls(), text)
    }

    pub(super) fn route(&self, request: &Request) -> Route {
        let mut asked = request.body().clone();
        for apart in ["stream", "keep_alive"] {
            asked.shift_remove(apart);
        }
        let path = match request.kind() {
            Kind::Generate => "generate",
            Kind::Chat => "chat",
        };
        Route {
            options: asked.get("options").cloned(),
            prompt_sha256: hash(&json!([
                path,
                canonical(request.model()),
                sorted(&Value::Object(asked.clone()))
            ])),
            prompt: self.options().record_prompts.then(|| {
                asked
                    .get("prompt")
                    .or(asked.get("messages"))
                    .cloned()
                    .unwrap_or_default()
            }),
            ..Route::default()
        }
    }
}

/// The way of one call through the hosts.
struct Way {
    model: String,
    key: String,
    not: Vec<String>,
    last: Option<Fault>,
    strategy: Strategy,
    route: Box<Route>,
}

impl Way {
    fn new(model: &str, mut route: Box<Route>, strategy: Strategy) -> Self {
        route.strategy = strategy.to_string();
        Self {
            model: model.to_owned(),
            key: canonical(model),
            not: Vec::new(),
            last: None,
            route,
            strategy,
        }
    }

    fn answered(&mut self, fleet: &Fleet, mut place: Place, began: Instant, load_s: f64) {
        let url = fleet.keeper().hosts[place.host].url();
        let took = clock::instant().saturating_duration_since(began);
        let load = Duration::try_from_secs_f64(load_s).unwrap_or_default().min(took);
        self.route.why = match &place.why {
            Why::Warm => "warm".into(),
            Why::Load => "load".into(),
            Why::Instead(victims) => format!("load instead of {}", victims.join(", ")),
        };
        self.route.hosts = std::mem::take(&mut place.stood);
        fleet.keeper().tell(url, &self.key, Told::Answered);
        fleet
            .keeper()
            .warmed(url, &self.key, (place.why != Why::Warm).then_some(load));
        place.end();
    }

    /// Notes a fault; gives it back where no other host can help.
    fn failed(&mut self, fleet: &Fleet, place: Place, fault: Fault) -> Result<(), Trouble> {
        let url = fleet.keeper().hosts[place.host].url().to_owned();
        let told = match fault.class {
            Class::Refused | Class::NotFound => Told::Answered,
            Class::Unavailable => Told::Busy,
            Class::Unreachable => Told::Unreachable,
            Class::Broken | Class::Memory => Told::Broke,
        };
        fleet.keeper().tell(&url, &self.key, told);
        if place.why != Why::Warm || fault.class == Class::NotFound {
            fleet.keeper().cooled(&url, &self.key);
        }
        place.end();
        if fault.class == Class::Refused {
            return Err(Trouble::Fault(fault));
        }
        self.route.failed.push(Failed {
            host: url.clone(),
            fault: fault.text.clone(),
        });
        self.not.push(url);
        if self.not.len() >= TRIES {
            return Err(Trouble::Fault(fault));
        }
        // A host that is busy says more than one that lacks the model.
        match &self.last {
            Some(last) if last.class.is_transient() && !fault.class.is_transient() => {}
            _ => self.last = Some(fault),
        }
        Ok(())
    }
}

/// What an answer of a hundred tokens takes there: an answer's own length says nothing of a host.
fn pace(answer: &Answer) -> Duration {
    let timing = &answer.timing;
    let first = (timing.first_token_s - timing.load_s).max(0.0);
    #[expect(clippy::cast_precision_loss, reason = "tokens of an answer")]
    let each = timing.generate_s / answer.usage.completion_tokens.max(1) as f64;
    Duration::try_from_secs_f64(first + 100.0 * each).unwrap_or_default()
}

/// About how long what is asked is, in bytes.
fn size(request: &Request) -> usize {
    match (request.body().get("prompt"), request.body().get("messages")) {
        (Some(Value::String(prompt)), _) => prompt.len(),
        (_, Some(messages)) => messages.to_string().len(),
        _ => 0,
    }
}

/// SHA-256 of some JSON, in hex.
pub(super) fn hash(value: &Value) -> String {
    Sha256::digest(value.to_string())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The same JSON with its keys in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: std::collections::BTreeMap<&String, Value> =
                map.iter().map(|(name, value)| (name, sorted(value))).collect();
            ordered.into_iter().map(|(name, value)| (name.clone(), value)).collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}
