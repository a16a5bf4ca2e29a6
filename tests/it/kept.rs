//! What a worker has begun is nobody else's, also while it cannot say that it is done with it.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use orchestra::canvas::chain;
use orchestra::client::{Call, Client, Signature};

use crate::support::{LONG, Redis, Worker, get, until};

/// Seconds until what a dead worker held is given to others: more than a busy machine holds up a worker.
const LEASE: &str = "{visibility_timeout = 4}";
/// Longer than a lease, and than what a worker gives others beyond it.
const AWAY: Duration = Duration::from_secs(13);

fn worker(redis: &Redis, results: &Redis, ledger: &Redis, late: bool, more: &[&str]) -> Worker {
    let (results, ledger) = (results.url(), ledger.url());
    let environment = [
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", LEASE),
        ("FAULTS_LEDGER", ledger.as_str()),
        ("FAULTS_ACKS_LATE", if late { "1" } else { "0" }),
    ];
    let arguments = [&["--result-backend", &results, "-c", "4"], more].concat();
    let worker = Worker::spawn_process(
        "conformance_worker",
        &["faults"],
        &redis.url(),
        &arguments,
        &environment,
    );
    worker.wait_for_log("ready");
    worker
}

/// How often each task began.
fn starts(ledger: &Redis) -> BTreeMap<String, usize> {
    let notes: Vec<String> = ledger.command(&["LRANGE", "faults:start", "0", "-1"]);
    let mut starts = BTreeMap::new();
    for note in notes {
        let note: serde_json::Value = serde_json::from_str(&note).unwrap();
        *starts.entry(note["n"].to_string()).or_default() += 1;
    }
    starts
}

/// All eight ran once, and nothing is left of them.
async fn each_ran_once(redis: &Redis, ledger: &Redis, worker: &Worker, when: &str) {
    assert_eq!(starts(ledger), once(8), "{when}\n{}", worker.log());
    until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
    assert_eq!(redis.length("EXISTS", "celery.dead"), 0);
}

fn once(count: usize) -> BTreeMap<String, usize> {
    (0..count).map(|n| (n.to_string(), 1)).collect()
}

/// Redis has no memory for longer than a lease: nothing can be stored, nor acknowledged behind it.
async fn without_memory(late: bool) {
    let (redis, ledger) = (Redis::start(), Redis::start());
    let client = redis.client().await;
    let calls: Vec<Call> = (0..8)
        .map(|n| Call::new("faults.record").arg(n).arg(if n == 7 { 6000 } else { 300 }))
        .collect();
    let pending = client.send_many(&calls).await.unwrap();
    let worker = worker(&redis, &redis, &ledger, late, &[]);
    until("some run", async || !starts(&ledger).is_empty()).await;
    let _: () = redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    tokio::time::sleep(AWAY).await;
    let _: () = redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    for pending in &pending {
        let _: serde_json::Value = pending.get(LONG).await.unwrap();
    }
    each_ran_once(&redis, &ledger, &worker, &format!("without memory, late acks: {late}")).await;
}

/// The server of results is away for longer than a lease: acks wait for it.
async fn without_the_server_of_results(late: bool) {
    let (redis, mut results, ledger) = (Redis::start(), Redis::start(), Redis::start());
    let client = Client::connect_to(&redis.url(), Some(&results.url())).await.unwrap();
    let worker = worker(&redis, &results, &ledger, late, &[]);
    results.stop();
    let step = |n: i32| Signature::new("faults.record").arg(n).arg(50).immutable();
    client.apply(chain([step(0), step(1), step(2)])).await.unwrap();
    let calls: Vec<Call> = (3..8).map(|n| Call::new("faults.record").arg(n).arg(50)).collect();
    let pending = client.send_many(&calls).await.unwrap();
    tokio::time::sleep(AWAY).await;
    results.start_again();
    for pending in &pending {
        let _: serde_json::Value = pending.get(LONG).await.unwrap();
    }
    until("the chain has ended", async || starts(&ledger).len() == 8).await;
    each_ran_once(&redis, &ledger, &worker, &format!("without results, late acks: {late}")).await;
}

/// All four at once: most of it is waiting.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_for_longer_than_a_lease_does_not_run_again() {
    let runtime = tokio::runtime::Handle::current();
    std::thread::scope(|scope| {
        for late in [false, true] {
            let runtime = &runtime;
            scope.spawn(move || runtime.block_on(without_memory(late)));
            scope.spawn(move || runtime.block_on(without_the_server_of_results(late)));
        }
    });
}

/// An early ack leaves as the task starts, and does not wait for its result: one that ends its process shall not run
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_ack_leaves_before_the_task_ends() {
    const TASKS: usize = 12;
    let redis = Redis::start();
    let client = redis.client().await;
    let _worker = worker(&redis, &redis, &redis, false, &[]);
    let mut monitor = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    monitor
        .send_packed_command(&redis::cmd("MONITOR").get_packed_command())
        .unwrap();
    // One after the other, and each long enough that an ack which leaves as it starts is there first.
    for n in 0..TASKS {
        let call = Call::new("faults.record").arg(n).arg(300);
        assert_eq!(client.send(call).await.unwrap().get::<usize>(LONG).await.unwrap(), n);
    }
    until("all is acknowledged", async || redis.length("HLEN", "unacked") == 0).await;
    let _: () = redis.command(&["ECHO", "the end"]);
    let (mut acks, mut ends) = (0, 0);
    loop {
        let line: String = redis::from_redis_value(monitor.recv_response().unwrap()).unwrap();
        if line.contains("the end") {
            break;
        } else if let Some((_, tags)) = line.split_once(r#""HDEL" "unacked" "#) {
            acks += tags.split(' ').count();
        } else if line.contains(r#""faults:done""#) {
            ends += 1;
            assert!(acks >= ends, "the ack of task {ends} waited for its end");
        }
    }
    assert_eq!((acks, ends), (TASKS, TASKS));
}

/// Ends of quick tasks wait for the worker's loop; there are never more of them than places, however fast messages
/// come.
#[tokio::test(flavor = "multi_thread")]
async fn never_more_tasks_run_than_there_are_places() {
    let redis = Redis::start();
    let client = redis.client().await;
    let sent = client
        .send_all((0..20_000).map(|n| Call::new("hello.add").arg(n)))
        .await
        .unwrap();
    let address = format!("127.0.0.1:{}", crate::support::free_port());
    let _worker = Worker::start(&redis, &["-c", "8", "--metrics-addr", &address]);
    let mut seen = HashSet::new();
    until("all are done", async || {
        if let Ok(answer) = get(&format!("http://{address}/metrics")).await
            && let Ok(text) = answer.text().await
        {
            let running = text
                .lines()
                .find_map(|line| line.strip_prefix("orchestra_tasks_running "));
            seen.extend(running.map(|running| running.parse::<u64>().unwrap()));
        }
        redis.length("LLEN", "celery") == 0 && redis.length("HLEN", "unacked") == 0
    })
    .await;
    assert_eq!(sent, 20_000);
    assert!(
        seen.iter().any(|running| *running > 0) && seen.iter().all(|running| *running <= 8),
        "{seen:?}"
    );
}
