//! What is wrong with a file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use super::yaml::Mark;
use crate::text::closest;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    path: Option<PathBuf>,
    line: Option<usize>,
    column: Option<usize>,
    text: String,
    hint: Option<String>,
    /// What was to be read could not be: nothing is known of it, and it may be in order the next time.
    is_unread: bool,
}

impl Problem {
    /// Nowhere in particular.
    pub(crate) fn general(text: impl Into<String>) -> Self {
        Self {
            path: None,
            line: None,
            column: None,
            text: text.into(),
            hint: None,
            is_unread: false,
        }
    }

    /// A file or folder that cannot be read.
    pub(crate) fn unread(path: &Path, text: impl Into<String>) -> Self {
        Self {
            is_unread: true,
            ..Self::file(path, text)
        }
    }

    /// A whole file or folder.
    pub(crate) fn file(path: &Path, text: impl Into<String>) -> Self {
        Self {
            path: Some(path.to_owned()),
            ..Self::general(text)
        }
    }

    /// A line and column of a file, counted from one.
    pub(crate) fn line(path: &Path, line: usize, column: Option<usize>, text: impl Into<String>) -> Self {
        Self {
            path: Some(path.to_owned()),
            line: Some(line),
            column,
            ..Self::general(text)
        }
    }

    /// A place in a file.
    pub(crate) fn at(path: &Path, mark: Mark, text: impl Into<String>) -> Self {
        Self::line(path, mark.line, Some(mark.column), text)
    }

    /// The same with what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// Whether it could not be read.
    pub(crate) fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Where it is, if it is in a file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    fn place(&self) -> (Option<usize>, Option<usize>) {
        (self.line, self.column)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}:", path.display())?;
            for number in [self.line, self.column].into_iter().flatten() {
                write!(f, "{number}:")?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.text)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with one file.
#[derive(Debug)]
pub(crate) struct Problems {
    path: PathBuf,
    source: String,
    found: Vec<Problem>,
}

impl Problems {
    /// Nothing yet.
    pub(crate) fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            source: String::new(),
            found: Vec::new(),
        }
    }

    /// The text of the file, for columns in the middle of its values.
    pub(crate) fn read_from(&mut self, source: &str) {
        source.clone_into(&mut self.source);
    }

    /// The text of the file.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// One more in a line of a value's text, at an offset in that line.
    pub(crate) fn add_inside(
        &mut self,
        line: usize,
        text: &str,
        offset: usize,
        what: impl Into<String>,
        hint: Option<String>,
    ) {
        let raw = self.source.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        let column = raw.find(text.trim_end()).map(|start| {
            let bytes = raw.get(..start + offset).unwrap_or(raw);
            bytes.chars().count() + 1
        });
        let what = what.into();
        self.found
            .push(Problem::line(&self.path, line, column, what).hint(hint));
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// One more.
    pub(crate) fn add(&mut self, mark: Mark, text: impl Into<String>) {
        self.found.push(Problem::at(&self.path, mark, text));
    }

    /// One more, with what to do about it.
    pub(crate) fn add_with(&mut self, mark: Mark, text: impl Into<String>, hint: Option<String>) {
        self.found.push(Problem::at(&self.path, mark, text).hint(hint));
    }

    /// One that is made already.
    pub(crate) fn push(&mut self, problem: Problem) {
        self.found.push(problem);
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.found.len()
    }

    /// All of them in the order of the file.
    pub(crate) fn into_vec(mut self) -> Vec<Problem> {
        self.found.sort_by_key(Problem::place);
        self.found.dedup();
        self.found
    }
}

/// What was probably meant, or what there is.
pub(crate) fn meant<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(close) = closest(word, known.clone()) {
        return Some(format!("did you mean {close:?}?"));
    }
    let known: Vec<&str> = known.collect();
    (!known.is_empty()).then(|| format!("there are {}", known.join(", ")))
}
