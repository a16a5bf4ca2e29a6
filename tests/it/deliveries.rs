//! How often a message was delivered: counted when its worker or its process was gone, kept over everything else, and
//! bounded.

use std::time::Duration;

use nix::sys::signal::Signal;
use orchestra::canvas::chord;
use orchestra::client::{Call, Client, Pending, Signature};
use orchestra::wire::State;
use serde_json::Value;

use crate::support::{LONG, Redis, Worker, until};

fn start(redis: &Redis, transport: &str, settings: &[(&str, &str)]) -> Worker {
    let mut settings = settings.to_vec();
    settings.push(("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", transport));
    Worker::start_program("processes", redis, &["-c", "1"], &settings)
}

/// What the message that is held or waits says of its deliveries.
fn count(redis: &Redis) -> Option<u64> {
    let held: Vec<String> = redis.command(&["HVALS", "unacked"]);
    let waiting: Vec<String> = redis.command(&["LRANGE", "celery", "0", "-1"]);
    let envelope = held
        .iter()
        .map(|held| serde_json::from_str::<Value>(held).unwrap()[0].take())
        .chain(waiting.iter().map(|waiting| serde_json::from_str(waiting).unwrap()))
        .next()?;
    envelope["headers"]["x-orchestra-deliveries"].as_u64()
}

async fn runs(client: &Client, pending: &Pending, worker: &Worker) {
    worker.wait_for_log(pending.id());
    until("it runs", async || {
        let state = client.result(pending.id()).state().await.unwrap();
        matches!(state, State::Started)
    })
    .await;
}

/// A worker that is killed counts; one that stops at once, which gives back what it runs, keeps the count; and the task
/// is told.
#[tokio::test(flavor = "multi_thread")]
async fn the_count_of_deliveries_outlives_a_worker_that_gives_back() {
    let redis = Redis::start();
    let client = redis.client().await;
    // Whose lease ends is said below: a worker that a busy machine holds up for a second or two loses nothing.
    let start = || start(&redis, "{visibility_timeout = 20}", &[]);
    let mut one = start();
    let pending = client.send(Call::new("process.stubborn").arg(3)).await.unwrap();
    runs(&client, &pending, &one).await;
    assert_eq!(count(&redis), None);
    one.process.kill();
    redis.end_leases();
    let mut two = start();
    two.wait_for_log(pending.id());
    assert_eq!(count(&redis), Some(2), "{}", two.log());
    two.process.signal(Signal::SIGQUIT);
    assert_eq!(two.process.wait(), Some(1));
    assert_eq!(count(&redis), Some(2), "{}", two.log());
    // Nor does one that waits for its turn lose it, or is counted for that.
    let mut three = start();
    three.wait_for_log(pending.id());
    three.process.kill();
    redis.end_leases();
    let four = start();
    assert_eq!(pending.get::<u32>(LONG).await.unwrap(), 3, "{}", four.log());
}

/// It has come to its end, and its message is kept with the reason.
async fn is_given_up(redis: &Redis, pending: &Pending, class: &str, why: &str) {
    let failure = pending.get::<Value>(LONG).await.unwrap_err().to_string();
    assert!(failure.contains(class), "{failure}");
    until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
    assert_eq!(redis.length("LLEN", "celery"), 0);
    let dead: Vec<String> = redis.command(&["LRANGE", "celery.dead", "0", "-1"]);
    let (letter, message) = dead.first().expect("a dead letter").split_once('\n').unwrap();
    assert!(
        letter.contains("delivered 2 times without an end") && letter.contains(why),
        "{letter}"
    );
    let message: Value = serde_json::from_str(message).unwrap();
    assert_eq!(message["headers"]["id"], pending.id());
    assert_eq!(dead.len(), 1);
}

/// `task_reject_on_worker_lost` is no way to go on for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_kills_its_process_again_and_again_ends() {
    let redis = Redis::start();
    let client = redis.client().await;
    let settings = [("ORCHESTRA_TASK_REJECT_ON_WORKER_LOST", "true")];
    let worker = start(&redis, "{max_deliveries = 2}", &settings);
    let pending = client.send(Call::new("process.end").arg("abort")).await.unwrap();
    is_given_up(&redis, &pending, "WorkerLostError", "signal 6 (SIGABRT)").await;
    let received = format!("[{}] received", pending.id());
    assert_eq!(worker.log().matches(&received).count(), 2, "{}", worker.log());
    // A part of a chord is counted before its message becomes a letter.
    let member = || Signature::new("process.end").arg("abort");
    let body = Signature::new("process.pid").immutable();
    let sum = client
        .apply(chord([member(), Signature::new("process.pid")], body))
        .await
        .unwrap();
    let failure = sum.get::<Value>(LONG).await.unwrap_err().to_string();
    assert!(
        failure.contains("ChordError") && failure.contains("SIGABRT"),
        "{failure}"
    );
    until("it is a dead letter", async || redis.length("LLEN", "celery.dead") == 2).await;
    until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
}

/// Nor is a hard limit with `task_acks_on_timeout = false`.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_always_too_slow_ends() {
    let redis = Redis::start();
    let client = redis.client().await;
    let settings = [("ORCHESTRA_TASK_ACKS_ON_TIMEOUT", "false")];
    let worker = start(&redis, "{max_deliveries = 2}", &settings);
    let slow = Call::new("process.nap").arg(600).time_limit(Duration::from_secs(1));
    let pending = client.send(slow).await.unwrap();
    until("it is given up", async || redis.length("LLEN", "celery.dead") == 1).await;
    is_given_up(&redis, &pending, "TimeLimitExceeded", "hard time limit").await;
    let received = format!("[{}] received", pending.id());
    assert_eq!(worker.log().matches(&received).count(), 2, "{}", worker.log());
}
