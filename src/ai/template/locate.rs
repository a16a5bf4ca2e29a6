//! Finds the line of a value in a YAML text. The parser's values carry no places, so this follows the indentation of
//! block style; inside flow style (`{a: b}`) it stops at the line it has reached, which is close enough to look at.

/// A step on the way to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// A key of a mapping.
    Key(&'a str),
    /// An item of a sequence, from zero.
    Item(usize),
}

impl<'a> From<&'a str> for Place<'a> {
    fn from(key: &'a str) -> Self {
        Self::Key(key)
    }
}

impl From<usize> for Place<'_> {
    fn from(item: usize) -> Self {
        Self::Item(item)
    }
}

/// One line of the region that is searched: its number, where its content begins, and the content.
#[derive(Clone, Copy, Debug)]
struct Line<'a> {
    number: usize,
    indent: usize,
    text: &'a str,
}

/// The line of a value, counted from one; the nearest one that could be found.
pub(crate) fn line_of(source: &str, place: &[Place<'_>]) -> usize {
    walk(source, place).map_or(1, |line| line.number)
}

/// The line on which the text of a scalar begins: the next one for block scalars (`|`, `>`).
pub(crate) fn text_line_of(source: &str, place: &[Place<'_>]) -> usize {
    walk(source, place).map_or(1, |line| {
        let value = line.text.split_once(':').map_or("", |(_, value)| value.trim_start());
        line.number + usize::from(value.starts_with(['|', '>']))
    })
}

fn walk<'a>(source: &'a str, place: &[Place<'_>]) -> Option<Line<'a>> {
    let mut region: Vec<Line<'_>> = source
        .lines()
        .enumerate()
        .map(|(at, text)| Line {
            number: at + 1,
            indent: text.len() - text.trim_start().len(),
            text: text.trim_start(),
        })
        .filter(|line| !line.text.is_empty() && !line.text.starts_with('#') && line.text != "---")
        .collect();
    let mut found = None;
    for step in place {
        let Some(indent) = region.iter().map(|line| line.indent).min() else {
            return found;
        };
        let at = match step {
            Place::Key(key) => region
                .iter()
                .position(|line| line.indent == indent && has_key(line.text, key)),
            Place::Item(item) => {
                let starts = region
                    .iter()
                    .enumerate()
                    .filter(|(_, line)| line.indent == indent && is_item(line.text));
                starts.map(|(at, _)| at).nth(*item)
            }
        };
        let Some(at) = at else { return found };
        let line = region[at];
        found = Some(line);
        let inside = |next: &&Line<'_>| match step {
            // The items of a sequence may stand at the indentation of its key.
            Place::Key(_) => next.indent > indent || (next.indent == indent && is_item(next.text)),
            Place::Item(_) => next.indent > indent,
        };
        let rest = region[at + 1..].iter().take_while(inside).copied();
        let first = match step {
            Place::Item(_) => Some(first_of_item(line)),
            Place::Key(_) => None,
        };
        region = first.into_iter().chain(rest).collect();
    }
    found
}

fn is_item(text: &str) -> bool {
    text == "-" || text.starts_with("- ")
}

/// `- id: x` is a line of the item's mapping, two columns further in.
fn first_of_item(line: Line<'_>) -> Line<'_> {
    let text = line.text.strip_prefix('-').unwrap_or(line.text);
    let inner = text.trim_start();
    Line {
        indent: line.indent + 1 + text.len() - inner.len(),
        text: inner,
        ..line
    }
}

fn has_key(text: &str, key: &str) -> bool {
    let text = text.strip_prefix(['"', '\'']).unwrap_or(text);
    text.strip_prefix(key)
        .map(|rest| rest.strip_prefix(['"', '\'']).unwrap_or(rest))
        .is_some_and(|rest| rest.trim_start().starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
name: x
parameters:
  text:
    type: string
  words: {type: integer}
steps:
- id: one
  prompt: |
    first
    second
  options:
    temperature: 1
- id: two
  \"prompt\": hello
output: y
";

    #[test]
    fn places_are_found() {
        for (place, line) in [
            (&["name".into()][..], 2),
            (&["parameters".into(), "text".into(), "type".into()], 5),
            (&["parameters".into(), "words".into(), "type".into()], 6),
            (&["steps".into(), 0.into(), "id".into()], 8),
            (&["steps".into(), 0.into(), "options".into(), "temperature".into()], 13),
            (&["steps".into(), 1.into(), "prompt".into()], 15),
            (&["output".into()], 16),
            (&["nothing".into()], 1),
        ] {
            assert_eq!(line_of(TEXT, place), line, "{place:?}");
        }
        assert_eq!(text_line_of(TEXT, &["steps".into(), 0.into(), "prompt".into()]), 10);
        assert_eq!(text_line_of(TEXT, &["steps".into(), 1.into(), "prompt".into()]), 15);
    }
}
