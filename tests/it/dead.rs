//! Dead letters from the shell: seen, brought back, removed.

use std::process::Output;

use orchestra::client::Call;
use serde_json::{Value, json};

use crate::cli::{orchestra, text};
use crate::messages::message;
use crate::support::{LONG, Redis, Worker, free_port, get, run_python, until};

/// The letters that `dead list` shows with more words behind it.
fn listed(redis: &Redis, words: &[&str]) -> Vec<Value> {
    let all = [&["dead", "list", "--json"], words].concat();
    let lines = text(&orchestra(redis, &all));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// More than are looked at in one go, some of them the same.
#[test]
fn very_many_letters_are_removed_by_their_handles() {
    let redis = Redis::start();
    let letters: Vec<String> = (0..450).map(|n| format!("letter {}", n / 2)).collect();
    let words: Vec<&str> = ["RPUSH", "celery.dead"]
        .into_iter()
        .chain(letters.iter().map(String::as_str))
        .collect();
    redis.command::<u64>(&words);
    let dropped = text(&orchestra(&redis, &["dead", "drop", "--all", "--yes"]));
    assert_eq!(dropped, "dropped 450 of celery\n");
    assert_eq!(redis.length("LLEN", "celery.dead"), 0);
}

async fn buried(redis: &Redis, count: usize) {
    until("they are buried", async || redis.length("LLEN", "celery.dead") == count).await;
}

/// Every kind of broken message comes back as it was, byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_requeued_and_dropped() {
    let redis = Redis::start();
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{max_message_bytes = 3000}")];
    let mut worker = Worker::start_with(&redis, &["-n", "w1@here"], &settings);
    let bodiless = r#"{"headers": {"id": "the-id", "task": "hello.add"}, "body": "?!", "properties": {"body_encoding": "base64", "priority": 6}, "content-type": "application/json"}"#;
    let large = format!("{{\"large\": \"{}\"}}", "x".repeat(4000));
    let broken = ["gar\nbage", "[1, 2]", bodiless, &large];
    for (count, message) in broken.iter().enumerate() {
        redis.command::<i64>(&["LPUSH", "celery", message]);
        buried(&redis, count + 1).await;
    }
    let letters = listed(&redis, &[]);
    assert_eq!(letters.len(), 4);
    for (letter, reason) in letters
        .iter()
        .zip(["no JSON object", "no JSON object", "base64", "limit of 3000"])
    {
        assert!(letter["reason"].as_str().unwrap().contains(reason), "{letter}");
        assert_eq!(
            (&letter["worker"], &letter["queue"]),
            (&"w1@here".into(), &"celery".into())
        );
        assert!(letter["time"].as_str().unwrap().starts_with("20"), "{letter}");
    }
    assert_eq!(letters[2]["id"], "the-id");
    assert_eq!(listed(&redis, &["--task", "hello.add"]).len(), 1);
    assert_eq!(listed(&redis, &["--reason", "JSON object", "--newer", "1h"]).len(), 2);
    assert_eq!(listed(&redis, &["--older", "1h"]).len(), 0);
    assert_eq!(listed(&redis, &["-Q", "other"]).len(), 0);
    assert_eq!(listed(&redis, &["-n", "3"]).len(), 3);
    assert!(text(&orchestra(&redis, &["dead", "list"])).contains("the-id"));
    for (letter, message) in letters.iter().zip(broken) {
        let handle = letter["handle"].as_str().unwrap();
        assert_eq!(text(&orchestra(&redis, &["dead", "show", handle, "--raw"])), message);
    }
    assert!(text(&orchestra(&redis, &["dead", "show", "the-id"])).contains("body_encoding"));
    assert!(text(&orchestra(&redis, &["status"])).contains("queue \"celery\" has 4 messages"));
    let doctor = orchestra(&redis, &["doctor"]);
    assert!(
        String::from_utf8_lossy(&doctor.stdout).contains("queue \"celery\" has 4 messages"),
        "{doctor:?}"
    );
    assert_eq!(worker.stop(), Some(0));

    // Back at the end of their queues, byte for byte, by handle, by id, and all together.
    let first = letters[0]["handle"].as_str().unwrap();
    redis.command::<i64>(&["LPUSH", "celery", "before"]);
    assert_eq!(
        text(&orchestra(&redis, &["dead", "requeue", first, "the-id"])),
        "requeued 2 to celery\n"
    );
    assert!(refused(&orchestra(&redis, &["dead", "requeue", first])).contains("no dead letter"));
    assert!(refused(&orchestra(&redis, &["dead", "requeue"])).contains("which?"));
    assert!(refused(&orchestra(&redis, &["dead", "requeue", "--all"])).contains("--yes"));
    let requeued = text(&orchestra(&redis, &["dead", "requeue", "--reason", "limit", "--yes"]));
    assert_eq!(requeued, "requeued 1 to celery\n");
    let queue: Vec<String> = redis.command(&["LRANGE", "celery", "0", "-1"]);
    assert_eq!(queue, [large.as_str(), broken[0], "before"]);
    let of_priority: Vec<String> = redis.command(&["LRANGE", "celery\u{6}\u{16}6", "0", "-1"]);
    let (put_back, sent): (Value, Value) = (
        serde_json::from_str(&of_priority[0]).unwrap(),
        serde_json::from_str(bodiless).unwrap(),
    );
    assert_eq!(put_back, sent);
    assert_eq!(
        text(&orchestra(&redis, &["dead", "drop", "--all", "--yes"])),
        "dropped 1 of celery\n"
    );
    assert_eq!(redis.length("EXISTS", "celery.dead"), 0);
}

/// Whichever way messages become dead letters, the list keeps the newest, and the worker says that others are gone:
/// once as it begins, and the rest as it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_dead_letters_is_no_longer_than_dead_limit() {
    let redis = Redis::start();
    // Delivered as often as they may be, and held by a worker that is long gone.
    for n in 0..6 {
        let mut message = message(&format!("spent-{n}"), &json!([[1], {}, {}]));
        message["headers"]["x-orchestra-deliveries"] = 5.into();
        message["headers"]["redelivered"] = true.into();
        let tag = n.to_string();
        redis.command::<i64>(&["HSET", "unacked", &tag, &json!([message, "", "celery"]).to_string()]);
        redis.command::<i64>(&["ZADD", "unacked_index", "1", &tag]);
    }
    let options = |limit| format!("{{visibility_timeout = 2, dead_limit = {limit}}}");
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", &*options(3))];
    let address = format!("127.0.0.1:{}", free_port());
    let mut worker = Worker::start_with(&redis, &["--metrics-addr", &address], &settings);
    // No messages, and messages without a body.
    let garbage = |n| format!("garbage-{n}");
    let bodiless = |n| {
        let mut message = message(&format!("bodiless-{n}"), &json!([]));
        message["body"] = "?!".into();
        message.to_string()
    };
    let kinds: [(&str, &dyn Fn(i32) -> String); 3] = [
        ("spent-", &|_| String::new()),
        ("garbage-", &garbage),
        ("bodiless-", &bodiless),
    ];
    for (kind, message) in kinds {
        for n in 0..6 {
            let message = message(n);
            if !message.is_empty() {
                redis.command::<i64>(&["LPUSH", "celery", &message]);
            }
        }
        let letters = || redis.command::<Vec<String>>(&["LRANGE", "celery.dead", "0", "-1"]);
        until(kind, async || {
            redis.length("LLEN", "celery") == 0
                && redis.length("HLEN", "unacked") == 0
                && letters().iter().all(|letter| letter.contains(kind))
        })
        .await;
        assert_eq!(letters().len(), 3, "{kind}: {:?}", letters());
    }
    let newest: Vec<String> = redis.command(&["LRANGE", "celery.dead", "0", "-1"]);
    let newest_first = newest.iter().zip([5, 4, 3]);
    assert!(
        newest_first
            .clone()
            .all(|(letter, n)| letter.contains(&format!("bodiless-{n}"))),
        "{newest:?}"
    );
    let metrics = get(&format!("http://{address}/metrics")).await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains("orchestra_dead_letters_removed_total 15\n"),
        "{metrics}"
    );
    assert_eq!(worker.stop(), Some(0));
    let log = worker.log();
    let removed = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("a list of dead letters is full (dead_limit = 3): its ")?;
        rest.split(' ').next()?.parse().ok()
    });
    let removed: Vec<usize> = removed.collect();
    assert!(removed.len() <= 3 && removed.iter().sum::<usize>() == 15, "{log}");
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", &*options(0))];
    let mut none = Worker::spawn("hello_task", &redis, &[], &settings);
    assert_ne!(none.process.wait(), Some(0));
    assert!(none.log().contains("dead_limit must be at least 1"), "{}", none.log());
}

/// Nobody reads a message that is too large; its sender is told, whose id stands at the end of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_sender_of_a_message_that_is_too_large_gets_failure() {
    const PROGRAM: &str = "
import sys
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
error = raised(app.send_task('hello.add', (1,), {'note': 'x' * 5000}))
assert type(error).__name__ == 'DecodeError' and 'max_message_bytes' in str(error), repr(error)
";
    let redis = Redis::start();
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{max_message_bytes = 3000}")];
    let worker = Worker::start_with(&redis, &[], &settings);
    run_python(PROGRAM, &redis.url());
    let client = redis.client().await;
    let large = Call::new("hello.add").arg(1).kwarg("note", "y".repeat(5000));
    let pending = client.send(large).await.unwrap();
    let failure = pending.get::<Value>(LONG).await.unwrap_err().to_string();
    assert!(failure.contains("limit of 3000 bytes"), "{failure}");
    assert!(worker.log().contains(pending.id()), "{}", worker.log());
    buried(&redis, 2).await;
}

/// Given up after its last delivery, a task runs once it is put back, and its deliveries are counted anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_given_up_runs_when_it_is_requeued() {
    let redis = Redis::start();
    let client = redis.client().await;
    let pending = client.send(Call::new("hello.add").arg(1).arg(2)).await.unwrap();
    let sent: String = redis.command(&["RPOP", "celery"]);
    let spent = sent.replacen(
        r#""headers": {"#,
        r#""headers": {"x-orchestra-deliveries": 5, "redelivered": true, "#,
        1,
    );
    let spent = spent.replacen(
        r#""headers":{"#,
        r#""headers":{"x-orchestra-deliveries":5,"redelivered":true,"#,
        1,
    );
    assert_ne!(sent, spent);
    // Held by a worker that is long gone.
    redis.command::<i64>(&["HSET", "unacked", "tag", &format!("[{spent},\"\",\"celery\"]")]);
    redis.command::<i64>(&["ZADD", "unacked_index", "1", "tag"]);
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 2}")];
    let worker = Worker::start_with(&redis, &[], &settings);
    buried(&redis, 1).await;
    let letters = listed(&redis, &["--task", "hello.add"]);
    assert_eq!(letters[0]["id"], pending.id());
    assert!(
        letters[0]["reason"].as_str().unwrap().contains("delivered 5 times"),
        "{letters:?}"
    );
    let requeued = text(&orchestra(&redis, &["dead", "requeue", "--task", "hello.add", "-y"]));
    assert_eq!(requeued, "requeued 1 to celery\n");
    until("it ran", async || matches!(pending.get::<i64>(LONG).await, Ok(3))).await;
    assert!(worker.log().contains("succeeded"), "{}", worker.log());
}

/// Stamps, error callbacks and what other libraries send along are as large as they like, as long as the message is not.
#[tokio::test(flavor = "multi_thread")]
async fn headers_are_bounded_with_their_message() {
    let redis = Redis::start();
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{max_message_bytes = 300000}")];
    let worker = Worker::start_with(&redis, &[], &settings);
    let client = redis.client().await;
    for (id, bytes) in [("large", 250_000), ("too-large", 300_000)] {
        let mut message = message(id, &json!([[1], {}, {}]));
        message["headers"]["x-trail"] = "x".repeat(bytes).into();
        redis.command::<i64>(&["LPUSH", "celery", &message.to_string()]);
    }
    assert_eq!(
        client.result("large").get::<i64>(LONG).await.unwrap(),
        1,
        "{}",
        worker.log()
    );
    let failure = client
        .result("too-large")
        .get::<i64>(LONG)
        .await
        .unwrap_err()
        .to_string();
    assert!(failure.contains("limit of 300000 bytes"), "{failure}");
    buried(&redis, 1).await;
}
