//! What no library would write, on queues and on the channels that workers listen to: each comes to an end that can be
//! told.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orchestra::client::Call;
use serde_json::{Value, json};

use crate::messages::message;
use crate::support::{LONG, Redis, Worker, until};

/// Numbers, texts and keys that a parser may stumble over, and what comes of each: its state, and whether it is kept as
/// a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn odd_numbers_and_texts_come_to_an_end() {
    const DEAD: bool = true;
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, &["-c", "2"]);
    // The text of a message, changed as no JSON library would write it.
    let spoiled = |from: &str, to: &str| -> Box<dyn Fn(&str) -> String> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Box::new(move |id: &str| {
            let text = message(id, &json!([[1], {}, {}])).to_string();
            assert!(text.contains(&from), "{text}");
            text.replace(&from, &to)
        })
    };
    let header = |name: &str, value: Value| -> Box<dyn Fn(&str) -> String> {
        let name = name.to_owned();
        Box::new(move |id: &str| {
            let mut message = message(id, &json!([[1], {}, {}]));
            message["headers"][&*name] = value.clone();
            message.to_string()
        })
    };
    // Of a task that takes anything.
    let arguments = |text: &str| -> Box<dyn Fn(&str) -> String> {
        let body = STANDARD.encode(format!("[[{text}], {{}}, {{}}]"));
        Box::new(move |id: &str| {
            let mut message = message(id, &json!([]));
            message["headers"]["task"] = json!("celery.accumulate");
            message["body"] = json!(body);
            message.to_string()
        })
    };
    let huge = "9".repeat(400);
    type Row = (&'static str, Box<dyn Fn(&str) -> String>, Option<&'static str>, bool);
    let rows: Vec<Row> = vec![
        (
            "a header twice",
            spoiled("\"retries\":0", "\"retries\":3,\"retries\":0"),
            Some("SUCCESS"),
            !DEAD,
        ),
        (
            "properties twice",
            spoiled("\"properties\":", "\"properties\":{},\"properties\":"),
            Some("FAILURE"),
            DEAD,
        ),
        (
            "half a character in a header",
            spoiled("\"origin\":\"x\"", "\"origin\":\"\\ud800\""),
            None,
            DEAD,
        ),
        (
            "400 digits in a header",
            spoiled("\"retries\":0", &format!("\"retries\":{huge}")),
            None,
            DEAD,
        ),
        (
            "1e999 in a header",
            spoiled("\"retries\":0", "\"retries\":1e999"),
            None,
            DEAD,
        ),
        (
            "400 digits as a priority",
            spoiled("\"priority\":0", &format!("\"priority\":{huge}")),
            Some("FAILURE"),
            DEAD,
        ),
        ("retries below none", header("retries", json!(-1)), None, DEAD),
        ("retries beyond all", header("retries", json!(u64::MAX)), None, DEAD),
        ("retries that are a text", header("retries", json!("x")), None, DEAD),
        (
            "retries that are null",
            header("retries", json!(null)),
            Some("SUCCESS"),
            !DEAD,
        ),
        (
            "a time limit below none",
            header("timelimit", json!([-1, null])),
            None,
            DEAD,
        ),
        (
            "a time limit beyond all",
            header("timelimit", json!([1e300, null])),
            None,
            DEAD,
        ),
        (
            "a time limit that is a text",
            header("timelimit", json!(["x", null])),
            None,
            DEAD,
        ),
        ("one time limit", header("timelimit", json!([1])), None, DEAD),
        ("a time limit that is none", header("timelimit", json!(7)), None, DEAD),
        (
            "no time limits",
            header("timelimit", json!([0, 0])),
            Some("SUCCESS"),
            !DEAD,
        ),
        (
            "half a character as an argument",
            arguments("\"\\ud800\""),
            Some("FAILURE"),
            !DEAD,
        ),
        ("400 digits as an argument", arguments(&huge), Some("FAILURE"), !DEAD),
        ("1e999 as an argument", arguments("1e999"), Some("FAILURE"), !DEAD),
        (
            "20 digits as an argument",
            arguments("99999999999999999999"),
            Some("SUCCESS"),
            !DEAD,
        ),
    ];
    let sent: Vec<(String, Row)> = rows
        .into_iter()
        .map(|row| {
            let id = uuid::Uuid::new_v4().to_string();
            redis.command::<i64>(&["LPUSH", "celery", &row.1(&id)]);
            (id, row)
        })
        .collect();
    let client = redis.client().await;
    let good = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(good.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
    until("nothing is held", async || {
        redis.length("HLEN", "unacked") == 0 && redis.length("LLEN", "celery") == 0
    })
    .await;
    let dead: Vec<String> = redis.command(&["LRANGE", "celery.dead", "0", "-1"]);
    let mut wrong = Vec::new();
    for (id, (what, _, state, is_dead)) in &sent {
        let result: Option<String> = redis.command(&["GET", &format!("celery-task-meta-{id}")]);
        let result = result.map(|text| serde_json::from_str::<Value>(&text).unwrap());
        let became = result.as_ref().and_then(|result| result["status"].as_str());
        let kept = dead.iter().any(|entry| entry.contains(id));
        if (became, kept) != (*state, *is_dead) {
            wrong.push(format!("{what}: {became:?}, a dead letter: {kept}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), worker.log());
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
    assert_eq!(worker.stop(), Some(0));
}

/// What comes on the channels of remote control and of events, and among the answers to a question, may be anything.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_channels_of_workers_harms_nobody() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &["-c", "1", "-n", "one@here"]);
    let envelope = |headers: Value, body: &str| {
        let properties = json!({"body_encoding": "base64", "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            "delivery_mode": 1, "priority": 0, "delivery_tag": "x"});
        let message = json!({"body": STANDARD.encode(body), "content-encoding": "utf-8", "content-type": "application/json",
            "headers": headers, "properties": properties});
        message.to_string().into_bytes()
    };
    let bodies = [
        "",
        "{",
        "null",
        "7",
        "[]",
        "{}",
        "\"x\"",
        "[[[[{}]]]]",
        r#"{"method": 7}"#,
        r#"{"method": "ping", "arguments": [1, 2]}"#,
        r#"{"method": "ping", "destination": "one@here"}"#,
        r#"{"method": "ping", "reply_to": "me", "ticket": {}}"#,
        r#"{"method": "ping", "matcher": "pcre", "pattern": "((((("}"#,
        r#"{"method": "ping", "matcher": 7, "pattern": 7}"#,
        r#"{"method": "revoke", "arguments": {"task_id": {"a": [1e999]}}}"#,
        r#"{"method": "revoke", "arguments": {"task_id": ["\ud800", null, 7], "signal": [], "terminate": "x"}}"#,
        r#"{"method": "rate_limit", "arguments": {"task_name": [], "rate_limit": {"x": 1}}}"#,
        r#"{"method": "time_limit", "arguments": {"task_name": "hello.add", "hard": "soon", "soft": -1e308}}"#,
        r#"{"method": "pool_grow", "arguments": {"n": -99999999999999999999}}"#,
        r#"{"method": "autoscale", "arguments": {"max": "x", "min": null}}"#,
        r#"{"method": "add_consumer", "arguments": {"queue": ["x"]}}"#,
        r#"{"method": "no_such_thing", "arguments": {"\u0000": "\u0000"}}"#,
        r#"{"type": "worker-heartbeat"}"#,
        r#"{"type": 7, "hostname": 7, "clock": "x"}"#,
        r#"{"type": "worker-heartbeat", "hostname": "two@here", "clock": 1e999, "timestamp": "x"}"#,
        r#"{"type": "worker-heartbeat", "hostname": "two@here", "clock": -1, "timestamp": 1e308, "freq": -1}"#,
        r#"{"type": "worker-heartbeat", "hostname": "two@here", "clock": 18446744073709551615, "utcoffset": 1e9}"#,
        r#"{"type": "worker-elect", "id": {}, "clock": [], "topic": 7, "action": null}"#,
        r#"[{"type": "worker-online"}, 7, null]"#,
    ];
    let deep = "[".repeat(200_000);
    let clocks = [
        json!(-1),
        json!("x"),
        json!(u64::MAX),
        json!(1_u64 << 63),
        json!({"x": 1}),
        json!(1e300),
    ];
    let mut garbage: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\xff\xfe\x00\xc3\x28".to_vec(),
        b"garbage".to_vec(),
        b"[]".to_vec(),
        b"{}".to_vec(),
        br#"{"body": 7, "headers": [], "properties": null}"#.to_vec(),
        br#"{"body": "%%%", "content-type": "application/json", "properties": {"body_encoding": "base64"}}"#.to_vec(),
        deep.clone().into_bytes(),
    ];
    garbage.extend(bodies.iter().map(|body| envelope(json!({}), body)));
    garbage.push(envelope(json!({}), &deep));
    garbage.push(envelope(json!([]), "{}"));
    garbage.extend(clocks.map(|clock| envelope(json!({"clock": clock}), r#"{"method": "ping"}"#)));
    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let channels = [
        "/0.celery.pidbox",
        "/0.celeryev/worker.heartbeat",
        "/0.celeryev/worker.elect",
        "/0.celeryev/worker.#",
    ];
    for channel in channels {
        for message in &garbage {
            redis::cmd("PUBLISH")
                .arg(channel)
                .arg(message)
                .exec(&mut connection)
                .unwrap();
        }
    }
    // Whoever asks gets all of it among the answers: a worker that starts and says hello, and a client.
    let asked = AtomicUsize::new(0);
    let ends = AtomicBool::new(false);
    let (garbage, asked, ends) = (&garbage, &asked, &ends);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut seen = HashSet::new();
            while !ends.load(Ordering::Relaxed) {
                let places: Vec<String> = redis::cmd("SMEMBERS")
                    .arg("_kombu.binding.reply.celery.pidbox")
                    .query(&mut connection)
                    .unwrap();
                for queue in places.iter().filter_map(|place| place.rsplit('\u{16}').next()) {
                    if seen.insert(queue.to_owned()) {
                        redis::cmd("LPUSH")
                            .arg(queue)
                            .arg(garbage)
                            .exec(&mut connection)
                            .unwrap();
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let two = Worker::start(&redis, &["-c", "1", "-n", "two@here"]);
                let client = redis.client().await;
                until("both answer", async || {
                    client.workers(Duration::from_millis(300)).await.is_ok_and(|found| {
                        ["one@here", "two@here"]
                            .iter()
                            .all(|node| found.iter().any(|found| found == node))
                    })
                })
                .await;
                let sum = client.send(Call::new("hello.add").arg(1)).await.unwrap();
                assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
                for worker in [&worker, &two] {
                    assert!(!worker.log().contains("panicked"), "{}", worker.log());
                }
                ends.store(true, Ordering::Relaxed);
            });
        });
    });
    assert!(asked.load(Ordering::Relaxed) >= 2, "nobody got garbage for an answer");
}
