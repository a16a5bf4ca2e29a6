//! Commands that change something (protocol 7.6).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::info;

use super::{Answer, Arguments};
use crate::clock;
use crate::task::RateLimit;
use crate::worker::consumer::{Consumer, Key};
use crate::worker::request::Input;
use crate::worker::writer::Out;

impl Consumer {
    /// Carries out a command; `None` when there is no such command.
    pub(super) fn change(&mut self, method: &str, arguments: &Arguments<'_>) -> Option<Result<Answer, String>> {
        Some(match method {
            "revoke" => self.revoke(arguments, arguments.flag("terminate")),
            "terminate" => self.revoke(arguments, true),
            "rate_limit" => self.rate_limit(arguments),
            "time_limit" => self.time_limit(arguments),
            "enable_events" => {
                let enabled = self.events.enable_tasks();
                ok(if enabled {
                    "task events enabled"
                } else {
                    "task events already enabled"
                })
            }
            "disable_events" => {
                let disabled = self.events.disable_tasks();
                ok(if disabled {
                    "task events disabled"
                } else {
                    "task events already disabled"
                })
            }
            "heartbeat" => {
                self.out
                    .extend(self.events.worker("worker-heartbeat", None).map(Out::Broker));
                Ok(None)
            }
            "election" => Ok(None),
            "pool_grow" => self.grow(arguments),
            "pool_shrink" => self.shrink(arguments),
            "pool_restart" => Err("ValueError('Pool restarts not enabled')".into()),
            "autoscale" => Err("ValueError('Autoscale not enabled')".into()),
            "add_consumer" => self.add_consumer(arguments),
            "cancel_consumer" => self.cancel_consumer(arguments),
            "shutdown" => {
                info!("shutdown asked for by remote control");
                self.shutdown.warm();
                Ok(None)
            }
            _ => return None,
        })
    }

    fn revoke(&mut self, arguments: &Arguments<'_>, terminate: bool) -> Result<Answer, String> {
        let ids = arguments.texts("task_id")?;
        let signal = terminate.then(|| signal_number(arguments.get("signal"))).transpose()?;
        let now = clock::instant();
        let mut terminated = Vec::new();
        for id in &ids {
            self.revoked.add(id.clone(), now);
            let known: Vec<Key> = self
                .active
                .iter()
                .filter(|(_, active)| *active.request.id == **id)
                .map(|(key, _)| *key)
                .collect();
            if known.is_empty() {
                self.out.extend(self.scribe.revoked(id));
            } else if signal.is_some() {
                terminated.push(id.as_str());
            }
            for key in known {
                self.step(key, Input::Revoked { terminate: signal });
            }
        }
        info!("tasks flagged as revoked: {}", ids.join(", "));
        match (terminate, &terminated[..]) {
            (true, []) => ok("terminate: tasks unknown"),
            (true, ids) => ok(format!("terminate: {}", ids.join(", "))),
            (false, _) => {
                let set: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
                ok(format!("tasks {{{}}} flagged as revoked", set.join(", ")))
            }
        }
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
            Err(error) => return error_reply(format!("Invalid rate limit string: ValueError({error:?})")),
        };
        if !self.registry.change(&name, |options| options.rate_limit = limit) {
            return error_reply("unknown task");
        }
        self.rate_limits.reset(&name);
        ok(if limit.is_some() {
            "new rate limit set successfully"
        } else {
            "rate limit disabled successfully"
        })
    }

    fn time_limit(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let name = arguments.text("task_name")?.to_owned();
        let limit = |which: &str| -> Result<Option<Duration>, String> {
            let seconds = match arguments.get(which) {
                None => return Ok(None),
                Some(Value::String(text)) => text.parse().ok(),
                Some(value) => value.as_f64(),
            };
            let seconds: f64 = seconds.ok_or_else(|| format!("ValueError('{which} is not a number')"))?;
            let limit =
                Duration::try_from_secs_f64(seconds).map_err(|_| format!("ValueError('{which} is no duration')"))?;
            Ok((!limit.is_zero()).then_some(limit))
        };
        let (hard, soft) = (limit("hard")?, limit("soft")?);
        let known = self.registry.change(&name, |options| {
            options.time_limit = hard;
            options.soft_time_limit = soft;
        });
        if known {
            ok("time limits set successfully")
        } else {
            error_reply("unknown task")
        }
    }

    fn grow(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let by = arguments.number("n", 1)?.min(100_000);
        self.pool.grow(by);
        let credit = by * self.options.prefetch_multiplier as usize;
        self.prefetch += credit;
        self.credit.add_permits(credit);
        ok("pool will grow")
    }

    fn shrink(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let by = arguments.number("n", 1)?;
        if !self.pool.shrink(by) {
            return Err("ValueError(\"Can't shrink pool. All processes busy!\")".into());
        }
        let credit = (by * self.options.prefetch_multiplier as usize).min(self.prefetch);
        // What is in use at the moment stays so; the count is smaller from then on.
        self.prefetch -= self.credit.forget_permits(credit);
        ok("pool will shrink")
    }

    fn add_consumer(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let name = arguments.text("queue")?.to_owned();
        if name.is_empty() || name.len() > 255 {
            return Err("ValueError('a queue name has 1 to 255 characters')".into());
        }
        let queue: Arc<str> = name.as_str().into();
        let added = self.queues.send_if_modified(|queues| {
            let new = !queues.contains(&queue);
            if new {
                queues.push(queue.clone());
            }
            new
        });
        if added {
            self.out.push(Out::Broker(crate::broker::Write::Declare(queue)));
            ok(format!("add consumer {name}"))
        } else {
            ok(format!("already consuming from {name}"))
        }
    }

    fn cancel_consumer(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let name = arguments.text("queue")?.to_owned();
        self.queues.send_if_modified(|queues| {
            let before = queues.len();
            queues.retain(|queue| **queue != *name);
            queues.len() != before
        });
        ok(format!("no longer consuming from {name}"))
    }
}

fn ok(text: impl Into<String>) -> Result<Answer, String> {
    Ok(Some(json!({"ok": text.into()})))
}

fn error_reply(text: impl Into<String>) -> Result<Answer, String> {
    Ok(Some(json!({"error": text.into()})))
}

/// `SIGTERM`, `TERM`, `15`; Celery's default is SIGTERM. The signal itself is not sent: the run is ended exactly, and
/// the number is told to the monitors.
fn signal_number(signal: Option<&Value>) -> Result<i32, String> {
    const NAMES: [(&str, i32); 7] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("TERM", 15),
    ];
    let number = match signal {
        None => return Ok(15),
        Some(Value::Number(number)) => number.as_i64().and_then(|number| i32::try_from(number).ok()),
        Some(Value::String(name)) => {
            let short = name.trim_start_matches("SIG");
            let named = NAMES
                .iter()
                .find(|(known, _)| *known == short)
                .map(|(_, number)| *number);
            named.or_else(|| name.parse().ok())
        }
        Some(_) => None,
    };
    number.ok_or_else(|| "ValueError('unknown signal')".into())
}
