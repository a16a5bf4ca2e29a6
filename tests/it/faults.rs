//! What the fault injection found: each test is a fault that once stopped a worker, or kept somebody waiting.

use std::time::Duration;

use orchestra::client::{Call, Client};
use serde_json::Value;

use crate::proxy::Proxy;
use crate::support::{LONG, Redis, Worker, until};

/// A server closes a connection that subscribes as soon as 32 MB of answers wait for it: a message beyond that must
/// come on another connection than remote control.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_what_a_subscriber_may_get_is_taken() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &["-c", "1"]);
    // Remote control is listened to from here on.
    until("the worker listens", async || {
        let channels: Vec<String> = redis.command(&["PUBSUB", "CHANNELS"]);
        channels.contains(&"/0.celery.pidbox".to_owned())
    })
    .await;
    let client = redis.client().await;
    let connections = || {
        let list: String = redis.command(&["CLIENT", "LIST"]);
        let ids = list
            .lines()
            .filter_map(|line| line.split(' ').next().map(str::to_owned));
        ids.collect::<std::collections::HashSet<String>>()
    };
    // Those that ask are gone when it is asked again.
    let (first, second) = (connections(), connections());
    let before: Vec<&String> = first.intersection(&second).collect();
    let huge = Call::new("hello.add").arg(1).kwarg("note", "x".repeat(33 << 20));
    let huge = client.send(huge).await.unwrap();
    // Our own connection may have been taken for dead behind so much.
    let good = loop {
        match client.send(Call::new("hello.add").arg(1)).await {
            Ok(good) => break good,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let patient = Duration::from_secs(120);
    assert_eq!(good.get::<i64>(patient).await.unwrap(), 1, "{}", worker.log());
    // An argument too many, as Python would say.
    let failure = huge.get::<Value>(patient).await.unwrap_err();
    assert!(failure.to_string().contains("TypeError"), "{failure}");
    // The connection it came on is followed by another, whose buffers are small.
    until("it is followed", async || {
        let now = connections();
        before.iter().any(|id| !now.contains(*id))
    })
    .await;
    let good = client.send(Call::new("hello.add").arg(2)).await.unwrap();
    assert_eq!(good.get::<i64>(patient).await.unwrap(), 2, "{}", worker.log());
    assert!(!worker.log().contains("lost the connection"), "{}", worker.log());
}

/// A connection that died without a word is found by its deadline, not by the operating system.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_found_within_seconds() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let worker = Worker::start_at(&proxy.url(), &["-c", "2"]);
    let client = redis.client().await;
    let before = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(before.get::<i64>(LONG).await.unwrap(), 1);
    // Both with nothing on the way and in the middle of a command: 4.2 s at most, and a moment to connect. An operating
    // system takes a quarter of an hour.
    for (n, pause) in [(2, 0), (3, 2500)] {
        proxy.silence();
        let began = std::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let after = client.send(Call::new("hello.add").arg(n)).await.unwrap();
        worker.wait_for_log(after.id());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        assert_eq!(after.get::<i64>(LONG).await.unwrap(), n, "{}", worker.log());
    }
    assert!(worker.log().contains("lost the connection"), "{}", worker.log());
}

/// A server that is busy for a while, as when it writes a large message to its file, is not taken for dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_for_a_while_keeps_its_connections() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &["-c", "2"]);
    let client = redis.client().await;
    let before = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(before.get::<i64>(LONG).await.unwrap(), 1);
    let losses = || worker.log().matches("lost the connection").count();
    // It is taken for dead after 1.8 s. A busy machine may make a pause as long as that: such a one shows nothing.
    let mut shown = false;
    for _ in 0..10 {
        let (before, began) = (losses(), std::time::Instant::now());
        redis.signal(nix::sys::signal::Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        redis.signal(nix::sys::signal::Signal::SIGCONT);
        redis.command::<String>(&["PING"]);
        shown = began.elapsed() < Duration::from_millis(1750);
        let after = client.send(Call::new("hello.add").arg(2)).await.unwrap();
        assert_eq!(after.get::<i64>(LONG).await.unwrap(), 2, "{}", worker.log());
        if shown {
            assert_eq!(losses(), before, "{}", worker.log());
            break;
        }
        // Until all connections are there again.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    assert!(shown, "ten pauses of 1.5 s took 1.75 s and more");
}

/// A key that is no list is named once, and costs no spinning.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_key_of_another_type_is_named_once() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &[]);
    redis.command::<()>(&["SET", "celery\u{6}\u{16}6", "oops"]);
    worker.wait_for_log("holds no list");
    let client = redis.client().await;
    for n in 0..20 {
        let sum = client.send(Call::new("hello.add").arg(n)).await.unwrap();
        assert_eq!(sum.get::<i64>(LONG).await.unwrap(), n);
    }
    assert_eq!(worker.log().matches("holds no list").count(), 1, "{}", worker.log());
}

/// What cannot be run and cannot be kept as a dead letter either stays where it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_can_be_no_dead_letter_stays_in_its_queue() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &[]);
    redis.command::<()>(&["SET", "celery.dead", "oops"]);
    redis.command::<i64>(&["LPUSH", "celery", "garbage"]);
    worker.wait_for_log("a dead letter cannot be kept");
    assert_eq!(
        (redis.length("LLEN", "celery"), redis.length("HLEN", "unacked")),
        (1, 0)
    );
    redis.command::<()>(&["DEL", "celery.dead"]);
    let client = redis.client().await;
    let sum = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
    assert_eq!(redis.length("LLEN", "celery.dead"), 1);
}

/// With a prefix, what cannot be run is kept below that prefix as everything else is.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_have_the_global_prefix() {
    let redis = Redis::start();
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{global_keyprefix = 'app:'}")];
    let _worker = Worker::start_with(&redis, &[], &settings);
    redis.command::<i64>(&["LPUSH", "app:celery", "garbage"]);
    until("it is a dead letter", async || {
        redis.length("LLEN", "app:celery.dead") == 1
    })
    .await;
    assert_eq!(redis.length("EXISTS", "celery.dead"), 0);
}

/// `SCRIPT FLUSH`, or a server that forgot: the scripts are loaded again.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_the_server_forgot_are_loaded_again() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    for n in 0..5 {
        redis.command::<()>(&["SCRIPT", "FLUSH"]);
        let sum = client.send(Call::new("hello.add").arg(n)).await.unwrap();
        assert_eq!(sum.get::<i64>(LONG).await.unwrap(), n, "{}", worker.log());
    }
    assert!(!worker.log().contains("lost the connection"), "{}", worker.log());
}

/// A worker that is stopped while its Redis is away ends all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_its_redis_can_be_stopped() {
    // Redis goes as the worker reads what was revoked before, as it says hello, or as it takes its first messages.
    let rounds = (0..6).map(|round| {
        std::thread::spawn(move || {
            let mut redis = Redis::start();
            let mut worker = Worker::start(&redis, &[]);
            std::thread::sleep(Duration::from_millis(4 * round));
            redis.stop();
            worker.wait_for_log("lost the connection");
            assert_eq!(worker.stop(), Some(0), "{}", worker.log());
        })
    });
    let rounds: Vec<_> = rounds.collect();
    // And in the very moment when it asks: no message is taken until that is known.
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    proxy.end_at("orchestra:revoked");
    let mut worker = Worker::spawn_at("hello_task", &proxy.url(), &[], &[]);
    worker.wait_for_log("orchestra-worker: ready");
    worker.wait_for_log("lost the connection");
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
    for round in rounds {
        round.join().unwrap();
    }
}

/// What ended and cannot be written is no good end: who looks at exit codes learns of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_leaves_results_unwritten_is_told_from_one_that_does_not() {
    let mut redis = Redis::start();
    let mut worker = Worker::start(&redis, &["-c", "1"]);
    let client = redis.client().await;
    // Redis is gone long before it ends, also on a machine that is slow to end a process.
    client.send(Call::new("hello.nap").arg(4000).arg(1)).await.unwrap();
    worker.wait_for_log("received");
    redis.stop();
    assert_eq!(worker.stop(), Some(1), "{}", worker.log());
    assert!(
        worker.log().contains(" 1 of them results or next steps"),
        "{}",
        worker.log()
    );
}

/// A worker has many connections to one Redis. Whoever reads its log sees one outage: when it began, and when it was
/// over.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_once_when_it_begins_and_once_when_it_is_over() {
    let mut redis = Redis::start();
    let worker = Worker::start(&redis, &["-c", "2"]);
    let lines = |what: &str| worker.log().matches(what).count();
    let told = || (lines("; reconnecting"), lines(" again after "));
    for away in [0, 700, 2500] {
        let (_, before) = told();
        redis.stop();
        tokio::time::sleep(Duration::from_millis(away)).await;
        // As long as it lasts it is one, however many connections find out.
        if away > 2000 {
            worker.wait_for_log("; reconnecting");
            assert_eq!(told(), (before + 1, before), "{}", worker.log());
        }
        redis.start_again();
        until("it is over", async || told().1 > before && told().0 == told().1).await;
        // What is there again works, and stays: nothing more is said.
        let client = redis.client().await;
        let sum = client.send(Call::new("hello.add").arg(1)).await.unwrap();
        assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(300)).await;
        until("each is over", async || told().0 == told().1).await;
    }
    // A Redis that a busy machine gives no time for two seconds is an outage too. If each connection told its own there
    // were three times as many.
    assert!((3..=4).contains(&told().0), "{}", worker.log());
}

/// Without a prefetch count the memory of what is held is bounded all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_bounded_in_bytes() {
    let redis = Redis::start();
    let client = redis.client().await;
    let calls: Vec<Call> = (0..200).map(|n| Call::new("hello.nap").arg(10).arg(n)).collect();
    let pending = client.send_many(&calls).await.unwrap();
    let settings = [("ORCHESTRA_WORKER_PREFETCH_BYTES", "60000")];
    let worker = Worker::start_with(&redis, &["-c", "1", "--prefetch-multiplier", "0"], &settings);
    let mut most = 0;
    while redis.length("LLEN", "celery") > 0 {
        most = most.max(redis.length("HLEN", "unacked"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for (n, pending) in pending.iter().enumerate() {
        assert_eq!(pending.get::<usize>(LONG).await.unwrap(), n, "{}", worker.log());
    }
    assert!((2..=30).contains(&most), "{most}");
    assert!(worker.log().contains("worker_prefetch_bytes"), "{}", worker.log());
}

/// Whoever waits for a result goes on waiting while Redis restarts.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_waited_for_while_redis_restarts() {
    let mut redis = Redis::start();
    let worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.sleep").arg(3)).await.unwrap();
    worker.wait_for_log("received");
    let waiting = tokio::spawn(async move { pending.get::<String>(LONG).await });
    until("it listens", async || {
        let channels: Vec<String> = redis.command(&["PUBSUB", "CHANNELS", "celery-task-meta-*"]);
        !channels.is_empty()
    })
    .await;
    redis.stop();
    worker.wait_for_log("lost the connection");
    redis.start_again();
    assert_eq!(waiting.await.unwrap().unwrap(), "rested", "{}", worker.log());
}

/// Also by the first who waits, and by those who wait next to one who gives up; and who gave up has left nothing
/// behind.
#[tokio::test(flavor = "multi_thread")]
async fn who_no_longer_waits_for_a_result_leaves_nothing() {
    let mut redis = Redis::start();
    let client = redis.client().await;
    redis.stop();
    let first = client.result("first");
    let first = tokio::spawn(async move { first.get::<u32>(LONG).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    redis.start_again();
    let channels = || redis.command::<Vec<String>>(&["PUBSUB", "CHANNELS", "celery-task-meta-*"]);
    until("the first listens", async || channels().len() == 1).await;
    let done = |id: &str| {
        let key = format!("celery-task-meta-{id}");
        let record = r#"{"status": "SUCCESS", "result": 7}"#;
        redis.command::<()>(&["SET", &key, record]);
        redis.command::<()>(&["PUBLISH", &key, record]);
    };
    done("first");
    assert_eq!(first.await.unwrap().unwrap(), 7);
    // One begins to wait in the moment when another ends.
    for round in 0..50 {
        let id = format!("same{round}");
        let (short, long) = (client.result(&*id), client.result(&*id));
        let short = tokio::spawn(async move { short.get::<u32>(Duration::from_millis(1)).await });
        tokio::time::sleep(Duration::from_micros(900 + 10 * round)).await;
        let ends = round % 10 == 0;
        let patience = if ends { LONG } else { Duration::from_millis(3) };
        let long = tokio::spawn(async move { long.get::<u32>(patience).await });
        assert!(short.await.unwrap().is_err());
        if ends {
            until("the other listens", async || !channels().is_empty()).await;
            let began = std::time::Instant::now();
            done(&id);
            assert_eq!(long.await.unwrap().unwrap(), 7);
            assert!(
                began.elapsed() < Duration::from_secs(4),
                "it was told, and did not look again"
            );
        } else {
            assert!(long.await.unwrap().is_err());
        }
    }
    let calls = (0..20).map(|n| (n, Call::new("never").queue("nobody")));
    let mut many = Box::pin(client.run_all(calls, 20));
    let next = futures_util::StreamExt::next(&mut many);
    assert!(tokio::time::timeout(Duration::from_millis(200), next).await.is_err());
    until("all of them listen", async || channels().len() >= 20).await;
    drop(many);
    until("nobody listens", async || channels().is_empty()).await;
    let last = client.result("same");
    let last = tokio::spawn(async move { last.get::<u32>(LONG).await });
    until("the last listens", async || channels().len() == 1).await;
    let began = std::time::Instant::now();
    done("same");
    assert_eq!(last.await.unwrap().unwrap(), 7);
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "it was told, and did not look again"
    );
}

/// What Redis did without a word is not done again: the sender is told that nobody knows.
#[tokio::test(flavor = "multi_thread")]
async fn calls_whose_answer_was_lost_are_not_sent_twice() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let client = Client::connect_to(&proxy.url(), None).await.unwrap();
    client.send(Call::new("first").queue("q")).await.unwrap();
    proxy.cut();
    let calls: Vec<Call> = (0..500).map(|_| Call::new("x").queue("q")).collect();
    let error = client.send_many(&calls).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().ends_with("what was sent may have arrived"), "{error}");
    // As many as came through before the connection was cut, each of them once.
    let sent: Vec<String> = redis.command(&["LRANGE", "q", "0", "-1"]);
    let id = |text: &String| serde_json::from_str::<Value>(text).unwrap()["headers"]["id"].to_string();
    let ids: std::collections::HashSet<String> = sent.iter().map(id).collect();
    assert!(
        sent.len() > 1 && ids.len() == sent.len(),
        "{} of {}",
        ids.len(),
        sent.len()
    );
    client.send(Call::new("last").queue("q")).await.unwrap();
}

/// Each listener hears everything, and its end is the end of its subscription.
#[tokio::test(flavor = "multi_thread")]
async fn events_may_be_listened_to_more_than_once() {
    let redis = Redis::start();
    let client = redis.client().await.with_sent_events("celeryev");
    let (mut one, mut other) = (
        client.events("celeryev").await.unwrap(),
        client.events("celeryev").await.unwrap(),
    );
    client.send(Call::new("x")).await.unwrap();
    assert!(one.next().await.is_some() && other.next().await.is_some());
    drop((one, other));
    until("nobody listens", async || {
        redis.command::<i64>(&["PUBSUB", "NUMPAT"]) == 0
    })
    .await;
}

/// A worker that is started in the moment when its Redis is, or when another one takes over, waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_before_its_redis_is_ready_waits_for_it() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    // It is reached, and closes the connection.
    proxy.refuse(true);
    let worker = Worker::spawn_at("hello_task", &proxy.url(), &[], &[]);
    worker.wait_for_log("trying again for some seconds");
    proxy.refuse(false);
    worker.wait_for_log("orchestra-worker: ready");
    // A replica that has never seen its master answers, and refuses.
    redis.command::<()>(&["CONFIG", "SET", "replica-serve-stale-data", "no"]);
    redis.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    let worker = Worker::spawn("hello_task", &redis, &[], &[]);
    worker.wait_for_log("trying again for some seconds");
    redis.command::<()>(&["REPLICAOF", "NO", "ONE"]);
    worker.wait_for_log("orchestra-worker: ready");
}

/// A queue is read in its order. What is due does not wait until all are read that have to wait for their ETA, and it
/// keeps its order.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_does_not_wait_behind_those_that_are_not() {
    const WAITING: usize = 20_000;
    let redis = Redis::start();
    let client = redis.client().await;
    let later = Call::new("hello.add").arg(1).countdown(Duration::from_secs(3600));
    client.send_many(std::iter::repeat_n(&later, WAITING)).await.unwrap();
    let due: Vec<Call> = (0..20).map(|n| Call::new("hello.nap").arg(1).arg(n)).collect();
    let due = client.send_many(&due).await.unwrap();
    let worker = Worker::start(&redis, &["-c", "1"]);
    for (n, pending) in due.iter().enumerate() {
        assert_eq!(pending.get::<usize>(LONG).await.unwrap(), n, "{}", worker.log());
    }
    let left = redis.length("LLEN", "celery");
    assert!(
        left > WAITING / 4,
        "{left} were not read yet: too few for this to show anything"
    );
    let log = worker.log();
    let order: Vec<usize> = due
        .iter()
        .map(|pending| log.find(&format!("[{}] succeeded", pending.id())).unwrap())
        .collect();
    assert!(order.is_sorted(), "{order:?}");
    // Nothing is lost, and nothing was taken twice.
    drop(worker);
    assert_eq!(
        redis.length("LLEN", "celery") + redis.length("HLEN", "unacked"),
        WAITING
    );
    assert_eq!(redis.length("EXISTS", "celery.dead"), 0);
}

/// Sends a task to a worker that stands still, with late acks, and lets it go on when Redis has no memory.
async fn run_without_memory(redis: &Redis, call: Call, count: usize) -> Worker {
    let worker = Worker::start_with(redis, &["-c", "1"], &[("ORCHESTRA_TASK_ACKS_LATE", "true")]);
    let client = redis.client().await;
    worker.process.signal(nix::sys::signal::Signal::SIGSTOP);
    for n in 0..count {
        client.send(call.clone().task_id(format!("task-{n}"))).await.unwrap();
    }
    redis.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    worker.process.signal(nix::sys::signal::Signal::SIGCONT);
    until("all have run", async || {
        worker.log().matches(" succeeded in ").count() == count
    })
    .await;
    worker
}

/// Redis without memory refuses results, and would remove messages: a message is acknowledged when what it led to is
/// there. What is refused is spoken of.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_before_its_result_is_stored() {
    let redis = Redis::start();
    let long = "x".repeat(2000);
    let worker = run_without_memory(&redis, Call::new("celery.accumulate").arg(&long), 1).await;
    worker.wait_for_log("OOM command not allowed when used memory");
    assert_eq!(redis.length("HLEN", "unacked"), 1, "{}", worker.log());
    redis.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    let result = redis.client().await.result("task-0").get::<Vec<String>>(LONG).await;
    assert_eq!(result.unwrap(), [long], "{}", worker.log());
    until("it is acknowledged", async || redis.length("HLEN", "unacked") == 0).await;
    worker.wait_for_log("takes what it would not");
    assert_eq!(worker.log().matches("OOM").count(), 1, "{}", worker.log());
}

/// A queue that has filled the memory of its Redis is worked off: a result that is smaller than its message makes room.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_has_filled_its_redis_is_worked_off() {
    let redis = Redis::start();
    let worker = run_without_memory(&redis, Call::new("hello.nap").arg(0).arg(7), 20).await;
    until("all are acknowledged", async || redis.length("HLEN", "unacked") == 0).await;
    let client = redis.client().await;
    for n in 0..20 {
        let result = client.result(format!("task-{n}")).get::<u64>(LONG).await;
        assert_eq!(result.unwrap(), 7, "{}", worker.log());
    }
}
