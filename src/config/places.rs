//! On which line of the file something stands.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of a file and where they are.
pub(super) struct Places<'a> {
    text: &'a str,
    table: Spanned<DeTable<'a>>,
}

impl<'a> Places<'a> {
    /// # Errors
    /// The text is no TOML: the line, and what is wrong there.
    pub(super) fn of(text: &'a str) -> Result<Self, (usize, String)> {
        match DeTable::parse(text) {
            Ok(table) => Ok(Self { text, table }),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                Err((line(text, at), error.message().replace('\n', " ")))
            }
        }
    }

    /// The line of a part of the file, and the setting that it belongs to.
    pub(super) fn of_span(&self, span: Option<Range<usize>>) -> (usize, &str) {
        let at = span.map_or(0, |span| span.start);
        let before = self.table.get_ref().keys().filter(|key| key.span().start <= at);
        let name = before.max_by_key(|key| key.span().start);
        (line(self.text, at), name.map_or("", |key| key.get_ref()))
    }

    /// The line of what is found there, going on with the keys that the error names:
    /// `schedule: hour: 24 is not in 0-23` may stand far below the beginning of its entry.
    pub(super) fn line(&self, at: &[&str], error: &str) -> usize {
        let mut place = self.table.span().start;
        let mut here = Some(self.table.get_ref());
        let named = named(error);
        let mut go = |name: &str| {
            let found = here.and_then(|table| table.iter().find(|(key, _)| key.get_ref() == name));
            let Some((key, value)) = found else { return false };
            place = key.span().start;
            here = match value.get_ref() {
                DeValue::Table(table) => Some(table),
                _ => None,
            };
            true
        };
        let _ = at.iter().copied().chain(named).all(&mut go);
        line(self.text, place)
    }
}

fn line(text: &str, at: usize) -> usize {
    text[..at.min(text.len())].matches('\n').count() + 1
}

/// The field that an error of serde's is about: ``… in `a.b` ``.
pub(super) fn field(error: &str) -> Option<&str> {
    error.rsplit_once("in `")?.1.trim_end().strip_suffix('`')
}

/// The keys that an error names, from the outside to the inside.
fn named(error: &str) -> Vec<&str> {
    let unknown = error
        .split_once("unknown field `")
        .and_then(|(_, rest)| rest.split('`').next());
    let outside = match field(error) {
        Some(path) => path.split('.').collect(),
        None => error.split(": ").collect::<Vec<_>>(),
    };
    let is_inside = field(error).is_some();
    match unknown {
        Some(key) if is_inside => outside.into_iter().chain([key]).collect(),
        Some(key) => vec![key],
        None => outside,
    }
}
