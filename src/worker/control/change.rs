//! Commands that change something; those for queues, the pool and revokes have files of their own.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tracing::{info, warn};

use super::{Answer, Arguments, error_reply, ok, text_repr};
use crate::clock;
use crate::task::RateLimit;
use crate::worker::consumer::{Consumer, Key};
use crate::worker::outbox::Out;
use crate::worker::request::{Hold, State};

impl Consumer {
    /// Carries out a command; `None` when there is no such command.
    pub(super) fn change(&mut self, name: &str, arguments: &Arguments<'_>) -> Option<Result<Answer, String>> {
        Some(match name {
            "revoke" => self.revoke(arguments, arguments.flag("terminate")),
            "terminate" => self.revoke(arguments, true),
            "revoke_by_stamped_headers" => self.revoke_by_stamps(arguments),
            "rate_limit" => self.rate_limit(arguments),
            "time_limit" => self.time_limit(arguments),
            "enable_events" => self.enable_events(),
            "disable_events" => self.disable_events(),
            "heartbeat" => {
                self.out
                    .extend(self.events.worker("worker-heartbeat", None).map(Out::Broker));
                Ok(Some(Value::Null))
            }
            "election" => self.election(arguments),
            "pool_grow" => self.grow(arguments),
            "pool_shrink" => self.shrink(arguments),
            "pool_restart" => self.restart(),
            "autoscale" => self.set_autoscale(arguments),
            "add_consumer" => self.add_consumer(arguments),
            "cancel_consumer" => self.cancel_consumer(arguments),
            "shutdown" => {
                warn!("Got shutdown from remote");
                self.shutdown.warm();
                Ok(None)
            }
            _ => return None,
        })
    }

    fn enable_events(&mut self) -> Result<Answer, String> {
        if !self.events.enable_tasks() {
            return ok("task events already enabled");
        }
        info!("Events of group {{task}} enabled by remote.");
        ok("task events enabled")
    }

    fn disable_events(&mut self) -> Result<Answer, String> {
        if !self.events.disable_tasks() {
            return ok("task events already disabled");
        }
        info!("Events of group {{task}} disabled by remote.");
        ok("task events disabled")
    }

    fn election(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let (id, topic) = (arguments.text("id")?, arguments.text("topic")?);
        self.hold_election(id, topic, arguments.get("action").unwrap_or(&Value::Null))?;
        Ok(Some(Value::Null))
    }

    fn rate_limit(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let name = arguments.text("task_name")?.to_owned();
        let rate = match arguments.get("rate_limit") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let limit = match RateLimit::parse(&rate) {
            Ok(limit) => limit,
            Err(error) => {
                return error_reply(format!("Invalid rate limit string: ValueError({})", text_repr(&error)));
            }
        };
        if !self.registry.change(&name, |options| options.rate_limit = limit) {
            return error_reply("unknown task");
        }
        self.rate_limits.reset(&name);
        self.wake_limited(&name);
        // As Python asks: `"0"` is something, though it is no limit either.
        let is_nothing = match arguments.get("rate_limit") {
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Number(number)) => number.as_f64() == Some(0.0),
            _ => true,
        };
        if is_nothing {
            info!("Rate limits disabled for tasks of type {name}");
            return ok("rate limit disabled successfully");
        }
        info!("New rate limit for tasks of type {name}: {rate}.");
        ok("new rate limit set successfully")
    }

    /// Tasks that wait for a place under the old limit get in line for one under the new, in their order.
    fn wake_limited(&mut self, name: &str) {
        let now = clock::instant();
        for (key, active) in &mut self.active {
            let waits = matches!(
                active.state,
                State::Held {
                    why: Hold::RateLimit,
                    ..
                }
            );
            if waits && *active.request.entry.name == *name {
                active.has_place = false;
                active.due = Some(now);
                self.timers.set(now, *key);
            }
        }
    }

    fn time_limit(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let name = arguments.get("task_name").and_then(Value::as_str).unwrap_or_default();
        let limit = |which: &str| -> Result<Option<Duration>, String> {
            let seconds = match arguments.get(which) {
                None => return Ok(None),
                Some(Value::String(text)) => text.parse().ok(),
                Some(value) => value.as_f64(),
            };
            let limit = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            let limit = limit.ok_or_else(|| format!("ValueError('{which} is no number of seconds')"))?;
            Ok((!limit.is_zero()).then_some(limit))
        };
        let (hard, soft) = (limit("hard")?, limit("soft")?);
        let known = self.registry.change(name, |options| {
            options.time_limit = hard;
            options.soft_time_limit = soft;
        });
        if !known {
            return error_reply("unknown task");
        }
        let name = name.to_owned();
        self.apply_limits(&name, hard, soft);
        let shown =
            |limit: Option<Duration>| limit.map_or_else(|| "None".to_owned(), |limit| limit.as_secs_f64().to_string());
        info!(
            "New time limits for tasks of type {name}: soft={} hard={}",
            shown(soft),
            shown(hard)
        );
        ok("time limits set successfully")
    }

    /// Tasks that were received and have not started get the new limits too, which Celery forgets.
    fn apply_limits(&mut self, name: &str, hard: Option<Duration>, soft: Option<Duration>) {
        let (hard, soft) = (hard.or(self.options.time_limit), soft.or(self.options.soft_time_limit));
        let waiting: Vec<Key> = self
            .active
            .iter()
            .filter(|(_, active)| *active.request.entry.name == *name && active.context.is_none())
            .map(|(key, _)| *key)
            .collect();
        for key in waiting {
            // Nobody else has a request that has not started.
            if let Some(active) = self.active.get_mut(&key)
                && let Some(request) = Arc::get_mut(&mut active.request)
            {
                request.policy.time_limit = hard;
                request.policy.soft_time_limit = soft;
            }
        }
    }
}
