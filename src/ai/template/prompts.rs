//! The minijinja side: strict, bounded, and with errors that name a line of the file.

use std::path::Path;

use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::Value;

use super::node::Source;
use super::{Problem, Scope};

/// How much work one text may be: a loop over a book is fine, a loop without end is not.
const FUEL: u64 = 5_000_000;
/// Longest rendered text, in bytes.
const LARGEST: usize = 16 << 20;

/// The texts of one template, and the parts in `prompts/` that they may include.
#[derive(Debug)]
pub(super) struct Prompts {
    environment: Environment<'static>,
}

impl Prompts {
    /// No texts yet; shared parts come from `prompts/*.j2` beside the template file.
    pub(super) fn new(folder: &Path, problems: &mut Vec<Problem>) -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        // A prompt is no HTML.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let parts = std::fs::read_dir(folder.join("prompts"))
            .into_iter()
            .flatten()
            .flatten();
        for part in parts
            .map(|part| part.path())
            .filter(|path| path.extension().is_some_and(|end| end == "j2"))
        {
            let Some(name) = part.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            match std::fs::read_to_string(&part) {
                Ok(text) => {
                    if let Err(error) = environment.add_template_owned(name.to_owned(), text) {
                        problems.push(Problem::line(&part, error.line().unwrap_or(1), None, words(&error)));
                    }
                }
                Err(error) => problems.push(Problem::file(&part, format!("cannot be read: {error}"))),
            }
        }
        Self { environment }
    }

    /// Adds a text, and lists the variables it reads.
    ///
    /// # Errors
    /// Its syntax is wrong: the line of the file and what is wrong.
    pub(super) fn add(&mut self, source: &Source, is_expression: bool) -> Result<Vec<String>, (usize, String)> {
        let wrong = |error: minijinja::Error| {
            let line = source.line + error.line().unwrap_or(1).saturating_sub(1);
            (line, words(&error))
        };
        let globals: Vec<String> = self.environment.globals().map(|(name, _)| name.to_owned()).collect();
        let read = if is_expression {
            self.environment
                .compile_expression(&source.text)
                .map_err(wrong)?
                .undeclared_variables(true)
        } else {
            self.environment
                .add_template_owned(source.name.clone(), source.text.clone())
                .map_err(wrong)?;
            self.environment
                .get_template(&source.name)
                .map_err(wrong)?
                .undeclared_variables(true)
        };
        let mut read: Vec<String> = read.into_iter().filter(|name| !globals.contains(name)).collect();
        read.sort();
        Ok(read)
    }

    /// Renders a text that was added.
    pub(super) fn render(&self, source: &Source, scope: &Scope) -> Result<String, (usize, String)> {
        let rendered = self
            .environment
            .get_template(&source.name)
            .and_then(|template| template.render(scope.values()));
        match rendered {
            Ok(text) if text.len() > LARGEST => {
                Err((source.line, format!("the rendered text is longer than {LARGEST} bytes")))
            }
            Ok(text) => Ok(text),
            Err(error) => Err((source.line + error.line().unwrap_or(1).saturating_sub(1), words(&error))),
        }
    }

    /// The value of an expression that was added.
    pub(super) fn evaluate(&self, source: &Source, scope: &Scope) -> Result<minijinja::Value, (usize, String)> {
        let wrong = |error: minijinja::Error| (source.line, words(&error));
        let value = self
            .environment
            .compile_expression(&source.text)
            .and_then(|expression| expression.eval(scope.values()));
        match value.map_err(wrong)? {
            value if value.is_undefined() => Err((source.line, format!("{} is undefined", source.text))),
            value => Ok(value),
        }
    }

    /// The value of an expression as JSON.
    pub(super) fn value(&self, source: &Source, scope: &Scope) -> Result<Value, (usize, String)> {
        let value = self.evaluate(source, scope)?;
        serde_json::to_value(&value).map_err(|error| (source.line, error.to_string()))
    }
}

fn words(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too long to render: is there a loop without end?".into(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}
