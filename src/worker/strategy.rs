//! From a claimed message to a request, or to the reason why not (`celery.worker.strategy`). Pure.

use std::sync::Arc;

use bytes::Bytes;

use super::Options;
use super::request::Request;
use crate::clock::{self, Timestamp};
use crate::task::{Registry, not_registered};
use crate::wire::{self, Embed, Exception, Headers, Message};

/// Why a message is not run.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// For the log and the dead-letter list.
    pub reason: String,
    /// Whom to tell: the headers, when they could be read, and the exception that `get()` raises.
    pub failure: Option<(Box<Headers>, Exception)>,
    /// A message that nobody could ever run is kept in the dead-letter list; one for a task that is not registered
    /// *here* is answered with FAILURE and removed, as Celery does.
    pub bury: bool,
}

/// Makes a request of a claimed message.
pub(crate) fn receive(raw: Bytes, registry: &Registry, options: &Options) -> Result<Request, Box<Refusal>> {
    let message = options.accept.decode(&raw, &options.limits).map_err(|undecodable| {
        let reason = undecodable.error.to_string();
        let (module, class) = match undecodable.error {
            wire::DecodeError::ContentType(_) => ("kombu.exceptions", "ContentDisallowed"),
            wire::DecodeError::Security(_) => ("celery.exceptions", "SecurityError"),
            _ => ("kombu.exceptions", "DecodeError"),
        };
        let exception = Exception::new(module, class, reason.clone());
        Refusal {
            reason,
            failure: undecodable.headers.map(|headers| (headers, exception)),
            bury: true,
        }
    })?;
    let Some(entry) = registry.get(&message.headers.task) else {
        let exception = not_registered(&message.headers.task);
        return Err(Box::new(Refusal {
            reason: format!(
                "received unregistered task of type {:?}; this worker knows: {}",
                message.headers.task,
                known(registry)
            ),
            failure: Some((Box::new(message.headers), exception)),
            bury: false,
        }));
    };
    let times = time("eta", message.headers.eta.as_deref())
        .and_then(|eta| Ok((eta, time("expires", message.headers.expires.as_deref())?)));
    let (eta, expires) = match times {
        Ok(times) => times,
        Err(reason) => return Err(invalid(message, reason)),
    };
    match message.body.embed() {
        Ok(embed) => {
            if let Some(follower) = unfollowed(&embed) {
                return Err(unsupported(message, follower));
            }
        }
        Err(error) => return Err(invalid(message, error.to_string())),
    }
    let mut policy = options.policy(&entry.options);
    if let Some(ignore) = message.headers.ignore_result {
        policy.ignore_result = ignore;
    }
    Ok(Request {
        id: Arc::from(message.headers.id.as_str()),
        entry: entry.clone(),
        policy,
        message,
        raw,
        eta,
        expires,
    })
}

fn time(header: &str, text: Option<&str>) -> Result<Option<Timestamp>, String> {
    let Some(text) = text else { return Ok(None) };
    match clock::parse_iso(text) {
        Ok(at) => Ok(Some(at)),
        Err(error) => Err(format!("invalid {header} value {text:?}: {error}")),
    }
}

/// What should follow the task and would not: this version sends nothing after a task.
fn unfollowed(embed: &Embed) -> Option<&'static str> {
    let some = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    if some(&embed.chain) {
        Some("a chain")
    } else if embed.chord.is_some() {
        Some("a chord")
    } else if some(&embed.callbacks) {
        Some("a callback (link)")
    } else if some(&embed.errbacks) {
        Some("an error callback (link_error)")
    } else {
        None
    }
}

/// Not run at all: half a workflow is worse than none, and a `get()` on its last task raises at once instead of waiting
/// for ever.
fn unsupported(message: Message, follower: &str) -> Box<Refusal> {
    let reason = format!("the task is part of {follower}, which this version of orchestra does not follow");
    let exception = Exception::builtin("NotImplementedError", reason.clone());
    Box::new(Refusal {
        reason,
        failure: Some((Box::new(message.headers), exception)),
        bury: true,
    })
}

fn invalid(message: Message, reason: String) -> Box<Refusal> {
    let exception = Exception::new("celery.exceptions", "InvalidTaskError", reason.clone());
    Box::new(Refusal {
        reason,
        failure: Some((Box::new(message.headers), exception)),
        bury: true,
    })
}

fn known(registry: &Registry) -> String {
    let names: Vec<&str> = registry.entries().map(|entry| &*entry.name).take(20).collect();
    match names[..] {
        [] => "no tasks".to_owned(),
        _ => names.join(", "),
    }
}
