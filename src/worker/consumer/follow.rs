//! What hangs on a task that has ended: the chord it counts for, the chain that fails with it, the error callbacks.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::error;

use super::Consumer;
use crate::backend::Part;
use crate::broker::{GivenUp, Write};
use crate::canvas::{Parent, ResultNode};
use crate::task::{Context, Details};
use crate::trace::{Trace, carried};
use crate::wire::Json;
use crate::worker::errback;
use crate::worker::follow::{ErrbackCall, Fallout};
use crate::worker::joiner::{Joined, Last, Member};
use crate::worker::outbox::Out;
use crate::worker::request::{Delivery, Done, Effect, Failing, Request};
use crate::worker::strategy::{self, Failed};
use crate::worker::unsent::{Then, Unsent};

impl Consumer {
    /// Whoever waits for the result of a message that nobody gets any more is told, and what was to follow it fails.
    pub(super) fn on_given_up(&mut self, given_up: &GivenUp) {
        error!("a held message went to the dead-letter list: {}", given_up.reason);
        if let Some(failed) = strategy::given_up(given_up, &self.options) {
            self.fail(&failed, None);
        }
    }

    /// What was to follow a task cannot be sent: it fails without having run.
    pub(super) fn on_unsent(&mut self, unsent: Unsent) {
        if let Some(tag) = &unsent.stays {
            self.staying.remove(tag);
        }
        let last = match unsent.follows {
            Some((tag, Then::Ack)) => Some(Last::ack(Delivery::new(tag, Arc::default(), None))),
            Some((tag, Then::Keep)) => {
                // Of one that is counted in its chord, the ack is still to come.
                if self.joining.iter().flatten().any(|joining| *joining == tag) {
                    self.kept.insert(tag);
                }
                None
            }
            Some((_, Then::Nothing)) | None => None,
        };
        match strategy::unsent(&unsent.raw, &unsent.reason, &self.options) {
            Some(failed) => self.fail(&failed, last),
            None => self.out.extend(last.map(Last::write)),
        }
    }

    /// Whether there was some.
    pub(super) fn on_all_unsent(&mut self, unsent: &mut mpsc::UnboundedReceiver<Unsent>) -> bool {
        let mut any = false;
        while let Ok(unsent) = unsent.try_recv() {
            self.on_unsent(unsent);
            any = true;
        }
        any
    }

    /// Ties what was sent since `written` to the message that it follows, if that is held still.
    pub(super) fn tie(&mut self, written: usize, local: &[Effect]) {
        let acked = self.out[written..].iter().rev().find_map(|out| match out {
            Out::Broker(Write::Ack(tag)) => Some(tag),
            _ => None,
        });
        let later = || local.iter().find_map(Effect::delivery).map(|delivery| &delivery.tag);
        let Some(tag) = acked.or_else(later).cloned() else {
            return;
        };
        for out in &mut self.out[written..] {
            let own = std::mem::replace(out, Out::Event(Vec::new()));
            *out = own.following(&tag);
        }
    }

    /// Writes down the failure of a task that will not run, and of what hangs on it: its chain, its chord, its error
    /// callbacks. Its message is done with when all of that is.
    pub(super) fn fail(&mut self, failed: &Failed, last: Option<Last>) {
        let Failed {
            headers,
            exception,
            embed,
        } = failed;
        self.out.extend(self.scribe.refusal(headers, exception));
        self.out
            .extend(self.events.refused(&headers.id, exception).map(Out::Event));
        if let Some(embed) = embed {
            let parent = Parent {
                id: headers.id.clone(),
                root_id: headers.root().to_owned(),
                priority: None,
                carried: carried(Trace::of(&headers.extra).as_ref()),
            };
            let mut fallout = self.scribe.failed(
                &parent,
                embed.chain.as_ref(),
                embed.errbacks.as_deref().unwrap_or_default(),
                exception,
                headers.ignore_result != Some(true),
            );
            if let (Some(body), Some(group)) = (&embed.chord, &headers.group) {
                let value = Json::new(exception).unwrap_or_else(|_| Json::null());
                let part = Part::new(group, headers.group_index, &headers.id, "FAILURE", &value);
                fallout.parts.push((part, body.clone()));
            }
            self.on_fallout(&parent, fallout, false, None, last);
        } else {
            self.out.extend(last.map(Last::write));
        }
    }

    /// What follows the failure of a task that ran.
    pub(super) fn on_failing(&mut self, request: &Request, trace: Option<&Trace>, failing: Failing) {
        let Failing {
            exception,
            in_task,
            delivery,
        } = failing;
        let last = delivery.map(|delivery| Last::of(delivery, request));
        let Some(embed) = &request.embed else {
            self.out.extend(last.map(Last::write));
            return;
        };
        let parent = request.as_parent(trace);
        let fallout = self.scribe.failed(
            &parent,
            embed.chain.as_ref(),
            embed.errbacks.as_deref().unwrap_or_default(),
            &exception,
            request.stores_errors(),
        );
        self.on_fallout(&parent, fallout, in_task, Some(request), last);
    }

    /// A member of a chord was counted, and the body sent if it was the last one.
    pub(super) fn on_joined(&mut self, mut joined: Joined) {
        let tag = joined.last.as_ref().map(|last| &last.delivery.tag);
        if let Some(at) = self.joining.iter().position(|joining| joining.as_ref() == tag) {
            self.joining.swap_remove(at);
        }
        if tag.is_some_and(|tag| self.kept.remove(tag)) {
            joined.last = None;
        }
        self.on_fallout(&joined.parent, joined.fallout, joined.in_task, None, joined.last);
    }

    /// What follows a failure beyond what is written: other chords, and error callbacks that run here.
    /// The message is done with last, when the last of those parts is counted.
    fn on_fallout(
        &mut self,
        parent: &Parent,
        fallout: Fallout,
        in_task: bool,
        request: Option<&Request>,
        mut last: Option<Last>,
    ) {
        match &last {
            Some(last) => self
                .out
                .extend(fallout.out.into_iter().map(|out| out.following(&last.delivery.tag))),
            None => self.out.extend(fallout.out),
        }
        let mut parts = fallout.parts.into_iter().peekable();
        while let Some((part, body)) = parts.next() {
            let last = last.take_if(|_| parts.peek().is_none());
            self.join(Member {
                part,
                body,
                parent: parent.clone(),
                children: in_task.then(Vec::new),
                last,
            });
        }
        self.out.extend(last.map(Last::write));
        for call in &fallout.calls {
            self.call_errback(call, parent, request);
        }
    }

    pub(super) fn join(&mut self, member: Member) {
        self.joining
            .push(member.last.as_ref().map(|last| last.delivery.tag.clone()));
        self.ended.push(member);
    }

    /// Runs an error callback here: `errback(request, exc, traceback, …)`. Its task has ended meanwhile; only a worker
    /// that stops waits for it. What goes wrong is logged.
    pub(super) fn call_errback(&self, call: &ErrbackCall, parent: &Parent, request: Option<&Request>) {
        let Some(entry) = self.registry.get(&call.errback.task) else {
            return;
        };
        let details = Details {
            id: call.failed.as_str().into(),
            name: entry.name.clone(),
            hostname: self.scribe.hostname.clone(),
            root_id: Some(parent.root_id.clone()),
            message: request.map(|request| request.message.clone()),
            ..Details::default()
        };
        let context = Context::new(details, self.notes.clone(), Some(self.client.clone()));
        errback::call(entry.clone(), call, request, context, &self.errbacks);
    }

    pub(super) fn on_part(&mut self, request: &Request, trace: Option<&Trace>, done: Done, children: &[ResultNode]) {
        let headers = &request.message.headers;
        let chord = request.embed.as_ref().and_then(|embed| embed.chord.clone());
        if let (Some(body), Some(group)) = (chord, headers.group.as_deref()) {
            let mut delivery = done.delivery;
            if delivery.is_none()
                && done.in_task
                && let Some((tag, hold)) = self.scribe.hold_member(request, (&done.state, &done.value), &body)
            {
                self.out.push(hold);
                delivery = Some(Delivery::new(tag, Arc::default(), None));
            }
            self.join(Member {
                part: Part::new(
                    group,
                    headers.group_index,
                    &request.id,
                    done.state.as_str(),
                    &done.value,
                ),
                body,
                parent: request.as_parent(trace),
                children: done.in_task.then(|| children.to_vec()),
                last: delivery.map(|delivery| Last::of(delivery, request)),
            });
        }
    }
}
