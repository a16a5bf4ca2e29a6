//! What chaos sends, and how it is counted by what the tasks themselves told a ledger.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orchestra::canvas::{chain, chord};
use orchestra::client::{Call, Client, Signature};
use serde::Deserialize;

use crate::dice::Dice;

/// Between two that are sent.
const PACE: Duration = Duration::from_millis(25);
/// Clocks of processes are one here; what is between the end of a run and its note is not.
const TOLERANCE: f64 = 0.05;

/// A note in the ledger.
#[derive(Deserialize)]
pub struct Note {
    pub id: String,
    pub node: String,
    pub pid: u64,
    pub t: f64,
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
                match dice.below(30) {
                    0 => call = call.countdown(dice.millis(500, 3000)),
                    1..=8 => call = call.priority([0, 3, 6, 9][dice.below(4) as usize]),
                    _ => {}
                }
                let id = call.id().to_owned();
                if client.send(call).await.is_ok() {
                    sent.single.insert(id.clone());
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
            places.entry((&note.id, &note.node, note.pid)).or_default().push(note.t);
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
