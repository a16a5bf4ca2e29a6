//! Settings of a worker. Names follow Celery's (`worker_…`, `task_…`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::line::Fairness;
use super::process::Program;
use crate::backend::Backend;
use crate::broker::Broker;
use crate::canvas::{Priorities, Reach};
use crate::client::{Client, Sending};
use crate::conn::Endpoint;
use crate::task::{self, RateLimit};
use crate::wire::{Accept, Limits, Routes, Security};
use crate::{backend, broker};

/// Places to run beyond which a number is a typing error.
pub(crate) const MOST_PLACES: usize = 100_000;

/// Everything a worker is told at start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Node name, `celery@host`. Unique in the cluster.
    pub hostname: String,
    /// How many tasks run at once.
    pub concurrency: usize,
    /// Messages held per place to run; 0 is without bound.
    pub prefetch_multiplier: u32,
    /// Memory that messages held may take, in bytes: with none left no more are taken.
    pub prefetch_bytes: usize,
    /// Bytes of results and messages that may wait for Redis: beyond them no task is started.
    pub backlog_bytes: usize,
    /// Queues to consume.
    pub queues: Vec<String>,
    /// Where follow-ups go that name no queue (`task_default_queue`).
    pub default_queue: String,
    /// Queues of follow-ups, and of what tasks send, by task name (`task_routes`).
    pub routes: Routes,
    /// Send task events from the start (`-E`); without it Flower switches them on.
    pub task_events: bool,
    /// Tell monitors of every task that this worker sends: retries, and what its tasks send.
    pub sent_events: bool,
    /// Pause between heartbeats; `None` sends no worker events at all.
    pub heartbeat: Option<Duration>,
    /// Hard limit of tasks that have none of their own.
    pub time_limit: Option<Duration>,
    /// Soft limit of tasks that have none of their own.
    pub soft_time_limit: Option<Duration>,
    /// Policy that overrides what tasks say.
    pub task_defaults: TaskDefaults,
    /// A message that was delivered before is not run again when its task has a SUCCESS already.
    pub deduplicate: bool,
    /// A task that returns more than so many bytes of JSON fails.
    pub max_result_bytes: usize,
    /// Store name, arguments, worker and queue with each result.
    pub result_extended: bool,
    /// Listen to `celery inspect` and `celery control`.
    pub remote_control: bool,
    /// Ask the other workers at start what they have revoked.
    pub mingle: bool,
    /// Listen to what other workers say of themselves.
    pub gossip: bool,
    /// Keep what was revoked in this file, across restarts.
    pub state_db: Option<PathBuf>,
    /// The range of `--autoscale`: most and fewest places to run.
    pub autoscale: Option<(usize, usize)>,
    /// Answer `pool_restart`.
    pub pool_restarts: bool,
    /// How this program is started again for tasks that want a process; without it there can be none.
    pub program: Option<Program>,
    /// Every task runs in a process, whatever it says of itself.
    pub processes: bool,
    /// Tasks that a process runs before it is replaced.
    pub max_tasks_per_child: Option<u64>,
    /// Memory of a process, in KiB, with which it is replaced after its task.
    pub max_memory_per_child: Option<u64>,
    /// A cold stop lets tasks run for so long before it cancels them; zero is not at all.
    pub soft_shutdown_timeout: Duration,
    /// A soft stop takes its time also when nothing runs.
    pub soft_shutdown_on_idle: bool,
    /// Cancel what runs with a late ack when the connection to the broker is lost.
    pub cancel_on_connection_loss: bool,
    /// Most messages that may be held, those that wait for their ETA among them.
    pub eta_task_limit: Option<usize>,
    /// Take no more messages than there are places to run.
    pub disable_prefetch: bool,
    /// Start tasks however often, whatever their rate limits say.
    pub disable_rate_limits: bool,
    /// Tenants get their turns by what they use; `None` is first come, first served.
    pub fair: Option<Fairness>,
    /// Consume from a queue of this worker's own as well (`<hostname>.dq2`).
    pub direct: bool,
    /// Priority of what this worker sends without one.
    pub priorities: Priorities,
    /// How far the error callbacks that it links reach.
    pub reach: Reach,
    /// Exchange of events.
    pub event_exchange: String,
    /// Name of the control exchange without `.pidbox`.
    pub control_exchange: String,
    /// Settings shown by `inspect conf`; secrets are masked already.
    pub conf: Map<String, Value>,
    /// The defaults of all settings, shown by `inspect conf` when asked for.
    pub conf_defaults: Map<String, Value>,
    /// Where the broker is.
    pub broker: Endpoint,
    /// How the broker is used.
    pub broker_options: broker::Options,
    /// Where results go; `None` stores none.
    pub backend: Option<Endpoint>,
    /// How results are stored.
    pub backend_options: backend::Options,
    /// Bounds on messages.
    pub limits: Limits,
    /// Serializers of messages that are read.
    pub accept: Accept,
    /// What signs the tasks that tasks send (`task_serializer = "auth"`).
    pub signer: Option<Arc<Security>>,
}

/// Policy for all tasks, from settings such as `task_acks_late`; `None` leaves it to the task.
#[derive(Clone, Debug, Default)]
pub struct TaskDefaults {
    /// `task_acks_late`.
    pub acks_late: Option<bool>,
    /// `task_acks_on_failure`, or `task_acks_on_failure_or_timeout`.
    pub acks_on_failure: Option<bool>,
    /// `task_acks_on_timeout`, or `task_acks_on_failure_or_timeout`.
    pub acks_on_timeout: Option<bool>,
    /// `task_reject_on_worker_lost`.
    pub reject_on_worker_lost: Option<bool>,
    /// `task_retry_on_worker_lost`.
    pub retry_on_worker_lost: Option<bool>,
    /// `task_default_rate_limit`.
    pub rate_limit: Option<RateLimit>,
    /// `task_track_started`.
    pub track_started: Option<bool>,
    /// `task_ignore_result`.
    pub ignore_result: Option<bool>,
    /// `task_store_errors_even_if_ignored`.
    pub store_errors_even_if_ignored: Option<bool>,
}

impl Options {
    /// Celery's defaults, for a worker of that name on that broker; results go to the same Redis.
    pub fn new(hostname: impl Into<String>, broker: Endpoint) -> Self {
        Self {
            hostname: hostname.into(),
            concurrency: std::thread::available_parallelism().map_or(1, Into::into),
            prefetch_multiplier: 4,
            prefetch_bytes: 1 << 30,
            backlog_bytes: 256 << 20,
            queues: vec!["celery".into()],
            default_queue: "celery".into(),
            routes: Routes::default(),
            task_events: false,
            sent_events: false,
            heartbeat: Some(Duration::from_secs(2)),
            time_limit: None,
            soft_time_limit: None,
            task_defaults: TaskDefaults::default(),
            deduplicate: false,
            max_result_bytes: 64 << 20,
            result_extended: false,
            remote_control: true,
            mingle: true,
            gossip: true,
            state_db: None,
            autoscale: None,
            pool_restarts: false,
            program: None,
            processes: false,
            max_tasks_per_child: None,
            max_memory_per_child: None,
            soft_shutdown_timeout: Duration::ZERO,
            soft_shutdown_on_idle: false,
            cancel_on_connection_loss: false,
            eta_task_limit: None,
            disable_prefetch: false,
            disable_rate_limits: false,
            fair: None,
            direct: false,
            priorities: Priorities::default(),
            reach: Reach::default(),
            event_exchange: "celeryev".into(),
            control_exchange: "celery".into(),
            conf: Map::new(),
            conf_defaults: Map::new(),
            backend: Some(broker.clone()),
            broker,
            broker_options: broker::Options::default(),
            backend_options: backend::Options::default(),
            limits: Limits::default(),
            accept: Accept::default(),
            signer: None,
        }
    }

    /// What sends on behalf of tasks.
    pub(crate) fn client(&self, broker: Broker, backend: Option<Backend>) -> Client {
        Client::new(broker, backend).sending(Sending {
            signer: self.signer.clone(),
            routes: self.routes.clone().with_default(&self.default_queue),
            priorities: self.priorities,
            reach: self.reach,
            sent_events: self.sent_events.then(|| self.event_exchange.clone()),
            control_exchange: self.control_exchange.clone(),
        })
    }

    /// The policy of a task in this worker: the task's own, with what the settings override.
    pub(crate) fn policy(&self, own: &task::Options) -> task::Options {
        let mut policy = own.clone();
        let defaults = &self.task_defaults;
        // A task that asks for late acks keeps them: settings fill in, they do not take away.
        policy.acks_late |= defaults.acks_late.unwrap_or(false);
        policy.track_started |= defaults.track_started.unwrap_or(false);
        policy.ignore_result |= defaults.ignore_result.unwrap_or(false);
        policy.store_errors_even_if_ignored |= defaults.store_errors_even_if_ignored.unwrap_or(false);
        policy.acks_on_failure &= defaults.acks_on_failure.unwrap_or(true);
        policy.acks_on_timeout &= defaults.acks_on_timeout.unwrap_or(true);
        policy.reject_on_worker_lost |= defaults.reject_on_worker_lost.unwrap_or(false);
        policy.retry_on_worker_lost |= defaults.retry_on_worker_lost.unwrap_or(false);
        policy.process |= self.processes;
        policy.time_limit = policy.time_limit.or(self.time_limit);
        policy.soft_time_limit = policy.soft_time_limit.or(self.soft_time_limit);
        policy.max_result_bytes = policy.max_result_bytes.or(Some(self.max_result_bytes));
        policy
    }
}
