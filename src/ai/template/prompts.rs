//! The minijinja side: strict, bounded, and with errors that name a line of the file.

use std::collections::BTreeSet;
use std::path::Path;

use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use regex::Regex;
use serde_json::Value;

use super::chains::{may_nest, too_long};
use super::node::Source;
use super::problem::meant;
use super::{Problem, Problems, Scope};
use crate::ai::options::TextLimits;

/// The texts of one template, and the parts in `prompts/` that they may use.
#[derive(Debug)]
pub(super) struct Prompts {
    environment: Environment<'static>,
    parts: Vec<(String, String)>,
    limits: TextLimits,
    /// Whether one of them [may nest](may_nest) values deeply.
    nests: bool,
}

/// The stack for texts that may nest values deeply; memory is taken as it is used.
const STACK: usize = 512 << 20;
/// What one level of a value takes of it at most, when it is shown, compared or dropped. Measured: 420 bytes, and in a
/// debug build 3,300.
const LEVEL: usize = if cfg!(debug_assertions) { 4 << 10 } else { 512 };

/// Where something is wrong in a text, and what.
pub(super) struct Wrong {
    /// Line of the file.
    pub line: usize,
    /// What.
    pub text: String,
}

impl Prompts {
    /// No texts yet; shared parts and macros come from `prompts/*.j2` beside the template file.
    pub(super) fn new(folder: &Path, limits: TextLimits, problems: &mut Problems) -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(limits.steps));
        // A prompt is no HTML.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let (mut parts, mut nests) = (Vec::new(), false);
        let folder = folder.join("prompts");
        let files = std::fs::read_dir(&folder);
        if let Err(error) = &files
            && error.kind() != std::io::ErrorKind::NotFound
        {
            problems.push(Problem::unread(&folder, format!("cannot read the folder: {error}")));
        }
        for part in files
            .into_iter()
            .flatten()
            .flatten()
            .map(|part| part.path())
            .filter(|path| path.extension().is_some_and(|end| end == "j2"))
        {
            let Some(name) = part.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            match std::fs::read_to_string(&part) {
                Ok(text) => {
                    if let Some(chain) = too_long(&text, false) {
                        let line = text[..chain.at].matches('\n').count() + 1;
                        problems.push(Problem::line(&part, line, None, chain.what).hint(Some(chain.hint.into())));
                    } else if let Err(error) = environment.add_template_owned(name.clone(), text.clone()) {
                        problems.push(Problem::line(&part, error.line().unwrap_or(1), None, words(&error)));
                    }
                    nests = nests || may_nest(&text);
                    parts.push((name, text));
                }
                Err(error) => problems.push(Problem::unread(&part, format!("cannot be read: {error}"))),
            }
        }
        parts.sort();
        let mut prompts = Self {
            environment,
            parts,
            limits,
            nests: false,
        };
        if nests {
            prompts.nest();
        }
        prompts
    }

    /// Expects values that are nested deeply: each level takes a step or more to make, so that the bound of steps keeps
    /// them within the stack.
    fn nest(&mut self) {
        self.nests = true;
        let most = (STACK / LEVEL) as u64;
        self.environment.set_fuel(Some(self.limits.steps.min(most)));
    }

    /// The texts of all shared parts, by name.
    pub(super) fn parts(&self) -> &[(String, String)] {
        &self.parts
    }

    /// Adds a text, and lists the variables it reads, those of the parts it uses included. What is wrong with it is
    /// told.
    pub(super) fn add(&mut self, source: &Source, problems: &mut Problems) -> BTreeSet<String> {
        if let Some(chain) = too_long(&source.text, source.is_expression) {
            source.tell(
                source.place_at(chain.at),
                &chain.what,
                Some(chain.hint.into()),
                problems,
            );
            return BTreeSet::new();
        }
        if !source.is_expression && may_nest(&source.text) {
            self.nest();
        }
        let compiled = if source.is_expression {
            self.environment
                .compile_expression(&source.text)
                .map(|expression| expression.undeclared_variables(true))
        } else {
            self.environment
                .add_template_owned(source.name.clone(), source.text.clone())
                .and_then(|()| self.environment.get_template(&source.name))
                .map(|template| template.undeclared_variables(true))
        };
        let read = match compiled {
            Ok(read) => read,
            Err(error) => {
                let place = match error.range() {
                    Some(range) => source.place_at(range.start),
                    None => (error.line().unwrap_or(1).saturating_sub(1), 0),
                };
                source.tell(place, &words(&error), syntax_hint(&error), problems);
                return BTreeSet::new();
            }
        };
        self.check_names(source, problems);
        let mut read: BTreeSet<String> = read.into_iter().collect();
        let mut seen = BTreeSet::new();
        self.read_by_parts(&source.text, &mut seen, &mut read);
        let globals: Vec<&str> = self.environment.globals().map(|(name, _)| name).collect();
        read.retain(|name| !globals.contains(&name.as_str()));
        read
    }

    /// Variables that included parts read: they see what the text sees. Macros see their arguments alone.
    fn read_by_parts(&self, text: &str, seen: &mut BTreeSet<String>, read: &mut BTreeSet<String>) {
        for name in included(text, "include") {
            let Some((_, part)) = self.parts.iter().find(|(other, _)| *other == name) else {
                continue;
            };
            if seen.insert(name.clone())
                && let Ok(template) = self.environment.get_template(&name)
            {
                read.extend(template.undeclared_variables(true));
                self.read_by_parts(part, seen, read);
            }
        }
    }

    /// Parts and filters that do not exist are known before a run.
    fn check_names(&self, source: &Source, problems: &mut Problems) {
        let mut wrong = |name: &str, what: String, hint: Option<String>| {
            source.tell(source.place_of(name), &what, hint, problems);
        };
        for word in ["include", "import", "from"] {
            for name in included(&source.text, word) {
                if !self.parts.iter().any(|(part, _)| *part == name) {
                    let hint = meant(&name, self.parts.iter().map(|(part, _)| part.as_str()));
                    let hint = hint.or_else(|| Some("shared parts are files prompts/*.j2 beside the template".into()));
                    wrong(&name, format!("there is no shared part {name:?}"), hint);
                }
            }
        }
        for name in filters(source) {
            let tried = self.environment.compile_expression_owned(format!("'' | {name}"));
            let unknown = tried.and_then(|expression| expression.eval(())).err();
            if unknown.is_some_and(|error| error.kind() == ErrorKind::UnknownFilter) {
                wrong(
                    &name,
                    format!("there is no filter {name:?}"),
                    meant(&name, FILTERS.iter().copied()),
                );
            }
        }
    }

    /// Renders a text that was added: on a thread with a large stack if it needs one. The values are dropped there as
    /// well.
    pub(super) fn render(&self, source: &Source, scope: &Scope) -> Result<String, Wrong> {
        if !self.nests {
            return self.render_here(source, scope);
        }
        std::thread::scope(|threads| {
            let thread = std::thread::Builder::new().stack_size(STACK);
            match thread.spawn_scoped(threads, || self.render_here(source, scope)) {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(error) => Err(Wrong {
                    line: source.line,
                    text: format!("there is no memory for the stack that namespace() and macros need: {error}"),
                }),
            }
        })
    }

    fn render_here(&self, source: &Source, scope: &Scope) -> Result<String, Wrong> {
        let mut text = Bounded {
            bytes: Vec::new(),
            most: self.limits.bytes,
        };
        let rendered = self
            .environment
            .get_template(&source.name)
            .and_then(|template| template.render_captured_to(scope.values(), &mut text).map(drop));
        match rendered.map(|()| String::from_utf8(text.bytes)) {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(Wrong {
                line: source.line,
                text: error.to_string(),
            }),
            Err(error) if error.kind() == ErrorKind::WriteFailure => Err(Wrong {
                line: source.line,
                text: format!(
                    "the rendered text is longer than {} bytes (ai_max_text_bytes)",
                    self.limits.bytes
                ),
            }),
            Err(error) => Err(Wrong {
                line: source.line + error.line().unwrap_or(1).saturating_sub(1),
                text: words(&error),
            }),
        }
    }

    /// The value of an expression that was added.
    pub(super) fn evaluate(&self, source: &Source, scope: &Scope) -> Result<minijinja::Value, Wrong> {
        let wrong = |text: String| Wrong {
            line: source.line,
            text,
        };
        let value = self
            .environment
            .compile_expression(&source.text)
            .and_then(|expression| expression.eval(scope.values()));
        match value.map_err(|error| wrong(words(&error)))? {
            value if value.is_undefined() => Err(wrong(format!("{} is undefined", source.text))),
            value => Ok(value),
        }
    }

    /// The value of an expression as JSON.
    pub(super) fn value(&self, source: &Source, scope: &Scope) -> Result<Value, Wrong> {
        let value = self.evaluate(source, scope)?;
        serde_json::to_value(&value).map_err(|error| Wrong {
            line: source.line,
            text: error.to_string(),
        })
    }
}

/// A text that grows no further than it may: a loop over large values writes more than the memory holds within few
/// steps.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(std::io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Filters that a mistyped one is compared with.
const FILTERS: &[&str] = &[
    "abs",
    "batch",
    "bool",
    "capitalize",
    "chain",
    "count",
    "default",
    "dictsort",
    "escape",
    "first",
    "float",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "zip",
];

/// Names of the parts that a text uses with a word such as `include`.
fn included(text: &str, word: &str) -> Vec<String> {
    let pattern = format!(r#"\{{%[-+]?\s*{word}\s+['"]([^'"]+)['"]"#);
    let Ok(pattern) = Regex::new(&pattern) else {
        return Vec::new();
    };
    pattern.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// Names of the filters that a text uses.
fn filters(source: &Source) -> BTreeSet<String> {
    let mut code = String::new();
    if source.is_expression {
        code.push_str(&source.text);
    } else if let Ok(blocks) = Regex::new(r"(?s)\{[{%](.*?)[%}]\}") {
        for block in blocks.captures_iter(&source.text) {
            code.push_str(&block[1]);
            code.push('\n');
        }
    }
    // What stands in quotes is text.
    let bare = Regex::new(r#"'[^']*'|"[^"]*""#).map(|quoted| quoted.replace_all(&code, "''").into_owned());
    let code = bare.unwrap_or(code);
    match Regex::new(r"\|\s*([A-Za-z_][A-Za-z0-9_]*)") {
        Ok(pattern) => pattern.captures_iter(&code).map(|found| found[1].to_owned()).collect(),
        Err(_) => BTreeSet::new(),
    }
}

fn syntax_hint(error: &minijinja::Error) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    if detail.contains("unexpected end of") || detail.contains("unexpected end") {
        return Some("close every {{ with }}, every {% with %}, and every if and for with endif and endfor".into());
    }
    None
}

fn words(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            "it takes too long to render (ai_template_steps): is there a loop without end?".into()
        }
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}
