//! The body of a task message: `[args, kwargs, embed]`, kept as JSON text and cut at its joints only.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::message::DecodeError;
use super::raw::Pairs;
use super::{Rest, Signature, json, limits};

/// A decoded body. The three parts are slices of one text, so that a body is held once however large it is.
#[derive(Debug)]
pub struct Body {
    text: String,
    args: Range<usize>,
    kwargs: Range<usize>,
    embed: Option<Range<usize>>,
}

/// Positional and keyword arguments, as values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arguments {
    /// Positional.
    pub args: Vec<Value>,
    /// By name.
    pub kwargs: Map<String, Value>,
}

/// The third part of a body: what follows the task.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Embed {
    /// `link`.
    #[serde(default)]
    pub callbacks: Option<Vec<Signature>>,
    /// `link_error`.
    #[serde(default)]
    pub errbacks: Option<Vec<Signature>>,
    /// The rest of a chain.
    #[serde(default)]
    pub chain: Option<Rest>,
    /// The body of the chord this task counts for.
    #[serde(default)]
    pub chord: Option<Signature>,
}

/// How deep compositions may be nested, in levels of JSON: about a hundred compositions, a tenth of what Python's own
/// reader takes. Each level costs stack.
const DEEPEST: usize = 300;

/// Depth times length of what follows a task, in bytes: each composition is read from a copy of its text, about one in
/// three levels, while those around it are there. What Python composes has some ten levels.
const COPIES: usize = 1 << 30;

impl Embed {
    /// Whether nothing follows.
    pub fn is_empty(&self) -> bool {
        let none = |list: &Option<Vec<Signature>>| list.as_ref().is_none_or(Vec::is_empty);
        none(&self.callbacks)
            && none(&self.errbacks)
            && self.chain.as_ref().is_none_or(Rest::is_empty)
            && self.chord.is_none()
    }
}

impl Body {
    /// Cuts the text of a protocol 2 body.
    ///
    /// # Errors
    /// The text is not `[list, object, object or null]`.
    pub fn parse(text: String) -> Result<Self, DecodeError> {
        // YAML and msgpack carry them already.
        json::note_carried(&text);
        let (text, [args, kwargs, embed]) = match cut(&text) {
            Ok(places) => (text, places),
            // Python's non-finite numbers are no JSON.
            Err(error) => match json::carried(&text) {
                Cow::Borrowed(_) => return Err(error),
                Cow::Owned(carried) => {
                    let places = cut(&carried)?;
                    (carried, places)
                }
            },
        };
        if !text[args.clone()].starts_with('[') {
            return Err(DecodeError::Body("args is not a list".into()));
        }
        if !text[kwargs.clone()].starts_with('{') {
            return Err(DecodeError::Body("kwargs is not an object".into()));
        }
        let embed = match &text[embed.clone()] {
            "null" => None,
            object if object.starts_with('{') => Some(embed),
            _ => return Err(DecodeError::Body("embed is neither an object nor null".into())),
        };
        Ok(Self {
            text,
            args,
            kwargs,
            embed,
        })
    }

    /// The same, if its arguments are nested no deeper.
    pub(super) fn at_most(self, depth: usize) -> Result<Self, DecodeError> {
        // What is deeper than the parser goes is found by whoever parses it: nobody looks twice.
        let looks = depth < limits::DEEPEST;
        if looks
            && [self.args(), self.kwargs()]
                .into_iter()
                .any(|text| json::depth(text) > depth)
        {
            return Err(DecodeError::Body(format!(
                "its arguments are nested deeper than {depth} levels (max_depth)"
            )));
        }
        Ok(self)
    }

    /// Positional arguments, JSON text of a list.
    pub fn args(&self) -> &str {
        &self.text[self.args.clone()]
    }

    /// Keyword arguments, JSON text of an object.
    pub fn kwargs(&self) -> &str {
        &self.text[self.kwargs.clone()]
    }

    /// The arguments as values.
    ///
    /// # Errors
    /// A number or string in them is not JSON.
    pub fn arguments(&self) -> Result<Arguments, serde_json::Error> {
        Ok(Arguments {
            args: json::parse(self.args())?,
            kwargs: json::parse(self.kwargs())?,
        })
    }

    /// Why [`arguments`](Self::arguments) cannot be read: which of them, and what is wrong with it.
    pub fn unreadable(&self) -> String {
        let why = |value: &RawValue| {
            json::parse::<Value>(value.get())
                .err()
                .map(|error| json::in_words(&error))
        };
        let args: Vec<&RawValue> = serde_json::from_str(self.args()).unwrap_or_default();
        let of_args = args
            .into_iter()
            .enumerate()
            .find_map(|(at, value)| Some(format!("argument {} cannot be read: {}", at + 1, why(value)?)));
        let of_kwargs = || {
            let Pairs(kwargs) = serde_json::from_str(self.kwargs()).ok()?;
            kwargs
                .into_iter()
                .find_map(|(name, value)| Some(format!("argument '{name}' cannot be read: {}", why(value)?)))
        };
        let of_names = || "the names of its arguments cannot be read".to_owned();
        of_args.or_else(of_kwargs).unwrap_or_else(of_names)
    }

    /// The text of a body with other arguments and the same that follows.
    ///
    /// # Errors
    /// Never in practice.
    pub fn with_arguments(&self, arguments: &Arguments) -> Result<String, serde_json::Error> {
        let embed = self.embed.clone().map_or("{}", |place| &self.text[place]);
        let (args, kwargs) = (
            serde_json::to_string(&arguments.args)?,
            serde_json::to_string(&arguments.kwargs)?,
        );
        Ok(format!("[{args}, {kwargs}, {embed}]"))
    }

    /// What follows the task.
    ///
    /// # Errors
    /// A callback, errback, chain step or chord is not a signature.
    pub fn embed(&self) -> Result<Embed, DecodeError> {
        match &self.embed {
            None => Ok(Embed::default()),
            Some(place) => {
                let text = &self.text[place.clone()];
                bounded(text)?;
                read_embed(text)
            }
        }
    }

    /// Of what follows the task and cannot be read as a whole what fails with it, as far as that can be read.
    pub fn embed_left(&self) -> Embed {
        #[derive(Default, Deserialize)]
        struct Parts<'a> {
            #[serde(borrow, default)]
            errbacks: Option<&'a RawValue>,
            #[serde(borrow, default)]
            chain: Option<&'a RawValue>,
            #[serde(borrow, default)]
            chord: Option<&'a RawValue>,
        }
        fn part<T: DeserializeOwned>(text: Option<&RawValue>) -> Option<T> {
            let text = text?.get();
            bounded(text).ok()?;
            json::parse(text).ok()
        }
        let text = self.embed.clone().map_or("{}", |place| &self.text[place]);
        let parts: Parts<'_> = serde_json::from_str(text).unwrap_or_default();
        Embed {
            callbacks: None,
            errbacks: part(parts.errbacks),
            chain: part(parts.chain),
            chord: part(parts.chord),
        }
    }
}

/// Whether a composition may be read.
fn bounded(text: &str) -> Result<(), DecodeError> {
    let depth = json::depth(text);
    if depth > DEEPEST {
        return Err(DecodeError::Body("embed is nested too deep".into()));
    }
    if depth.saturating_mul(text.len()) > COPIES {
        return Err(DecodeError::Body(format!(
            "embed is nested too deep for its length: {depth} levels of {} bytes",
            text.len()
        )));
    }
    Ok(())
}

/// The places of the three parts.
fn cut(text: &str) -> Result<[Range<usize>; 3], DecodeError> {
    let parts: Vec<&RawValue> = serde_json::from_str(text)
        .map_err(|error| DecodeError::Body(format!("the body is not [args, kwargs, embed]: {error}")))?;
    let [args, kwargs, embed] = parts[..] else {
        return Err(DecodeError::Body(format!(
            "the body has {} parts instead of [args, kwargs, embed]",
            parts.len()
        )));
    };
    // Each part is a slice of `text`, so the distance of the pointers is its place.
    let start = text.as_ptr() as usize;
    Ok([args, kwargs, embed].map(|part| {
        let at = part.get().as_ptr() as usize - start;
        at..at + part.get().len()
    }))
}

fn read_embed<T: DeserializeOwned>(text: &str) -> Result<T, DecodeError> {
    json::parse(text).map_err(|error| DecodeError::Body(format!("embed is not of Celery's shape: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_053_the_minimal_body_is_cut_in_three() {
        let body = Body::parse(r#"[[1, "a,]"], {"k": {}}, {}]"#.into()).unwrap();
        assert_eq!(body.args(), r#"[1, "a,]"]"#);
        assert_eq!(body.kwargs(), r#"{"k": {}}"#);
        assert_eq!(body.embed().unwrap(), Embed::default());
        assert!(
            Body::parse("[[], {}, null]".into())
                .unwrap()
                .embed()
                .unwrap()
                .chain
                .is_none()
        );
    }

    #[test]
    fn p_073_a_body_of_another_shape_is_an_error() {
        for text in [
            "null",
            "[[], {}]",
            "[[], {}, {}, {}]",
            "[{}, {}, {}]",
            "[[], [], {}]",
            "[[], {}, 3]",
            "not json",
            "",
        ] {
            assert!(Body::parse(text.into()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_long_composition_is_not_copied_over_and_over() {
        let nested = |levels: usize, length: usize| {
            let open = r#"{"task":"celery.chain","subtask_type":"chain","kwargs":{"tasks":["#.repeat(levels);
            let close = "]}}".repeat(levels);
            let long = "x".repeat(length);
            format!(r#"[[], {{}}, {{"chord": {open}{{"task":"t","args":["{long}"]}}{close}}}]"#)
        };
        let embed = |text| Body::parse(text).unwrap().embed();
        assert!(embed(nested(3, 8 << 20)).is_ok());
        assert!(embed(nested(90, 1 << 20)).is_ok());
        let refused = embed(nested(90, 8 << 20)).unwrap_err().to_string();
        assert!(refused.contains("too deep for its length: 2"), "{refused}");
    }

    #[test]
    fn what_hangs_on_an_embed_that_is_too_deep_is_still_known() {
        let deep = "[".repeat(DEEPEST) + &"]".repeat(DEEPEST);
        let chord = r#"{"task": "body", "options": {"task_id": "b"}}"#;
        let body = Body::parse(format!(
            r#"[[], {{}}, {{"callbacks": {deep}, "errbacks": [{{"task": "e"}}], "chain": [{{"task": "c", "args": {deep}}}], "chord": {chord}}}]"#
        ))
        .unwrap();
        assert!(body.embed().is_err());
        let left = body.embed_left();
        assert_eq!(left.chord.unwrap().task, "body");
        assert_eq!(left.errbacks.unwrap().len(), 1);
        assert!(left.callbacks.is_none() && left.chain.is_none());
    }

    #[test]
    fn p_015_a_body_with_nan_is_read() {
        let body = Body::parse("[[NaN, 1], {}, {}]".into()).unwrap();
        assert_eq!(body.arguments().unwrap().args, [Value::Null, 1.into()]);
    }
}
