//! The file of results, which is also what a batch remembers: a head, and a line for every row that ended.
//!
//! A run that was killed leaves half a line at most, which is cut off; everything else is there. The Python client
//! writes and reads the same lines.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{Hash as _, Hasher as _};
use std::io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// Longer than any line: a message has at most 64 MiB, a result too.
const LONGEST: u64 = 256 << 20;

/// The first line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Head {
    /// In front of the ids of its tasks.
    pub batch: String,
    /// The task that is called for every row.
    pub task: String,
    /// The template, where the task is the one that runs templates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
}

/// A row that ended.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Line {
    /// Its place among the rows, from 0.
    pub row: u64,
    /// 0, or how often it was run before.
    pub attempt: u32,
    /// Task id.
    pub id: String,
    /// SUCCESS, FAILURE or REVOKED.
    pub state: String,
    /// The row.
    pub input: Value,
    /// What the task returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The exception, as Python shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Line {
    pub(super) fn succeeded(&self) -> bool {
        self.state == "SUCCESS"
    }

    /// Tokens that its result counts.
    pub(super) fn tokens(&self) -> u64 {
        let usage = self
            .result
            .as_ref()
            .and_then(|result| result.pointer("/usage/total_tokens"));
        usage.and_then(Value::as_u64).unwrap_or_default()
    }
}

/// What is remembered of a row that ended, while others run: rows and results are large.
#[derive(Debug)]
pub(super) struct Ended {
    pub attempt: u32,
    pub succeeded: bool,
    /// Tokens that its result counts.
    pub tokens: u64,
    input: u64,
}

impl Ended {
    fn of(line: &Line) -> Self {
        Self {
            attempt: line.attempt,
            succeeded: line.succeeded(),
            tokens: line.tokens(),
            input: digest(&line.input),
        }
    }

    /// Whether it is that row that was run.
    pub(super) fn is_of(&self, input: &Value) -> bool {
        self.input == digest(input)
    }
}

/// A number that two different rows do not share, whatever the order of their fields.
fn digest(input: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    hasher.finish()
}

/// What a file of results says.
#[derive(Debug)]
pub(super) struct Known {
    /// Its head.
    pub head: Head,
    /// What the last line of each row says.
    pub last: BTreeMap<u64, Ended>,
}

/// Reads the last line of each row of a file of results.
///
/// # Errors
/// It cannot be read, or is something else.
pub(super) fn read(path: &Path) -> Result<BTreeMap<u64, Line>, String> {
    let file = File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut last = BTreeMap::new();
    read_from(&file, path, |line| drop(last.insert(line.row, line)))?;
    Ok(last)
}

/// Reads a file of results line by line: its head, if the file is not empty, and where its last whole line ends.
fn read_from(file: &File, path: &Path, mut each: impl FnMut(Line)) -> Result<(Option<Head>, u64), String> {
    let shown = path.display();
    let (mut head, mut end) = (None, 0);
    let mut reader = BufReader::new(file);
    let (mut text, mut number) = (Vec::new(), 0_u64);
    loop {
        text.clear();
        number += 1;
        let length = reader
            .by_ref()
            .take(LONGEST)
            .read_until(b'\n', &mut text)
            .map_err(|error| format!("cannot read {shown}: {error}"))?;
        if length as u64 == LONGEST && !text.ends_with(b"\n") {
            return Err(format!("{shown}:{number}: not a file of results: the line has no end"));
        }
        let wrong = |error: serde_json::Error| format!("{shown}:{number}: not a file of results: {error}");
        match (&head, text.ends_with(b"\n")) {
            // The half of a line that a run which was killed has left; there is nothing else behind it.
            (Some(_), false) => return Ok((head, end)),
            (None, false) if text.is_empty() => return Ok((head, end)),
            (None, _) => head = Some(serde_json::from_slice(&text).map_err(wrong)?),
            (Some(_), true) => each(serde_json::from_slice(&text).map_err(wrong)?),
        }
        if !text.ends_with(b"\n") {
            return Err(format!(
                "{shown}:{number}: not a file of results: its first line has no end"
            ));
        }
        end += length as u64;
    }
}

/// A file of results that is being written.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens the file, or makes it, for a batch of that task; nobody else may write to it meanwhile.
    ///
    /// # Errors
    /// It cannot be written, is another batch's, or is in use.
    pub(super) fn open(path: &Path, task: &str, template: Option<&str>) -> Result<(Self, Known), String> {
        let shown = path.display();
        let cannot = |error: std::io::Error| format!("cannot write {shown}: {error}");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(cannot)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(format!("{shown} is being written by another process")),
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
            Ok(()) => {}
        }
        let mut last = BTreeMap::new();
        let each = |line: Line| {
            last.insert(line.row, Ended::of(&line));
        };
        let (head, end) =
            read_from(&file, path, each).map_err(|error| format!("{error}; name another file with --output"))?;
        file.set_len(end).map_err(cannot)?;
        file.seek(SeekFrom::Start(end)).map_err(cannot)?;
        let mut journal = Self {
            file,
            path: path.to_owned(),
        };
        let head = match head {
            None => {
                let head = Head {
                    batch: Uuid::new_v4().to_string(),
                    task: task.to_owned(),
                    template: template.map(str::to_owned),
                };
                journal.append(&head)?;
                head
            }
            Some(head) if head.task != task || head.template.as_deref() != template => {
                let what = head.template.as_deref().unwrap_or(&head.task);
                return Err(format!(
                    "{shown} has the results of {what:?}; name another file with --output"
                ));
            }
            Some(head) => head,
        };
        Ok((journal, Known { head, last }))
    }

    /// Adds a line; it is in the file when this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn append(&mut self, line: &impl Serialize) -> Result<(), String> {
        let mut text = serde_json::to_vec(line).map_err(|error| error.to_string())?;
        text.push(b'\n');
        self.file
            .write_all(&text)
            .map_err(|error| format!("cannot write {}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(row: u64, attempt: u32, state: &str) -> Line {
        Line {
            row,
            attempt,
            id: format!("b-{row}-{attempt}"),
            state: state.into(),
            input: Value::Null,
            result: None,
            error: None,
        }
    }

    #[test]
    fn a_journal_is_read_again_without_the_line_that_was_torn_and_nothing_else_is_cut() {
        let path = std::env::temp_dir().join(format!("journal-{}", Uuid::new_v4()));
        let (mut journal, known) = Journal::open(&path, "t", None).unwrap();
        let batch = known.head.batch;
        journal.append(&line(1, 0, "FAILURE")).unwrap();
        journal.append(&line(1, 1, "SUCCESS")).unwrap();
        let busy = Journal::open(&path, "t", None).unwrap_err();
        assert!(busy.ends_with("is being written by another process"), "{busy}");
        journal.file.write_all(b"{\"row\": 2, \"atte").unwrap();
        drop(journal);
        let (mut journal, known) = Journal::open(&path, "t", None).unwrap();
        assert_eq!(known.head.batch, batch);
        assert_eq!(known.last.len(), 1);
        assert!(known.last[&1].succeeded && known.last[&1].is_of(&Value::Null));
        assert!(!known.last[&1].is_of(&Value::from(1)));
        journal.append(&line(2, 0, "SUCCESS")).unwrap();
        drop(journal);
        assert_eq!(read(&path).unwrap().len(), 2);
        let other = Journal::open(&path, "other", None).unwrap_err();
        assert!(other.contains("has the results of \"t\"; name another file"), "{other}");
        std::fs::write(&path, "{\"a\": 1}\n").unwrap();
        assert!(read(&path).unwrap_err().contains(":1: not a file of results: "));
        for foreign in [
            "my only copy",
            "{\"batch\": \"b\", \"task\": \"t\"}",
            "a line\nand half of one",
        ] {
            std::fs::write(&path, foreign).unwrap();
            let error = Journal::open(&path, "t", None).unwrap_err();
            assert!(error.contains(":1: not a file of results: "), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
        }
        // A line that is longer than is read at once is no torn one; what is behind it stays.
        let head = serde_json::to_string(&json!({"batch": "b", "task": "t"})).unwrap();
        std::fs::write(&path, format!("{head}\n")).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(LONGEST + 1000).unwrap();
        let error = Journal::open(&path, "t", None).unwrap_err();
        assert!(
            error.contains(":2: not a file of results: the line has no end"),
            "{error}"
        );
        assert_eq!(file.metadata().unwrap().len(), LONGEST + 1000);
        std::fs::remove_file(&path).unwrap();
    }
}
