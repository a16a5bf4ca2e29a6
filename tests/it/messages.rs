//! Messages that no client of ours would send: the worker says what is wrong and goes on.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orchestra::client::Call;
use serde_json::{Value, json};

use crate::support::{LONG, Redis, Worker, until};

/// A message as Celery sends it, to be spoiled.
pub fn message(id: &str, body: &Value) -> Value {
    json!({
        "body": STANDARD.encode(body.to_string()),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "hello.add", "id": id, "retries": 0, "timelimit": [null, null], "root_id": id, "parent_id": null, "origin": "x"},
        "properties": {"correlation_id": id, "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"},
                       "priority": 0, "body_encoding": "base64", "delivery_tag": id},
    })
}

fn with(change: impl FnOnce(&mut Value)) -> String {
    let mut message = message(&uuid::Uuid::new_v4().to_string(), &json!([[1], {}, {}]));
    change(&mut message);
    message.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_the_worker_goes_on() {
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, &["-c", "2"]);
    let garbage = [
        String::new(),
        "garbage".into(),
        "{}".into(),
        "[]".into(),
        "null".into(),
        "{\"body\": ".into(),
        format!("{{\"body\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000)),
        with(|message| message["body"] = json!("%%% no base64 %%%")),
        with(|message| message["body"] = json!(STANDARD.encode("not json"))),
        with(|message| message["body"] = json!(STANDARD.encode("{}"))),
        with(|message| message["body"] = json!(STANDARD.encode("[1, 2, 3]"))),
        with(|message| message["content-type"] = json!("application/x-python-serialize")),
        with(|message| message["headers"] = json!(null)),
        with(|message| message["headers"]["id"] = json!(["no", "text"])),
        with(|message| message["headers"]["id"] = json!("x".repeat(100_000))),
        with(|message| message["headers"]["compression"] = json!("zip-bomb")),
        with(|message| message["properties"] = json!(7)),
        "\u{0}\u{1}\u{2}".into(),
    ];
    let count = garbage.len();
    for message in &garbage {
        redis.command::<i64>(&["LPUSH", "celery", message]);
    }
    let client = redis.client().await;
    let good = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(good.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
    until("nothing is held", async || {
        redis.length("HLEN", "unacked") == 0 && redis.length("LLEN", "celery") == 0
    })
    .await;
    let refused =
        worker.log().matches(" was refused: ").count() + worker.log().matches(" was moved to celery.dead").count();
    assert_eq!(refused, count, "each is named in the log:\n{}", worker.log());
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
    // Each is kept for somebody to look at, byte for byte, with the reason; the oldest is the last.
    let dead: Vec<String> = redis.command(&["LRANGE", "celery.dead", "0", "-1"]);
    let (mut kept, mut failed) = (Vec::new(), 0);
    for letter in &dead {
        let (head, message) = letter.split_once('\n').unwrap();
        let head: Value = serde_json::from_str(head).unwrap();
        let reason = head["reason"].as_str().unwrap();
        assert!(
            !reason.is_empty() && head["queue"] == "celery" && head["time"].as_f64() > Some(0.0),
            "{head}"
        );
        kept.push(message);
        // Whoever waits for a task whose id could be read hears of it, in the words of the letter.
        if let Some(id) = head["id"].as_str() {
            let failure = client.result(id).get::<Value>(LONG).await.unwrap_err().to_string();
            assert!(failure.contains(reason), "{head}: {failure}");
            failed += 1;
        }
    }
    kept.sort_unstable();
    let mut sent: Vec<&str> = garbage.iter().map(String::as_str).collect();
    sent.sort_unstable();
    assert_eq!(kept, sent);
    assert_eq!(failed, 7);
    assert_eq!(
        redis.command::<Vec<String>>(&["KEYS", "celery-task-meta-*"]).len(),
        failed + 1
    );
    assert_eq!(worker.stop(), Some(0));
}

/// What Python reads and Rust has no place for: a Python worker would run it, so that it is a message, and no dead
/// letter; the task fails, and says which argument it is.
#[tokio::test(flavor = "multi_thread")]
async fn arguments_that_no_rust_value_can_hold_are_named() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    let digits = "9".repeat(400);
    // A task with fields, and one that is given values.
    for (task, body, names) in [
        (
            "hello.add",
            r#"[["\ud800"], {}, {}]"#,
            "argument 'x': it holds half of a surrogate pair",
        ),
        (
            "hello.add",
            r#"[[1], {"y": 1e999}, {}]"#,
            "argument 'y': it holds a number",
        ),
        (
            "hello.add",
            &format!("[[1, {digits}], {{}}, {{}}]"),
            "argument 'y': it holds a number",
        ),
        (
            "celery.accumulate",
            r#"[[1, "\udfff"], {}, {}]"#,
            "argument 2 cannot be read: it holds half of a surrogate pair",
        ),
        (
            "celery.accumulate",
            &format!("[[{digits}], {{}}, {{}}]"),
            "argument 1 cannot be read: it holds a number",
        ),
        (
            "celery.accumulate",
            r#"[[], {"index": 1e999}, {}]"#,
            "argument 'index' cannot be read: it holds a number",
        ),
    ] {
        let id = uuid::Uuid::new_v4().to_string();
        let mut message = message(&id, &json!(null));
        message["body"] = json!(STANDARD.encode(body));
        message["headers"]["task"] = json!(task);
        redis.command::<i64>(&["LPUSH", "celery", &message.to_string()]);
        let failure = client.result(&id).get::<Value>(LONG).await.unwrap_err().to_string();
        assert!(
            failure.contains("ValueError") && failure.contains(names),
            "{body}: {failure}"
        );
    }
    until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
    assert_eq!(redis.length("EXISTS", "celery.dead"), 0, "{}", worker.log());
}

/// Odd, but good enough for Celery, so good enough for us.
#[tokio::test(flavor = "multi_thread")]
async fn odd_messages_are_run() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    type Change = Box<dyn Fn(&mut Value)>;
    let odd: [(&str, Change); 7] = [
        (
            "an encoding that JSON does not have",
            Box::new(|message| message["content-encoding"] = json!("klingon")),
        ),
        (
            "more headers",
            Box::new(|message| message["headers"]["x-mine"] = json!({"a": [1]})),
        ),
        (
            "an ETA long past",
            Box::new(|message| message["headers"]["eta"] = json!("1970-01-01T00:00:00+00:00")),
        ),
        (
            "an expiry far ahead",
            Box::new(|message| message["headers"]["expires"] = json!("9999-12-31T23:59:59")),
        ),
        (
            "no priority",
            Box::new(|message| drop(message["properties"].as_object_mut().unwrap().remove("priority"))),
        ),
        ("more at the top", Box::new(|message| message["more"] = json!(1))),
        (
            "a null body part",
            Box::new(|message| {
                message["body"] = json!(STANDARD.encode("[[1], {}, {\"callbacks\": null, \"chain\": null}]"))
            }),
        ),
    ];
    for (what, change) in odd {
        let id = uuid::Uuid::new_v4().to_string();
        let mut message = message(&id, &json!([[1], {}, {}]));
        change(&mut message);
        redis.command::<i64>(&["LPUSH", "celery", &message.to_string()]);
        let result = client.result(&id).get::<i64>(LONG).await;
        assert_eq!(result.ok(), Some(1), "{what}: {}", worker.log());
    }
}

/// A callback that is a very long chain: nothing in the worker is as deep as that is long.
#[tokio::test(flavor = "multi_thread")]
async fn a_very_long_chain_is_begun() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &[]);
    let step = |options: Value| json!({"task": "hello.add", "args": [1], "kwargs": {}, "options": options, "subtask_type": null, "immutable": false});
    let mut steps = vec![step(json!({})); 30_000];
    steps[0] = step(json!({"queue": "nobody"}));
    let chain = json!({"task": "celery.chain", "args": [], "kwargs": {"tasks": steps}, "options": {}, "subtask_type": "chain",
        "immutable": false});
    // Beside another callback: of a group of chains the handle is kept.
    let embed =
        json!({"callbacks": [chain, step(json!({"queue": "nobody"}))], "errbacks": null, "chain": null, "chord": null});
    let message = message("long", &json!([[1], {}, embed]));
    redis.command::<i64>(&["LPUSH", "celery", &message.to_string()]);
    let client = redis.client().await;
    let result = client.result("long").get::<i64>(LONG).await;
    assert_eq!(result.ok(), Some(1), "{}", worker.log());
    until("it is begun", async || redis.length("LLEN", "nobody") == 2).await;
    let again = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(again.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
}

/// A claim has a bound in bytes, and time for what is large: neither one huge message nor many large ones stop a
/// worker.
#[tokio::test(flavor = "multi_thread")]
async fn huge_messages_are_taken_in_portions() {
    let redis = Redis::start();
    let huge = "x".repeat(40 << 20);
    let large = "x".repeat(3 << 20);
    let text = |id: &str, text: &str| {
        let mut message = message(id, &json!([[1], {"note": text}, {}]));
        message["headers"]["argsrepr"] = json!("(1,)");
        message.to_string()
    };
    redis.command::<i64>(&["LPUSH", "celery", &text("huge", &huge)]);
    for n in 0..20 {
        redis.command::<i64>(&["LPUSH", "celery", &text(&format!("large-{n}"), &large)]);
    }
    let worker = Worker::start(&redis, &["-c", "2", "--prefetch-multiplier", "0"]);
    let client = redis.client().await;
    let good = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    let patient = std::time::Duration::from_secs(120);
    assert_eq!(good.get::<i64>(patient).await.unwrap(), 1, "{}", worker.log());
    // Too many arguments: FAILURE, as Python would say, for each of them.
    for id in ["huge", "large-0", "large-19"] {
        let failure = client.result(id).get::<Value>(patient).await.unwrap_err();
        assert!(failure.to_string().contains("TypeError"), "{failure}");
    }
}
