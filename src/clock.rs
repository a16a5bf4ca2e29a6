//! The only place that reads the time, so that tests can hold it and nothing else trusts this machine's clock by
//! accident. Durations come from [`Instant`]s; wall-clock time is for what crosses the wire.

use std::time::Duration;

pub use jiff::Timestamp;
pub use tokio::time::Instant;

/// The wall clock, as UTC.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The monotonic clock that timers use.
pub fn instant() -> Instant {
    Instant::now()
}

/// Seconds since the epoch, as events and `unacked_index` carry them.
pub fn epoch_seconds(at: Timestamp) -> f64 {
    at.as_microsecond() as f64 / 1e6
}

/// The time that [`epoch_seconds`] makes seconds of; `None` for what is no time.
pub fn from_epoch_seconds(seconds: f64) -> Option<Timestamp> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a number too large becomes the largest, which is no time"
    )]
    Timestamp::from_microsecond((seconds * 1e6).round() as i64).ok()
}

/// The time of day here, with milliseconds, for people.
pub fn local_time(at: Timestamp) -> String {
    at.to_zoned(jiff::tz::TimeZone::system())
        .strftime("%H:%M:%S.%3f")
        .to_string()
}

/// How long until `at`; zero when it has passed.
pub fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// That long after a time; at the end of time when it is further away than can be counted.
pub fn after(at: Timestamp, pause: Duration) -> Timestamp {
    let pause = jiff::SignedDuration::try_from(pause).unwrap_or(jiff::SignedDuration::MAX);
    at.checked_add(pause).unwrap_or(Timestamp::MAX)
}

/// ISO-8601 with microseconds and offset, as Python's `datetime.isoformat()` writes an aware UTC time.
pub fn iso(at: Timestamp) -> String {
    // By hand: this is written with every result, and a format string is read each time.
    let time = jiff::tz::Offset::UTC.to_datetime(at);
    let mut text = String::with_capacity(32);
    let mut number = |value: i32, width: u32, behind: &str| {
        for place in (0..width).rev() {
            let digit = value.unsigned_abs() / 10_u32.pow(place) % 10;
            text.push(char::from_digit(digit, 10).unwrap_or('0'));
        }
        text.push_str(behind);
    };
    number(time.year().into(), 4, "-");
    number(time.month().into(), 2, "-");
    number(time.day().into(), 2, "T");
    number(time.hour().into(), 2, ":");
    number(time.minute().into(), 2, ":");
    number(time.second().into(), 2, ".");
    number(time.subsec_nanosecond() / 1000, 6, "+00:00");
    text
}

/// Reads what Celery's `maybe_iso8601` reads: any offset; a naive time is UTC.
///
/// # Errors
/// The text is no ISO-8601 date and time.
pub fn parse_iso(text: &str) -> Result<Timestamp, jiff::Error> {
    match text.parse::<Timestamp>() {
        Ok(at) => Ok(whole(at)),
        Err(error) => match text.parse::<jiff::civil::DateTime>() {
            Ok(naive) => Ok(match naive.to_zoned(jiff::tz::TimeZone::UTC) {
                Ok(zoned) => whole(zoned.timestamp()),
                // Python's `datetime.max` is a day beyond what can be told here; both are "never".
                Err(_) if naive.year() > 0 => Timestamp::MAX,
                Err(_) => Timestamp::MIN,
            }),
            Err(_) => Err(error),
        },
    }
}

/// In whole microseconds, as Python counts time: digits behind them are dropped, before 1970 too.
fn whole(at: Timestamp) -> Timestamp {
    let microseconds = i64::try_from(at.as_nanosecond().div_euclid(1000));
    let whole = microseconds.ok().and_then(|at| Timestamp::from_microsecond(at).ok());
    whole.unwrap_or(at)
}

/// Reads a time without offset as one of this machine's time zone; `None` for everything else.
pub fn parse_local(text: &str) -> Option<Timestamp> {
    if text.parse::<Timestamp>().is_ok() {
        return None;
    }
    let naive: jiff::civil::DateTime = text.parse().ok()?;
    let zoned = naive.to_zoned(jiff::tz::TimeZone::system()).ok()?;
    Some(zoned.timestamp())
}

/// Both clocks side by side: notices when the wall clock was set, or the machine slept, which the monotonic one does
/// not count. Whatever waits for a time of day then waits for the wrong moment.
#[derive(Debug)]
pub struct Clocks {
    wall: Timestamp,
    steady: Instant,
}

/// What the two clocks may differ by between two looks.
const TOLERANCE: Duration = Duration::from_millis(500);

impl Clocks {
    /// As they stand.
    pub fn new(wall: Timestamp, steady: Instant) -> Self {
        Self { wall, steady }
    }

    /// Whether they went apart since the last look.
    pub fn went_apart(&mut self, wall: Timestamp, steady: Instant) -> bool {
        let expected = after(self.wall, steady.saturating_duration_since(self.steady));
        *self = Self { wall, steady };
        until(expected, wall).max(until(wall, expected)) > TOLERANCE
    }
}

/// Hours *west* of UTC of the local time zone, DST included: the `utcoffset` of events
/// (`celery.utils.time.utcoffset`).
pub fn utc_offset_hours_west() -> f64 {
    let offset = jiff::Zoned::now().offset().seconds();
    // `0.0 - x` rather than `-x`: UTC is `0.0` on the wire, not `-0.0`.
    0.0 - f64::from(offset) / 3600.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_naive_time_is_utc_and_any_offset_is_read() {
        let aware = parse_iso("2026-11-22T15:48:06.190423+00:00").unwrap();
        assert_eq!(parse_iso("2026-11-22T15:48:06.190423").unwrap(), aware);
        assert_eq!(parse_iso("2026-11-22T17:48:06.190423+02:00").unwrap(), aware);
        assert_eq!(iso(aware), "2026-11-22T15:48:06.190423+00:00");
        assert!(parse_iso("garbage").is_err());
        // Python has microseconds and drops what is behind them.
        let exact = parse_iso("0014-12-31T23:59:59.19999236-11:00").unwrap();
        assert_eq!(iso(exact), "0015-01-01T10:59:59.199992+00:00");
        assert_eq!(parse_iso(&iso(exact)).unwrap(), exact);
        assert_eq!(parse_iso("9999-12-31T23:59:59.999999").unwrap(), Timestamp::MAX);
        assert_eq!(parse_iso("9999-12-31T23:59:59.999999+00:00").unwrap(), Timestamp::MAX);
    }

    #[test]
    fn a_clock_that_was_set_is_noticed_once() {
        let (wall, steady) = (now(), instant());
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let mut clocks = Clocks::new(wall, steady);
        assert!(!clocks.went_apart(after(wall, second), steady + second));
        assert!(clocks.went_apart(after(wall, hour), steady + second * 2));
        assert!(!clocks.went_apart(after(wall, hour + second), steady + second * 3));
        assert!(clocks.went_apart(after(wall, second * 4), steady + second * 4));
    }
}
