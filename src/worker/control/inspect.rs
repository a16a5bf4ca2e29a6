//! Commands that only ask (protocol 7.6 to 7.10).

use serde_json::{Map, Value, json};

use super::request_info::request_info;
use super::{Answer, Arguments};
use crate::clock;
use crate::worker::consumer::{Active, Consumer};
use crate::worker::events::VERSION;
use crate::worker::facts;
use crate::worker::request::{Hold, State};

impl Consumer {
    /// Answers a question; `None` when the method is none.
    pub(super) fn inspect(&mut self, method: &str, arguments: &Arguments<'_>) -> Option<Result<Answer, String>> {
        let answer = match method {
            "ping" => json!({"ok": "pong"}),
            "active" | "dump_active" => self.list(arguments.flag("safe"), |active| {
                matches!(active.state, State::Running { .. })
            }),
            "reserved" | "dump_reserved" => self.list(false, |active| {
                matches!(active.state, State::Received { .. } | State::Reserved { .. })
            }),
            "scheduled" | "dump_schedule" => self.scheduled(),
            "revoked" | "dump_revoked" => self.revoked.ids().collect(),
            "registered" | "dump_tasks" => self.registered(arguments),
            "stats" => self.stats(),
            "active_queues" => self.active_queues(),
            "query_task" => match arguments.texts("ids") {
                Ok(ids) => self.query(&ids),
                Err(error) => return Some(Err(error)),
            },
            "conf" | "dump_conf" => Value::Object(self.options.conf.clone()),
            "report" => json!({"ok": self.report()}),
            "clock" => json!({"clock": self.events.clock()}),
            "memsample" => format!("{:.2}MB", facts::resident_bytes() as f64 / 1e6).into(),
            "memdump" => format!(
                "{:.2}MB resident now; this worker keeps no samples",
                facts::resident_bytes() as f64 / 1e6
            )
            .into(),
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
        self.active
            .values()
            .filter(|active| wanted(active))
            .map(|active| request_info(active, &self.options.hostname, safe))
            .collect()
    }

    fn scheduled(&self) -> Value {
        self.active
            .values()
            .filter(|active| matches!(active.state, State::Held { why: Hold::Eta, .. }))
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
        let shows = |item: &str| wanted.is_empty() || wanted.iter().any(|name| name == item);
        self.registry
            .entries()
            .filter(|entry| builtins || !entry.name.starts_with("celery."))
            .map(|entry| match entry.options.rate_limit {
                Some(limit) if shows("rate_limit") => format!("{} [rate_limit={limit}]", entry.name),
                _ => entry.name.to_string(),
            })
            .collect()
    }

    fn stats(&self) -> Value {
        let totals: Map<String, Value> = self
            .totals
            .iter()
            .map(|(name, count)| (name.to_string(), (*count).into()))
            .collect();
        let seconds = |limit: Option<std::time::Duration>| limit.map_or(0.0, |limit| limit.as_secs_f64());
        let broker = &self.options.broker;
        json!({
            "total": totals,
            "pid": std::process::id(),
            "clock": self.events.clock().to_string(),
            "uptime": clock::instant().saturating_duration_since(self.born).as_secs(),
            "pool": {
                "implementation": "orchestra.worker.pool:Pool",
                "max-concurrency": self.pool.size(),
                "processes": [std::process::id()],
                "max-tasks-per-child": "N/A",
                "put-guarded-by-semaphore": true,
                "timeouts": [seconds(self.options.soft_time_limit), seconds(self.options.time_limit)],
                "writes": {"total": self.processed, "backlog": self.outbox.backlog()},
            },
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
                "heartbeat": 0,
                "failover_strategy": "round-robin",
                "alternates": [],
                "credential_provider": null,
            },
            "prefetch_count": self.prefetch + self.held_for_eta(),
            "rusage": facts::resource_usage(),
        })
    }

    fn held_for_eta(&self) -> usize {
        self.active
            .values()
            .filter(|active| matches!(active.state, State::Held { why: Hold::Eta, .. }))
            .count()
    }

    fn active_queues(&self) -> Value {
        self.queues
            .borrow()
            .iter()
            .map(|queue| {
                json!({
                    "name": queue,
                    "exchange": {
                        "name": queue, "type": "direct", "arguments": null, "durable": true, "passive": false,
                        "auto_delete": false, "delivery_mode": null, "no_declare": false,
                    },
                    "routing_key": queue,
                    "queue_arguments": null,
                    "binding_arguments": null,
                    "consumer_arguments": null,
                    "durable": true,
                    "exclusive": false,
                    "auto_delete": false,
                    "no_ack": false,
                    "alias": null,
                    "bindings": [],
                    "no_declare": null,
                    "expires": null,
                    "message_ttl": null,
                    "max_length": null,
                    "max_length_bytes": null,
                    "max_priority": null,
                })
            })
            .collect()
    }

    fn query(&self, ids: &[String]) -> Value {
        let mut found = Map::new();
        for id in ids {
            let Some(active) = self.by_id.get(id.as_str()).and_then(|key| self.active.get(key)) else {
                continue;
            };
            let state = match active.state {
                State::Running { .. } => "active",
                State::Held { why: Hold::Eta, .. } => "scheduled",
                State::Held { .. } | State::Received { .. } | State::Reserved { .. } => "reserved",
                State::Done => "ready",
            };
            let info = request_info(active, &self.options.hostname, false);
            found.insert(id.clone(), json!([state, info]));
        }
        found.into()
    }

    fn report(&self) -> String {
        format!(
            "software -> orchestra:{VERSION} (rust)\nplatform -> system:{} arch:{}\nbroker   -> {}\nresults  -> {}\n",
            facts::system(),
            std::env::consts::ARCH,
            self.options.broker,
            self.options
                .backend
                .as_ref()
                .map_or_else(|| "disabled".to_owned(), ToString::to_string),
        )
    }

    /// Another worker introduces itself (P-197): both learn what the other has revoked.
    fn hello(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        if arguments.text("from_node")? == self.options.hostname {
            return Ok(None);
        }
        let now = clock::instant();
        for id in arguments.texts("revoked").unwrap_or_default() {
            self.revoked.add(id, now);
        }
        let revoked: Vec<&str> = self.revoked.ids().collect();
        Ok(Some(json!({"revoked": revoked, "clock": self.events.clock()})))
    }
}
