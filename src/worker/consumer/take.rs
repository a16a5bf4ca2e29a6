//! What comes in: messages that were fetched, those that wait far from here, and those that are not ours any more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tracing::{error, warn};

use super::{Active, BACK, Consumer, Key};
use crate::broker::{self, Tag};
use crate::clock::{self, Timestamp};
use crate::worker::fetcher::{Fetched, Taken};
use crate::worker::joiner::Last;
use crate::worker::outbox::Out;
use crate::worker::parked::{Recalled, Spot};
use crate::worker::request::{Delivery, Hold, Input, Request, State, Waiting};
use crate::worker::room::Share;
use crate::worker::stop::Phase;
use crate::worker::strategy::{self, Refusal};

impl Consumer {
    pub(super) fn on_fetched(&mut self, fetched: Fetched) {
        match fetched {
            Fetched::Message(taken) => self.on_taken(taken),
            Fetched::Dead { queue, reason, id } => {
                let whose = id.as_ref().map(|id| format!(" of task {id}")).unwrap_or_default();
                error!(
                    queue.name = %queue,
                    task.id = id,
                    "a message{whose} in queue {queue:?} was moved to {queue}.dead: {reason}"
                );
                if let Some(id) = id {
                    self.fail(&strategy::too_large(id, reason), None);
                }
            }
            Fetched::Asked(at) => {
                if self.standstill.came(at, clock::instant()) {
                    self.on_lease();
                }
            }
            Fetched::Looked(looked) => {
                // Who asked may have lost patience.
                let _ = looked.send(());
            }
        }
    }

    pub(super) fn on_taken(&mut self, Taken { delivery, raw, share }: Taken) {
        match strategy::receive(raw.clone(), &self.registry, &self.options) {
            Ok(request) => {
                let key = self.insert(request, State::Received { delivery }, share);
                let input = if self.phase == Phase::Run {
                    Input::Received {
                        revoked: self.is_revoked(key),
                        waiting: self.waiting(key),
                    }
                } else {
                    Input::Stop { cold: false }
                };
                self.step(key, input);
            }
            Err(refusal) => self.refuse(delivery, raw, *refusal),
        }
    }

    /// What a message uses up while it waits for its ETA.
    pub(super) fn waiting(&self, key: Key) -> Waiting {
        let has_eta = self.active.get(&key).is_some_and(|active| active.request.eta.is_some());
        if has_eta {
            self.room_to_wait()
        } else {
            Waiting::Prefetch
        }
    }

    pub(in crate::worker) fn room_to_wait(&self) -> Waiting {
        match &self.waiting {
            None => Waiting::Nothing,
            Some(room) => room
                .clone()
                .try_acquire_owned()
                .map_or(Waiting::Prefetch, Waiting::Place),
        }
    }

    pub(super) fn insert(&mut self, request: Request, state: State, share: Share) -> Key {
        self.next_key += 1;
        let key = self.next_key;
        self.by_id.insert(request.id.clone(), key);
        self.active.insert(
            key,
            Active {
                request: Arc::new(request),
                state,
                context: None,
                started: None,
                pid: 0,
                eta: None,
                due: None,
                has_place: false,
                share,
                credit: None,
                since: clock::instant(),
                span: None,
                holder: None,
                tenant: None,
            },
        );
        key
    }

    /// Parked messages were read again, because they are due or may be meant by somebody.
    pub(super) fn on_recalled(&mut self, recalled: Recalled) {
        self.parked.came_back(recalled.asked);
        if self.phase != Phase::Run {
            // They have been given back.
            return;
        }
        for (delivery, raw, share) in recalled.messages {
            let request = match strategy::receive(raw.clone(), &self.registry, &self.options) {
                Ok(request) => request,
                Err(refusal) => {
                    self.refuse(delivery, raw, *refusal);
                    continue;
                }
            };
            let eta = request.eta.filter(|eta| *eta > clock::now());
            let why = Hold::Eta;
            let key = self.insert(request, State::Held { delivery, why }, share);
            match eta {
                Some(eta) if !self.is_revoked(key) => self.wait(key, eta),
                _ => {
                    let revoked = self.is_revoked(key);
                    self.step(key, Input::Due { revoked });
                }
            }
        }
    }

    /// Has parked messages read again.
    pub(in crate::worker) fn recall(&mut self, places: Vec<Spot>) {
        if !places.is_empty() {
            // A service that is gone has ended the worker.
            let _ = self.recall.send(places);
        }
    }

    /// Remembers next to nothing of a request that waits long for its ETA, when there are many; whether it did.
    pub(super) fn park(&mut self, key: Key, eta: Timestamp) -> bool {
        // Where those that wait are limited in number, each has its place among them.
        if self.waiting.is_some() || !self.parked.wants(self.active.len(), eta, clock::now()) {
            return false;
        }
        let Some(active) = self.active.get(&key) else {
            return false;
        };
        let State::Held {
            delivery,
            why: Hold::Eta,
        } = &active.state
        else {
            return false;
        };
        // Others with its key wait for it: that it has it must not be forgotten.
        if active.holder.is_some() {
            return false;
        }
        let place = Spot {
            tag: delivery.tag.clone(),
            queue: delivery.queue.clone(),
            priority: active.request.message.properties.priority(),
        };
        if !self.parked.add(&place, &active.request.id, eta) {
            return false;
        }
        if self.by_id.get(&active.request.id) == Some(&key) {
            self.by_id.remove(&active.request.id);
        }
        self.active.remove(&key);
        let tag = place.tag;
        self.out.push(Out::Broker(broker::Write::Park { tag, eta }));
        true
    }

    pub(super) fn refuse(&mut self, delivery: Delivery, raw: Bytes, refusal: Refusal) {
        let queue = delivery.queue.clone();
        self.metrics.refused();
        error!(queue.name = %queue, "a message in queue {queue:?} was refused: {}", refusal.reason);
        let last = if refusal.bury {
            let write = broker::Write::Dead {
                tag: delivery.tag.clone(),
                queue,
                raw,
                reason: refusal.reason,
            };
            Last { delivery, write }
        } else {
            Last::ack(delivery)
        };
        match &refusal.failure {
            Some(failed) => self.fail(failed, Some(last)),
            None => self.out.push(last.write()),
        }
    }

    pub(super) fn on_lost(&mut self, tags: &[Tag]) {
        let tags: HashSet<&Tag> = tags.iter().collect();
        let lost: Vec<Key> = self
            .active
            .iter()
            .filter(|(_, active)| active.state.tag().is_some_and(|tag| tags.contains(tag)))
            .map(|(key, _)| *key)
            .collect();
        if !lost.is_empty() {
            warn!(
                "{} message(s) are held for this worker no more, and were probably given to another while it could not \
                 reach Redis",
                lost.len()
            );
        }
        for key in lost {
            self.step(key, Input::LeaseLost);
        }
    }

    /// Gives back all that is parked.
    pub(super) fn unpark(&mut self) {
        let mut lists: HashMap<(Arc<str>, u8), Vec<Tag>> = HashMap::new();
        for place in self.parked.take_all() {
            lists.entry((place.queue, place.priority)).or_default().push(place.tag);
        }
        for ((queue, priority), tags) in lists {
            self.out.extend(tags.chunks(BACK).map(|tags| {
                let (queue, tags) = (queue.clone(), tags.to_vec());
                Out::Broker(broker::Write::GiveBack { queue, priority, tags })
            }));
        }
    }
}
