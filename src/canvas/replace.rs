//! A task that puts another in its place (`celery.app.task.Task.replace`).

use std::sync::Arc;

use super::compose::{Reach, chord, link, link_error, then_linking};
use super::forms::accumulate;
use super::freeze::{Freeze, freeze};
use crate::wire::{CallOptions, Embed, Json, Kind, Rest, Signature};

/// What the replaced task was to the others.
#[derive(Clone, Copy, Debug)]
pub struct Replaced<'a> {
    /// Its id, which the replacement takes over.
    pub id: &'a str,
    /// The first task of the workflow.
    pub root_id: Option<&'a str>,
    /// The group it is in.
    pub group: Option<&'a str>,
    /// Its place there.
    pub group_index: Option<i64>,
    /// How often it was replaced before.
    pub nesting: u32,
    /// What follows it.
    pub embed: &'a Embed,
    /// Whom results are for.
    pub reply_to: &'a str,
    /// How far its error callbacks reach.
    pub reach: Reach,
}

/// Why a signature cannot replace a task; the text of `ImproperlyConfigured`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplacementError {
    /// It belongs to a chord already.
    #[error("A signature replacing a task must not be part of a chord")]
    InAChord,
    /// There is nothing in it.
    #[error("Cannot replace with an empty chain")]
    Empty,
    /// What follows the task in its chain is not all signatures.
    #[error("Cannot replace a task of a chain with a step that is no signature")]
    Unreadable,
}

/// The signature to apply instead of the task: with its id, its place, and everything that follows it.
///
/// # Errors
/// See [`ReplacementError`].
pub fn replacement(signature: Signature, of: Replaced<'_>) -> Result<Signature, ReplacementError> {
    if signature.options.chord.is_some() {
        return Err(ReplacementError::InAChord);
    }
    let mut signature = with_one_result(signature)?;
    for callback in of.embed.callbacks.iter().flatten() {
        link(&mut signature, callback.clone());
    }
    for errback in of.embed.errbacks.iter().flatten() {
        link_error(&mut signature, errback, of.reach);
    }
    if let Kind::Chain(tasks) = &mut signature.kind
        && let Some(last) = tasks.last_mut()
    {
        // They run when the replacement is done, whatever is added behind it below.
        for callback in signature.options.link.drain(..) {
            last.options.add_link(callback);
        }
    }
    freeze(
        &mut signature,
        Freeze {
            id: Some(of.id),
            reply_to: of.reply_to,
            ..Freeze::default()
        },
    );
    let nesting = Json::number(u64::from(of.nesting) + 1);
    let options = &mut signature.options;
    options.chord = of.embed.chord.clone().map(Arc::new);
    // Null says that it is in no group: the body of a chord would be put into that of its header.
    set(
        options,
        "group_id",
        Some(of.group.map_or_else(Json::null, Json::string)),
    );
    set(
        options,
        "group_index",
        of.group_index.and_then(|index| Json::new(&index).ok()),
    );
    set(options, "root_id", of.root_id.map(Json::string));
    set(options, "replaced_task_nesting", Some(nesting.clone()));
    if let Kind::Chain(tasks) = &mut signature.kind {
        for task in tasks {
            set(&mut task.options, "replaced_task_nesting", Some(nesting.clone()));
        }
    }
    let rest = of.embed.chain.as_ref().map_or(Ok(Vec::new()), Rest::steps);
    for mut next in rest.map_err(|_| ReplacementError::Unreadable)?.into_iter().rev() {
        set(&mut next.options, "replaced_task_nesting", Some(nesting.clone()));
        signature = then_linking(signature, next, of.reach);
    }
    Ok(signature)
}

/// A group has many results and the replaced task one: the list of them.
fn with_one_result(mut signature: Signature) -> Result<Signature, ReplacementError> {
    match signature.kind {
        Kind::Group(tasks) => Ok(chord(tasks, accumulate())),
        Kind::Chain(mut tasks) => {
            let last = tasks.pop().ok_or(ReplacementError::Empty)?;
            tasks.push(match last.kind {
                Kind::Group(members) => chord(members, accumulate()),
                _ => last,
            });
            signature.kind = Kind::Chain(tasks);
            Ok(signature)
        }
        _ => Ok(signature),
    }
}

fn set(options: &mut CallOptions, name: &str, value: Option<Json>) {
    match value {
        Some(value) => drop(options.rest.insert(name.to_owned(), value)),
        None => drop(options.rest.remove(name)),
    }
}
