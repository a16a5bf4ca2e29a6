//! What chaos sends, and how it is counted by what the tasks themselves told a ledger.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orchestra::canvas::{chain, chord};
use orchestra::client::{Call, Client, Signature};
use serde::Deserialize;

use crate::dice::Dice;
use crate::wallclock::steady;

/// Between two that are sent.
const PACE: Duration = Duration::from_millis(25);
/// The steady clock of all processes is one; what is between the end of a run and its note is not.
const TOLERANCE: f64 = 0.05;

/// A note in the ledger.
#[derive(Deserialize)]
pub struct Note {
    pub id: String,
    pub node: String,
    pub pid: u64,
    /// When, by the wall clock of its worker.
    pub t: f64,
    /// When, by the clock that nobody sets.
    pub steady: f64,
}

/// The ids of what Redis confirmed.
#[derive(Default)]
pub struct Sent {
    /// With late acks: each is done, and succeeds. Retries, steps of chains, members and bodies of chords are among
    /// them.
    pub late: Vec<String>,
    /// With early acks: each is done, unless its worker was killed while it ran.
    pub early: Vec<String>,
    /// Of all these, those that one message brings, which nobody sends again.
    pub single: HashSet<String>,
    /// When those with an ETA are due, by the clock that nobody sets.
    pub due: HashMap<String, f64>,
}

/// Sends tasks of all kinds straight to the broker until it is told to end.
pub async fn feed(client: Client, seed: u64, ends: Arc<AtomicBool>) -> Sent {
    let (mut dice, mut sent, mut number) = (Dice::new(seed), Sent::default(), 0);
    while !ends.load(Ordering::Relaxed) {
        number += 1;
        // One whose publish failed may be there or not: it is not counted.
        match dice.below(20) {
            0..=11 => {
                let ms = if dice.below(30) == 0 { 1500 } else { 5 + dice.below(60) };
                let mut call = Call::new("faults.record").arg(number).arg(ms);
                let mut due = None;
                match dice.below(30) {
                    0 => {
                        let pause = dice.millis(500, 3000);
                        due = Some(steady() + pause.as_secs_f64());
                        call = call.countdown(pause);
                    }
                    1..=8 => call = call.priority([0, 3, 6, 9][dice.below(4) as usize]),
                    _ => {}
                }
                let id = call.id().to_owned();
                if client.send(call).await.is_ok() {
                    sent.single.insert(id.clone());
                    sent.due.extend(due.map(|due| (id.clone(), due)));
                    sent.late.push(id);
                }
            }
            12..=13 => {
                let call = Call::new("faults.early").arg(number).arg(5 + dice.below(60));
                let id = call.id().to_owned();
                if client.send(call).await.is_ok() {
                    sent.single.insert(id.clone());
                    sent.early.push(id);
                }
            }
            14..=15 => {
                let call = Call::new("faults.retry").arg(number).arg(1);
                let id = call.id().to_owned();
                if client.send(call).await.is_ok() {
                    sent.late.push(id);
                }
            }
            kind => {
                let mut ids = Vec::new();
                let mut call = |task: &str| {
                    ids.push(uuid::Uuid::new_v4().to_string());
                    Signature::new(task).option("task_id", ids.last())
                };
                let mut part = |task: &str| call(task).arg(number).arg(5 + dice.below(30)).immutable();
                let signature = if kind < 18 {
                    chain([part("faults.record"), part("faults.record"), part("faults.record")])
                } else {
                    let header = [
                        part("faults.chord_part"),
                        part("faults.chord_part"),
                        part("faults.chord_part"),
                    ];
                    chord(header, call("faults.chord_body"))
                };
                if client.apply(signature).await.is_ok() {
                    sent.late.append(&mut ids);
                }
            }
        }
        tokio::time::sleep(PACE).await;
    }
    sent
}

/// A worker did nothing from then to then: others may have had what it ran.
pub struct Frozen {
    pub node: String,
    pub from: f64,
    pub to: f64,
}

/// The wall clock of a worker was so many seconds ahead, or back, from then to then.
pub struct Set {
    pub node: String,
    pub seconds: i64,
    pub from: f64,
    pub to: f64,
}

/// What a worker took for due while its clock was ahead may start when it is right again.
const BEHIND: f64 = 2.0;

impl Set {
    fn covers(&self, note: &Note) -> bool {
        self.node == note.node && (self.from..self.to).contains(&note.steady)
    }

    /// How many of these were written by this clock, where the right one is `apart` from the one that nobody sets.
    pub fn seen(&self, notes: &[Note], apart: f64) -> usize {
        let is_off = |note: &&Note| (note.t - note.steady - apart - self.seconds as f64).abs() < 60.0;
        notes.iter().filter(|note| self.covers(note)).filter(is_off).count()
    }
}

/// The tasks that a worker whose clock was not ahead started before they were due.
pub fn early<'a>(started: &'a [Note], due: &HashMap<String, f64>, set: &[Set]) -> Vec<&'a Note> {
    let ahead = |note: &Note| {
        set.iter()
            .any(|set| set.seconds > 0 && set.node == note.node && (set.from..set.to + BEHIND).contains(&note.steady))
    };
    let is_early = |note: &&Note| due.get(&note.id).is_some_and(|due| note.steady + TOLERANCE < *due);
    started.iter().filter(is_early).filter(|note| !ahead(note)).collect()
}

/// A run, as the ledger has it.
#[derive(Debug)]
pub struct Run {
    from: f64,
    to: f64,
    #[expect(dead_code, reason = "shown when it should not have been")]
    node: String,
}

/// The runs of tasks that ran twice at the same time.
pub fn overlapping(started: &[Note], done: &[Note], frozen: &[Frozen]) -> HashMap<String, Vec<Run>> {
    type Place<'a> = (&'a str, &'a str, u64);
    fn by_place(notes: &[Note]) -> HashMap<Place<'_>, Vec<f64>> {
        let mut places: HashMap<Place<'_>, Vec<f64>> = HashMap::new();
        for note in notes {
            places
                .entry((&note.id, &note.node, note.pid))
                .or_default()
                .push(note.steady);
        }
        places.values_mut().for_each(|times| times.sort_by(f64::total_cmp));
        places
    }
    let (mut starts, ends) = (by_place(started), by_place(done));
    let mut runs: HashMap<String, Vec<Run>> = HashMap::new();
    for ((id, node, pid), ends) in ends {
        let starts = starts.entry((id, node, pid)).or_default();
        for end in ends {
            // A run that was given up has no end: what ends is the one that began last.
            let Some(at) = starts.iter().rposition(|start| *start <= end) else {
                continue;
            };
            let start = starts.remove(at);
            if !frozen
                .iter()
                .any(|frozen| frozen.node == node && frozen.from < end && start < frozen.to)
            {
                let node = node.to_owned();
                runs.entry(id.to_owned()).or_default().push(Run {
                    from: start,
                    to: end,
                    node,
                });
            }
        }
    }
    let overlap = |runs: &mut Vec<Run>| {
        runs.sort_by(|one, other| one.from.total_cmp(&other.from));
        runs.windows(2).any(|pair| pair[0].to > pair[1].from + TOLERANCE)
    };
    runs.retain(|_, runs| overlap(runs));
    runs
}

#[test]
fn what_runs_at_the_same_time_is_seen() {
    let note = |id: &str, node: &str, t: f64| Note {
        id: id.to_owned(),
        node: node.to_owned(),
        pid: 1,
        t,
        steady: t,
    };
    let started = [
        note("one after the other", "a", 1.0),
        note("one after the other", "b", 2.0),
        note("at the same time", "a", 1.0),
        note("at the same time", "b", 1.5),
        note("in one worker", "a", 1.0),
        note("in one worker", "a", 1.5),
        note("given up and run again", "a", 1.0),
        note("given up and run again", "a", 1.5),
        note("frozen", "c", 1.0),
        note("frozen", "a", 5.0),
    ];
    let done = [
        note("one after the other", "a", 1.9),
        note("one after the other", "b", 3.0),
        note("at the same time", "a", 2.0),
        note("at the same time", "b", 2.5),
        note("in one worker", "a", 2.0),
        note("in one worker", "a", 2.5),
        note("given up and run again", "a", 2.5),
        note("frozen", "c", 5.5),
        note("frozen", "a", 6.0),
    ];
    let frozen = [Frozen {
        node: "c".into(),
        from: 1.5,
        to: 5.4,
    }];
    let mut found: Vec<String> = overlapping(&started, &done, &frozen).into_keys().collect();
    found.sort();
    assert_eq!(found, ["at the same time", "in one worker"]);
}

#[test]
fn what_starts_before_it_is_due_is_seen_unless_the_clock_of_its_worker_was_ahead() {
    let note = |id: &str, node: &str, steady: f64| Note {
        id: id.to_owned(),
        node: node.to_owned(),
        pid: 1,
        t: steady + if node == "ahead" { 4600.0 } else { 1000.0 },
        steady,
    };
    let started = [
        note("in time", "right", 2.0),
        note("early", "right", 1.9),
        note("early by its clock", "ahead", 1.0),
        note("early before it was set", "ahead", 0.4),
        note("early where it is back", "back", 1.0),
        note("has no ETA", "right", 1.0),
    ];
    let set = |node: &str, seconds: i64| Set {
        node: node.to_owned(),
        seconds,
        from: 0.5,
        to: 1.5,
    };
    let set = [set("ahead", 3600), set("back", -3600)];
    let due = started[..5].iter().map(|note| (note.id.clone(), 2.0)).collect();
    let found: Vec<&str> = early(&started, &due, &set).iter().map(|note| &*note.id).collect();
    assert_eq!(found, ["early", "early before it was set", "early where it is back"]);
    assert_eq!(set.each_ref().map(|set| set.seen(&started, 1000.0)), [1, 0]);
}
