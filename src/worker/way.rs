//! The way of one task through all that is pure, for `benches/`: no Redis, no other thread.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::mpsc;

use super::Options;
use super::consumer::Key;
use super::effects::{Scribe, Sender};
use super::events::Events;
use super::metrics::Metrics;
use super::outbox::Out;
use super::request::{Delivery, Effect, Input, Outcome, State, Waiting};
use super::strategy;
use crate::broker::Tag;
use crate::clock;
use crate::conn::{Endpoint, Error};
use crate::task::{Context, Details, Failure, Notes, Registry};
use crate::wire::Lamport;

/// A worker without its surroundings.
#[doc(hidden)]
pub struct Way {
    options: Options,
    registry: Registry,
    scribe: Scribe,
    events: Events,
    notes: Notes,
    effects: Vec<Effect>,
    local: Vec<Effect>,
    out: Vec<Out>,
}

impl Way {
    /// With these tasks; with or without task events.
    ///
    /// # Errors
    /// Never in practice.
    pub fn new(registry: Registry, task_events: bool) -> Result<Self, Error> {
        let options = Options::new("bench@here", Endpoint::parse("redis://localhost")?);
        let sender = Sender {
            reply_to: "bench",
            origin: "gen1@here",
            events: None,
        };
        let (exchange, clock) = (options.event_exchange.clone(), Lamport::default());
        Ok(Self {
            scribe: Scribe::new(&options, &registry, sender, Metrics::new(&[])),
            events: Events::new("bench@here".into(), exchange, clock, None, task_events),
            notes: mpsc::channel(1).0,
            options,
            registry,
            effects: Vec::new(),
            local: Vec::new(),
            out: Vec::new(),
        })
    }

    /// A message from its bytes to what is written at its end; how many writes that are. The task must be one that
    /// does not wait.
    ///
    /// # Panics
    /// The message is none of a registered task.
    #[expect(clippy::expect_used, reason = "only benches come here")]
    pub fn walk(&mut self, raw: &bytes::Bytes) -> usize {
        const KEY: Key = 1;
        let request = strategy::receive(raw.clone(), &self.registry, &self.options);
        let request = Arc::new(request.expect("a message of a registered task"));
        let delivery = Delivery::new(Tag("bench.1".into()), "celery".into(), None);
        let (now, since) = (clock::now(), clock::instant());
        let (revoked, run) = (false, KEY);
        let details = Details {
            id: request.id.clone(),
            message: Some(request.message.clone()),
            ..Details::default()
        };
        let context = Context::new(details, self.notes.clone(), None);
        let mut state = State::Received { delivery };
        state = state.step(
            Input::Received {
                revoked,
                waiting: Waiting::Nothing,
            },
            &request,
            now,
            &mut self.effects,
        );
        state = state.step(
            Input::Slot {
                run,
                since,
                revoked,
                pid: 0,
            },
            &request,
            now,
            &mut self.effects,
        );
        let outcome = match request.entry.start(&request.message.body, context) {
            Ok(task) => match task.now_or_never() {
                Some(Ok(value)) => Outcome::Success(value),
                Some(Err(failure)) => Outcome::Failed(failure),
                None => Outcome::Failed(Failure::Ignore),
            },
            Err(failure) => Outcome::Failed(failure),
        };
        let runtime = since.elapsed();
        let ended = Input::Ended { run, outcome, runtime };
        let _ = state.step(ended, &request, now, &mut self.effects);
        let to = (&mut self.events, &mut self.out);
        let (effects, local) = (&mut self.effects, &mut self.local);
        self.scribe.write(effects, local, (&request, None), &mut Vec::new(), to);
        local.clear();
        self.out.drain(..).count()
    }
}
