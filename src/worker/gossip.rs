//! What is heard of other workers (`celery.worker.consumer.gossip`): it moves the Lamport clock, tells of workers that
//! come, go and fall silent, and of one that has our name; and it counts votes.
//!
//! An election is a way of Celery's to have something done once: everybody votes, everybody tells that it saw each
//! vote, and everybody finds the same winner in them, the oldest by clock and name. We tell it when all have voted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;
use tracing::{debug, error, info, warn};

use super::consumer::Consumer;
use super::control::short;
use super::outbox::Out;
use super::services::spawn_run;
use crate::client::Call;
use crate::clock::{self, Instant};
use crate::wire::{EventKind, Heard, Limits};

/// Workers that are remembered.
const NODES: usize = 10_000;
/// Elections that are remembered.
const ELECTIONS: usize = 1000;
/// An election that is not over by then never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of the other workers.
pub(crate) struct Gossip {
    nodes: HashMap<String, Node>,
    elections: BTreeMap<String, Election>,
    /// The process that has our name, once it was warned of.
    double: Option<u64>,
    /// Bytes of all elections: as many as one request may bring.
    room: usize,
}

struct Node {
    last: Instant,
    freq: Duration,
}

struct Election {
    since: Instant,
    /// Whether we were asked to hold it, and so count.
    counts: bool,
    votes: BTreeSet<Vote>,
    /// Votes that we have seen and not told of yet.
    owed: usize,
    seen_by: HashSet<String>,
    bytes: usize,
}

/// Ordered by age: clock, then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Vote {
    clock: u64,
    voter: String,
    topic: String,
    action: String,
}

impl Vote {
    /// What it takes.
    fn bytes(&self) -> usize {
        self.voter.len() + self.topic.len() + self.action.len()
    }
}

impl Gossip {
    /// How often silent workers are looked for.
    pub(crate) const PAUSE: Duration = Duration::from_secs(5);

    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            nodes: HashMap::new(),
            elections: BTreeMap::new(),
            double: None,
            room: limits.control,
        }
    }

    fn note(&mut self, heard: &Heard, now: Instant) {
        if heard.name == "worker-offline" {
            if self.nodes.remove(&heard.hostname).is_some() {
                debug!("{} left", heard.hostname);
            }
            return;
        }
        let freq = heard.fields.get("freq").and_then(Value::as_f64);
        let freq = freq.and_then(|freq| Duration::try_from_secs_f64(freq).ok());
        let node = Node {
            last: now,
            freq: freq.unwrap_or(Duration::from_secs(60)).min(Duration::from_secs(3600)),
        };
        if let Some(known) = self.nodes.get_mut(&heard.hostname) {
            *known = node;
        } else if self.nodes.len() < NODES {
            debug!("{} joined the party", heard.hostname);
            self.nodes.insert(heard.hostname.clone(), node);
        }
    }

    /// The names of workers that fell silent; they are forgotten.
    fn missed(&mut self, now: Instant) -> Vec<String> {
        self.elections
            .retain(|_, election| now.saturating_duration_since(election.since) < PATIENCE);
        let silent = |node: &Node| now.saturating_duration_since(node.last) > 2 * node.freq;
        let mut missed: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, node)| silent(node))
            .map(|(name, _)| name.clone())
            .collect();
        missed.sort();
        self.nodes.retain(|_, node| !silent(node));
        missed
    }

    fn election(&mut self, id: &str, now: Instant) -> Option<&mut Election> {
        if !self.elections.contains_key(id) && self.elections.len() >= ELECTIONS {
            return None;
        }
        Some(self.elections.entry(id.to_owned()).or_insert_with(|| Election {
            since: now,
            counts: false,
            votes: BTreeSet::new(),
            owed: 0,
            seen_by: HashSet::new(),
            bytes: 0,
        }))
    }

    /// Whether elections may keep so much more.
    fn has_room(&self, bytes: usize) -> bool {
        self.elections.values().map(|election| election.bytes).sum::<usize>() + bytes <= self.room
    }

    /// A vote came; how many of them are to be acknowledged now. A Python worker that hears of an acknowledgement
    /// before it has two votes ends with an `IndexError`: so nothing is acknowledged before everybody has voted.
    fn voted(&mut self, id: &str, vote: Vote, now: Instant) -> usize {
        let (others, bytes) = (self.nodes.len(), vote.bytes());
        if !self.has_room(bytes) {
            return 0;
        }
        let Some(election) = self.election(id, now).filter(|election| election.votes.len() <= NODES) else {
            return 0;
        };
        election.bytes += bytes;
        election.votes.insert(vote);
        election.owed += 1;
        if election.votes.len() < others + usize::from(election.counts) {
            return 0;
        }
        std::mem::take(&mut election.owed)
    }

    /// Who has not voted by now does not take part: acknowledgements that are owed for longer than a round.
    fn overdue(&mut self, now: Instant) -> Vec<(String, usize)> {
        let waits = |election: &Election| {
            let long = now.saturating_duration_since(election.since);
            election.owed > 0 && long >= Self::PAUSE / 2
        };
        let overdue = self.elections.iter_mut().filter(|(_, election)| waits(election));
        overdue
            .map(|(id, election)| (id.clone(), std::mem::take(&mut election.owed)))
            .collect()
    }

    /// Somebody saw a vote; the winner, if everybody has.
    fn acknowledged(&mut self, id: &str, by: &str) -> Option<Vote> {
        // All the others, and ourselves.
        let voters = self.nodes.len() + 1;
        let has_room = self.has_room(by.len());
        let election = self.elections.get_mut(id)?;
        if election.seen_by.len() <= NODES && has_room && election.seen_by.insert(by.to_owned()) {
            election.bytes += by.len();
        }
        if !election.counts || election.seen_by.len() < voters {
            return None;
        }
        self.elections.remove(id)?.votes.pop_first()
    }
}

impl Consumer {
    pub(super) fn on_heard(&mut self, heard: &Heard) {
        let ours = *heard.hostname == *self.options.hostname;
        match heard.clock {
            Some(clock) if !ours => self.events.adjust(clock),
            _ => drop(self.events.tick()),
        }
        if ours {
            self.look_for_double(heard.pid);
        }
        match &*heard.name {
            "worker-elect" => self.on_vote(heard),
            "worker-elect-ack" => self.on_vote_seen(heard),
            _ if ours => {}
            _ => {
                self.gossip.note(heard, clock::instant());
                self.share_lookahead(self.gossip.nodes.len() + 1);
            }
        }
    }

    pub(super) fn on_round(&mut self) {
        self.metrics.sign_of_life();
        self.share_lookahead(self.gossip.nodes.len() + 1);
        for name in self.gossip.missed(clock::instant()) {
            info!("missed heartbeat from {}", short(&name));
        }
        for (id, owed) in self.gossip.overdue(clock::instant()) {
            self.acknowledge(&id, owed);
        }
        // Nobody has to wait for it.
        drop(self.save_state());
    }

    fn look_for_double(&mut self, pid: Option<u64>) {
        if pid.is_some() && pid != Some(std::process::id().into()) && self.gossip.double != pid {
            self.gossip.double = pid;
            self.warn_of_double();
        }
    }

    /// Node names have to be unique: remote control reaches both, and monitors take them for one (P-200).
    pub(super) fn warn_of_double(&self) {
        warn!(
            "another worker has the node name {} too: monitors and remote control cannot tell them apart; \
             start one of them with another --hostname",
            self.options.hostname
        );
    }

    /// We were asked to vote.
    ///
    /// # Errors
    /// Its name is longer than those of votes, which others would not hear: in the words of an answer.
    pub(super) fn hold_election(&mut self, id: &str, topic: &str, action: &Value) -> Result<(), String> {
        let longest = self.options.limits.name;
        if id.len().max(topic.len()) > longest {
            return Err(format!(
                "ValueError('id and topic of an election may have {longest} bytes (max_name_bytes)')"
            ));
        }
        let Some(election) = self.gossip.election(id, clock::instant()) else {
            warn!("too many elections at once; {} is not held", short(id));
            return Ok(());
        };
        election.counts = true;
        let vote = EventKind::Elect {
            id,
            topic,
            action,
            cver: 1,
        };
        self.out
            .extend(self.events.election("worker-elect", vote).map(Out::Broker));
        Ok(())
    }

    fn on_vote(&mut self, heard: &Heard) {
        let text = |name: &str| heard.fields.get(name).and_then(Value::as_str);
        let (Some(id), Some(topic), Some(clock)) = (text("id"), text("topic"), heard.clock) else {
            error!("election request of {} is missing a field", short(&heard.hostname));
            return;
        };
        let vote = Vote {
            clock,
            voter: format!("{}.{}", heard.hostname, heard.pid.unwrap_or_default()),
            topic: topic.to_owned(),
            action: heard.fields.get("action").unwrap_or(&Value::Null).to_string(),
        };
        let owed = self.gossip.voted(id, vote, clock::instant());
        self.acknowledge(id, owed);
    }

    fn acknowledge(&mut self, id: &str, votes: usize) {
        for _ in 0..votes {
            let seen = EventKind::ElectAck { id };
            self.out
                .extend(self.events.election("worker-elect-ack", seen).map(Out::Broker));
        }
    }

    fn on_vote_seen(&mut self, heard: &Heard) {
        let Some(id) = heard.fields.get("id").and_then(Value::as_str) else {
            return;
        };
        let Some(winner) = self.gossip.acknowledged(id, &heard.hostname) else {
            return;
        };
        if winner.voter != format!("{}.{}", self.options.hostname, std::process::id()) {
            info!("node {} elected for {id:?}", short(&winner.voter));
            return;
        }
        info!("I won the election {id:?}");
        match (&*winner.topic, call_of(&winner.action)) {
            ("task", Some(call)) => {
                let client = self.client.clone();
                spawn_run(async move {
                    if let Err(failure) = client.send(call).await {
                        error!("Could not call task: {failure}");
                    }
                });
            }
            ("task", None) => error!("Could not call task: the action of the election is no signature"),
            (other, _) => error!("Unknown election topic {other:?}"),
        }
    }
}

/// The call that a signature describes.
fn call_of(signature: &str) -> Option<Call> {
    let signature: Value = serde_json::from_str(signature).ok()?;
    let mut call = Call::new(signature.get("task")?.as_str()?);
    for value in signature.get("args").and_then(Value::as_array).into_iter().flatten() {
        call = call.arg(value);
    }
    for (name, value) in signature.get("kwargs").and_then(Value::as_object).into_iter().flatten() {
        call = call.kwarg(name, value);
    }
    let option = |name: &str| signature.get("options")?.get(name)?.as_str();
    if let Some(id) = option("task_id") {
        call = call.task_id(id);
    }
    if let Some(queue) = option("queue").or_else(|| option("routing_key")) {
        call = call.queue(queue);
    }
    Some(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(name: &str, hostname: &str, freq: f64) -> Heard {
        Heard {
            name: name.into(),
            hostname: hostname.into(),
            fields: [("freq".to_owned(), freq.into())].into_iter().collect(),
            ..Heard::default()
        }
    }

    #[test]
    fn a_worker_is_missed_after_two_heartbeats_and_once() {
        let (mut gossip, now) = (Gossip::new(&Limits::default()), clock::instant());
        gossip.note(&heard("worker-online", "a", 2.0), now);
        gossip.note(&heard("worker-online", "b", 2.0), now);
        gossip.note(&heard("worker-online", "c", -1.0), now);
        let later = now + Duration::from_secs(4);
        gossip.note(&heard("worker-heartbeat", "b", 2.0), later);
        assert!(gossip.missed(later).is_empty());
        let later = later + Duration::from_millis(1);
        assert_eq!(gossip.missed(later), ["a"]);
        assert!(gossip.missed(later).is_empty());
        gossip.note(&heard("worker-offline", "b", 2.0), later);
        assert_eq!(gossip.nodes.len(), 1);
    }

    #[test]
    fn p_201_the_oldest_vote_wins_when_everybody_saw_it() {
        let (mut gossip, now) = (Gossip::new(&Limits::default()), clock::instant());
        gossip.note(&heard("worker-online", "b", 2.0), now);
        let vote = |clock, voter: &str| Vote {
            clock,
            voter: voter.into(),
            topic: "task".into(),
            action: "null".into(),
        };
        let election = gossip.election("e", now).unwrap();
        election.counts = true;
        election.votes.extend([vote(7, "b.2"), vote(5, "z.1"), vote(5, "a.1")]);
        assert_eq!(gossip.acknowledged("e", "a"), None);
        assert_eq!(gossip.acknowledged("e", "a"), None);
        assert_eq!(gossip.acknowledged("e", "b").unwrap().voter, "a.1");
        assert_eq!(gossip.acknowledged("e", "b"), None);
    }

    #[test]
    fn p_201_no_vote_is_acknowledged_before_all_are_there() {
        let (mut gossip, now) = (Gossip::new(&Limits::default()), clock::instant());
        gossip.note(&heard("worker-online", "b", 2.0), now);
        gossip.note(&heard("worker-online", "c", 2.0), now);
        let vote = |voter: &str| Vote {
            clock: 1,
            voter: voter.into(),
            topic: "task".into(),
            action: "null".into(),
        };
        gossip.election("e", now).unwrap().counts = true;
        assert_eq!(gossip.voted("e", vote("b.1"), now), 0);
        assert_eq!(gossip.voted("e", vote("a.1"), now), 0);
        assert!(gossip.overdue(now).is_empty());
        assert_eq!(gossip.voted("e", vote("c.1"), now), 3);
        // Somebody who takes no part holds nothing up for long.
        assert_eq!(gossip.voted("f", vote("b.1"), now), 0);
        let later = now + Gossip::PAUSE;
        assert_eq!(gossip.overdue(later), [("f".to_owned(), 1)]);
        assert!(gossip.overdue(later).is_empty());
    }

    #[test]
    fn elections_are_bounded_in_number_and_time() {
        let (mut gossip, now) = (Gossip::new(&Limits::default()), clock::instant());
        for n in 0..=ELECTIONS {
            assert_eq!(gossip.election(&n.to_string(), now).is_some(), n < ELECTIONS);
        }
        gossip.missed(now + PATIENCE);
        assert!(gossip.elections.is_empty());
    }

    #[test]
    fn elections_are_bounded_in_bytes() {
        let limits = Limits {
            control: 1000,
            ..Limits::default()
        };
        let (mut gossip, now) = (Gossip::new(&limits), clock::instant());
        for n in 0..100 {
            let vote = Vote {
                clock: n,
                voter: "v".into(),
                topic: "t".into(),
                action: "a".repeat(98),
            };
            gossip.voted(if n % 2 == 0 { "even" } else { "odd" }, vote, now);
            gossip.acknowledged("even", &format!("{n:050}"));
        }
        let kept: usize = gossip.elections.values().map(|election| election.bytes).sum();
        assert!((900..=1000).contains(&kept), "{kept}");
        gossip.missed(now + PATIENCE);
        assert!(gossip.has_room(1000));
    }

    #[test]
    fn neighbours_are_bounded_in_number() {
        let (mut gossip, now) = (Gossip::new(&Limits::default()), clock::instant());
        for n in 0..NODES + 2 {
            gossip.note(&heard("worker-online", &n.to_string(), 2.0), now);
        }
        assert_eq!(gossip.nodes.len(), NODES);
    }
}
