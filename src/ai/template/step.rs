//! One step of a template, understood.

use std::time::Duration;

use serde_json::{Map, Value};

use super::file::StepFile;
use super::locate::{line_of, text_line_of};
use super::node::{Node, Source};
use crate::ai::ollama::Kind;
use crate::text::closest;

/// Types of steps, and the fields each may have beside those of all steps.
const TYPES: &[(&str, &[&str])] = &[
    (
        "ollama_generate",
        &[
            "model",
            "prompt",
            "system",
            "format",
            "options",
            "keep_alive",
            "think",
            "images",
            "raw",
            "suffix",
            "truncate",
        ],
    ),
    (
        "ollama_chat",
        &[
            "model",
            "messages",
            "tools",
            "format",
            "options",
            "keep_alive",
            "think",
            "truncate",
        ],
    ),
    ("render", &["text"]),
];

/// A step.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its name, unique in the template.
    pub id: String,
    /// An expression; the step is left out when it is false.
    pub when: Option<Source>,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// What it does.
    pub kind: StepKind,
}

/// What a step does.
#[derive(Debug)]
pub(crate) enum StepKind {
    /// Makes a text.
    Render(Source),
    /// Asks a model.
    Model {
        /// Which endpoint.
        kind: Kind,
        /// The model's name.
        model: Source,
        /// Everything else of the request.
        fields: Vec<(String, Node)>,
    },
}

impl Step {
    /// Understands a step; `at` is its place in the list.
    ///
    /// # Errors
    /// The field that is wrong, and what is wrong with it.
    pub(super) fn new(source: &str, at: usize, file: StepFile) -> Result<Self, (&'static str, String)> {
        let Some((kind, allowed)) = TYPES.iter().find(|(kind, _)| *kind == file.kind) else {
            let names = || TYPES.iter().map(|(name, _)| *name);
            let meant = closest(&file.kind, names()).map_or_else(
                || format!("use one of {}", names().collect::<Vec<_>>().join(", ")),
                |close| format!("did you mean {close}?"),
            );
            return Err(("type", format!("unknown type of step {:?}; {meant}", file.kind)));
        };
        let id = file.id.unwrap_or_else(|| format!("step{}", at + 1));
        if id.is_empty() || !id.chars().all(|char| char.is_alphanumeric() || char == '_') {
            return Err(("id", format!("{id:?} cannot be an id: letters, digits and _ only")));
        }
        let timeout = match file.timeout.map(Duration::try_from_secs_f64) {
            None => None,
            Some(Ok(limit)) if !limit.is_zero() => Some(limit),
            Some(_) => return Err(("timeout", "must be a positive number of seconds".into())),
        };
        let mut given: Vec<(&'static str, Value)> = Vec::new();
        let mut give = |name, value: Option<Value>| given.extend(value.map(|value| (name, value)));
        give("model", file.model.map(Value::from));
        give("text", file.text.map(Value::from));
        give("prompt", file.prompt.map(Value::from));
        give("system", file.system.map(Value::from));
        give("messages", file.messages);
        give("tools", file.tools);
        give("format", file.format);
        give("options", file.options.map(Value::Object));
        give("keep_alive", file.keep_alive);
        give("think", file.think);
        give("images", file.images);
        give("raw", file.raw);
        give("suffix", file.suffix.map(Value::from));
        give("truncate", file.truncate);
        if let Some((name, _)) = given.iter().find(|(name, _)| !allowed.contains(name)) {
            return Err((name, format!("a step of type {kind} has no {name}")));
        }
        let place = |name: &'static str| ["steps".into(), at.into(), name.into()];
        let text = |name: &'static str, value: Value| Source {
            name: format!("steps.{id}.{name}"),
            text: value.as_str().unwrap_or_default().to_owned(),
            line: text_line_of(source, &place(name)),
        };
        let mut take = |name: &'static str| {
            let found = given.iter().position(|(other, _)| *other == name);
            match found.map(|found| given.remove(found).1) {
                Some(value) => Ok(text(name, value)),
                None => Err((name, format!("a step of type {kind} needs {name}"))),
            }
        };
        let kind = if *kind == "render" {
            StepKind::Render(take("text")?)
        } else {
            let model = take("model")?;
            let (endpoint, main) = match *kind {
                "ollama_generate" => (Kind::Generate, "prompt"),
                _ => (Kind::Chat, "messages"),
            };
            if !given.iter().any(|(name, _)| *name == main) {
                return Err((main, format!("a step of type {kind} needs {main}")));
            }
            let fields = given.into_iter().map(|(name, value)| {
                let name_of = format!("steps.{id}.{name}");
                let node = match value {
                    // A prompt is a text even where it is one expression.
                    Value::String(_) if ["prompt", "system", "suffix"].contains(&name) => Node::Text(text(name, value)),
                    value => Node::new(&name_of, line_of(source, &place(name)), value),
                };
                (name.to_owned(), node)
            });
            StepKind::Model {
                kind: endpoint,
                model,
                fields: fields.collect(),
            }
        };
        let when = file.when.map(|when| {
            let text = when.trim();
            let bare = text
                .strip_prefix("{{")
                .and_then(|text| text.strip_suffix("}}"))
                .unwrap_or(text);
            Source {
                name: format!("steps.{id}.when"),
                text: bare.trim().to_owned(),
                line: line_of(source, &place("when")),
            }
        });
        Ok(Self {
            id,
            when,
            timeout,
            kind,
        })
    }

    /// All pieces of minijinja in it, and whether each is an expression.
    pub(super) fn sources(&self) -> Vec<(&Source, bool)> {
        let mut found: Vec<(&Source, bool)> = self.when.iter().map(|when| (when, true)).collect();
        match &self.kind {
            StepKind::Render(text) => found.push((text, false)),
            StepKind::Model { model, fields, .. } => {
                found.push((model, false));
                fields.iter().for_each(|(_, node)| node.sources(&mut found));
            }
        }
        found
    }
}

/// The fields of a request, rendered.
pub(super) fn object(entries: Vec<(String, Value)>) -> Map<String, Value> {
    entries.into_iter().collect()
}
