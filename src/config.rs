//! Settings: one table, from which come the file's keys, the environment's names, the checks and the documentation.
//!
//! Later wins: default, file, environment, command line. Celery's settings keep Celery's names (`celery.app.defaults`,
//! new lowercase form); what Celery does not have starts with `ai_` or stands with its neighbours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use toml::Spanned;

use crate::ai::{self, Folder};
use crate::beat;
use crate::broker::QueueOrder;
use crate::conn::{Endpoint, Login};
use crate::{wire, worker};

/// The settings file that is read when none is named.
const DEFAULT_FILE: &str = "orchestra.toml";

/// One line of the table of settings.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in the file; in the environment it is `ORCHESTRA_` and the name in capitals.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Its default, as it would be written in the file.
    pub default: &'static str,
}

macro_rules! settings {
    ($($(#[doc = $about:literal])+ $name:ident: $type:ty = $default:literal,)+) => {
        /// All settings.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            name: stringify!($name),
            about: concat!($($about),+).trim_ascii(),
            default: $default,
        }),+];

        /// What was given in the file or the environment.
        #[derive(Clone, Debug, Default)]
        struct Given {
            $($name: Option<$type>,)+
        }

        impl Given {
            fn set(&mut self, name: &str, value: toml::Value) -> Result<(), String> {
                match name {
                    $(stringify!($name) => self.$name = Some(read(value)?),)+
                    other => return Err(unknown(other)),
                }
                Ok(())
            }

            /// Everything that was given, by name.
            fn shown(&self) -> Map<String, Value> {
                let mut map = Map::new();
                $(if let Some(value) = &self.$name {
                    map.insert(stringify!($name).to_owned(), json!(value));
                })+
                map
            }
        }
    };
}

settings! {
    /// Redis URL of the broker. Also `CELERY_BROKER_URL`.
    broker_url: String = "redis://127.0.0.1:6379/0",
    /// Redis URL of the result backend; `disabled` stores no results. Also `CELERY_RESULT_BACKEND`.
    result_backend: String = "the broker",
    /// Queues to consume.
    task_queues: Words = "[\"celery\"]",
    /// Serializers of messages that are read, by name or mime type: json, msgpack, yaml, auth (signed).
    accept_content: Words = "[\"json\"]",
    /// Serializer of messages that are sent: json, or auth, which is JSON signed with `security_key`.
    task_serializer: String = "json",
    /// Certificates whose signatures are believed: a file, a folder of files, or a path that ends in a pattern with `*`. PEM.
    security_cert_store: String = "none",
    /// Certificate under whose name is signed. PEM.
    security_certificate: PathBuf = "none",
    /// Private RSA key that signs. PEM.
    security_key: PathBuf = "none",
    /// Password of `security_key`.
    security_key_password: String = "none",
    /// Digest of signatures: sha224, sha256, sha384, sha512.
    security_digest: String = "sha256",
    /// How many tasks run at once.
    worker_concurrency: usize = "number of CPUs",
    /// Messages held per place to run; 0 is without bound.
    worker_prefetch_multiplier: u32 = "4",
    /// Memory that held messages may take, in bytes; those that wait for their ETA count. With none left no more are taken.
    worker_prefetch_bytes: usize = "1073741824",
    /// Send task events from the start (`-E`).
    worker_send_task_events: bool = "false",
    /// Tell monitors of every task that is sent, by this worker or the `orchestra` program.
    task_send_sent_event: bool = "false",
    /// Seconds between heartbeats; 0 sends no worker events.
    worker_heartbeat_interval: Seconds = "2",
    /// Listen to `celery inspect` and `celery control`.
    worker_enable_remote_control: bool = "true",
    /// Answer `celery control pool_restart` instead of refusing it.
    worker_pool_restarts: bool = "false",
    /// Keep what was revoked in this file, across restarts (`--statedb`).
    worker_state_db: PathBuf = "none",
    /// Address of an HTTP server for `/metrics` (Prometheus), `/healthz` and `/readyz`; `:PORT` is this machine only (`--metrics-addr`).
    worker_metrics_addr: String = "none",
    /// Hard time limit of tasks that have none, in seconds.
    task_time_limit: Seconds = "none",
    /// Soft time limit of tasks that have none, in seconds.
    task_soft_time_limit: Seconds = "none",
    /// Acknowledge every task after it ran.
    task_acks_late: bool = "false",
    /// With late acks: acknowledge tasks that failed or ran into their time limit.
    task_acks_on_failure_or_timeout: bool = "true",
    /// Store the state STARTED of every task.
    task_track_started: bool = "false",
    /// Store no results.
    task_ignore_result: bool = "false",
    /// Store failures even where results are ignored.
    task_store_errors_even_if_ignored: bool = "false",
    /// With late acks: a message that was delivered before is not run again when its task has a SUCCESS already.
    worker_deduplicate_successful_tasks: bool = "false",
    /// Queues by task name or pattern with `*`: `{"feed.*" = {queue = "feeds"}}`. For what tasks and the `orchestra` program send.
    task_routes: BTreeMap<String, Route> = "{}",
    /// Where follow-ups go that name no queue.
    task_default_queue: String = "celery",
    /// Seconds after which a result is deleted; 0 keeps it for ever.
    result_expires: Seconds = "86400",
    /// Store name, arguments, worker and queue of the task with its result.
    result_extended: bool = "false",
    /// Exchange of events.
    event_exchange: String = "celeryev",
    /// Name of the control exchange, without `.pidbox`.
    control_exchange: String = "celery",
    /// Of kombu's: `visibility_timeout` (seconds, 3600), `global_keyprefix`, `priority_steps`, `sep`, `queue_order_strategy`, `master_name` and `sentinel_kwargs` (`username`, `password`) for Sentinels; ours: `max_message_bytes` (67108864), `max_deliveries` (20), `dead_limit` (10000).
    broker_transport_options: TransportOptions = "{}",
    /// Of Celery's: `global_keyprefix`, `master_name` and `sentinel_kwargs` for Sentinels.
    result_backend_transport_options: ResultTransportOptions = "{}",
    /// Periodic tasks by name, in the form of Celery's `beat_schedule`; see docs/beat.md.
    beat_schedule: BTreeMap<String, toml::Value> = "{}",
    /// Longest sleep of beat, in seconds.
    beat_max_loop_interval: Seconds = "300",
    /// How many seconds ago a missed time of a crontab may be and still be made up for.
    beat_cron_starting_deadline: Seconds = "none",
    /// Let beat answer `celery inspect ping`.
    beat_enable_remote_control: bool = "false",
    /// Seconds without a sign of life after which another beat takes over.
    beat_lock_timeout: Seconds = "15",
    /// Time zone of crontabs.
    timezone: String = "UTC",
    /// DEBUG, INFO, WARNING, ERROR or CRITICAL.
    log_level: String = "WARNING",
    /// Log as JSON, one object per line.
    log_json: bool = "false",
    /// Folder of templates.
    ai_templates: PathBuf = "templates",
    /// Folder of task files.
    ai_tasks: PathBuf = "tasks",
    /// Base URLs of Ollama servers; the first that can serve a request is used. Also `OLLAMA_HOST`.
    ai_hosts: Words = "[\"http://127.0.0.1:11434\"]",
    /// Allow models that run on ollama.com (`…:cloud`): prompts leave your machines.
    ai_allow_cloud: bool = "false",
    /// Seconds a connection to a model server may take.
    ai_connect_timeout: Seconds = "5",
    /// Seconds until the first token: loading, queueing and reading the prompt included.
    ai_first_token_timeout: Seconds = "600",
    /// Seconds between two tokens.
    ai_stall_timeout: Seconds = "120",
    /// Largest answer of a model, in bytes.
    ai_max_answer_bytes: usize = "16777216",
}

/// A list of words, or one text with commas.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

impl Words {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => text
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty())
                .map(Into::into)
                .collect(),
            Self::Many(words) => words,
        }
    }
}

/// A number of seconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(try_from = "f64", into = "f64")]
struct Seconds(Duration);

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, String> {
        let duration = Duration::try_from_secs_f64(seconds);
        duration
            .map(Self)
            .map_err(|_| format!("{seconds} is no number of seconds"))
    }
}

impl From<Seconds> for f64 {
    fn from(seconds: Seconds) -> Self {
        seconds.0.as_secs_f64()
    }
}

impl Seconds {
    fn positive(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

/// Where tasks go: the name of a queue, or Celery's form of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Route {
    Queue(String),
    Options(RouteOptions),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RouteOptions {
    queue: String,
}

impl Route {
    fn queue(&self) -> &str {
        match self {
            Self::Queue(queue) | Self::Options(RouteOptions { queue }) => queue,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct TransportOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    master_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentinel_kwargs: Option<SentinelLogin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    visibility_timeout: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    global_keyprefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority_steps: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sep: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_order_strategy: Option<Order>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_message_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_deliveries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_limit: Option<usize>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SentinelLogin {
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
}

impl From<SentinelLogin> for Login {
    fn from(SentinelLogin { username, password }: SentinelLogin) -> Self {
        Self { username, password }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    RoundRobin,
    Priority,
    Sorted,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ResultTransportOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    master_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentinel_kwargs: Option<SentinelLogin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    global_keyprefix: Option<String>,
}

/// Everything a program of this project can be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `broker_url`.
    pub broker_url: String,
    /// `result_backend`; `None` is the broker.
    pub result_backend: Option<String>,
    /// `task_queues`.
    pub queues: Vec<String>,
    /// `worker_concurrency`.
    pub concurrency: Option<usize>,
    /// `worker_prefetch_multiplier`.
    pub prefetch_multiplier: u32,
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

impl Settings {
    /// Reads the file (`./orchestra.toml` if none is named and there is one) and the environment.
    ///
    /// # Errors
    /// One line that names the file and line or the variable, and says what is wrong.
    pub fn load(file: Option<&Path>) -> Result<Self, String> {
        let mut given = Given::default();
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => read_file(&mut given, path, &text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {}
            Err(error) => return Err(format!("cannot read the settings file {}: {error}", path.display())),
        }
        let warnings = read_environment(&mut given, std::env::vars())?;
        Ok(Self {
            warnings,
            ..Self::new(given)
        })
    }

    fn new(given: Given) -> Self {
        let text = |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.to_owned());
        let folder = |value: &Option<PathBuf>, default: &str| match value {
            Some(path) => Folder::Named(path.clone()),
            None => Folder::Default(default.into()),
        };
        let words = |value: &Option<Words>, default: &str| match value {
            Some(words) => words.clone().into_vec(),
            None => vec![default.to_owned()],
        };
        let ai = ai::Options {
            templates: folder(&given.ai_templates, "templates"),
            tasks: folder(&given.ai_tasks, "tasks"),
            hosts: words(&given.ai_hosts, ai::DEFAULT_HOST),
            allow_cloud: given.ai_allow_cloud.unwrap_or(false),
            limits: {
                let mut limits = ai::CallLimits::default();
                if let Some(seconds) = given.ai_connect_timeout {
                    limits.connect = seconds.0;
                }
                if let Some(seconds) = given.ai_first_token_timeout {
                    limits.first_token = seconds.0;
                }
                if let Some(seconds) = given.ai_stall_timeout {
                    limits.stall = seconds.0;
                }
                if let Some(bytes) = given.ai_max_answer_bytes {
                    limits.answer_bytes = bytes;
                }
                limits
            },
        };
        Self {
            broker_url: text(&given.broker_url, "redis://127.0.0.1:6379/0"),
            result_backend: given.result_backend.clone(),
            queues: words(&given.task_queues, "celery"),
            concurrency: given.worker_concurrency,
            prefetch_multiplier: given.worker_prefetch_multiplier.unwrap_or(4),
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
        }
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
            .map_err(|error| format!("broker: {error}"))
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
                    .map(Some)
                    .map_err(|error| format!("result backend: {error}"))
            }
        }
    }

    /// `worker_metrics_addr`.
    pub fn metrics_addr(&self) -> Option<String> {
        self.given.worker_metrics_addr.clone()
    }

    /// Where `task-sent` events go, if they are wanted.
    pub fn sent_events(&self) -> Option<String> {
        let exchange = || {
            self.given
                .event_exchange
                .clone()
                .unwrap_or_else(|| "celeryev".to_owned())
        };
        self.given.task_send_sent_event.unwrap_or(false).then(exchange)
    }

    /// How the broker is used.
    pub fn broker_options(&self) -> crate::broker::Options {
        let mut options = crate::broker::Options::default();
        let Some(given) = self.given.broker_transport_options.clone() else {
            return options;
        };
        if let Some(seconds) = given.visibility_timeout {
            options.visibility_timeout = seconds.0;
        }
        if let Some(order) = given.queue_order_strategy {
            options.queue_order_strategy = match order {
                Order::RoundRobin => QueueOrder::RoundRobin,
                Order::Priority => QueueOrder::Priority,
                Order::Sorted => QueueOrder::Sorted,
            };
        }
        options.global_keyprefix = given.global_keyprefix.unwrap_or_default();
        options.priority_steps = given.priority_steps.unwrap_or(options.priority_steps);
        options.sep = given.sep.unwrap_or(options.sep);
        options.max_message_bytes = given.max_message_bytes.unwrap_or(options.max_message_bytes);
        options.max_deliveries = given.max_deliveries.unwrap_or(options.max_deliveries);
        options.dead_limit = given.dead_limit.unwrap_or(options.dead_limit);
        options
    }

    /// How results are kept.
    pub fn backend_options(&self) -> crate::backend::Options {
        let mut options = crate::backend::Options::default();
        if let Some(seconds) = self.given.result_expires {
            options.result_expires = seconds.positive();
        }
        let transport = self.given.result_backend_transport_options.clone().unwrap_or_default();
        options.global_keyprefix = transport.global_keyprefix.unwrap_or_default();
        options
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
        options.backend_options = self.backend_options();
        if options.broker_options.visibility_timeout < Duration::from_secs(1) {
            return Err("broker_transport_options: visibility_timeout must be at least one second".into());
        }
        let security = self.security()?;
        if let Some(names) = given.accept_content.clone() {
            options.accept =
                wire::Accept::parse(&names.into_vec(), security).map_err(|error| format!("accept_content: {error}"))?;
        }
        options.signer = self.signer()?;
        options.concurrency = self.concurrency.unwrap_or(options.concurrency);
        options.prefetch_multiplier = self.prefetch_multiplier;
        options.prefetch_bytes = given.worker_prefetch_bytes.unwrap_or(options.prefetch_bytes);
        options.queues.clone_from(&self.queues);
        options.task_events = self.task_events;
        options.sent_events = given.task_send_sent_event.unwrap_or(false);
        options.heartbeat = self.heartbeat;
        options.time_limit = self.time_limit;
        options.soft_time_limit = self.soft_time_limit;
        options.task_defaults = worker::TaskDefaults {
            acks_late: given.task_acks_late,
            acks_on_failure_or_timeout: given.task_acks_on_failure_or_timeout,
            track_started: given.task_track_started,
            ignore_result: given.task_ignore_result,
            store_errors_even_if_ignored: given.task_store_errors_even_if_ignored,
        };
        options.result_extended = given.result_extended.unwrap_or(false);
        options.routes = self.routes();
        options.deduplicate = given.worker_deduplicate_successful_tasks.unwrap_or(false);
        options.default_queue = given.task_default_queue.clone().unwrap_or(options.default_queue);
        options.pool_restarts = given.worker_pool_restarts.unwrap_or(false);
        options.state_db.clone_from(&given.worker_state_db);
        options.remote_control = given.worker_enable_remote_control.unwrap_or(true);
        options.event_exchange = given.event_exchange.clone().unwrap_or(options.event_exchange);
        options.control_exchange = given.control_exchange.clone().unwrap_or(options.control_exchange);
        Ok(options)
    }

    /// Queues by task name.
    pub fn routes(&self) -> wire::Routes {
        let routes = self.given.task_routes.iter().flatten();
        wire::Routes::new(routes.map(|(pattern, route)| (pattern.clone(), route.queue().to_owned())))
    }

    /// Whose signatures are believed, and what signs: the files that the settings name.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    fn security(&self) -> Result<Option<Arc<wire::Security>>, String> {
        let given = &self.given;
        let read = |setting: &str, path: &Path| {
            std::fs::read_to_string(path).map_err(|error| format!("{setting}: cannot read {}: {error}", path.display()))
        };
        let Some(store) = &given.security_cert_store else {
            return match given.security_key.is_some() || given.security_certificate.is_some() {
                true => Err("security_cert_store is not set: it says whose signatures are believed".into()),
                false => Ok(None),
            };
        };
        let mut security = wire::Security::new(given.security_digest.as_deref().unwrap_or("sha256"))
            .map_err(|error| format!("security_digest: {error}"))?;
        for path in certificates(store).map_err(|error| format!("security_cert_store: {store}: {error}"))? {
            security
                .trust(&read("security_cert_store", &path)?)
                .map_err(|error| format!("security_cert_store: {}: {error}", path.display()))?;
        }
        match (&given.security_key, &given.security_certificate) {
            (Some(key), Some(certificate)) => security
                .sign_with(
                    &read("security_key", key)?,
                    given.security_key_password.as_deref(),
                    &read("security_certificate", certificate)?,
                )
                .map_err(|error| format!("security_key: {}: {error}", key.display()))?,
            (None, None) => {}
            _ => return Err("security_key and security_certificate go together: one of them is not set".into()),
        }
        Ok(Some(Arc::new(security)))
    }

    /// What signs messages that are sent, where they are to be signed.
    ///
    /// # Errors
    /// The serializer is not one that is written, or what signing needs is not there.
    pub fn signer(&self) -> Result<Option<Arc<wire::Security>>, String> {
        match self.given.task_serializer.as_deref() {
            None | Some("json") => Ok(None),
            Some("auth") if self.given.security_key.is_some() => self.security(),
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
        add("worker_send_task_events", self.task_events.into());
        add("worker_heartbeat_interval", seconds(self.heartbeat));
        add("task_time_limit", seconds(self.time_limit));
        add("task_soft_time_limit", seconds(self.soft_time_limit));
        add("result_expires", seconds(self.backend_options().result_expires));
        add("log_level", self.log_level.clone().into());
        add("ai_templates", self.ai.templates.path().display().to_string().into());
        add("ai_tasks", self.ai.tasks.path().display().to_string().into());
        add("ai_hosts", self.ai.hosts.clone().into());
        // Celery's names for what is always so here: times are UTC, and no Python modules are imported.
        add("timezone", "UTC".into());
        add("include", json!([]));
        for (name, value) in &mut map {
            hide(name, value);
        }
        map
    }
}

/// The files of a certificate store, as Celery finds them: a folder means everything in it.
fn certificates(store: &str) -> std::io::Result<Vec<PathBuf>> {
    let path = Path::new(store);
    let (folder, pattern) = if path.is_dir() {
        (path, "*")
    } else {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.contains('*') {
            return Ok(vec![path.to_owned()]);
        }
        (path.parent().unwrap_or(Path::new(".")), name)
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    })? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_file() && !name.starts_with('.') && fits(name, pattern) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|name| (0..=name.len()).any(|at| name.is_char_boundary(at) && fits(&name[at..], rest))),
    }
}

/// The defaults of all settings, as values where they are some.
pub fn defaults() -> Map<String, Value> {
    let value = |setting: &Setting| {
        let read: Result<BTreeMap<String, Value>, _> = toml::from_str(&format!("v = {}", setting.default));
        let read = read.ok().and_then(|mut read| read.remove("v"));
        let text = || (setting.default != "none").then(|| Value::from(setting.default));
        (setting.name.to_owned(), read.or_else(text).unwrap_or_default())
    };
    SETTINGS.iter().map(value).collect()
}

/// What Celery shows instead of a secret.
const HIDDEN: &str = "********";

/// Hides what is secret by its name, and passwords in URLs wherever they stand (`celery.app.utils`).
fn hide(name: &str, value: &mut Value) {
    const SECRET: &[&str] = &["api", "token", "key", "secret", "pass", "signature", "database"];
    let words = || name.split(['_', '-']);
    // `global_keyprefix` and `control_exchange` are no secrets: whole words, or the end of one.
    if words().any(|word| SECRET.iter().any(|secret| word.eq_ignore_ascii_case(secret)) || word.ends_with("password")) {
        *value = HIDDEN.into();
        return;
    }
    match value {
        Value::String(text) => {
            if let Some(hidden) = hide_password(text) {
                *text = hidden;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| hide("", item)),
        Value::Object(map) => map.iter_mut().for_each(|(name, value)| hide(name, value)),
        _ => {}
    }
}

/// A URL without its password; `None` when there is none in it.
fn hide_password(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (credentials, place) = rest.rsplit_once('@')?;
    let (user, _) = credentials.split_once(':')?;
    Some(format!("{scheme}://{user}:{HIDDEN}@{place}"))
}

fn read<T: DeserializeOwned>(value: toml::Value) -> Result<T, String> {
    let shown = value.to_string();
    // TOML has integers and floats; Celery's seconds are both.
    let value = match value {
        toml::Value::Integer(number) => match T::deserialize(toml::Value::Integer(number)) {
            Ok(read) => return Ok(read),
            #[expect(
                clippy::cast_precision_loss,
                reason = "a setting beyond 2^53 is no number of seconds"
            )]
            Err(_) => toml::Value::Float(number as f64),
        },
        value => value,
    };
    T::deserialize(value).map_err(|error| {
        let error = error.to_string();
        // Names of Rust types mean nothing to whoever wrote the file.
        let error = ["usize", "u32", "u8"].iter().fold(error, |text, name| {
            text.replace(&format!("expected {name}"), "expected a whole number")
        });
        let error = error.replace("expected f64", "expected a number");
        format!("{shown} does not fit: {}", error.trim().replace('\n', " "))
    })
}

/// An entry of `beat_schedule`.
fn entry(name: &str, value: &toml::Value, zone: &TimeZone) -> Result<beat::Entry, String> {
    let definition = beat::Definition::deserialize(value.clone());
    let definition = definition.map_err(|error| error.message().trim().replace('\n', " "))?;
    beat::Entry::new(name, definition, zone)
}

/// The entries of `beat_schedule` are checked where their lines are still known.
fn check_schedule(path: &Path, text: &str, line_of: impl Fn(usize) -> usize) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Only {
        #[serde(default)]
        beat_schedule: BTreeMap<String, Spanned<toml::Value>>,
    }
    // A schedule that is no table is reported as every other setting is.
    let Ok(only) = toml::from_str::<Only>(text) else {
        return Ok(());
    };
    for (name, value) in only.beat_schedule {
        let line = line_of(value.span().start);
        entry(&name, value.get_ref(), &TimeZone::UTC)
            .map_err(|error| format!("{}:{line}: beat_schedule.{name}: {error}", path.display()))?;
    }
    Ok(())
}

fn read_file(given: &mut Given, path: &Path, text: &str) -> Result<(), String> {
    let line_of = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let table: BTreeMap<String, Spanned<toml::Value>> = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(span.start));
        format!("{}:{line}: {}", path.display(), error.message().replace('\n', " "))
    })?;
    for (name, value) in table {
        let line = line_of(value.span().start);
        given
            .set(&name, value.into_inner())
            .map_err(|error| format!("{}:{line}: {name}: {error}", path.display()))?;
    }
    check_schedule(path, text, line_of)
}

/// Reads the environment. A variable that is no setting is no error: Kubernetes makes `ORCHESTRA_PORT` and others for a
/// service of that name. One that is nearly a setting is worth a warning.
fn read_environment(
    given: &mut Given,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    let mut variables: Vec<(String, String)> = variables.filter(|(_, value)| !value.is_empty()).collect();
    // The general names first, so that ORCHESTRA_… wins.
    variables.sort_by_key(|(name, _)| name.starts_with("ORCHESTRA_"));
    for (variable, text) in variables {
        let name = match variable.as_str() {
            "CELERY_BROKER_URL" => "broker_url".to_owned(),
            "CELERY_RESULT_BACKEND" => "result_backend".to_owned(),
            "OLLAMA_HOST" => "ai_hosts".to_owned(),
            other => match other.strip_prefix("ORCHESTRA_") {
                Some(rest) => rest.to_ascii_lowercase(),
                None => continue,
            },
        };
        if !SETTINGS.iter().any(|setting| setting.name == name) {
            if let Some(close) = crate::text::closest(&name, SETTINGS.iter().map(|setting| setting.name)) {
                let meant = close.to_ascii_uppercase();
                warnings.push(format!(
                    "environment variable {variable} is no setting; did you mean ORCHESTRA_{meant}?"
                ));
            }
            continue;
        }
        let as_text = toml::Value::String(text.clone());
        let as_value = toml::from_str::<toml::Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut table| table.remove("value"));
        // `6379` may be meant as a text and `8` as a number: the setting's type decides.
        let first = as_value.unwrap_or_else(|| as_text.clone());
        given
            .set(&name, first)
            .or_else(|error| given.set(&name, as_text).map_err(|_| error))
            .map_err(|error| format!("environment variable {variable}: {error}"))?;
    }
    Ok(warnings)
}

fn unknown(name: &str) -> String {
    match crate::text::closest(name, SETTINGS.iter().map(|setting| setting.name)) {
        Some(close) => format!("there is no such setting; did you mean {close}?"),
        None => "there is no such setting; `orchestra config --all` lists them".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Settings, String> {
        let mut given = Given::default();
        read_file(&mut given, Path::new("orchestra.toml"), text)?;
        Ok(Settings::new(given))
    }

    #[test]
    fn a_file_is_read() {
        let settings = file(
            "broker_url = 'redis://h:1/2'\ntask_time_limit = 3\nresult_expires = 0.5\ntask_queues = 'a, b'\n\
             [broker_transport_options]\nvisibility_timeout = 10\nqueue_order_strategy = 'priority'\n",
        )
        .unwrap();
        assert_eq!(settings.broker_url, "redis://h:1/2");
        assert_eq!(settings.time_limit, Some(Duration::from_secs(3)));
        assert_eq!(settings.queues, ["a", "b"]);
        assert_eq!(settings.broker_options().visibility_timeout, Duration::from_secs(10));
        assert_eq!(
            settings.backend_options().result_expires,
            Some(Duration::from_millis(500))
        );
    }

    #[test]
    fn a_pattern_of_a_certificate_store_fits_as_in_a_shell() {
        for (name, pattern, is_so) in [
            ("a.pem", "*.pem", true),
            ("a.pem", "*", true),
            ("a.pem", "a*p*m", true),
            ("a.pem", "*.key", false),
            ("ä.pem", "a*", false),
            ("", "*", true),
        ] {
            assert_eq!(fits(name, pattern), is_so, "{name} {pattern}");
        }
    }

    #[test]
    fn p_184_secrets_are_not_shown() {
        let settings = file(
            "broker_url = 'redis://:hunter2@h:1/2'\nresult_backend = 'rediss://u:hunter2@h:1/2?x=1'\n\
             ai_hosts = ['http://me:hunter2@gpu:11434', 'http://plain:11434']\n\
             [broker_transport_options]\nglobal_keyprefix = 'app:'\n",
        )
        .unwrap();
        let shown = Value::Object(settings.shown());
        assert!(!shown.to_string().contains("hunter2"), "{shown}");
        assert_eq!(shown["broker_url"], "redis://:********@h:1/2");
        assert_eq!(shown["result_backend"], "rediss://u:********@h:1/2?x=1");
        assert_eq!(
            shown["ai_hosts"],
            json!(["http://me:********@gpu:11434", "http://plain:11434"])
        );
        assert_eq!(shown["broker_transport_options"], json!({"global_keyprefix": "app:"}));
        for name in ["ai_api_token", "http_secret_key", "store_password"] {
            let mut value = json!("hunter2");
            hide(name, &mut value);
            assert_eq!(value, HIDDEN, "{name}");
        }
    }

    #[test]
    fn defaults_are_values() {
        let defaults = defaults();
        assert_eq!(defaults.len(), SETTINGS.len());
        assert_eq!(defaults["worker_prefetch_multiplier"], 4);
        assert_eq!(defaults["task_queues"], json!(["celery"]));
        assert_eq!(defaults["task_time_limit"], Value::Null);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let error = |text| file(text).unwrap_err();
        assert_eq!(
            error("\nbroker_urls = 'x'"),
            "orchestra.toml:2: broker_urls: there is no such setting; did you mean broker_url?"
        );
        assert!(error("a = [").starts_with("orchestra.toml:1: "));
        assert!(
            error("worker_concurrency = 'many'")
                .starts_with("orchestra.toml:1: worker_concurrency: \"many\" does not fit")
        );
        assert!(error("task_time_limit = -1").contains("-1 is no number of seconds"));
        assert_eq!(
            error("[beat_schedule.a]\ntask = 't'\nschedule = 5\n[beat_schedule.b]\ntask = 't'\nschedule = '* * *'"),
            "orchestra.toml:4: beat_schedule.b: schedule: a crontab has five fields \
             (minute hour day_of_month month_of_year day_of_week), \"* * *\" has 3"
        );
        assert_eq!(
            error("[beat_schedule.a]\ntask = 't'"),
            "orchestra.toml:1: beat_schedule.a: missing field `schedule`"
        );
        assert!(error("beat_schedule = 5").starts_with("orchestra.toml:1: beat_schedule: 5 does not fit"));
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let mut given = Given::default();
        read_file(&mut given, Path::new("f"), "broker_url = 'redis://file'").unwrap();
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let variables = [
            variable("ORCHESTRA_BROKER_URL", "redis://ours"),
            variable("CELERY_BROKER_URL", "redis://celery"),
            variable("ORCHESTRA_WORKER_CONCURRENCY", "3"),
            variable("ORCHESTRA_LOG_LEVEL", "INFO"),
            variable("OLLAMA_HOST", "http://a:1,http://b:2"),
        ];
        read_environment(&mut given, variables.into_iter()).unwrap();
        let settings = Settings::new(given);
        assert_eq!(settings.broker_url, "redis://ours");
        assert_eq!(settings.concurrency, Some(3));
        assert_eq!(settings.log_level, "INFO");
        assert_eq!(settings.ai.hosts, ["http://a:1", "http://b:2"]);
        let read = |name, value| read_environment(&mut Given::default(), [variable(name, value)].into_iter());
        assert!(read("ORCHESTRA_BROKER_URLS", "x").unwrap()[0].ends_with("did you mean ORCHESTRA_BROKER_URL?"));
        assert!(read("ORCHESTRA_SERVICE_HOST", "10.0.0.1").unwrap().is_empty());
        assert!(
            read("ORCHESTRA_WORKER_CONCURRENCY", "x")
                .unwrap_err()
                .starts_with("environment variable ORCHESTRA_WORKER_CONCURRENCY: ")
        );
    }
}
