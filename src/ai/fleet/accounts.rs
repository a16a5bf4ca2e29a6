//! What is used: tokens, seconds and calls per task, template, model and tenant; and budgets, which refuse a call or
//! give it a smaller model when they are used up.
//!
//! The figures are in Redis, in one hash for each hour, day and month. A call is counted when it is over, so those that
//! run at the same time may go a little beyond a budget.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::ollama::Usage;
use super::super::schema::Shape;
use super::Fleet;
use super::calls::Trouble;
use super::catalog::{canonical, fits};
use super::strategy::Strategy;
use crate::clock::{self, Instant};
use crate::conn::Link;
use crate::wire::Headers;

/// Bytes of a question that are about a token.
const BYTES_OF_A_TOKEN: usize = 4;

/// Who asks, and how.
#[derive(Debug)]
pub(in crate::ai) struct Caller<'a> {
    /// Name of the task.
    pub task: &'a str,
    /// The template.
    pub template: Option<&'a str>,
    /// For whom: the header `tenant` of the message.
    pub tenant: Option<&'a str>,
    /// 0 to 9, high is first.
    pub priority: u8,
    /// How long the answer may be given again.
    pub cache: Option<Duration>,
    /// How its host is chosen, where the call says so.
    pub routing: Option<&'a Strategy>,
    /// Id of the task.
    pub id: &'a str,
    /// The headers of its message.
    pub headers: Option<&'a Headers>,
    /// Whether the task can be put off, and run again later.
    pub may_be_put_off: bool,
    /// What its answer must be to be given again.
    pub shape: Option<&'a Shape>,
}

impl Caller<'_> {
    /// What it has under a name: `task`, `template`, `tenant`, or a header or stamp of its message.
    pub(super) fn named(&self, name: &str) -> Option<String> {
        match name {
            "task" => return Some(self.task.to_owned()),
            "template" => return self.template.map(str::to_owned),
            "tenant" => return self.tenant.map(str::to_owned),
            _ => {}
        }
        let headers = self.headers?;
        let stamp = || headers.stamps.as_ref()?.get(name);
        match headers.extra.get(name).or_else(stamp)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }
}

/// What a line of the settings is for: the calls that fit all it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub task: Option<&'a str>,
    pub template: Option<&'a str>,
    pub model: Option<&'a str>,
    pub tenant: Option<&'a str>,
}

impl Named<'_> {
    /// Whether a call is one of them.
    pub(super) fn are_of(&self, caller: &Caller<'_>, model: &str) -> bool {
        let is = |wanted: Option<&str>, has: Option<&str>| match wanted {
            None => true,
            Some(pattern) => has.is_some_and(|has| has == pattern || (pattern.contains('*') && fits(has, pattern))),
        };
        self.model.is_none_or(|pattern| fits(&canonical(model), pattern))
            && is(self.task, Some(caller.task))
            && is(self.template, caller.template)
            && is(self.tenant, caller.tenant)
    }

    /// In words.
    pub(super) fn words(&self) -> String {
        let parts = [
            ("task", self.task),
            ("template", self.template),
            ("model", self.model),
            ("tenant", self.tenant),
        ];
        let named: Vec<String> = parts
            .iter()
            .filter_map(|(what, who)| Some(format!("{what} {}", (*who)?)))
            .collect();
        if named.is_empty() {
            "everything".into()
        } else {
            named.join(", ")
        }
    }
}

/// A line of `ai_budgets`: a bound on what calls may use that fit all that it names.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
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
    /// Tokens in and out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Seconds of model servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// In which time.
    #[serde(default)]
    pub per: Period,
    /// The model that is asked instead; without one the call is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downgrade_to: Option<String>,
}

/// A stretch of time, in UTC.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// From hour to hour.
    Hour,
    /// From midnight to midnight.
    #[default]
    Day,
    /// From month to month.
    Month,
}

impl Period {
    /// The name of the current one.
    fn now(self) -> String {
        let now = clock::iso(clock::now());
        let length = match self {
            Self::Hour => 13,
            Self::Day => 10,
            Self::Month => 7,
        };
        now.get(..length).unwrap_or_default().to_owned()
    }

    /// How long its figures are kept, in seconds.
    fn kept(self) -> u64 {
        86_400
            * match self {
                Self::Hour => 2,
                Self::Day => 62,
                Self::Month => 750,
            }
    }

    /// Its name in settings, keys and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

impl Budget {
    /// Whether a call counts for it.
    fn is_for(&self, caller: &Caller<'_>, model: &str) -> bool {
        self.named().are_of(caller, model)
    }

    /// Whether a call is for the smaller model already: a budget that has one refuses nobody.
    fn ends_with(&self, model: &str) -> bool {
        let smaller = self.downgrade_to.as_deref();
        smaller.is_some_and(|smaller| canonical(smaller) == canonical(model))
    }

    fn named(&self) -> Named<'_> {
        Named {
            task: self.task.as_deref(),
            template: self.template.as_deref(),
            model: self.model.as_deref(),
            tenant: self.tenant.as_deref(),
        }
    }

    /// Its name in the accounts and for people.
    pub fn name(&self) -> String {
        self.named().words()
    }
}

/// One line of a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Used {
    /// `task`, `template`, `model`, `tenant` or `budget`.
    pub what: String,
    /// Its name.
    pub name: String,
    /// In which time: budgets of one name have a line for each of theirs.
    pub per: Period,
    /// Calls.
    pub calls: u64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// Seconds of model servers.
    pub seconds: f64,
}

impl Fleet {
    fn account_key(&self, period: Period, of: &str) -> String {
        let prefix = self.options().redis.as_ref().map_or("", |(_, prefix)| prefix);
        format!("{prefix}orchestra:usage:{}:{of}", period.name())
    }

    /// Another model, where a budget says so; or a refusal.
    pub(super) async fn keep_to_budget(&self, model: &str, caller: &Caller<'_>) -> Result<Option<String>, Trouble> {
        let mut model = model.to_owned();
        let mut downgraded = false;
        // Each budget sends a call on at most once.
        for _ in 0..=self.options().budgets.len() {
            let Some(over) = self.budget_used_up(&model, caller).await else {
                return Ok(downgraded.then_some(model));
            };
            match &over.downgrade_to {
                Some(smaller) => {
                    model.clone_from(smaller);
                    downgraded = true;
                }
                None => {
                    let text = format!("the budget of {} for this {} is used up", over.name(), over.per.name());
                    return Err(Trouble::Budget(text));
                }
            }
        }
        Err(Trouble::Budget(
            "the budgets of ai_budgets send the call around in a circle".into(),
        ))
    }

    async fn budget_used_up(&self, model: &str, caller: &Caller<'_>) -> Option<&Budget> {
        for budget in self
            .options()
            .budgets
            .iter()
            .filter(|budget| budget.is_for(caller, model) && !budget.ends_with(model))
        {
            let link = self.link().await?;
            let name = budget.name();
            let mut command = redis::cmd("HMGET");
            command.arg(self.account_key(budget.per, &budget.per.now()));
            for metric in ["in", "out", "ms"] {
                command.arg(format!("budget\t{name}\t{metric}"));
            }
            // Without an answer of Redis nobody is refused.
            let used: Vec<Option<u64>> = link.query(&command).await.ok()?;
            let used = |at: usize| used.get(at).copied().flatten().unwrap_or(0);
            let tokens = used(0).saturating_add(used(1));
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of a month")]
            let seconds = used(2) as f64 / 1000.0;
            if budget.tokens.is_some_and(|most| tokens >= most) || budget.seconds.is_some_and(|most| seconds >= most) {
                return Some(budget);
            }
        }
        None
    }

    /// Writes down what a call used.
    pub(super) async fn account(&self, caller: &Caller<'_>, model: &str, usage: Usage, seconds: f64) {
        let Some(link) = self.link().await else { return };
        write_down(link, &self.bill(caller, model, 1, usage, seconds)).await;
    }

    /// What is added to the accounts.
    fn bill(&self, caller: &Caller<'_>, model: &str, calls: u64, usage: Usage, seconds: f64) -> redis::Pipeline {
        let budgets = self
            .options()
            .budgets
            .iter()
            .filter(|budget| budget.is_for(caller, model));
        // Each once: several budgets may count the same calls in the same time, such as a soft and a hard bound.
        let mut lines = BTreeSet::from([
            (Period::Day, "model", canonical(model)),
            (Period::Day, "task", caller.task.to_owned()),
        ]);
        lines.extend(caller.template.map(|name| (Period::Day, "template", name.to_owned())));
        lines.extend(caller.tenant.map(|name| (Period::Day, "tenant", name.to_owned())));
        lines.extend(budgets.map(|budget| (budget.per, "budget", budget.name())));
        let milliseconds = u64::try_from(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_millis());
        let figures = [
            ("calls", calls),
            ("in", usage.prompt_tokens),
            ("out", usage.completion_tokens),
            ("ms", milliseconds.unwrap_or(0)),
        ];
        let mut pipe = redis::pipe();
        let mut periods = BTreeMap::new();
        for (period, what, name) in lines {
            let key = self.account_key(period, &period.now());
            for (metric, count) in figures {
                pipe.hincr(&key, format!("{what}\t{name}\t{metric}"), count).ignore();
            }
            periods.insert(key, period.kept());
        }
        for (key, seconds) in periods {
            pipe.expire(key, i64::try_from(seconds).unwrap_or(i64::MAX)).ignore();
        }
        pipe
    }

    /// What was used on a day, such as `2026-11-25`, today if none is named; and of the budgets now.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn used(&self, day: Option<&str>) -> Result<Vec<Used>, String> {
        let Some(link) = self.link().await else {
            return Err("the accounts are in Redis, and there is none".into());
        };
        let today = Period::Day.now();
        let mut all: BTreeMap<(String, String, Period), Used> = BTreeMap::new();
        for per in [Period::Hour, Period::Day, Period::Month] {
            let of = match per {
                Period::Day => day.unwrap_or(&today).to_owned(),
                other => other.now(),
            };
            let fields: std::collections::HashMap<String, u64> = link
                .query(redis::cmd("HGETALL").arg(self.account_key(per, &of)))
                .await
                .map_err(|error| error.to_string())?;
            for (field, count) in fields {
                let mut parts = field.split('\t');
                let (Some(what), Some(name), Some(metric)) = (parts.next(), parts.next(), parts.next()) else {
                    continue;
                };
                let used = all.entry((what.to_owned(), name.to_owned(), per)).or_default();
                (used.what, used.name, used.per) = (what.to_owned(), name.to_owned(), per);
                #[expect(clippy::cast_precision_loss, reason = "milliseconds of a month")]
                match metric {
                    "calls" => used.calls += count,
                    "in" => used.prompt_tokens += count,
                    "out" => used.completion_tokens += count,
                    _ => used.seconds += count as f64 / 1000.0,
                }
            }
        }
        Ok(all.into_values().collect())
    }
}

/// Writes down what a call used. A call that is over does not fail for it.
pub(super) async fn write_down(link: &Link, bill: &redis::Pipeline) {
    let refused = |answer| match answer {
        redis::Value::ServerError(error) => Some(error.to_string()),
        _ => None,
    };
    let trouble = match link.pipeline(bill).await {
        Ok(answers) => answers.into_iter().find_map(refused),
        Err(error) => Some(error.to_string()),
    };
    if let Some(trouble) = trouble {
        tracing::warn!("what a call used is not in the accounts: {trouble}");
    }
}

/// What a call used on a host so far. Dropped before its end it counts all the same: who revokes a call, or lets it run
/// into a time limit, has used the model.
pub(super) struct Unpaid<'a> {
    fleet: &'a Fleet,
    caller: &'a Caller<'a>,
    model: &'a str,
    began: Instant,
    prompt_tokens: u64,
    /// Pieces of the answer, which are about a token each.
    pub pieces: u64,
    calls: u64,
    paid: bool,
}

impl<'a> Unpaid<'a> {
    /// A call that goes to a host now; `bytes` is how large its question is.
    pub(super) fn begin(fleet: &'a Fleet, caller: &'a Caller<'a>, model: &'a str, bytes: usize) -> Self {
        Self {
            fleet,
            caller,
            model,
            began: clock::instant(),
            prompt_tokens: u64::try_from(bytes / BYTES_OF_A_TOKEN).unwrap_or(0),
            pieces: 0,
            calls: 1,
            paid: false,
        }
    }

    /// The first batch of a list is done, the call is not.
    pub(super) fn done(mut self, tokens: u64) -> Self {
        (self.prompt_tokens, self.calls) = (tokens, 0);
        self
    }

    /// One more is.
    pub(super) fn add(&mut self, tokens: u64) {
        self.prompt_tokens += tokens;
    }

    /// The whole is known, and counted elsewhere.
    pub(super) fn paid(mut self) {
        self.paid = true;
    }

    /// The host gave no whole answer, and the call goes on elsewhere or fails: what it said counts, and is no call.
    pub(super) fn broke(mut self) {
        self.paid = self.pieces == 0;
        self.calls = 0;
    }
}

impl Drop for Unpaid<'_> {
    fn drop(&mut self) {
        if self.paid {
            return;
        }
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.pieces,
            total_tokens: self.prompt_tokens + self.pieces,
        };
        let seconds = clock::instant().saturating_duration_since(self.began).as_secs_f64();
        let bill = self.fleet.bill(self.caller, self.model, self.calls, usage, seconds);
        self.fleet.keeper().owe(bill);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    impl<'a> Caller<'a> {
        /// One that says nothing but its task.
        pub(in crate::ai::fleet) fn of(task: &'a str) -> Self {
            Self {
                task,
                template: None,
                tenant: None,
                priority: 0,
                cache: None,
                routing: None,
                id: "1",
                headers: None,
                may_be_put_off: false,
                shape: None,
            }
        }
    }

    #[test]
    fn a_budget_is_for_calls_that_fit_all_it_names() {
        let budget: Budget = serde_json::from_value(json!({"tenant": "a*", "model": "m", "tokens": 5})).unwrap();
        let caller = |tenant| Caller {
            tenant,
            ..Caller::of("t")
        };
        assert!(budget.is_for(&caller(Some("acme")), "M:latest"));
        assert!(!budget.is_for(&caller(Some("other")), "m"));
        assert!(!budget.is_for(&caller(None), "m"));
        assert!(!budget.is_for(&caller(Some("acme")), "n"));
        assert_eq!(
            (budget.name(), budget.per),
            ("model m, tenant a*".to_owned(), Period::Day)
        );
        assert_eq!(Period::Hour.now().len(), 13);
    }
}
