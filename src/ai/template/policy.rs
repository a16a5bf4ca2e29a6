//! What a step does when it goes wrong: tries again, goes on, or fails.

use std::time::Duration;

use serde_json::Value;

use super::Problems;
use super::fields::Fields;
use super::node::Node;
use super::problem::meant;
use super::yaml::{Data, Yaml};

/// Most tries that a step may ask for.
const MOST: u64 = 100;

/// Why a step went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No model server could answer.
    ModelUnavailable,
    /// A model's answer was no answer: of another shape, cut off, or empty.
    InvalidOutput,
    /// It took too long.
    Timeout,
    /// Anything else.
    Error,
}

impl Reason {
    const ALL: [(&'static str, Self); 4] = [
        ("model_unavailable", Self::ModelUnavailable),
        ("invalid_output", Self::InvalidOutput),
        ("timeout", Self::Timeout),
        ("error", Self::Error),
    ];

    /// Its name in files.
    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, reason)| *reason == self)
            .map_or("", |(name, _)| name)
    }

    /// All names.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> + Clone {
        Self::ALL.iter().map(|(name, _)| *name)
    }
}

/// How often a step is tried again.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    /// Tries after the first.
    pub times: u64,
    /// For which reasons.
    pub on: Vec<Reason>,
    /// Pause before the first of them.
    pub pause: Duration,
    /// By what the pause grows each time.
    pub factor: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            times: 0,
            on: vec![Reason::ModelUnavailable, Reason::InvalidOutput, Reason::Timeout],
            pause: Duration::from_secs(1),
            factor: 2.0,
        }
    }
}

impl Retry {
    /// `3`, or `{times: 3, on: [timeout], pause: 1, factor: 2}`.
    pub(super) fn read(value: Option<&Yaml>, problems: &mut Problems) -> Self {
        let mut retry = Self::default();
        let Some(value) = value else { return retry };
        if let Data::Scalar(Value::Number(times)) = &value.data {
            match times.as_u64().filter(|times| *times <= MOST) {
                Some(times) => retry.times = times,
                None => problems.add(value.at, format!("retry must be a whole number up to {MOST}")),
            }
            return retry;
        }
        let Some(mut fields) = Fields::of("retry", value, problems) else {
            return retry;
        };
        match fields.whole("times", 1, problems) {
            Some(times) if times <= MOST => retry.times = times,
            Some(_) => problems.add(value.at, format!("times must be a whole number up to {MOST}")),
            None => retry.times = 3,
        }
        if let Some(pause) = fields.seconds("pause", problems) {
            retry.pause = pause;
        }
        if let Some(factor) = fields.take("factor") {
            match &factor.data {
                Data::Scalar(Value::Number(number))
                    if number.as_f64().is_some_and(|number| (1.0..=10.0).contains(&number)) =>
                {
                    retry.factor = number.as_f64().unwrap_or(2.0);
                }
                _ => problems.add(factor.at, "factor must be a number from 1 to 10"),
            }
        }
        if let Some(on) = fields.take("on") {
            retry.on = reasons(on, problems);
        }
        fields.finish(problems);
        retry
    }

    /// The pause before a try, from one.
    pub(crate) fn pause_before(&self, attempt: u64) -> Duration {
        let power = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let pause = self.pause.as_secs_f64() * self.factor.powi(power);
        Duration::try_from_secs_f64(pause.min(300.0)).unwrap_or(self.pause)
    }
}

fn reasons(value: &Yaml, problems: &mut Problems) -> Vec<Reason> {
    let items: Vec<&Yaml> = match &value.data {
        Data::List(items) => items.iter().collect(),
        _ => vec![value],
    };
    let mut found = Vec::new();
    for item in items {
        let name = item.as_str().unwrap_or_default();
        match Reason::ALL.iter().find(|(known, _)| *known == name) {
            Some((_, reason)) => found.push(*reason),
            None => problems.add_with(
                item.at,
                format!("{name:?} is no reason to retry"),
                meant(name, Reason::names()),
            ),
        }
    }
    found
}

/// What follows when no try is left.
#[derive(Clone, Debug, Default)]
pub(crate) enum OnError {
    /// The template fails.
    #[default]
    Fail,
    /// The result of the step is nothing, and its dependants run.
    Continue,
    /// The result of the step is this.
    Value(Node),
}

impl OnError {
    /// `fail`, `continue` or `{value: …}`.
    pub(super) fn read(name: &str, value: Option<&Yaml>, problems: &mut Problems) -> Self {
        let Some(value) = value else { return Self::Fail };
        match value.as_str() {
            Some("fail") => return Self::Fail,
            Some("continue") => return Self::Continue,
            Some(other) => {
                let hint = Some("use fail, continue, or {value: …}".to_owned());
                problems.add_with(value.at, format!("on_error cannot be {other:?}"), hint);
                return Self::Fail;
            }
            None => {}
        }
        let Some(mut fields) = Fields::of("on_error", value, problems) else {
            return Self::Fail;
        };
        let instead = fields.need("value", problems).map(|value| Node::new(name, value));
        fields.finish(problems);
        instead.map_or(Self::Fail, Self::Value)
    }
}
