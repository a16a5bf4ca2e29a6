//! Whose a held message is: of who holds it as long as he lives, whatever happens to Redis, and of the queue
//! afterwards.

use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use orchestra::client::Call;

use crate::proxy::Proxy;
use crate::support::{LONG, Redis, Worker, until};

/// Holds a message as a worker did that is gone.
fn hold(redis: &Redis, tag: &str, id: &str) {
    let held = format!(
        r#"[{{"body": "W1sxXSwge30sIG51bGxd", "content-type": "application/json", "headers": {{"task": "hello.add", "id": "{id}"}}, "properties": {{"body_encoding": "base64"}}}},"","celery"]"#
    );
    redis.command::<i64>(&["HSET", "unacked", tag, &held]);
}

fn has_run(redis: &Redis, id: &str) -> bool {
    redis.length("EXISTS", &format!("celery-task-meta-{id}")) == 1
}

/// A lease that is refused for good is a task that runs twice: whoever reads the log is told, once.
#[tokio::test(flavor = "multi_thread")]
async fn leases_that_redis_refuses_to_renew_are_spoken_of() {
    let redis = Redis::start();
    let settings = [
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 3}"),
        ("ORCHESTRA_TASK_ACKS_LATE", "true"),
    ];
    let worker = Worker::start_with(&redis, &["-c", "1"], &settings);
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.sleep").arg(600)).await.unwrap();
    worker.wait_for_log(pending.id());
    redis.command::<()>(&["ACL", "SETUSER", "default", "-zscore"]);
    worker.wait_for_log("leases cannot be renewed");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(worker.log().matches("leases cannot be renewed").count(), 1);
}

/// A worker that held something, and has had nothing to hold for long, takes what others left behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_holds_nothing_any_more_restores_what_others_held() {
    let redis = Redis::start();
    let settings = [
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 3}"),
        ("ORCHESTRA_TASK_ACKS_LATE", "true"),
    ];
    let worker = Worker::start_with(&redis, &["-c", "1"], &settings);
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.sleep").arg(3)).await.unwrap();
    pending.get::<String>(LONG).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    hold(&redis, "left", "left");
    redis.end_leases();
    until("it is run", async || has_run(&redis, "left")).await;
    drop(worker);
}

/// Who was cut off renews when he is back; a worker that was started meanwhile, as supervisors do, takes nothing
/// before.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_as_redis_comes_back_takes_nothing_that_others_run() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let settings = [
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 60}"),
        ("ORCHESTRA_TASK_ACKS_LATE", "true"),
    ];
    let holder = Worker::spawn_at("hello_task", &proxy.url(), &["-c", "1", "-n", "holder@here"], &settings);
    holder.wait_for_log("orchestra-worker: ready");
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.sleep").arg(13)).await.unwrap();
    holder.wait_for_log(pending.id());
    proxy.refuse(true);
    proxy.close();
    redis.stop();
    redis.start_again();
    // As if that had taken longer than a lease. With one of a minute the others get the longest grace: the new worker
    // may take its time to start, and the old one to come back.
    redis.end_leases();
    let fresh = Worker::start_with(&redis, &["-c", "1", "-n", "fresh@here"], &settings);
    // Longer than the shortest grace.
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.refuse(false);
    let client = redis.client().await;
    let pending = client.result(pending.id());
    assert_eq!(pending.get::<String>(LONG).await.unwrap(), "rested", "{}", holder.log());
    assert!(
        !holder.log().contains("held for this worker no more"),
        "{}",
        holder.log()
    );
    assert!(!fresh.log().contains("restored"), "{}", fresh.log());
    drop((holder, fresh));
    // Beside a Redis that has been up for a while nobody waits for those that are to come back.
    let uptime = || {
        let info: String = redis.command(&["INFO", "server"]);
        let found = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
        found.unwrap().parse::<u64>().unwrap()
    };
    until("Redis has been up for longer than the grace", async || uptime() >= 6).await;
    hold(&redis, "dead.1", "left");
    redis.command::<i64>(&["ZADD", "unacked_index", "0", "dead.1"]);
    let _third = Worker::start(&redis, &["-c", "1"]);
    let began = Instant::now();
    until("it has run", async || has_run(&redis, "left")).await;
    // The longest grace is six seconds, the shortest one.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// A worker that stood still for longer than its lease (SIGSTOP, a machine that was paused) does not take what it runs
/// for what somebody left who is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stood_still_does_not_run_its_own_tasks_again() {
    let redis = Redis::start();
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 2}")];
    let worker = Worker::start_with(&redis, &["-c", "2"], &settings);
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.sleep").arg(9)).await.unwrap();
    worker.wait_for_log(&format!("{}] received", pending.id()));
    for _ in 0..3 {
        worker.process.signal(Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(2600)).await;
        worker.process.signal(Signal::SIGCONT);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(pending.get::<String>(LONG).await.unwrap(), "rested", "{}", worker.log());
    let received = worker.log().matches(&format!("{}] received", pending.id())).count();
    assert_eq!(
        (received, worker.log().contains("restored")),
        (1, false),
        "{}",
        worker.log()
    );
}

/// What waited in it for its ETA another worker has by now, and runs it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stood_still_starts_nothing_that_another_has() {
    let (redis, ledger) = (Redis::start(), Redis::start());
    let (ledger_url, options) = (ledger.url(), "{visibility_timeout = 2}");
    let settings = [
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", options),
        ("FAULTS_LEDGER", &*ledger_url),
    ];
    let start = || {
        Worker::spawn_process(
            "conformance_worker",
            &["faults", "-q"],
            &redis.url(),
            &["-c", "1"],
            &settings,
        )
    };
    let one = start();
    one.wait_for_log("orchestra-worker: ready");
    let client = redis.client().await;
    for round in 0..3 {
        let call = Call::new("faults.record").arg(round).arg(2500);
        let pending = client.send(call.countdown(Duration::from_secs(2))).await.unwrap();
        one.wait_for_log(&format!("{}] received", pending.id()));
        one.process.signal(Signal::SIGSTOP);
        let mut other = start();
        let starts = || ledger.length("LLEN", "faults:start");
        until("the other runs it", async || starts() > round).await;
        one.process.signal(Signal::SIGCONT);
        assert_eq!(pending.get::<usize>(LONG).await.unwrap(), round);
        // The one that stood still goes on.
        assert_eq!(other.stop(), Some(0));
        assert_eq!(starts(), round + 1, "{}", one.log());
    }
    let next = client.send(Call::new("faults.record").arg(7).arg(1)).await.unwrap();
    assert_eq!(next.get::<usize>(LONG).await.unwrap(), 7, "{}", one.log());
}

/// Held, and in no index: by a Python worker that died as it took it, or because the server evicted the index. Nobody
/// is told of it by looking for what is overdue.
#[tokio::test(flavor = "multi_thread")]
async fn held_messages_that_stand_in_no_index_are_found() {
    let redis = Redis::start();
    let settings = [(
        "ORCHESTRA_BROKER_TRANSPORT_OPTIONS",
        "{visibility_timeout = 60, lease = 4}",
    )];
    let one = Worker::start_with(&redis, &["-c", "1"], &settings);
    let client = redis.client().await;
    // Longer than a lease, and so is a lease than what a busy machine holds up a worker for.
    let pending = client.send(Call::new("hello.sleep").arg(11)).await.unwrap();
    one.wait_for_log(pending.id());
    redis.command::<i64>(&["DEL", "unacked_index"]);
    // What a worker holds keeps its lease when the index goes.
    until("it has a place", async || redis.length("ZCARD", "unacked_index") == 1).await;
    for n in 0..250 {
        hold(&redis, &format!("stray.{n}"), &format!("stray-{n}"));
    }
    // An index of a message that is not there hides none.
    redis.command::<i64>(&["ZADD", "unacked_index", "0", "gone.1"]);
    let two = Worker::start_with(&redis, &["-c", "1"], &settings);
    let place = |n: i32| redis.command::<Option<f64>>(&["ZSCORE", "unacked_index", &format!("stray.{n}")]);
    until("they have a place", async || (0..250).all(|n| place(n).is_some())).await;
    assert!(two.log().contains("stood in no index"), "{}", two.log());
    assert_eq!(pending.get::<String>(LONG).await.unwrap(), "rested", "{}", one.log());
    assert!(!one.log().contains("held for this worker no more"), "{}", one.log());
    // They come back as what anybody held.
    let tags: Vec<String> = (0..3).map(|n| format!("stray.{n}")).collect();
    for tag in &tags {
        redis.command::<i64>(&["ZADD", "unacked_index", "0", tag]);
    }
    until("they have run", async || {
        (0..3).all(|n| has_run(&redis, &format!("stray-{n}")))
    })
    .await;
}

/// The answer that carries messages is lost, and the worker is stopped before it could ask again: they go back with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_claim_strands_nothing() {
    const SENT: usize = 5;
    let redis = Redis::start();
    // Who is told no news looks ten times a second: the answer that is lost is that of a look.
    let rules = [
        "ACL",
        "SETUSER",
        "worker",
        "on",
        ">PASSWORD",
        "~*",
        "&*",
        "+@all",
        "-client|tracking",
    ];
    redis.command::<()>(&rules);
    let proxy = Proxy::start(redis.port).await;
    let url = proxy.url().replace("redis://", "redis://worker:PASSWORD@");
    let mut worker = Worker::spawn_at("hello_task", &url, &["-c", "2"], &[]);
    worker.wait_for_log("orchestra-worker: ready");
    let client = redis.client().await;
    let calls: Vec<Call> = (0..SENT).map(|n| Call::new("hello.sleep").arg(n)).collect();
    // An answer that says that there is nothing may come first.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let outages = worker.log().matches("again after").count();
        proxy.refuse(true);
        proxy.cut();
        client.send_many(&calls).await.unwrap();
        let lost = Instant::now();
        while redis.length("HLEN", "unacked") == 0 && lost.elapsed() < Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if redis.length("HLEN", "unacked") > 0 {
            break;
        }
        redis.command::<i64>(&["DEL", "celery"]);
        proxy.refuse(false);
        until("it is connected again", async || {
            worker.log().matches("again after").count() > outages
        })
        .await;
    }
    // Those that were there when it looked.
    assert!(
        (1..=SENT).contains(&redis.length("HLEN", "unacked")),
        "{}",
        worker.log()
    );
    worker.process.signal(nix::sys::signal::Signal::SIGTERM);
    worker.wait_for_log("warm stop");
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.refuse(false);
    assert_eq!(worker.process.wait(), Some(0), "{}", worker.log());
    assert_eq!(redis.length("HLEN", "unacked"), 0, "{}", worker.log());
    assert_eq!(redis.length("LLEN", "celery"), SENT);
    assert!(!worker.log().contains("received"), "{}", worker.log());
}

/// More is due at one moment than is run within a lease: what has not been read again yet is ours all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_and_not_read_again_yet_is_not_taken_for_left_behind() {
    const LEASE: f64 = 6.0;
    let redis = Redis::start();
    let options = "{visibility_timeout = 60, lease = 6, max_deliveries = 1}";
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", options)];
    let _worker = Worker::start_with(&redis, &["-c", "1", "--prefetch-multiplier", "0"], &settings);
    let client = redis.client().await;
    // With so many beside it nothing is read again.
    let others = (0..8001).map(|_| Call::new("hello.sleep").arg(600));
    client.send_all(others).await.unwrap();
    until("they are held", async || redis.length("HLEN", "unacked") == 8001).await;
    let pause = Duration::from_secs(5);
    let due = SystemTime::now() + pause;
    let waiting = (0..50).map(|n| Call::new("hello.add").arg(n).countdown(pause));
    client.send_all(waiting).await.unwrap();
    let due = due.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    // A score is when the lease would have begun, were it as long as the visibility timeout.
    until(
        "all leases end later than those that it had while it waited",
        async || {
            let first: Vec<String> = redis.command(&["ZRANGE", "unacked_index", "0", "0", "WITHSCORES"]);
            first[1].parse::<f64>().unwrap() + 60.0 > due + LEASE + 0.5
        },
    )
    .await;
    assert_eq!(
        (redis.length("HLEN", "unacked"), redis.length("LLEN", "celery.dead")),
        (8051, 0)
    );
}
