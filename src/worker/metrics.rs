//! Numbers about a worker, for Prometheus, and whether it is well.
//!
//! The consumer loop and the writer note them where things happen; whoever asks reads them beside the loop, which never
//! waits for it. Of tasks nothing is noted while nobody watches. Names of tasks are those that are registered, so that
//! nobody from outside can make up series. What each number means for people is in `docs/monitoring.md`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::request::Happening;
use crate::backend::Backend;
use crate::broker::Broker;
use crate::clock::{self, Instant};
use crate::task::Meter;

/// The loop looks after itself this often at least; a multiple of it without a sign of life is not well.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfTask {
    task: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfServer {
    server: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfConnection {
    connection: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TaskState {
    task: String,
    state: &'static str,
}

/// What is counted. Clones count together.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Counts>);

struct Counts {
    registry: Registry,
    tasks: Family<TaskState, Counter>,
    runtime: Family<OfTask, Histogram, fn() -> Histogram>,
    waited: Family<OfTask, Histogram, fn() -> Histogram>,
    refused: Counter,
    claims: Histogram,
    flushes: Histogram,
    writes: Family<OfServer, Histogram, fn() -> Histogram>,
    writes_refused: Counter,
    reconnects: Family<OfConnection, Counter>,
    letters_removed: Counter,
    events_dropped: Counter,
    stream_dropped: Counter,
    now: Gauges,
    born: Instant,
    sign: AtomicU64,
    stops: AtomicBool,
    /// Why Redis gives us no messages.
    withheld: Mutex<Option<String>>,
    /// For how many seconds nothing was taken that should have been.
    neglect: AtomicU64,
    watched: AtomicBool,
}

/// What is so at the moment.
#[derive(Default)]
pub(crate) struct Gauges {
    pub running: Gauge,
    pub reserved: Gauge,
    pub held: Gauge,
    pub places: Gauge,
    pub prefetch: Gauge,
    pub writes: Gauge,
}

/// From a millisecond to an hour and a half: a model call takes minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 3.0, 15))
}

/// From a tenth of a millisecond to some seconds: one answer of Redis.
fn moments() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.5, 14))
}

impl Metrics {
    /// Counts nothing of tasks until it is watched; what tasks count themselves is shown with it.
    pub(crate) fn new(meters: &[Arc<dyn Meter>]) -> Self {
        let mut registry = Registry::with_prefix("orchestra");
        let tasks = Family::<TaskState, Counter>::default();
        registry.register("tasks", "What happened to tasks", tasks.clone());
        let runtime = Family::<OfTask, Histogram, fn() -> Histogram>::new_with_constructor(seconds);
        registry.register(
            "task_runtime_seconds",
            "How long runs took, however they ended",
            runtime.clone(),
        );
        let waited = Family::<OfTask, Histogram, fn() -> Histogram>::new_with_constructor(seconds);
        registry.register(
            "task_wait_seconds",
            "How long tasks waited in this worker for their start, an ETA included",
            waited.clone(),
        );
        let refused = Counter::default();
        registry.register("messages_refused", "Messages that cannot be run here", refused.clone());
        let claims = moments();
        registry.register(
            "redis_claim_seconds",
            "How long the broker took to say what is in the queues, whether there was something or not",
            claims.clone(),
        );
        let flushes = seconds();
        registry.register(
            "flush_seconds",
            "How long Redis took for a batch of writes",
            flushes.clone(),
        );
        let writes = Family::<OfServer, Histogram, fn() -> Histogram>::new_with_constructor(moments);
        registry.register(
            "redis_write_seconds",
            "How long one server took for a batch of writes; the broker's has the results where they are one server",
            writes.clone(),
        );
        let writes_refused = Counter::default();
        registry.register("writes_refused", "Writes that Redis refused", writes_refused.clone());
        let reconnects = Family::<OfConnection, Counter>::default();
        registry.register(
            "reconnects",
            "How often a connection to Redis was made again",
            reconnects.clone(),
        );
        let letters_removed = Counter::default();
        registry.register(
            "dead_letters_removed",
            "Dead letters that had to make room for newer ones",
            letters_removed.clone(),
        );
        let events_dropped = Counter::default();
        registry.register(
            "events_dropped",
            "Events and control requests of others that came faster than they could be handled",
            events_dropped.clone(),
        );
        let stream_dropped = Counter::default();
        registry.register(
            "stream_entries_dropped",
            "Entries of token streams that were left out because Redis was too slow",
            stream_dropped.clone(),
        );
        for meter in meters {
            meter.register(&mut registry);
        }
        let now = Gauges::default();
        for (name, help, gauge) in [
            ("tasks_running", "Tasks that run", &now.running),
            ("tasks_reserved", "Tasks that wait for a place to run", &now.reserved),
            ("tasks_held", "All tasks in this worker", &now.held),
            ("pool_places", "How many tasks may run at once", &now.places),
            (
                "prefetch_count",
                "How many messages may be held that do not wait for an ETA",
                &now.prefetch,
            ),
            ("writes_waiting", "Writes that Redis has not taken yet", &now.writes),
        ] {
            registry.register(name, help, gauge.clone());
        }
        Self(Arc::new(Counts {
            registry,
            tasks,
            runtime,
            waited,
            refused,
            claims,
            flushes,
            writes,
            writes_refused,
            reconnects,
            letters_removed,
            events_dropped,
            stream_dropped,
            now,
            born: clock::instant(),
            sign: AtomicU64::new(0),
            stops: AtomicBool::new(false),
            withheld: Mutex::default(),
            neglect: AtomicU64::new(0),
            watched: AtomicBool::new(false),
        }))
    }

    /// Counts from now on.
    pub(crate) fn watch(&self) {
        self.0.watched.store(true, Ordering::Relaxed);
    }

    fn is_watched(&self) -> bool {
        self.0.watched.load(Ordering::Relaxed)
    }

    pub(crate) fn happened(&self, task: &str, happening: &Happening) {
        if !self.is_watched() {
            return;
        }
        let state = match happening {
            Happening::Received => "received",
            Happening::Started => "started",
            Happening::Succeeded { .. } => "succeeded",
            Happening::Failed(_) => "failed",
            Happening::Retried(_) => "retried",
            Happening::Rejected { .. } => "rejected",
            Happening::KnownSuccess(_) => "deduplicated",
            Happening::Cancelled => "cancelled",
            Happening::Revoked { expired: true, .. } => "expired",
            Happening::Revoked { .. } => "revoked",
        };
        let task = task.to_owned();
        self.0.tasks.get_or_create(&TaskState { task, state }).inc();
    }

    pub(crate) fn ran(&self, task: &str, long: Duration) {
        if !self.is_watched() {
            return;
        }
        let task = task.to_owned();
        self.0
            .runtime
            .get_or_create(&OfTask { task })
            .observe(long.as_secs_f64());
    }

    pub(crate) fn waited(&self, task: &str, long: Duration) {
        if !self.is_watched() {
            return;
        }
        let task = task.to_owned();
        self.0
            .waited
            .get_or_create(&OfTask { task })
            .observe(long.as_secs_f64());
    }

    pub(crate) fn refused(&self) {
        self.0.refused.inc();
    }

    /// The broker has answered to a claim.
    pub(crate) fn claimed(&self, long: Duration) {
        self.0.claims.observe(long.as_secs_f64());
    }

    pub(crate) fn flushed(&self, long: Duration) {
        self.0.flushes.observe(long.as_secs_f64());
    }

    /// A server has answered to a batch of writes.
    pub(crate) fn wrote(&self, server: &'static str, long: Duration) {
        let server = OfServer { server };
        self.0.writes.get_or_create(&server).observe(long.as_secs_f64());
    }

    pub(crate) fn write_refused(&self) {
        self.0.writes_refused.inc();
    }

    pub(crate) fn event_dropped(&self) {
        self.0.events_dropped.inc();
    }

    pub(crate) fn stream_dropped(&self, entries: u64) {
        if entries > 0 {
            self.0.stream_dropped.inc_by(entries);
        }
    }

    /// What the broker and connections count themselves.
    fn look_at(&self, broker: &Broker, backend: Option<&Backend>) {
        let again = |connection, count| {
            let connection = OfConnection { connection };
            self.0
                .reconnects
                .get_or_create(&connection)
                .inner()
                .store(count, Ordering::Relaxed);
        };
        let (claims, news) = broker.reader().reconnects();
        self.0
            .letters_removed
            .inner()
            .store(broker.pushed_out(), Ordering::Relaxed);
        again("claims", claims);
        again("news", news);
        again("writes", broker.writer().reconnects().0);
        if let Some(backend) = backend.filter(|backend| !backend.link().is_same(broker.writer())) {
            again("results", backend.link().reconnects().0);
        }
    }

    /// What is so at the moment, if somebody wants to know.
    pub(crate) fn now(&self) -> Option<&Gauges> {
        self.is_watched().then_some(&self.0.now)
    }

    /// The loop goes round.
    pub(crate) fn sign_of_life(&self) {
        let since = clock::instant().saturating_duration_since(self.0.born);
        self.0.sign.store(since.as_secs(), Ordering::Relaxed);
    }

    /// No more tasks are taken from now on.
    pub(crate) fn stops(&self) {
        self.0.stops.store(true, Ordering::Relaxed);
    }

    /// What Redis says instead of giving messages, if it does; whether that is news.
    pub(crate) fn withheld(&self, why: Option<&str>) -> bool {
        let mut known = self.why_withheld();
        let news = known.as_deref() != why;
        if news {
            *known = why.map(str::to_owned);
        }
        news
    }

    fn why_withheld(&self) -> MutexGuard<'_, Option<String>> {
        self.0.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long nothing was taken, if that is not well.
    pub(crate) fn takes_nothing(&self, long: Option<Duration>) {
        let seconds = long.map_or(0, |long| long.as_secs());
        self.0.neglect.store(seconds, Ordering::Relaxed);
    }

    /// See [`Watch::health`].
    pub(crate) fn health(&self) -> Result<(), String> {
        if !self.is_alive() {
            return Err(format!("no sign of life for {} s", SIGN_OF_LIFE.as_secs()));
        }
        match self.0.neglect.load(Ordering::Relaxed) {
            0 => Ok(()),
            long => Err(format!(
                "messages wait and there is room for them, but none was taken for {long} s"
            )),
        }
    }

    fn is_alive(&self) -> bool {
        let since = clock::instant().saturating_duration_since(self.0.born);
        let sign = Duration::from_secs(self.0.sign.load(Ordering::Relaxed));
        since.saturating_sub(sign) < SIGN_OF_LIFE
    }
}

/// Watches a worker from beside it.
#[derive(Clone)]
pub struct Watch {
    pub(super) metrics: Metrics,
    pub(super) broker: Broker,
    pub(super) backend: Option<Backend>,
}

impl Watch {
    /// All numbers, in the text format of OpenMetrics that Prometheus reads.
    pub fn metrics(&self) -> String {
        self.metrics.look_at(&self.broker, self.backend.as_ref());
        let mut text = String::new();
        // Writing to a text cannot fail.
        let _ = encode(&mut text, &self.metrics.0.registry);
        text
    }

    /// Why the worker should be started again, if it should.
    ///
    /// # Errors
    /// Its loop does not go round any more, or it takes no messages though there are some and it has room for them.
    pub fn health(&self) -> Result<(), String> {
        self.metrics.health()
    }

    /// Whether it takes tasks.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self) -> Result<(), String> {
        self.health()?;
        if self.metrics.0.stops.load(Ordering::Relaxed) {
            return Err("the worker is about to stop".into());
        }
        if !self.broker.is_connected() {
            return Err("there is no connection to Redis".into());
        }
        let withheld = self.metrics.why_withheld().clone();
        withheld.map_or(Ok(()), |why| Err(format!("messages cannot be taken: {why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_counted() {
        let metrics = Metrics::new(&[]);
        metrics.ran("before", Duration::from_millis(20));
        metrics.watch();
        metrics.happened("a\"b", &Happening::Received);
        metrics.happened("a\"b", &Happening::Received);
        metrics.ran("t", Duration::from_millis(20));
        let mut text = String::new();
        encode(&mut text, &metrics.0.registry).unwrap();
        assert!(
            text.contains("orchestra_tasks_total{task=\"a\\\"b\",state=\"received\"} 2"),
            "{text}"
        );
        assert!(
            text.contains("orchestra_task_runtime_seconds_count{task=\"t\"} 1"),
            "{text}"
        );
        assert!(!text.contains("before"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
