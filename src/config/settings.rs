//! What was given, with the defaults, as the options of the parts.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::certificates;
use super::load::{entry, environment, read_environment, read_file};
use super::secrets::hide;
use super::table::Given;
use super::values::{FanoutPrefix, Order, Seconds, Words};
use crate::ai::{self, Folder};
use crate::beat;
use crate::broker::QueueOrder;
use crate::canvas::{Priorities, Reach};
use crate::client::Sending;
use crate::conn::Endpoint;
use crate::{wire, worker};

/// The settings file that is read when none is named.
const DEFAULT_FILE: &str = "orchestra.toml";

/// So much of what comes by pub/sub waits to be read; a larger request would never come in.
const LARGEST_CONTROL: usize = 64 << 20;

/// Everything a program of this project can be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `broker_url`.
    pub broker_url: String,
    /// `result_backend`; `None` is the broker.
    pub result_backend: Option<String>,
    /// `task_queues`.
    pub queues: Vec<String>,
    /// What is known of them and of others.
    known_queues: Vec<wire::Queue>,
    /// `worker_concurrency`.
    pub concurrency: Option<usize>,
    /// `worker_prefetch_multiplier`.
    pub prefetch_multiplier: u32,
    /// `worker_pool`.
    pub pool: String,
    /// `worker_disable_prefetch`.
    pub disable_prefetch: bool,
    /// `worker_max_tasks_per_child`.
    pub max_tasks_per_child: Option<u64>,
    /// `worker_max_memory_per_child`.
    pub max_memory_per_child: Option<u64>,
    /// `task_time_limit`.
    pub time_limit: Option<Duration>,
    /// `task_soft_time_limit`.
    pub soft_time_limit: Option<Duration>,
    /// `worker_send_task_events`.
    pub task_events: bool,
    /// `worker_heartbeat_interval`.
    pub heartbeat: Option<Duration>,
    /// `log_level`.
    pub log_level: String,
    /// `log_json`.
    pub log_json: bool,
    /// Everything that starts with `ai_`.
    pub ai: ai::Options,
    /// Variables of the environment that look like settings and are none.
    pub warnings: Vec<String>,
    given: Given,
}

/// What templates may do with the host: nothing that is not named.
///
/// # Errors
/// A server is named in a way that could never be one.
fn permits(given: &Given) -> Result<ai::Permits, String> {
    let names = |value: &Option<Words>| value.clone().map(Words::into_vec).unwrap_or_default();
    let paths = |value: &Option<Words>| names(value).into_iter().map(PathBuf::from).collect();
    let mut limits = ai::ProgramLimits::default();
    if let Some(seconds) = given.ai_program_cpu {
        limits.cpu = seconds.0;
    }
    if let Some(seconds) = given.ai_program_timeout {
        limits.wall = seconds.0;
    }
    if let Some(bytes) = given.ai_program_memory {
        limits.memory = bytes as u64;
    }
    limits.processes = given.ai_program_processes.unwrap_or(limits.processes);
    limits.file = given.ai_program_file.map_or(limits.file, |bytes| bytes as u64);
    limits.output = given.ai_program_output.unwrap_or(limits.output);
    let mut sizes = ai::Sizes::default();
    sizes.file = given.ai_max_file_bytes.unwrap_or(sizes.file);
    sizes.files = given.ai_max_files.unwrap_or(sizes.files);
    sizes.http = given.ai_max_http_bytes.unwrap_or(sizes.http);
    let hosts = names(&given.ai_http_hosts).into_iter().map(|entry| {
        let host = entry.parse::<ai::HttpHost>();
        host.map_err(|error| format!("ai_http_hosts: {:?} {error}", without_credentials(&entry)))
    });
    Ok(ai::Permits {
        read: paths(&given.ai_read_paths),
        write: paths(&given.ai_write_paths),
        programs: names(&given.ai_programs),
        hosts: hosts.collect::<Result<_, _>>()?,
        limits,
        sizes,
    })
}

/// What somebody wrote as a server, without what stands before an `@`: there may be a password in it.
fn without_credentials(entry: &str) -> Cow<'_, str> {
    match entry.rsplit_once('@') {
        Some((_, place)) => format!("{}@{place}", crate::wire::redact::HIDDEN).into(),
        None => entry.into(),
    }
}

impl Settings {
    /// Reads the file (`./orchestra.toml` if none is named and there is one) and the environment.
    ///
    /// # Errors
    /// One line that names the file and line or the variable, and says what is wrong.
    pub fn load(file: Option<&Path>) -> Result<Self, String> {
        let mut given = Given::default();
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let mut warnings = Vec::new();
        match std::fs::read_to_string(path) {
            Ok(text) => warnings.extend(read_file(&mut given, path, &text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {}
            Err(error) => return Err(format!("cannot read the settings file {}: {error}", path.display())),
        }
        warnings.extend(read_environment(&mut given, environment()?.into_iter())?);
        if let Some(names) = &given.redact_names {
            crate::wire::redact::set(&names.clone().into_vec());
        }
        Ok(Self {
            warnings,
            ..Self::new(given)?
        })
    }

    /// # Errors
    /// Queues are described by what makes no sense.
    pub(super) fn new(given: Given) -> Result<Self, String> {
        let (queues, known_queues) = match &given.task_queues {
            None => (vec![default_queue(&given)], Vec::new()),
            Some(queues) => queues.read()?,
        };
        let text = |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.to_owned());
        let folder = |value: &Option<PathBuf>, default: &str| match value {
            Some(path) => Folder::Named(path.clone()),
            None => Folder::Default(default.into()),
        };
        let usual = ai::Options::default();
        if given.ai_embed_batch.is_some_and(|texts| !(1..=64).contains(&texts)) {
            return Err("ai_embed_batch: must be 1 to 64".into());
        }
        let ai = ai::Options {
            templates: folder(&given.ai_templates, "templates"),
            tasks: folder(&given.ai_tasks, "tasks"),
            hosts: match given.ai_hosts.clone() {
                Some(hosts) => hosts.into_vec(),
                None => vec![ai::DEFAULT_HOST.into()],
            },
            models: given.ai_models.clone().unwrap_or_default(),
            pull: given.ai_pull.clone().map(Words::into_vec).unwrap_or_default(),
            budgets: given.ai_budgets.clone().unwrap_or_default(),
            rates: given.ai_rate_limits.clone().unwrap_or_default(),
            overtaking: given.ai_overtaking.unwrap_or(usual.overtaking),
            routing: given.ai_routing.clone().unwrap_or_default(),
            record_prompts: given.ai_record_prompts.unwrap_or(false),
            switch_after: given.ai_switch_after.map_or(usual.switch_after, |seconds| seconds.0),
            queue: given.ai_queue_timeout.map_or(usual.queue, |seconds| seconds.0),
            redis: None,
            allow_cloud: given.ai_allow_cloud.unwrap_or(false),
            permits: permits(&given)?,
            texts: ai::TextLimits {
                steps: given.ai_template_steps.unwrap_or(usual.texts.steps),
                bytes: given.ai_max_text_bytes.unwrap_or(usual.texts.bytes),
            },
            batches: ai::Batches {
                texts: given.ai_embed_batch.unwrap_or(usual.batches.texts),
                bytes: given.ai_embed_batch_bytes.unwrap_or(usual.batches.bytes),
                wait: given.ai_embed_wait.map_or(usual.batches.wait, |seconds| seconds.0),
            },
            limits: {
                let mut limits = ai::CallLimits::default();
                if let Some(seconds) = given.ai_connect_timeout {
                    limits.connect = seconds.0;
                }
                if let Some(seconds) = given.ai_load_timeout {
                    limits.load = seconds.0;
                }
                limits.whole = given.ai_call_timeout.and_then(Seconds::positive);
                if let Some(seconds) = given.ai_first_token_timeout {
                    limits.first_token = seconds.0;
                }
                if let Some(seconds) = given.ai_stall_timeout {
                    limits.stall = seconds.0;
                }
                if let Some(tokens) = given.ai_max_tokens {
                    limits.tokens = tokens;
                }
                if let Some(bytes) = given.ai_max_answer_bytes {
                    limits.answer_bytes = bytes;
                }
                if let Some(bytes) = given.ai_max_cached_bytes {
                    limits.cached_bytes = bytes;
                }
                limits
            },
        };
        Ok(Self {
            broker_url: text(&given.broker_url, "redis://127.0.0.1:6379/0"),
            result_backend: given.result_backend.clone(),
            queues,
            known_queues,
            concurrency: given.worker_concurrency,
            prefetch_multiplier: given.worker_prefetch_multiplier.unwrap_or(4),
            pool: text(&given.worker_pool, "threads"),
            disable_prefetch: given.worker_disable_prefetch.unwrap_or(false),
            max_tasks_per_child: given.worker_max_tasks_per_child,
            max_memory_per_child: given.worker_max_memory_per_child,
            time_limit: given.task_time_limit.and_then(Seconds::positive),
            soft_time_limit: given.task_soft_time_limit.and_then(Seconds::positive),
            task_events: given.worker_send_task_events.unwrap_or(false),
            heartbeat: given
                .worker_heartbeat_interval
                .map_or(Some(Duration::from_secs(2)), Seconds::positive),
            log_level: text(&given.log_level, "WARNING"),
            log_json: given.log_json.unwrap_or(false),
            ai,
            warnings: Vec::new(),
            given,
        })
    }

    /// How long a cold stop lets tasks run.
    pub fn soft_shutdown_timeout(&self) -> Duration {
        self.given
            .worker_soft_shutdown_timeout
            .map_or(Duration::ZERO, |seconds| seconds.0)
    }

    /// Where the broker is.
    ///
    /// # Errors
    /// The URL is none.
    pub fn broker(&self) -> Result<Endpoint, String> {
        let given = self.given.broker_transport_options.clone().unwrap_or_default();
        Endpoint::parse(&self.broker_url)
            .and_then(|url| {
                url.with_master(
                    given.master_name.as_deref(),
                    given.sentinel_kwargs.unwrap_or_default().into(),
                )
            })
            .map(|url| self.read_from("broker_url", &self.broker_url, url))
            .map_err(|error| format!("broker: {error}"))
    }

    /// Remembers where a URL was read, unless the command line named another.
    fn read_from(&self, name: &str, url: &str, endpoint: Endpoint) -> Endpoint {
        match self.given.files.get(name).filter(|(_, read)| read == url) {
            Some((path, _)) => endpoint.standing_in(path.clone()),
            None => endpoint,
        }
    }

    /// Where results go; `None` stores none.
    ///
    /// # Errors
    /// The URL is none.
    pub fn backend(&self) -> Result<Option<Endpoint>, String> {
        match self.result_backend.as_deref() {
            None | Some("") => self.broker().map(Some),
            Some("disabled" | "disabled://") => Ok(None),
            Some(url) => {
                let given = self.given.result_backend_transport_options.clone().unwrap_or_default();
                Endpoint::parse(url)
                    .and_then(|url| {
                        url.with_master(
                            given.master_name.as_deref(),
                            given.sentinel_kwargs.unwrap_or_default().into(),
                        )
                    })
                    .map(|endpoint| Some(self.read_from("result_backend", url, endpoint)))
                    .map_err(|error| format!("result backend: {error}"))
            }
        }
    }

    /// Everything that starts with `ai_`, for a fleet whose workers agree in the broker's Redis.
    ///
    /// # Errors
    /// The broker's URL is none.
    pub fn shared_ai(&self) -> Result<ai::Options, String> {
        let mut options = self.ai.clone();
        options.redis = Some((self.broker()?, self.broker_options().global_keyprefix));
        Ok(options)
    }

    /// `worker_metrics_addr`.
    pub fn metrics_addr(&self) -> Option<String> {
        self.given.worker_metrics_addr.clone()
    }

    /// How every program of these settings sends.
    ///
    /// # Errors
    /// A route, a priority or what signs makes no sense.
    pub fn sending(&self) -> Result<Sending, String> {
        let given = &self.given;
        let default = given.task_default_priority;
        if default.is_some_and(|priority| priority > 9) {
            return Err("task_default_priority: a priority is 0 to 9".into());
        }
        let told = given.task_send_sent_event.unwrap_or(false);
        let usual = Sending::default();
        Ok(Sending {
            signer: self.signer()?,
            routes: self.routes()?,
            priorities: Priorities {
                inherit: given.task_inherit_parent_priority.unwrap_or(false),
                default,
            },
            reach: if given.task_allow_error_cb_on_chord_header.unwrap_or(false) {
                Reach::Header
            } else {
                usual.reach
            },
            sent_events: told.then(|| self.event_exchange()),
            control_exchange: given.control_exchange.clone().unwrap_or(usual.control_exchange),
        })
    }

    /// Where events go.
    pub fn event_exchange(&self) -> String {
        self.given
            .event_exchange
            .clone()
            .unwrap_or_else(|| "celeryev".to_owned())
    }

    /// How the broker is used.
    pub fn broker_options(&self) -> crate::broker::Options {
        let mut options = crate::broker::Options {
            queues: self.known_queues.clone(),
            ..crate::broker::Options::default()
        };
        // A name alone says nothing.
        options.queues.retain(|queue| *queue != wire::Queue::new(&queue.name));
        let Some(given) = self.given.broker_transport_options.clone() else {
            return options;
        };
        if let Some(seconds) = given.visibility_timeout {
            options.visibility_timeout = seconds.0;
        }
        options.lease = given.lease.map(|seconds| Duration::from_secs(seconds.into()));
        if let Some(order) = given.queue_order_strategy {
            options.queue_order_strategy = match order {
                Order::RoundRobin => QueueOrder::RoundRobin,
                Order::Priority => QueueOrder::Priority,
                Order::Sorted => QueueOrder::Sorted,
            };
        }
        options.global_keyprefix = given.global_keyprefix.unwrap_or_default();
        options.fanout_prefix = match given.fanout_prefix {
            None | Some(FanoutPrefix::Is(true)) => options.fanout_prefix,
            Some(FanoutPrefix::Is(false)) => String::new(),
            Some(FanoutPrefix::Named(prefix)) => prefix,
        };
        options.fanout_patterns = given.fanout_patterns.unwrap_or(true);
        options.priority_steps = given.priority_steps.unwrap_or(options.priority_steps);
        options.sep = given.sep.unwrap_or(options.sep);
        options.max_message_bytes = given.max_message_bytes.unwrap_or(options.max_message_bytes);
        options.max_deliveries = given.max_deliveries.unwrap_or(options.max_deliveries);
        options.dead_limit = given.dead_limit.unwrap_or(options.dead_limit);
        options
    }

    /// How results are kept.
    ///
    /// # Errors
    /// A serializer or compression is none.
    pub fn backend_options(&self) -> Result<crate::backend::Options, String> {
        let given = &self.given;
        let mut options = crate::backend::Options {
            result_expires: self.result_expires(),
            ..crate::backend::Options::default()
        };
        if let Some(seconds) = given.result_failure_expires {
            options.result_failure_expires = Some(seconds.0);
        }
        let accept = match given.result_accept_content.as_ref().or(given.accept_content.as_ref()) {
            None => wire::Accept::default(),
            Some(names) => wire::Accept::parse(&names.clone().into_vec(), certificates::security(given)?)
                .map_err(|error| format!("result_accept_content: {error}"))?,
        };
        let (serializer, compression) = (given.result_serializer.as_deref(), given.result_compression.as_deref());
        options.format = wire::ResultFormat::new(serializer, compression, accept)?;
        if let Some(seconds) = given.result_chord_join_timeout {
            options.chord_join_timeout = seconds.positive();
        }
        if let Some(seconds) = given.result_chord_retry_interval {
            options.chord_retry_interval = seconds.0;
        }
        options.kept_bytes = given.max_kept_bytes.unwrap_or(options.kept_bytes);
        options.stream_length = given.max_stream_entries.unwrap_or(options.stream_length);
        if options.stream_length == 0 {
            return Err("max_stream_entries: must be at least 1".into());
        }
        let transport = given.result_backend_transport_options.clone().unwrap_or_default();
        options.chord_ordered = transport.result_chord_ordered.unwrap_or(true);
        options.global_keyprefix = transport.global_keyprefix.unwrap_or_default();
        Ok(options)
    }

    fn result_expires(&self) -> Option<Duration> {
        let default = crate::backend::Options::default().result_expires;
        self.given.result_expires.map_or(default, Seconds::positive)
    }

    /// The options of a worker of that node name.
    ///
    /// # Errors
    /// A URL is none, or numbers do not go together.
    pub fn worker(&self, hostname: String) -> Result<worker::Options, String> {
        let mut options = worker::Options::new(hostname, self.broker()?);
        let given = &self.given;
        options.backend = self.backend()?;
        options.broker_options = self.broker_options();
        options.backend_options = self.backend_options()?;
        // A list of nothing would drop what it is there to keep.
        if options.broker_options.dead_limit == 0 {
            return Err("broker_transport_options: dead_limit must be at least 1".into());
        }
        if options.broker_options.visibility_timeout < Duration::from_secs(1) {
            return Err("broker_transport_options: visibility_timeout must be at least one second".into());
        }
        if let Some(lease) = options.broker_options.lease
            && !(Duration::from_secs(1)..=options.broker_options.visibility_timeout).contains(&lease)
        {
            return Err(
                "broker_transport_options: lease must be at least one second, and not above visibility_timeout".into(),
            );
        }
        let security = certificates::security(&self.given)?;
        if let Some(names) = given.accept_content.clone() {
            options.accept =
                wire::Accept::parse(&names.into_vec(), security).map_err(|error| format!("accept_content: {error}"))?;
        }
        let sending = self.sending()?;
        options.signer = sending.signer;
        options.routes = sending.routes;
        options.priorities = sending.priorities;
        options.reach = sending.reach;
        options.control_exchange = sending.control_exchange;
        options.sent_events = sending.sent_events.is_some();
        options.concurrency = self.concurrency.unwrap_or(options.concurrency);
        options.prefetch_multiplier = self.prefetch_multiplier;
        options.prefetch_bytes = given.worker_prefetch_bytes.unwrap_or(options.prefetch_bytes);
        options.queues.clone_from(&self.queues);
        options.task_events = self.task_events;
        options.heartbeat = self.heartbeat;
        options.time_limit = self.time_limit;
        options.soft_time_limit = self.soft_time_limit;
        options.task_defaults = worker::TaskDefaults {
            acks_late: given.task_acks_late,
            acks_on_failure: given.task_acks_on_failure.or(given.task_acks_on_failure_or_timeout),
            acks_on_timeout: given.task_acks_on_timeout.or(given.task_acks_on_failure_or_timeout),
            reject_on_worker_lost: given.task_reject_on_worker_lost,
            retry_on_worker_lost: given.task_retry_on_worker_lost,
            rate_limit: match &given.task_default_rate_limit {
                Some(text) => {
                    worker::RateLimit::parse(text).map_err(|error| format!("task_default_rate_limit: {error}"))?
                }
                None => None,
            },
            track_started: given.task_track_started,
            ignore_result: given.task_ignore_result,
            store_errors_even_if_ignored: given.task_store_errors_even_if_ignored,
        };
        options.limits.body = given.max_body_bytes.unwrap_or(options.limits.body);
        options.limits.name = self.max_name_bytes();
        options.limits.depth = given.max_depth.unwrap_or(options.limits.depth);
        if !(1..=wire::DEEPEST).contains(&options.limits.depth) {
            return Err(format!("max_depth: must be 1 to {}", wire::DEEPEST));
        }
        options.backlog_bytes = given.worker_backlog_bytes.unwrap_or(options.backlog_bytes);
        options.limits.control = given.max_control_bytes.unwrap_or(options.limits.control);
        if !(1..=LARGEST_CONTROL).contains(&options.limits.control) {
            return Err(format!("max_control_bytes: must be 1 to {LARGEST_CONTROL}"));
        }
        options.max_result_bytes = given.max_result_bytes.unwrap_or(options.max_result_bytes);
        options.result_extended = given.result_extended.unwrap_or(false);
        options.deduplicate = given.worker_deduplicate_successful_tasks.unwrap_or(false);
        options.default_queue = self.default_queue();
        options.processes = is_prefork(&self.pool)?;
        options.max_tasks_per_child = self.max_tasks_per_child.filter(|max| *max > 0);
        options.max_memory_per_child = self.max_memory_per_child.filter(|max| *max > 0);
        options.soft_shutdown_timeout = self.soft_shutdown_timeout();
        options.soft_shutdown_on_idle = given.worker_enable_soft_shutdown_on_idle.unwrap_or(false);
        let cancels = given.worker_cancel_long_running_tasks_on_connection_loss;
        options.cancel_on_connection_loss = cancels.unwrap_or(false);
        options.eta_task_limit = given.worker_eta_task_limit.filter(|limit| *limit > 0);
        options.disable_prefetch = self.disable_prefetch;
        options.disable_rate_limits = given.worker_disable_rate_limits.unwrap_or(false);
        options.fair = self.fairness()?;
        options.direct = given.worker_direct.unwrap_or(false);
        options.pool_restarts = given.worker_pool_restarts.unwrap_or(false);
        options.state_db.clone_from(&given.worker_state_db);
        options.remote_control = given.worker_enable_remote_control.unwrap_or(true);
        options.event_exchange = given.event_exchange.clone().unwrap_or(options.event_exchange);
        Ok(options)
    }

    /// `max_name_bytes`.
    pub fn max_name_bytes(&self) -> usize {
        let usual = wire::Limits::default().name;
        self.given.max_name_bytes.unwrap_or(usual)
    }

    /// How tenants are told apart and take turns.
    fn fairness(&self) -> Result<Option<worker::Fairness>, String> {
        let given = &self.given;
        let by = given.worker_fair_by.clone().map(Words::into_vec).unwrap_or_default();
        if by.is_empty() {
            return Ok(None);
        }
        if given.worker_disable_prefetch.unwrap_or(false) {
            return Err(
                "worker_fair_by chooses among messages that are held: it needs worker_disable_prefetch to be off"
                    .into(),
            );
        }
        let tokens = match given.worker_fair_unit.as_deref() {
            None | Some("seconds") => false,
            Some("tokens") => true,
            Some(other) => return Err(format!("worker_fair_unit: {other:?} is not one of seconds and tokens")),
        };
        let by = by.iter().map(|place| worker::TenantIn::parse(place));
        Ok(Some(worker::Fairness {
            by: by
                .collect::<Result<_, _>>()
                .map_err(|error| format!("worker_fair_by: {error}"))?,
            lookahead: given.worker_fair_lookahead.unwrap_or(1000),
            tokens,
        }))
    }

    /// Where tasks go.
    ///
    /// # Errors
    /// A route makes no sense.
    pub fn routes(&self) -> Result<wire::Routes, String> {
        let routes = match &self.given.task_routes {
            None => wire::Routes::default(),
            Some(table) => table.read()?,
        };
        let routes = routes.with_queues(self.known_queues.clone(), !self.creates_queues());
        Ok(match &self.given.task_default_queue {
            Some(queue) => routes.with_default(queue),
            None => routes,
        })
    }

    /// `task_default_queue`.
    fn default_queue(&self) -> String {
        default_queue(&self.given)
    }

    /// Whether queues may be used that `task_queues` does not name.
    pub fn creates_queues(&self) -> bool {
        self.given.task_create_missing_queues.unwrap_or(true)
    }

    /// A queue that nobody knows, where only known ones may be used.
    pub fn unknown_queue(&self) -> Option<&str> {
        let known = |name: &String| self.known_queues.iter().any(|queue| queue.name == *name);
        let mut unknown = self.queues.iter().filter(|name| !self.creates_queues() && !known(name));
        unknown.next().map(String::as_str)
    }

    /// The queues that the settings name: those consumed, and those that tasks are sent to.
    pub fn named_queues(&self) -> BTreeSet<String> {
        let mut queues: BTreeSet<String> = self.queues.iter().cloned().collect();
        queues.extend(self.known_queues.iter().map(|queue| queue.name.clone()));
        queues.extend(self.routes().iter().flat_map(wire::Routes::queues));
        queues.insert(self.default_queue());
        queues
    }

    /// What signs messages that are sent, where they are to be signed.
    ///
    /// # Errors
    /// The serializer is not one that is written, or what signing needs is not there.
    pub fn signer(&self) -> Result<Option<Arc<wire::Security>>, String> {
        match self.given.task_serializer.as_deref() {
            None | Some("json") => Ok(None),
            Some("auth") if self.given.security_key.is_some() => certificates::security(&self.given),
            Some("auth") => Err("task_serializer: auth needs security_key and its certificate".into()),
            Some(other) => Err(format!("task_serializer: {other:?} is not one of json and auth")),
        }
    }

    /// The options of beat, as the node of that name.
    ///
    /// # Errors
    /// The time zone is none, or a number makes no sense.
    pub fn beat(&self, hostname: String) -> Result<beat::Options, String> {
        let given = &self.given;
        let mut options = beat::Options::new(hostname);
        if let Some(name) = &given.timezone {
            options.zone = beat::time_zone(name).map_err(|error| format!("timezone: {error}"))?;
        }
        if let Some(Seconds(longest)) = given.beat_max_loop_interval.filter(|seconds| !seconds.0.is_zero()) {
            options.max_interval = longest;
        }
        if let Some(Seconds(timeout)) = given.beat_lock_timeout {
            // Renewed three times in this time; below that, a slow answer of Redis would end it.
            if timeout < Duration::from_secs(1) || timeout > Duration::from_secs(86_400) {
                return Err("beat_lock_timeout: must be one second to one day".into());
            }
            options.lock_timeout = timeout;
        }
        options.cron_starting_deadline = given.beat_cron_starting_deadline.map(|seconds| seconds.0);
        options.remote_control = given.beat_enable_remote_control.unwrap_or(false);
        options.control_exchange = given.control_exchange.clone().unwrap_or(options.control_exchange);
        Ok(options)
    }

    /// The entries of `beat_schedule`.
    ///
    /// # Errors
    /// The name of the first that is wrong, and what is wrong with it.
    pub fn beat_schedule(&self, zone: &TimeZone) -> Result<Vec<beat::Entry>, String> {
        let entries = self.given.beat_schedule.iter().flatten();
        entries
            .map(|(name, value)| entry(name, value, zone).map_err(|error| format!("beat_schedule.{name}: {error}")))
            .collect()
    }

    /// The settings as they are now, without passwords; for `celery inspect conf` and `orchestra config`.
    pub fn shown(&self) -> Map<String, Value> {
        let seconds = |limit: Option<Duration>| limit.map_or(Value::Null, |limit| limit.as_secs_f64().into());
        let mut map = self.given.shown();
        let mut add = |name: &str, value: Value| map.insert(name.to_owned(), value);
        let backend = self.result_backend.as_ref().unwrap_or(&self.broker_url);
        add("broker_url", self.broker_url.clone().into());
        add("result_backend", backend.clone().into());
        add("task_queues", self.queues.clone().into());
        let accept = self.given.accept_content.clone().map(Words::into_vec);
        add(
            "accept_content",
            accept.unwrap_or_else(|| vec!["json".to_owned()]).into(),
        );
        let serializer = self.given.task_serializer.as_deref();
        add("task_serializer", serializer.unwrap_or("json").into());
        add("worker_concurrency", self.concurrency.map_or(Value::Null, Into::into));
        add("worker_prefetch_multiplier", self.prefetch_multiplier.into());
        add("worker_pool", self.pool.clone().into());
        add("worker_disable_prefetch", self.disable_prefetch.into());
        let number = |number: Option<u64>| number.map_or(Value::Null, Into::into);
        add("worker_max_tasks_per_child", number(self.max_tasks_per_child));
        add("worker_max_memory_per_child", number(self.max_memory_per_child));
        add("worker_send_task_events", self.task_events.into());
        add("worker_heartbeat_interval", seconds(self.heartbeat));
        add("task_time_limit", seconds(self.time_limit));
        add("task_soft_time_limit", seconds(self.soft_time_limit));
        add("result_expires", seconds(self.result_expires()));
        add("log_level", self.log_level.clone().into());
        add("ai_templates", self.ai.templates.path().display().to_string().into());
        add("ai_tasks", self.ai.tasks.path().display().to_string().into());
        add("ai_hosts", self.ai.hosts.iter().map(shown_host).collect());
        add(
            "timezone",
            self.given.timezone.clone().unwrap_or_else(|| "UTC".to_owned()).into(),
        );
        // Celery's name for what is always so here: no Python modules are imported.
        add("include", json!([]));
        for (name, value) in &mut map {
            hide(name, value);
        }
        map
    }
}

/// The queue of what names none.
fn default_queue(given: &Given) -> String {
    given.task_default_queue.clone().unwrap_or_else(|| "celery".to_owned())
}

/// Whether every task runs in a process of its own. The names are Celery's.
fn is_prefork(pool: &str) -> Result<bool, String> {
    match pool {
        "prefork" | "processes" => Ok(true),
        // All the same here: many tasks at once in one process.
        "threads" | "solo" | "eventlet" | "gevent" | "custom" => Ok(false),
        other => Err(format!(
            "worker_pool: {other:?} is no pool: use threads, or prefork for a process for every task"
        )),
    }
}

/// A model server as people wrote it; the values of headers are secrets.
fn shown_host(host: &ai::HostOptions) -> Value {
    if *host == ai::HostOptions::from(host.url.as_str()) {
        return host.url.clone().into();
    }
    let mut shown = json!(host);
    if let Some(Value::Object(headers)) = shown.get_mut("headers") {
        headers
            .values_mut()
            .for_each(|value| *value = wire::redact::HIDDEN.into());
    }
    shown
}
