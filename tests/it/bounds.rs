//! What a worker's memory grows by, whatever others say to it or ask of it. Figures are of a build without
//! optimisation.

use std::time::{Duration, Instant};

use orchestra::client::{Call, Client};
use orchestra::wire::pidbox;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{LONG, Process, Redis, Worker, free_port, get, until};

/// What a process has in memory, and had at most, in bytes.
fn memory(process: &Process) -> (usize, usize) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// glibc keeps of what was freed as much as it has arenas, eight for each core: with two, and what is large given back
/// at once, what is measured is ours on any machine.
const FRUGAL: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "1048576")];

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// One connection for much.
struct Teller(redis::Connection);

impl Teller {
    fn new(redis: &Redis) -> Self {
        let client = redis::Client::open(redis.url()).unwrap();
        Self(client.get_connection().unwrap())
    }

    fn publish(&mut self, channel: &str, payload: &[u8]) {
        let heard: usize = redis::cmd("PUBLISH")
            .arg(channel)
            .arg(payload)
            .query(&mut self.0)
            .unwrap();
        assert!(heard > 0, "nobody listens to {channel}");
    }

    /// An event of another worker.
    fn event(&mut self, kind: &str, mut fields: Value) {
        fields["type"] = format!("worker-{kind}").into();
        let envelope =
            json!({"body": fields.to_string(), "content-type": "application/json", "headers": {}, "properties": {}});
        let channel = format!("/0.celeryev/worker.{}", kind.replace('-', "."));
        self.publish(&channel, envelope.to_string().as_bytes());
    }

    fn command(&mut self, method: &str, arguments: &Value) {
        let request = pidbox::encode_request("celery", method, arguments, None, None).unwrap();
        self.publish("/0.celery.pidbox", &request);
    }
}

async fn answers(client: &Client) {
    until("it answers", async || {
        !client.workers(Duration::from_millis(300)).await.unwrap().is_empty()
    })
    .await;
}

/// Hostnames, ids, stamps and votes that are far longer than any that is right: nothing of them stays, the log has
/// short lines, and the worker answers as before.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_say_is_bounded_in_bytes() {
    let redis = Redis::start();
    let settings = [&FRUGAL[..], &[("ORCHESTRA_MAX_CONTROL_BYTES", "2000000")]].concat();
    let worker = Worker::start_with(&redis, &["-n", "w@here"], &settings);
    worker.wait_for_log("mingle: all alone");
    let (client, mut teller) = (redis.client().await, Teller::new(&redis));
    answers(&client).await;
    let long = |n: usize| format!("{n}{}", "x".repeat(1_000_000));
    let flood = |teller: &mut Teller, n: usize| {
        teller.event("heartbeat", json!({"hostname": long(n), "freq": 2.0}));
        let name = format!("w{}", n % 3);
        let vote = json!({"hostname": name, "id": format!("e{n}"), "topic": "task", "clock": 1, "action": long(n)});
        teller.event("elect", vote);
        teller.command("revoke", &json!({"task_id": [long(n), format!("r{n}")]}));
        teller.command(
            "hello",
            &json!({"from_node": format!("n{n}"), "revoked": [long(n), format!("h{n}")]}),
        );
        teller.command("revoke_by_stamped_headers", &json!({"headers": {"batch": [long(n)]}}));
        teller.command("election", &json!({"id": long(n), "topic": "task"}));
        teller.command(&long(n), &json!({}));
    };
    // What it needs for one of each kind, it needs for any number of them.
    flood(&mut teller, 0);
    answers(&client).await;
    let before = memory(&worker.process).0;
    for n in 1..=40 {
        flood(&mut teller, n);
        answers(&client).await;
    }
    let after = memory(&worker.process).0;
    let grown = mib(after.saturating_sub(before));
    println!(
        "280 MB of odd news: from {:.0} MiB to {:.0} MiB",
        mib(before),
        mib(after)
    );
    assert!(grown < 30.0, "{grown} MiB more");
    let log = worker.log();
    assert!(log.len() < 200_000, "a log of {} bytes", log.len());
    assert!(log.contains("1 ids are longer than max_name_bytes (255)"), "{log}");
    // What was right among them counts.
    let revoked = client
        .inspect("revoked", &json!({}), None, Duration::from_secs(1))
        .await
        .unwrap();
    let revoked: Vec<String> = serde_json::from_value(revoked["w@here"].clone()).unwrap();
    assert_eq!(revoked.len(), 82, "{revoked:.200?}");
}

/// Pub/sub messages that nobody has read yet: those beyond 64 MiB, or 4,096, are dropped, and there is room again when
/// they are read.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_of_pub_sub_is_bounded_in_bytes() {
    // The server closes the connection of who is behind by 32 MB, as one is on a busy machine; that is not meant here.
    let redis = Redis::start_with(&[&["--client-output-buffer-limit", "pubsub", "0", "0", "0"]]);
    let endpoint = orchestra::conn::Endpoint::parse(&redis.url()).unwrap();
    let link = orchestra::conn::Link::connect(&endpoint, Default::default())
        .await
        .unwrap();
    let (mut pushes, mut teller) = (link.pushes(), Teller::new(&redis));
    link.subscribe_to("news").await.unwrap();
    let large = vec![b'x'; 15 << 20];
    for last in ["the end", "the second end"] {
        for _ in 0..6 {
            teller.publish("news", &large);
        }
        // It fits beside four of them.
        teller.publish("news", last.as_bytes());
        until("the last is there", async || pushes.len() >= 5).await;
        let mut lengths = Vec::new();
        for _ in 0..5 {
            lengths.push(pushes.recv().await.unwrap().payload.len());
        }
        assert_eq!(
            lengths,
            [large.len(), large.len(), large.len(), large.len(), last.len()]
        );
    }
    for _ in 0..5000 {
        teller.publish("news", b"");
    }
    until("as many are there as may wait", async || pushes.len() == 4096).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(pushes.len(), 4096);
}

/// The same in msgpack and YAML, whose lists become longer as JSON.
#[tokio::test(flavor = "multi_thread")]
async fn max_control_bytes_is_the_same_in_every_serializer() {
    let redis = Redis::start();
    let settings = [
        ("ORCHESTRA_MAX_CONTROL_BYTES", "20000000"),
        ("ORCHESTRA_ACCEPT_CONTENT", "json,yaml,msgpack"),
    ];
    let worker = Worker::start_with(&redis, &["-n", "w@here"], &settings);
    let program = r#"
import base64, json, sys
from kombu.serialization import dumps
from celery import Celery
import redis
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
server = redis.Redis.from_url(sys.argv[1])
until('it listens', lambda: app.control.ping(timeout=0.5))
def revoke(id, count, serializer, digit=1):
    request = {'method': 'revoke', 'arguments': {'task_id': [id], 'padding': [digit] * count}, 'destination': None}
    type, encoding, body = dumps(request, serializer=serializer)
    body = body if isinstance(body, bytes) else body.encode()
    assert server.publish('/0.celery.pidbox', json.dumps({
        'body': base64.b64encode(body).decode(), 'content-type': type, 'content-encoding': encoding, 'headers': {},
        'properties': {'body_encoding': 'base64'}}))
# 9 MB, and 18 MB as JSON: more than 16 MiB. Then 20 MB and more as JSON.
revoke('fits', 9_000_000, 'msgpack')
until('it was read', lambda: app.control.ping(timeout=1))
revoke('large', 11_000_000, 'msgpack')
revoke('fits-too', 100, 'yaml')
listed = lambda: set(sum((app.control.inspect(timeout=2).revoked() or {}).values(), []))
until('it is revoked', lambda: {'fits', 'fits-too'} <= listed())
assert 'large' not in listed()
"#;
    crate::support::run_python(program, &redis.url());
    worker.wait_for_log("is no control request");
    let mut wrong = Worker::spawn(
        "hello_task",
        &redis,
        &[],
        &[("ORCHESTRA_MAX_CONTROL_BYTES", "67108865")],
    );
    assert_ne!(wrong.process.wait(), Some(0));
    let log = wrong.log();
    assert!(log.contains("max_control_bytes: must be 1 to 67108864"), "{log}");
}

/// A hundred thousand ids in one message: each of them is REVOKED, tasks go on meanwhile, and the memory is what it
/// was.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_revokes_in_one_message_leave_the_memory_as_it_was() {
    let redis = Redis::start();
    let worker = Worker::start_with(&redis, &["-n", "w@here"], &FRUGAL);
    worker.wait_for_log("mingle: all alone");
    let (client, mut teller) = (redis.client().await, Teller::new(&redis));
    answers(&client).await;
    let before = memory(&worker.process).0;
    let ids: Vec<String> = (0..100_000).map(|_| uuid::Uuid::new_v4().to_string()).collect();
    let began = Instant::now();
    teller.command("revoke", &json!({"task_id": ids}));
    let sum = client
        .send(orchestra::client::Call::new("hello.add").arg(1))
        .await
        .unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1);
    let ran = began.elapsed();
    until("all are told", async || redis.command::<usize>(&["DBSIZE"]) > ids.len()).await;
    let state = client.result(&ids[99_999]).state().await.unwrap();
    assert_eq!(state.as_str(), "REVOKED");
    answers(&client).await;
    let (after, most) = memory(&worker.process);
    println!(
        "from {:.0} MiB to {:.0} MiB, {:.0} MiB at most; a task after {ran:?}, all told after {:?}",
        mib(before),
        mib(after),
        mib(most),
        began.elapsed()
    );
    // 5 MiB are the ids, some are the driver's buffer, and some what the allocator keeps for the next time.
    assert!(
        mib(after.saturating_sub(before)) < 32.0,
        "{:.0} MiB more",
        mib(after - before)
    );
    assert!(mib(most - before) < 60.0, "{:.0} MiB at most", mib(most));
}

/// A body of 20 MB whose task gives all of it back, three times: the message, its body, the value and the result are
/// there once each while it runs, and are gone after it. glibc is asked to give back at once what is large, as the
/// unit in `deploy` does: without that it keeps some of it for the next time.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_and_a_result_of_20_mb_are_held_some_times_and_not_kept() {
    let redis = Redis::start();
    let unit = std::fs::read_to_string("deploy/systemd/orchestra-worker.service").unwrap();
    let words = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    let settings: Vec<_> = words
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with("MALLOC_"))
        .filter_map(|word| word.split_once('='))
        .collect();
    assert_eq!(settings.len(), 2, "{unit}");
    let worker = Worker::start_with(&redis, &["-n", "w@here"], &settings);
    let client = redis.client().await;
    answers(&client).await;
    let before = memory(&worker.process).0;
    let text = "x".repeat(20_000_000);
    for _ in 0..3 {
        let call = orchestra::client::Call::new("celery.accumulate").arg(&text);
        let result: Vec<String> = client.send(call).await.unwrap().get(LONG).await.unwrap();
        assert_eq!(result, [text.as_str()]);
    }
    let most = memory(&worker.process).1;
    println!("{:.0} MiB before, {:.0} MiB at most", mib(before), mib(most));
    // The message, the driver's copy of it, its body, the value, the result and what is sent of it, 20 to 27 MB each,
    // though not all at the same time.
    assert!(mib(most - before) < 160.0, "{:.0} MiB at most", mib(most));
    // The connection that brought it is followed by another within a second.
    until("it is gone", async || {
        let now = memory(&worker.process).0;
        println!("{:.0} MiB", mib(now));
        mib(now.saturating_sub(before)) < 40.0
    })
    .await;
}

/// More ids in one request than can be noted, and more tasks in one answer than anybody reads: both have an end, and the
/// log says so.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_request_revokes_and_one_answer_tells_is_bounded() {
    let redis = Redis::start();
    let worker = Worker::start_with(&redis, &["-n", "w@here", "-c", "1", "--prefetch-multiplier", "0"], &[]);
    worker.wait_for_log("mingle: all alone");
    let (client, mut teller) = (redis.client().await, Teller::new(&redis));
    let first = client.send(Call::new("hello.sleep").arg(600)).await.unwrap();
    worker.wait_for_log("received");
    let add = Call::new("hello.add").arg(1);
    client.send_many(std::iter::repeat_n(&add, 10_005)).await.unwrap();
    until("all are held", async || redis.length("HLEN", "unacked") == 10_006).await;
    // What has been taken last may still be on its way to the loop.
    until("as many are told as may be", async || {
        let to = ["w@here".to_owned()];
        let reserved = client.inspect("reserved", &json!({}), Some(&to), LONG).await.unwrap();
        reserved["w@here"].as_array().unwrap().len() == 10_000
    })
    .await;
    worker.wait_for_log("the answer has the first 10000");
    let ids: Vec<String> = (0..200_100).map(|n| n.to_string()).collect();
    teller.command("revoke", &json!({"task_id": ids}));
    worker.wait_for_log("more tasks are revoked than can be noted now");
    drop(first);
}

/// Numbers that can only be typing errors, and queues without end, are refused.
#[tokio::test(flavor = "multi_thread")]
async fn remote_control_makes_a_worker_only_so_large() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &["-n", "w@here"]);
    worker.wait_for_log("mingle: all alone");
    let (client, mut teller) = (redis.client().await, Teller::new(&redis));
    answers(&client).await;
    let ask = async |method: &str, arguments: Value| {
        let to = ["w@here".to_owned()];
        let answers = client.inspect(method, &arguments, Some(&to), LONG).await.unwrap();
        answers["w@here"].to_string()
    };
    let grown = ask("pool_grow", json!({"n": 100_001})).await;
    assert!(grown.contains("a pool has at most 100000 places"), "{grown}");
    // It consumes from one already.
    for n in 1..1000 {
        teller.command("add_consumer", &json!({"queue": format!("q{n}")}));
    }
    let refused = ask("add_consumer", json!({"queue": "q1000"})).await;
    assert!(refused.contains("consumes from 1000 queues already"), "{refused}");
    for _ in 0..1100 {
        teller.command("memsample", &json!({}));
    }
    let dump = ask("memdump", json!({"samples": 2000})).await;
    assert_eq!(dump.matches("    > ").count(), 1000);
    // One that is there is none more.
    let again = ask("add_consumer", json!({"queue": "q1"})).await;
    assert!(again.contains("ok"), "{again}");
}

/// Whoever opens many connections to the metrics and says nothing takes no files from the worker, and keeps nobody out.
#[tokio::test(flavor = "multi_thread")]
async fn silent_visitors_of_the_metrics_make_room() {
    let (redis, port) = (Redis::start(), free_port());
    let address = format!("127.0.0.1:{port}");
    let worker = Worker::start(&redis, &["--metrics-addr", &address]);
    let files = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", worker.process.id()));
        open.unwrap().count()
    };
    let before = files();
    let mut visits = Vec::new();
    for _ in 0..150 {
        let mut visit = TcpStream::connect(&address).await.unwrap();
        visit.write_all(b"GET /metrics HTTP/1.1\r\nX: ").await.unwrap();
        visits.push(visit);
    }
    // All of them were taken before this one.
    let well = get(&format!("http://{address}/healthz")).await.unwrap();
    assert_eq!(well.status(), 200);
    until("the oldest have made room", async || files() < before + 50).await;
    for mut visit in visits {
        let ended = tokio::time::timeout(LONG, visit.read(&mut [0; 1])).await;
        assert!(
            matches!(ended, Ok(Ok(0) | Err(_))),
            "it is ended and not answered: {ended:?}"
        );
    }
}
