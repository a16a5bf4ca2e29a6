//! Values with expressions in them: options, formats, outputs.

use serde_json::{Map, Value};

/// A value of the file. Texts that are one expression and nothing else (`"{{ words }}"`) keep the type of what they
/// stand for; other texts are rendered to text.
#[derive(Debug)]
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
    /// Its name: `steps[0].prompt`.
    pub name: String,
    /// The text.
    pub text: String,
    /// The line of the file on which the text begins.
    pub line: usize,
}

impl Source {
    /// The line of the file on which a variable is first read.
    pub(super) fn line_of(&self, variable: &str) -> usize {
        let before = self.text.find(variable).map_or("", |at| &self.text[..at]);
        self.line + before.matches('\n').count()
    }
}

impl Node {
    /// Finds the expressions in a value; `name` is its name and `line` where it stands.
    pub(super) fn new(name: &str, line: usize, value: Value) -> Self {
        let source = |text: String| Source {
            name: name.to_owned(),
            text,
            line,
        };
        match value {
            Value::String(text) => match expression(&text) {
                Some(expression) => Self::Expression(source(expression.to_owned())),
                None if text.contains("{{") || text.contains("{%") => Self::Text(source(text)),
                None => Self::Literal(Value::String(text)),
            },
            Value::Array(items) => {
                let items = items.into_iter().enumerate();
                Self::List(
                    items
                        .map(|(at, item)| Self::new(&format!("{name}[{at}]"), line, item))
                        .collect(),
                )
            }
            Value::Object(object) => Self::object(name, line, object),
            literal => Self::Literal(literal),
        }
    }

    /// The same for an object.
    pub(super) fn object(name: &str, line: usize, object: Map<String, Value>) -> Self {
        let entries = object.into_iter().map(|(key, value)| {
            let node = Self::new(&format!("{name}.{key}"), line, value);
            (key, node)
        });
        Self::Object(entries.collect())
    }

    /// All pieces of minijinja in it, and whether each is an expression.
    pub(super) fn sources<'a>(&'a self, found: &mut Vec<(&'a Source, bool)>) {
        match self {
            Self::Literal(_) => {}
            Self::Expression(source) => found.push((source, true)),
            Self::Text(source) => found.push((source, false)),
            Self::List(items) => items.iter().for_each(|item| item.sources(found)),
            Self::Object(entries) => entries.iter().for_each(|(_, value)| value.sources(found)),
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
