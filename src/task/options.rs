//! Policy of a task. Names and defaults are those of `celery.app.task.Task`.

use std::time::Duration;

use super::{Redact, Unique};
use crate::wire::Exception;

/// What a worker does around a task. Start from [`Options::DEFAULT`].
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Acknowledge after the run rather than before it: a task whose worker died runs again.
    pub acks_late: bool,
    /// With late acks: a failed task is acknowledged. `false` drops it without acknowledgement (Celery's word for
    /// "reject without requeue").
    pub acks_on_failure: bool,
    /// With late acks: a task ended by its hard time limit is acknowledged. `false` puts it back, as often as
    /// `max_deliveries` allows.
    pub acks_on_timeout: bool,
    /// With late acks: a task whose process was lost goes back to its queue instead of failing.
    pub reject_on_worker_lost: bool,
    /// A task whose process was lost is retried, like one that asks for it.
    pub retry_on_worker_lost: bool,
    /// How often it may be retried; `None` is without end.
    pub max_retries: Option<u32>,
    /// Pause before a retry that names none.
    pub default_retry_delay: Duration,
    /// Retry on every [`Failure::Fail`](super::Failure::Fail) as `autoretry_for = (Exception,)` does.
    pub autoretry: bool,
    /// Retry on exceptions of these classes, by name (`ValueError`, or with its module `myapp.errors.Busy`). There are
    /// no base classes here: each class is named.
    pub autoretry_for: &'static [&'static str],
    /// Exceptions that are not retried, whatever `autoretry` and `autoretry_for` say.
    pub dont_autoretry_for: &'static [&'static str],
    /// With `autoretry`: pauses grow as `backoff × 2^retries`; `None` uses `default_retry_delay`.
    pub retry_backoff: Option<Duration>,
    /// Longest pause of `retry_backoff`.
    pub retry_backoff_max: Duration,
    /// Take a random share of the pause.
    pub retry_jitter: bool,
    /// At most so many starts per second in this worker.
    pub rate_limit: Option<RateLimit>,
    /// After this a run is ended: `TimeLimitExceeded`.
    pub time_limit: Option<Duration>,
    /// After this a run is ended as `SoftTimeLimitExceeded`, unless it watches
    /// [`Context::soft_limit`](super::Context::soft_limit) and ends by itself before the hard limit.
    pub soft_time_limit: Option<Duration>,
    /// Largest result, in bytes of JSON; `None` takes the setting of that name.
    pub max_result_bytes: Option<usize>,
    /// Store no result.
    pub ignore_result: bool,
    /// Store failures even if results are ignored.
    pub store_errors_even_if_ignored: bool,
    /// Store the state STARTED.
    pub track_started: bool,
    /// Send task events.
    pub send_events: bool,
    /// Run on a thread of its own, for code that blocks. Such a run cannot be interrupted.
    pub blocking: bool,
    /// Run in a process of its own, which a time limit or `terminate` kills whatever it does, and whose death is this
    /// task's failure and nothing else. Processes are started when they are needed and used again.
    pub process: bool,
    /// As an error callback it is called at once, in the worker where the failure is handled, with the failed task's
    /// request, the exception and the traceback; there is no message and no result. Python workers do this with every
    /// task that takes more than one argument; without it an error callback is sent, with the failed task's id.
    pub errback_inline: bool,
    /// The run writes to the token stream; the worker ends the stream when the run is over.
    pub streams: bool,
    /// Calls with the same arguments are one run.
    pub unique: Option<Unique>,
    /// What of the task is never shown in logs, events and `inspect`, besides arguments named `password`, `token` and
    /// the like.
    pub redact: Redact,
}

impl Options {
    /// Celery's defaults.
    pub const DEFAULT: Self = Self {
        acks_late: false,
        acks_on_failure: true,
        acks_on_timeout: true,
        reject_on_worker_lost: false,
        retry_on_worker_lost: false,
        max_retries: Some(3),
        default_retry_delay: Duration::from_secs(180),
        autoretry: false,
        autoretry_for: &[],
        dont_autoretry_for: &[],
        retry_backoff: None,
        retry_backoff_max: Duration::from_secs(600),
        retry_jitter: true,
        rate_limit: None,
        time_limit: None,
        soft_time_limit: None,
        max_result_bytes: None,
        ignore_result: false,
        store_errors_even_if_ignored: false,
        track_started: false,
        send_events: true,
        blocking: false,
        process: false,
        errback_inline: false,
        streams: false,
        unique: None,
        redact: Redact::Nothing,
    };
}

impl Options {
    /// Whether a failure with this exception is retried without having asked for it.
    pub(crate) fn retries_on(&self, exception: &Exception) -> bool {
        let named = |names: &[&str]| {
            names.iter().any(|name| match name.rsplit_once('.') {
                Some((module, class)) => module == exception.module && class == exception.name,
                None => *name == exception.name,
            })
        };
        (self.autoretry || named(self.autoretry_for)) && !named(self.dont_autoretry_for)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Starts per second, read from Celery's strings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    per_second: f64,
    /// How it was written, for `inspect registered`.
    count: f64,
    unit: Option<char>,
}

impl RateLimit {
    /// Reads `10`, `10/s`, `100/m`, `1000/h`; `0` and an empty text are no limit (`celery.utils.time.rate`).
    ///
    /// # Errors
    /// A text for people: what was wrong with it.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let (count, unit) = match text.split_once('/') {
            Some((count, unit)) => (count, Some(unit.trim())),
            None => (text, None),
        };
        let count: f64 = count
            .trim()
            .parse()
            .map_err(|_| format!("could not convert string to float: '{}'", count.trim()))?;
        let seconds = match unit {
            None | Some("s") => 1.0,
            Some("m") => 60.0,
            Some("h") => 3600.0,
            Some(other) => return Err(format!("unknown unit '{other}': use s, m or h")),
        };
        if !count.is_finite() || count < 0.0 {
            return Err(format!("{count} is no rate"));
        }
        Ok((count > 0.0).then_some(Self {
            per_second: count / seconds,
            count,
            unit: unit.and_then(|unit| unit.chars().next()),
        }))
    }

    /// The pause between two starts.
    pub fn interval(self) -> Duration {
        Duration::try_from_secs_f64(1.0 / self.per_second).unwrap_or(Duration::MAX)
    }
}

impl std::fmt::Display for RateLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.count)?;
        self.unit.map_or(Ok(()), |unit| write!(f, "/{unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_091_exceptions_are_retried_by_name() {
        let policy = Options {
            autoretry_for: &["ValueError", "myapp.errors.Busy"],
            ..Options::DEFAULT
        };
        let busy = |module: &str| Exception::new(module, "Busy", "");
        assert!(policy.retries_on(&Exception::value_error("x")));
        assert!(policy.retries_on(&busy("myapp.errors")));
        assert!(!policy.retries_on(&busy("other")));
        assert!(!policy.retries_on(&Exception::type_error("x")));
        let all = Options {
            autoretry: true,
            dont_autoretry_for: &["ValueError"],
            ..Options::DEFAULT
        };
        assert!(all.retries_on(&busy("other")) && !all.retries_on(&Exception::value_error("x")));
        assert!(!Options::DEFAULT.retries_on(&busy("other")));
    }

    #[test]
    fn p_105_rate_limits_are_read_as_celery_reads_them() {
        let interval = |text| RateLimit::parse(text).unwrap().map(RateLimit::interval);
        assert_eq!(interval("10"), Some(Duration::from_millis(100)));
        assert_eq!(interval("10/s"), Some(Duration::from_millis(100)));
        assert_eq!(interval("2/m"), Some(Duration::from_secs(30)));
        assert_eq!(interval("1/h"), Some(Duration::from_secs(3600)));
        assert_eq!(interval("0"), None);
        assert_eq!(RateLimit::parse("2/m").unwrap().unwrap().to_string(), "2/m");
        assert_eq!(RateLimit::parse("3").unwrap().unwrap().to_string(), "3");
        for bad in ["x", "1/d", "-1", "nan", "1/"] {
            assert!(RateLimit::parse(bad).is_err(), "{bad}");
        }
    }
}
