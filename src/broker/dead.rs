//! Dead letters: messages that nobody could run, kept with the reason in `<queue>.dead` until somebody looks.
//!
//! A letter is a line of JSON (why, whose, who buried it, when) and behind it the message, byte for byte as it came, so
//! that what is no JSON, no text or too large is kept as well, and a script can write it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use redis::{Pipeline, Value};
use serde::{Deserialize, Serialize};

use super::claim::unexpected;
use super::restore::{as_new, priority};
use super::{Broker, Error};
use crate::clock::{self, Timestamp};

/// What stands in a letter's first line.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub struct DeadLetter {
    /// Why nobody could run it.
    pub reason: String,
    /// The queue it was in; behind an exchange, its routing key.
    pub queue: String,
    /// The exchange it was sent to, where that was not the default one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub exchange: String,
    /// Who buried it.
    #[serde(default)]
    pub worker: String,
    /// When, in seconds since 1970.
    #[serde(default)]
    pub time: f64,
    /// The task's id, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The task's name, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

/// A letter that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// A name for it that stays the same while others come and go.
    pub handle: String,
    /// Size of the letter.
    pub bytes: usize,
    /// What is known of it.
    pub letter: DeadLetter,
    /// The element of the list, or its beginning.
    element: Vec<u8>,
    /// Where the message begins in it.
    message: usize,
}

/// A queue that has dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadQueue {
    /// Its name.
    pub name: String,
    /// How many.
    pub letters: usize,
}

impl DeadLetter {
    /// When it was buried.
    pub fn at(&self) -> Option<Timestamp> {
        Timestamp::from_microsecond((self.time * 1e6) as i64).ok()
    }
}

impl Found {
    fn read(handle: &[u8], bytes: usize, element: Vec<u8>, queue: &str) -> Self {
        let line = element.iter().position(|byte| *byte == b'\n');
        let head = line.and_then(|end| serde_json::from_slice(&element[..end]).ok());
        // Somebody else may have put it there: then all of it is the message.
        let message = head.as_ref().and(line).map_or(0, |end| end + 1);
        let mut letter = head.unwrap_or_else(|| DeadLetter {
            reason: "unknown".into(),
            queue: queue.to_owned(),
            ..DeadLetter::default()
        });
        if letter.task.is_none() && element.len() == bytes {
            let (id, task) = names(&element[message..]);
            // What whoever wrote the letter says of its id stands.
            letter.id = letter.id.or(id);
            letter.task = task;
        }
        Self {
            handle: String::from_utf8_lossy(handle).into_owned(),
            bytes,
            letter,
            element,
            message,
        }
    }

    /// The message as it came; of a large one perhaps only the beginning.
    pub fn message(&self) -> &[u8] {
        &self.element[self.message..]
    }

    /// Whether it is here as a whole.
    pub fn is_whole(&self) -> bool {
        self.element.len() == self.bytes
    }
}

impl Broker {
    /// How many dead letters each of `queues` has; those with none are left out.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn dead_queues(&self, queues: impl IntoIterator<Item = &str>) -> Result<Vec<DeadQueue>, Error> {
        let names: BTreeSet<&str> = queues.into_iter().collect();
        let mut pipe = Pipeline::new();
        for name in &names {
            pipe.llen(self.dead_key(name));
        }
        if pipe.is_empty() {
            return Ok(Vec::new());
        }
        let lengths = self.writer.pipeline(&pipe).await?;
        let found = names
            .into_iter()
            .zip(lengths)
            .filter_map(|(name, length)| match length {
                Value::Int(length @ 1..) => Some(DeadQueue {
                    name: name.to_owned(),
                    letters: usize::try_from(length).ok()?,
                }),
                _ => None,
            });
        Ok(found.collect())
    }

    /// The names of all queues that have dead letters, whoever consumes them. Looks at every key of the database.
    ///
    /// # Errors
    /// The server cannot be reached or refuses: an ACL may not allow `SCAN`.
    pub async fn scan_dead_queues(&self) -> Result<BTreeSet<String>, Error> {
        self.scan(&self.keys.name(""), ".dead", "list").await
    }

    /// Dead letters of a queue, the oldest first; `whole` bytes of each are fetched at most.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn dead_letters(
        &self,
        queue: &str,
        from: usize,
        count: usize,
        whole: usize,
    ) -> Result<Vec<Found>, Error> {
        let mut call = self.scripts.dead_list.prepare_invoke();
        call.key(self.dead_key(queue)).arg(from).arg(count).arg(whole);
        let mut pipe = Pipeline::with_capacity(1);
        pipe.load_script(&self.scripts.dead_list).ignore().invoke_script(&call);
        let parts = match self.writer.pipeline(&pipe).await?.pop() {
            Some(Value::Array(parts)) => parts,
            other => return Err(unexpected(other.as_ref())),
        };
        let (mut parts, mut found) = (parts.into_iter(), Vec::new());
        while let (Some(handle), Some(bytes), Some(element)) = (parts.next(), parts.next(), parts.next()) {
            let (Value::BulkString(handle), Value::Int(bytes), Value::BulkString(element)) = (handle, bytes, element)
            else {
                return Err(unexpected(None));
            };
            let bytes = usize::try_from(bytes).unwrap_or_default();
            found.push(Found::read(&handle, bytes, element, queue));
        }
        Ok(found)
    }

    /// Puts the message of a letter at the end of its queue, as if it had just been sent; whether the letter was still
    /// there. Pass a letter that is whole.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn requeue_dead(&self, queue: &str, found: &Found) -> Result<bool, Error> {
        let message = as_new(found.message()).unwrap_or_else(|| found.message().to_vec());
        self.take_dead(queue, found, "requeue", &message).await
    }

    /// Removes a letter for good; whether it was still there. Pass a letter that is whole.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn drop_dead(&self, queue: &str, found: &Found) -> Result<bool, Error> {
        self.take_dead(queue, found, "drop", b"").await
    }

    async fn take_dead(&self, queue: &str, found: &Found, what: &str, message: &[u8]) -> Result<bool, Error> {
        let DeadLetter {
            exchange, queue: key, ..
        } = &found.letter;
        let mut call = self.scripts.dead_take.prepare_invoke();
        call.key(self.dead_key(queue)).key(self.keys.bindings(exchange));
        call.arg(&found.element[..])
            .arg(what)
            .arg(message)
            .arg(exchange)
            .arg(key);
        call.arg(self.keys.name(""))
            .arg(self.keys.suffix(priority(message)))
            .arg(self.keys.sep());
        let mut pipe = Pipeline::with_capacity(2);
        pipe.load_script(&self.scripts.dead_take).ignore().invoke_script(&call);
        match self.writer.pipeline(&pipe).await?.pop() {
            Some(Value::Int(taken)) => Ok(taken == 1),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// How many dead letters had to make room for newer ones since this broker was connected.
    pub fn pushed_out(&self) -> u64 {
        self.pushed_out.load(Ordering::Relaxed)
    }

    /// So many more had to.
    pub(crate) fn note_pushed_out(&self, letters: u64) {
        self.pushed_out.fetch_add(letters, Ordering::Relaxed);
    }

    pub(super) fn dead_key(&self, queue: &str) -> String {
        self.keys.name(&format!("{queue}.dead"))
    }

    /// A dead letter of a message.
    pub(super) fn letter(&self, raw: &[u8], exchange: &str, queue: &str, reason: &str) -> Vec<u8> {
        let (id, task) = names(raw);
        let head = DeadLetter {
            reason: reason.to_owned(),
            queue: queue.to_owned(),
            exchange: exchange.to_owned(),
            worker: self.options.node.clone(),
            time: clock::now().as_microsecond() as f64 / 1e6,
            id,
            task,
        };
        // Texts and one number: always JSON.
        let mut letter = serde_json::to_vec(&head).unwrap_or_default();
        letter.push(b'\n');
        letter.extend_from_slice(raw);
        letter
    }
}

/// Longest id or name that is shown.
const LONGEST_NAME: usize = 255;

/// Id and name of a task, however little else of its message can be read.
pub(crate) fn names(raw: &[u8]) -> (Option<String>, Option<String>) {
    #[derive(Default, Deserialize)]
    struct Names {
        #[serde(default)]
        id: serde_json::Value,
        #[serde(default)]
        task: serde_json::Value,
    }
    let headers = std::str::from_utf8(raw).ok().and_then(crate::wire::headers_alone);
    let names = headers.and_then(|headers| crate::wire::json::parse::<Names>(headers.get()).ok());
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) if text.len() <= LONGEST_NAME => Some(text),
        _ => None,
    };
    let Names { id, task } = names.unwrap_or_default();
    (text(id), text(task))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_of_any_bytes_is_read_back() {
        for message in [&b"\xff\n{}"[..], b"", b"{\"reason\": 1}\n\n"] {
            let head = DeadLetter {
                reason: "because\nof that".into(),
                queue: "q".into(),
                worker: "w@here".into(),
                time: 1.5,
                ..DeadLetter::default()
            };
            let element = [&serde_json::to_vec(&head).unwrap()[..], b"\n", message].concat();
            let found = Found::read(b"h", element.len(), element, "q");
            assert_eq!((found.message(), &found.letter), (message, &head));
        }
    }

    #[test]
    fn what_a_letter_says_of_its_id_stands_and_the_message_has_the_rest() {
        let message = br#"{"headers": {"id": "1", "task": "t"}, "body": "?", "properties": {}}"#;
        let read = |head: &str, message: &[u8]| {
            let element = [head.as_bytes(), b"\n", message].concat();
            let letter = Found::read(b"h", element.len(), element, "q").letter;
            (letter.id, letter.task)
        };
        let text = |text: &str| Some(text.to_owned());
        let head = r#"{"reason": "by hand", "queue": "q", "id": "7"}"#;
        assert_eq!(read(head, b"garbage"), (text("7"), None));
        assert_eq!(read(head, message), (text("7"), text("t")));
        let head = r#"{"reason": "by hand", "queue": "q"}"#;
        assert_eq!(read(head, message), (text("1"), text("t")));
    }

    #[test]
    fn what_somebody_else_put_there_is_a_message_as_a_whole() {
        for element in [&b"garbage"[..], b"{\"reason\": \"x\"}\nrest", b"\n"] {
            let found = Found::read(b"h", element.len(), element.to_vec(), "q");
            assert_eq!(found.message(), element);
            assert_eq!(
                (found.letter.reason.as_str(), found.letter.queue.as_str()),
                ("unknown", "q")
            );
        }
    }

    #[test]
    fn id_and_name_are_read_of_what_is_no_task_message() {
        let broken = br#"{"headers": {"id": "1", "task": "t", "retries": "many"}, "body": 7, "properties": "?"}"#;
        assert_eq!(names(broken), (Some("1".into()), Some("t".into())));
        let broken = br#"{"headers": {"id": "1", "task": ["t"], "retries": NaN}, "body": "?", "properties": {}}"#;
        assert_eq!(names(broken).1, None);
        let broken = br#"{"headers": {"id": "1", "task": "t", "retries": "many"}, "body": "?", "properties": {}}"#;
        assert_eq!(names(broken), (Some("1".into()), Some("t".into())));
    }
}
