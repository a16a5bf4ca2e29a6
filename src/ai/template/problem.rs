//! What is wrong with a file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use super::locate::{Place, line_of};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    path: Option<PathBuf>,
    line: Option<usize>,
    column: Option<usize>,
    text: String,
}

impl Problem {
    /// Nowhere in particular.
    pub(crate) fn general(text: impl Into<String>) -> Self {
        Self {
            path: None,
            line: None,
            column: None,
            text: text.into(),
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
            text: text.into(),
        }
    }

    /// A place in a YAML file.
    pub(crate) fn at(path: &Path, source: &str, place: &[Place<'_>], text: impl Into<String>) -> Self {
        Self::line(path, line_of(source, place), None, text)
    }

    /// Where it is, if it is in a file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
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
        f.write_str(&self.text)
    }
}
