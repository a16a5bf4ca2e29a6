//! Chaos, counted: workers that are killed, stopped and frozen, connections that die in every way, a broker and a Redis
//! of results that are restarted, clocks that are set, all from one seed; and a ledger, another Redis, that no fault touches. Tasks of all
//! kinds go through it. Nothing may be lost, stuck, failed, or run twice at the same time.
//!
//! `make chaos SEED=7 MINUTES=60` runs it for as long as you like.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use orchestra::client::Client;
use orchestra::clock;
use serde_json::Value;

use crate::dice::Dice;
use crate::proxy::Proxy;
use crate::support::{LONG, Redis, Worker, until};
use crate::tally::{Frozen, Note, Set, early, feed, overlapping};
use crate::wallclock::{HOUR, WallClock, steady};

const WORKERS: usize = 3;
const PLACES: usize = 4;
/// Seconds until what a dead worker held is given to others: more than a busy machine holds up a worker, which would
/// be frozen without standing in the list of those.
const LEASE: u64 = 5;
/// Longer than a worker that was cut off leaves alone what is overdue.
const GRACE: Duration = Duration::from_secs(4);
/// Of all priorities.
const QUEUES: [&str; 4] = [
    "celery",
    "celery\u{6}\u{16}3",
    "celery\u{6}\u{16}6",
    "celery\u{6}\u{16}9",
];

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
    KillServer,
    ClockAhead,
    ClockBack,
}

/// Each as often as it stands here.
const FAULTS: [Fault; 16] = [
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
    Fault::KillServer,
    Fault::ClockAhead,
    Fault::ClockBack,
];

/// A server, and the way to it on which connections die.
struct Server {
    redis: Redis,
    proxy: Proxy,
}

impl Server {
    async fn start() -> Self {
        let redis = Redis::start_with(&[&["--appendfsync", "always"]]);
        let proxy = Proxy::start(redis.port).await;
        Self { redis, proxy }
    }
}

struct Field {
    /// The broker, and the results.
    servers: [Server; 2],
    ledger: Redis,
    workers: Vec<Worker>,
    /// What they see of the time, also those that are started again.
    clocks: Vec<WallClock>,
    frozen: Vec<Frozen>,
    /// The clocks that were set; one at a time is off, until then.
    set: Vec<Set>,
    right_again: Option<Instant>,
    /// What was done, and when.
    struck: Vec<(f64, Fault)>,
    dice: Dice,
}

fn worker(number: usize, [broker, results]: &[Server; 2], ledger: &Redis, clock: &WallClock) -> Worker {
    let node = format!("w{number}");
    let (results, name, places) = (results.proxy.url(), format!("{node}@chaos"), PLACES.to_string());
    let arguments = ["--result-backend", &results, "-n", &name, "-c", &places];
    // A message may be among what each of the killed ones held.
    let options = format!("{{visibility_timeout = {LEASE}, max_deliveries = 20}}");
    let (ledger, clock) = (ledger.url(), clock.environment());
    let [preloads, clock] = clock.each_ref().map(|(name, value)| (*name, value.as_str()));
    let environment = [
        preloads,
        clock,
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", options.as_str()),
        ("FAULTS_LEDGER", ledger.as_str()),
        ("FAULTS_NODE", node.as_str()),
    ];
    Worker::spawn_process(
        "conformance_worker",
        &["faults", "-q"],
        &broker.proxy.url(),
        &arguments,
        &environment,
    )
}

/// What the wall clock is ahead of the one that nobody sets.
fn apart() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - steady()
}

impl Field {
    async fn start(seed: u64) -> Self {
        let (servers, ledger) = ([Server::start().await, Server::start().await], Redis::start());
        let clocks: Vec<WallClock> = (0..WORKERS).map(|_| WallClock::new()).collect();
        let started = clocks.iter().enumerate();
        let workers = started.map(|(number, clock)| worker(number, &servers, &ledger, clock));
        Self {
            workers: workers.collect(),
            servers,
            ledger,
            clocks,
            frozen: Vec::new(),
            set: Vec::new(),
            right_again: None,
            struck: Vec::new(),
            dice: Dice::new(seed),
        }
    }

    fn broker(&self) -> &Redis {
        &self.servers[0].redis
    }

    fn results(&self) -> &Redis {
        &self.servers[1].redis
    }

    fn start_again(&mut self, number: usize) {
        self.workers[number] = worker(number, &self.servers, &self.ledger, &self.clocks[number]);
    }

    /// Sets the clock of a worker for longer than a lease: first nothing else happens, so that it looks for what is
    /// overdue by that clock, and then whatever comes.
    async fn set_clock(&mut self, number: usize, seconds: i64, pause: Duration) {
        self.set_clocks_right();
        self.clocks[number].set(seconds);
        let (node, from) = (format!("w{number}"), steady());
        let to = f64::INFINITY;
        self.set.push(Set {
            node,
            seconds,
            from,
            to,
        });
        self.right_again = Some(Instant::now() + Duration::from_secs(LEASE) + pause);
        tokio::time::sleep(GRACE).await;
    }

    fn set_clocks_right(&mut self) {
        if self.right_again.take().is_some() {
            self.clocks.iter().for_each(|clock| clock.set(0));
            self.set.iter_mut().for_each(|set| set.to = set.to.min(steady()));
        }
    }

    async fn strike(&mut self, fault: Fault) {
        self.struck.push((steady(), fault));
        let number = self.dice.below(WORKERS as u64) as usize;
        let pause = self.dice.millis(200, 1500);
        let at = usize::from(self.dice.below(3) == 0);
        let proxy = &self.servers[at].proxy;
        match fault {
            Fault::Kill => {
                self.workers[number].process.kill();
                tokio::time::sleep(pause).await;
                self.start_again(number);
            }
            Fault::Stop => {
                // It may have nothing to stop yet: one that was just started. And a disk may be too slow for what it
                // still has to write: it says so, and what has late acks runs again.
                let ended = tokio::task::block_in_place(|| self.workers[number].stop());
                let log = self.workers[number].log();
                let is_well = match ended {
                    Some(0) | None => true,
                    Some(code) => code == 1 && log.contains("writes are lost"),
                };
                assert!(is_well, "{ended:?}:\n{log}");
                self.start_again(number);
            }
            Fault::Freeze => {
                let (node, from) = (format!("w{number}"), steady());
                self.workers[number].process.signal(Signal::SIGSTOP);
                tokio::time::sleep(Duration::from_secs(LEASE) + pause).await;
                self.workers[number].process.signal(Signal::SIGCONT);
                self.frozen.push(Frozen {
                    node,
                    from,
                    to: steady(),
                });
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
            Fault::Restart | Fault::KillServer => {
                let redis = &mut self.servers[at].redis;
                if fault == Fault::Restart {
                    redis.signal(Signal::SIGTERM);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                tokio::task::block_in_place(|| redis.stop());
                tokio::time::sleep(pause).await;
                tokio::task::block_in_place(|| redis.start_again());
            }
            Fault::ClockAhead => self.set_clock(number, HOUR, pause).await,
            Fault::ClockBack => self.set_clock(number, -HOUR, pause).await,
        }
    }

    /// What is left that is not due in more than half an hour.
    fn left(&self) -> usize {
        let lists = QUEUES.iter().map(|queue| ["LRANGE", queue, "0", "-1"]);
        let waiting: Vec<Vec<String>> = lists.map(|words| self.broker().command(&words)).collect();
        let held: Vec<String> = self.broker().command(&["HVALS", "unacked"]);
        let soon = clock::after(clock::now(), Duration::from_secs(1800));
        let is_late = |message: &Value| {
            let eta = message["headers"]["eta"].as_str().map(clock::parse_iso);
            eta.is_some_and(|eta| eta.unwrap() > soon)
        };
        let waiting = waiting.concat();
        let messages = waiting.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
        let held = held
            .iter()
            .map(|text| serde_json::from_str::<Value>(text).unwrap()[0].take());
        messages.chain(held).filter(|message| !is_late(message)).count()
    }

    /// Nothing is left, neither held nor waiting.
    fn is_empty(&self) -> bool {
        QUEUES.iter().all(|queue| self.broker().length("LLEN", queue) == 0)
            && self.broker().length("HLEN", "unacked") == 0
            && self.broker().length("ZCARD", "unacked_index") == 0
    }

    fn notes(&self, phase: &str) -> Vec<Note> {
        let notes: Vec<String> = self.ledger.command(&["LRANGE", &format!("faults:{phase}"), "0", "-1"]);
        notes.iter().map(|note| serde_json::from_str(note).unwrap()).collect()
    }
}

/// Whether it is so before long.
async fn within_long(is_so: impl Fn() -> bool) -> bool {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.is_ok()
}

fn variable(name: &str, default: f64) -> f64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is no number")),
        _ => default,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_dies() {
    // One with which half a minute is enough to find leases that go by the clock of a worker.
    let seed = variable("CHAOS_SEED", 2.0) as u64;
    let lasts = Duration::from_secs_f64(variable("CHAOS_MINUTES", 0.5) * 60.0);
    let mut field = Field::start(seed).await;
    let ends = Arc::new(AtomicBool::new(false));
    let client = Client::connect_to(&field.broker().url(), Some(&field.results().url()))
        .await
        .unwrap();
    let fed = tokio::spawn(feed(client, seed.wrapping_add(1), ends.clone()));
    until("all workers take tasks", async || {
        let nodes: HashSet<String> = field.notes("done").into_iter().map(|note| note.node).collect();
        nodes.len() == WORKERS
    })
    .await;

    // All kinds once before any comes again, in an order of the seed's; each of them at least once.
    let kinds = FAULTS.iter().collect::<HashSet<_>>().len();
    let (began, mut struck) = (Instant::now(), HashMap::<Fault, usize>::new());
    let mut hand = Vec::new();
    while began.elapsed() < lasts || struck.len() < kinds {
        if hand.is_empty() {
            hand.extend(FAULTS);
        }
        let fault = hand.swap_remove(field.dice.below(hand.len() as u64) as usize);
        field.strike(fault).await;
        if field.right_again.is_some_and(|at| at < Instant::now()) {
            field.set_clocks_right();
        }
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
    let sent = fed.await.unwrap();

    // Nothing is done to anybody any more: what is left has to move.
    field.set_clocks_right();
    // Twice: what goes from the one place to the other was in neither when it was looked for.
    let mut quiet = within_long(|| field.left() + field.left() == 0).await;
    let started = field.notes("start");
    let early = early(&started, &sent.due, &field.set).len();
    let by_set_clocks = |seconds: i64| -> usize {
        let set = field.set.iter().filter(|set| set.seconds == seconds);
        set.map(|set| set.seen(&started, apart())).sum()
    };
    let (ahead, back) = (by_set_clocks(HOUR), by_set_clocks(-HOUR));
    let put_off = field.broker().length("HLEN", "unacked");
    // What was to be tried again in a moment, by a clock that was an hour ahead, is due when all are.
    field.clocks.iter().for_each(|clock| clock.set(HOUR));
    quiet &= within_long(|| field.is_empty() && field.is_empty()).await;
    let (started, done) = (field.notes("start"), field.notes("done"));
    let mut times: HashMap<String, usize> = HashMap::new();
    for note in done.iter().chain(&field.notes("body")) {
        *times.entry(note.id.clone()).or_default() += 1;
    }
    let lost = |ids: &[String]| ids.iter().filter(|id| !times.contains_key(*id)).count();
    let (lost_late, lost_early) = (lost(&sent.late), lost(&sent.early));
    let twice = sent
        .late
        .iter()
        .chain(&sent.early)
        .filter(|id| times.get(*id).is_some_and(|count| *count > 1));
    let at_once = overlapping(&started, &done, &field.frozen);
    let at_once_single = at_once.keys().filter(|id| sent.single.contains(*id)).count();
    let keys: Vec<String> = sent.late.iter().map(|id| format!("celery-task-meta-{id}")).collect();
    let words: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let results: Vec<Option<String>> = field.results().command(&words);
    let odd: Vec<(&String, Option<String>)> = sent
        .late
        .iter()
        .zip(results)
        .filter(|(_, result)| {
            let status = |text: &String| serde_json::from_str::<Value>(text).unwrap()["status"].clone();
            result.as_ref().map(status) != Some("SUCCESS".into())
        })
        .collect();
    let kills = struck.get(&Fault::Kill).copied().unwrap_or(0);
    let report = format!(
        "seed {seed}, {:.0} s, faults {struck:?}: {} confirmed with late acks, {} with early ones, {} executions; {lost_late} and \
         {lost_early} lost, {} run twice, {} of them at the same time ({at_once_single} where nobody sent it twice), {} without SUCCESS, \
         {early} of {} with an ETA early, {ahead} started by clocks that were ahead and {back} by ones that were back, {put_off} retries \
         an hour late, stuck: {}, dead letters: {}",
        began.elapsed().as_secs_f64(),
        sent.late.len(),
        sent.early.len(),
        done.len(),
        twice.count(),
        at_once.len(),
        odd.len(),
        sent.due.len(),
        !quiet,
        field.broker().length("LLEN", "celery.dead"),
    );
    eprintln!("{report}");
    assert!(sent.late.len() > 100, "{report}");
    assert!(quiet && lost_late == 0, "{report}");
    assert_eq!(early, 0, "{report}");
    // A clock that nobody sees set is no fault.
    assert!(ahead > 0 && back > 0, "{report}");
    assert!(odd.is_empty(), "{report}\n{odd:?}");
    // A step, a retry whose sending was not answered may be sent twice, and both may run at once.
    assert_eq!(at_once_single, 0, "{report}\n{at_once:?}\n{:?}", field.struck);
    // Only what ran as its worker was killed.
    assert!(lost_early <= kills * PLACES, "{report}");
    assert_eq!(field.broker().length("LLEN", "celery.dead"), 0, "{report}");
    for worker in &mut field.workers {
        assert_eq!(
            tokio::task::block_in_place(|| worker.stop()),
            Some(0),
            "{report}\n{}",
            worker.log()
        );
    }
}
