//! Who goes where: a pure function from what is known of the fleet to places for those who wait.
//!
//! Ollama loads one model at a time, for minutes, and a load throws another model out. So a call goes to a host that
//! has its model in memory; where there is none with room, it waits about as long as a load would take before it asks
//! for one (whoever waits and whoever loads pays at most twice the least), and a host is not taken from a model that
//! others still wait for, until the call has waited long enough to have its turn.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::strategy::Strategy;
use ranked::{Ranked, of_two};

mod ranked;
mod standing;

pub use standing::standings;

/// What a step of priority is worth, in milliseconds of waiting: a high priority overtakes, and nobody starves.
const STEP_OF_PRIORITY: u64 = 10_000;

/// What is known of the fleet at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Milliseconds, by the clock of the ledger.
    pub now: u64,
    /// The hosts, in the order of the settings.
    pub hosts: Vec<Host>,
    /// Calls that wait, of all workers.
    pub waiting: Vec<Waiting>,
    /// Calls of a model at once, on all hosts together.
    pub limits: BTreeMap<String, usize>,
    /// What a load takes, in milliseconds, for models that were loaded before.
    pub loads: BTreeMap<String, u64>,
    /// What a load takes where nothing is known.
    pub usual_load: u64,
    /// After this time a cold model's call has its turn, in milliseconds.
    pub switch_after: u64,
}

/// A host, as far as a choice needs it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its base URL.
    pub url: String,
    /// How much faster than others.
    pub weight: f64,
    /// Calls at once.
    pub max_parallel: usize,
    /// Models in memory at once.
    pub max_loaded: usize,
    /// Video memory in bytes, where the settings say it.
    pub vram: Option<u64>,
    /// What models take of it, as far as that is known.
    pub sizes: BTreeMap<String, u64>,
    /// Calls now, by model.
    pub busy: BTreeMap<String, usize>,
    /// Models in memory, or being loaded; the one used last comes first.
    pub warm: Vec<String>,
    /// Loads in progress.
    pub loading: usize,
    /// Models it may serve; `None` where that is not known yet.
    pub serves: Option<BTreeSet<String>>,
    /// Whether it can be asked.
    pub health: Health,
    /// Nobody was there a moment ago.
    pub gone: bool,
    /// Models that fail there, though the host is well.
    pub sick: BTreeMap<String, Health>,
    /// Models whose last answer there was none.
    pub shaky: BTreeSet<String>,
    /// Milliseconds that an answer of a hundred tokens took there, by model, where that was measured lately.
    pub paces: BTreeMap<String, u64>,
}

/// What a breaker says of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing is wrong.
    Well,
    /// It failed; one call may try it.
    Trial,
    /// It failed; nobody asks it now.
    Broken,
}

/// A call that waits.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Its id.
    pub id: String,
    /// The model, by its canonical name.
    pub model: String,
    /// 0 to 9, high is first.
    pub priority: u8,
    /// When it came, in milliseconds.
    pub since: u64,
    /// Hosts that failed it already.
    pub not: Vec<String>,
    /// For whom it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// How its host is chosen; the key of one that is sticky is the value here.
    #[serde(default, skip_serializing_if = "is_warm_first")]
    pub by: Strategy,
}

fn is_warm_first(strategy: &Strategy) -> bool {
    *strategy == Strategy::WarmFirst
}

impl Waiting {
    /// Whether a host may have it at all, as far as anyone knows.
    fn may_go_to(&self, host: &Host) -> bool {
        host.may_serve(&self.model) && !self.not.contains(&host.url)
    }
}

impl View {
    /// Whether a model is in memory somewhere, or could be loaded without another having to go.
    pub(super) fn is_at_hand(&self, model: &str) -> bool {
        let is_there = |host: &Host| host.is_warm(model) || host.has_space(model, &[]);
        let mut hosts = self.hosts.iter();
        hosts.any(|host| host.may_serve(model) && !host.is_broken_for(model) && is_there(host))
    }

    /// What a load of a model takes, in milliseconds.
    fn load_of(&self, model: &str) -> u64 {
        self.loads.get(model).copied().unwrap_or(self.usual_load)
    }
}

/// A place for a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which call: its place in [`View::waiting`].
    pub call: usize,
    /// Where: its place in [`View::hosts`].
    pub host: usize,
    /// Why there.
    pub why: Why,
}

/// Why a host was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has the model in memory, and room.
    Warm,
    /// No host with room has it in memory, and this one has memory to spare.
    Load,
    /// As `Load`, in the place of models that nobody waits for, or whose time is over.
    Instead(Vec<String>),
}

impl Host {
    /// How many more calls of a model it may have.
    pub fn room(&self, model: &str) -> usize {
        let used: usize = self.busy.values().sum();
        let room = match self.health {
            Health::Well => self.max_parallel.saturating_sub(used),
            Health::Trial => usize::from(used == 0),
            Health::Broken => 0,
        };
        match self.sick.get(model) {
            None | Some(Health::Well) => room,
            Some(Health::Trial) if self.is_busy_with(model) => 0,
            Some(Health::Trial) => room.min(1),
            Some(Health::Broken) => 0,
        }
    }

    fn is_broken_for(&self, model: &str) -> bool {
        self.health == Health::Broken || self.sick.get(model) == Some(&Health::Broken)
    }

    fn is_busy_with(&self, model: &str) -> bool {
        self.busy.get(model).is_some_and(|calls| *calls > 0)
    }

    fn is_warm(&self, model: &str) -> bool {
        self.warm.iter().any(|warm| warm == model)
    }

    /// Whether it may serve a model, as far as anyone knows.
    pub fn may_serve(&self, model: &str) -> bool {
        self.serves.as_ref().is_none_or(|serves| serves.contains(model))
    }

    fn size(&self, model: &str) -> u64 {
        self.sizes.get(model).copied().unwrap_or(0)
    }

    /// Whether a model has room in memory when these are gone. Ollama throws models out for one that needs more than
    /// four fifths of what is free.
    fn has_space(&self, model: &str, gone: &[String]) -> bool {
        let stays = || {
            let stays = self.warm.iter().filter(|warm| *warm != model && !gone.contains(warm));
            stays.map(|warm| self.size(warm))
        };
        let has_place = stays().count() < self.max_loaded;
        let fits = self.vram.is_none_or(|vram| {
            let free = vram.saturating_sub(stays().sum());
            stays().count() == 0 || self.size(model).saturating_mul(5) <= free.saturating_mul(4)
        });
        has_place && fits
    }

    /// Whether a model is larger than all of the video memory: a part of it would run on the processor.
    fn is_too_small_for(&self, model: &str) -> bool {
        self.vram
            .is_some_and(|vram| self.size(model).saturating_mul(5) > vram.saturating_mul(4))
    }

    /// Whether other hosts come first for a model: it failed here the last time, or is too large for the memory.
    fn is_last_choice(&self, model: &str) -> bool {
        self.shaky.contains(model) || self.is_too_small_for(model)
    }

    /// One call more, and what that makes of its memory.
    pub(super) fn accept(&mut self, model: &str, why: &Why) {
        *self.busy.entry(model.to_owned()).or_default() += 1;
        if let Why::Instead(victims) = why {
            self.warm.retain(|warm| !victims.contains(warm));
        }
        if *why != Why::Warm {
            self.loading += 1;
        }
        self.warm.retain(|warm| warm != model);
        self.warm.insert(0, model.to_owned());
    }

    /// How full it is, with one call more.
    fn fullness(&self) -> f64 {
        let used: usize = self.busy.values().sum();
        ratio(used + 1, self.max_parallel) / self.weight
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of calls are small")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Places for as many of those who wait as can have one now, in the order in which they are served.
pub fn assign(mut view: View) -> Vec<Placed> {
    let ranks = ranks(&view.waiting.iter().collect::<Vec<_>>());
    let mut order: Vec<usize> = (0..view.waiting.len()).collect();
    order.sort_by_key(|at| (ranks[*at], &view.waiting[*at].id));
    let mut round = Round {
        demand: BTreeMap::new(),
        used: BTreeMap::new(),
        kept: vec![None; view.hosts.len()],
    };
    for call in &view.waiting {
        *round.demand.entry(call.model.clone()).or_default() += 1;
    }
    for host in &view.hosts {
        for (model, calls) in &host.busy {
            *round.used.entry(model.clone()).or_default() += calls;
        }
    }
    let mut placed = Vec::new();
    let mut rest = Vec::new();
    for at in order {
        match round.place(&view, &view.waiting[at], false) {
            Some((host, why)) => round.note(&mut view, at, host, why, &mut placed),
            None => rest.push(at),
        }
    }
    // Whose model is in no memory comes before who wants a second copy; and the one that most wait for comes first, so
    // that a load serves many.
    rest.sort_by_cached_key(|at| {
        let call = &view.waiting[*at];
        let demand = round.demand.get(&call.model).copied().unwrap_or(0);
        let again = round.is_soon(&view, call);
        (
            Reverse(call.priority),
            again,
            Reverse(demand),
            call.model.clone(),
            call.since,
        )
    });
    for at in rest {
        if let Some((host, why)) = round.place(&view, &view.waiting[at], true) {
            round.note(&mut view, at, host, why, &mut placed);
        }
    }
    placed
}

/// One worker's part of what was given. A load that another worker's call is to order may not be ordered yet: of those
/// who count on it, the first that comes orders it.
pub fn own(view: &View, placed: Vec<Placed>, is_own: impl Fn(&Placed) -> bool) -> Vec<Placed> {
    let mut awaited: BTreeMap<(usize, &str), Why> = BTreeMap::new();
    let mut own = Vec::new();
    for mut one in placed {
        let load = (one.host, view.waiting[one.call].model.as_str());
        if is_own(&one) {
            if one.why == Why::Warm
                && let Some(why) = awaited.remove(&load)
            {
                one.why = why;
            }
            own.push(one);
        } else if one.why != Why::Warm {
            awaited.insert(load, one.why);
        }
    }
    own
}

/// Who is served first: the smaller. Each further call of a tenant comes after as much waiting as a step of priority is
/// worth, so that the many calls of one do not keep the few of another waiting.
fn ranks(waiting: &[&Waiting]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    let rank = |call: &Waiting| {
        let head_start = STEP_OF_PRIORITY * u64::from(call.priority.min(9));
        (call.since + 9 * STEP_OF_PRIORITY).saturating_sub(head_start)
    };
    order.sort_by_key(|at| (rank(waiting[*at]), &waiting[*at].id));
    let mut before: BTreeMap<&str, u64> = BTreeMap::new();
    let mut ranks = vec![0; waiting.len()];
    for at in order {
        let call = waiting[at];
        let turn = call.tenant.as_deref().map_or(0, |tenant| {
            let turn = before.entry(tenant).or_default();
            *turn += 1;
            *turn - 1
        });
        ranks[at] = rank(call) + STEP_OF_PRIORITY * turn;
    }
    ranks
}

/// Which of the calls of a process are chosen from, where there are more than so many. Calls of a model wait for the
/// same hosts, so they take turns with those of others: a thousand for a host that is full do not hide the one for an
/// idle host.
pub fn shown(waiting: &[&Waiting], most: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    if waiting.len() <= most {
        return order;
    }
    let ranks = ranks(waiting);
    order.sort_by_key(|at| (ranks[*at], &waiting[*at].id));
    let mut before: BTreeMap<(&str, &[String]), usize> = BTreeMap::new();
    let mut turns: Vec<(usize, usize)> = order
        .into_iter()
        .map(|at| {
            let turn = before.entry((&waiting[at].model, &waiting[at].not)).or_default();
            *turn += 1;
            (*turn, at)
        })
        .collect();
    // Of one turn, the first by rank come first.
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().take(most).map(|(_, at)| at).collect()
}

/// What changes while places are given.
struct Round {
    /// Calls that wait, by model.
    demand: BTreeMap<String, usize>,
    /// Calls that run, by model.
    used: BTreeMap<String, usize>,
    /// Hosts that take nothing until they are idle, because a model waits for them.
    kept: Vec<Option<String>>,
}

/// What a load on a host costs; less is better.
type Cost = (u8, f64, f64, usize);

impl Round {
    /// A place for a call; one where its model has to be loaded only with `cold`, or when the call's turn has come.
    fn place(&mut self, view: &View, call: &Waiting, cold: bool) -> Option<(usize, Why)> {
        let model = call.model.as_str();
        let used = self.used.get(model).copied().unwrap_or(0);
        if view.limits.get(model).is_some_and(|limit| used >= *limit) {
            return None;
        }
        if call.by != Strategy::WarmFirst {
            match self.ranked(view, call) {
                Ranked::Place(at, why) => return Some((at, why)),
                Ranked::Wait => return None,
                Ranked::Nobody => {}
            }
        }
        let hosts = || view.hosts.iter().enumerate().filter(|(_, host)| call.may_go_to(host));
        let warm = hosts().filter(|(at, host)| host.is_warm(model) && host.room(model) > 0 && self.kept[*at].is_none());
        let warm: Vec<(usize, f64)> = warm.map(|(at, host)| (at, host.fullness())).collect();
        if let Some(least) = warm.iter().map(|(_, full)| *full).min_by(f64::total_cmp) {
            let tied: Vec<usize> = warm
                .iter()
                .filter(|(_, full)| *full <= least)
                .map(|(at, _)| *at)
                .collect();
            return Some((of_two(view, &call.id, &tied)?, Why::Warm));
        }
        let waited = view.now.saturating_sub(call.since);
        if !cold && waited < view.switch_after {
            return None;
        }
        let load = view.load_of(model);
        // Waiting may be cheaper than a second load.
        if self.is_soon(view, call) && waited < load {
            return None;
        }
        let mut best: Option<(Cost, usize, Option<Why>)> = None;
        for (at, host) in hosts() {
            let Some((class, why)) = self.cold(view, at, host, model, waited) else {
                continue;
            };
            // A host where the model failed the last time, or that it is too large for, comes after all others.
            let class = class + 3 * u8::from(host.is_last_choice(model));
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of a load")]
            let cost = (
                class,
                load as f64 * ratio(1 + host.loading, 1) / host.weight,
                host.fullness(),
                host.warm.len(),
            );
            if best.as_ref().is_none_or(|(least, _, _)| is_less(&cost, least)) {
                best = Some((cost, at, why));
            }
        }
        let (_, at, why) = best?;
        if why.is_none() {
            self.kept[at] = Some(model.to_owned());
        }
        Some((at, why?))
    }

    /// Whether a call's model is in memory somewhere, or about to be.
    fn is_soon(&self, view: &View, call: &Waiting) -> bool {
        let model = call.model.as_str();
        view.hosts.iter().enumerate().any(|(at, host)| {
            call.may_go_to(host)
                && ((host.is_warm(model) && !host.is_broken_for(model)) || self.kept[at].as_deref() == Some(model))
        })
    }

    /// Whether a model may be loaded on a host now: how bad that is, and why it may; no reason means as soon as the
    /// host is idle.
    fn cold(&self, view: &View, at: usize, host: &Host, model: &str, waited: u64) -> Option<(u8, Option<Why>)> {
        if host.is_broken_for(model) || self.kept[at].is_some() {
            return None;
        }
        if host.has_space(model, &[]) {
            return (host.room(model) > 0).then_some((0, Some(Why::Load)));
        }
        let waits = |warm: &str| {
            let here = warm != model && !host.is_broken_for(warm);
            here && self.demand.get(warm).is_some_and(|calls| *calls > 0)
        };
        let its_turn = waited >= view.switch_after;
        // Those that were used longest ago go, as many as have to.
        let mut victims = Vec::new();
        for warm in host.warm.iter().rev() {
            if host.is_busy_with(warm) || (!its_turn && waits(warm)) {
                continue;
            }
            victims.push(warm.clone());
            if host.has_space(model, &victims) {
                return (host.room(model) > 0).then_some((1, Some(Why::Instead(victims))));
            }
        }
        let wanted = host.warm.iter().any(|warm| waits(warm));
        (its_turn || !wanted).then_some((2, None))
    }

    fn note(&mut self, view: &mut View, call: usize, at: usize, why: Why, placed: &mut Vec<Placed>) {
        let model = view.waiting[call].model.as_str();
        view.hosts[at].accept(model, &why);
        *self.used.entry(model.to_owned()).or_default() += 1;
        if let Some(demand) = self.demand.get_mut(model) {
            *demand = demand.saturating_sub(1);
        }
        placed.push(Placed { call, host: at, why });
    }
}

fn is_less(a: &Cost, b: &Cost) -> bool {
    a.0.cmp(&b.0)
        .then(a.1.total_cmp(&b.1))
        .then(a.2.total_cmp(&b.2))
        .then(a.3.cmp(&b.3))
        .is_lt()
}

/// Why a call can have no place anywhere, however long it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nowhere {
    /// No host has the model.
    Lacking,
    /// Every host that may have it failed this call.
    Failed,
    /// Every host that may have it is gone.
    Gone,
    /// Redis refuses what workers write down of their calls, and will again: with these words.
    Refused(String),
}

/// Whether there is any host left for a call.
pub fn nowhere(view: &View, call: &Waiting) -> Option<Nowhere> {
    let mut serving = view.hosts.iter().filter(|host| host.may_serve(&call.model)).peekable();
    if serving.peek().is_none() {
        return Some(Nowhere::Lacking);
    }
    let serving: Vec<&Host> = serving.collect();
    let failed = |host: &&Host| call.not.contains(&host.url);
    match () {
        () if serving.iter().all(failed) => Some(Nowhere::Failed),
        () if serving.iter().all(|host| host.gone || failed(host)) => Some(Nowhere::Gone),
        () => None,
    }
}

#[cfg(test)]
#[path = "routing_tests.rs"]
mod tests;
