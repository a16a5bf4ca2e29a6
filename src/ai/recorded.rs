//! Answers that are played instead of asked for, and answers that are noted while a model is asked: for tests of
//! templates, which need no model then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use super::ask::Question;
use super::ollama::{Answer, Kind};
use crate::task::Failure;

/// Answers by step.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Whether a step without an answer is a failure; otherwise its model is asked.
    only: bool,
    given: Mutex<BTreeMap<String, VecDeque<Value>>>,
    heard: Mutex<BTreeMap<String, Vec<Value>>>,
}

impl Recorded {
    /// Plays these answers: a text, an object of the answer's fields, or a list of either for a step that asks several
    /// times. For steps that ask no model it is their result. With `only`, no model is asked at all.
    pub fn new(answers: Map<String, Value>, only: bool) -> Self {
        let given = answers.into_iter().map(|(step, answer)| {
            let answers = match answer {
                Value::Array(answers) => answers.into(),
                one => VecDeque::from([one]),
            };
            (step, answers)
        });
        Self {
            only,
            given: Mutex::new(given.collect()),
            heard: Mutex::default(),
        }
    }

    /// What models said, by step, in the form that [`new`](Self::new) takes.
    pub fn heard(&self) -> Map<String, Value> {
        let heard = lock(&self.heard);
        heard
            .iter()
            .map(|(step, answers)| (step.clone(), json!(answers)))
            .collect()
    }

    /// The answer to a question of a step.
    pub(super) fn play(&self, step: &str, question: &Question) -> Result<Option<Answer>, Failure> {
        match self.take(step) {
            Some(answer) => Ok(Some(made(answer, question))),
            None if self.only => Err(Failure::value_error(format!(
                "there is no recorded answer for step {step:?}"
            ))),
            None => Ok(None),
        }
    }

    /// The result of a step that asks no model.
    pub(super) fn result(&self, step: &str) -> Option<Value> {
        self.take(step)
    }

    /// The next answer of a step; the last one stays. `step[3]` is also found under `step`.
    fn take(&self, step: &str) -> Option<Value> {
        let mut given = lock(&self.given);
        let name = if given.contains_key(step) {
            step
        } else {
            step.split('[').next()?
        };
        let answers = given.get_mut(name)?;
        if answers.len() > 1 {
            answers.pop_front()
        } else {
            answers.front().cloned()
        }
    }

    /// Notes what a model said.
    pub(super) fn note(&self, step: &str, answer: &Answer) {
        let said = if answer.tool_calls.is_empty() {
            Value::from(answer.text.clone())
        } else {
            json!({"text": answer.text, "tool_calls": answer.tool_calls})
        };
        lock(&self.heard).entry(step.to_owned()).or_default().push(said);
    }
}

/// An answer from what a file says about it.
fn made(given: Value, question: &Question) -> Answer {
    let (text, tool_calls, reason) = match given {
        Value::String(text) => (text, Vec::new(), None),
        Value::Object(mut fields) if fields.contains_key("text") || fields.contains_key("tool_calls") => {
            let text = fields
                .get("text")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            let calls = match fields.remove("tool_calls") {
                Some(Value::Array(calls)) => calls,
                _ => Vec::new(),
            };
            let reason = fields.get("done_reason").and_then(Value::as_str).map(str::to_owned);
            (text, calls, reason)
        }
        json => (json.to_string(), Vec::new(), None),
    };
    let message =
        (question.kind == Kind::Chat).then(|| json!({"role": "assistant", "content": text, "tool_calls": tool_calls}));
    let reason = reason.unwrap_or_else(|| "stop".to_owned());
    Answer {
        text,
        tool_calls,
        message,
        model: question.model.clone(),
        host: "recorded".into(),
        truncated: reason == "length",
        done_reason: Some(reason),
        ..Answer::default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in between leaves a map that is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
