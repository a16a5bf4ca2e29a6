//! Tasks of which one runs for each key: with the header `idempotency_key`, or the task's own option for calls with the
//! same arguments. Who starts first has the key, and says all the time that it lives; who comes later waits without a
//! place to run, its message unacknowledged, and gets the result as its own. When the one that ran came to no end that
//! counts, the next runs: it failed, was revoked, or its worker died.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rsa::sha2::{Digest as _, Sha256};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::{error, info, warn};

use super::consumer::{Consumer, Key};
use super::outbox::Out;
use super::request::{Content, Effect, Happening, Input, Outcome, Request, State};
use super::services::spawn_run;
use crate::backend::{self, Backend, Ended, Holder, Seen, Settled};
use crate::clock::{self, Timestamp};
use crate::task::Failure;
use crate::wire::{Exception, Headers, Json, Message, State as Stored};

/// Who has a key and says nothing for so long is taken for dead.
const LEASE: Duration = Duration::from_secs(30);
/// Pauses between two looks at a key that another worker has.
const SOON: Duration = Duration::from_millis(25);
const LATE: Duration = Duration::from_millis(500);
/// How long a task that waits for others is believed to go on: as long as its notes are kept.
const PUT_DOWN: Duration = Duration::from_secs(30 * 86_400);

/// What makes a call one of several of which one runs.
#[derive(Clone, Debug)]
pub(crate) struct Unique {
    /// Of the task's name and the key, or the arguments.
    pub key: Arc<str>,
    /// What counts, and how long.
    pub policy: crate::task::Unique,
}

impl Unique {
    /// Of a message; `None` for nearly all.
    ///
    /// # Errors
    /// What is wrong with its headers.
    pub(crate) fn of(message: &Message, own: Option<crate::task::Unique>) -> Result<Option<Box<Self>>, String> {
        let headers = &message.headers;
        let given = match headers.extra.get("idempotency_key") {
            None | Some(Value::Null) => None,
            Some(Value::String(key)) if !key.is_empty() => Some(key.clone()),
            Some(Value::Number(key)) => Some(key.to_string()),
            Some(other) => {
                return Err(format!(
                    "header idempotency_key: must be a text that is not empty, not {other}"
                ));
            }
        };
        let (key, policy) = match (given, own) {
            (None, None) => return Ok(None),
            (Some(key), own) => (fingerprint(&[&headers.task, "key", &key]), own.unwrap_or_default()),
            (None, Some(own)) => {
                let mut arguments = message.body.arguments().map_err(|_| message.body.unreadable())?;
                arguments.kwargs.sort_keys();
                arguments.kwargs.values_mut().for_each(Value::sort_all_objects);
                arguments.args.iter_mut().for_each(Value::sort_all_objects);
                let (args, kwargs) = (Value::from(arguments.args), Value::from(arguments.kwargs));
                let texts = [&headers.task, "arguments", &args.to_string(), &kwargs.to_string()];
                (fingerprint(&texts), own)
            }
        };
        let policy = with_headers(policy, headers)?;
        Ok(Some(Box::new(Self { key, policy })))
    }
}

/// What a message says beside its key.
fn with_headers(mut policy: crate::task::Unique, headers: &Headers) -> Result<crate::task::Unique, String> {
    match headers.extra.get("idempotency_period") {
        None | Some(Value::Null) => {}
        Some(period) => {
            let seconds = period
                .as_f64()
                .ok_or_else(|| format!("{period} is no number of seconds"));
            policy = seconds
                .and_then(|seconds| policy.with_period(seconds))
                .map_err(|error| format!("header idempotency_period: {error}"))?;
        }
    }
    match headers.extra.get("idempotency_states") {
        None | Some(Value::Null) => Ok(policy),
        Some(states) => {
            let names: Option<Vec<&str>> = states
                .as_array()
                .and_then(|names| names.iter().map(Value::as_str).collect());
            let names = names.ok_or_else(|| "must be a list of states".to_owned());
            names
                .and_then(|names| policy.with_states(names))
                .map_err(|error| format!("header idempotency_states: {error}"))
        }
    }
}

/// A name for texts, of one length.
fn fingerprint(texts: &[&str]) -> Arc<str> {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    let bytes = hash.finalize();
    let text: String = bytes[..20].iter().map(|byte| format!("{byte:02x}")).collect();
    text.into()
}

/// What is heard of keys.
pub(crate) enum Told {
    /// The answer to a request that has a place to run, and wants its key.
    Claimed {
        key: Key,
        holder: Holder,
        slot: OwnedSemaphorePermit,
        seen: Result<Seen, backend::Error>,
    },
    /// Something can be done about a key that requests wait for.
    News { unique: Arc<str>, seen: Seen },
}

/// The keys that this worker's requests wait for.
pub(crate) struct Uniques {
    waiting: HashMap<Arc<str>, Waiters>,
    told: mpsc::UnboundedSender<Told>,
    warned: bool,
}

/// Requests that wait for one key. Who looks at it ends with this.
struct Waiters {
    keys: VecDeque<Key>,
    _watched: Arc<()>,
}

impl Uniques {
    /// What is heard goes to the receiver.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Told>) {
        let (told, heard) = mpsc::unbounded_channel();
        let uniques = Self {
            waiting: HashMap::new(),
            told,
            warned: false,
        };
        (uniques, heard)
    }

    /// How long a key is kept without a sign of life. A worker that is away as long as the lease of its
    /// messages has lost those as well.
    pub(crate) fn lease(of_messages: Duration) -> Duration {
        LEASE.min(of_messages)
    }

    /// How often those signs are given.
    pub(crate) fn pause(of_messages: Duration) -> Duration {
        Self::lease(of_messages) / 3
    }
}

impl Consumer {
    /// Asks for the key of a request that has a place to run; whether there is one to ask for. The place is kept
    /// meanwhile.
    pub(super) fn ask_unique(
        &mut self,
        key: Key,
        request: &Request,
        slot: OwnedSemaphorePermit,
    ) -> Result<(), OwnedSemaphorePermit> {
        let Some(unique) = &request.unique else {
            return Err(slot);
        };
        // A run that was put off has it still.
        if self.active.get(&key).is_some_and(|active| active.holder.is_some()) {
            return Err(slot);
        }
        let Some(backend) = self.client.backend().cloned() else {
            if !std::mem::replace(&mut self.uniques.warned, true) {
                error!(
                    "idempotency keys need a result backend: start the worker with --result-backend; tasks run without"
                );
            }
            return Err(slot);
        };
        let holder = Holder {
            key: unique.key.clone(),
            token: uuid::Uuid::new_v4().simple().to_string().into(),
            id: request.id.clone(),
        };
        let lease = Uniques::lease(self.options.broker_options.lease());
        let (states, told) = (unique.policy.states(), self.uniques.told.clone());
        spawn_run(async move {
            let seen = loop {
                match backend.claim_unique(&holder, lease, &states).await {
                    Err(error) if error.is_transient() => backend.link().ready().await,
                    seen => break seen,
                }
            };
            let _ = told.send(Told::Claimed {
                key,
                holder,
                slot,
                seen,
            });
        });
        Ok(())
    }

    pub(super) fn on_told(&mut self, told: Told) {
        match told {
            Told::Claimed {
                key,
                holder,
                slot,
                seen,
            } => self.on_claimed(key, holder, slot, seen),
            Told::News { unique, seen } => self.on_news(&unique, seen),
        }
    }

    fn on_claimed(&mut self, key: Key, holder: Holder, slot: OwnedSemaphorePermit, seen: Result<Seen, backend::Error>) {
        let waits = matches!(self.active.get(&key), Some(active) if matches!(active.state, State::Reserved { .. }));
        let request = self
            .active
            .get(&key)
            .filter(|_| waits)
            .map(|active| active.request.clone());
        let seen = seen.unwrap_or_else(|error| {
            error!("an idempotency key cannot be taken, and the task runs without: {error}");
            Seen::Free
        });
        match (seen, request) {
            (Seen::Free, Some(request)) => {
                if let Some(active) = self.active.get_mut(&key) {
                    active.holder = Some(Box::new(holder));
                }
                // The answer may have waited here while this worker stood still.
                if self.standstill.goes_round(clock::instant()) {
                    self.on_lease();
                }
                if self.standstill.is_in_doubt() {
                    drop(slot);
                    return self.reserve(key, &request);
                }
                self.start(key, &request, slot, clock::instant());
            }
            // It was revoked or given back meanwhile.
            (Seen::Free, None) => self.out.push(settle(holder, Settled::Free)),
            (_, None) => {}
            (Seen::Taken { .. }, Some(request)) => {
                drop(slot);
                let waiting = self.room_to_wait();
                self.step(key, Input::Waits { waiting });
                self.wait_for(key, &request);
            }
            (Seen::Ended(ended), Some(request)) => {
                drop(slot);
                self.give(key, &request, &ended);
            }
        }
    }

    fn wait_for(&mut self, key: Key, request: &Request) {
        let (Some(unique), Some(backend)) = (&request.unique, self.client.backend()) else {
            return;
        };
        if let Some(waiters) = self.uniques.waiting.get_mut(&unique.key) {
            waiters.keys.push_back(key);
            return;
        }
        let watched = Arc::new(());
        let look = Look {
            backend: backend.clone(),
            unique: unique.key.clone(),
            period: unique.policy.period,
            told: self.uniques.told.clone(),
            wanted: Arc::downgrade(&watched),
        };
        spawn_run(look.watch());
        let waiters = Waiters {
            keys: [key].into(),
            _watched: watched,
        };
        self.uniques.waiting.insert(unique.key.clone(), waiters);
    }

    /// A key is free, or who had it has ended: those for whom the end counts get it, and one of the others runs.
    fn on_news(&mut self, unique: &Arc<str>, seen: Seen) {
        let Some(waiters) = self.uniques.waiting.remove(unique) else {
            return;
        };
        if let Seen::Taken { id, .. } = &seen {
            return self.on_away(unique, waiters, id);
        }
        let mut others = VecDeque::new();
        for key in waiters.keys {
            let Some(active) = self.active.get(&key) else { continue };
            let request = active.request.clone();
            match (&seen, &request.unique) {
                (Seen::Ended(ended), Some(unique)) if unique.policy.counts(&ended.state) => {
                    self.give(key, &request, ended);
                }
                _ => others.push_back((key, request)),
            }
        }
        if let Some((key, _)) = others.pop_front() {
            let revoked = self.is_revoked(key);
            self.step(key, Input::Due { revoked });
        }
        for (key, request) in others {
            self.wait_for(key, &request);
        }
    }

    /// Who has a key goes on elsewhere: that may be a message that came here before this was known.
    fn on_away(&mut self, unique: &Arc<str>, waiters: Waiters, id: &str) {
        let goes_on = |key: &Key| self.active.get(key).is_some_and(|active| *active.request.id == *id);
        let (mine, keys) = waiters.keys.iter().copied().partition::<VecDeque<Key>, _>(goes_on);
        self.uniques.waiting.insert(unique.clone(), Waiters { keys, ..waiters });
        for key in mine {
            let revoked = self.is_revoked(key);
            self.step(key, Input::Due { revoked });
        }
    }

    /// A request gets what another task came to.
    fn give(&mut self, key: Key, request: &Request, ended: &Ended) {
        let name = request.message.headers.shown_name();
        let outcome = if *ended.id == *request.id && ended.state == Stored::Success.as_str() {
            // The message came twice, and what follows the task was sent the first time.
            Outcome::Done {
                result: ended.value.clone(),
                followed: true,
            }
        } else {
            info!(
                task.id = &*request.id,
                task.name = name,
                "Task {name}[{}] is not run: it gets the end of {}, which has the same idempotency key",
                request.id,
                ended.id
            );
            match Stored::parse(&ended.state) {
                Stored::Success => Outcome::Success(ended.value.clone().into()),
                _ => Outcome::Failed(Failure::Fail(exception(ended))),
            }
        };
        self.step(key, Input::Other { outcome });
    }

    /// Says that those who have keys live, and forgets those who wait no longer.
    pub(super) fn keep_unique(&mut self) {
        let Self { active, uniques, .. } = self;
        uniques.waiting.retain(|_, waiters| {
            waiters.keys.retain(|key| active.contains_key(key));
            !waiters.keys.is_empty()
        });
        let holders: Vec<Holder> = active
            .values()
            .filter_map(|active| active.holder.as_deref().cloned())
            .collect();
        if let (Some(backend), false) = (self.client.backend().cloned(), holders.is_empty()) {
            let lease = Uniques::lease(self.options.broker_options.lease());
            spawn_run(async move {
                // One that was taken by another runs to its end all the same.
                if let Err(error) = backend.keep_unique(&holders, lease).await {
                    warn!("idempotency keys could not be renewed: {error}");
                }
            });
        }
    }
}

pub(super) fn settle(holder: Holder, settled: Settled) -> Out {
    Out::Backend(backend::Write::Unique { holder, settled })
}

fn exception(ended: &Ended) -> Exception {
    let exception: Exception = ended
        .value
        .parse()
        .unwrap_or_else(|_| Exception::builtin("Exception", ended.value.get().to_owned()));
    exception.with_traceback(ended.traceback.clone())
}

fn period(request: &Request) -> Duration {
    request.unique.as_ref().map_or(LEASE, |unique| unique.policy.period)
}

/// The end of one that failed.
pub(super) fn failed(request: &Request, exception: &Exception) -> Settled {
    Settled::Ended {
        state: "FAILURE",
        value: Json::new(exception).unwrap_or_else(|_| Json::null()),
        traceback: exception.traceback_text(),
        time: period(request),
    }
}

/// What becomes of the key of a request that is through, from what follows that.
pub(super) fn settled(request: &Request, effects: &[Effect], now: Timestamp, lease: Duration) -> Settled {
    let time = period(request);
    let mut settled = Settled::Free;
    for effect in effects {
        match effect {
            // It comes back, to whom does not matter.
            Effect::Requeue(..) => return Settled::Free,
            Effect::Retry(eta, _) => {
                settled = Settled::Away(clock::until(*eta, now) + lease);
                break;
            }
            Effect::Leave => {
                settled = Settled::Away(PUT_DOWN);
                break;
            }
            Effect::Store(Stored::Success, Content::Value(value)) => {
                settled = Settled::Ended {
                    state: "SUCCESS",
                    value: value.clone().into(),
                    traceback: String::new(),
                    time,
                };
            }
            Effect::Emit(Happening::KnownSuccess(Some(value))) => {
                settled = Settled::Ended {
                    state: "SUCCESS",
                    value: value.clone(),
                    traceback: String::new(),
                    time,
                };
            }
            Effect::Emit(Happening::Failed(exception)) => settled = failed(request, exception),
            _ => {}
        }
    }
    settled
}

/// Looks at a key until something can be done about it.
struct Look {
    backend: Backend,
    unique: Arc<str>,
    /// How long an end is known that this finds.
    period: Duration,
    told: mpsc::UnboundedSender<Told>,
    /// Gone when nobody waits any more.
    wanted: Weak<()>,
}

impl Look {
    async fn watch(self) {
        let mut pause = SOON;
        let mut known = String::new();
        while self.wanted.strong_count() > 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LATE);
            match self.backend.look_unique(&self.unique).await {
                Ok(Seen::Taken { id, token, away }) => {
                    if !away {
                        continue;
                    }
                    if known != token {
                        known.clone_from(&token);
                        let (unique, id, token) = (self.unique.clone(), id.clone(), token.clone());
                        let seen = Seen::Taken { id, token, away };
                        let _ = self.told.send(Told::News { unique, seen });
                    }
                    if let Some(settled) = self.came_to(&id).await {
                        let holder = Holder {
                            key: self.unique.clone(),
                            token: token.into(),
                            id: id.into(),
                        };
                        // Who cannot be told now is told with the next look.
                        let _ = self.backend.settle_unique(&holder, &settled).await;
                    }
                }
                Ok(seen) => {
                    let unique = self.unique.clone();
                    let _ = self.told.send(Told::News { unique, seen });
                    return;
                }
                Err(error) if error.is_transient() => self.backend.link().ready().await,
                Err(error) => warn!("an idempotency key cannot be looked at: {error}"),
            }
        }
    }

    /// What a task came to that went on elsewhere: where another took its place, or somebody revoked it, nobody says so
    /// of the key.
    async fn came_to(&self, id: &str) -> Option<Settled> {
        #[derive(serde::Deserialize)]
        struct Record {
            status: String,
            result: Json,
            #[serde(default)]
            traceback: Option<String>,
        }
        let record = self.backend.get(id).await.ok()??;
        let record: Record = crate::wire::json::parse(&record).ok()?;
        let state = match Stored::parse(&record.status) {
            Stored::Success => "SUCCESS",
            Stored::Failure => "FAILURE",
            state if state.is_ready() => return Some(Settled::Free),
            _ => return None,
        };
        Some(Settled::Ended {
            state,
            value: record.result,
            traceback: record.traceback.unwrap_or_default(),
            time: self.period,
        })
    }
}
