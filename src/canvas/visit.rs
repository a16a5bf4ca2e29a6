//! Stamps that differ from part to part: a visitor walks through a composition and says what each call is stamped with
//! (`celery.canvas.StampingVisitor`).

use std::collections::BTreeMap;

use serde_json::Value;

use super::group;
use crate::wire::{CallOptions, Json, Kind, Signature};

/// Stamps by name.
pub type Stamps = BTreeMap<String, Value>;

/// Says what the parts of a composition are stamped with. Each method is told what comes from outside of the part, and
/// gives what is to be added: for a call that is the call itself, otherwise everything in it. What comes from outside
/// stays where a name is there already; two lists are put together (in Celery those of parts stamped before grow as
/// well). The names of the methods are Celery's.
pub trait StampingVisitor {
    /// A call.
    fn on_signature(&mut self, call: &Signature, stamps: &Stamps) -> Stamps;

    /// Before the members of a group.
    fn on_group_start(&mut self, group: &Signature, stamps: &Stamps) -> Stamps {
        let _ = (group, stamps);
        Stamps::new()
    }

    /// After them.
    fn on_group_end(&mut self, group: &Signature, stamps: &Stamps) {
        let _ = (group, stamps);
    }

    /// Before the steps of a chain.
    fn on_chain_start(&mut self, chain: &Signature, stamps: &Stamps) -> Stamps {
        let _ = (chain, stamps);
        Stamps::new()
    }

    /// After them.
    fn on_chain_end(&mut self, chain: &Signature, stamps: &Stamps) {
        let _ = (chain, stamps);
    }

    /// Before the header of a chord, which is a group.
    fn on_chord_header_start(&mut self, chord: &Signature, stamps: &Stamps) -> Stamps {
        self.on_group_start(&header(chord), stamps)
    }

    /// After it.
    fn on_chord_header_end(&mut self, chord: &Signature, stamps: &Stamps) {
        self.on_group_end(&header(chord), stamps);
    }

    /// Before the body of a chord; it has the stamps of the header as well.
    fn on_chord_body(&mut self, chord: &Signature, stamps: &Stamps) -> Stamps {
        let _ = (chord, stamps);
        Stamps::new()
    }

    /// Before a callback.
    fn on_callback(&mut self, callback: &Signature, stamps: &Stamps) -> Stamps {
        let _ = (callback, stamps);
        Stamps::new()
    }

    /// Before an error callback.
    fn on_errback(&mut self, errback: &Signature, stamps: &Stamps) -> Stamps {
        let _ = (errback, stamps);
        Stamps::new()
    }
}

fn header(chord: &Signature) -> Signature {
    match &chord.kind {
        Kind::Chord(chord) => group(chord.header.iter().cloned()),
        _ => group([]),
    }
}

impl Signature {
    /// Stamped by a visitor.
    #[must_use]
    pub fn stamp_with(mut self, visitor: &mut dyn StampingVisitor) -> Self {
        visit(&mut self, visitor, &Stamps::new());
        self
    }
}

fn visit(signature: &mut Signature, visitor: &mut dyn StampingVisitor, outer: &Stamps) {
    match signature.kind {
        Kind::Task | Kind::Other(_) => {
            visit_links(&mut signature.options, visitor, outer);
            let added = visitor.on_signature(signature, outer);
            let stamps = together(outer, added, Some(&signature.options));
            set(&mut signature.options, &stamps);
        }
        Kind::Chain(_) | Kind::Group(_) => {
            let is_chain = matches!(signature.kind, Kind::Chain(_));
            let added = if is_chain {
                visitor.on_chain_start(signature, outer)
            } else {
                visitor.on_group_start(signature, outer)
            };
            let stamps = together(outer, added, Some(&signature.options));
            visit_links(&mut signature.options, visitor, &stamps);
            if let Kind::Chain(tasks) | Kind::Group(tasks) = &mut signature.kind {
                tasks.iter_mut().for_each(|task| visit(task, visitor, &stamps));
            }
            if is_chain {
                visitor.on_chain_end(signature, &stamps);
            } else {
                visitor.on_group_end(signature, &stamps);
            }
        }
        Kind::Chord(_) => {
            let added = visitor.on_chord_header_start(signature, outer);
            let stamps = together(outer, added, Some(&signature.options));
            visit_links(&mut signature.options, visitor, &stamps);
            if let Kind::Chord(chord) = &mut signature.kind {
                chord.header.iter_mut().for_each(|task| visit(task, visitor, &stamps));
            }
            visitor.on_chord_header_end(signature, &stamps);
            let added = visitor.on_chord_body(signature, &stamps);
            let stamps = together(&stamps, added, Some(&signature.options));
            if let Kind::Chord(chord) = &mut signature.kind
                && let Some(body) = &mut chord.body
            {
                visit(body, visitor, &stamps);
            }
        }
    }
}

/// Callbacks have not the stamps of what they follow. As in Celery each has those that the ones before it were given.
fn visit_links(options: &mut CallOptions, visitor: &mut dyn StampingVisitor, outer: &Stamps) {
    let mut stamps = outer.clone();
    for callback in &mut options.link {
        stamps = together(&stamps, visitor.on_callback(callback, &stamps), None);
        visit(callback, visitor, &stamps);
    }
    let mut stamps = outer.clone();
    for errback in &mut options.link_error {
        stamps = together(&stamps, visitor.on_errback(errback, &stamps), None);
        visit(errback, visitor, &stamps);
    }
}

/// The first value of a name stays; lists are put together.
fn together(outer: &Stamps, added: Stamps, own: Option<&CallOptions>) -> Stamps {
    let mut stamps = outer.clone();
    for (name, value) in added.into_iter().chain(own.map(own_stamps).into_iter().flatten()) {
        match (stamps.get_mut(&name), value) {
            (None, value) => drop(stamps.insert(name, value)),
            (Some(Value::Array(values)), Value::Array(more)) => values.extend(more),
            _ => {}
        }
    }
    stamps
}

fn own_stamps(options: &CallOptions) -> Stamps {
    let names = options
        .get("stamped_headers")
        .and_then(|names| names.parse::<Vec<String>>().ok());
    let value = |name: String| {
        options
            .get(&name)
            .and_then(|value| value.parse().ok())
            .map(|value| (name, value))
    };
    names.into_iter().flatten().filter_map(value).collect()
}

fn set(options: &mut CallOptions, stamps: &Stamps) {
    let names: Vec<&String> = stamps.keys().collect();
    if let Ok(names) = Json::new(&names) {
        options.rest.insert("stamped_headers".to_owned(), names);
    }
    for (name, value) in stamps {
        if let Ok(value) = Json::new(value) {
            options.rest.insert(name.clone(), value);
        }
    }
}
