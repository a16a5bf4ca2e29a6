//! Takes the fields of a mapping one by one and tells of everything that is wrong with them.

use serde_json::Value;

use super::Problems;
use super::problem::meant;
use super::yaml::{Data, Key, Mark, Yaml};

/// The fields of a mapping.
pub(crate) struct Fields<'a> {
    /// What has them, for messages.
    what: String,
    at: Mark,
    entries: &'a [(Key, Yaml)],
    taken: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of a value, which must be a mapping.
    pub(crate) fn of(what: impl Into<String>, value: &'a Yaml, problems: &mut Problems) -> Option<Self> {
        let what = what.into();
        match value.as_map() {
            Some(entries) => Some(Self {
                what,
                at: value.at,
                entries,
                taken: Vec::new(),
            }),
            None => {
                problems.add(value.at, format!("{what} must be a mapping, not {}", value.what()));
                None
            }
        }
    }

    /// Where the mapping begins.
    pub(crate) fn at(&self) -> Mark {
        self.at
    }

    /// A field; one that is nothing (`~`) is not there.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<&'a Yaml> {
        self.taken.push(name);
        let (_, value) = self.entries.iter().find(|(key, _)| key.name == name)?;
        (!matches!(value.data, Data::Scalar(Value::Null))).then_some(value)
    }

    /// Where the key of a field stands, or the mapping if there is none.
    pub(crate) fn place(&self, name: &str) -> Mark {
        let key = self.entries.iter().find(|(key, _)| key.name == name);
        key.map_or(self.at, |(key, _)| key.at)
    }

    /// A field that must be there.
    pub(crate) fn need(&mut self, name: &'static str, problems: &mut Problems) -> Option<&'a Yaml> {
        let value = self.take(name);
        if value.is_none() {
            problems.add(self.at, format!("{} needs {name}", self.what));
        }
        value
    }

    /// A text; numbers and booleans are taken for their text.
    pub(crate) fn text(&mut self, name: &'static str, problems: &mut Problems) -> Option<String> {
        let value = self.take(name)?;
        match &value.data {
            Data::Scalar(Value::String(text)) => Some(text.clone()),
            Data::Scalar(other) => Some(other.to_string()),
            _ => {
                problems.add(value.at, format!("{name} must be a text, not {}", value.what()));
                None
            }
        }
    }

    /// A whole number of at least `least`.
    pub(crate) fn whole(&mut self, name: &'static str, least: u64, problems: &mut Problems) -> Option<u64> {
        let value = self.take(name)?;
        let number = match &value.data {
            Data::Scalar(number) => number.as_u64(),
            _ => None,
        };
        if number.is_none_or(|number| number < least) {
            problems.add(value.at, format!("{name} must be a whole number, {least} or more"));
            return None;
        }
        number
    }

    /// Seconds, more than none.
    pub(crate) fn seconds(&mut self, name: &'static str, problems: &mut Problems) -> Option<std::time::Duration> {
        let value = self.take(name)?;
        let number = match &value.data {
            Data::Scalar(number) => number.as_f64(),
            _ => None,
        };
        let duration = number.and_then(|number| std::time::Duration::try_from_secs_f64(number).ok());
        let duration = duration.filter(|duration| !duration.is_zero());
        if duration.is_none() {
            problems.add(value.at, format!("{name} must be a positive number of seconds"));
        }
        duration
    }

    /// True or false.
    pub(crate) fn flag(&mut self, name: &'static str, problems: &mut Problems) -> Option<bool> {
        let value = self.take(name)?;
        match &value.data {
            Data::Scalar(Value::Bool(flag)) => Some(*flag),
            _ => {
                problems.add(value.at, format!("{name} must be true or false"));
                None
            }
        }
    }

    /// What was not taken, without complaint.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &'a (Key, Yaml)> {
        self.entries
            .iter()
            .filter(|(key, _)| !self.taken.contains(&key.name.as_str()))
    }

    /// Every field that was not taken is one that somebody mistyped.
    pub(crate) fn finish(self, problems: &mut Problems) {
        for (key, _) in self.rest() {
            let hint = meant(&key.name, self.taken.iter().copied());
            problems.add_with(key.at, format!("{} has no {}", self.what, key.name), hint);
        }
    }
}
