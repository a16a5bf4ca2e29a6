//! The loop that owns the state of a worker. Everything else sends it values; each arm of its select is one
//! synchronous call, and what must be awaited (Redis, tasks) waits elsewhere.

mod follow;
mod standstill;
mod starting;
mod stay;
mod stopping;
mod take;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::warn;

use super::Options;
use super::autoscale::Autoscaler;
use super::control::{Order, Panel};
use super::done::Succeeded;
use super::effects::Scribe;
use super::errback::Errbacks;
use super::events::Events;
use super::fetcher::{Fetched, Taken};
use super::flood::Waits;
use super::gossip::Gossip;
use super::joiner::{Joined, Member};
use super::keeper::{Held, Keeper, Kept};
use super::line::Line;
use super::metrics::Metrics;
use super::outbox::{Out, Outbox};
use super::parked::{FAR, Parked, Recalled, Spot};
use super::pool::{Ended, Pool};
use super::process::Children;
use super::rate_limit::RateLimits;
use super::request::{Effect, End, Happening, Hold, Input, Outcome, Request, State};
use super::revoke::{Id, Revoked};
use super::room::{Room, Share};
use super::spans;
use super::state_db::StateDb;
use super::stop::{Exit, Phase};
use super::timers::Timers;
use super::unique::{self, Told, Uniques};
use super::unsent::Unsent;
use crate::backend::Holder;
use crate::broker::Tag;
use crate::client::Client;
use crate::clock::{self, Clocks, Instant, Timestamp};
use crate::task::{Context, Failure, Note, Notes, Registry};
use crate::trace::Span;

pub(crate) use standstill::Standstill;

/// Names a request in this worker. Task ids are no use for that: a message may be delivered twice.
pub(crate) type Key = u64;

/// How many inputs of one kind are taken before the others get their turn.
const TURN: usize = 256;
/// How often to look whether the clock was set.
const LOOK: Duration = Duration::from_secs(1);
/// A worker that stops gives its last words so long at least.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Between two looks whether Redis has taken so much of what waits that more may.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks whether more of what is revoked can be told.
const UNTOLD_PAUSE: Duration = Duration::from_millis(5);
/// An ETA in the year 9999 is beyond what the clock can count; it is looked at again in a day.
const FURTHEST: Duration = Duration::from_secs(86_400);
/// Parked messages that go back at once: bounds how long one script occupies Redis.
const BACK: usize = 100;

/// A request with its state.
pub(crate) struct Active {
    pub request: Arc<Request>,
    pub state: State,
    pub context: Option<Context>,
    pub started: Option<Timestamp>,
    /// The process it runs in.
    pub pid: u32,
    pub eta: Option<Timestamp>,
    /// When it is woken; what was set before that for another time means nothing.
    pub due: Option<Instant>,
    /// It has its place in the rate limit's bucket, and starts when that comes up.
    pub has_place: bool,
    #[expect(dead_code, reason = "held, never read: dropping it gives the room back")]
    pub share: Share,
    /// Its place in the prefetch count, where that is kept while it runs.
    pub credit: Option<OwnedSemaphorePermit>,
    /// When it came.
    pub since: Instant,
    /// The span of its run.
    pub span: Option<Span>,
    /// Whose it is, where tenants are told apart.
    pub tenant: Option<Arc<str>>,
    /// It has the key of which one is to run.
    pub holder: Option<Box<Holder>>,
}

/// What the loop listens to.
pub(crate) struct Inputs {
    pub fetched: mpsc::Receiver<Vec<Fetched>>,
    pub stays: mpsc::UnboundedReceiver<Vec<Tag>>,
    pub unsent: mpsc::UnboundedReceiver<Unsent>,
    pub ends: mpsc::UnboundedReceiver<Ended>,
    pub orders: mpsc::Receiver<Order>,
    pub kept: mpsc::UnboundedReceiver<Kept>,
    pub recalled: mpsc::UnboundedReceiver<Recalled>,
    pub notes: mpsc::Receiver<Note>,
    pub joined: mpsc::UnboundedReceiver<Joined>,
    pub told: mpsc::UnboundedReceiver<Told>,
    pub stop: watch::Receiver<Phase>,
}

/// The state of a worker.
pub(crate) struct Consumer {
    pub options: Options,
    pub registry: Registry,
    /// One for all runs.
    pub client: Arc<Client>,
    pub pool: Pool,
    pub children: Children,
    pub events: Events,
    pub scribe: Arc<Scribe>,
    pub outbox: Outbox,
    pub active: HashMap<Key, Active>,
    pub by_id: HashMap<Arc<str>, Key>,
    pub reserved: Line,
    /// How many more messages are held for that than the prefetch count says.
    pub ahead: usize,
    pub timers: Timers,
    /// Those that wait long for their ETA, beyond some that are kept whole.
    pub parked: Parked,
    pub recall: mpsc::UnboundedSender<Vec<Spot>>,
    /// Tells the fetcher what the queues are full of.
    pub waits: Waits,
    pub rate_limits: RateLimits,
    pub revoked: Revoked,
    /// Revoked tasks that are not noted in Redis yet, and whether they are held here.
    pub untold: VecDeque<(Id, bool)>,
    pub done: Succeeded,
    pub gossip: Gossip,
    pub panel: Panel,
    pub metrics: Metrics,
    pub autoscaler: Option<Autoscaler>,
    pub state_db: Option<StateDb>,
    pub totals: HashMap<Arc<str>, u64>,
    pub processed: u64,
    pub running: usize,
    pub born: Instant,
    pub credit: Arc<Semaphore>,
    pub room: Room,
    /// Whether the queues are empty, as far as the fetcher knows.
    pub idle: Arc<AtomicBool>,
    /// What follows a task and stays here, until it is in Redis.
    pub(super) staying: HashMap<Tag, Taken>,
    /// Messages were claimed that have not come here yet.
    pub(super) is_behind: bool,
    pub prefetch: usize,
    pub queues: watch::Sender<Vec<Arc<str>>>,
    pub held: mpsc::Sender<Held>,
    pub notes: Notes,
    pub uniques: Uniques,
    pub members: mpsc::UnboundedSender<Member>,
    /// Members that ended in this turn.
    pub(super) ended: Vec<Member>,
    /// The messages of members that are being counted, by how often they are.
    pub joining: Vec<Option<Tag>>,
    /// Those of them that are not acknowledged: what follows them can neither be sent nor kept.
    pub kept: HashSet<Tag>,
    /// Error callbacks that run here.
    pub errbacks: Errbacks,
    pub shutdown: super::Stop,
    pub standstill: Standstill,
    /// The connection to the broker as it was last seen.
    pub(super) connection: u64,
    /// Queues are to be declared again.
    pub has_to_declare: bool,
    /// Room for messages that wait for their ETA, beside the prefetch count; `None` is without bound.
    pub(super) waiting: Option<Arc<Semaphore>>,
    pub(super) next_key: Key,
    pub(super) phase: Phase,
    pub(super) drained: bool,
    pub(super) out: Vec<Out>,
    pub(super) effects: Vec<Effect>,
    pub(super) local: Vec<Effect>,
    pub(super) streams: HashMap<Arc<str>, Vec<Bytes>>,
}

impl Consumer {
    /// Runs until everything has stopped.
    pub(crate) async fn run(mut self, mut inputs: Inputs) -> Exit {
        let mut heartbeat = every(self.options.heartbeat.unwrap_or(Duration::from_secs(3600)));
        let mut round = every(Gossip::PAUSE);
        let mut lease = every(Keeper::pause(self.options.broker_options.lease()));
        let mut keep = every(Uniques::pause(self.options.broker_options.lease()));
        let mut look = every(LOOK);
        let mut untold = every(UNTOLD_PAUSE);
        let mut full = every(FULL_PAUSE);
        let mut clocks = Clocks::new(clock::now(), clock::instant());
        let mut ends = Vec::with_capacity(TURN);
        self.children.fill();
        self.worker_event("worker-online");
        self.send();
        // Since when nothing runs in a worker that stops.
        let mut done_since = None;
        let done_since = loop {
            let due = self.next_due();
            let is_full = self.outbox.is_full();
            tokio::select! {
                fetched = inputs.fetched.recv(), if !self.drained => match fetched {
                    None => self.drained = true,
                    Some(fetched) => fetched.into_iter().for_each(|fetched| self.on_fetched(fetched)),
                },
                Some(tags) = inputs.stays.recv() => self.on_stayed(tags),
                Some(unsent) = inputs.unsent.recv() => self.on_unsent(unsent),
                _ = inputs.ends.recv_many(&mut ends, TURN) => {
                    self.is_behind = !inputs.fetched.is_empty();
                    // What a run said comes before how it ended.
                    while let Ok(note) = inputs.notes.try_recv() {
                        match note {
                            // As those that find no room among the notes.
                            Note::Stream(..) if is_full => self.metrics.stream_dropped(1),
                            note => self.on_note(note),
                        }
                    }
                    ends.drain(..).for_each(|ended| self.on_ended(ended));
                }
                // While Redis is away runs say no more than the channel holds.
                Some(note) = inputs.notes.recv(), if !is_full || self.phase != Phase::Run => match note {
                    // Who stops waits for runs, and those for room.
                    Note::Stream(..) if is_full => self.metrics.stream_dropped(1),
                    note => self.on_note(note),
                },
                _ = full.tick(), if is_full => {}
                Some(joined) = inputs.joined.recv() => {
                    // What a member could not send comes before its ack.
                    self.on_all_unsent(&mut inputs.unsent);
                    self.on_joined(joined);
                }
                Some(told) = inputs.told.recv() => self.on_told(told),
                Some(order) = inputs.orders.recv() => self.on_order(order),
                Some(kept) = inputs.kept.recv() => match kept {
                    Kept::Lost(tags) => self.on_lost(&tags),
                    Kept::GivenUp(given_up) => self.on_given_up(&given_up),
                    Kept::Overdue => self.on_lease(),
                    Kept::Reconnected => self.on_reconnected(),
                    Kept::Renewed(at) => self.standstill.renewed(at),
                },
                Some(recalled) = inputs.recalled.recv() => self.on_recalled(recalled),
                () = sleep_until(due) => self.on_due(),
                _ = untold.tick(), if !self.untold.is_empty() => self.tell_revoked(),
                _ = heartbeat.tick() => self.worker_event("worker-heartbeat"),
                _ = lease.tick() => self.on_lease(),
                _ = keep.tick() => self.keep_unique(),
                _ = round.tick() => self.on_round(),
                _ = look.tick() => {
                    if clocks.went_apart(clock::now(), clock::instant()) {
                        self.on_clock_set();
                    }
                    self.look_at_connection();
                    self.declare_again();
                    // The keeper may have been busy when it was to be asked.
                    if self.standstill.is_in_doubt() {
                        self.on_lease();
                    }
                    if self.phase == Phase::Run {
                        self.children.fill();
                    }
                }
                Ok(()) = inputs.stop.changed() => {
                    let phase = *inputs.stop.borrow_and_update();
                    self.on_stop(phase);
                }
            }
            self.autoscale();
            if self.standstill.goes_round(clock::instant()) {
                self.on_lease();
            }
            self.start_reserved();
            self.send();
            let is_done = self.active.is_empty() && (self.errbacks.are_done() || self.phase == Phase::Cold);
            if self.phase == Phase::Run || !is_done || self.lingers() {
                done_since = None;
                continue;
            }
            // The fetcher may still wait for Redis, to look for what it took last.
            let since = *done_since.get_or_insert_with(clock::instant);
            if self.drained {
                break since;
            }
        };
        self.say_goodbye(&mut inputs, done_since).await
    }

    /// Everything is accounted for; what was decided still has to reach Redis. A Redis that was waited for since then
    /// is not waited for as long again.
    async fn say_goodbye(mut self, inputs: &mut Inputs, since: Instant) -> Exit {
        let saving = self.save_state();
        let waited = clock::instant().saturating_duration_since(since);
        let patience = self.phase.patience().saturating_sub(waited).max(LAST_WORDS);
        let accounted = async {
            while !self.untold.is_empty() {
                self.tell_revoked();
                self.send();
                self.outbox.flushed().await;
            }
            while !self.joining.is_empty()
                && let Some(joined) = inputs.joined.recv().await
            {
                self.on_all_unsent(&mut inputs.unsent);
                self.on_joined(joined);
                self.send();
            }
            if self.phase != Phase::Cold {
                self.errbacks.done().await;
            }
            self.outbox.settled().await;
            if self.on_all_unsent(&mut inputs.unsent) {
                self.send();
                self.outbox.settled().await;
            }
        };
        let mut unwritten = 0;
        if tokio::time::timeout(patience, accounted).await.is_err() {
            unwritten = self.outbox.unwritten();
            warn!(
                "Redis did not take everything in time: {} writes are lost, {unwritten} of them results or next steps; messages \
                 that were not acknowledged run again elsewhere",
                self.outbox.backlog()
            );
        }
        if let Some(saving) = saving {
            // A disk that hangs must not keep the worker from ending.
            let _ = tokio::time::timeout(patience, saving).await;
        }
        self.children.end().await;
        match self.phase {
            Phase::Cold => Exit::Cold,
            _ if unwritten > 0 => Exit::Unwritten,
            _ => Exit::Warm,
        }
    }

    fn on_ended(&mut self, ended: Ended) {
        drop(ended.slot);
        self.running -= 1;
        if self.reserved.is_fair() {
            let context = self.active.get(&ended.key).and_then(|active| active.context.as_ref());
            let tokens = context.map(Context::tokens);
            self.reserved.ended(ended.key, ended.runtime.as_secs_f64(), tokens);
        }
        if let Some(active) = self.active.get(&ended.key) {
            self.metrics.ran(&active.request.entry.name, ended.runtime);
            let dropped = active.context.as_ref().map_or(0, Context::stream_dropped);
            self.metrics.stream_dropped(dropped);
        }
        if let Some(Outcome::Failed(Failure::Later(after))) = ended.outcome {
            self.put_off(ended.key, after);
        } else if let Some(outcome) = ended.outcome {
            if self.options.deduplicate
                && matches!(outcome, Outcome::Success(_))
                && let Some(active) = self.active.get(&ended.key)
            {
                self.done.add(active.request.id.clone(), clock::instant());
            }
            let input = Input::Ended {
                run: ended.run,
                outcome,
                runtime: ended.runtime,
            };
            self.step(ended.key, input);
        }
    }

    /// A run that goes on later; a worker that stops gives its message back at once.
    fn put_off(&mut self, key: Key, after: Duration) {
        if let Some(active) = self.active.get_mut(&key) {
            active.context = None;
            // Its message waits from now on, and may do so without a place in the prefetch count.
            if let State::Running {
                unacked: Some(delivery),
                ..
            } = &mut active.state
                && let Some(credit) = active.credit.take()
            {
                delivery.credit = Some(credit);
            }
            // What the run was is over; the next one is another.
            if let Some(span) = active.span.take() {
                span.end();
            }
        }
        let input = Input::PutOff {
            run: key,
            until: clock::after(clock::now(), after),
            waiting: self.room_to_wait(),
        };
        self.step(key, input);
        if self.phase != Phase::Run {
            self.step(key, Input::Stop { cold: false });
        }
    }

    fn on_note(&mut self, note: Note) {
        match note {
            Note::State(id, state, meta) => {
                // A run that was given up must not overwrite what was decided about it.
                let Some(active) = self.by_id.get(&id).and_then(|key| self.active.get(key)) else {
                    return;
                };
                if !matches!(active.state, State::Running { .. }) {
                    return;
                }
                let event = self.events.custom(&active.request, state.as_str(), &meta);
                if !active.request.policy.ignore_result {
                    let headers = &active.request.message.headers;
                    self.out.extend(self.scribe.custom(&id, state, &meta, Some(headers)));
                }
                self.out.extend(event.map(Out::Event));
            }
            Note::Event(id, kind, fields) => {
                self.out.extend(self.events.own(&id, &kind, fields).map(Out::Broker));
            }
            Note::Stream(id, entry) => {
                let entry = Bytes::from(String::from(Box::<str>::from(entry)));
                self.streams.entry(id).or_default().push(entry);
            }
        }
    }

    /// The next time at which something is due.
    fn next_due(&self) -> Option<Instant> {
        let parked = self.parked.next(self.active.len());
        let parked = parked.map(|next| clock::instant() + clock::until(next, clock::now()).min(FURTHEST));
        self.timers.next().into_iter().chain(parked).min()
    }

    fn on_due(&mut self) {
        let places = self.parked.take_due(self.active.len(), clock::now());
        self.recall(places);
        let now = clock::instant();
        for _ in 0..TURN {
            let Some((at, key)) = self.timers.pop_due(now) else {
                break;
            };
            let Some(active) = self.active.get_mut(&key) else {
                continue;
            };
            if active.due.take_if(|due| *due == at).is_none() {
                continue;
            }
            // What waits for its rate limit has had its ETA.
            let waits = matches!(active.state, State::Held { why: Hold::Eta, .. });
            if let Some(eta) = active.eta.filter(|eta| waits && *eta > clock::now()) {
                self.wait(key, eta);
                continue;
            }
            let revoked = self.is_revoked(key);
            self.step(key, Input::Due { revoked });
        }
    }

    /// The time until an ETA was counted by a clock that has been set since.
    fn on_clock_set(&mut self) {
        warn!("the clock of this machine was set, or the machine slept; ETAs are counted anew");
        let waiting: Vec<(Key, Timestamp)> = self
            .active
            .iter()
            .filter(|(_, active)| matches!(active.state, State::Held { why: Hold::Eta, .. }))
            .filter_map(|(key, active)| Some((*key, active.eta?)))
            .collect();
        for (key, eta) in waiting {
            self.wait(key, eta);
        }
    }

    pub(super) fn on_lease(&mut self) {
        // A keeper that is still busy with the last round keeps these in its next one. It is told of nothing, too: then
        // there is nothing that it could not renew.
        let Ok(keeper) = self.held.clone().try_reserve_owned() else {
            return;
        };
        let mut tags: Vec<Tag> = self
            .active
            .values()
            .filter_map(|active| active.state.tag().cloned())
            .chain(self.joining.iter().flatten().cloned())
            .filter(Tag::is_held)
            .collect();
        let there = tags.len();
        tags.extend(self.staying.keys().cloned());
        tags.extend(self.outbox.stuck());
        let options = &self.options.broker_options;
        // Those whose lease lasts for half of what it was given beyond the ETA are kept next time.
        let pause = Keeper::pause(options.lease()).saturating_sub(options.parked_longer() / 2);
        tags.extend(self.parked.due_by(clock::after(clock::now(), pause)));
        let new = tags.len() - there;
        let at = clock::instant();
        keeper.send(Held { tags, new, at });
    }

    /// Gives one input to one request, and does what follows.
    pub(crate) fn step(&mut self, key: Key, input: Input) {
        let Some(active) = self.active.get_mut(&key) else {
            return;
        };
        let state = std::mem::replace(&mut active.state, State::Done);
        let (mut effects, mut local) = (std::mem::take(&mut self.effects), std::mem::take(&mut self.local));
        active.state = state.step(input, &active.request, clock::now(), &mut effects);
        if active.started.is_some() {
            // It ran and was put off: what it said is written down first.
            for effect in &mut effects {
                if let Effect::Requeue(_, end @ End::Untouched) = effect {
                    *end = End::Front;
                }
            }
        }
        let done = active.state.is_done();
        let span = active.span.take_if(|_| done);
        if let Some(span) = &span {
            spans::tell(span, &active.request, &effects);
        }
        // Written behind the result: who finds the one finds the other.
        let mut settled = match active.holder.take_if(|_| done) {
            Some(holder) => {
                let lease = Uniques::lease(self.options.broker_options.lease());
                let settled = unique::settled(&active.request, &effects, clock::now(), lease);
                Some((*holder, settled))
            }
            None => None,
        };
        let request = active.request.clone();
        let context = if done {
            active.context.take()
        } else {
            active.context.clone()
        };
        if done {
            self.active.remove(&key);
            if self.by_id.get(&request.id) == Some(&key) {
                self.by_id.remove(&request.id);
            }
            self.flush_stream(&request.id);
        }
        if effects
            .iter()
            .any(|effect| matches!(effect, Effect::Emit(Happening::Revoked { expired: true, .. })))
        {
            // Celery lists what expired among what was revoked.
            self.revoked.add(Id::from(&*request.id), clock::instant());
        }
        let mut children = context.as_ref().map(Context::children).unwrap_or_default();
        let scribe = self.scribe.clone();
        let trace = context.as_ref().and_then(|context| context.details().trace.as_ref());
        let written = self.out.len();
        let sends = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Follow(_) | Effect::Retry(..) | Effect::Apply(_)));
        let to = (&mut self.events, &mut self.out);
        let failed = scribe.write(&mut effects, &mut local, (&request, trace), &mut children, to);
        if let (Some(exception), Some((_, settled))) = (&failed, &mut settled) {
            *settled = unique::failed(&request, exception);
        }
        if let Some(span) = span {
            spans::end(&span, failed.map(|exception| spans::shown(&exception, &request)));
        }
        if sends {
            self.keep_next(written);
            self.tie(written, &local);
        }
        self.out
            .extend(settled.map(|(holder, settled)| unique::settle(holder, settled)));
        for effect in local.drain(..) {
            match effect {
                Effect::Fallout(failing) => self.on_failing(&request, trace, *failing),
                Effect::Part(done) => self.on_part(&request, trace, *done, &children),
                Effect::Cancel(signal) => {
                    if let Some(context) = &context {
                        context.cancel_by(signal);
                    }
                }
                Effect::WaitForEta(eta) => {
                    if self.waiting.is_none() && clock::until(eta, clock::now()) > FAR {
                        self.waits.add();
                    }
                    self.wait(key, eta);
                }
                Effect::Enqueue => self.reserve(key, &request),
                // `start` makes the run itself; everything else has been written.
                _ => {}
            }
        }
        (self.effects, self.local) = (effects, local);
        self.hand_over_group(written);
    }

    /// Where results are on another server what is sent with the size of a chord waits for that one: it is not handed over
    /// together with what others have to say.
    fn hand_over_group(&mut self, written: usize) {
        let said = self.out.get(written..).unwrap_or_default();
        if said
            .iter()
            .any(|out| matches!(out, Out::Backend(write) if write.is_group()))
        {
            let group = self.out.split_off(written);
            self.outbox.send(std::mem::take(&mut self.out));
            self.outbox.send(group);
        }
    }

    pub(crate) fn worker_event(&mut self, name: &'static str) {
        let counts = (self.running, self.processed);
        self.out.extend(self.events.worker(name, Some(counts)).map(Out::Broker));
    }

    pub(super) fn is_revoked(&self, key: Key) -> bool {
        self.active
            .get(&key)
            .is_some_and(|active| self.revoked.covers(&active.request.id, &active.request.message.headers))
    }

    /// Streamed entries of a run go out before its end does.
    fn flush_stream(&mut self, id: &Arc<str>) {
        if let Some(entries) = self.streams.remove(id) {
            self.out.push(Out::Backend(crate::backend::Write::Stream {
                id: id.clone(),
                entries,
            }));
        }
    }

    fn send(&mut self) {
        for (id, entries) in self.streams.drain() {
            self.out
                .push(Out::Backend(crate::backend::Write::Stream { id, entries }));
        }
        if !self.out.is_empty() {
            // The next turn will have about as much to say.
            let room = Vec::with_capacity(self.out.len());
            self.outbox.send(std::mem::replace(&mut self.out, room));
        }
        // Behind their results: whoever counts waits until those are there.
        for member in self.ended.drain(..) {
            // A service that is gone has ended the worker.
            let _ = self.members.send(member);
        }
        self.note_numbers();
    }

    fn note_numbers(&self) {
        let Some(now) = self.metrics.now() else { return };
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        now.running.set(number(self.running));
        now.reserved.set(number(self.reserved.len()));
        now.held.set(number(self.active.len() + self.parked.len()));
        now.places.set(number(self.pool.size()));
        now.prefetch.set(number(self.prefetch));
        now.writes.set(number(self.outbox.backlog()));
    }
}

fn every(pause: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(clock::instant() + pause, pause);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
