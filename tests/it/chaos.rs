//! Chaos, counted: workers that are killed, stopped and frozen, connections that die in every way, a broker that is
//! restarted, all from one seed; and a ledger, another Redis, that no fault touches. Nothing may be lost or stuck.
//!
//! `make chaos SEED=7 MINUTES=60` runs it for as long as you like.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use orchestra::client::Call;
use serde::Deserialize;

use crate::dice::Dice;
use crate::proxy::Proxy;
use crate::support::{LONG, Redis, Worker, until};

const WORKERS: usize = 3;
/// Seconds until what a dead worker held is given to others.
const LEASE: u64 = 2;
/// Milliseconds between two tasks.
const PACE: u64 = 25;

/// A note in the ledger.
#[derive(Deserialize)]
struct Note {
    id: String,
    node: String,
    pid: u64,
    t: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    Kill,
    Stop,
    Freeze,
    Close,
    HalfOpen,
    Cut,
    Refuse,
    Late,
    Restart,
    KillBroker,
}

/// Each as often as it stands here.
const FAULTS: [Fault; 14] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Kill,
    Fault::Stop,
    Fault::Stop,
    Fault::Freeze,
    Fault::Close,
    Fault::HalfOpen,
    Fault::Cut,
    Fault::Cut,
    Fault::Refuse,
    Fault::Late,
    Fault::Restart,
    Fault::KillBroker,
];

struct Field {
    broker: Redis,
    proxy: Proxy,
    ledger: Redis,
    workers: Vec<Worker>,
    dice: Dice,
}

fn worker(number: usize, proxy: &Proxy, ledger: &Redis) -> Worker {
    let node = format!("w{number}");
    let (results, name) = (proxy.url(), format!("{node}@chaos"));
    let arguments = ["--result-backend", &results, "-n", &name, "-c", "4"];
    let options = format!("{{visibility_timeout = {LEASE}}}");
    let ledger = ledger.url();
    let environment = [
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", options.as_str()),
        ("FAULTS_LEDGER", ledger.as_str()),
        ("FAULTS_NODE", node.as_str()),
    ];
    Worker::spawn_process(
        "conformance_worker",
        &["faults", "-q"],
        &proxy.url(),
        &arguments,
        &environment,
    )
}

impl Field {
    async fn start(seed: u64) -> Self {
        let broker = Redis::start_with(&[&["--appendfsync", "always"]]);
        let (proxy, ledger) = (Proxy::start(broker.port).await, Redis::start());
        let workers = (0..WORKERS).map(|number| worker(number, &proxy, &ledger)).collect();
        Self {
            broker,
            proxy,
            ledger,
            workers,
            dice: Dice::new(seed),
        }
    }

    fn start_again(&mut self, number: usize) {
        self.workers[number] = worker(number, &self.proxy, &self.ledger);
    }

    async fn strike(&mut self, fault: Fault) {
        let number = self.dice.below(WORKERS as u64) as usize;
        let pause = self.dice.millis(200, 1500);
        let proxy = &self.proxy;
        match fault {
            Fault::Kill => {
                self.workers[number].process.kill();
                tokio::time::sleep(pause).await;
                self.start_again(number);
            }
            Fault::Stop => {
                // It may have nothing to stop yet: one that was just started.
                let ended = tokio::task::block_in_place(|| self.workers[number].stop());
                assert!(
                    matches!(ended, Some(0) | None),
                    "{ended:?}:\n{}",
                    self.workers[number].log()
                );
                self.start_again(number);
            }
            Fault::Freeze => {
                self.workers[number].process.signal(Signal::SIGSTOP);
                tokio::time::sleep(Duration::from_secs(LEASE) + pause).await;
                self.workers[number].process.signal(Signal::SIGCONT);
            }
            Fault::Close => proxy.close(),
            Fault::HalfOpen => proxy.silence(),
            Fault::Cut => proxy.cut(),
            Fault::Refuse => {
                proxy.refuse(true);
                proxy.close();
                tokio::time::sleep(pause).await;
                proxy.refuse(false);
            }
            Fault::Late => {
                proxy.delay(Duration::from_millis(100));
                tokio::time::sleep(pause * 2).await;
                proxy.delay(Duration::ZERO);
            }
            Fault::Restart | Fault::KillBroker => {
                if fault == Fault::Restart {
                    self.broker.signal(Signal::SIGTERM);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                tokio::task::block_in_place(|| self.broker.stop());
                tokio::time::sleep(pause).await;
                tokio::task::block_in_place(|| self.broker.start_again());
            }
        }
    }

    fn notes(&self, phase: &str) -> Vec<Note> {
        let notes: Vec<String> = self.ledger.command(&["LRANGE", &format!("faults:{phase}"), "0", "-1"]);
        notes.iter().map(|note| serde_json::from_str(note).unwrap()).collect()
    }
}

/// Sends tasks straight to the broker until it is told to end; the ids of those that Redis confirmed.
async fn feed(url: String, seed: u64, ends: Arc<AtomicBool>) -> Vec<String> {
    let client = orchestra::client::Client::connect(&url).await.unwrap();
    let (mut dice, mut confirmed) = (Dice::new(seed), Vec::new());
    let mut number = 0;
    while !ends.load(Ordering::Relaxed) {
        let long = dice.below(30) == 0;
        let ms = if long { 1500 } else { 5 + dice.below(60) };
        let mut call = Call::new("faults.record").arg(number).arg(ms);
        if dice.below(30) == 0 {
            call = call.countdown(dice.millis(500, 3000));
        }
        number += 1;
        let id = call.id().to_owned();
        // One whose publish failed may be there or not: it is not counted.
        if client.send(call).await.is_ok() {
            confirmed.push(id);
        }
        tokio::time::sleep(Duration::from_millis(PACE)).await;
    }
    confirmed
}

/// How many tasks ran twice at the same time.
fn overlapping(started: &[Note], done: &[Note]) -> usize {
    let ends: HashMap<(&str, &str, u64), f64> = done
        .iter()
        .map(|note| ((note.id.as_str(), note.node.as_str(), note.pid), note.t))
        .collect();
    let mut runs: HashMap<&str, Vec<(f64, f64)>> = HashMap::new();
    for note in started {
        if let Some(end) = ends.get(&(note.id.as_str(), note.node.as_str(), note.pid)) {
            runs.entry(&note.id).or_default().push((note.t, *end));
        }
    }
    let overlap = |mut runs: Vec<(f64, f64)>| {
        runs.sort_by(|one, other| one.0.total_cmp(&other.0));
        runs.windows(2).any(|pair| pair[0].1 > pair[1].0 + 0.05)
    };
    runs.into_values().filter(|runs| overlap(runs.clone())).count()
}

fn variable(name: &str, default: f64) -> f64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is no number")),
        _ => default,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_dies() {
    let seed = variable("CHAOS_SEED", 1.0) as u64;
    let lasts = Duration::from_secs_f64(variable("CHAOS_MINUTES", 0.5) * 60.0);
    let mut field = Field::start(seed).await;
    let ends = Arc::new(AtomicBool::new(false));
    let fed = tokio::spawn(feed(field.broker.url(), seed.wrapping_add(1), ends.clone()));
    until("all workers take tasks", async || {
        let nodes: std::collections::HashSet<String> = field.notes("done").into_iter().map(|note| note.node).collect();
        nodes.len() == WORKERS
    })
    .await;

    // All kinds once before any comes again, in an order of the seed's.
    let (began, mut struck) = (Instant::now(), HashMap::<Fault, usize>::new());
    let mut hand = Vec::new();
    while began.elapsed() < lasts {
        if hand.is_empty() {
            hand.extend(FAULTS);
        }
        let fault = hand.swap_remove(field.dice.below(hand.len() as u64) as usize);
        field.strike(fault).await;
        *struck.entry(fault).or_default() += 1;
        tokio::time::sleep(field.dice.millis(200, 1200)).await;
        for (number, worker) in field.workers.iter_mut().enumerate() {
            assert!(
                worker.process.is_running(),
                "worker {number} ended by itself:\n{}",
                worker.log()
            );
        }
    }
    ends.store(true, Ordering::Relaxed);
    let confirmed = fed.await.unwrap();

    // Nothing is done to anybody any more: what is left has to move.
    let empty = async || {
        field.broker.length("LLEN", "celery") == 0
            && field.broker.length("HLEN", "unacked") == 0
            && field.broker.length("ZCARD", "unacked_index") == 0
    };
    let quiet = tokio::time::timeout(LONG, async {
        // Twice: what goes from the one place to the other was in neither when it was looked for.
        while !(empty().await && empty().await) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let (started, done) = (field.notes("start"), field.notes("done"));
    let mut times: HashMap<&str, usize> = HashMap::new();
    for note in &done {
        *times.entry(note.id.as_str()).or_default() += 1;
    }
    let lost: Vec<&String> = confirmed.iter().filter(|id| !times.contains_key(id.as_str())).collect();
    let twice = confirmed
        .iter()
        .filter(|id| times.get(id.as_str()).is_some_and(|count| *count > 1));
    let missing = confirmed
        .iter()
        .filter(|id| field.broker.length("EXISTS", &format!("celery-task-meta-{id}")) == 0);
    let report = format!(
        "seed {seed}, {:.0} s, faults {struck:?}: {} confirmed, {} executions, {} lost, {} run twice, {} at the same time, \
         {} without a result, stuck: {}, dead letters: {}",
        began.elapsed().as_secs_f64(),
        confirmed.len(),
        done.len(),
        lost.len(),
        twice.count(),
        overlapping(&started, &done),
        missing.clone().count(),
        quiet.is_err(),
        field.broker.length("LLEN", "celery.dead"),
    );
    eprintln!("{report}");
    assert!(confirmed.len() > 50, "{report}");
    assert!(
        quiet.is_ok() && lost.is_empty() && missing.count() == 0,
        "{report}\n{lost:?}"
    );
    assert_eq!(field.broker.length("LLEN", "celery.dead"), 0, "{report}");
    for worker in &mut field.workers {
        assert_eq!(
            tokio::task::block_in_place(|| worker.stop()),
            Some(0),
            "{report}\n{}",
            worker.log()
        );
    }
}
