//! What follows a task may stay here: the next step of a chain starts in the worker that ran the one before when there
//! is a place for it and nothing waits that would go first. It is written down as held by us, as if it had gone to its
//! queue and been taken from there, and starts when Redis has that, and the ack of the step before: the news of it and
//! the claim are saved, and Redis the copies of a message that is the longer the more steps are to come.
//!
//! It does not start sooner: a step that kills its worker would then be nowhere, or the step before would run again for
//! it. Where results are on another server the ack of a late-acked step waits for its result there, and the next one
//! does not.

use std::sync::atomic::Ordering;

use super::Consumer;
use crate::broker::{Tag, Write};
use crate::worker::fetcher::Taken;
use crate::worker::outbox::Out;
use crate::worker::request::Delivery;
use crate::worker::stop::Phase;

impl Consumer {
    /// Of what is to be sent since `written`, keeps the messages that can start here.
    pub(super) fn keep_next(&mut self, written: usize) {
        for at in written..self.out.len() {
            if let Some((taken, hold)) = self.stay(&self.out[at]) {
                let tag = taken.delivery.tag.clone();
                self.out[at] = Out::Stay(None, hold);
                self.staying.insert(tag, taken);
            }
        }
    }

    fn stay(&self, out: &Out) -> Option<(Taken, Write)> {
        let Out::Broker(Write::Publish {
            exchange,
            routing_key,
            envelope,
            ..
        }) = out
        else {
            return None;
        };
        // One that no claim would take is not taken here.
        let is_too_large = envelope.len() > self.options.broker_options.max_message_bytes;
        if !exchange.is_empty() || is_too_large || !self.has_nothing_else() {
            return None;
        }
        let queues = self.queues.borrow();
        let queue = queues.iter().find(|queue| ***queue == **routing_key)?.clone();
        // A fetcher that is taking messages has all of it; what it takes goes first.
        let credit = Some(self.credit.clone().try_acquire_owned().ok()?);
        let tag = Tag::fresh();
        let hold = Write::Hold {
            tag: tag.clone(),
            exchange: String::new(),
            routing_key: routing_key.clone(),
            envelope: envelope.clone(),
        };
        let taken = Taken {
            share: self.room.take(envelope.len()),
            delivery: Delivery::new(tag, queue, credit),
            raw: envelope.clone(),
        };
        Some((taken, hold))
    }

    /// Whether a message that came now would start at once, and no other could.
    fn has_nothing_else(&self) -> bool {
        self.phase == Phase::Run
            && self.idle.load(Ordering::Relaxed)
            && !self.is_behind
            && self.reserved.is_empty()
            && self.staying.len() < self.pool.free()
            && !self.room.is_full()
            && !self.outbox.is_full()
    }

    /// They are in Redis.
    pub(super) fn on_stayed(&mut self, tags: Vec<Tag>) {
        for tag in tags {
            if let Some(taken) = self.staying.remove(&tag) {
                self.on_taken(taken);
            }
        }
    }

    /// Nothing stays in a worker that stops: it goes back, behind what writes it down.
    pub(super) fn let_go(&mut self) {
        for (_, taken) in std::mem::take(&mut self.staying) {
            self.on_taken(taken);
        }
    }
}
