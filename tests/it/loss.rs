//! A worker that is killed loses nothing.

use std::collections::HashMap;
use std::time::Duration;

use orchestra::canvas::{chain, chord};
use orchestra::client::{Call, Client, Signature};

use crate::proxy::Proxy;
use crate::support::{Folder, LONG, Process, Redis, Worker, python, until};

const KILLS: u64 = 20;

/// Where nothing may come back while its worker lives: a lease that is longer than a busy machine holds up a worker.
const SURE: &[(&str, &str)] = &[
    ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 4}"),
    ("ORCHESTRA_TASK_ACKS_LATE", "true"),
];

/// Settings of a worker whose dead predecessor's messages come back soon.
const SOON: &[(&str, &str)] = &[
    (
        "ORCHESTRA_BROKER_TRANSPORT_OPTIONS",
        "{visibility_timeout = 1, max_deliveries = 1000}",
    ),
    ("ORCHESTRA_TASK_ACKS_LATE", "true"),
];

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_twenty_times_loses_nothing() {
    let redis = Redis::start();
    let client = redis.client().await;
    let calls: Vec<Call> = (0..400).map(|n| Call::new("hello.nap").arg(50).arg(n)).collect();
    let pending = client.send_many(&calls).await.unwrap();
    let mut restored = 0;
    for kill in 0..KILLS {
        let mut worker = Worker::start_with(&redis, &["-c", "4"], SOON);
        // Somewhere between "just claimed" and "in full run".
        tokio::time::sleep(Duration::from_millis(kill * 37 % 400)).await;
        worker.process.kill();
        restored += worker.log().matches("restored").count();
        let accounted = redis.length("LLEN", "celery") + redis.length("HLEN", "unacked");
        let done = done(
            &redis,
            &pending
                .iter()
                .map(|pending| pending.id().to_owned())
                .collect::<Vec<_>>(),
        );
        assert!(
            accounted + done >= calls.len(),
            "{accounted} in the broker and {done} done of {}",
            calls.len()
        );
    }
    let worker = Worker::start_with(&redis, &["-c", "64"], SOON);
    for (n, pending) in pending.iter().enumerate() {
        assert_eq!(pending.get::<usize>(LONG).await.unwrap(), n, "{}", worker.log());
    }
    restored += worker.log().matches("restored").count();
    assert!(
        restored > 0,
        "no kill hit a worker that held a message: the test proves nothing"
    );
    until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
    assert_eq!(redis.length("EXISTS", "celery.dead"), 0);
}

fn done(redis: &Redis, ids: &[String]) -> usize {
    let keys: Vec<String> = ids.iter().map(|id| format!("celery-task-meta-{id}")).collect();
    let words: Vec<&str> = ["EXISTS"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    redis.command(&words)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_is_not_delivered_twice() {
    let redis = Redis::start();
    let client = redis.client().await;
    let one = Worker::start_with(&redis, &["-c", "1"], SURE);
    let pending = client.send(Call::new("hello.sleep").arg(10)).await.unwrap();
    let later = client
        .send(Call::new("hello.add").arg(1).countdown(Duration::from_secs(9)))
        .await
        .unwrap();
    one.wait_for_log("hello.sleep");
    // Two visibility time-outs pass, and a neighbour looks for what is overdue all the time.
    let two = Worker::start_with(&redis, &["-c", "1"], SURE);
    assert_eq!(pending.get::<String>(LONG).await.unwrap(), "rested");
    assert_eq!(later.get::<i64>(LONG).await.unwrap(), 1);
    assert!(
        !two.log().contains("restored") && !two.log().contains("hello.sleep"),
        "{}",
        two.log()
    );
    assert!(!one.log().contains("restored"), "{}", one.log());
}

/// With a lease of its own a worker that died is noticed long before the visibility timeout, by ours and by Python
/// workers; what lives keeps what it has.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_short_lease_the_dead_are_followed_soon_whatever_the_visibility_timeout() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let client = redis.client().await;
    let settings = [
        (
            "ORCHESTRA_BROKER_TRANSPORT_OPTIONS",
            "{visibility_timeout = 600, lease = 4}",
        ),
        ("ORCHESTRA_TASK_ACKS_LATE", "true"),
    ];
    let mut one = Worker::start_with(&redis, &["-c", "1"], &settings);
    let long = client.send(Call::new("hello.sleep").arg(9)).await.unwrap();
    one.wait_for_log("hello.sleep");
    let mut two = Worker::start_with(&redis, &["-c", "1"], &settings);
    // Two leases pass.
    assert_eq!(long.get::<String>(LONG).await.unwrap(), "rested");
    assert!(!two.log().contains("restored"), "{}", two.log());
    two.process.kill();
    let begun = client.send(Call::new("hello.sleep").arg(3)).await.unwrap();
    until("it runs", async || one.log().matches("hello.sleep").count() > 2).await;
    one.process.kill();
    let two = Worker::start_with(&redis, &["-c", "1"], &settings);
    // A minute is waited for it, and not for ten.
    two.wait_for_log("restored 1 message");
    two.wait_for_log(begun.id());
    assert_eq!(begun.get::<String>(LONG).await.unwrap(), "rested");
    // A Python worker with that timeout finds what we held as well.
    let begun = client.send(Call::new("hello.sleep").arg(600)).await.unwrap();
    two.wait_for_log(begun.id());
    drop(two);
    let _theirs = python_worker_with(&redis, &folder, "600");
    assert_eq!(begun.get::<String>(LONG).await.unwrap(), "from Python");
}

/// The next step of a chain stays with the worker that has a place for it, and is in Redis as its own from the start;
/// where others wait it goes behind them.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_step_stays_here_and_is_not_lost_with_us() {
    let redis = Redis::start();
    let client = redis.client().await;
    let pushes = || {
        let info: String = redis.command(&["INFO", "commandstats"]);
        let found = info.lines().find_map(|line| line.strip_prefix("cmdstat_lpush:calls="));
        let digits = found.and_then(|rest| rest.split(',').next());
        digits.map_or(0, |digits| digits.parse::<u64>().unwrap())
    };
    let add = |n: i64| Signature::new("hello.add").arg(n);
    let mut one = Worker::start_with(&redis, &["-c", "1"], SURE);
    let before = pushes();
    for _ in 0..10 {
        let steps = [add(1).arg(1), add(2), add(3), add(4)];
        let applied = client.apply(chain(steps)).await.unwrap();
        assert_eq!(applied.get::<i64>(LONG).await.unwrap(), 11);
    }
    // Of each the first step is in the queue; another where we were just looking for more.
    let pushed = pushes() - before;
    assert!(pushed <= 20, "{pushed} of 40 steps went to the queue");
    until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
    assert_eq!(redis.length("ZCARD", "unacked_index"), 0);

    // Whoever waits goes first.
    let before = pushes();
    let nap = |n: i64| Signature::new("hello.nap").kwarg("ms", 3000).kwarg("n", n);
    let applied = client.apply(chain([nap(1), add(5)])).await.unwrap();
    until("it runs", async || redis.length("HLEN", "unacked") == 1).await;
    let calls = [
        Call::new("hello.nap").arg(200).arg(2),
        Call::new("hello.nap").arg(1).arg(3),
    ];
    let others = client.send_many(&calls).await.unwrap();
    assert_eq!(applied.get::<i64>(LONG).await.unwrap(), 6);
    for other in &others {
        let key = format!("celery-task-meta-{}", other.id());
        assert_eq!(redis.length("EXISTS", &key), 1, "it came first: {}", one.log());
    }
    assert_eq!(pushes() - before, 4, "the second step went to the queue");

    // One that stays is restored when its worker dies.
    let rest = Signature::new("hello.sleep").arg(2).immutable();
    let applied = client.apply(chain([add(1), rest])).await.unwrap();
    // STARTED.
    let key = format!("celery-task-meta-{}", applied.result().id());
    until("it runs", async || redis.length("EXISTS", &key) == 1).await;
    one.process.kill();
    assert_eq!(redis.length("HLEN", "unacked"), 1);
    let mut two = Worker::start_with(&redis, &["-c", "1"], SURE);
    assert_eq!(applied.get::<String>(LONG).await.unwrap(), "rested");
    assert!(two.log().contains("restored 1 message"), "{}", two.log());

    // A warm stop waits for what runs; what follows it is for others.
    let applied = client.apply(chain([nap(7), add(8)])).await.unwrap();
    until("it runs", async || redis.length("HLEN", "unacked") == 1).await;
    assert_eq!(two.stop(), Some(0), "{}", two.log());
    assert_eq!(redis.length("LLEN", "celery"), 1, "{}", two.log());
    let _three = Worker::start_with(&redis, &["-c", "1"], SURE);
    assert_eq!(applied.get::<i64>(LONG).await.unwrap(), 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_its_workers_ends_in_the_dead_letter_list() {
    let redis = Redis::start();
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.die")).await.unwrap();
    let dies = || Signature::new("hello.die");
    let sum = client
        .apply(chord([dies()], Signature::new("hello.add")))
        .await
        .unwrap();
    let settings = [
        (
            "ORCHESTRA_BROKER_TRANSPORT_OPTIONS",
            "{visibility_timeout = 1, max_deliveries = 2}",
        ),
        ("ORCHESTRA_TASK_ACKS_LATE", "true"),
    ];
    let mut ends: HashMap<bool, u32> = HashMap::new();
    // The last one lives until it has told who waits.
    let mut last = None;
    for _ in 0..10 {
        let worker = last.insert(Worker::spawn("hello_task", &redis, &[], &settings));
        let end = std::time::Instant::now() + Duration::from_secs(8);
        while worker.process.is_running() && redis.length("LLEN", "celery.dead") < 2 && std::time::Instant::now() < end
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        *ends.entry(worker.process.is_running()).or_default() += 1;
        if redis.length("LLEN", "celery.dead") == 2 {
            break;
        }
    }
    assert_eq!(redis.length("LLEN", "celery.dead"), 2, "{ends:?}");
    assert_eq!(redis.length("HLEN", "unacked"), 0);
    let dead: Vec<String> = redis.command(&["LRANGE", "celery.dead", "0", "-1"]);
    assert!(dead[0].contains("deliver"), "{}", dead[0]);
    // Whoever waits for it is told.
    let failure = pending.get::<serde_json::Value>(LONG).await.unwrap_err().to_string();
    assert!(
        failure.contains("WorkerLostError") && failure.contains("delivered 2 times"),
        "{failure}"
    );
    // So is whoever waits for a chord of which it was a part.
    let failure = sum.get::<serde_json::Value>(LONG).await.unwrap_err().to_string();
    assert!(
        failure.contains("ChordError") && failure.contains("delivered 2 times"),
        "{failure}"
    );
}

/// Also one that stayed with the worker that ran the step before it, which is done with by then and does not run again.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_kills_its_workers_ends_in_the_dead_letter_list() {
    let redis = Redis::start();
    let client = redis.client().await;
    let add = Signature::new("hello.add").arg(1);
    let steps = [add.clone(), add, Signature::new("hello.die").immutable()];
    let applied = client.apply(chain(steps)).await.unwrap();
    let settings = [
        (
            "ORCHESTRA_BROKER_TRANSPORT_OPTIONS",
            // What the dead held is restored when it is said below, and what the living hold is not.
            "{visibility_timeout = 20, max_deliveries = 2}",
        ),
        ("ORCHESTRA_TASK_ACKS_LATE", "true"),
    ];
    let mut workers = Vec::new();
    while workers.len() < 10 && redis.length("LLEN", "celery.dead") == 0 {
        workers.push(Worker::spawn("hello_task", &redis, &[], &settings));
        let worker = workers.last_mut().unwrap();
        let end = std::time::Instant::now() + LONG;
        while worker.process.is_running() && redis.length("LLEN", "celery.dead") == 0 && std::time::Instant::now() < end
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if !worker.process.is_running() {
            redis.end_leases();
        }
    }
    let failure = applied.get::<serde_json::Value>(LONG).await.unwrap_err().to_string();
    assert!(failure.contains("WorkerLostError"), "{failure}");
    assert_eq!(redis.length("LLEN", "celery.dead") + redis.length("HLEN", "unacked"), 1);
    let logs: String = workers.iter().map(Worker::log).collect();
    assert_eq!(
        logs.matches("Task hello.add[").count(),
        2 * 2,
        "received and succeeded: {logs}"
    );
}

/// A Python worker with a short visibility timeout that sweeps each second.
const PYTHON_APP: &str = "
import os, time
from celery import Celery
url = os.environ['URL']
app = Celery('app', broker=url, backend=url)
app.conf.update(
    broker_transport_options={'visibility_timeout': int(os.environ['TIMEOUT']), 'unacked_restore_interval': 1, 'unacked_restore_throttle': 1},
    task_acks_late=True, worker_prefetch_multiplier=1,
)
@app.task(name='hello.sleep', bind=True)
def sleep(self, seconds):
    if not self.request.delivery_info.get('redelivered'):
        time.sleep(seconds)
    return 'from Python'
";

fn python_worker(redis: &Redis, folder: &Folder) -> Process {
    python_worker_with(redis, folder, "2")
}

fn python_worker_with(redis: &Redis, folder: &Folder, visibility_timeout: &str) -> Process {
    folder.write("app.py", PYTHON_APP);
    let child = std::process::Command::new(python())
        .args([
            "-m", "celery", "-A", "app", "worker", "-P", "solo", "-c", "1", "-l", "WARNING",
        ])
        .current_dir(folder.path())
        .env("URL", redis.url())
        .env("TIMEOUT", visibility_timeout)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    Process::from(child.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_worker_restores_what_we_held() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let client = redis.client().await;
    let mut ours = Worker::start_with(&redis, &["-c", "1"], SOON);
    let pending = client.send(Call::new("hello.sleep").arg(600)).await.unwrap();
    until("we hold it", async || redis.length("HLEN", "unacked") == 1).await;
    ours.process.kill();
    let _theirs = python_worker(&redis, &folder);
    assert_eq!(pending.get::<String>(LONG).await.unwrap(), "from Python");
    until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_restore_what_a_python_worker_held() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let client = redis.client().await;
    let mut theirs = python_worker(&redis, &folder);
    let pending = client.send(Call::new("hello.sleep").arg(2)).await.unwrap();
    until("Python holds it", async || redis.length("HLEN", "unacked") == 1).await;
    theirs.kill();
    let ours = Worker::start_with(&redis, &["-c", "1"], SOON);
    assert_eq!(pending.get::<String>(LONG).await.unwrap(), "rested", "{}", ours.log());
    assert!(ours.log().contains("restored 1 message"), "{}", ours.log());
    until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
}

/// While both work, neither takes what the other still holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_python_worker_leaves_alone_what_we_keep_fresh() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let client = redis.client().await;
    let ours = Worker::start_with(&redis, &["-c", "1", "-n", "ours@here"], SURE);
    let pending = client.send(Call::new("hello.sleep").arg(13)).await.unwrap();
    ours.wait_for_log("hello.sleep");
    let _theirs = python_worker_with(&redis, &folder, "4");
    // Two of its visibility time-outs, and the time that it takes to start.
    assert_eq!(pending.get::<String>(LONG).await.unwrap(), "rested", "{}", ours.log());
    assert!(!ours.log().contains("held for this worker no more"), "{}", ours.log());
}

/// What cut one worker off cut off others as well: when they are back, nobody takes what another is about to renew.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_later_keeps_what_it_held() {
    let redis = Redis::start();
    let settings = [
        // The longest grace: a busy machine may take some seconds for what is below.
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 20}"),
        ("ORCHESTRA_TASK_ACKS_LATE", "true"),
    ];
    let (late, soon) = (Proxy::start(redis.port).await, Proxy::start(redis.port).await);
    let start = |proxy: &Proxy, name| {
        let worker = Worker::spawn_at("hello_task", &proxy.url(), &["-c", "1", "-n", name], &settings);
        worker.wait_for_log("orchestra-worker: ready");
        worker
    };
    let one = start(&late, "late@here");
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.sleep").arg(12)).await.unwrap();
    one.wait_for_log("hello.sleep");
    let two = start(&soon, "soon@here");
    for proxy in [&late, &soon] {
        proxy.refuse(true);
        proxy.close();
    }
    for worker in [&one, &two] {
        worker.wait_for_log("lost the connection");
    }
    // As if that had taken longer than a lease.
    redis.end_leases();
    soon.refuse(false);
    two.wait_for_log("again after");
    tokio::time::sleep(Duration::from_millis(600)).await;
    late.refuse(false);
    assert_eq!(pending.get::<String>(LONG).await.unwrap(), "rested", "{}", one.log());
    assert!(!one.log().contains("held for this worker no more"), "{}", one.log());
    assert!(!two.log().contains("restored"), "{}", two.log());
}

/// A member of a chord that was acknowledged before it ran has ended, and its worker dies as it is about to send the
/// body: the body is sent by another, and no member runs again.
#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_chord_with_early_acks_is_not_lost() {
    let (redis, results) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(results.port).await;
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 1}")];
    let start = |results: &str| {
        let worker = Worker::spawn("workflow", &redis, &["-c", "2", "--result-backend", results], &settings);
        worker.wait_for_log("orchestra-worker: ready");
        worker
    };
    for fails in [false, true] {
        let mut first = start(&proxy.url());
        let client = Client::connect_to(&redis.url(), Some(&results.url())).await.unwrap();
        let member = |n: u64| Signature::new("flow.add").arg(n).arg(1);
        let other = if fails {
            Signature::new("flow.fail").arg("why")
        } else {
            member(2)
        };
        // Every answer of the results is late: there is time to die between the count and the body.
        proxy.delay(Duration::from_millis(500));
        let applied = client
            .apply(chord([member(1), other], Signature::new("flow.sum")))
            .await
            .unwrap();
        until("somebody is about to end it", async || {
            let keys: Vec<String> = results.command(&["KEYS", "celery-taskset-meta-*.c"]);
            !keys.is_empty()
        })
        .await;
        first.process.kill();
        proxy.delay(Duration::ZERO);
        let second = start(&results.url());
        let ended = applied.get::<u64>(LONG).await;
        match fails {
            false => assert_eq!(ended.unwrap(), 5, "{}", second.log()),
            true => assert!(ended.unwrap_err().to_string().contains("why"), "{}", second.log()),
        }
        assert!(second.log().contains("orchestra.count"), "{}", second.log());
        let again = |name: &str| second.log().contains(&format!("Task {name}["));
        assert!(!again("flow.add") && !again("flow.fail"), "{}", second.log());
        until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
        results.command::<()>(&["FLUSHALL"]);
    }
}

/// Somebody puts something else where a queue was: a worker that stops gives nothing away that nobody would have.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_given_back_stays_held() {
    let redis = Redis::start();
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 1}")];
    let mut worker = Worker::start_with(&redis, &["-c", "1"], &settings);
    let client = redis.client().await;
    let mut pending = client
        .send_many(&[Call::new("hello.nap").arg(3000).arg(0)])
        .await
        .unwrap();
    worker.wait_for_log("hello.nap");
    let calls: Vec<Call> = (1..4).map(|n| Call::new("hello.nap").arg(0).arg(n)).collect();
    pending.extend(client.send_many(&calls).await.unwrap());
    until("they are reserved", async || redis.length("HLEN", "unacked") == 3).await;
    redis.command::<String>(&["SET", "celery", "x"]);
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
    assert!(worker.log().contains("WRONGTYPE"), "{}", worker.log());
    assert_eq!(redis.length("HLEN", "unacked"), 3, "{}", worker.log());
    redis.command::<i64>(&["DEL", "celery"]);
    let second = Worker::start_with(&redis, &["-c", "1"], &settings);
    for (n, pending) in pending.iter().enumerate() {
        assert_eq!(pending.get::<usize>(LONG).await.unwrap(), n, "{}", second.log());
    }
}

/// With late acks a message is done with when what hangs on its failure is: a part of a chord that never ran is counted
/// first, be it the end of a chain or a task that nobody knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_chord_fails_whose_header_failed_as_its_worker_died() {
    let (redis, results) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(results.port).await;
    let start = |results: &str| {
        let worker = Worker::spawn("workflow", &redis, &["-c", "2", "--result-backend", results], SOON);
        worker.wait_for_log("orchestra-worker: ready");
        worker
    };
    let late = Duration::from_millis(800);
    let chain_that_fails =
        || orchestra::canvas::chain([Signature::new("flow.fail").arg("why"), Signature::new("flow.note")]);
    for (header, why) in [
        (chain_that_fails(), "why"),
        (Signature::new("flow.nobody.knows"), "flow.nobody.knows"),
    ] {
        let mut first = start(&proxy.url());
        let client = Client::connect_to(&redis.url(), Some(&results.url())).await.unwrap();
        proxy.delay(late);
        let applied = client.apply(chord([header], Signature::new("flow.sum"))).await.unwrap();
        let found = |pattern: &str| -> usize { results.command::<Vec<String>>(&["KEYS", pattern]).len() };
        until("the failure is stored", async || found("celery-task-meta-*") > 0).await;
        // The worker hears of that after one such time; what it asks then does not arrive.
        proxy.hold();
        tokio::time::sleep(late * 2).await;
        assert_eq!(
            found("celery-taskset-meta-*.d"),
            0,
            "it was counted: the test proves nothing"
        );
        first.process.kill();
        proxy.close();
        proxy.release();
        proxy.delay(Duration::ZERO);
        let second = start(&results.url());
        let ended = applied.get::<u64>(LONG).await;
        let text = ended.expect_err("the body ran").to_string();
        assert!(
            text.contains("ChordError") && text.contains(why),
            "{text}: {}",
            second.log()
        );
        until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
        results.command::<()>(&["FLUSHALL"]);
    }
}

/// A slow network is no broken one: what a dead worker held comes back, however much it is, and no connection is given
/// up.
#[tokio::test(flavor = "multi_thread")]
async fn ten_large_messages_come_back_over_a_slow_network() {
    let redis = Redis::start();
    let pad = "x".repeat(1_000_000);
    for n in 0..10 {
        let held = format!(
            r#"[{{"body": "W1sxXSwge30sIG51bGxd", "content-type": "application/json", "headers": {{"task": "hello.add", "id": "large-{n}", "pad": "{pad}"}}, "properties": {{"body_encoding": "base64"}}}},"","celery"]"#
        );
        redis.command::<i64>(&["HSET", "unacked", &format!("dead.{n}"), &held]);
        redis.command::<i64>(&["ZADD", "unacked_index", "0", &format!("dead.{n}")]);
    }
    let proxy = Proxy::start(redis.port).await;
    proxy.limit(1_000_000);
    let settings = [
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 30}"),
        ("ORCHESTRA_WORKER_PREFETCH_MULTIPLIER", "1"),
    ];
    let worker = Worker::spawn_at("hello_task", &proxy.url(), &["-c", "1"], &settings);
    until("all have run", async || {
        (0..10).all(|n| redis.length("EXISTS", &format!("celery-task-meta-large-{n}")) == 1)
    })
    .await;
    assert_eq!(redis.length("HLEN", "unacked"), 0);
    assert!(!worker.log().contains("lost the connection"), "{}", worker.log());
    assert_eq!(worker.log().matches("hello.add[large-").count(), 20, "{}", worker.log());
}
