//! What a model says to one who asks for several, while it says it: pieces in a Redis stream, for the calls that are
//! the same and wait for its answer.

use redis::Value;
use tokio::sync::mpsc;

use super::super::ollama::{Answer, Piece};
use super::calls::{Hear, Heard};
use crate::conn::Link;

/// Pieces that wait for Redis; beyond them some are left out, and those who wait hear the whole at the end.
const WAITING: usize = 1_024;
/// Pieces that are kept.
const KEPT: usize = 10_000;
/// How long they are kept after the last one, in milliseconds.
const EXPIRES: u64 = 60_000;

/// The side that hears the model.
pub(super) struct Pieces(mpsc::Sender<(&'static str, String)>);

/// The side that writes down what was heard.
pub(super) struct Said(mpsc::Receiver<(&'static str, String)>);

/// Both sides of one call.
pub(super) fn pieces() -> (Pieces, Said) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Pieces(sender), Said(receiver))
}

impl Pieces {
    /// Never waits.
    pub(super) fn pass_on(&mut self, heard: &Heard) {
        let piece = match heard {
            Heard::Piece(Piece::Text(text)) => ("t", text.clone()),
            Heard::Piece(Piece::Thinking(text)) => ("k", text.clone()),
            Heard::Again => ("a", String::new()),
            Heard::Limited(..) | Heard::Loading(_) | Heard::Pulling(_) => return,
        };
        let _ = self.0.try_send(piece);
    }
}

impl Said {
    /// Whatever another said before counts for nothing.
    pub(super) async fn begin(&self, link: &Link, key: &str) {
        self.write(link, key, vec![("a", String::new())]).await;
    }

    /// Waits for pieces, and writes down those that are there.
    pub(super) async fn tell(&mut self, link: &Link, key: &str) {
        let Some(first) = self.0.recv().await else {
            return std::future::pending().await;
        };
        let mut pieces = vec![first];
        while let Ok(piece) = self.0.try_recv() {
            pieces.push(piece);
        }
        self.write(link, key, pieces).await;
    }

    async fn write(&self, link: &Link, key: &str, pieces: Vec<(&'static str, String)>) {
        let mut pipe = redis::pipe();
        for (kind, text) in pieces {
            let mut add = redis::cmd("XADD");
            add.arg(key)
                .arg("MAXLEN")
                .arg("~")
                .arg(KEPT)
                .arg("*")
                .arg(kind)
                .arg(text);
            pipe.add_command(add);
        }
        pipe.cmd("PEXPIRE").arg(key).arg(EXPIRES);
        // Those who wait get the whole answer in any case.
        let _ = link.pipeline(&pipe).await;
    }
}

/// One that waits, and what it has heard so far.
pub(super) struct Listener {
    key: String,
    after: String,
    text: String,
    thinking: String,
}

impl Listener {
    pub(super) fn new(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            after: "-".into(),
            text: String::new(),
            thinking: String::new(),
        }
    }

    pub(super) fn has_heard(&self) -> bool {
        !(self.text.is_empty() && self.thinking.is_empty())
    }

    /// Passes on what is new.
    pub(super) async fn listen(&mut self, link: &Link, hear: Hear<'_>) {
        let mut range = redis::cmd("XRANGE");
        range.arg(&self.key).arg(&self.after).arg("+").arg("COUNT").arg(KEPT);
        type Entries = Vec<(String, Vec<(String, String)>)>;
        let Ok(answer) = link.query::<Value>(&range).await else {
            return;
        };
        let entries: Entries = redis::from_redis_value(answer).unwrap_or_default();
        for (place, fields) in entries {
            self.after = format!("({place}");
            for (kind, text) in fields {
                self.take(&kind, text, hear);
            }
        }
    }

    fn take(&mut self, kind: &str, text: String, hear: Hear<'_>) {
        match kind {
            "t" => {
                self.text.push_str(&text);
                hear(Heard::Piece(Piece::Text(text)));
            }
            "k" => {
                self.thinking.push_str(&text);
                hear(Heard::Piece(Piece::Thinking(text)));
            }
            "a" if self.has_heard() => {
                self.text.clear();
                self.thinking.clear();
                hear(Heard::Again);
            }
            _ => {}
        }
    }

    /// Passes on what is left of the whole answer; all of it where what was heard is no beginning of it.
    pub(super) fn hear_rest(&self, answer: &Answer, hear: Hear<'_>) {
        let thinking = answer.thinking.as_deref().unwrap_or_default();
        let rest = (
            thinking.strip_prefix(&*self.thinking),
            answer.text.strip_prefix(&*self.text),
        );
        let (thinking, text) = match rest {
            (Some(thinking), Some(text)) => (thinking, text),
            _ => {
                hear(Heard::Again);
                (thinking, answer.text.as_str())
            }
        };
        if !thinking.is_empty() {
            hear(Heard::Piece(Piece::Thinking(thinking.to_owned())));
        }
        if !text.is_empty() {
            hear(Heard::Piece(Piece::Text(text.to_owned())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard, `|` being a new beginning.
    fn heard(pieces: &[(&str, &str)], answer: &str) -> String {
        let mut listener = Listener::new("k");
        let mut all = String::new();
        let mut hear = |heard| match heard {
            Heard::Piece(Piece::Text(text)) => all.push_str(&text),
            Heard::Again => all.push('|'),
            other => panic!("{other:?}"),
        };
        for (kind, text) in pieces {
            listener.take(kind, (*text).to_owned(), &mut hear);
        }
        let answer = Answer {
            text: answer.to_owned(),
            ..Answer::default()
        };
        listener.hear_rest(&answer, &mut hear);
        all
    }

    #[test]
    fn who_waits_hears_the_whole_once() {
        assert_eq!(heard(&[], "one two"), "one two");
        assert_eq!(heard(&[("a", ""), ("t", "one"), ("t", " two")], "one two"), "one two");
        assert_eq!(heard(&[("t", "one")], "one two"), "one two", "the end had not come yet");
        assert_eq!(heard(&[("t", "one"), ("a", ""), ("t", "on")], "one two"), "one|one two");
        assert_eq!(
            heard(&[("t", " two")], "one two"),
            " two|one two",
            "a piece was left out"
        );
    }

    #[test]
    fn pieces_that_wait_for_redis_are_bounded() {
        let (mut pieces, Said(mut said)) = pieces();
        for _ in 0..WAITING + 10 {
            pieces.pass_on(&Heard::Piece(Piece::Text("x".into())));
        }
        let waiting = std::iter::from_fn(|| said.try_recv().ok()).count();
        assert_eq!(waiting, WAITING);
    }
}
