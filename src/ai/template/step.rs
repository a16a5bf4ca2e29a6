//! One step of a template, understood.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde_json::{Map, Value};

use super::Problems;
use super::fields::Fields;
use super::node::{Node, Source};
use super::policy::{OnError, Retry};
use super::problem::meant;
use super::yaml::{Data, Mark, Yaml};
use crate::ai::steps::{self, Type};

/// Items of a `foreach` that run at once if the file does not say.
const PARALLEL: usize = 4;
/// Most items of a `foreach` that run at once.
const MOST_PARALLEL: u64 = 256;

/// A step.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its name, unique in the template.
    pub id: String,
    /// Where it stands.
    pub at: Mark,
    /// What it does.
    pub kind: &'static Type,
    /// Steps that come just before it, by number.
    pub needs: Vec<usize>,
    /// All steps that come before it.
    pub after: BTreeSet<usize>,
    /// An expression; the step is left out when it is false.
    pub when: Option<Source>,
    /// A list; the step runs once for each of its items.
    pub foreach: Option<Node>,
    /// How many items run at once.
    pub parallel: usize,
    /// How often it is tried again.
    pub retry: Retry,
    /// How long one try may take.
    pub timeout: Option<Duration>,
    /// What follows when it went wrong.
    pub on_error: OnError,
    /// The fields of its type.
    pub fields: Vec<(String, Node)>,
    /// Changes when the step does, or one before it.
    pub digest: u64,
}

/// Fields that all steps may have.
pub(super) const COMMON: &[(&str, &str)] = &[
    ("id", "name of the step, for steps.ID"),
    ("type", "what the step does"),
    ("description", "what it is for, for people"),
    (
        "needs",
        "ids of the steps that must have ended; without it the step before, and [] is none",
    ),
    ("when", "an expression; the step is left out when it is false"),
    (
        "foreach",
        "a list; the step runs once for each item, which texts see as item and index",
    ),
    ("parallel", "how many items run at once (4)"),
    (
        "retry",
        "how often it is tried again: a number, or times, on, pause, factor",
    ),
    ("timeout", "seconds that one try may take"),
    ("on_error", "fail (the default), continue, or {value: …}"),
];

/// A step as it is read: what it needs is still a name.
pub(super) struct Read {
    /// The step.
    pub step: Step,
    /// Ids and where they stand; `None` for the step before.
    pub needs: Option<Vec<(String, Mark)>>,
}

impl Step {
    /// Understands a step; `number` is its place in the list.
    pub(super) fn read(number: usize, value: &Yaml, problems: &mut Problems) -> Option<Read> {
        let before = problems.len();
        let mut fields = Fields::of("a step", value, problems)?;
        let id = fields
            .text("id", problems)
            .unwrap_or_else(|| format!("step{}", number + 1));
        let kind = fields.need("type", problems)?;
        let name = kind.as_str().unwrap_or_default();
        let Some(kind) = steps::TYPES.iter().find(|known| known.name == name) else {
            let hint = meant(name, steps::TYPES.iter().map(|known| known.name));
            problems.add_with(kind.at, format!("there is no type of step {name:?}"), hint);
            return None;
        };
        if id.is_empty() || !id.chars().all(|char| char.is_alphanumeric() || char == '_') {
            let hint = Some("letters, digits and _ only".to_owned());
            problems.add_with(fields.place("id"), format!("{id:?} cannot be an id"), hint);
        }
        fields.text("description", problems);
        let called = |name: &str| format!("steps.{id}.{name}");
        let needs = fields.take("needs").map(|needs| names(needs, problems));
        let when = fields.take("when").and_then(|when| {
            let source = Node::condition(&called("when"), when);
            if source.is_none() {
                problems.add(when.at, "when must be an expression");
            }
            source
        });
        let foreach = fields
            .take("foreach")
            .and_then(|list| match Node::new(&called("foreach"), list) {
                Node::Literal(_) | Node::Text(_) | Node::Object(_) => {
                    let hint = Some("write a list, or an expression such as \"{{ rows }}\"".to_owned());
                    problems.add_with(list.at, "foreach must be a list", hint);
                    None
                }
                node => Some(node),
            });
        let parallel = fields.whole("parallel", 1, problems);
        if parallel.is_some() && foreach.is_none() {
            problems.add(fields.place("parallel"), "parallel has no effect without foreach");
        }
        if parallel.is_some_and(|parallel| parallel > MOST_PARALLEL) {
            problems.add(
                fields.place("parallel"),
                format!("parallel must be {MOST_PARALLEL} or less"),
            );
        }
        let retry = Retry::read(fields.take("retry"), problems);
        let timeout = fields.seconds("timeout", problems);
        let on_error = OnError::read(&called("on_error"), fields.take("on_error"), problems);
        let what = format!("a step of type {}", kind.name);
        let mut given = Vec::new();
        for field in kind.fields {
            match fields.take(field.name) {
                Some(value) => {
                    if field.is_text && !matches!(value.data, Data::Scalar(_)) {
                        problems.add(value.at, format!("{} must be a text, not {}", field.name, value.what()));
                    }
                    given.push((field.name.to_owned(), Node::new(&called(field.name), value)));
                }
                None if field.needed => problems.add(value.at, format!("{what} needs {}", field.name)),
                None => {}
            }
        }
        for (key, _) in fields.rest() {
            let known = kind.fields.iter().map(|field| field.name);
            let hint = meant(&key.name, known.chain(COMMON.iter().map(|(name, _)| *name)));
            problems.add_with(key.at, format!("{what} has no {}", key.name), hint);
        }
        if problems.len() == before {
            let literal: Map<String, Value> = given
                .iter()
                .filter_map(|(name, node)| Some((name.clone(), node.literal()?)))
                .collect();
            let names: Vec<&str> = given.iter().map(|(name, _)| name.as_str()).collect();
            for (field, text) in (kind.check)(&literal, &names) {
                problems.add(fields.place(field), text);
            }
        }
        let mut digest = DefaultHasher::new();
        value.to_value().to_string().hash(&mut digest);
        Some(Read {
            step: Self {
                id,
                at: value.at,
                kind,
                needs: Vec::new(),
                after: BTreeSet::new(),
                when,
                foreach,
                parallel: parallel.map_or(PARALLEL, |parallel| usize::try_from(parallel).unwrap_or(PARALLEL)),
                retry,
                timeout,
                on_error,
                fields: given,
                digest: digest.finish(),
            },
            needs,
        })
    }

    /// All pieces of minijinja in it, and whether each sees the item of the loop.
    pub(super) fn sources(&self) -> Vec<(&Source, bool)> {
        let mut found: Vec<(&Source, bool)> = self.when.iter().map(|when| (when, false)).collect();
        let mut outside = Vec::new();
        if let Some(list) = &self.foreach {
            list.sources(&mut outside);
        }
        found.extend(outside.into_iter().map(|source| (source, false)));
        let mut inside = Vec::new();
        self.fields.iter().for_each(|(_, node)| node.sources(&mut inside));
        if let OnError::Value(node) = &self.on_error {
            node.sources(&mut inside);
        }
        let in_loop = self.foreach.is_some();
        found.extend(inside.into_iter().map(|source| (source, in_loop)));
        found
    }

    /// Whether a field of its type is a text.
    pub(super) fn is_text(&self, name: &str) -> bool {
        self.kind.fields.iter().any(|field| field.name == name && field.is_text)
    }
}

/// One id or a list of them.
fn names(value: &Yaml, problems: &mut Problems) -> Vec<(String, Mark)> {
    let items: Vec<&Yaml> = match &value.data {
        Data::List(items) => items.iter().collect(),
        _ => vec![value],
    };
    let mut found = Vec::new();
    for item in items {
        match item.as_str() {
            Some(name) => found.push((name.to_owned(), item.at)),
            None => problems.add(item.at, "needs must be a list of ids of steps"),
        }
    }
    found
}
