//! Tables for people.

use std::fmt;

use serde_json::Value;

/// Cells longer than this are cut; `--json` has them whole.
const WIDEST: usize = 60;

/// Rows under a heading, in columns as wide as what is in them.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        Self {
            rows: match heading {
                [] => Vec::new(),
                titles => vec![titles.iter().map(|title| (*title).to_owned()).collect()],
            },
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| one_line(&cell)).collect());
    }

    /// Whether there is nothing under the heading.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }
}

/// A cell: without what would move the cursor.
fn one_line(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    if plain.chars().count() <= WIDEST {
        return plain;
    }
    let start: String = plain.chars().take(WIDEST - 1).collect();
    format!("{start}…")
}

/// A value in a cell: text as it is, everything else as JSON.
pub(super) fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| {
            self.rows
                .iter()
                .filter_map(|row| Some(row.get(at)?.chars().count()))
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
