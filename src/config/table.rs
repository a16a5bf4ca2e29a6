//! The table of settings.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::load::{read, unknown};
use super::queues::{Queues, RouteTable};
use super::values::{Hosts, ResultTransportOptions, Seconds, TransportOptions, Words};
use crate::ai::{Budget, Profile, Rate, Strategy};

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
        pub(super) struct Given {
            $(pub(super) $name: Option<$type>,)+
            /// Settings whose value stands in a file of its own: where, and what was read there.
            pub(super) files: BTreeMap<String, (PathBuf, String)>,
        }

        impl Given {
            pub(super) fn set(&mut self, name: &str, value: toml::Value) -> Result<(), String> {
                match name {
                    $(stringify!($name) => self.$name = Some(read(name, value)?),)+
                    other => return Err(unknown(other)),
                }
                Ok(())
            }

            /// Everything that was given, by name.
            pub(super) fn shown(&self) -> Map<String, Value> {
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
    /// Queues to consume: names, or a table of names with `exchange`, `exchange_type` (direct, topic, fanout),
    /// `routing_key`, `expires` (seconds), `max_priority`. A fanout queue is told to every worker. Without it
    /// `task_default_queue` alone.
    task_queues: Queues = "[\"celery\"]",
    /// Use queues that `task_queues` does not name; `false` makes them an error.
    task_create_missing_queues: bool = "true",
    /// Serializers of messages that are read, by name or mime type: json, msgpack, yaml, auth (signed).
    accept_content: Words = "[\"json\"]",
    /// Serializer of messages that are sent: json, or auth, which is JSON signed with `security_key`.
    task_serializer: String = "json",
    /// Certificates whose signatures are believed: a file, a folder of files, or a path that ends in a pattern with
    /// `*`. PEM.
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
    /// Memory that held messages may take, in bytes; those that wait for their ETA count. With none left no more are
    /// taken.
    worker_prefetch_bytes: usize = "1073741824",
    /// Results and messages that may wait for Redis, in bytes. Beyond them no task is started and no message taken.
    worker_backlog_bytes: usize = "268435456",
    /// Send task events from the start (`-E`).
    worker_send_task_events: bool = "false",
    /// Tell monitors of every task that is sent, by this worker or the `orchestra` program, and of what follows.
    task_send_sent_event: bool = "false",
    /// Seconds between heartbeats; 0 sends no worker events.
    worker_heartbeat_interval: Seconds = "2",
    /// Listen to `celery inspect` and `celery control`.
    worker_enable_remote_control: bool = "true",
    /// `prefork` (or `processes`): every task runs in a child process. Otherwise only those that ask for one do (`-P`).
    worker_pool: String = "threads",
    /// Tasks that a child process runs before it is replaced (`--max-tasks-per-child`).
    worker_max_tasks_per_child: u64 = "none",
    /// Memory of a child process, in KiB, with which it is replaced after its task (`--max-memory-per-child`).
    worker_max_memory_per_child: u64 = "none",
    /// A cold stop lets tasks run for so many seconds before it cancels them; 0 cancels at once.
    worker_soft_shutdown_timeout: Seconds = "0",
    /// With `worker_soft_shutdown_timeout`: wait also when nothing runs.
    worker_enable_soft_shutdown_on_idle: bool = "false",
    /// Cancel tasks with late acks when the connection to Redis is lost; they run again. Without it they run to their
    /// end, and are acknowledged when Redis is back.
    worker_cancel_long_running_tasks_on_connection_loss: bool = "false",
    /// Most messages that are held, those that wait for their ETA among them.
    worker_eta_task_limit: usize = "none",
    /// Take a message only when there is a place to run (`--disable-prefetch`).
    worker_disable_prefetch: bool = "false",
    /// Ignore rate limits.
    worker_disable_rate_limits: bool = "false",
    /// Let tenants take turns by what they use, where they would wait for each other: where the tenant of a task
    /// stands, the first that is there of `header:NAME` (or stamp), `kwarg:NAME`, `queue:PATTERN`; see docs/sharing.md.
    worker_fair_by: Words = "[]",
    /// With `worker_fair_by`: messages that are held to choose from, by all workers together.
    worker_fair_lookahead: usize = "1000",
    /// With `worker_fair_by`: what counts, `seconds` of runs or `tokens` of models.
    worker_fair_unit: String = "seconds",
    /// Consume from a queue of the worker's own as well, `<node name>.dq2`.
    worker_direct: bool = "false",
    /// Answer `celery control pool_restart` instead of refusing it.
    worker_pool_restarts: bool = "false",
    /// Keep what was revoked in this file, across restarts (`--statedb`).
    worker_state_db: PathBuf = "none",
    /// Address of an HTTP server for `/metrics` (Prometheus), `/healthz` and `/readyz`; `:PORT` is this machine only
    /// (`--metrics-addr`).
    worker_metrics_addr: String = "none",
    /// Hard time limit of tasks that have none, in seconds.
    task_time_limit: Seconds = "none",
    /// Soft time limit of tasks that have none, in seconds.
    task_soft_time_limit: Seconds = "none",
    /// Acknowledge every task after it ran.
    task_acks_late: bool = "false",
    /// With late acks: acknowledge tasks that failed or ran into their time limit.
    task_acks_on_failure_or_timeout: bool = "true",
    /// The same for tasks that failed alone.
    task_acks_on_failure: bool = "task_acks_on_failure_or_timeout",
    /// The same for tasks that ran into their time limit alone; those that are not acknowledged run again, as often as
    /// `max_deliveries` allows.
    task_acks_on_timeout: bool = "task_acks_on_failure_or_timeout",
    /// With late acks: a task whose child process was lost goes back to its queue, as often as `max_deliveries` allows.
    task_reject_on_worker_lost: bool = "false",
    /// A task whose child process was lost is retried, as often as its `max_retries` allows.
    task_retry_on_worker_lost: bool = "false",
    /// Rate limit of tasks that have none: `10/s`, `100/m`, `1000/h`.
    task_default_rate_limit: String = "none",
    /// Priority of what is sent without one (by a worker, beat and the `orchestra` program), 0 to 9.
    task_default_priority: u8 = "none",
    /// Priority of what a task sends without one: its own.
    task_inherit_parent_priority: bool = "false",
    /// Call the error callbacks of a chord for each member of its header that fails as well, and not only for its body.
    /// For what this worker links: in chains, and in the place of a task that was replaced.
    task_allow_error_cb_on_chord_header: bool = "false",
    /// Store the state STARTED of every task.
    task_track_started: bool = "false",
    /// Store no results.
    task_ignore_result: bool = "false",
    /// Store failures even where results are ignored.
    task_store_errors_even_if_ignored: bool = "false",
    /// With late acks: a message that was delivered before is not run again when its task has a SUCCESS already.
    worker_deduplicate_successful_tasks: bool = "false",
    /// Where tasks go, by name or pattern with `*`: `{"feed.*" = {queue = "feeds"}}`, or `[["feed.*", "feeds"], …]`,
    /// where the first pattern that fits wins. With `queue`, `exchange`, `routing_key`, `priority` and what else
    /// `apply_async` takes. A list of tables is asked in its order; of one table a whole name comes first, then the
    /// longest pattern. For what tasks, beat and the `orchestra` program send.
    task_routes: RouteTable = "{}",
    /// Queue of tasks that name none and have no route; a worker consumes it where `task_queues` says nothing.
    task_default_queue: String = "celery",
    /// Seconds after which a result is deleted; 0 keeps it for ever.
    result_expires: Seconds = "86400",
    /// Seconds after which a failure is deleted, if not as `result_expires` says; 0 keeps it for ever.
    result_failure_expires: Seconds = "as result_expires",
    /// Serializer of results: json, msgpack, yaml. Clients and all workers of a chord must be told the same.
    result_serializer: String = "json",
    /// Compression of results: gzip (zlib), bzip2, lzma (xz), brotli, zstd. Who reads them needs no setting.
    result_compression: String = "none",
    /// Serializers of results that are read: those of chords, and what the `orchestra` program shows.
    result_accept_content: Words = "as accept_content",
    /// Seconds that the results of a chord's header are waited for where groups are in it; 0 waits without end.
    result_chord_join_timeout: Seconds = "3",
    /// Seconds between two looks of `celery.chord_unlock`, where somebody sends it.
    result_chord_retry_interval: Seconds = "1",
    /// Largest body of a message once it is unpacked, in bytes; a larger one goes to the dead letters.
    max_body_bytes: usize = "67108864",
    /// Longest id or name of a task in a message, in bytes; one that is longer goes to the dead letters.
    max_name_bytes: usize = "255",
    /// Most levels of lists and objects within each other in arguments, 127 at most; what is deeper goes to the dead
    /// letters.
    max_depth: usize = "127",
    /// Largest remote control request, in bytes, and what YAML or msgpack in it become as JSON, 64 MiB at most; a
    /// larger one is not read. Elections, and stamps that are revoked, keep so much together.
    max_control_bytes: usize = "16777216",
    /// Largest result, in bytes of JSON: a task that returns more fails with `ResultTooLarge`.
    max_result_bytes: usize = "67108864",
    /// What one task may keep for its later deliveries (finished steps of a template, `Context::keep`), in bytes; what
    /// is beyond is not kept, and done again then.
    max_kept_bytes: usize = "67108864",
    /// About how many entries a token stream has; the oldest go first.
    max_stream_entries: usize = "10000",
    /// Store name, arguments, worker and queue of the task with its result.
    result_extended: bool = "false",
    /// Exchange of events.
    event_exchange: String = "celeryev",
    /// Name of the control exchange, without `.pidbox`.
    control_exchange: String = "celery",
    /// Of kombu's: `visibility_timeout` (seconds, 3600), `global_keyprefix`, `priority_steps`, `sep`,
    /// `queue_order_strategy`, `fanout_prefix`, `fanout_patterns`, `master_name` and `sentinel_kwargs` (`username`,
    /// `password`) for Sentinels; ours: `lease` (seconds; what a worker holds is delivered again when it gave no sign
    /// of life for so long, if that is sooner than `visibility_timeout`, which must then be the same for all who take
    /// from these queues), `max_message_bytes` (67108864), `max_deliveries` (5), `dead_limit` (10000).
    broker_transport_options: TransportOptions = "{}",
    /// Of Celery's: `global_keyprefix`, `result_chord_ordered` (true), `master_name` and `sentinel_kwargs` for
    /// Sentinels.
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
    /// Names of arguments and log fields whose values are never shown, besides `password`, `token`, `api_key` and the
    /// like (docs/monitoring.md); `-token` takes one from the list.
    redact_names: Words = "[]",
    /// Log as JSON, one object per line.
    log_json: bool = "false",
    /// Folder of templates.
    ai_templates: PathBuf = "templates",
    /// Folder of task files.
    ai_tasks: PathBuf = "tasks",
    /// Model servers: URLs, or tables with `url`, `kind` (`ollama`, `openai`), `weight` (1), `max_parallel` (4),
    /// `max_loaded` (3), `vram` (bytes), `models`, `api_key_env`, `api_key_file`, `headers`; see docs/fleet.md. Also
    /// `OLLAMA_HOST`.
    ai_hosts: Hosts = "[\"http://127.0.0.1:11434\"]",
    /// How models are loaded, the same for all calls, by model: `num_ctx`, `options`, `keep_alive`, `shift`; and
    /// `max_parallel`, its calls at once on all hosts together.
    ai_models: BTreeMap<String, Profile> = "{}",
    /// Models that a host may fetch when a call asks for one that none has; with `*`.
    ai_pull: Words = "[]",
    /// Seconds that a call for a model in no memory lets those go first whose model is.
    ai_switch_after: Seconds = "30",
    /// How many tasks that a worker holds may run before one that came earlier, because their model is in memory and
    /// its is not; for as long as `ai_switch_after` at most. `0` keeps the order.
    ai_overtaking: u32 = "16",
    /// How the host of a call is chosen: `warm-first`, `least-busy`, `latency`, `weighted`, or `sticky(NAME)` for the
    /// same one for each value of the header NAME; see docs/fleet.md.
    ai_routing: Strategy = "warm-first",
    /// Seconds a call waits for a place on a host before its task is tried again later.
    ai_queue_timeout: Seconds = "3600",
    /// Bounds on use: tables with `tokens` or `seconds`, `per` (`hour`, `day`, `month`), of which `task`, `template`,
    /// `model`, `tenant`, and `downgrade_to`, without which calls are refused.
    ai_budgets: Vec<Budget> = "[]",
    /// Limits in a time, of all workers together: tables with `requests` or `tokens` a minute or `gpu_seconds` an hour,
    /// of which `task`, `template`, `model`, `tenant`, `each` (one limit for each value of one of these or of a
    /// header), and `burst`, the seconds whose share may come at once; see docs/fleet.md.
    ai_rate_limits: Vec<Rate> = "[]",
    /// Keep what was asked in the record of each call; otherwise only its hash.
    ai_record_prompts: bool = "false",
    /// Allow models that run on ollama.com (`…:cloud`): prompts leave your machines.
    ai_allow_cloud: bool = "false",
    /// Seconds a connection to a model server may take.
    ai_connect_timeout: Seconds = "5",
    /// Seconds a model may take to load, where it is not in memory.
    ai_load_timeout: Seconds = "600",
    /// Seconds until the first token, after the load: the host's own queue and reading the prompt included.
    ai_first_token_timeout: Seconds = "600",
    /// Seconds between two tokens.
    ai_stall_timeout: Seconds = "120",
    /// Seconds a whole call may take once it has a place.
    ai_call_timeout: Seconds = "none",
    /// Most tokens of an answer whose call sets no end (`num_predict`, `max_tokens`); `0` sets none.
    ai_max_tokens: u64 = "32768",
    /// Largest answer of a model, in bytes.
    ai_max_answer_bytes: usize = "16777216",
    /// Largest answer of a model that is cached, in bytes; a larger one is asked for again.
    ai_max_cached_bytes: usize = "1048576",
    /// Single texts of tasks that run at the same time go to a model together, so many at most, 64 being the most of
    /// one request; 1 sends each alone.
    ai_embed_batch: usize = "64",
    /// Seconds that the first of them waits for others.
    ai_embed_wait: Seconds = "0.005",
    /// Most bytes of texts that go together.
    ai_embed_batch_bytes: usize = "1048576",
    /// Steps of work that one text of a template may take to render: a loop without end ends there.
    ai_template_steps: u64 = "5000000",
    /// Largest text that a template may render, in bytes.
    ai_max_text_bytes: usize = "16777216",
    /// Folders whose files templates may read (`read_files`, `git_clone` of a path).
    ai_read_paths: Words = "[]",
    /// Folders in which templates may write files (`store_result`).
    ai_write_paths: Words = "[]",
    /// Programs that templates may run, by name or path (`execute_script`; `git` for `git_clone`).
    ai_programs: Words = "[]",
    /// Servers that templates may ask: `api.example.com`, `*.example.com`, `host:port`, an address, a network such as
    /// `10.0.0.0/8`. A name may lead to public addresses and to those that are named here, with a port at that port only.
    ai_http_hosts: Words = "[]",
    /// Seconds of computing that a program of a template may take.
    ai_program_cpu: Seconds = "60",
    /// Seconds that a program of a template may take in all.
    ai_program_timeout: Seconds = "300",
    /// Memory that a program of a template may ask for, and all that it has started may have together, in bytes.
    ai_program_memory: usize = "1073741824",
    /// Processes and threads that a program of a template may have at once, all that it has started included.
    ai_program_processes: usize = "256",
    /// Largest file that a program of a template may write, in bytes.
    ai_program_file: usize = "268435456",
    /// What a program of a template may print, in bytes; what is beyond is left out, and `truncated` says so.
    ai_program_output: usize = "1048576",
    /// Largest file that `read_files` reads, in bytes; four times as much is the most of all files of a step.
    ai_max_file_bytes: usize = "16777216",
    /// Most files of a step of `read_files`.
    ai_max_files: usize = "1000",
    /// Largest answer of a server that `http_request` reads, in bytes.
    ai_max_http_bytes: usize = "16777216",
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
