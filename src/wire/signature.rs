//! A signature: a task call, or a composition of calls, as a value (`celery.canvas.Signature`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use super::{Json, Rest};

/// Arguments by name.
pub type Kwargs = BTreeMap<String, Json>;

/// A task call, or a composition of calls, that can be sent, stored and passed on. What is not understood is kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signature {
    /// Task name; `celery.chain`, `celery.group` or `celery.chord` for a composition.
    pub task: String,
    /// Positional arguments.
    pub args: Vec<Json>,
    /// Keyword arguments, without the parts of a composition.
    pub kwargs: Kwargs,
    /// Options of `apply_async`.
    pub options: CallOptions,
    /// What is composed.
    pub kind: Kind,
    /// The parent's result is not prepended to `args`.
    pub immutable: bool,
    /// Everything else.
    pub extra: Kwargs,
}

/// What a signature is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Kind {
    /// One call.
    #[default]
    Task,
    /// One after the other, each with the result of the one before it.
    Chain(Vec<Signature>),
    /// All at once.
    Group(Vec<Signature>),
    /// All at once, then one with all their results.
    Chord(Box<Chord>),
    /// A type of composition that only its sender knows; its name is kept.
    Other(String),
}

/// The parts of a chord.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chord {
    /// What runs at once.
    pub header: Vec<Signature>,
    /// The options of the header; `task_id` in them is the group's id.
    pub group: Option<CallOptions>,
    /// Whether the group was given its id in this process. Celery forgets options that come in a message.
    pub frozen: bool,
    /// What runs with all the results.
    pub body: Option<Signature>,
}

/// Options of `apply_async`. Those that hold signatures are typed; the others are kept as they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallOptions {
    /// Called with the result.
    pub link: Vec<Signature>,
    /// Called with a failure.
    pub link_error: Vec<Signature>,
    /// The body of the chord whose header the call is in; all members share it.
    pub chord: Option<Arc<Signature>>,
    /// What follows in the chain.
    pub chain: Option<Rest>,
    /// All others.
    pub rest: BTreeMap<String, Json>,
}

impl CallOptions {
    /// An option that is a text; null and other types are not.
    pub fn str(&self, name: &str) -> Option<String> {
        Some(self.rest.get(name)?.as_str()?.into_owned())
    }

    /// An option that is not null.
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.rest.get(name).filter(|value| !value.is_null())
    }

    /// Takes an option that is a text out.
    pub fn take_str(&mut self, name: &str) -> Option<String> {
        self.rest.remove(name)?.as_str().map(std::borrow::Cow::into_owned)
    }

    /// Sets a text.
    pub fn set_str(&mut self, name: &str, value: &str) {
        self.rest.insert(name.to_owned(), Json::string(value));
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds a callback, once.
    pub fn add_link(&mut self, callback: Signature) {
        if !self.link.contains(&callback) {
            self.link.push(callback);
        }
    }

    /// Adds an error callback, once.
    pub fn add_link_error(&mut self, errback: Signature) {
        if !self.link_error.contains(&errback) {
            self.link_error.push(errback);
        }
    }
}

impl Signature {
    /// A call of the task of that name.
    pub fn new(task: impl Into<String>) -> Self {
        Self {
            task: task.into(),
            ..Self::default()
        }
    }

    /// A composition.
    pub fn of(kind: Kind) -> Self {
        let task = match &kind {
            Kind::Task | Kind::Other(_) => "",
            Kind::Chain(_) => "celery.chain",
            Kind::Group(_) => "celery.group",
            Kind::Chord(_) => "celery.chord",
        };
        Self {
            task: task.to_owned(),
            kind,
            ..Self::default()
        }
    }

    /// With one more positional argument. One that is no JSON becomes null.
    #[must_use]
    pub fn arg(mut self, value: impl Serialize) -> Self {
        self.args.push(Json::new(&value).unwrap_or_else(|_| Json::null()));
        self
    }

    /// With a keyword argument. One that is no JSON becomes null.
    #[must_use]
    pub fn kwarg(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        self.kwargs
            .insert(name.into(), Json::new(&value).unwrap_or_else(|_| Json::null()));
        self
    }

    /// With an option of `apply_async`, such as `queue`, `countdown` or `priority`.
    #[must_use]
    pub fn option(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        let value = Json::new(&value).unwrap_or_else(|_| Json::null());
        self.options.rest.insert(name.into(), value);
        self
    }

    /// Without the parent's result as its first argument (`.si()`). Of a group all members, of a chord the header.
    #[must_use]
    pub fn immutable(mut self) -> Self {
        self.set_immutable();
        self
    }

    /// See [`immutable`](Self::immutable).
    pub(crate) fn set_immutable(&mut self) {
        match &mut self.kind {
            Kind::Group(tasks) => tasks.iter_mut().for_each(Self::set_immutable),
            Kind::Chord(chord) => chord.header.iter_mut().for_each(Self::set_immutable),
            _ => self.immutable = true,
        }
    }

    /// The id it was given, or was frozen with.
    pub fn id(&self) -> Option<String> {
        self.options.str("task_id")
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SignatureVisitor)
    }
}

struct SignatureVisitor;

impl<'de> Visitor<'de> for SignatureVisitor {
    type Value = Signature;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a signature")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Signature, A::Error> {
        let mut signature = Signature::default();
        let mut subtask_type: Option<String> = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "task" => signature.task = map.next_value()?,
                "args" => signature.args = map.next_value::<Option<_>>()?.unwrap_or_default(),
                "kwargs" => signature.kwargs = map.next_value::<Option<_>>()?.unwrap_or_default(),
                "options" => signature.options = map.next_value::<Option<_>>()?.unwrap_or_default(),
                "subtask_type" => subtask_type = map.next_value()?,
                "immutable" => signature.immutable = map.next_value::<Option<_>>()?.unwrap_or_default(),
                _ => drop(signature.extra.insert(key, map.next_value()?)),
            }
        }
        if signature.task.is_empty() {
            return Err(de::Error::missing_field("task"));
        }
        signature.kind = match subtask_type.as_deref() {
            None => Kind::Task,
            Some("chain") => Kind::Chain(tasks(&mut signature.kwargs)?),
            Some("group") => Kind::Group(tasks(&mut signature.kwargs)?),
            Some("chord") => Kind::Chord(Box::new(chord(&mut signature.kwargs)?)),
            Some(other) => Kind::Other(other.to_owned()),
        };
        if let Kind::Chain(_) | Kind::Group(_) = signature.kind {
            // Celery makes these anew from their tasks and options, and forgets the rest.
            signature.immutable = false;
            signature.args = Vec::new();
        }
        Ok(signature)
    }
}

fn tasks<E: de::Error>(kwargs: &mut Kwargs) -> Result<Vec<Signature>, E> {
    let tasks = kwargs.remove("tasks").ok_or_else(|| E::missing_field("kwargs.tasks"))?;
    tasks
        .parse()
        .map_err(|error| E::custom(format_args!("kwargs.tasks: {error}")))
}

fn chord<E: de::Error>(kwargs: &mut Kwargs) -> Result<Chord, E> {
    let wrong = |error: serde_json::Error| E::custom(format_args!("a chord: {error}"));
    let header = kwargs.remove("header").unwrap_or_else(Json::null);
    let mut chord = Chord::default();
    if header.get().starts_with('{') {
        let header: Signature = header.parse().map_err(wrong)?;
        match header.kind {
            Kind::Group(tasks) => {
                chord.header = tasks;
                chord.group = Some(header.options);
            }
            Kind::Chain(tasks) => chord.header = tasks,
            _ => chord.header = vec![header],
        }
    } else {
        chord.header = header.parse::<Option<_>>().map_err(wrong)?.unwrap_or_default();
    }
    if let Some(body) = kwargs.remove("body") {
        chord.body = body.parse().map_err(wrong)?;
    }
    Ok(chord)
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("task", &self.task)?;
        map.serialize_entry("args", &self.args)?;
        map.serialize_entry("kwargs", &KwargsOf(self))?;
        map.serialize_entry("options", &self.options)?;
        let subtask_type = match &self.kind {
            Kind::Task => None,
            Kind::Chain(_) => Some("chain"),
            Kind::Group(_) => Some("group"),
            Kind::Chord(_) => Some("chord"),
            Kind::Other(name) => Some(name.as_str()),
        };
        map.serialize_entry("subtask_type", &subtask_type)?;
        map.serialize_entry("immutable", &self.immutable)?;
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// The keyword arguments as they are written: with the parts of the composition.
struct KwargsOf<'a>(&'a Signature);

impl Serialize for KwargsOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.0.kwargs {
            map.serialize_entry(name, value)?;
        }
        match &self.0.kind {
            Kind::Task | Kind::Other(_) => {}
            Kind::Chain(tasks) | Kind::Group(tasks) => map.serialize_entry("tasks", tasks)?,
            Kind::Chord(chord) => {
                if !self.0.kwargs.contains_key("kwargs") {
                    map.serialize_entry("kwargs", &Kwargs::new())?;
                }
                match &chord.group {
                    None => map.serialize_entry("header", &chord.header)?,
                    Some(options) => {
                        let mut group = Signature::of(Kind::Group(chord.header.clone()));
                        group.options = options.clone();
                        map.serialize_entry("header", &group)?;
                    }
                }
                map.serialize_entry("body", &chord.body)?;
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for CallOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OptionsVisitor)
    }
}

struct OptionsVisitor;

impl<'de> Visitor<'de> for OptionsVisitor {
    type Value = CallOptions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of options")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<CallOptions, A::Error> {
        let mut options = CallOptions::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "link" => options.link = one_or_many(&map.next_value()?)?,
                "link_error" => options.link_error = one_or_many(&map.next_value()?)?,
                "chord" => {
                    options.chord = map.next_value::<Option<Signature>>()?.map(Arc::new);
                    if options.chord.is_none() {
                        // Celery writes that there is none, and shows it where a step failed without having run.
                        options.rest.insert(key, Json::null());
                    }
                }
                "chain" => options.chain = map.next_value()?,
                _ => drop(options.rest.insert(key, map.next_value()?)),
            }
        }
        Ok(options)
    }
}

/// Signatures of an option: none, one, or a list (`kombu.utils.functional.maybe_list`).
fn one_or_many<E: de::Error>(value: &Json) -> Result<Vec<Signature>, E> {
    let parsed = if value.get().starts_with('{') {
        value.parse().map(|one| vec![one])
    } else {
        value.parse::<Option<Vec<Signature>>>().map(Option::unwrap_or_default)
    };
    parsed.map_err(|error| E::custom(format_args!("link or link_error: {error}")))
}

impl Serialize for CallOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.rest {
            if name != "chord" || self.chord.is_none() {
                map.serialize_entry(name, value)?;
            }
        }
        if !self.link.is_empty() {
            map.serialize_entry("link", &self.link)?;
        }
        if !self.link_error.is_empty() {
            map.serialize_entry("link_error", &self.link_error)?;
        }
        if let Some(chord) = &self.chord {
            map.serialize_entry("chord", &**chord)?;
        }
        if let Some(chain) = &self.chain {
            map.serialize_entry("chain", chain)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn same(value: &Value) {
        let signature: Signature = serde_json::from_str(&value.to_string()).unwrap();
        assert_eq!(&serde_json::to_value(&signature).unwrap(), value);
    }

    #[test]
    fn p_063_a_signature_leaves_as_it_came() {
        let add = json!({"task": "add", "args": [1, [2.5]], "kwargs": {"z": null}, "subtask_type": null, "immutable": true,
            "options": {"task_id": "1", "priority": null, "link": [{"task": "t", "args": [], "kwargs": {}, "options": {},
            "subtask_type": null, "immutable": false}]}, "chord_size": null});
        same(&add);
        let chain = json!({"task": "celery.chain", "args": [], "kwargs": {"tasks": [add]}, "options": {"x": 1},
            "subtask_type": "chain", "immutable": false});
        same(&chain);
        same(
            &json!({"task": "celery.chord", "args": [], "kwargs": {"kwargs": {}, "header": [add, chain], "body": add},
            "options": {}, "subtask_type": "chord", "immutable": false}),
        );
        same(
            &json!({"task": "celery.chord", "args": [], "kwargs": {"kwargs": {}, "header": {"task": "celery.group", "args": [],
            "kwargs": {"tasks": [add]}, "options": {"task_id": "g"}, "subtask_type": "group", "immutable": false}, "body": chain},
            "options": {}, "subtask_type": "chord", "immutable": false}),
        );
    }

    #[test]
    fn what_is_no_signature_is_an_error() {
        for text in [
            "{}",
            "[]",
            r#"{"task": 1}"#,
            r#"{"task": "t", "args": {}}"#,
            r#"{"task": "t", "kwargs": []}"#,
            r#"{"task": "t", "options": {"link": 3}}"#,
            r#"{"task": "celery.group", "subtask_type": "group"}"#,
            r#"{"task": "celery.chord", "subtask_type": "chord", "kwargs": {"header": 1}}"#,
        ] {
            assert!(serde_json::from_str::<Signature>(text).is_err(), "{text}");
        }
    }
}
