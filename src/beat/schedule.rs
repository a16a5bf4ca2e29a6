//! When a task is due (`celery.schedules`): every so often, by a crontab, or by the sun. Pure functions of the last run
//! and the time that it is.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::crontab::{Crontab, FIELDS};
use super::interval::Interval;
use super::solar::Solar;
use crate::clock::Timestamp;

/// A schedule, and the time zone in which it is told.
#[derive(Clone, Debug)]
pub struct Schedule {
    kind: Kind,
    zone: TimeZone,
}

#[derive(Clone, Debug)]
enum Kind {
    Interval(Interval),
    Crontab(Crontab),
    Solar(Solar),
}

/// What a schedule says at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Run now; this is the time at which it should have run.
    Now(Timestamp),
    /// Not before then.
    At(Timestamp),
}

impl Schedule {
    /// Reads a schedule: a number of seconds, a crontab line, the fields of a crontab (with `timezone` if it has one of
    /// its own), or `event`, `lat` and `lon`. An interval that is `relative` is due at full units; others always are.
    ///
    /// # Errors
    /// What is wrong, in words for whoever wrote it.
    pub fn read(value: &Value, relative: bool, zone: &TimeZone) -> Result<Self, String> {
        let mut zone = zone.clone();
        let kind = match value {
            Value::Number(seconds) => Kind::Interval(Interval::new(seconds.as_f64().unwrap_or(f64::NAN), relative)?),
            Value::String(line) => Kind::Crontab(Crontab::from_line(line)?),
            Value::Object(fields) if fields.contains_key("event") => Kind::Solar(Solar::from_fields(fields)?),
            Value::Object(fields) => {
                if let Some(name) = fields.get("timezone") {
                    zone = time_zone(name.as_str().unwrap_or_default())?;
                }
                Kind::Crontab(crontab(fields)?)
            }
            other => {
                return Err(format!(
                    "{other} is no schedule: give seconds, a crontab (\"*/5 * * * *\") or its fields ({{minute = …}})"
                ));
            }
        };
        Ok(Self { kind, zone })
    }

    /// The first due time after a run.
    pub fn next(&self, last_run_at: Timestamp) -> Timestamp {
        match &self.kind {
            Kind::Interval(interval) => interval.next(last_run_at, &self.zone),
            Kind::Crontab(crontab) => crontab.next(last_run_at, &self.zone),
            Kind::Solar(solar) => solar.next(last_run_at),
        }
    }

    /// Whether to run now. However many due times were missed, one run makes up for them; a crontab whose last due time
    /// is longer ago than `deadline` (`beat_cron_starting_deadline`) is not made up for.
    pub fn due(&self, last_run_at: Timestamp, now: Timestamp, deadline: Option<Duration>) -> Due {
        let next = self.next(last_run_at);
        if next > now {
            return Due::At(next);
        }
        if let (Kind::Crontab(_), Some(deadline)) = (&self.kind, deadline) {
            // One microsecond more, so that a due time exactly at the deadline counts.
            let since = SignedDuration::try_from(deadline + Duration::from_micros(1)).unwrap_or(SignedDuration::MAX);
            let since = now.checked_sub(since).unwrap_or(Timestamp::MIN);
            if next < now && self.next(since) > now {
                return Due::At(self.next(now));
            }
        }
        Due::Now(next)
    }
}

fn crontab(fields: &Map<String, Value>) -> Result<Crontab, String> {
    let known = || FIELDS.into_iter().chain(["timezone"]);
    if let Some(name) = fields.keys().find(|name| !known().any(|known| known == *name)) {
        return Err(format!(
            "a crontab has no field {name:?}; there are {}",
            known().collect::<Vec<_>>().join(", ")
        ));
    }
    if fields.keys().all(|name| name == "timezone") {
        return Err("a crontab without fields would run every minute; write minute = \"*\" if that is meant".into());
    }
    Crontab::from_fields(fields)
}

/// The time zone of that name.
///
/// # Errors
/// There is none, or this machine has no time zones.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| {
        format!("there is no time zone {name:?} on this machine; a name is like Europe/Berlin, and the package tzdata has them")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn schedule(value: Value) -> Schedule {
        Schedule::read(&value, false, &TimeZone::UTC).unwrap()
    }

    #[test]
    fn p_203_overdue_is_one_run() {
        let (every, last) = (schedule(json!(10)), at("2026-01-01T00:00:00Z"));
        assert_eq!(
            every.due(last, at("2026-01-01T00:00:09.9Z"), None),
            Due::At(at("2026-01-01T00:00:10Z"))
        );
        let now = at("2026-01-01T05:00:00Z");
        assert_eq!(every.due(last, now, None), Due::Now(at("2026-01-01T00:00:10Z")));
        assert_eq!(every.due(now, now, None), Due::At(at("2026-01-01T05:00:10Z")));
    }

    #[test]
    fn a_crontab_missed_for_longer_than_the_deadline_waits_for_its_next_time() {
        let (noon, last) = (schedule(json!("0 12 * * *")), at("2026-01-01T12:00:00.5Z"));
        let (deadline, hour) = (Some(Duration::from_secs(3600)), at("2026-01-02T13:00:00Z"));
        assert_eq!(noon.due(last, hour, deadline), Due::Now(at("2026-01-02T12:00:00Z")));
        let late = at("2026-01-02T13:00:01Z");
        assert_eq!(noon.due(last, late, deadline), Due::At(at("2026-01-03T12:00:00Z")));
        assert_eq!(noon.due(last, late, None), Due::Now(at("2026-01-02T12:00:00Z")));
        // And then it runs, though the last run is older still.
        let next = at("2026-01-03T12:00:00.1Z");
        assert!(matches!(noon.due(last, next, deadline), Due::Now(_)));
    }

    #[test]
    fn what_is_no_schedule_is_explained() {
        let error = |value: Value| Schedule::read(&value, false, &TimeZone::UTC).unwrap_err();
        assert_eq!(error(json!(-1)), "-1 is no number of seconds");
        assert_eq!(error(json!(0)), "0 s is too short for an interval");
        assert!(error(json!(true)).starts_with("true is no schedule: "));
        assert!(error(json!({"minutes": 5})).starts_with("a crontab has no field \"minutes\"; there are minute, "));
        assert!(
            error(json!({"minute": 5, "timezone": "Europe/Atlantis"}))
                .starts_with("there is no time zone \"Europe/Atlantis\"")
        );
        assert_eq!(error(json!({"minute": 61})), "minute: 61 is not in 0-59");
        assert!(error(json!({})).starts_with("a crontab without fields"));
    }
}
