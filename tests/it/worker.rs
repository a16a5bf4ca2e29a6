//! The worker as a process: what it does with tasks, stops and a Redis that goes away. The client is ours; `python.rs`
//! does the same with Celery's.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use orchestra::client::{Call, Error};
use serde_json::{Value, json};

use crate::support::{LONG, Redis, Worker, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_run_and_its_result_comes_back() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.add").arg(2).kwarg("y", 3)).await.unwrap();
    assert_eq!(pending.get::<i64>(LONG).await.unwrap(), 5);
    let calls: Vec<Call> = (0..500).map(|n| Call::new("hello.add").arg(n)).collect();
    for (n, pending) in client.send_many(&calls).await.unwrap().into_iter().enumerate() {
        assert_eq!(pending.get::<usize>(LONG).await.unwrap(), n);
    }
    // P-009: nothing is left behind.
    until("everything is acknowledged", async || {
        redis.length("HLEN", "unacked") == 0
    })
    .await;
    assert_eq!(redis.length("ZCARD", "unacked_index"), 0);
    assert_eq!(redis.length("LLEN", "celery"), 0);
}

/// What Redis was asked: all commands, or one of them.
fn asked(redis: &Redis, command: Option<&str>) -> u64 {
    let (section, name) = match command {
        None => ("stats", "total_commands_processed:".to_owned()),
        Some(command) => ("commandstats", format!("cmdstat_{command}:calls=")),
    };
    let info: String = redis.command(&["INFO", section]);
    let number = info.lines().find_map(|line| line.strip_prefix(name.as_str()));
    let digits = number.and_then(|number| number.split(',').next());
    digits.map_or(0, |digits| digits.parse().unwrap())
}

/// Redis is what all workers share: a task costs one look at its queue, and a worker without any says little.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_one_look_and_an_idle_worker_is_quiet() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    let call = Call::new("hello.add").arg(1);
    client.send(call.clone()).await.unwrap().get::<i64>(LONG).await.unwrap();
    let before = asked(&redis, Some("exists"));
    for _ in 0..20 {
        client.send(call.clone()).await.unwrap().get::<i64>(LONG).await.unwrap();
    }
    // A claim that took something asks twice whether there is more: before, and for news of what comes next.
    let looks = asked(&redis, Some("exists")) - before;
    assert!(looks <= 2 * 20 + 4, "{looks} for 20 tasks");

    drop(client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, began) = (asked(&redis, None), Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    // Five heartbeats, four signs of life, a look at the queues; one of the commands is this question. A busy machine
    // makes the ten seconds longer.
    let (said, seconds) = (asked(&redis, None) - before - 1, began.elapsed().as_secs());
    assert!(said <= 12 * seconds / 10, "{said} commands in {seconds} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_python_exceptions() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    for (call, module, name, text) in [
        (
            Call::new("hello.add"),
            "builtins",
            "TypeError",
            "hello.add() missing 1 required positional argument: 'x'",
        ),
        (
            Call::new("hello.add").arg(1).arg(2).arg(3),
            "builtins",
            "TypeError",
            "hello.add() takes 2 positional arguments but 3 were given",
        ),
        (
            Call::new("hello.add").kwarg("z", 1),
            "builtins",
            "TypeError",
            "hello.add() got an unexpected keyword argument 'z'",
        ),
        (
            Call::new("hello.add").arg(i64::MAX).arg(1),
            "builtins",
            "ValueError",
            "the sum is too large",
        ),
        (
            Call::new("hello.panic"),
            "builtins",
            "RuntimeError",
            "the task panicked: on purpose",
        ),
        (
            Call::new("hello.unknown"),
            "celery.exceptions",
            "NotRegistered",
            "hello.unknown",
        ),
    ] {
        let error = client.send(call).await.unwrap().get::<Value>(LONG).await.unwrap_err();
        let Error::Failed { exception, traceback } = error else {
            panic!("{error}")
        };
        assert_eq!((exception.module.as_str(), exception.name.as_str()), (module, name));
        assert_eq!(exception.message(), text);
        // As in Celery, a task that nobody registered has nothing to trace.
        assert!(name == "NotRegistered" || traceback.is_some_and(|traceback| traceback.contains(name)));
    }
}

/// A task that panics as it is ended, by its limit or because somebody revokes it, is over nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_panics_when_it_is_ended_is_over() {
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, &["-c", "2"]);
    let client = redis.client().await;
    let fragile = || Call::new("hello.panic").kwarg("ended", true);
    let limited = client.send(fragile().time_limit(Duration::from_secs(1))).await.unwrap();
    let revoked = client.send(fragile()).await.unwrap();
    let error = limited.get::<Value>(LONG).await.unwrap_err().to_string();
    assert!(
        error.contains("TimeLimitExceeded") || error.contains("on purpose"),
        "{error}"
    );
    revoked.revoke(true).await.unwrap();
    until("it is revoked", async || {
        revoked.state().await.unwrap().as_str() == "REVOKED"
    })
    .await;
    // Both places are free, and nothing is waited for.
    let sum = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1);
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_a_new_message_with_the_same_id() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.flaky").arg(2)).await.unwrap();
    assert_eq!(pending.get::<u32>(LONG).await.unwrap(), 2);
    let pending = client.send(Call::new("hello.flaky").arg(9)).await.unwrap();
    let error = pending.get::<u32>(LONG).await.unwrap_err();
    assert!(error.to_string().contains("ConnectionError"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_end_a_task() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    let hard = Call::new("hello.sleep").arg(60).time_limit(Duration::from_millis(300));
    let error = client.send(hard).await.unwrap().get::<Value>(LONG).await.unwrap_err();
    assert!(error.to_string().contains("TimeLimitExceeded: 0.3"), "{error}");
    let soft = Call::new("hello.sleep")
        .arg(60)
        .soft_time_limit(Duration::from_millis(300));
    let error = client.send(soft).await.unwrap().get::<Value>(LONG).await.unwrap_err();
    assert!(error.to_string().contains("SoftTimeLimitExceeded"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_is_revoked_and_a_waiting_one_never_runs() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &["-c", "1"]);
    let client = redis.client().await;
    let running = client.send(Call::new("hello.sleep").arg(60)).await.unwrap();
    let waiting = client.send(Call::new("hello.sleep").arg(60)).await.unwrap();
    let later = client
        .send(Call::new("hello.sleep").arg(60).countdown(Duration::from_secs(60)))
        .await
        .unwrap();
    until("the first runs", async || {
        running.state().await.unwrap().as_str() == "PROGRESS"
    })
    .await;
    for pending in [&waiting, &later] {
        pending.revoke(false).await.unwrap();
        assert!(matches!(pending.get::<Value>(LONG).await, Err(Error::Revoked(why)) if why == "revoked"));
    }
    running.revoke(true).await.unwrap();
    assert!(matches!(running.get::<Value>(LONG).await, Err(Error::Revoked(why)) if why == "terminated"));
    // The place is free again.
    let next = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(next.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eta_is_waited_for_and_an_expired_task_is_not_run() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    let sent = Instant::now();
    let later = client
        .send(Call::new("hello.add").arg(1).countdown(Duration::from_secs(1)))
        .await
        .unwrap();
    assert_eq!(later.get::<i64>(LONG).await.unwrap(), 1);
    assert!(sent.elapsed() >= Duration::from_secs(1));
    let expired = client
        .send(
            Call::new("hello.add")
                .arg(1)
                .countdown(Duration::from_secs(1))
                .expires(Duration::ZERO),
        )
        .await
        .unwrap();
    assert!(matches!(expired.get::<Value>(LONG).await, Err(Error::Revoked(why)) if why == "expired"));
}

/// Beyond some thousand, what waits for its ETA stays in Redis and is read again when it is due.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_wait_for_their_eta_and_those_that_are_due_run_on_time() {
    const HOUR: Duration = Duration::from_secs(3600);
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    let far = (0..4500).map(|n| Call::new("hello.add").arg(n).countdown(HOUR));
    assert_eq!(client.send_all(far).await.unwrap(), 4500);
    let all = |count: usize| redis.length("HLEN", "unacked") == count;
    until("all are held", async || all(4500)).await;
    let (sent, pause) = (Instant::now(), Duration::from_secs(5));
    let calls: Vec<Call> = (0..100)
        .map(|n| Call::new("hello.add").arg(n).countdown(pause))
        .collect();
    let soon = client.send_many(&calls).await.unwrap();
    let now = client.send(Call::new("hello.add").arg(7)).await.unwrap();
    assert_eq!(now.get::<i64>(LONG).await.unwrap(), 7);
    until("these are held as well", async || all(4600)).await;
    soon[99].revoke(false).await.unwrap();
    assert!(matches!(soon[99].get::<i64>(LONG).await, Err(Error::Revoked(_))));
    for (n, pending) in soon[..99].iter().enumerate() {
        assert_eq!(pending.get::<usize>(LONG).await.unwrap(), n, "{}", worker.log());
    }
    assert!(sent.elapsed() >= pause);
    until("only the far ones are left", async || all(4500)).await;
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
    assert_eq!(
        (redis.length("LLEN", "celery"), redis.length("HLEN", "unacked")),
        (4500, 0)
    );
    assert_eq!(redis.length("ZCARD", "unacked_index"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_stop_finishes_what_runs_and_gives_back_what_waits() {
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, &["-c", "2"]);
    let client = redis.client().await;
    // The first two still run when it is stopped, also on a busy machine.
    let calls = [5, 5, 1, 1, 1, 1].map(|seconds| Call::new("hello.sleep").arg(seconds));
    let pending = client.send_many(&calls).await.unwrap();
    until("two run", async || {
        pending[1].state().await.unwrap().as_str() == "PROGRESS"
    })
    .await;
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
    assert_eq!(redis.length("LLEN", "celery"), 4);
    assert_eq!(redis.length("HLEN", "unacked"), 0);
    assert_eq!(pending[0].get::<String>(LONG).await.unwrap(), "rested");
    let _next = Worker::start(&redis, &["-c", "4"]);
    for pending in pending {
        assert_eq!(pending.get::<String>(LONG).await.unwrap(), "rested");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_stop_gives_back_everything() {
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, &["-c", "2"]);
    let client = redis.client().await;
    let calls: Vec<Call> = (0..4).map(|_| Call::new("hello.sleep").arg(60)).collect();
    let pending = client.send_many(&calls).await.unwrap();
    until("two run", async || {
        pending[1].state().await.unwrap().as_str() == "PROGRESS"
    })
    .await;
    worker.process.signal(Signal::SIGTERM);
    worker.wait_for_log("warm stop");
    worker.process.signal(Signal::SIGTERM);
    assert_eq!(worker.process.wait(), Some(1), "{}", worker.log());
    assert_eq!(redis.length("LLEN", "celery"), 4);
    assert_eq!(redis.length("HLEN", "unacked"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_goes_away_is_waited_for() {
    let mut redis = Redis::start();
    let worker = Worker::start(&redis, &["-c", "2"]);
    let client = redis.client().await;
    let running = client.send(Call::new("hello.sleep").arg(2)).await.unwrap();
    until("it runs", async || {
        running.state().await.unwrap().as_str() == "PROGRESS"
    })
    .await;
    redis.stop();
    worker.wait_for_log("lost the connection to Redis");
    tokio::time::sleep(Duration::from_secs(3)).await;
    redis.start_again();
    worker.wait_for_log("again after");
    let client = redis.client().await;
    assert_eq!(
        client.result(running.id()).get::<String>(LONG).await.unwrap(),
        "rested",
        "{}",
        worker.log()
    );
    let next = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(next.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
    // Its connection is another than that of tasks, and may be back a moment later.
    until("remote control works again", async || {
        client.workers(Duration::from_millis(200)).await.unwrap().len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_control_answers() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &["-n", "w1@here", "-c", "3"]);
    let client = redis.client().await;
    let running = client.send(Call::new("hello.sleep").arg(30)).await.unwrap();
    until("it runs", async || {
        running.state().await.unwrap().as_str() == "PROGRESS"
    })
    .await;
    let node = ["w1@here".to_owned()];
    let ask = async |method: &str, arguments: Value| {
        client
            .inspect(method, &arguments, Some(&node), LONG)
            .await
            .unwrap()
            .remove("w1@here")
            .unwrap()
    };
    assert_eq!(ask("ping", json!({})).await, json!({"ok": "pong"}));
    assert!(
        ask("registered", json!({}))
            .await
            .as_array()
            .unwrap()
            .contains(&json!("hello.add"))
    );
    let stats = ask("stats", json!({})).await;
    assert_eq!(stats["pool"]["max-concurrency"], 3);
    assert_eq!(stats["prefetch_count"], 12);
    let active = ask("active", json!({})).await;
    assert_eq!(active[0]["id"], running.id());
    assert_eq!(active[0]["name"], "hello.sleep");
    assert_eq!(
        ask("query_task", json!({"ids": [running.id()]})).await[running.id()][0],
        "active"
    );
    assert_eq!(ask("active_queues", json!({})).await[0]["name"], "celery");
    assert!(
        ask("no_such_method", json!({})).await["error"]
            .as_str()
            .unwrap()
            .contains("no_such_method")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_hold() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &["-n", "w1@here"]);
    let client = redis.client().await;
    let node = ["w1@here".to_owned()];
    let arguments = json!({"task_name": "hello.add", "rate_limit": "5/s"});
    client
        .inspect("rate_limit", &arguments, Some(&node), LONG)
        .await
        .unwrap();
    let calls: Vec<Call> = (0..11).map(|n| Call::new("hello.add").arg(n)).collect();
    let began = Instant::now();
    for pending in client.send_many(&calls).await.unwrap() {
        pending.get::<i64>(LONG).await.unwrap();
    }
    // Ten pauses of 200 ms, but for what the bucket holds at the start.
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
}

/// A lower limit holds for what waits under the old one too.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_that_is_lowered_slows_down_what_waits() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &["-n", "w1@here", "--prefetch-multiplier", "0"]);
    let client = redis.client().await;
    let node = ["w1@here".to_owned()];
    let limit = async |limit: &str| {
        let arguments = json!({"task_name": "hello.add", "rate_limit": limit});
        let answer = client.inspect("rate_limit", &arguments, Some(&node), LONG).await;
        assert!(answer.unwrap()["w1@here"].to_string().contains("ok"));
    };
    let left = || redis.length("HLEN", "unacked");
    limit("20/s").await;
    let calls = (0..100).map(|n| Call::new("hello.add").arg(n));
    client.send_all(calls).await.unwrap();
    until("all are held", async || redis.length("LLEN", "celery") == 0).await;
    limit("1/h").await;
    let before = left();
    assert!(before > 20, "too late: {before} are left");
    // Under the old limit twenty would run meanwhile.
    let other = client.send(Call::new("hello.nap").arg(1000).arg(1)).await.unwrap();
    other.get::<u64>(LONG).await.unwrap();
    // One at once, and one whose turn came before its time was changed.
    assert!(before - left() <= 2, "{before} before, {} now", left());
    limit("0").await;
    until("none waits", async || left() == 0).await;
}

/// P-111: with `worker_deduplicate_successful_tasks` a message that comes again after its task succeeded is not run.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_succeeded_is_not_run_again() {
    let redis = Redis::start();
    let client = redis.client().await;
    let first = client.send(Call::new("hello.sleep").arg(0)).await.unwrap();
    let mut message: String = redis.command(&["LINDEX", "celery", "0"]);
    let settings = [("ORCHESTRA_WORKER_DEDUPLICATE_SUCCESSFUL_TASKS", "true")];
    let worker = Worker::start_with(&redis, &[], &settings);
    assert_eq!(first.get::<String>(LONG).await.unwrap(), "rested");
    message = message.replacen("\"headers\":{", "\"headers\":{\"redelivered\":true,", 1);
    redis.command::<i64>(&["LPUSH", "celery", &message]);
    worker.wait_for_log("Task already completed successfully.");
    until("it is acknowledged", async || {
        redis.length("HLEN", "unacked") == 0 && redis.length("LLEN", "celery") == 0
    })
    .await;
    assert_eq!(worker.log().matches("succeeded in").count(), 1, "{}", worker.log());
}
