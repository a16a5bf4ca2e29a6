//! The file of results, which is also what a batch remembers: a head, and a line for every row that ended.
//!
//! A run that was killed leaves half a line at most, which is cut off; everything else is there. The Python client
//! writes and reads the same lines.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

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
}

/// What a file of results says.
#[derive(Debug)]
pub(super) struct Known {
    /// Its head, if it has one already.
    pub head: Option<Head>,
    /// The last line of each row.
    pub last: BTreeMap<u64, Line>,
    /// Where the last whole line ends.
    end: u64,
}

/// Reads a file of results.
///
/// # Errors
/// It cannot be read, or is something else.
pub(super) fn read(path: &Path) -> Result<Known, String> {
    let file = File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    read_from(&file, path)
}

fn read_from(file: &File, path: &Path) -> Result<Known, String> {
    let shown = path.display();
    let mut known = Known {
        head: None,
        last: BTreeMap::new(),
        end: 0,
    };
    let mut reader = BufReader::new(file);
    let (mut text, mut number) = (Vec::new(), 0_u64);
    loop {
        text.clear();
        number += 1;
        let length = reader
            .by_ref()
            .take(256 << 20)
            .read_until(b'\n', &mut text)
            .map_err(|error| format!("cannot read {shown}: {error}"))?;
        if !text.ends_with(b"\n") {
            return Ok(known);
        }
        let wrong = |error: serde_json::Error| format!("{shown}:{number}: not a file of results: {error}");
        if known.head.is_none() {
            known.head = Some(serde_json::from_slice(&text).map_err(wrong)?);
        } else {
            let line: Line = serde_json::from_slice(&text).map_err(wrong)?;
            known.last.insert(line.row, line);
        }
        known.end += length as u64;
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
        let mut known = read_from(&file, path)?;
        file.set_len(known.end).map_err(cannot)?;
        file.seek(SeekFrom::Start(known.end)).map_err(cannot)?;
        let mut journal = Self {
            file,
            path: path.to_owned(),
        };
        match &known.head {
            None => {
                let head = Head {
                    batch: Uuid::new_v4().to_string(),
                    task: task.to_owned(),
                    template: template.map(str::to_owned),
                };
                journal.append(&head)?;
                known.head = Some(head);
            }
            Some(head) if head.task != task || head.template.as_deref() != template => {
                let what = head.template.as_deref().unwrap_or(&head.task);
                return Err(format!(
                    "{shown} has the results of {what:?}; name another file with --output"
                ));
            }
            Some(_) => {}
        }
        Ok((journal, known))
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
    fn a_journal_is_read_again_without_the_line_that_was_torn() {
        let path = std::env::temp_dir().join(format!("journal-{}", Uuid::new_v4()));
        let (mut journal, known) = Journal::open(&path, "t", None).unwrap();
        let batch = known.head.unwrap().batch;
        journal.append(&line(1, 0, "FAILURE")).unwrap();
        journal.append(&line(1, 1, "SUCCESS")).unwrap();
        let busy = Journal::open(&path, "t", None).unwrap_err();
        assert!(busy.ends_with("is being written by another process"), "{busy}");
        journal.file.write_all(b"{\"row\": 2, \"atte").unwrap();
        drop(journal);
        let (mut journal, known) = Journal::open(&path, "t", None).unwrap();
        assert_eq!(known.head.unwrap().batch, batch);
        assert_eq!(known.last.len(), 1);
        assert!(known.last[&1].succeeded());
        journal.append(&line(2, 0, "SUCCESS")).unwrap();
        drop(journal);
        assert_eq!(read(&path).unwrap().last.len(), 2);
        let other = Journal::open(&path, "other", None).unwrap_err();
        assert!(other.contains("has the results of \"t\"; name another file"), "{other}");
        std::fs::write(&path, "{\"a\": 1}\n").unwrap();
        assert!(read(&path).unwrap_err().contains(":1: not a file of results: "));
        std::fs::remove_file(&path).unwrap();
    }
}
