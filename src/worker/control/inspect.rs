//! Commands that only ask.

use serde_json::{Map, Value, json};
use tracing::{info, warn};

use super::commands::find;
use super::request_info::request_info;
use super::{Answer, Arguments, ok, short};
use crate::clock;
use crate::task;
use crate::worker::consumer::{Active, Consumer, Key};
use crate::worker::events::{IDENT, VERSION};
use crate::worker::facts;
use crate::worker::request::{Hold, State};

/// Requests in one answer: a million of them that wait for their ETA would keep the loop, and Redis, for seconds.
const SHOWN: usize = 10_000;
/// Samples of memory that are remembered.
const SAMPLES: usize = 1000;

/// Whether it shows what was taken from the queues.
pub(super) fn shows_requests(method: &str) -> bool {
    find(method).is_some_and(|command| matches!(command.name, "active" | "reserved" | "scheduled" | "query_task"))
}

impl Consumer {
    /// Answers a question; `None` when the method is none.
    pub(super) fn inspect(&mut self, name: &str, arguments: &Arguments<'_>) -> Option<Result<Answer, String>> {
        let answer = match name {
            "ping" => return Some(ok("pong")),
            "active" => self.list(arguments.flag("safe"), |active| {
                matches!(active.state, State::Running { .. })
            }),
            "reserved" => self.list(false, |active| {
                matches!(active.state, State::Received { .. } | State::Reserved { .. })
            }),
            "scheduled" => self.scheduled(),
            "revoked" => self.revoked.ids().map(ToString::to_string).collect(),
            "registered" => self.registered(arguments),
            "stats" => self.stats(),
            "active_queues" => self.active_queues(),
            "query_task" => match arguments.texts("ids") {
                Ok(ids) => self.query(&ids),
                Err(error) => return Some(Err(error)),
            },
            "conf" => self.conf(arguments.flag("with_defaults")),
            "report" => return Some(ok(self.report())),
            "clock" => json!({"clock": self.events.clock()}),
            "memsample" => self.sample_memory(),
            "memdump" => self.dump_memory(arguments),
            "objgraph" => {
                return Some(Err(
                    "NotImplementedError('objgraph draws Python objects; this worker has none')".into(),
                ));
            }
            "hello" => return Some(self.hello(arguments)),
            _ => return None,
        };
        Some(Ok(Some(answer)))
    }

    fn list(&self, safe: bool, wanted: impl Fn(&Active) -> bool) -> Value {
        self.shown(wanted)
            .map(|active| request_info(active, &self.options.hostname, safe))
            .collect()
    }

    /// The oldest requests of a kind, as many as go into an answer.
    fn shown(&self, wanted: impl Fn(&Active) -> bool) -> impl Iterator<Item = &Active> {
        let mut found: Vec<(&Key, &Active)> = self.active.iter().filter(|(_, active)| wanted(active)).collect();
        if found.len() > SHOWN {
            warn!("{} tasks are asked for; the answer has the first {SHOWN}", found.len());
        }
        found.sort_unstable_by_key(|(key, _)| **key);
        found.truncate(SHOWN);
        found.into_iter().map(|(_, active)| active)
    }

    fn scheduled(&self) -> Value {
        self.shown(|active| matches!(active.state, State::Held { why: Hold::Eta, .. }))
            .map(|active| {
                json!({
                    "eta": active.eta.map(clock::iso),
                    "priority": 6,
                    "request": request_info(active, &self.options.hostname, false),
                })
            })
            .collect()
    }

    fn registered(&self, arguments: &Arguments<'_>) -> Value {
        let builtins = arguments.flag("builtins");
        let wanted = arguments.texts("taskinfoitems").unwrap_or_default();
        let wanted: Vec<&str> = match wanted[..] {
            // What a task is for stands beside it, in Flower too.
            [] => vec!["exchange", "routing_key", "rate_limit", "description", "version"],
            _ => wanted,
        };
        self.registry
            .entries()
            .filter(|entry| builtins || !entry.name.starts_with("celery."))
            .map(|entry| {
                let policy = self.options.policy(&entry.options);
                let items: Vec<String> = wanted
                    .iter()
                    .filter_map(|item| Some(format!("{item}={}", attribute(entry, &policy, item)?)))
                    .collect();
                match &items[..] {
                    [] => entry.name.to_string(),
                    items => format!("{} [{}]", entry.name, items.join(" ")),
                }
            })
            .collect()
    }

    fn stats(&self) -> Value {
        let totals: Map<String, Value> = self
            .totals
            .iter()
            .map(|(name, count)| (name.to_string(), (*count).into()))
            .collect();
        let broker = &self.options.broker;
        let mut stats = json!({
            "total": totals,
            "pid": std::process::id(),
            "clock": self.events.clock().to_string(),
            "uptime": clock::instant().saturating_duration_since(self.born).as_secs(),
            "pool": self.pool_stats(),
            "broker": {
                "hostname": broker.host(),
                "userid": broker.username(),
                "virtual_host": broker.db().to_string(),
                "port": broker.port(),
                "insist": false,
                "ssl": broker.is_tls(),
                "transport": "redis",
                "connect_timeout": 4,
                "transport_options": self.options.conf.get("broker_transport_options").cloned().unwrap_or_else(|| json!({})),
                "login_method": null,
                "uri_prefix": null,
                "heartbeat": 0.0,
                "failover_strategy": "round-robin",
                "alternates": [],
                "credential_provider": null,
            },
            "prefetch_count": self.prefetch + self.held_for_eta(),
            "rusage": facts::resource_usage(),
        });
        for meter in self.registry.meters() {
            if let Some((name, numbers)) = meter.stats() {
                stats[name] = numbers;
            }
        }
        if let Some(scaler) = &self.autoscaler {
            stats["autoscaler"] = json!({
                "max": scaler.max,
                "min": scaler.min,
                "current": self.pool.size(),
                "qty": self.reserved.len() + self.running,
            });
        }
        stats
    }

    /// As the pool of Celery shows itself that it is like: that of processes (`-P prefork`), or that of threads, which
    /// run in this process; where tasks have asked for children, those are told. What its process pool counts of its
    /// pipes is not here.
    fn pool_stats(&self) -> Value {
        let seconds = |limit: Option<std::time::Duration>| limit.map_or(json!(0), |limit| json!(limit.as_secs_f64()));
        let max_tasks = self.children.max_tasks();
        let mut stats = json!({
            "implementation": "orchestra.worker.pool:Pool",
            "max-concurrency": self.pool.size(),
            "max-tasks-per-child": max_tasks.map_or_else(|| json!("N/A"), Into::into),
            "put-guarded-by-semaphore": true,
            "timeouts": [seconds(self.options.soft_time_limit), seconds(self.options.time_limit)],
        });
        let mut processes = self.children.pids();
        if !self.children.are_the_pool() {
            stats["threads"] = self.pool.size().into();
            if processes.is_empty() {
                // Celery's own suite wants to see a process for each place.
                processes.resize(self.pool.size(), std::process::id());
            }
        }
        stats["processes"] = processes.into();
        stats
    }

    fn held_for_eta(&self) -> usize {
        let is_held = |active: &&Active| matches!(active.state, State::Held { why: Hold::Eta, .. });
        self.active.values().filter(is_held).count() + self.parked.len()
    }

    fn query(&self, ids: &[&str]) -> Value {
        let mut found = Map::new();
        for id in ids {
            let Some(active) = self.by_id.get(*id).and_then(|key| self.active.get(key)) else {
                continue;
            };
            let state = match active.state {
                State::Running { .. } => "active",
                State::Held { why: Hold::Eta, .. } => "scheduled",
                State::Held { .. } | State::Received { .. } | State::Reserved { .. } => "reserved",
                State::Done => "ready",
            };
            let info = request_info(active, &self.options.hostname, false);
            found.insert((*id).to_owned(), json!([state, info]));
        }
        found.into()
    }

    fn conf(&self, with_defaults: bool) -> Value {
        let mut conf = Map::new();
        // What monitors of Celery look for in every worker, and what is so here.
        if let Value::Object(common) = json!({
            "enable_utc": true, "timezone": "UTC", "include": [], "deprecated_settings": null, "broker_heartbeat": 0,
            "worker_hijack_root_logger": true, "worker_log_color": false,
        }) {
            conf.extend(common);
        }
        if with_defaults {
            conf.extend(self.options.conf_defaults.clone());
        }
        conf.extend(self.options.conf.clone());
        conf.into()
    }

    /// In the form of Celery's bug report.
    fn report(&self) -> String {
        let (system, kernel) = (facts::system(), facts::kernel());
        let results = self.options.backend.as_ref();
        let results = results.map_or_else(|| "disabled".to_owned(), ToString::to_string);
        let mut report = format!(
            "\nsoftware -> celery:5.7 (its protocol) {IDENT}:{VERSION} rust\n\
             platform -> system:{system} arch:{arch}\n            kernel version:{kernel}\n\
             loader   -> {IDENT}\n\
             settings -> transport:redis results:{results}\n\n",
            arch = std::env::consts::ARCH,
        );
        for (name, value) in &self.options.conf {
            report.push_str(&format!("{name}: {}\n", crate::wire::repr(value)));
        }
        report
    }

    fn sample_memory(&mut self) -> Value {
        let sample = megabytes();
        let samples = &mut self.panel.samples;
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample.clone());
        sample.into()
    }

    /// In the form of `celery.utils.debug.memdump`.
    fn dump_memory(&self, arguments: &Arguments<'_>) -> Value {
        let wanted = arguments.number("samples").ok().flatten().unwrap_or(10);
        let samples = &self.panel.samples;
        let mut text = String::new();
        if !samples.is_empty() {
            text.push_str("- rss (sample):\n");
            for sample in samples.iter().skip(samples.len().saturating_sub(wanted)) {
                text.push_str(&format!("-    > {sample},\n"));
            }
        }
        text.push_str(&format!("- rss (end): {}.\n", megabytes()));
        text.into()
    }

    /// Another worker introduces itself (P-197): both learn what the other has revoked.
    fn hello(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let from = arguments.text("from_node")?;
        if from == self.options.hostname {
            return Ok(Some(Value::Null));
        }
        info!("sync with {}", short(from));
        let now = clock::instant();
        // Celery before 5.7 sends ids with their times, which mean nothing here.
        if let Some(Value::Object(ids)) = arguments.get("revoked") {
            self.revoked.merge(ids.keys().map(String::as_str), now);
        } else if let Ok(ids) = arguments.texts("revoked") {
            self.revoked.merge(ids.into_iter(), now);
        }
        self.revoked.purge(now);
        let revoked: Vec<String> = self.revoked.ids().map(ToString::to_string).collect();
        Ok(Some(json!({"revoked": revoked, "clock": self.events.tick()})))
    }
}

fn megabytes() -> String {
    format!("{:.2}MB", facts::resident_bytes() as f64 / 1e6)
}

/// An attribute of a task class under Celery's name, as Python shows it; `None` where it would be None or is unknown.
fn attribute(entry: &task::Entry, policy: &task::Options, name: &str) -> Option<String> {
    let flag = |value: bool| Some(if value { "True" } else { "False" }.to_owned());
    let seconds = |value: Option<std::time::Duration>| value.map(|value| value.as_secs_f64().to_string());
    match name {
        "name" => Some(entry.name.to_string()),
        "description" => entry.description.as_deref().map(str::to_owned),
        "version" => entry.version(),
        "rate_limit" => policy.rate_limit.map(|limit| limit.to_string()),
        "max_retries" => policy.max_retries.map(|max| max.to_string()),
        "default_retry_delay" => seconds(Some(policy.default_retry_delay)),
        "time_limit" => seconds(policy.time_limit),
        "soft_time_limit" => seconds(policy.soft_time_limit),
        "acks_late" => flag(policy.acks_late),
        "ignore_result" => flag(policy.ignore_result),
        "store_errors_even_if_ignored" => flag(policy.store_errors_even_if_ignored),
        "track_started" => flag(policy.track_started),
        "send_events" => flag(policy.send_events),
        _ => None,
    }
}
