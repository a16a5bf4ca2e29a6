//! Crontabs (`celery.schedules.crontab`): five sets of numbers, and the first minute after a time that is in all of
//! them.
//!
//! Days count when day of week *and* day of month *and* month agree, as in Celery and unlike `cron(5)`. What is read is
//! what Celery reads; where Celery ignores the end of a text that it does not understand (`1-5-7`), this is an error.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use crate::clock::Timestamp;

/// The first three letters are enough, as in Celery; and any name is good in any field.
const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Days that are looked at for one that fits. A 29 February on a given weekday can be forty years away.
const LONGEST_SEARCH: u32 = 45 * 366;

/// Names of the fields, in the order of `cron(5)` lines.
pub(super) const FIELDS: [&str; 5] = ["minute", "hour", "day_of_month", "month_of_year", "day_of_week"];

/// The least and the largest number of each field, in the order of [`FIELDS`].
const RANGES: [(u8, u8); 5] = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];

/// A crontab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crontab {
    minute: Set,
    hour: Set,
    day_of_month: Set,
    month_of_year: Set,
    day_of_week: Set,
}

/// A set of numbers below 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set(u64);

impl Set {
    fn insert(&mut self, number: u8) {
        self.0 |= 1 << (number & 63);
    }

    fn has(self, number: i8) -> bool {
        u8::try_from(number).is_ok_and(|number| number < 64 && self.0 >> number & 1 == 1)
    }

    /// The least number.
    fn first(self) -> i8 {
        self.0.trailing_zeros() as i8
    }

    /// The least number above that one.
    fn above(self, number: i8) -> Option<i8> {
        (number + 1..64).find(|next| self.has(*next))
    }
}

impl Crontab {
    /// Reads a line of five fields, as `crontab.from_string` does: minute, hour, day of month, month, day of week.
    ///
    /// # Errors
    /// What is wrong, in words for whoever wrote it.
    pub fn from_line(line: &str) -> Result<Self, String> {
        Self::from_fields(&fields(line)?)
    }

    /// Reads named fields, each a number, a text or a list of numbers; one that is missing is `*`.
    ///
    /// # Errors
    /// What is wrong, in words for whoever wrote it.
    pub fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        let mut sets = [Set::default(); 5];
        for ((set, name), range) in sets.iter_mut().zip(FIELDS).zip(RANGES) {
            *set = read(fields.get(name), range).map_err(|error| format!("{name}: {error}"))?;
        }
        let [minute, hour, day_of_month, month_of_year, day_of_week] = sets;
        // The longest February: a day that comes only in leap years comes.
        let longest = |month| {
            if month == 2 {
                29
            } else if [4, 6, 9, 11].contains(&month) {
                30
            } else {
                31
            }
        };
        let first_day = day_of_month.first();
        if !(1..=12).any(|month| month_of_year.has(month) && first_day <= longest(month)) {
            return Err("day_of_month: none of these days is in any of month_of_year".into());
        }
        Ok(Self {
            minute,
            hour,
            day_of_month,
            month_of_year,
            day_of_week,
        })
    }

    /// The first due time after `last`; the end of time if there is none.
    ///
    /// Celery's rules at a change of the clocks: a time that does not exist is due as much later as the clocks moved, a
    /// time that comes twice is due the first time. In the second of two equal hours, Celery 5.7 takes the first for
    /// the next and finds a task due again and again; here it is due in the second.
    pub fn next(&self, last: Timestamp, zone: &TimeZone) -> Timestamp {
        let Some(local) = self.after(last.to_zoned(zone.clone()).datetime()) else {
            return Timestamp::MAX;
        };
        let at = zone.to_ambiguous_timestamp(local);
        match at.compatible() {
            Ok(first) if first > last => first,
            _ => at.later().unwrap_or(Timestamp::MAX),
        }
    }

    /// The first local time after that one.
    fn after(&self, last: DateTime) -> Option<DateTime> {
        let date = last.date();
        if self.has_date(date) {
            if self.hour.has(last.hour())
                && let Some(minute) = self.minute.above(last.minute())
            {
                return Some(date.at(last.hour(), minute, 0, 0));
            }
            if let Some(hour) = self.hour.above(last.hour()) {
                return Some(date.at(hour, self.minute.first(), 0, 0));
            }
        }
        let mut day = date;
        for _ in 0..LONGEST_SEARCH {
            day = day.tomorrow().ok()?;
            if self.has_date(day) {
                return Some(day.at(self.hour.first(), self.minute.first(), 0, 0));
            }
        }
        None
    }

    fn has_date(&self, date: Date) -> bool {
        self.month_of_year.has(date.month())
            && self.day_of_month.has(date.day())
            && self.day_of_week.has(date.weekday().to_sunday_zero_offset())
    }
}

/// The fields of a line, by name.
///
/// # Errors
/// There are not five.
pub fn fields(line: &str) -> Result<Map<String, Value>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.len() != FIELDS.len() {
        return Err(format!(
            "a crontab has five fields (minute hour day_of_month month_of_year day_of_week), {line:?} has {}",
            words.len()
        ));
    }
    let fields = FIELDS.iter().zip(words);
    Ok(fields.map(|(name, word)| ((*name).to_owned(), word.into())).collect())
}

fn read(value: Option<&Value>, range: (u8, u8)) -> Result<Set, String> {
    let mut set = Set::default();
    match value {
        None | Some(Value::Null) => add_text(&mut set, "*", range)?,
        Some(Value::String(text)) => add_text(&mut set, text, range)?,
        Some(Value::Number(_)) => set.insert(number_of(value, range)?),
        Some(Value::Array(numbers)) if !numbers.is_empty() => {
            for number in numbers {
                set.insert(number_of(Some(number), range)?);
            }
        }
        Some(other) => return Err(format!("{other} is no number, text or list of numbers")),
    }
    Ok(set)
}

fn number_of(value: Option<&Value>, range: (u8, u8)) -> Result<u8, String> {
    let number = value.and_then(Value::as_i64);
    let number = number.ok_or_else(|| format!("{} is no whole number", value.unwrap_or(&Value::Null)))?;
    within(number, range)
}

fn within(number: i64, (least, largest): (u8, u8)) -> Result<u8, String> {
    u8::try_from(number)
        .ok()
        .filter(|number| (least..=largest).contains(number))
        .ok_or_else(|| format!("{number} is not in {least}-{largest}"))
}

/// `groups` of the grammar in `celery.schedules.crontab_parser`: `*`, `a`, `a-b`, each with a step, between commas.
fn add_text(set: &mut Set, text: &str, range: (u8, u8)) -> Result<(), String> {
    for part in text.split(',').map(str::trim) {
        if part.is_empty() {
            return Err(format!("{text:?} has an empty part"));
        }
        let (numbers, step) = match part.split_once('/') {
            None => (part, 1),
            Some((numbers, step)) => {
                let step = step.parse::<usize>().ok().filter(|step| *step > 0);
                let step = step.ok_or_else(|| format!("{part:?}: a step is a number from 1"))?;
                if numbers != "*" && !numbers.contains('-') {
                    return Err(format!("{part:?}: a step follows * or a range"));
                }
                (numbers, step)
            }
        };
        for number in expand(numbers, range)?.into_iter().step_by(step) {
            set.insert(number);
        }
    }
    Ok(())
}

fn expand(numbers: &str, range: (u8, u8)) -> Result<Vec<u8>, String> {
    let (least, largest) = range;
    if numbers == "*" {
        return Ok((least..=largest).collect());
    }
    match numbers.split_once('-') {
        None => Ok(vec![word(numbers, range)?]),
        Some((from, to)) => {
            let (from, to) = (word(from, range)?, word(to, range)?);
            if from <= to {
                Ok((from..=to).collect())
            } else {
                // Around the end: `22-2`, `fri-mon`.
                Ok((from..=largest).chain(least..=to).collect())
            }
        }
    }
}

fn word(text: &str, range: (u8, u8)) -> Result<u8, String> {
    if let Ok(number) = text.parse::<i64>() {
        return within(number, range);
    }
    let start: String = text.chars().take(3).collect::<String>().to_lowercase();
    let month = MONTHS.iter().position(|name| *name == start).map(|at| at + 1);
    let named = month.or_else(|| WEEKDAYS.iter().position(|name| *name == start));
    match named {
        Some(number) => within(i64::try_from(number).unwrap_or_default(), range),
        None => Err(format!("{text:?} is no number and no name of a month or weekday")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(line: &str, last: &str, zone: &str) -> String {
        let zone = TimeZone::get(zone).unwrap();
        let at = Crontab::from_line(line).unwrap().next(last.parse().unwrap(), &zone);
        at.to_zoned(zone).strftime("%Y-%m-%dT%H:%M%:z").to_string()
    }

    #[test]
    fn p_204_fields_are_read_as_celery_reads_them() {
        let minutes = |text: &str| {
            let mut set = Set::default();
            add_text(&mut set, text, (0, 59)).map(|()| (0..60).filter(|minute| set.has(*minute)).collect::<Vec<_>>())
        };
        assert_eq!(minutes("*/15").unwrap(), [0, 15, 30, 45]);
        assert_eq!(
            minutes("1,13,30-33,50-59/4").unwrap(),
            [1, 13, 30, 31, 32, 33, 50, 54, 58]
        );
        assert_eq!(minutes("58-1").unwrap(), [0, 1, 58, 59]);
        assert_eq!(minutes("mon-Wednesday").unwrap(), [1, 2, 3]);
        for wrong in [
            "",
            "1,,2",
            "60",
            "-1",
            "*/0",
            "*/",
            "5/2",
            "1-5/x",
            "tag",
            "1-2-3",
            "* *",
            "1.5",
            "99999999999999999999",
        ] {
            minutes(wrong).unwrap_err();
        }
        assert_eq!(
            Crontab::from_line("0 0 30 2 *").unwrap_err(),
            "day_of_month: none of these days is in any of month_of_year"
        );
        assert!(Crontab::from_line("* * *").unwrap_err().contains("has 3"));
        assert_eq!(
            Crontab::from_line("0 0 * * 7").unwrap_err(),
            "day_of_week: 7 is not in 0-6"
        );
    }

    #[test]
    fn a_time_that_does_not_exist_is_due_later_and_one_that_comes_twice_once() {
        let berlin = "Europe/Berlin";
        assert_eq!(
            next("30 2 * * *", "2026-03-28T12:00Z", berlin),
            "2026-03-29T03:30+02:00"
        );
        assert_eq!(
            next("30 2 * * *", "2026-03-29T01:30Z", berlin),
            "2026-03-30T02:30+02:00"
        );
        assert_eq!(
            next("30 2 * * *", "2026-10-24T12:00Z", berlin),
            "2026-10-25T02:30+02:00"
        );
        assert_eq!(
            next("30 2 * * *", "2026-10-25T00:30Z", berlin),
            "2026-10-26T02:30+01:00"
        );
        // In the second 2 o'clock there is a next time, and it is not in the past.
        assert_eq!(
            next("*/15 * * * *", "2026-10-25T01:10Z", berlin),
            "2026-10-25T02:15+01:00"
        );
    }

    #[test]
    fn days_need_all_three_fields() {
        assert_eq!(
            next("0 9 1-7 * mon", "2026-11-03T00:00Z", "UTC"),
            "2026-12-07T09:00+00:00"
        );
        assert_eq!(
            next("0 0 29 feb mon", "2026-01-01T00:00Z", "UTC"),
            "2044-02-29T00:00+00:00"
        );
    }
}
