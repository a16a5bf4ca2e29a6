//! From a chain to what is sent: its steps without nesting, last first, as the `chain` of a message holds them
//! (`celery.canvas._chain.prepare_steps`).

use std::collections::VecDeque;

use super::ResultNode;
use super::compose::{Reach, is_empty_group, link_error, unchain, unroll};
use super::freeze::{Freeze, freeze, strip};
use crate::wire::{Chord, Json, Kind, Signature};

/// Options of a chain that mean the chain, not its first task.
const OF_THE_CHAIN: [&str; 5] = ["group_id", "group_index", "parent_id", "root_id", "task_id"];

/// The steps, last first and frozen, and the handle of the last one's result; `None` for a chain without steps.
pub(super) fn prepare(
    tasks: Vec<Signature>,
    args: &[Json],
    (errbacks, reach): (&[Signature], Reach),
    with: Freeze<'_>,
) -> Option<(Vec<Signature>, ResultNode)> {
    let mut steps = VecDeque::from(tasks);
    lead_with_a_task(&mut steps);
    let mut done: Vec<Signature> = Vec::with_capacity(steps.len());
    let mut results: Vec<ResultNode> = Vec::with_capacity(steps.len());
    while let Some(step) = steps.pop_back() {
        let mut step = unroll(step);
        if is_empty_group(&step) && !(steps.is_empty() && done.is_empty()) {
            continue;
        }
        if led_by_a_task(&step) {
            steps.extend(split(step, reach));
            continue;
        }
        if let Kind::Chain(inner) = step.kind {
            steps.extend(inner);
            continue;
        }
        if steps.is_empty() {
            // The first one gets the chain's arguments.
            prepend(&mut step, args);
        }
        if matches!(step.kind, Kind::Group(_))
            && let Some(body) = done.pop()
        {
            // The chord's result is that of its body.
            results.pop();
            step = chord_of(step, body, with.root_id);
        }
        let last = done.is_empty();
        let result = freeze(
            &mut step,
            if last {
                with
            } else {
                Freeze {
                    root_id: with.root_id,
                    reply_to: with.reply_to,
                    ..Freeze::default()
                }
            },
        );
        for errback in errbacks {
            link_error(&mut step, errback, reach);
        }
        done.push(step);
        results.push(result);
    }
    done.iter_mut().for_each(strip);
    let mut line = results.into_iter().rev();
    let mut node = line.next()?;
    for mut next in line {
        next.root_at(node);
        node = next;
    }
    Some((done, node))
}

/// Nested chains at the beginning are opened, and empty groups there are left out, so that the chain's arguments reach
/// the first task that there is.
fn lead_with_a_task(steps: &mut VecDeque<Signature>) {
    let mut empty = None;
    while let Some(head) = steps.pop_front() {
        let head = unroll(head);
        match head.kind {
            Kind::Chain(inner) => {
                for step in inner.into_iter().rev() {
                    steps.push_front(step);
                }
            }
            Kind::Group(tasks) if tasks.is_empty() && !steps.is_empty() => {
                empty = Some(Signature::of(Kind::Group(tasks)));
            }
            _ => {
                steps.push_front(head);
                return;
            }
        }
    }
    steps.extend(empty);
}

/// A chord whose body is a chain that begins with a task: only that task is the body, the rest are steps. Every member
/// of the header carries the body, so a long one would be copied into each.
pub(super) fn led_by_a_task(signature: &Signature) -> bool {
    let Kind::Chord(chord) = &signature.kind else {
        return false;
    };
    let Some(body) = &chord.body else { return false };
    matches!(&body.kind, Kind::Chain(tasks) if tasks.first().is_some_and(|first| !matches!(first.kind, Kind::Group(_))))
}

pub(super) fn split(mut signature: Signature, reach: Reach) -> Vec<Signature> {
    let Kind::Chord(chord) = &mut signature.kind else {
        return vec![signature];
    };
    let Some(body) = chord.body.take() else {
        return vec![signature];
    };
    let own = body.options.clone();
    let mut tail = unchain(body, reach).into_iter();
    if let Some(mut first) = tail.next() {
        for (name, value) in own.rest {
            if !OF_THE_CHAIN.contains(&name.as_str()) {
                first.options.rest.insert(name, value);
            }
        }
        if let Some(chain) = own.chain {
            first.options.chain = Some(chain);
        }
        chord.body = Some(first);
    }
    let mut steps = vec![signature];
    steps.extend(tail);
    steps
}

/// Splits the bodies of chords in a chain (`celery.canvas._chain._unroll_chords`).
pub(super) fn unroll_chords(tasks: Vec<Signature>, reach: Reach) -> Vec<Signature> {
    let mut pending = VecDeque::from(tasks);
    let mut steps = Vec::with_capacity(pending.len());
    while let Some(mut task) = pending.pop_front() {
        if let Kind::Chain(inner) = &mut task.kind {
            *inner = unroll_chords(std::mem::take(inner), reach);
        }
        if led_by_a_task(&task) {
            for step in split(task, reach).into_iter().rev() {
                pending.push_front(step);
            }
        } else {
            steps.push(task);
        }
    }
    steps
}

fn chord_of(group: Signature, body: Signature, root_id: Option<&str>) -> Signature {
    let Kind::Group(header) = group.kind else { return group };
    let mut signature = Signature::of(Kind::Chord(Box::new(Chord {
        header,
        group: None,
        frozen: false,
        body: Some(body),
    })));
    if let Some(root) = root_id {
        signature.options.set_str("root_id", root);
    }
    signature.args = group.args;
    signature
}

/// Puts arguments before a signature's own, unless it wants none.
pub(super) fn prepend(signature: &mut Signature, args: &[Json]) {
    if !signature.immutable && !args.is_empty() {
        signature.args.splice(0..0, args.iter().cloned());
    }
}
