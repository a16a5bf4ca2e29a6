//! What follows a task: callbacks, the next step of its chain, error callbacks, and the failure of all that will now
//! never run (`celery.app.trace`, `celery.backends.base.Backend.mark_as_failure`). No Redis here, only what is to be
//! said.

use serde_json::{Map, Value};
use tracing::{error, warn};

use super::effects::Scribe;
use super::outbox::Out;
use crate::backend::Part;
use crate::broker;
use crate::canvas::{Freeze, GroupWrite, Parent, Plan, Planner, ResultNode, group};
use crate::client::group_write;
use crate::clock;
use crate::task::Hides;
use crate::wire::{CallOptions, Exception, Json, Kind, Outbound, Parcel, Record, Rest, Signature, State, pidbox};

/// What follows a failure.
#[derive(Default)]
pub(crate) struct Fallout {
    /// To be sent.
    pub out: Vec<Out>,
    /// Parts of chords that have failed without having run, with the body of the chord.
    pub parts: Vec<(Part, Signature)>,
    /// Error callbacks that run in this worker.
    pub calls: Vec<ErrbackCall>,
    /// What was sent.
    pub children: Vec<ResultNode>,
}

impl Fallout {
    /// Adds error callbacks, after the failure is stored: they look at it.
    fn call(&mut self, sent: Sent) {
        self.out.extend(sent.out.into_iter().map(Out::afterwards));
        self.children.extend(sent.children);
    }
}

/// An error callback that runs in this worker.
pub(crate) struct ErrbackCall {
    pub errback: Signature,
    /// The id of the task that failed.
    pub failed: String,
    pub exception: Exception,
}

impl Scribe {
    /// Applies a signature on behalf of a task.
    ///
    /// # Errors
    /// What Celery raises where a message of it cannot be sent; then none is.
    pub(super) fn apply(&self, parent: &Parent, signature: Signature, args: &[Json]) -> Result<Sent, Exception> {
        let mut planner = self.planner(parent);
        planner.apply(signature, args, CallOptions::default());
        self.outs(planner.plan)
    }

    /// Callbacks and the next step of the chain. With `task_inherit_parent_priority` they have the priority of what
    /// they follow, whatever their own is.
    ///
    /// # Errors
    /// See [`apply`](Self::apply).
    pub(super) fn succeeded(
        &self,
        parent: &Parent,
        callbacks: &[Signature],
        chain: Option<&Rest>,
        result: &Json,
    ) -> Result<Sent, Exception> {
        let mut planner = self.planner(parent);
        let args = std::slice::from_ref(result);
        let mut with = CallOptions::default();
        if let Some(priority) = parent.priority.filter(|_| self.priorities.inherit) {
            with.rest.insert("priority".to_owned(), Json::number(priority.into()));
        }
        match callbacks {
            [] => {}
            [only] => drop(planner.apply(only.clone(), args, with.clone())),
            several => {
                let (groups, tasks): (Vec<Signature>, Vec<Signature>) = several
                    .iter()
                    .cloned()
                    .partition(|callback| matches!(callback.kind, Kind::Group(_)));
                for callback in groups {
                    planner.apply(callback, args, with.clone());
                }
                if !tasks.is_empty() {
                    planner.apply(group(tasks), args, with.clone());
                }
            }
        }
        match chain.map_or(Ok(None), Rest::next) {
            Ok(Some((next, rest))) => {
                with.chain = Some(rest);
                planner.apply(next, args, with);
            }
            Ok(None) => {}
            // The message would not have been taken.
            Err(error) => error!(%error, "the next step of the chain of {} cannot be read", parent.id),
        }
        self.outs(planner.plan)
    }

    /// The rest of the chain fails with the same exception, and error callbacks are called.
    pub(super) fn failed(
        &self,
        parent: &Parent,
        chain: Option<&Rest>,
        errbacks: &[Signature],
        exception: &Exception,
        store: bool,
    ) -> Fallout {
        let mut fallout = Fallout::default();
        self.fail_rest(chain, exception, store, &mut fallout);
        self.call_errbacks(parent, errbacks, exception, &mut fallout);
        fallout
    }

    fn fail_rest(&self, chain: Option<&Rest>, exception: &Exception, store: bool, fallout: &mut Fallout) {
        // The message would not have been taken if it were no list.
        for step in chain.and_then(|chain| chain.each().ok()).into_iter().flatten() {
            match step {
                Ok(step) => self.fail_chain(std::slice::from_ref(&step), exception, store, fallout),
                Err(error) => warn!(%error, "a step that will not run cannot be read: it has no result"),
            }
        }
    }

    fn fail_chain(&self, chain: &[Signature], exception: &Exception, store: bool, fallout: &mut Fallout) {
        for step in chain {
            let options = &step.options;
            if let Some(id) = options.str("task_id") {
                if store {
                    fallout.out.extend(self.fail_step(&id, step, exception));
                }
                fallout.parts.extend(part_of(&id, options, exception));
            }
            // Later steps wait for the result of a chord's body.
            if let Kind::Chord(chord) = &step.kind
                && let Some(body) = &chord.body
            {
                self.fail_chain(std::slice::from_ref(body), exception, store, fallout);
            }
        }
    }

    fn call_errbacks(&self, failed: &Parent, errbacks: &[Signature], exception: &Exception, fallout: &mut Fallout) {
        let (inline, sent): (Vec<Signature>, Vec<Signature>) = errbacks
            .iter()
            .cloned()
            .partition(|errback| self.inline_errbacks.contains(errback.task.as_str()));
        fallout.calls.extend(inline.into_iter().map(|errback| ErrbackCall {
            errback,
            failed: failed.id.clone(),
            exception: exception.clone(),
        }));
        if sent.is_empty() {
            return;
        }
        let args = [Json::string(&failed.id)];
        // Their priority is their own.
        let failed = Parent {
            priority: None,
            ..failed.clone()
        };
        let alone = sent.clone();
        match self.apply(&failed, group(sent), &args) {
            Ok(sent) => fallout.call(sent),
            // One that cannot be sent keeps no other from being called.
            Err(_) => {
                for errback in alone {
                    match self.apply(&failed, errback, &args) {
                        Ok(sent) => fallout.call(sent),
                        Err(error) => error!("an error callback of {} cannot be sent: {}", failed.id, error.repr()),
                    }
                }
            }
        }
    }

    /// A chord's header failed, or its results cannot be put together: the body fails without having run
    /// (`Backend.chord_error_from_stack`). `cause` is the failure itself, `error` what a single body gets.
    pub(super) fn fail_body(
        &self,
        mut body: Signature,
        error: &Exception,
        cause: &Exception,
        children: Option<&[ResultNode]>,
    ) -> Fallout {
        let mut fallout = Fallout::default();
        let chain = body.options.chain.take();
        if let Kind::Group(_) = &body.kind {
            self.fail_group(&body, cause, children, &mut fallout);
        } else {
            let (id, errbacks) = result_and_errbacks(&body);
            let id = id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
            self.call_errbacks(&unrun(&id), &errbacks, error, &mut fallout);
            let children = with(children, &fallout.children);
            fallout.out.extend(self.fail_unrun(&id, error, children.as_deref()));
            // A body that is in the header of another chord is not counted there, as in Celery: the error callbacks of
            // both would be called for one failure. A client's `get()` finds the failure among the parents.
        }
        // Celery stores no traceback with those.
        self.fail_rest(chain.as_ref(), &error.clone().with_traceback(""), true, &mut fallout);
        fallout
    }

    /// Each task of a group fails, and the group; whoever holds one of them drops it.
    fn fail_group(&self, body: &Signature, cause: &Exception, children: Option<&[ResultNode]>, fallout: &mut Fallout) {
        let mut body = body.clone();
        let handle = crate::canvas::freeze(
            &mut body,
            Freeze {
                reply_to: &self.reply_to,
                ..Freeze::default()
            },
        );
        let own = body.options.link_error.clone();
        let Kind::Group(tasks) = &body.kind else { return };
        let mut ids = Vec::with_capacity(tasks.len());
        for task in tasks {
            let (id, mut errbacks) = result_and_errbacks(task);
            let Some(id) = id else { continue };
            for errback in &own {
                if !errbacks.contains(errback) {
                    errbacks.push(errback.clone());
                }
            }
            self.call_errbacks(&unrun(&id), &errbacks, cause, fallout);
            let children = with(children, &fallout.children);
            fallout.out.extend(self.fail_unrun(&id, cause, children.as_deref()));
            ids.push(id);
        }
        let (children, cause) = (with(children, &fallout.children), cause.clone().with_traceback(""));
        fallout
            .out
            .extend(self.fail_unrun(&handle.id, &cause, children.as_deref()));
        fallout.out.extend(self.revoke(&ids));
    }

    fn revoke(&self, ids: &[String]) -> Option<Out> {
        let arguments = serde_json::json!({"task_id": ids, "terminate": false, "signal": null});
        let payload = pidbox::encode_request(&self.control_exchange, "revoke", &arguments, None, None)
            .inspect_err(|error| error!(%error, "a revoke cannot be encoded"))
            .ok()?;
        Some(Out::Broker(broker::Write::Broadcast {
            exchange: format!("{}.pidbox", self.control_exchange),
            routing_key: String::new(),
            payload: payload.into(),
        }))
    }

    /// FAILURE of a chord's body that never ran.
    fn fail_unrun(&self, id: &str, exception: &Exception, children: Option<&[ResultNode]>) -> Option<Out> {
        let children: Option<Vec<Json>> =
            children.map(|children| children.iter().filter_map(|child| Json::new(child).ok()).collect());
        let traceback = exception.traceback_text();
        let record = Record::new(id, &State::Failure, exception, clock::iso(clock::now()))
            .traceback(Some(&*traceback).filter(|text| !text.is_empty()))
            .children(children.as_deref());
        self.encode(&id.into(), State::Failure, &record, true)
    }

    /// FAILURE of a step of a chain that never ran. Of the step more is known than of a body: its call.
    fn fail_step(&self, id: &str, step: &Signature, exception: &Exception) -> Option<Out> {
        let options = &step.options;
        let (group, parent) = (options.str("group_id"), options.str("parent_id"));
        let extended = self.result_extended.then(|| extended(step));
        let traceback = exception.traceback_text();
        let record = Record::new(id, &State::Failure, exception, clock::iso(clock::now()))
            .traceback(Some(&*traceback).filter(|text| !text.is_empty()))
            .family(group.as_deref(), parent.as_deref())
            .extended(extended.as_ref());
        self.encode(&id.into(), State::Failure, &record, true)
    }

    fn planner<'a>(&'a self, parent: &'a Parent) -> Planner<'a> {
        Planner::new(Some(parent), &self.reply_to)
            .with_priorities(self.priorities)
            .reaching(self.reach)
    }

    fn outs(&self, plan: Plan) -> Result<Sent, Exception> {
        let mut out = Vec::with_capacity(plan.groups.len() + plan.sends.len());
        for write in plan.groups {
            out.push(self.group_write(write)?);
        }
        // One by one: what is encoded is not held a second time.
        for outbound in plan.sends {
            let parcel = self.parcel(&outbound).map_err(|error| unsendable(&error))?;
            self.publish(parcel.into(), &Hides::default(), &mut out);
        }
        Ok(Sent {
            out,
            children: plan.children,
        })
    }

    fn parcel(&self, outbound: &Outbound) -> Result<Parcel, String> {
        let parcel = outbound.parcel(clock::now(), &self.origin, &self.routes);
        let mut parcel = parcel.map_err(|error| error.to_string())?;
        if let Some(signer) = &self.signer {
            parcel.envelope = signer.sign_envelope(&parcel.envelope)?;
        }
        Ok(parcel)
    }

    fn group_write(&self, write: GroupWrite) -> Result<Out, Exception> {
        if !self.stores_results {
            let why = "a chord needs a result backend: start the worker with --result-backend";
            return Err(Exception::builtin("NotImplementedError", why));
        }
        let write = group_write(write).map_err(|error| unsendable(&error.to_string()))?;
        Ok(Out::Backend(write))
    }
}

/// What applying a signature comes to.
pub(crate) struct Sent {
    /// To be written.
    pub out: Vec<Out>,
    /// The handles of what was applied.
    pub children: Vec<ResultNode>,
}

/// The exception of a message that cannot be sent, as Celery names it.
pub(super) fn unsendable(why: &str) -> Exception {
    match why.strip_prefix("QueueNotFound: ") {
        Some(why) => Exception::celery("QueueNotFound", why),
        None => Exception::new("kombu.exceptions", "EncodeError", why),
    }
}

/// What the member of a chord has sent, and the error callbacks since.
fn with(children: Option<&[ResultNode]>, more: &[ResultNode]) -> Option<Vec<ResultNode>> {
    children.map(|children| children.iter().chain(more).cloned().collect())
}

/// What `result_extended` adds for a call that no worker has got.
fn extended(step: &Signature) -> Map<String, Value> {
    let mut value = serde_json::to_value(step).unwrap_or_default();
    let mut take = |name: &str| value.get_mut(name).map(Value::take).unwrap_or_default();
    let fields = [
        ("name", take("task")),
        ("args", take("args")),
        ("kwargs", take("kwargs")),
        ("worker", Value::Null),
        ("retries", 0.into()),
        ("queue", Value::Null),
    ];
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The part of a chord that a task is, if it is one.
fn part_of(id: &str, options: &CallOptions, exception: &Exception) -> Option<(Part, Signature)> {
    let (body, group) = (options.chord.as_deref()?, options.str("group_id")?);
    let index = options.get("group_index").and_then(|index| index.parse().ok());
    let value = Json::new(exception).ok()?;
    Some((
        Part::new(&group, index, id, State::Failure.as_str(), &value),
        body.clone(),
    ))
}

/// What never ran, as the sender of its error callbacks: the first of its workflow.
fn unrun(id: &str) -> Parent {
    Parent {
        id: id.to_owned(),
        root_id: id.to_owned(),
        priority: None,
        carried: None,
    }
}

/// The id of a signature's result, and the error callbacks of what gives it (`celery.backends.base._result_errbacks`).
fn result_and_errbacks(signature: &Signature) -> (Option<String>, Vec<Signature>) {
    let mut errbacks = signature.options.link_error.clone();
    match &signature.kind {
        Kind::Chord(chord) => match &chord.body {
            Some(body) => {
                let (id, of_body) = result_and_errbacks(body);
                errbacks.extend(of_body);
                (id, errbacks)
            }
            None => (signature.id(), errbacks),
        },
        Kind::Group(tasks) => {
            for task in tasks {
                errbacks.extend(result_and_errbacks(task).1);
            }
            (signature.id(), errbacks)
        }
        _ => (signature.id(), errbacks),
    }
}
