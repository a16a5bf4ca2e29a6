//! Settings of Celery that this project has not, so that who brings a `celeryconfig.py` is told what becomes of each.

use super::table::SETTINGS;
use crate::text::fits;

/// What becomes of a setting of Celery's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It says something that must be said elsewhere: to pass it over would be to do something else than was asked for.
    Elsewhere(String),
    /// Nothing depends on it here.
    WithoutEffect(&'static str),
}

/// Names, with `*`, and what to do instead.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &["broker_use_ssl", "redis_backend_use_ssl"],
        "write rediss:// and ssl_ca_certs, ssl_certfile, … into the URL (docs/redis.md)",
    ),
    (
        &["broker_read_url", "broker_write_url"],
        "there is one broker: write broker_url",
    ),
    (
        &[
            "broker_host",
            "broker_port",
            "broker_user",
            "broker_password",
            "broker_vhost",
            "broker_transport",
        ],
        "write it into broker_url",
    ),
    (
        &[
            "redis_host",
            "redis_port",
            "redis_db",
            "redis_username",
            "redis_password",
        ],
        "write it into result_backend",
    ),
    (
        &["task_annotations"],
        "write it into the options of the task, in Rust or in tasks/*.yaml (docs/rust-tasks.md, docs/templates.md)",
    ),
    (
        &["task_queue_max_priority"],
        "queues have priorities with broker_transport_options.priority_steps",
    ),
    (&["result_chord_expires"], "write result_expires"),
];

/// Names, with `*`, and why nothing depends on them.
const WITHOUT_EFFECT: &[(&[&str], &str)] = &[
    (
        &["beat_scheduler", "beat_schedule_filename", "beat_sync_every"],
        "beat has one scheduler, which keeps the schedule in Redis (docs/beat.md)",
    ),
    (
        &["beat_remote_control_max_tick_age"],
        "a beat that hangs loses its lock to another (beat_lock_timeout)",
    ),
    (&["imports", "include"], "no Python modules are imported"),
    (&["enable_utc"], "times are UTC on the wire"),
    (
        &["task_always_eager", "task_eager_propagates*", "task_store_eager_result"],
        "it concerns tasks that run where they are called",
    ),
    (
        &[
            "broker_channel_error_retry",
            "broker_connection_*",
            "broker_failover_strategy",
            "broker_heartbeat*",
            "broker_pool_*",
            "redis_max_connections",
            "redis_retry_on_timeout",
            "redis_socket_*",
            "result_backend_always_retry",
            "result_backend_*_retries*",
            "worker_lost_wait",
        ],
        "connections are kept, and made again, without it",
    ),
    (
        &[
            "broker_login_method",
            "broker_native_delayed_delivery_*",
            "control_queue_*",
            "event_queue_*",
            "result_exchange*",
            "result_persistent",
            "task_create_missing_queue_*",
            "task_default_delivery_mode",
            "task_default_exchange*",
            "task_default_queue_type",
            "task_default_routing_key",
            "worker_detect_quorum_queues",
        ],
        "it concerns brokers other than Redis",
    ),
    (
        &[
            "arangodb_*",
            "azureblockblob_*",
            "cache_backend*",
            "cassandra_*",
            "cosmosdbsql_*",
            "couchbase_*",
            "database_*",
            "elasticsearch_*",
            "gcs_*",
            "mongodb_*",
            "result_dburi",
            "result_db_*",
            "result_engine_options",
            "s3_*",
        ],
        "results are stored in Redis",
    ),
    (
        &[
            "task_compression",
            "task_protocol",
            "task_publish_retry*",
            "event_serializer",
            "max_cached_results",
            "result_cache_max",
        ],
        "it concerns senders in Python; what they send is read",
    ),
    (
        &["task_remote_tracebacks", "task_repr_maxlevels"],
        "it concerns exceptions and arguments of Python",
    ),
    (
        &[
            "worker_hijack_root_logger",
            "worker_log_*",
            "worker_redirect_stdouts*",
            "worker_task_log_*",
        ],
        "log_level, log_json and -f say how the log is written",
    ),
    (
        &[
            "worker_agent",
            "worker_autoscaler",
            "worker_consumer",
            "worker_enable_prefetch_count_reduction",
            "worker_pool_putlocks",
            "worker_pool_start_method",
            "worker_proc_alive_timeout",
            "worker_timer*",
        ],
        "it names or tunes a part of Celery's own worker",
    ),
];

/// What becomes of the setting of that name, if it is one of Celery's that is not ours.
pub(super) fn fate(name: &str) -> Option<Fate> {
    if is_ours(name) {
        return None;
    }
    names_of_today(name).into_iter().find_map(|today| {
        if is_ours(&today) {
            return Some(Fate::Elsewhere(format!(
                "write {today}, as it is called since Celery 4"
            )));
        }
        let elsewhere = find(ELSEWHERE, &today).map(|word| Fate::Elsewhere(word.to_owned()));
        elsewhere.or_else(|| find(WITHOUT_EFFECT, &today).map(Fate::WithoutEffect))
    })
}

fn is_ours(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.name == name)
}

fn find(table: &[(&[&str], &'static str)], name: &str) -> Option<&'static str> {
    let is_in = |names: &[&str]| names.iter().any(|pattern| fits(pattern, name));
    table.iter().find(|(names, _)| is_in(names)).map(|(_, word)| *word)
}

/// What a setting may be called today: one in capitals is of Celery 3, as `CELERYD_CONCURRENCY`, or of Django's
/// settings, as `CELERY_TASK_ROUTES`.
fn names_of_today(name: &str) -> Vec<String> {
    /// Beginnings, and what they became.
    const BEGINNINGS: [(&str, &str); 12] = [
        ("celerybeat_", "beat_"),
        ("celeryd_task_", "task_"),
        ("celeryd_", "worker_"),
        ("celeryd_", ""),
        ("celery_task_result_", "result_"),
        ("celery_send_task_", "task_send_"),
        ("celery_send_", "worker_send_task_"),
        ("celery_message_", "task_"),
        ("celery_", ""),
        ("celery_", "task_"),
        ("celery_", "worker_"),
        ("", ""),
    ];
    if name.contains(|char: char| char.is_ascii_lowercase()) {
        return vec![name.to_owned()];
    }
    let lower = name.to_ascii_lowercase();
    let names = BEGINNINGS.iter();
    let names = names.filter_map(|(old, new)| Some(format!("{new}{}", lower.strip_prefix(old)?)));
    names.collect()
}
