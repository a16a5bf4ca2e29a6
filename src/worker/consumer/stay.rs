//! What follows a task may stay here: the next step of a chain starts in the worker that ran the one before when there is a place
//! for it and nothing waits that would go first. It is written down as held by us, as if it had gone to its queue and been taken
//! from there, and starts while that is on its way: the way to the queue and back is most of what a step costs.
//!
//! A worker that dies meanwhile had the step before, which it has not acknowledged and which runs again; with early acks it loses
//! what has started.

use std::sync::atomic::Ordering;

use super::Consumer;
use crate::broker::{Tag, Write};
use crate::worker::fetcher::Taken;
use crate::worker::request::Delivery;
use crate::worker::stop::Phase;
use crate::worker::writer::Out;

/// So many may be on their way to Redis. While it is away, that many steps are done that a worker which dies then has done in vain.
const AHEAD: usize = 64;

impl Consumer {
    /// Of what is to be sent since `written`, keeps the messages that can start here.
    pub(super) fn keep_next(&mut self, written: usize) {
        for at in written..self.out.len() {
            if let Some((taken, hold)) = self.stay(&self.out[at]) {
                self.staying.insert(taken.delivery.tag.clone());
                self.out[at] = Out::Stay(taken.delivery.tag.clone(), hold);
                self.kept.push(taken);
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
        if !exchange.is_empty() || !self.has_nothing_else() {
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
        let is_new = true;
        let taken = Taken {
            share: self.room.take(envelope.len()),
            delivery: Delivery {
                tag,
                queue,
                credit,
                is_new,
            },
            raw: envelope.clone(),
        };
        Some((taken, hold))
    }

    /// Whether a message that came now would start at once, and no other could.
    fn has_nothing_else(&self) -> bool {
        self.phase == Phase::Run
            && self.idle.load(Ordering::Relaxed)
            && self.reserved.is_empty()
            && self.running + self.kept.len() < self.pool.size()
            && self.staying.len() < AHEAD
            && !self.room.is_full()
            && !self.outbox.is_full()
    }

    /// Takes what stays.
    pub(super) fn take_kept(&mut self) {
        for taken in std::mem::take(&mut self.kept) {
            self.on_taken(taken);
        }
    }

    /// They are in Redis.
    pub(super) fn on_stayed(&mut self, tags: &[Tag]) {
        for tag in tags {
            self.staying.remove(tag);
        }
    }
}
