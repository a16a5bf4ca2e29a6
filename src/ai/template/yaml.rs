//! YAML in which every value knows its line and column. The only place that reads YAML files.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};
use serde_json::{Map, Number, Value};

use super::{Problem, Problems};

/// Largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;
/// Most values in a file, those of aliases counted each time.
const MOST: usize = 100_000;
/// Deepest nesting.
const DEEPEST: usize = 64;

/// A place in a file, counted from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Yaml {
    /// Its place; that of the first line of the text for block scalars (`|`, `>`).
    pub at: Mark,
    /// What it is.
    pub data: Data,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// Anything that is neither list nor mapping.
    Scalar(Value),
    /// A list.
    List(Vec<Yaml>),
    /// A mapping in the order of the file.
    Map(Vec<(Key, Yaml)>),
}

/// A key and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Its text.
    pub name: String,
    /// Its place.
    pub at: Mark,
}

impl Yaml {
    /// Its text, if it is one.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Its entries, if it is a mapping.
    pub(crate) fn as_map(&self) -> Option<&[(Key, Yaml)]> {
        match &self.data {
            Data::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The same without places.
    pub(crate) fn to_value(&self) -> Value {
        match &self.data {
            Data::Scalar(value) => value.clone(),
            Data::List(items) => items.iter().map(Self::to_value).collect(),
            Data::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| (key.name.clone(), value.to_value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    /// What it is, in words.
    pub(crate) fn what(&self) -> &'static str {
        match &self.data {
            Data::Scalar(Value::Null) => "nothing",
            Data::Scalar(Value::Bool(_)) => "a boolean",
            Data::Scalar(Value::Number(_)) => "a number",
            Data::Scalar(_) => "a text",
            Data::List(_) => "a list",
            Data::Map(_) => "a mapping",
        }
    }
}

/// The text of a file.
///
/// # Errors
/// It cannot be read.
pub(crate) fn text_of(path: &Path) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    // Not by the size that the file says it has: that of a device, or of a file that grows, is not what is read.
    std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| Problem::unread(path, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Problem::file(path, format!("is larger than {LARGEST} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| Problem::file(path, "cannot be read: it is no UTF-8"))
}

/// Reads the one document of a file. Keys that are there twice are told; what cannot be read at all is no value.
pub(crate) fn read(problems: &mut Problems) -> Option<Yaml> {
    let text = match text_of(problems.path()) {
        Ok(text) => text,
        Err(problem) => {
            problems.push(problem);
            return None;
        }
    };
    problems.read_from(&text);
    parse(&text, problems)
}

/// Reads a text as if it stood in the file of `problems`.
pub(crate) fn parse(text: &str, problems: &mut Problems) -> Option<Yaml> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let hint = hint(text, error.marker().line());
                problems.add_with(
                    mark(*error.marker()),
                    format!("this is no YAML: {}", error.info()),
                    hint,
                );
                return None;
            }
        };
        if let Err(what) = builder.take(event, span, problems) {
            problems.add(mark(span.start), what);
            return None;
        }
    }
    let whole = builder.done.take();
    if whole.is_none() {
        problems.add(Mark { line: 1, column: 1 }, "the file is empty");
    }
    whole
}

fn mark(marker: Marker) -> Mark {
    Mark {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

/// The usual mistakes.
fn hint(text: &str, line: usize) -> Option<String> {
    let lines = || text.lines().take(line).skip(line.saturating_sub(2));
    if lines().any(|line| line.starts_with('\t')) {
        return Some("indent with spaces, not with tabs".into());
    }
    let starts_with_braces = |line: &str| {
        line.split_once(": ")
            .is_some_and(|(_, value)| value.trim_start().starts_with("{{"))
    };
    if lines().any(starts_with_braces) {
        return Some("put a text that begins with {{ into quotes".into());
    }
    lines()
        .any(|line| line.matches(": ").count() > 1)
        .then(|| "put a text with a colon in it into quotes".into())
}

/// Puts events together.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Yaml>,
    done: Option<Yaml>,
    count: usize,
}

/// A list or mapping that is not complete.
struct Open {
    at: Mark,
    anchor: usize,
    data: Data,
    key: Option<Key>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span, problems: &mut Problems) -> Result<(), String> {
        let at = mark(span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
                    return Err(format!("the tag {}{} means nothing here", tag.handle, tag.suffix));
                }
                let value = match style {
                    ScalarStyle::Plain => plain(&text),
                    _ => Value::String(text.into_owned()),
                };
                let value = Yaml {
                    at,
                    data: Data::Scalar(value),
                };
                self.add(value, anchor, problems)
            }
            Event::SequenceStart(anchor, _) => self.open(at, anchor, Data::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.open(at, anchor, Data::Map(Vec::new())),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else {
                    return Err("an end without a beginning".into());
                };
                let value = Yaml {
                    at: open.at,
                    data: open.data,
                };
                self.add(value, open.anchor, problems)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(value) => {
                    self.count += size(&value);
                    self.add(value, 0, problems)
                }
                None => Err("a value holds itself".into()),
            },
            Event::DocumentStart(_) if self.done.is_some() => Err("there is a second document; a file has one".into()),
            _ => Ok(()),
        }
    }

    fn open(&mut self, at: Mark, anchor: usize, data: Data) -> Result<(), String> {
        if self.open.len() >= DEEPEST {
            return Err(format!("this is nested deeper than {DEEPEST} levels"));
        }
        self.open.push(Open {
            at,
            anchor,
            data,
            key: None,
        });
        Ok(())
    }

    fn add(&mut self, value: Yaml, anchor: usize, problems: &mut Problems) -> Result<(), String> {
        self.count += 1;
        if self.count > MOST {
            return Err(format!("there are more than {MOST} values"));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.done = Some(value);
            return Ok(());
        };
        match (&mut open.data, open.key.take()) {
            (Data::List(items), _) => items.push(value),
            (Data::Map(_), None) => {
                let name = match &value.data {
                    Data::Scalar(Value::String(text)) => text.clone(),
                    Data::Scalar(Value::Null) | Data::List(_) | Data::Map(_) => {
                        return Err("a key must be a text; put a text that begins with {{ into quotes".into());
                    }
                    Data::Scalar(other) => other.to_string(),
                };
                if name == "<<" {
                    return Err(
                        "merge keys (<<) are not read; repeat the entries, or use an alias for the whole".into(),
                    );
                }
                open.key = Some(Key { name, at: value.at });
            }
            (Data::Map(entries), Some(key)) => {
                if entries.iter().any(|(other, _)| other.name == key.name) {
                    problems.add(key.at, format!("{:?} is there twice", key.name));
                } else {
                    entries.push((key, value));
                }
            }
            (Data::Scalar(_), _) => return Err("a value in a value".into()),
        }
        Ok(())
    }
}

fn size(value: &Yaml) -> usize {
    match &value.data {
        Data::Scalar(_) => 1,
        Data::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Data::Map(entries) => 1 + entries.iter().map(|(_, value)| size(value)).sum::<usize>(),
    }
}

/// What a text without quotes stands for (YAML 1.2, core schema).
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return true.into(),
        "false" | "False" | "FALSE" => return false.into(),
        _ => {}
    }
    let number = |text: &str| text.starts_with(|char: char| char.is_ascii_digit() || matches!(char, '+' | '-' | '.'));
    if !number(text) {
        return text.into();
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return i64::from_str_radix(digits, 16).map_or_else(|_| text.into(), Value::from);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return i64::from_str_radix(digits, 8).map_or_else(|_| text.into(), Value::from);
    }
    if let Ok(whole) = text.parse::<i64>() {
        return whole.into();
    }
    if let Ok(whole) = text.parse::<u64>() {
        return whole.into();
    }
    let is_float = text
        .chars()
        .all(|char| char.is_ascii_digit() || matches!(char, '+' | '-' | '.' | 'e' | 'E'));
    match text.parse::<f64>().ok().filter(|_| is_float).and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> (Option<Yaml>, Vec<String>) {
        let mut problems = Problems::of(Path::new("t.yaml"));
        let value = parse(text, &mut problems);
        (value, problems.into_vec().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn values_have_types_and_places() {
        let (value, problems) = read("a: 1\nb: {c: [x, \"2\", 2.5, yes, ~]}\nd: |\n  one\n  two\n");
        assert!(problems.is_empty(), "{problems:?}");
        let value = value.unwrap();
        assert_eq!(
            value.to_value(),
            json!({"a": 1, "b": {"c": ["x", "2", 2.5, "yes", null]}, "d": "one\ntwo\n"})
        );
        let entries = value.as_map().unwrap();
        assert_eq!((entries[1].1.at.line, entries[1].1.at.column), (2, 4));
        assert_eq!((entries[2].1.at.line, entries[2].1.at.column), (4, 3));
    }

    #[test]
    fn bombs_are_refused() {
        let mut text = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
        for (this, last) in ["b", "c", "d", "e", "f", "g"]
            .iter()
            .zip(["a", "b", "c", "d", "e", "f"])
        {
            text.push_str(&format!(
                "{this}: &{this} [{}]\n",
                vec![format!("*{last}"); 10].join(", ")
            ));
        }
        assert!(read(&text).1[0].contains("more than 100000 values"));
        assert!(read(&"[".repeat(100)).1[0].contains("deeper than 64"));
    }
}
