//! Giving ids to everything whose result somebody may wait for, before anything is sent (`Signature.freeze`).

use std::sync::Arc;

use uuid::Uuid;

use super::ResultNode;
use crate::wire::{CallOptions, Chord, Json, Kind, Signature};

/// What a signature is given; whatever it has already stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Freeze<'a> {
    /// Its id; the last of a chain and the body of a chord get it.
    pub id: Option<&'a str>,
    /// The group it is in.
    pub group_id: Option<&'a str>,
    /// Its place there.
    pub group_index: Option<u64>,
    /// The body of the chord whose header it is in.
    pub chord: Option<&'a Arc<Signature>>,
    /// The first task of the workflow.
    pub root_id: Option<&'a str>,
    /// The client that asks for results.
    pub reply_to: &'a str,
}

impl<'a> Freeze<'a> {
    /// What all steps get; the others are for the last one.
    fn common(self) -> Self {
        Freeze {
            root_id: self.root_id,
            reply_to: self.reply_to,
            ..Freeze::default()
        }
    }

    fn chord_member(self, index: u64, root_id: Option<&'a str>) -> Self {
        Freeze {
            group_index: Some(index),
            root_id,
            ..self.common()
        }
    }
}

pub(super) fn new_id() -> String {
    Uuid::new_v4().to_string()
}

/// Freezes in place; the handle of the result.
pub fn freeze(signature: &mut Signature, with: Freeze<'_>) -> ResultNode {
    match &mut signature.kind {
        Kind::Task | Kind::Other(_) => ResultNode::task(freeze_task(&mut signature.options, with)),
        Kind::Chain(tasks) => {
            let node = freeze_chain(tasks, with);
            signature.options.set_str("task_id", &node.id);
            node
        }
        Kind::Group(tasks) => {
            let (id, children) = freeze_group(tasks, &mut signature.options, with);
            ResultNode::group(id, children)
        }
        Kind::Chord(chord) => {
            let (node, id) = freeze_chord(chord, with);
            signature.options.set_str("task_id", &id);
            node
        }
    }
}

fn freeze_task(options: &mut CallOptions, with: Freeze<'_>) -> String {
    let id = match options.str("task_id") {
        Some(id) => id,
        None => {
            let id = with.id.map_or_else(new_id, str::to_owned);
            options.set_str("task_id", &id);
            id
        }
    };
    if let Some(root) = with.root_id {
        options.set_str("root_id", root);
    }
    if options.str("reply_to").is_none() {
        options.set_str("reply_to", with.reply_to);
    }
    join(options, with);
    id
}

/// The group and the chord.
fn join(options: &mut CallOptions, with: Freeze<'_>) {
    if let Some(group) = with.group_id
        && !options.rest.contains_key("group_id")
    {
        options.set_str("group_id", group);
    }
    if let Some(chord) = with.chord {
        options.chord = Some(chord.clone());
    }
    if let Some(index) = with.group_index {
        options.rest.insert("group_index".into(), Json::number(index));
    }
}

/// Last to first, as the results hang together; what a chain that is sent later makes of its steps is not anticipated.
fn freeze_chain(tasks: &mut [Signature], with: Freeze<'_>) -> ResultNode {
    let mut steps = Vec::new();
    spread(tasks, &mut steps);
    let mut line: Vec<ResultNode> = Vec::with_capacity(steps.len());
    for (n, step) in steps.into_iter().rev().enumerate() {
        line.push(freeze(step, if n == 0 { with } else { with.common() }));
    }
    let mut line = line.into_iter().rev();
    let Some(mut node) = line.next() else {
        return ResultNode::task(with.id.map_or_else(new_id, str::to_owned));
    };
    for mut next in line {
        next.root_at(node);
        node = next;
    }
    node
}

/// The steps of a chain without the nesting that means nothing.
fn spread<'t>(tasks: &'t mut [Signature], steps: &mut Vec<&'t mut Signature>) {
    for task in tasks {
        let unrolls = match &task.kind {
            Kind::Chain(_) => true,
            Kind::Group(tasks) => tasks.len() < 2,
            _ => false,
        };
        if unrolls {
            if let Kind::Chain(inner) | Kind::Group(inner) = &mut task.kind {
                spread(inner, steps);
            }
        } else {
            steps.push(task);
        }
    }
}

/// Freezes the members of a group, which are flattened on the way: its id, and their results.
pub(super) fn freeze_group(
    tasks: &mut Vec<Signature>,
    options: &mut CallOptions,
    with: Freeze<'_>,
) -> (String, Vec<ResultNode>) {
    let id = match options.str("task_id") {
        Some(id) => id,
        None => {
            let id = new_id();
            options.set_str("task_id", &id);
            id
        }
    };
    join(options, with);
    let root = options.str("root_id").or_else(|| with.root_id.map(str::to_owned));
    if let Some(root) = &root {
        options.set_str("root_id", root);
    }
    let mut flat = Vec::with_capacity(tasks.len());
    flatten(std::mem::take(tasks), &mut flat);
    let mut results = Vec::with_capacity(flat.len());
    for (index, task) in (0..).zip(&mut flat) {
        results.push(freeze(
            task,
            Freeze {
                group_id: with.group_id,
                chord: with.chord,
                ..with.chord_member(index, root.as_deref())
            },
        ));
    }
    *tasks = flat;
    (id, results)
}

/// Groups in groups become one; like Celery a nested group is put in from its end.
fn flatten(tasks: Vec<Signature>, flat: &mut Vec<Signature>) {
    for task in tasks {
        match task.kind {
            Kind::Group(mut inner) => {
                inner.reverse();
                flatten(inner, flat);
            }
            Kind::Chain(inner) if inner.is_empty() => {}
            _ => flat.push(task),
        }
    }
}

/// The body's result behind the header's; and the group's id: a new one, unless it was frozen in this process.
fn freeze_chord(chord: &mut Chord, with: Freeze<'_>) -> (ResultNode, String) {
    let group = chord.group.take().filter(|_| chord.frozen);
    let mut group = group.unwrap_or_default();
    chord.frozen = true;
    // The members get the body when the header is sent: it would be copied into each of them here.
    let (id, children) = freeze_group(&mut chord.header, &mut group, with.common());
    chord.group = Some(group);
    let header = ResultNode::group(id.clone(), children);
    let node = match &mut chord.body {
        Some(body) => {
            let mut node = freeze(body, with);
            node.root_at(header);
            node
        }
        None => header,
    };
    (node, id)
}

/// Removes the chord bodies that clients put on the members of headers that are sent later: a chord carries its body
/// already, and for chords in chords the copies would multiply (`celery.canvas._strip_chord_header_links`).
pub(super) fn strip(signature: &mut Signature) {
    match &mut signature.kind {
        Kind::Chord(chord) => {
            for task in &mut chord.header {
                clear(task);
                strip(task);
            }
            if let Some(body) = &mut chord.body {
                strip(body);
            }
        }
        Kind::Group(tasks) | Kind::Chain(tasks) => tasks.iter_mut().for_each(strip),
        Kind::Task | Kind::Other(_) => {}
    }
}

fn clear(signature: &mut Signature) {
    signature.options.chord = None;
    match &mut signature.kind {
        Kind::Group(tasks) => tasks.iter_mut().for_each(clear),
        Kind::Chain(tasks) => tasks.last_mut().into_iter().for_each(clear),
        Kind::Chord(chord) => chord.body.iter_mut().for_each(clear),
        Kind::Task | Kind::Other(_) => {}
    }
}
