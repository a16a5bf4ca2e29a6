//! From a claimed message to a request, or to the reason why not (`celery.worker.strategy`). Pure.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::Options;
use super::request::Request;
use super::unique::Unique;
use crate::broker::{self, GivenUp};
use crate::clock::{self, Timestamp};
use crate::task::{Registry, not_registered};
use crate::wire::{self, Embed, Exception, Headers, Message};

/// Why a message is not run.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// For the log and the dead-letter list.
    pub reason: String,
    /// Whom to tell, when the headers could be read.
    pub failure: Option<Failed>,
    /// A message that nobody could ever run is kept in the dead-letter list; one for a task that is not registered
    /// *here* is answered with FAILURE and removed, as Celery does.
    pub bury: bool,
}

/// A task that failed without having become a request.
#[derive(Debug)]
pub(crate) struct Failed {
    pub headers: Box<Headers>,
    /// What `get()` raises.
    pub exception: Exception,
    /// What follows the task, and fails with it.
    pub embed: Option<Embed>,
}

/// Makes a request of a claimed message.
pub(crate) fn receive(raw: Bytes, registry: &Registry, options: &Options) -> Result<Request, Box<Refusal>> {
    let mut message = options.accept.decode(&raw, &options.limits).map_err(|undecodable| {
        let reason = undecodable.error.to_string();
        let (module, class) = match undecodable.error {
            wire::DecodeError::ContentType(_) => ("kombu.exceptions", "ContentDisallowed"),
            wire::DecodeError::Security(_) => ("celery.exceptions", "SecurityError"),
            _ => ("kombu.exceptions", "DecodeError"),
        };
        let exception = Exception::new(module, class, reason.clone());
        Refusal {
            reason,
            failure: undecodable.headers.map(|headers| Failed {
                headers,
                exception,
                embed: None,
            }),
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
            failure: Some(Failed {
                embed: Some(message.body.embed().unwrap_or_else(|_| message.body.embed_left())),
                headers: Box::new(message.headers),
                exception,
            }),
            bury: false,
        }));
    };
    let times = time("eta", message.headers.eta.as_deref())
        .and_then(|eta| Ok((eta, time("expires", message.headers.expires.as_deref())?)));
    let (eta, expires) = match times {
        Ok(times) => times,
        Err(reason) => return Err(invalid(message, reason)),
    };
    let embed = match message.body.embed() {
        Ok(embed) => (!embed.is_empty()).then(|| Arc::new(embed)),
        Err(error) => return Err(invalid(message, error.to_string())),
    };
    let mut policy = options.policy(&entry.options);
    if let Some(ignore) = message.headers.ignore_result {
        policy.ignore_result = ignore;
    }
    if let Some((args, kwargs)) = entry.hides.shown(&message) {
        message.headers.argsrepr = Some(args);
        message.headers.kwargsrepr = Some(kwargs);
    }
    let unique = match Unique::of(&message, policy.unique) {
        Ok(unique) => unique,
        Err(reason) => return Err(invalid(message, reason)),
    };
    let redelivered = message.headers.redelivered || message.properties.redelivered();
    let counted = message.headers.extra.get(broker::DELIVERIES).and_then(Value::as_u64);
    let counted = counted.and_then(|counted| u32::try_from(counted).ok());
    let deliveries = broker::deliveries(counted, redelivered);
    Ok(Request {
        unique,
        is_last: deliveries >= options.broker_options.max_deliveries,
        restored: counted.is_some_and(|counted| counted > 1),
        deliveries,
        may_be_done: options.deduplicate && policy.acks_late && redelivered,
        id: Arc::from(message.headers.id.as_str()),
        entry: entry.clone(),
        policy,
        message: Arc::new(message),
        embed,
        raw,
        eta,
        expires,
        reach: options.reach,
    })
}

fn time(header: &str, text: Option<&str>) -> Result<Option<Timestamp>, String> {
    let Some(text) = text else { return Ok(None) };
    match clock::parse_iso(text) {
        Ok(at) => Ok(Some(at)),
        Err(error) => Err(format!("invalid {header} value {text:?}: {error}")),
    }
}

/// The end of a message that was delivered too often, as Celery says it of a process that is gone in the middle of a
/// task; `None` when nobody can tell whose message it was.
pub(crate) fn given_up(given_up: &GivenUp, options: &Options) -> Option<Failed> {
    let exception = Exception::new("billiard.exceptions", "WorkerLostError", given_up.reason.clone());
    never_run(&given_up.raw, exception, options)
}

/// The end of a message of which no more than its id can be told.
pub(crate) fn too_large(id: String, reason: String) -> Failed {
    let headers = Headers {
        id,
        ..Headers::default()
    };
    Failed {
        headers: Box::new(headers),
        exception: Exception::new("kombu.exceptions", "DecodeError", reason),
        embed: None,
    }
}

/// The end of a message that Redis would not take.
pub(crate) fn unsent(raw: &[u8], reason: &str, options: &Options) -> Option<Failed> {
    let exception = Exception::new("kombu.exceptions", "OperationalError", reason);
    never_run(raw, exception, options)
}

fn never_run(raw: &[u8], exception: Exception, options: &Options) -> Option<Failed> {
    let (headers, embed) = match options.accept.decode(raw, &options.limits) {
        Ok(message) => {
            let embed = Some(message.body.embed().unwrap_or_else(|_| message.body.embed_left()));
            (Box::new(message.headers), embed)
        }
        Err(undecodable) => (undecodable.headers?, None),
    };
    Some(Failed {
        headers,
        exception,
        embed,
    })
}

fn invalid(message: Message, reason: String) -> Box<Refusal> {
    let exception = Exception::new("celery.exceptions", "InvalidTaskError", reason.clone());
    Box::new(Refusal {
        reason,
        failure: Some(Failed {
            embed: Some(message.body.embed().unwrap_or_else(|_| message.body.embed_left())),
            headers: Box::new(message.headers),
            exception,
        }),
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
