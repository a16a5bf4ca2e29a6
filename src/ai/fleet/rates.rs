//! Limits in a time, of all workers together: so many calls or tokens a minute, so many seconds of model servers an
//! hour.
//!
//! A limit is a line (GCRA): who comes is told when it is its turn, and that moment is its own, so that nobody
//! overtakes and nobody asks twice. What a call will use is not known before it has: it is charged what calls used so
//! far, and the difference when it is over.

use std::sync::LazyLock;
use std::time::Duration;

use redis::Script;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::ollama::{Answer, Limited, Usage};
use super::Fleet;
use super::accounts::{Caller, Named};
use super::calls::{Hear, Heard, Trouble};
use crate::conn::Link;

/// A turn that comes sooner is waited for in the place of the task; for a later one the task is put off.
const PATIENCE: Duration = Duration::from_millis(500);
/// What may come at once where nothing is said: what a tenth of the time allows.
const BURST: f64 = 0.1;
/// Tokens that a first call is charged for its answer; from then on calls are charged the mean.
const FIRST_ANSWER: f64 = 256.0;
/// Bytes of a request that are about a token.
const BYTES_OF_A_TOKEN: f64 = 4.0;

/// Gives a turn. KEYS: the ticket of the call, then the limits (hashes: what is charged until when, and means). ARGV:
/// the meters as JSON: which limit (its place in KEYS), what it counts, milliseconds for one of it, how far ahead of
/// its time a call may come, the first guess. Gives the milliseconds until the turn, since when it is waited for, which
/// meter is the reason, and what was charged.
static TURN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ticket = redis.call('GET', KEYS[1])
if ticket then
  local t = cjson.decode(ticket)
  if t.at <= now then redis.call('DEL', KEYS[1]) end
  return {math.max(0, math.ceil(t.at - now)), math.max(0, now - t.since), t.by, t.costs}
end
local meters, wait, by, costs, charged = cjson.decode(ARGV[1]), 0, 0, {}, {}
for i, m in ipairs(meters) do
  local state = redis.call('HMGET', KEYS[m.limit], m.what, 'mean ' .. m.what)
  local taken = math.max(tonumber(state[1] or 0), now)
  local cost = m.fixed and m.guess or tonumber(state[2] or m.guess)
  if taken - m.ahead - now > wait then wait, by = taken - m.ahead - now, i end
  costs[i] = string.format('%.3f', cost)
  charged[i] = taken + cost * m.ms
end
for i, m in ipairs(meters) do
  redis.call('HSET', KEYS[m.limit], m.what, string.format('%.3f', charged[i]))
  redis.call('PEXPIRE', KEYS[m.limit], math.ceil(charged[i] - now) + 86400000)
end
if wait > 0 then
  redis.call('SET', KEYS[1], cjson.encode({at = now + math.ceil(wait), since = now, by = by, costs = costs}), 'PX', math.ceil(wait) + 3600000)
end
return {math.ceil(wait), 0, by, costs}
",
    )
});

/// Charges what a call really used. KEYS: the limits. ARGV: as JSON, for each meter which limit, what, milliseconds for
/// one, what was charged, what was used.
static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
for _, m in ipairs(cjson.decode(ARGV[1])) do
  local state = redis.call('HMGET', KEYS[m.limit], m.what, 'mean ' .. m.what)
  if state[1] then
    redis.call('HSET', KEYS[m.limit], m.what, string.format('%.3f', tonumber(state[1]) + (m.used - m.charged) * m.ms))
    redis.call('HSET', KEYS[m.limit], 'mean ' .. m.what, string.format('%.3f', (tonumber(state[2] or m.used) * 3 + m.used) / 4))
  end
end
",
    )
});

/// The scripts of this file, for the connection that is to know them.
pub(super) fn scripts() -> [Script; 2] {
    [TURN.clone(), SETTLE.clone()]
}

/// A line of `ai_rate_limits`: how much calls may use in a time that fit all that it names.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Of this task, with `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Of this template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Of this model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Of this tenant; `*` is each that has a name, together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// One limit for each value of this: `task`, `template`, `model`, `tenant`, or a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub each: Option<String>,
    /// Calls a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<f64>,
    /// Tokens a minute, in and out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<f64>,
    /// Seconds of model servers an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_seconds: Option<f64>,
    /// The seconds whose share may come at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<f64>,
}

/// One thing that a limit counts.
#[derive(Clone, Copy)]
struct Meter {
    what: &'static str,
    words: &'static str,
    most: f64,
    period: Duration,
}

impl Rate {
    fn named(&self) -> Named<'_> {
        Named {
            task: self.task.as_deref(),
            template: self.template.as_deref(),
            model: self.model.as_deref(),
            tenant: self.tenant.as_deref(),
        }
    }

    fn meters(&self) -> impl Iterator<Item = Meter> {
        let meter = |what, words, most: Option<f64>, seconds| {
            most.map(|most| Meter {
                what,
                words,
                most,
                period: Duration::from_secs(seconds),
            })
        };
        [
            meter("requests", "requests a minute", self.requests, 60),
            meter("tokens", "tokens a minute", self.tokens, 60),
            meter("gpu_seconds", "GPU-seconds an hour", self.gpu_seconds, 3_600),
        ]
        .into_iter()
        .flatten()
    }

    /// # Errors
    /// A text for people: it says nothing, or what cannot be.
    pub(super) fn check(&self, before: &[Self]) -> Result<(), String> {
        let wrong = |text: &str| Err(format!("ai_rate_limits: {}: {text}", self.named().words()));
        if self.meters().next().is_none() {
            return wrong("say how many requests or tokens a minute, or gpu_seconds an hour");
        }
        if self.meters().any(|meter| !(meter.most.is_finite() && meter.most > 0.0)) {
            return wrong("requests, tokens and gpu_seconds must be more than 0");
        }
        if self.burst.is_some_and(|burst| !(0.0..=86_400.0).contains(&burst)) {
            return wrong("burst must be seconds, 0 to 86400");
        }
        let counts = |rate: &Self, what| rate.meters().any(|meter| meter.what == what);
        let is_twice = |other: &Self| {
            (other.named(), &other.each) == (self.named(), &self.each)
                && self.meters().any(|meter| counts(other, meter.what))
        };
        if before.iter().any(is_twice) {
            return wrong("is limited twice in the same way");
        }
        Ok(())
    }

    /// Which of its lines a call stands in: `None` where it is not for that call.
    fn line(&self, caller: &Caller<'_>, model: &str) -> Option<String> {
        let named = self.named();
        if !named.are_of(caller, model) {
            return None;
        }
        let Some(each) = &self.each else {
            return Some(named.words());
        };
        let value = match each.as_str() {
            "model" => super::canonical(model),
            other => caller.named(other)?,
        };
        Some(match named.words().as_str() {
            "everything" => format!("{each} {value}"),
            words => format!("{words}, {each} {value}"),
        })
    }
}

/// A turn that was given: what was charged for it.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// How long it was waited for, and for which limit.
    pub limited: Option<Limited>,
    keys: Vec<String>,
    charged: Vec<Charge>,
}

#[derive(Debug, Serialize)]
struct Charge {
    limit: usize,
    what: &'static str,
    ms: f64,
    charged: f64,
    used: f64,
}

impl Fleet {
    /// Waits until it is a call's turn; where that is long, the task is to be put off. `bytes` is how large the request
    /// is.
    ///
    /// Without an answer of Redis nobody waits.
    pub(super) async fn turn(
        &self,
        model: &str,
        bytes: usize,
        ticket: &str,
        caller: &Caller<'_>,
        hear: Hear<'_>,
    ) -> Result<Turn, Trouble> {
        let lines: Vec<(&Rate, String)> = self
            .options()
            .rates
            .iter()
            .filter_map(|rate| Some((rate, rate.line(caller, model)?)))
            .collect();
        if lines.is_empty() {
            return Ok(Turn::default());
        }
        let Some(link) = self.link().await else {
            return Ok(Turn::default());
        };
        let prefix = self.options().redis.as_ref().map_or("", |(_, prefix)| prefix);
        let mut turn = Turn::default();
        let (mut meters, mut words) = (Vec::new(), Vec::new());
        for (at, (rate, line)) in lines.iter().enumerate() {
            turn.keys.push(format!("{prefix}orchestra:rate:{line}"));
            for meter in rate.meters() {
                let period = meter.period.as_secs_f64() * 1000.0;
                let ahead = rate.burst.map_or(period * BURST, |seconds| seconds * 1000.0);
                #[expect(clippy::cast_precision_loss, reason = "bytes of a request")]
                let guess = match meter.what {
                    "tokens" => bytes as f64 / BYTES_OF_A_TOKEN + FIRST_ANSWER,
                    _ => 1.0,
                };
                let (ms, fixed) = (period / meter.most, meter.what == "requests");
                // KEYS begins with the ticket.
                meters.push(json!({
                    "limit": at + 2, "what": meter.what, "ms": ms, "ahead": ahead, "guess": guess, "fixed": fixed,
                }));
                turn.charged.push(Charge {
                    limit: at + 1,
                    what: meter.what,
                    ms,
                    charged: 0.0,
                    used: 1.0,
                });
                words.push(format!("{line}: {} {}", meter.most, meter.words));
            }
        }
        let mut keys = vec![format!("{prefix}orchestra:turn:{}:{ticket}", caller.id)];
        keys.extend(turn.keys.iter().cloned());
        let argument = json!(meters).to_string();
        let mut waited = Duration::ZERO;
        loop {
            let Some((wait, since, by, costs)) = ask(link, &keys, &argument).await else {
                return Ok(Turn::default());
            };
            for (charge, cost) in turn.charged.iter_mut().zip(costs) {
                charge.charged = cost;
            }
            let by = by.checked_sub(1).and_then(|by| words.get(by).cloned());
            waited = waited.max(since);
            if wait.is_zero() {
                turn.limited = by.map(|by| Limited {
                    by,
                    waited_s: waited.as_secs_f64(),
                });
                return Ok(turn);
            }
            let by = by.unwrap_or_default();
            hear(Heard::Limited(by.clone(), wait));
            if wait > PATIENCE && caller.may_be_put_off {
                return Err(Trouble::Later(by, wait));
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Charges what an answer took, and gives it back.
    pub(super) async fn settled(&self, turn: Turn, answer: Box<Answer>) -> Box<Answer> {
        self.settle_turn(turn, answer.usage, answer.timing.total_s).await;
        answer
    }

    /// Charges what a call used.
    pub(super) async fn settle_turn(&self, mut turn: Turn, usage: Usage, seconds: f64) {
        if turn.charged.is_empty() {
            return;
        }
        let Some(link) = self.link().await else { return };
        for charge in &mut turn.charged {
            #[expect(clippy::cast_precision_loss, reason = "tokens of a call")]
            match charge.what {
                "tokens" => charge.used = usage.total_tokens as f64,
                "gpu_seconds" => charge.used = seconds,
                _ => {}
            }
        }
        // Charged once, when the call began: a number that is lost makes a limit a little wrong.
        let _ = run::<redis::Value>(link, &SETTLE, &turn.keys, &json!(turn.charged).to_string()).await;
    }
}

/// The wait, how long it has been waited, the place of the meter that is the reason, and the costs.
async fn ask(link: &Link, keys: &[String], argument: &str) -> Option<(Duration, Duration, usize, Vec<f64>)> {
    let answer = run::<(u64, u64, usize, Vec<f64>)>(link, &TURN, keys, argument).await;
    match answer {
        Ok((wait, since, by, costs)) => Some((Duration::from_millis(wait), Duration::from_millis(since), by, costs)),
        Err(error) => {
            tracing::warn!("limits of ai_rate_limits are not kept: {error}");
            None
        }
    }
}

async fn run<T: redis::FromRedisValue>(
    link: &Link,
    script: &Script,
    keys: &[String],
    argument: &str,
) -> Result<T, crate::conn::Error> {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script.get_hash()).arg(keys.len()).arg(keys).arg(argument);
    link.query(&command).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_stands_in_the_line_of_its_value() {
        let rate = |text: &str| serde_json::from_str::<Rate>(text).unwrap();
        let mut caller = Caller::of("t");
        caller.tenant = Some("acme");
        let line = |text: &str, caller: &Caller<'_>| rate(text).line(caller, "M");
        assert_eq!(line(r#"{"requests": 1}"#, &caller).as_deref(), Some("everything"));
        assert_eq!(
            line(r#"{"requests": 1, "model": "m", "each": "tenant"}"#, &caller).as_deref(),
            Some("model m, tenant acme")
        );
        assert_eq!(
            line(r#"{"requests": 1, "each": "model"}"#, &caller).as_deref(),
            Some("model m:latest")
        );
        assert_eq!(line(r#"{"requests": 1, "tenant": "other"}"#, &caller), None);
        assert_eq!(
            line(r#"{"requests": 1, "each": "user"}"#, &caller),
            None,
            "it has no such header"
        );
    }

    #[test]
    fn a_limit_that_says_nothing_is_refused() {
        let read = |text: &str| serde_json::from_str::<Rate>(text).unwrap();
        let check = |text: &str| read(text).check(&[read(r#"{"tenant": "a", "requests": 5}"#)]);
        assert!(check(r#"{"tokens": 1000, "burst": 0}"#).is_ok());
        assert_eq!(
            check(r#"{"model": "m"}"#).unwrap_err(),
            "ai_rate_limits: model m: say how many requests or tokens a minute, or gpu_seconds an hour"
        );
        assert!(check(r#"{"tenant": "a", "tokens": 5}"#).is_ok());
        assert!(
            check(r#"{"tenant": "a", "requests": 6}"#)
                .unwrap_err()
                .contains("twice")
        );
        assert!(check(r#"{"requests": 0}"#).unwrap_err().contains("more than 0"));
        assert!(check(r#"{"requests": 1, "burst": -1}"#).unwrap_err().contains("burst"));
    }
}
