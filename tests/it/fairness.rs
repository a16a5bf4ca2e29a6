//! Tenants that share an ordinary queue take turns.

use orchestra::client::{Call, Pending};

use crate::support::{LONG, Redis, Sim, Worker, until};

fn nap(tenant: &str, ms: u64, n: u64) -> Call {
    Call::new("hello.nap").arg(ms).arg(n).header("tenant", tenant)
}

/// What a worker says of its tasks, in order: which one, and for how many seconds it ran.
fn ended(worker: &Worker) -> Vec<(String, f64)> {
    let log = worker.log();
    let lines = log.lines().filter_map(|line| {
        let (task, seconds) = line.split_once("] succeeded in ")?;
        let (_, id) = task.rsplit_once('[')?;
        Some((id.to_owned(), seconds.split_once('s')?.0.parse().unwrap()))
    });
    lines.collect()
}

fn has(pending: &[Pending], id: &str) -> bool {
    pending.iter().any(|one| one.id() == id)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_task_of_a_tenant_does_not_wait_for_the_thousand_of_another() {
    let redis = Redis::start();
    let client = redis.client().await;
    let calls: Vec<Call> = (0..1000).map(|n| nap("large", 10, n)).collect();
    for fair in [true, false] {
        let settings: &[(&str, &str)] = match fair {
            true => &[
                ("ORCHESTRA_WORKER_FAIR_BY", "['header:tenant']"),
                ("ORCHESTRA_WORKER_FAIR_LOOKAHEAD", "1100"),
            ],
            false => &[],
        };
        client.send_many(&calls).await.unwrap();
        let mut worker = Worker::start_with(&redis, &["-c", "1"], settings);
        until("some ran", async || ended(&worker).len() >= 5).await;
        let small = client.send(nap("small", 10, 7)).await.unwrap();
        if fair {
            assert_eq!(small.get::<u64>(LONG).await.unwrap(), 7);
            worker.wait_for_log(&format!("[{}] succeeded", small.id()));
            let log = worker.log();
            let (_, after) = log.split_once(&format!("[{}] received", small.id())).unwrap();
            let (between, _) = after.split_once(&format!("[{}] succeeded", small.id())).unwrap();
            let before = between.matches("succeeded in").count();
            assert!(before <= 3, "{before} of the large tenant went before");
        } else {
            // Without, it does: the queue is first come, first served.
            until("thirty more ran", async || ended(&worker).len() >= 35).await;
            assert!(!worker.log().contains(small.id()), "it is not even taken");
        }
        worker.process.kill();
        redis.command::<()>(&["FLUSHALL"]);
    }
}

/// What counts is what tasks use, not how many they are.
#[tokio::test(flavor = "multi_thread")]
async fn turns_go_by_the_seconds_that_were_used() {
    let redis = Redis::start();
    let client = redis.client().await;
    let mut calls: Vec<Call> = (0..10).map(|n| nap("long", 200, n)).collect();
    calls.extend((0..200).map(|n| nap("short", 5, n)));
    let pending = client.send_many(&calls).await.unwrap();
    let (long, short) = pending.split_at(10);
    let settings = [("ORCHESTRA_WORKER_FAIR_BY", "['header:tenant']")];
    let worker = Worker::start_with(&redis, &["-c", "1"], &settings);
    let count = |of: &[Pending]| ended(&worker).iter().filter(|(id, _)| has(of, id)).count();
    until("three long ones ended", async || count(long) >= 3).await;
    let seconds = |of: &[Pending]| -> f64 {
        let ended = ended(&worker).into_iter().filter(|(id, _)| has(of, id));
        ended.map(|(_, seconds)| seconds).sum()
    };
    let (of_long, of_short) = (seconds(long), seconds(short));
    // Two long ones are what they may be apart, when one of them has just ended.
    let apart = 2.0 * of_long / 3.0;
    assert!(
        (of_long - of_short).abs() <= apart && count(short) > count(long),
        "{of_long} s of the long ones, {of_short} s of the short ones"
    );
}

/// A second worker that comes when the first holds everything gets its part.
#[tokio::test(flavor = "multi_thread")]
async fn workers_divide_what_they_look_ahead() {
    let redis = Redis::start();
    let client = redis.client().await;
    let settings = [
        ("ORCHESTRA_WORKER_FAIR_BY", "['header:tenant']"),
        ("ORCHESTRA_WORKER_FAIR_LOOKAHEAD", "100"),
    ];
    let calls: Vec<Call> = (0..100).map(|n| nap("one", 100, n)).collect();
    let pending = client.send_many(&calls).await.unwrap();
    let one = Worker::start_with(&redis, &["-c", "1", "-n", "one@h"], &settings);
    until("it holds all", async || redis.length("LLEN", "celery") == 0).await;
    let two = Worker::start_with(&redis, &["-c", "1", "-n", "two@h"], &settings);
    for one in &pending {
        one.get::<u64>(LONG).await.unwrap();
    }
    let (of_one, of_two) = (ended(&one).len(), ended(&two).len());
    assert!(of_one + of_two == 100 && of_two >= 10, "{of_one} and {of_two}");
}

/// Tokens of models count where that is wanted.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_count_where_that_is_wanted() {
    let (redis, sim) = (Redis::start(), Sim::start_with(&["--token-delay=0ms"]));
    let client = redis.client().await;
    let settings = [
        ("ORCHESTRA_WORKER_FAIR_BY", "['header:tenant']"),
        ("ORCHESTRA_WORKER_FAIR_UNIT", "tokens"),
    ];
    let ask = |tenant: &str, words: usize| {
        let prompt = vec!["word"; words].join(" ");
        Call::new("orchestra.generate")
            .arg("echo")
            .arg(prompt)
            .header("tenant", tenant)
    };
    // Who gets known answers: no model says them again.
    let known = |_| ask("known", 30).kwarg("cache", true);
    let mut calls: Vec<Call> = (0..10).map(|_| ask("wordy", 30)).collect();
    calls.extend((0..60).map(|_| ask("terse", 3)));
    let pending = client.send_many(&calls).await.unwrap();
    let worker = Worker::start_with(&redis, &["-c", "1", "--ollama-host", &sim.url], &settings);
    until("forty ended", async || ended(&worker).len() >= 40).await;
    let wordy = pending.split_at(10).0;
    let of_wordy = ended(&worker).iter().take(40).filter(|(id, _)| has(wordy, id)).count();
    assert!(
        (3..=5).contains(&of_wordy),
        "{of_wordy} of 40 are wordy, whose tokens are ten times as many"
    );
    drop(worker);
    redis.command::<()>(&["FLUSHALL"]);

    let mut calls: Vec<Call> = (0..10).map(known).collect();
    calls.extend((0..60).map(|_| ask("terse", 3)));
    let pending = client.send_many(&calls).await.unwrap();
    let worker = Worker::start_with(&redis, &["-c", "1", "--ollama-host", &sim.url], &settings);
    until("forty ended", async || ended(&worker).len() >= 40).await;
    let known = pending.split_at(10).0;
    let of_known = ended(&worker).iter().take(40).filter(|(id, _)| has(known, id)).count();
    assert_eq!(of_known, 10, "only the first of them cost tokens");
}
