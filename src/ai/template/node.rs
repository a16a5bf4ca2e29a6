//! Values with expressions in them: fields of steps, formats, outputs.

use serde_json::Value;

use super::Problems;
use super::yaml::{Data, Yaml};

/// A value of the file. Texts that are one expression and nothing else (`"{{ words }}"`) keep the type of what they
/// stand for; other texts are rendered to text.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// As it stands.
    Literal(Value),
    /// The value of an expression.
    Expression(Source),
    /// Rendered text.
    Text(Source),
    /// A list.
    List(Vec<Node>),
    /// An object.
    Object(Vec<(String, Node)>),
}

/// A piece of minijinja and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Its name: `steps.answer.prompt`.
    pub name: String,
    /// The text.
    pub text: String,
    /// The line of the file on which the text begins.
    pub line: usize,
    /// Whether it is an expression.
    pub is_expression: bool,
}

impl Source {
    /// The line of the text, from zero, in which a variable is first read, and the offset in that line.
    pub(super) fn place_of(&self, variable: &str) -> (usize, usize) {
        let at = self.text.find(variable).unwrap_or(0);
        self.place_at(at)
    }

    /// The line, from zero, and the offset in it of a byte of the text.
    pub(super) fn place_at(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        (before.matches('\n').count(), before.len() - start)
    }

    /// Tells what is wrong at a place in it.
    pub(super) fn tell(
        &self,
        (line, offset): (usize, usize),
        what: &str,
        hint: Option<String>,
        problems: &mut Problems,
    ) {
        let text = self.text.lines().nth(line).unwrap_or_default();
        let what = format!("{}: {what}", self.name);
        problems.add_inside(self.line + line, text, offset, what, hint);
    }
}

impl Node {
    /// Finds the expressions in a value; `name` is its name.
    pub(crate) fn new(name: &str, value: &Yaml) -> Self {
        let source = |text: &str, is_expression| Source {
            name: name.to_owned(),
            text: text.to_owned(),
            line: value.at.line,
            is_expression,
        };
        match &value.data {
            Data::Scalar(Value::String(text)) => match expression(text) {
                Some(expression) => Self::Expression(source(expression, true)),
                None if text.contains("{{") || text.contains("{%") => Self::Text(source(text, false)),
                None => Self::Literal(Value::String(text.clone())),
            },
            Data::Scalar(literal) => Self::Literal(literal.clone()),
            Data::List(items) => {
                let items = items.iter().enumerate();
                Self::List(
                    items
                        .map(|(at, item)| Self::new(&format!("{name}[{at}]"), item))
                        .collect(),
                )
            }
            Data::Map(entries) => {
                let entries = entries.iter();
                let node = |(key, value): &(super::yaml::Key, Yaml)| {
                    (key.name.clone(), Self::new(&format!("{name}.{}", key.name), value))
                };
                Self::Object(entries.map(node).collect())
            }
        }
    }

    /// An expression, written with or without braces.
    pub(crate) fn condition(name: &str, value: &Yaml) -> Option<Source> {
        let text = match &value.data {
            Data::Scalar(Value::String(text)) => text.trim().to_owned(),
            Data::Scalar(other) => other.to_string(),
            _ => return None,
        };
        Some(Source {
            name: name.to_owned(),
            text: expression(&text).map_or(text.clone(), str::to_owned),
            line: value.at.line,
            is_expression: true,
        })
    }

    /// All pieces of minijinja in it.
    pub(crate) fn sources<'a>(&'a self, found: &mut Vec<&'a Source>) {
        match self {
            Self::Literal(_) => {}
            Self::Expression(source) | Self::Text(source) => found.push(source),
            Self::List(items) => items.iter().for_each(|item| item.sources(found)),
            Self::Object(entries) => entries.iter().for_each(|(_, value)| value.sources(found)),
        }
    }

    /// Its value, if nothing in it depends on a run.
    pub(crate) fn literal(&self) -> Option<Value> {
        match self {
            Self::Literal(value) => Some(value.clone()),
            Self::Expression(_) | Self::Text(_) => None,
            Self::List(items) => items
                .iter()
                .map(Self::literal)
                .collect::<Option<Vec<_>>>()
                .map(Value::Array),
            Self::Object(entries) => {
                let entries = entries.iter().map(|(key, value)| Some((key.clone(), value.literal()?)));
                entries.collect::<Option<serde_json::Map<_, _>>>().map(Value::Object)
            }
        }
    }
}

/// The expression of a text that is one `{{ … }}` and nothing else.
fn expression(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let alone = !["{{", "}}", "{%", "%}", "{#"].iter().any(|mark| inner.contains(mark));
    alone.then(|| inner.trim_matches('-').trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_one_expression_keeps_its_type() {
        assert_eq!(expression(" {{ words }} "), Some("words"));
        assert_eq!(expression("{{- words -}}"), Some("words"));
        assert_eq!(expression("{{ a }}{{ b }}"), None);
        assert_eq!(expression("a {{ b }}"), None);
        assert_eq!(expression("plain"), None);
    }
}
