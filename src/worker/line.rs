//! The line of requests that wait for a place to run: as they came ([`Reserved`]), or, where tenants are to be treated
//! alike (`worker_fair_by`), the oldest one of the tenant whose tasks have used least.
//!
//! What a task will use is not known before it ran, so its tenant is charged with what its tasks used lately, and the
//! difference when it has ended. A tenant that comes back after a while begins where the others are: nobody saves up.
//! That is deficit round robin in which the deficit is counted from the other side.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::consumer::Key;
use super::request::Request;
use super::reserved::{Need, Reserved};
use crate::clock::Instant;
use crate::wire::{self, Json, Pairs};

/// Tenants that are remembered though they have nothing to do.
const IDLE: usize = 1000;
/// Weight of the last task in what tasks of a tenant use lately.
const LATELY: f64 = 0.25;

/// How tenants are told apart, and what counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Fairness {
    /// Where the tenant of a task stands; the first that is there.
    pub by: Vec<TenantIn>,
    /// Messages that are held to choose from, by all workers together.
    pub lookahead: usize,
    /// Tokens count, and not seconds.
    pub tokens: bool,
}

/// Where the tenant of a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantIn {
    /// In a header, or a stamp, of that name.
    Header(String),
    /// In a keyword argument.
    Kwarg(String),
    /// It is the queue, if that fits a pattern with `*`.
    Queue(String),
}

impl TenantIn {
    /// Reads `header:tenant`, `kwarg:customer`, `queue:tenant-*`.
    ///
    /// # Errors
    /// A text for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("header", name)) if !name.is_empty() => Ok(Self::Header(name.to_owned())),
            Some(("kwarg", name)) if !name.is_empty() => Ok(Self::Kwarg(name.to_owned())),
            Some(("queue", pattern)) if !pattern.is_empty() => Ok(Self::Queue(pattern.to_owned())),
            _ => Err(format!("{text:?}: write header:NAME, kwarg:NAME or queue:PATTERN")),
        }
    }

    fn of(&self, request: &Request, queue: &str) -> Option<String> {
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let headers = &request.message.headers;
        match self {
            Self::Header(name) => headers
                .extra
                .get(name)
                .and_then(text)
                .or_else(|| headers.stamps.as_ref()?.get(name).and_then(text)),
            Self::Kwarg(name) => {
                let kwargs: Pairs<'_> = serde_json::from_str(request.message.body.kwargs()).ok()?;
                let (_, value) = kwargs.0.iter().find(|(key, _)| key == name)?;
                text(&Json::from((*value).to_owned()).parse().ok()?)
            }
            Self::Queue(pattern) => wire::fits(queue, pattern).then(|| queue.to_owned()),
        }
    }
}

/// Requests that wait for a place.
pub(crate) struct Line {
    came: Reserved,
    fair: Option<Box<Fair>>,
}

struct Fair {
    fairness: Fairness,
    tenants: HashMap<Arc<str>, Tenant>,
    waiting: usize,
    /// What runs: whose it is, and what that was charged with.
    running: HashMap<Key, (Arc<str>, f64)>,
    /// What tasks use of a tenant of whom nothing is known.
    usual: Option<f64>,
}

#[derive(Default)]
struct Tenant {
    waiting: Reserved,
    running: usize,
    used: f64,
    /// The part of that which is reckoned for what runs.
    reckoned: f64,
    lately: Option<f64>,
}

impl Tenant {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running == 0
    }
}

impl Line {
    /// Nobody waits.
    pub(crate) fn new(fairness: Option<Fairness>) -> Self {
        let fair = |fairness: Fairness| {
            Box::new(Fair {
                fairness,
                tenants: HashMap::new(),
                waiting: 0,
                running: HashMap::new(),
                usual: None,
            })
        };
        Self {
            came: Reserved::default(),
            fair: fairness.map(fair),
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.came.len() + self.fair.as_ref().map_or(0, |fair| fair.waiting)
    }

    /// Whether tenants take turns.
    pub(crate) fn is_fair(&self) -> bool {
        self.fair.is_some()
    }

    /// Whose a request is, where that matters.
    pub(crate) fn tenant(&self, request: &Request, queue: &str) -> Option<Arc<str>> {
        self.fair.as_ref().map(|fair| fair.tenant(request, queue))
    }

    /// One more waits.
    pub(crate) fn push(
        &mut self,
        key: Key,
        tenant: Option<Arc<str>>,
        need: Option<Need>,
        priority: u8,
        since: Instant,
    ) {
        match (&mut self.fair, tenant) {
            (Some(fair), Some(tenant)) => {
                fair.waiting += 1;
                fair.tenant_that_waits(tenant).push(key, need, priority, since);
            }
            _ => self.came.push(key, need, priority, since),
        }
    }

    /// Another worker had it and was lost: whosever it is, it has had its turn.
    pub(crate) fn push_restored(&mut self, key: Key) {
        self.came.push_restored(key);
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the one that goes next, of those that still live.
    pub(crate) fn take(&mut self, now: Instant, lives: impl Fn(Key) -> bool) -> Option<Key> {
        let first = self.came.take(now, &lives);
        first.or_else(|| self.fair.as_mut()?.take(now, lives))
    }

    /// One begins to run.
    pub(crate) fn begins(&mut self, key: Key, tenant: Option<&Arc<str>>) {
        if let (Some(fair), Some(tenant)) = (&mut self.fair, tenant) {
            fair.begins(key, tenant.clone());
        }
    }

    /// One has ended, after so many seconds; `tokens` are those of models, where they are known.
    pub(crate) fn ended(&mut self, key: Key, seconds: f64, tokens: Option<u64>) {
        if let Some(fair) = &mut self.fair {
            fair.ended(key, seconds, tokens);
        }
    }
}

impl Fair {
    fn tenant(&self, request: &Request, queue: &str) -> Arc<str> {
        let found = self.fairness.by.iter().find_map(|place| place.of(request, queue));
        // Those without one are one.
        found.unwrap_or_default().into()
    }

    /// The requests of a tenant of whom one more waits. One that had nothing to do begins where the others are.
    fn tenant_that_waits(&mut self, name: Arc<str>) -> &mut Reserved {
        if self.tenants.get(&name).is_none_or(Tenant::is_idle) {
            let others = self.tenants.values().filter(|tenant| !tenant.is_idle());
            // Without what is only reckoned: it may turn out to be less, and then those would be before this one.
            match others
                .map(|tenant| tenant.used - tenant.reckoned)
                .min_by(f64::total_cmp)
            {
                Some(least) => {
                    let tenant = self.tenants.entry(name.clone()).or_default();
                    tenant.used = tenant.used.max(least);
                }
                // All begin anew.
                None => self.tenants.values_mut().for_each(|tenant| tenant.used = 0.0),
            }
        }
        &mut self.tenants.entry(name).or_default().waiting
    }

    /// Who has used least; of several the one that waits longest.
    fn next(&self) -> Option<&Arc<str>> {
        let waiting = self
            .tenants
            .iter()
            .filter_map(|(name, tenant)| Some((tenant.used, tenant.waiting.first()?, name)));
        waiting
            .min_by(|(a, first, _), (b, second, _)| a.total_cmp(b).then(first.cmp(second)))
            .map(|(_, _, name)| name)
    }

    fn take(&mut self, now: Instant, lives: impl Fn(Key) -> bool) -> Option<Key> {
        while let Some(name) = self.next().cloned() {
            let tenant = self.tenants.get_mut(&name)?;
            let before = tenant.waiting.len();
            let taken = tenant.waiting.take(now, &lives);
            self.waiting -= before - tenant.waiting.len();
            if taken.is_some() {
                return taken;
            }
        }
        None
    }

    fn begins(&mut self, key: Key, name: Arc<str>) {
        let usual = self.usual;
        let tenant = self.tenants.entry(name.clone()).or_default();
        let charge = tenant.lately.or(usual).unwrap_or_default();
        tenant.used += charge;
        tenant.reckoned += charge;
        tenant.running += 1;
        self.running.insert(key, (name, charge));
    }

    fn ended(&mut self, key: Key, seconds: f64, tokens: Option<u64>) {
        let Some((name, charge)) = self.running.remove(&key) else {
            return;
        };
        let Some(tenant) = self.tenants.get_mut(&name) else {
            return;
        };
        tenant.running -= 1;
        let used = match (self.fairness.tokens, tokens) {
            (false, _) => seconds.max(0.000_1),
            // Of what asks no model there is one token at least, so that it cannot be without end.
            (true, Some(tokens)) => tokens.max(1) as f64,
            (true, None) => charge,
        };
        tenant.used += used - charge;
        tenant.reckoned -= charge;
        let next = |before: Option<f64>| before.map_or(used, |before| before + LATELY * (used - before));
        tenant.lately = Some(next(tenant.lately));
        self.usual = Some(next(self.usual));
        if self.tenants.len() > IDLE {
            // What is not remembered begins where the others are, which is where most of these were.
            self.tenants.retain(|_, tenant| !tenant.is_idle());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::worker::request_walk::request_with;

    fn fair(by: &[&str]) -> Line {
        Line::new(Some(Fairness {
            by: by.iter().map(|place| TenantIn::parse(place).unwrap()).collect(),
            lookahead: 1000,
            tokens: false,
        }))
    }

    fn of(tenant: &str) -> Request {
        request_with(&format!(r#", "tenant": "{tenant}""#), "{}")
    }

    fn push(line: &mut Line, key: Key, tenant: &str) {
        let tenant = line.tenant(&of(tenant), "celery");
        line.push(key, tenant, None, 0, clock::instant());
    }

    /// Runs one after the other, each as long as it says; whose they were.
    fn run(line: &mut Line, requests: &[(&str, f64)], count: usize) -> String {
        let mut order = String::new();
        for _ in 0..count {
            let Some(key) = line.take(clock::instant(), |_| true) else {
                break;
            };
            let (tenant, seconds) = requests[usize::try_from(key).unwrap()];
            line.begins(key, Some(&tenant.into()));
            line.ended(key, seconds, None);
            order.push_str(tenant);
        }
        order
    }

    #[test]
    fn who_has_used_least_is_next_and_nobody_saves_up() {
        let mut line = fair(&["header:tenant"]);
        let mut requests: Vec<(&str, f64)> = vec![("a", 1.0); 8];
        requests.push(("b", 1.0));
        requests.extend(vec![("c", 4.0); 3]);
        for (key, (tenant, _)) in (0..).zip(&requests) {
            push(&mut line, key, tenant);
        }
        assert_eq!(line.len(), 12);
        // Those of c take four times as long, so there are four of a for each.
        assert_eq!(run(&mut line, &requests, 12), "abcaaaacaaac");
        // After a while with a alone, b does not get all that it did not use.
        let again: Vec<(&str, f64)> = vec![("a", 1.0), ("a", 1.0), ("b", 1.0), ("b", 1.0)];
        for (key, (tenant, _)) in (0..).zip(&again) {
            push(&mut line, key, tenant);
        }
        assert_eq!(run(&mut line, &again, 4).matches("ba").count(), 1);
        assert_eq!(line.len(), 0);
    }

    #[test]
    fn a_tenant_stands_in_a_header_an_argument_or_is_the_queue() {
        let tenant = |by: &[&str], request: &Request, queue: &str| {
            let line = fair(by);
            line.fair.unwrap().tenant(request, queue).to_string()
        };
        let both = request_with(r#", "tenant": 7"#, r#"{"n": 1, "who": "x"}"#);
        assert_eq!(tenant(&["header:tenant", "kwarg:who"], &both, "q"), "7");
        assert_eq!(tenant(&["header:none", "kwarg:who"], &both, "q"), "x");
        assert_eq!(tenant(&["queue:of-*", "kwarg:who"], &both, "of-me"), "of-me");
        assert_eq!(tenant(&["queue:of-*"], &both, "celery"), "");
        for wrong in ["tenant", "header:", "cookie:x"] {
            assert!(TenantIn::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_fairness_the_first_is_the_first() {
        let mut line = Line::new(None);
        for key in 0..3 {
            push(&mut line, key, "a");
        }
        let take = |line: &mut Line| line.take(clock::instant(), |key| key != 1);
        assert_eq!((take(&mut line), take(&mut line), line.len()), (Some(0), Some(2), 0));
    }

    #[test]
    fn tenants_with_nothing_to_do_are_bounded_in_number() {
        let mut line = fair(&["header:tenant"]);
        let now = clock::instant();
        for n in 0..3 * IDLE as u64 {
            let tenant: Arc<str> = n.to_string().into();
            line.push(n, Some(tenant.clone()), None, 0, now);
            assert_eq!(line.take(now, |_| true), Some(n));
            line.begins(n, Some(&tenant));
            line.ended(n, 1.0, None);
        }
        let tenants = line.fair.unwrap().tenants.len();
        assert!(tenants <= IDLE, "{tenants}");
    }
}
