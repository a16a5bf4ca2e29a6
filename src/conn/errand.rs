//! Commands on their way: each is sent until the server has answered it, and no further. A pipeline of which the server
//! did some and refused others for now (it has no memory, it forgot our scripts) is not repeated as a whole: what it
//! did would be done twice.

use std::borrow::Cow;

use redis::{Cmd, Pipeline, Value};

use super::error::{Error, code, is_transient_code, needs_reconnect};

/// Several commands, and the answers so far.
#[derive(Debug)]
pub struct Errand<'a> {
    commands: &'a Pipeline,
    /// What is sent in place of some of them.
    others: Vec<(usize, Cmd)>,
    answers: Vec<Value>,
    /// Places of those that are still to be sent.
    left: Vec<usize>,
    /// Nobody knows whether the server did what was sent last.
    unsure: bool,
}

impl<'a> Errand<'a> {
    /// Nothing is sent yet.
    pub fn new(commands: &'a Pipeline) -> Self {
        Self {
            commands,
            others: Vec::new(),
            answers: vec![Value::Nil; commands.len()],
            left: (0..commands.len()).collect(),
            unsure: false,
        }
    }

    /// There was no answer to what was left; `sent` is whether the server may have it.
    pub(super) fn unanswered(&mut self, sent: bool) {
        self.unsure |= sent;
    }

    /// Whether the server may have done something that it did not answer: sent again, that may be done twice.
    pub fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// Whether the server is there, and would not do something for now (it has no memory).
    pub fn is_put_off(&self) -> bool {
        let is_put_off = |answer: &Value| match answer {
            Value::ServerError(error) if is_put_off(answer) && !needs_reconnect(code(error)) => Some(()),
            _ => None,
        };
        self.find(is_put_off).is_some()
    }

    /// Another command is sent in the place of one from now on.
    pub fn replace(&mut self, place: usize, command: Cmd) {
        self.others.push((place, command));
    }

    /// The places of commands that are still to be sent.
    pub fn left(&self) -> &[usize] {
        &self.left
    }

    /// What is still to be sent.
    pub(super) fn rest(&self) -> Cow<'a, Pipeline> {
        if self.left.len() == self.answers.len() && self.others.is_empty() {
            return Cow::Borrowed(self.commands);
        }
        let mut rest = Pipeline::with_capacity(self.left.len());
        let mut left = self.left.iter().copied().peekable();
        for (place, command) in self.commands.cmd_iter().enumerate() {
            if left.next_if_eq(&place).is_some() {
                let other = self.others.iter().find(|(at, _)| *at == place);
                rest.add_command(other.map_or(command, |(_, other)| other).clone());
            }
        }
        Cow::Owned(rest)
    }

    /// Takes the answers to that. What the server would not do now is left.
    pub(super) fn take(&mut self, answers: Vec<Value>) {
        let places = std::mem::take(&mut self.left);
        for (place, answer) in places.into_iter().zip(answers) {
            if is_put_off(&answer) {
                self.left.push(place);
            }
            if let Some(slot) = self.answers.get_mut(place) {
                *slot = answer;
            }
        }
    }

    /// The first of the answers to what is left for which `wanted` gives something.
    pub(super) fn find<T>(&self, wanted: impl Fn(&Value) -> Option<T>) -> Option<T> {
        self.left
            .iter()
            .filter_map(|place| self.answers.get(*place))
            .find_map(wanted)
    }

    /// Why something is left.
    pub(super) fn trouble(&self, url: &str) -> Option<Error> {
        self.find(|answer| match answer {
            Value::ServerError(error) => Some(Error::from_server(error, url)),
            _ => None,
        })
    }

    /// The answers, in the order of the commands.
    pub fn into_answers(self) -> Vec<Value> {
        self.answers
    }
}

fn is_put_off(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if is_transient_code(code(error)))
}

/// Whether the server has forgotten our scripts.
pub(super) fn has_no_script(answer: &Value) -> Option<()> {
    matches!(answer, Value::ServerError(error) if code(error) == "NOSCRIPT").then_some(())
}

/// `MOVED 1234 host:port`.
pub(super) fn moved_to(answer: &Value) -> Option<(String, u16)> {
    let Value::ServerError(error) = answer else { return None };
    if error.code() != "MOVED" {
        return None;
    }
    let (host, port) = error.details()?.split_whitespace().nth(1)?.rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Value {
        redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn what_was_answered_is_not_sent_again() {
        let mut pipe = Pipeline::new();
        for name in ["a", "b", "c"] {
            pipe.lpush("list", name);
        }
        let mut errand = Errand::new(&pipe);
        assert_eq!(errand.rest().len(), 3);
        errand.take(vec![
            Value::Int(1),
            refused("OOM command not allowed"),
            refused("WRONGTYPE no"),
        ]);
        assert_eq!(errand.rest().get_packed_pipeline(), {
            let mut rest = Pipeline::new();
            rest.lpush("list", "b");
            rest.get_packed_pipeline()
        });
        assert!(errand.trouble("here").is_some_and(|error| error.is_transient()));
        errand.take(vec![Value::Int(2)]);
        assert!(errand.rest().is_empty() && errand.trouble("here").is_none());
        let answers = errand.into_answers();
        assert_eq!(answers[..2], [Value::Int(1), Value::Int(2)]);
        assert!(matches!(answers[2], Value::ServerError(_)));
    }

    #[test]
    fn another_command_is_sent_in_the_place_of_one() {
        let mut pipe = Pipeline::new();
        pipe.lpush("list", "a").lpush("list", "b");
        let mut errand = Errand::new(&pipe);
        errand.unanswered(true);
        assert!(errand.is_unsure());
        errand.replace(1, redis::Cmd::llen("list"));
        let mut wanted = Pipeline::new();
        wanted.lpush("list", "a").llen("list");
        assert_eq!(errand.rest().get_packed_pipeline(), wanted.get_packed_pipeline());
        errand.take(vec![Value::Int(1), refused("OOM command not allowed")]);
        assert_eq!(errand.rest().len(), 1);
    }

    #[test]
    fn the_words_of_redis_6_about_scripts_are_understood() {
        let text = "ERR Error running script (call to f_0123): @user_script:7: @user_script: 7: -OOM command not allowed when used memory > 'maxmemory'.";
        assert!(is_put_off(&refused(text)));
        assert!(!is_put_off(&refused(
            "ERR Error running script (call to f_0123): @user_script:7: unpack"
        )));
        assert!(has_no_script(&refused("NOSCRIPT No matching script.")).is_some());
        assert_eq!(
            moved_to(&refused("MOVED 7 10.0.0.1:6380")),
            Some(("10.0.0.1".into(), 6380))
        );
    }
}
