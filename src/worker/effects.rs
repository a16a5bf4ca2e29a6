//! From what was decided to what is written: records, envelopes, events. No Redis here, only what is to be said.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tracing::{error, info, warn};

use super::Options;
use super::events::{Events, result_repr};
use super::follow::unsendable;
use super::joiner::Last;
use super::metrics::Metrics;
use super::outbox::Out;
use super::request::{Content, Delivery, Effect, End, Happening, Request};
use crate::broker::Tag;
use crate::canvas::{Priorities, Reach, ResultNode};
use crate::client::SentEvents;
use crate::task::builtins::COUNT;
use crate::task::{Hides, Registry};
use crate::trace::Trace;
use crate::wire::redact::HIDDEN;
use crate::wire::{
    self, Arguments, CallOptions, Destination, Exception, Headers, Json, Record, Rest, Routes, Security, Signature,
    State as Stored,
};
use crate::{backend, broker, clock};

/// Who sends what follows a task.
#[derive(Clone, Copy)]
pub(crate) struct Sender<'a> {
    /// Whom results are for, when nobody says.
    pub reply_to: &'a str,
    /// Name of the process.
    pub origin: &'a str,
    /// What tells monitors of it, if they are to be told.
    pub events: Option<&'a SentEvents>,
}

/// Turns effects into writes.
pub(crate) struct Scribe {
    pub hostname: Arc<str>,
    pub stores_results: bool,
    pub result_extended: bool,
    pub origin: String,
    /// Whom results of follow-ups are for, when nobody says.
    pub reply_to: String,
    pub routes: Routes,
    pub priorities: Priorities,
    pub reach: Reach,
    pub control_exchange: String,
    /// What signs follow-ups (`task_serializer = "auth"`).
    pub signer: Option<Arc<Security>>,
    /// Tasks that run in the worker when they are error callbacks.
    pub inline_errbacks: HashSet<Arc<str>>,
    /// Tells monitors of what is sent.
    pub sent_events: Option<SentEvents>,
    metrics: Metrics,
}

impl Scribe {
    pub(crate) fn new(options: &Options, registry: &Registry, sender: Sender<'_>, metrics: Metrics) -> Self {
        let inline = registry.entries().filter(|entry| entry.options.errback_inline);
        Self {
            reply_to: sender.reply_to.to_owned(),
            routes: options.routes.clone().with_default(&options.default_queue),
            priorities: options.priorities,
            reach: options.reach,
            control_exchange: options.control_exchange.clone(),
            signer: options.signer.clone(),
            inline_errbacks: inline.map(|entry| entry.name.clone()).collect(),
            hostname: options.hostname.as_str().into(),
            stores_results: options.backend.is_some(),
            result_extended: options.result_extended,
            sent_events: sender.events.cloned(),
            metrics,
            origin: sender.origin.to_owned(),
        }
    }

    /// Appends the writes of what leaves the worker to `out`; what concerns the loop itself goes to `local`. `children`
    /// is what the run has sent; what follows it comes to that. Why the task failed behind its run, if it did: what was
    /// to follow cannot be made.
    pub(crate) fn write(
        &self,
        effects: &mut Vec<Effect>,
        local: &mut Vec<Effect>,
        (request, trace): (&Request, Option<&Trace>),
        children: &mut Vec<ResultNode>,
        (events, out): (&mut Events, &mut Vec<Out>),
    ) -> Option<Exception> {
        let hides = &request.entry.hides;
        let mut shown = None;
        let mut left = effects.drain(..);
        while let Some(effect) = left.next() {
            let mut unsent = None;
            match effect {
                Effect::Early(delivery) => out.push(Out::Early(broker::Write::Ack(delivery.tag))),
                Effect::Ack(delivery) => out.push(Last::of(delivery, request).write()),
                Effect::Requeue(delivery, End::Untouched) => {
                    out.push(Out::Early(requeue(delivery, End::Untouched, request)));
                }
                Effect::Requeue(delivery, end) => out.push(Out::Broker(requeue(delivery, end, request))),
                // Somebody else's now: nothing to write, and the share of the prefetch count comes back.
                Effect::Forget(_) | Effect::Leave => {}
                Effect::Retry(eta, arguments) => match self.retry(request, eta, arguments.as_deref()) {
                    Ok(retry) => self.publish(retry, hides, out),
                    Err(error) => unsent = Some(unsendable(&error)),
                },
                Effect::Store(state, content) => {
                    if let Content::Value(value) = &content
                        && (events.tasks_enabled() || tracing::enabled!(tracing::Level::INFO))
                    {
                        // Event and log line come after the record, which takes the value away.
                        shown = Some(if hides.everything() {
                            HIDDEN.to_owned()
                        } else {
                            result_repr(value.get())
                        });
                    }
                    out.extend(self.store(&state, content, request, children));
                }
                Effect::Follow(result) => {
                    if let Some(embed) = &request.embed {
                        let callbacks = embed.callbacks.as_deref().unwrap_or_default();
                        let parent = request.as_parent(trace);
                        match self.succeeded(&parent, callbacks, embed.chain.as_ref(), &result) {
                            Ok(sent) => {
                                out.extend(sent.out);
                                children.extend(sent.children);
                            }
                            Err(error) => unsent = Some(error),
                        }
                    }
                }
                Effect::Apply(signature) => match self.apply(&request.as_parent(trace), *signature, &[]) {
                    Ok(sent) => out.extend(sent.out),
                    Err(error) => unsent = Some(error),
                },
                Effect::Emit(happening) => {
                    let happening = if hides.everything() {
                        happening.hidden()
                    } else {
                        happening
                    };
                    self.metrics.happened(&request.entry.name, &happening);
                    log(&happening, request, shown.as_deref());
                    out.extend(events.task(&happening, request, shown.take()).map(Out::Event));
                }
                Effect::EndStream(state) => out.extend(self.end_stream(&request.id, &state)),
                Effect::WaitForEta(_)
                | Effect::Enqueue
                | Effect::Start
                | Effect::Cancel(_)
                | Effect::Fallout(..)
                | Effect::Part(_) => local.push(effect),
            }
            if let Some(exception) = unsent {
                // The task fails, and what hangs on it: nothing of what was to come of it comes.
                let delivery = left.by_ref().find_map(Effect::into_delivery);
                drop(left);
                request.fail(delivery, exception.clone(), effects);
                let _ = self.write(effects, local, (request, trace), children, (events, out));
                return Some(exception);
            }
        }
        None
    }

    /// The record of a task that never became a request.
    pub(crate) fn refusal(&self, headers: &Headers, exception: &Exception) -> Option<Out> {
        let record = Record::new(&headers.id, &Stored::Failure, exception, clock::iso(clock::now()))
            .family(headers.group.as_deref(), headers.parent_id.as_deref());
        self.encode(
            &headers.id.as_str().into(),
            Stored::Failure,
            &record,
            headers.parent_id.is_some(),
        )
    }

    /// REVOKED for a task that nobody has seen yet (P-100).
    pub(crate) fn revoked(&self, id: Arc<str>) -> Option<Out> {
        let exception = Exception::celery("TaskRevokedError", "revoked");
        let record = Record::new(&id, &Stored::Revoked, &exception, clock::iso(clock::now())).children(None);
        match self.encode(&id, Stored::Revoked, &record, false)? {
            Out::Backend(backend::Write::Store { id, record, .. }) => {
                Some(Out::Backend(backend::Write::Revoke { id, record }))
            }
            other => Some(other),
        }
    }

    /// A state that the task itself reports.
    pub(crate) fn custom(
        &self,
        id: &Arc<str>,
        state: Stored,
        meta: &impl Serialize,
        headers: Option<&Headers>,
    ) -> Option<Out> {
        let mut record = Record::new(id, &state, meta, clock::iso(clock::now()));
        if let Some(headers) = headers {
            record = record.family(headers.group.as_deref(), headers.parent_id.as_deref());
        }
        self.encode(id, state.clone(), &record, false)
    }

    fn store(&self, state: &Stored, content: Content, request: &Request, children: &[ResultNode]) -> Option<Out> {
        // A retried task is its own child (P-149).
        let own = (*state == Stored::Retry).then(|| ResultNode::task(&*request.id));
        let children: Vec<Json> = children
            .iter()
            .chain(&own)
            .filter_map(|child| Json::new(child).ok())
            .collect();
        let headers = &request.message.headers;
        let extended = self.result_extended.then(|| self.extended(request));
        let date = clock::iso(clock::now());
        let (group, parent) = (headers.group.as_deref(), headers.parent_id.as_deref());
        // Who sends a task listens before; of what follows it a client hears only once it asks. The last of a chain is
        // asked for, what is in between mostly not.
        let chain = request.embed.as_ref().and_then(|embed| embed.chain.as_ref());
        let late = parent.is_some() && chain.is_none_or(Rest::is_empty);
        match content {
            Content::Value(_) if request.policy.ignore_result => None,
            Content::Value(value) => {
                let record = Record::new(&request.id, state, &*value, date)
                    .children(Some(&children))
                    .family(group, parent)
                    .extended(extended.as_ref());
                self.encode(&request.id, state.clone(), &record, late)
            }
            Content::Exception(exception) => {
                let traceback = (*state != Stored::Revoked).then(|| exception.traceback_text());
                let traceback = traceback.filter(|text| !text.is_empty());
                let record = Record::new(&request.id, state, &exception, date)
                    .traceback(traceback.as_deref())
                    .children(Some(&children))
                    .family(group, parent)
                    .extended(extended.as_ref());
                self.encode(&request.id, state.clone(), &record, late)
            }
            Content::Started(pid) => {
                let meta = json!({"pid": pid, "hostname": self.hostname});
                let record = Record::new(&request.id, state, &meta, date)
                    .children(Some(&children))
                    .family(group, parent);
                self.encode(&request.id, state.clone(), &record, false)
            }
        }
    }

    /// A record to be stored; `late` as in [`backend::Write::Store`].
    pub(super) fn encode<R: Serialize>(
        &self,
        id: &Arc<str>,
        state: Stored,
        record: &Record<'_, R>,
        late: bool,
    ) -> Option<Out> {
        if !self.stores_results {
            return None;
        }
        // As much as a record mostly takes.
        let mut text = Vec::with_capacity(320);
        match serde_json::to_writer(&mut text, record) {
            Ok(()) => Some(Out::Backend(backend::Write::Store {
                id: id.clone(),
                late: late && state.is_ready(),
                status: state,
                record: text.into(),
            })),
            Err(error) => {
                error!(task.id = %id, %error, "the result cannot be encoded");
                None
            }
        }
    }

    fn extended(&self, request: &Request) -> Map<String, Value> {
        let mut arguments = request.message.body.arguments().unwrap_or_default();
        request.entry.hides.hide(&mut arguments);
        let headers = &request.message.headers;
        let mut fields = Map::new();
        fields.insert("name".into(), headers.task.clone().into());
        fields.insert("args".into(), arguments.args.into());
        fields.insert("kwargs".into(), arguments.kwargs.into());
        fields.insert("worker".into(), (*self.hostname).into());
        fields.insert("retries".into(), headers.retries.into());
        fields.insert("queue".into(), request.message.properties.routing_key().into());
        if let Some(stamped) = &headers.stamped_headers {
            fields.insert("stamped_headers".into(), json!(stamped));
            fields.extend(headers.stamps.clone().unwrap_or_default());
        }
        fields
    }

    fn retry(
        &self,
        request: &Request,
        eta: clock::Timestamp,
        arguments: Option<&Arguments>,
    ) -> Result<broker::Write, String> {
        let message = &request.message;
        let envelope = wire::retry_envelope(&request.raw, message, eta, arguments, &self.origin)
            .map_err(|error| error.to_string())
            .and_then(|envelope| match &self.signer {
                // A body that stays has its signature already.
                Some(signer) if arguments.is_some() => signer.sign_envelope(&envelope),
                _ => Ok(envelope),
            })?;
        let to = self.back(request)?;
        Ok(broker::Write::Publish {
            exchange: to.exchange,
            routing_key: to.routing_key,
            priority: message.properties.priority(),
            envelope: envelope.into(),
        })
    }

    /// Where a message goes once more: where it was sent, or where a new one of its task would go if that is not
    /// written.
    fn back(&self, request: &Request) -> Result<Destination, String> {
        let properties = &request.message.properties;
        match properties.routing_key() {
            Some(routing_key) => Ok(Destination {
                exchange: properties.exchange().to_owned(),
                routing_key: routing_key.to_owned(),
                queue: None,
            }),
            None => self
                .routes
                .destination(&request.message.headers.task, &CallOptions::default()),
        }
    }

    /// The message that counts a member of a chord if we die before we have. Without it a member that was acknowledged
    /// before it ran would take the body along, which had not started.
    pub(super) fn hold_member(
        &self,
        request: &Request,
        (state, value): (&Stored, &Json),
        body: &Signature,
    ) -> Option<(Tag, Out)> {
        let message = &request.message;
        let succeeded = Json::new(&(*state == Stored::Success)).ok()?;
        let args = [&succeeded, value];
        let envelope = wire::counting_envelope(&request.raw, message, COUNT, &args, body)
            .map_err(|error| error.to_string())
            .and_then(|envelope| match &self.signer {
                Some(signer) => signer.sign_envelope(&envelope),
                None => Ok(envelope),
            });
        match envelope.and_then(|envelope| Ok((envelope, self.back(request)?))) {
            Ok((envelope, to)) => {
                let tag = Tag::fresh();
                let hold = broker::Write::Hold {
                    tag: tag.clone(),
                    exchange: to.exchange,
                    routing_key: to.routing_key,
                    envelope: envelope.into(),
                };
                Some((tag, Out::Broker(hold)))
            }
            Err(error) => {
                error!(task.id = %request.id, "the member of a chord cannot be held until it is counted: {error}");
                None
            }
        }
    }

    /// Sends a message, and tells monitors if they are to be told.
    pub(super) fn publish(&self, message: broker::Write, hides: &Hides, out: &mut Vec<Out>) {
        let sent = self.sent_events.as_ref();
        let event = sent.and_then(|sent| sent.of(&message, |message| hides.shown(message)));
        out.push(Out::Broker(message));
        out.extend(event.map(Out::Broker));
    }

    fn end_stream(&self, id: &Arc<str>, state: &Stored) -> Option<Out> {
        let entry = json!({"type": "end", "state": state.as_str()}).to_string();
        self.stores_results.then(|| {
            Out::Backend(backend::Write::Stream {
                id: id.clone(),
                entries: vec![Bytes::from(entry)],
            })
        })
    }
}

fn requeue(delivery: Delivery, end: End, request: &Request) -> broker::Write {
    broker::Write::Requeue {
        tag: delivery.tag,
        to: match end {
            End::Back | End::Lost => broker::End::Head,
            End::Untouched | End::Front => broker::End::Tail,
        },
        raw: match end {
            End::Lost => broker::count_delivery(&request.raw).map_or_else(|| request.raw.clone(), Bytes::from),
            End::Back | End::Front | End::Untouched => request.raw.clone(),
        },
        queue: delivery.queue,
        priority: request.message.properties.priority(),
    }
}

/// Celery's log lines.
fn log(happening: &Happening, request: &Request, result: Option<&str>) {
    let (name, id) = (request.message.headers.shown_name(), &*request.id);
    let attempt = request.message.headers.retries;
    match happening {
        Happening::Received => info!(
            task.id = id,
            task.name = name,
            run.attempt = attempt,
            "Task {name}[{id}] received"
        ),
        Happening::Started => {}
        Happening::KnownSuccess(_) => info!(
            task.id = id,
            task.name = name,
            run.attempt = attempt,
            "Task {name}[{id}] Task already completed successfully."
        ),
        Happening::Succeeded { runtime } => {
            info!(
                task.id = id,
                task.name = name,
                run.attempt = attempt,
                "Task {name}[{id}] succeeded in {}s: {}",
                runtime.as_secs_f64(),
                result.unwrap_or("None")
            );
        }
        Happening::Failed(exception) => {
            error!(
                task.id = id,
                task.name = name,
                run.attempt = attempt,
                "Task {name}[{id}] failed: {}",
                exception.repr()
            );
        }
        Happening::Retried(exception) => {
            info!(
                task.id = id,
                task.name = name,
                run.attempt = attempt,
                "Task {name}[{id}] retry: {}",
                exception.repr()
            );
        }
        Happening::Rejected { requeue } => {
            warn!(
                task.id = id,
                task.name = name,
                run.attempt = attempt,
                "Task {name}[{id}] reject requeue={requeue}"
            );
        }
        Happening::Cancelled => warn!(
            task.id = id,
            task.name = name,
            run.attempt = attempt,
            "Task {name}[{id}] was cancelled"
        ),
        Happening::Revoked {
            terminated, expired, ..
        } => {
            let why = if *terminated {
                "terminated"
            } else if *expired {
                "expired"
            } else {
                "revoked"
            };
            info!(
                task.id = id,
                task.name = name,
                run.attempt = attempt,
                "Discarding revoked task: {name}[{id}] ({why})"
            );
        }
    }
}
