//! What is revoked does not run: not after its worker was stopped or killed, and not where nobody was up to hear it.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use orchestra::client::{Call, Client, Pending};
use serde_json::{Value, json};

use crate::support::{LONG, Redis, Worker, program, run_python, until};

/// What a killed worker held is delivered again soon.
const SOON: [(&str, &str); 1] = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 2}")];

/// Three tasks behind one that runs, in the queue and not held.
async fn waiting(client: &Client, prefix: &str) -> Vec<Pending> {
    let mut waiting = Vec::new();
    for n in 0..3 {
        let call = Call::new("hello.add").arg(n).task_id(format!("{prefix}{n}"));
        waiting.push(client.send(call).await.unwrap());
    }
    waiting
}

async fn none_ran(redis: &Redis, revoked: &[Pending], settings: &[(&str, &str)]) {
    let worker = Worker::start_with(redis, &["-n", "new@here", "--without-mingle"], settings);
    for task in revoked {
        let error = task.get::<Value>(LONG).await.unwrap_err().to_string();
        assert!(error.contains("revoked"), "{}: {error}", task.id());
        assert_eq!(task.state().await.unwrap().as_str(), "REVOKED");
    }
    until("the queue is empty", async || {
        redis.length("LLEN", "celery") == 0 && redis.length("HLEN", "unacked") == 0
    })
    .await;
    for task in revoked {
        assert!(
            !worker.log().contains(&format!("{}] succeeded", task.id())),
            "{}",
            worker.log()
        );
    }
}

/// Told by stock Celery to a worker that hears it and ends before it gets there: by TERM, and by SIGKILL.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_task_does_not_run_after_its_worker_was_stopped_or_killed() {
    for (prefix, signal) in [("term", Signal::SIGTERM), ("kill", Signal::SIGKILL)] {
        let redis = Redis::start();
        let client = redis.client().await;
        let words = ["-n", "old@here", "-c", "1", "--prefetch-multiplier", "1"];
        let mut worker = Worker::start_with(&redis, &words, &SOON);
        let busy = client.send(Call::new("hello.sleep").arg(600)).await.unwrap();
        until("it is busy", async || {
            busy.state().await.unwrap().as_str() == "PROGRESS"
        })
        .await;
        let revoked = waiting(&client, prefix).await;
        let program = format!(
            "import sys\nfrom celery import Celery\napp = Celery(broker=sys.argv[1])\n\
             app.control.revoke([f'{prefix}{{n}}' for n in range(3)])\n"
        );
        run_python(&program, &redis.url());
        worker.wait_for_log("Tasks flagged as revoked");
        until("it is noted", async || redis.length("ZCARD", "orchestra:revoked") == 3).await;
        if signal == Signal::SIGTERM {
            // What it holds goes back; it ends when its last task does.
            worker.process.signal(signal);
            worker.wait_for_log("warm stop: waiting for");
            busy.revoke(true).await.unwrap();
            assert_eq!(worker.process.wait(), Some(0), "{}", worker.log());
        } else {
            worker.process.kill();
            // It would be delivered again, too.
            busy.revoke(true).await.unwrap();
        }
        none_ran(&redis, &revoked, &SOON).await;
    }
}

/// Told by `orchestra revoke`, by the client for Rust and by the client for Python, with no worker up.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_task_does_not_run_when_no_worker_was_up() {
    let redis = Redis::start();
    let client = redis.client().await;
    let revoked = waiting(&client, "nobody").await;
    let out = Command::new(program("orchestra"))
        .args(["--broker", &redis.url(), "revoke", "nobody0", "-t", "0.1"])
        .env_clear()
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && said.contains("no worker answered; those that start"),
        "{out:?}"
    );
    revoked[1].revoke(false).await.unwrap();
    let python = "
import sys
from orchestra import Client
client = Client(broker=sys.argv[1], backend=sys.argv[1])
client.result('nobody2').revoke()
";
    run_python(python, &redis.url());
    assert_eq!(redis.length("ZCARD", "orchestra:revoked"), 3);
    none_ran(&redis, &revoked, &SOON).await;
    // One that hears nobody knows of it, too.
    let deaf = waiting(&client, "deaf").await;
    for task in &deaf {
        task.revoke(false).await.unwrap();
    }
    none_ran(&redis, &deaf, &[("ORCHESTRA_WORKER_ENABLE_REMOTE_CONTROL", "false")]).await;
    // Told again, with a worker that is away for a while: what it missed it reads when it is back.
    let worker = Worker::start(&redis, &["-n", "w@here", "--without-mingle"]);
    worker.wait_for_log("ready");
    let _: i64 = redis.command(&["ZADD", "orchestra:revoked", "99999999999", "missed"]);
    let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let nodes = ["w@here".to_owned()];
    until("it knows what it missed", async || {
        let answers = client
            .inspect("revoked", &json!({}), Some(&nodes), Duration::from_secs(2))
            .await
            .unwrap();
        let ids = answers.get("w@here").and_then(Value::as_array);
        ids.is_some_and(|ids| ids.contains(&"missed".into()))
    })
    .await;
}

/// What is noted has the bounds of what a worker keeps: the newest 50,000, for three hours.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_noted_is_bounded_in_number_and_age() {
    let redis = Redis::start();
    let client = redis.client().await;
    let note = async |ids: Vec<String>| client.cast("revoke", &json!({"task_id": ids}), None).await.unwrap();
    note(vec!["old".into()]).await;
    let _: i64 = redis.command(&["ZADD", "orchestra:revoked", "1", "old"]);
    note((0..50_100).map(|n| format!("{n:05}")).collect()).await;
    assert_eq!(redis.length("ZCARD", "orchestra:revoked"), 50_000);
    for (id, is_there) in [("old", false), ("00099", false), ("00100", true), ("50099", true)] {
        let score: Option<f64> = redis.command(&["ZSCORE", "orchestra:revoked", id]);
        assert_eq!(score.is_some(), is_there, "{id}");
    }
    let left: i64 = redis.command(&["TTL", "orchestra:revoked"]);
    assert!((10_700..=10_800).contains(&left), "{left}");
    // For one worker alone nothing is noted.
    let one = ["w@here".to_owned()];
    client
        .cast("revoke", &json!({"task_id": "one"}), Some(&one))
        .await
        .unwrap();
    let score: Option<f64> = redis.command(&["ZSCORE", "orchestra:revoked", "one"]);
    assert_eq!(score, None);
}
