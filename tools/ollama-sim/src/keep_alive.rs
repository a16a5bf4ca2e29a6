//! `keep_alive` and Go's duration strings, with the error texts of Go's `time` package.

use std::time::Duration;

use serde_json::Value;

/// How long a runner stays loaded after its last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeepAlive {
    For(Duration),
    Forever,
}

impl KeepAlive {
    pub const ZERO: Self = Self::For(Duration::ZERO);

    /// Reads the request field: a number of seconds or a duration string; negative is for ever,
    /// `null` means "do not change".
    pub fn parse(value: &Value) -> Result<Option<Self>, String> {
        let unsupported = |kind: &str| Err(format!("Unsupported type: '{kind}'"));
        match value {
            Value::Null => Ok(None),
            Value::Number(seconds) => Ok(Some(Self::seconds(seconds.as_f64().unwrap_or(0.0)))),
            Value::String(text) => parse_duration(text).map(|nanos| Some(Self::nanos(nanos))),
            Value::Bool(_) => unsupported("bool"),
            Value::Array(_) => unsupported("[]interface {}"),
            Value::Object(_) => unsupported("map[string]interface {}"),
        }
    }

    fn seconds(seconds: f64) -> Self {
        if seconds < 0.0 {
            return Self::Forever;
        }
        Duration::try_from_secs_f64(seconds).map_or(Self::Forever, Self::For)
    }

    fn nanos(nanos: i64) -> Self {
        u64::try_from(nanos).map_or(Self::Forever, |nanos| Self::For(Duration::from_nanos(nanos)))
    }
}

/// Parses `1h30m`, `300ms`, `-1.5s`, `0` … into nanoseconds, as Go's `time.ParseDuration` does.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_while(rest, |c| c.is_ascii_digit());
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_while(after, |c| c.is_ascii_digit()),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let (unit, after) = split_while(after, |c| c != '.' && !c.is_ascii_digit());
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let scale = unit_nanos(unit).ok_or_else(|| format!("time: unknown unit {unit:?} in duration {text:?}"))?;
        total = amount(whole, fraction, scale)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(invalid)?;
        rest = after;
    }
    let total = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -total } else { total })
}

/// `whole.fraction` of a unit of `scale` nanoseconds; `None` when it does not fit.
fn amount(whole: &str, fraction: &str, scale: u64) -> Option<u64> {
    let whole = if whole.is_empty() {
        0
    } else {
        whole.parse::<u64>().ok()?
    };
    let fraction = format!("0.{fraction}0").parse::<f64>().ok()?;
    let part = (fraction * scale as f64) as u64;
    whole.checked_mul(scale)?.checked_add(part)
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

fn split_while(text: &str, keep: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !keep(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("10m", 600_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("300ms", 300_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("-1m", -60_000_000_000),
            ("+2us", 2_000),
        ] {
            assert_eq!(parse_duration(text), Ok(nanos), "{text}");
        }
    }

    #[test]
    fn bad_durations_get_gos_texts() {
        for (text, error) in [
            ("", "time: invalid duration \"\""),
            ("-", "time: invalid duration \"-\""),
            ("300", "time: missing unit in duration \"300\""),
            ("5 days", "time: unknown unit \" days\" in duration \"5 days\""),
            ("1d", "time: unknown unit \"d\" in duration \"1d\""),
            ("x", "time: invalid duration \"x\""),
            (".s", "time: invalid duration \".s\""),
            ("9999999h", "time: invalid duration \"9999999h\""),
        ] {
            assert_eq!(parse_duration(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn keep_alive_takes_seconds_durations_and_null() {
        let seconds = |seconds| Ok(Some(KeepAlive::For(Duration::from_secs_f64(seconds))));
        assert_eq!(KeepAlive::parse(&json!(null)), Ok(None));
        assert_eq!(KeepAlive::parse(&json!(0)), Ok(Some(KeepAlive::ZERO)));
        assert_eq!(KeepAlive::parse(&json!(2.5)), seconds(2.5));
        assert_eq!(KeepAlive::parse(&json!("5m")), seconds(300.0));
        assert_eq!(KeepAlive::parse(&json!(-1)), Ok(Some(KeepAlive::Forever)));
        assert_eq!(KeepAlive::parse(&json!("-1m")), Ok(Some(KeepAlive::Forever)));
        assert_eq!(
            KeepAlive::parse(&json!(true)),
            Err("Unsupported type: 'bool'".to_owned())
        );
    }
}
