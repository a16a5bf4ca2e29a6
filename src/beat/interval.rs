//! Every so often (`celery.schedules.schedule`), from the last run or, if `relative`, at full days, hours or minutes.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Unit};

use crate::clock::{self, Timestamp};

/// An interval below this would be a flood.
const SHORTEST: Duration = Duration::from_millis(10);

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// An interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    every: Duration,
    relative: bool,
}

impl Interval {
    /// Reads a number of seconds.
    ///
    /// # Errors
    /// It is none, or too short.
    pub(super) fn new(seconds: f64, relative: bool) -> Result<Self, String> {
        let every = Duration::try_from_secs_f64(seconds).map_err(|_| format!("{seconds} is no number of seconds"))?;
        if every < SHORTEST {
            return Err(format!("{seconds} s is too short for an interval"));
        }
        Ok(Self { every, relative })
    }

    /// The first due time after a run.
    pub(super) fn next(&self, last: Timestamp, zone: &TimeZone) -> Timestamp {
        let end = clock::after(last, self.every);
        if !self.relative {
            return end;
        }
        // Less than a second, relative or not, cannot be rounded to seconds and go on.
        self.rounded(last, end, zone).filter(|at| *at > last).unwrap_or(end)
    }

    /// The last full unit at or before the end of the interval (`celery.utils.time.remaining`); days are those of the
    /// calendar. A full hour that comes twice, or not at all, is looked for in both its places.
    fn rounded(&self, last: Timestamp, end: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let every = SignedDuration::try_from(self.every).ok()?;
        let local = |at: Timestamp| at.to_zoned(zone.clone()).datetime();
        if self.every >= DAY {
            let end = local(last).checked_add(every).ok()?;
            return self.places(end, zone)?.into_iter().filter(|at| *at > last).min();
        }
        let mut places = self.places(local(end), zone)?.to_vec();
        let before = |places: &[Timestamp]| places.iter().copied().filter(|at| *at <= end).max();
        let found = before(&places).or(places.iter().copied().min())?;
        if self.every < MINUTE || found > last {
            return Some(found);
        }
        // The clocks went back by less than a unit: the full unit lies before the run.
        let unit = SignedDuration::try_from(if self.every >= HOUR { HOUR } else { MINUTE }).ok()?;
        places.extend(self.places(local(end).checked_add(unit).ok()?, zone)?);
        places.extend(self.places(local(last).checked_add(every).ok()?, zone)?);
        places.retain(|at| *at > last);
        before(&places).or(places.iter().copied().min())
    }

    /// A local time, rounded down to the unit of this interval: where it is in time, the first and the second time.
    fn places(&self, at: DateTime, zone: &TimeZone) -> Option<[Timestamp; 2]> {
        let unit = match self.every {
            every if every >= DAY => Unit::Day,
            every if every >= HOUR => Unit::Hour,
            every if every >= MINUTE => Unit::Minute,
            _ => Unit::Second,
        };
        let down = jiff::civil::DateTimeRound::new()
            .smallest(unit)
            .mode(jiff::RoundMode::Trunc);
        let at = zone.to_ambiguous_timestamp(at.round(down).ok()?);
        Some(match at.offset() {
            AmbiguousOffset::Fold { .. } => [at.earlier().ok()?, at.later().ok()?],
            _ => [at.compatible().ok()?; 2],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_intervals_are_due_at_full_units() {
        let next = |seconds, last: &str| {
            let zone = TimeZone::get("Europe/Berlin").unwrap();
            let at = Interval::new(seconds, true).unwrap().next(last.parse().unwrap(), &zone);
            at.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
        };
        assert_eq!(next(3600.0, "2026-01-01T10:25:30Z"), "2026-01-01T12:00:00+01:00");
        assert_eq!(next(86_400.0, "2026-03-28T12:00:00Z"), "2026-03-29T00:00:00+01:00");
        assert_eq!(next(86_400.0, "2026-03-29T12:00:00Z"), "2026-03-30T00:00:00+02:00");
        assert_eq!(next(0.5, "2026-01-01T10:25:30.6Z"), "2026-01-01T11:25:31+01:00");
    }
}
