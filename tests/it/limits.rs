//! What is too large is refused with a word, and the worker goes on.

use std::time::Duration;

use nix::sys::signal::Signal;
use orchestra::client::{Call, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{Folder, LONG, Redis, Sim, Worker, get, run_python, until};

/// The caller is told that its result was too large, in chains as well; what fits is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_beyond_max_result_bytes_is_a_failure() {
    let redis = Redis::start();
    let worker = Worker::start_with(&redis, &[], &[("ORCHESTRA_MAX_RESULT_BYTES", "5")]);
    let program = "
import sys
from celery import Celery
from orchestra.exceptions import ResultTooLarge
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
nap = lambda n: app.signature('hello.nap', (1, n))
assert app.send_task('hello.nap', (1, 12345)).get(timeout=30) == 12345
too_large = nap(123456).delay()
error = raised(too_large)
assert isinstance(error, ResultTooLarge), error
assert '6 bytes and may have 5' in str(error) and 'max_result_bytes' in str(error), error
after = (nap(123456) | nap(2).clone(immutable=True)).delay()
assert isinstance(raised(after.parent), ResultTooLarge)
";
    run_python(program, &redis.url());
    let sum = redis.client().await.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
}

/// Bombs of every kind: what they unpack to is bounded, and their senders are told.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_unpack_to_more_than_max_body_bytes_are_refused() {
    let redis = Redis::start();
    let settings = [
        ("ORCHESTRA_MAX_BODY_BYTES", "100000"),
        ("ORCHESTRA_ACCEPT_CONTENT", "json,yaml,msgpack"),
    ];
    let worker = Worker::start_with(&redis, &[], &settings);
    let program = r#"
import base64, bz2, json, lzma, sys, zlib
from celery import Celery
import redis
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
server = redis.Redis.from_url(sys.argv[1])
def send(name, body, content_type='application/json', **headers):
    headers = {'id': name, 'task': 'hello.add', **headers}
    server.lpush('celery', json.dumps({
        'body': base64.b64encode(body).decode(), 'content-type': content_type, 'headers': headers,
        'properties': {'body_encoding': 'base64', 'correlation_id': name}}))
bomb = b'[["' + b'x' * 10_000_000 + b'"], {}, {}]'
send('plain', b'[["' + b'x' * 100_001 + b'"], {}, {}]')
send('gzip', zlib.compress(bomb), compression='application/x-gzip')
send('bzip2', bz2.compress(bomb), compression='application/x-bz2')
send('xz', lzma.compress(bomb), compression='application/x-lzma')
laughs = '- &a0 [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'- &a{n} [' + ', '.join([f'*a{n - 1}'] * 9) + ']\n' for n in range(1, 9))
send('yaml', laughs.encode(), 'application/x-yaml')
send('deep', b'[' * 100_000, )
send('deep-yaml', b'[' * 50_000, 'application/x-yaml')
send('msgpack', b'\x91' * 50_000, 'application/x-msgpack')
for name in ['plain', 'gzip', 'bzip2', 'xz', 'yaml', 'deep', 'deep-yaml', 'msgpack']:
    error = raised(app.AsyncResult(name))
    print(name, type(error).__name__, str(error)[:90])
    assert type(error).__name__ == 'DecodeError', (name, error)
assert app.send_task('hello.add', (1, 2)).get(timeout=20) == 3
"#;
    run_python(program, &redis.url());
    assert_eq!(redis.length("LLEN", "celery.dead"), 8);
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
}

/// A control request that is too large is named in the log and not read; the next one is answered.
#[tokio::test(flavor = "multi_thread")]
async fn control_requests_beyond_max_control_bytes_are_not_read() {
    let redis = Redis::start();
    let worker = Worker::start_with(&redis, &[], &[("ORCHESTRA_MAX_CONTROL_BYTES", "2000")]);
    until("it listens", async || {
        redis.command::<i64>(&["PUBLISH", "/0.celery.pidbox", &"x".repeat(2001)]) > 0
    })
    .await;
    worker.wait_for_log("larger than max_control_bytes (2000)");
    let workers = redis.client().await.workers(Duration::from_secs(2)).await.unwrap();
    assert_eq!(workers.len(), 1, "{}", worker.log());
}

/// Ids and names that are too long, and arguments that are too deep, are dead letters, and their senders are told.
#[tokio::test(flavor = "multi_thread")]
async fn names_and_depths_beyond_the_settings_are_refused() {
    let redis = Redis::start();
    let settings = [("ORCHESTRA_MAX_NAME_BYTES", "20"), ("ORCHESTRA_MAX_DEPTH", "5")];
    let worker = Worker::start_with(&redis, &[], &settings);
    let program = r#"
import json, sys
from celery import Celery
import redis
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
server = redis.Redis.from_url(sys.argv[1])
def send(id, argument):
    server.lpush('celery', json.dumps({
        'body': json.dumps([[argument], {}, {}]), 'content-type': 'application/json',
        'headers': {'id': id, 'task': 'celery.accumulate'}, 'properties': {}}))
nested = lambda levels: [] if levels == 1 else [nested(levels - 1)]
send('x' * 21, 1)
send('deep', nested(5))
error = raised(app.AsyncResult('deep'))
assert type(error).__name__ == 'DecodeError' and 'max_depth' in str(error), error
send('y' * 20, nested(4))
assert app.AsyncResult('y' * 20).get(timeout=20) == [nested(4)]
"#;
    run_python(program, &redis.url());
    assert_eq!(redis.length("LLEN", "celery.dead"), 2);
    let refused = "the task id or name is larger than the limit of 20 bytes";
    assert!(worker.log().contains(refused), "{}", worker.log());
    let mut worker = Worker::spawn("hello_task", &redis, &[], &[("ORCHESTRA_MAX_DEPTH", "128")]);
    assert_ne!(worker.process.wait(), Some(0));
    assert!(worker.log().contains("max_depth: must be 1 to 127"), "{}", worker.log());
}

/// Texts of templates: loops that never end, and texts that grow, end with a word that names the setting.
#[tokio::test(flavor = "multi_thread")]
async fn texts_of_templates_are_bounded_in_work_and_length() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let step = |text: &str| {
        format!(
            "parameters:\n  n: {{type: integer}}\nsteps:\n- {{id: a, type: format_output, format: text, value: {text:?}}}\n"
        )
    };
    folder.write("works.yaml", &step("{% for i in range(n) %}{% endfor %}done"));
    folder.write("grows.yaml", &step("{% for i in range(n) %}xxxxxxxxxx{% endfor %}"));
    let folder = folder.path().to_str().unwrap();
    let settings = [
        ("ORCHESTRA_AI_TEMPLATE_STEPS", "2000"),
        ("ORCHESTRA_AI_MAX_TEXT_BYTES", "100"),
    ];
    let _worker = Worker::start_with(&redis, &["--templates", folder], &settings);
    let client = redis.client().await;
    for (name, n, told) in [
        ("works", 100, None),
        ("works", 100_000, Some("ai_template_steps")),
        ("grows", 10, None),
        ("grows", 11, Some("longer than 100 bytes (ai_max_text_bytes)")),
    ] {
        let call = Call::new("orchestra.run").arg(name).arg(serde_json::json!({"n": n}));
        let ended = client.send(call).await.unwrap().get::<String>(LONG).await;
        match told {
            None => assert!(ended.is_ok(), "{name} {n}: {ended:?}"),
            Some(told) => assert!(
                ended.as_ref().is_err_and(|error| error.to_string().contains(told)),
                "{ended:?}"
            ),
        }
    }
}

/// Results wait for a Redis that is away, but not without bound: then no task is started, and all goes on when it is
/// back.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_redis_is_bounded_in_bytes() {
    let mut redis = Redis::start();
    let settings = [("ORCHESTRA_WORKER_BACKLOG_BYTES", "100000")];
    let worker = Worker::start_with(&redis, &["-c", "1", "--prefetch-multiplier", "20"], &settings);
    let client = redis.client().await;
    // It runs until Redis is gone, also on a busy machine.
    let first = client.send(Call::new("hello.nap").arg(4500).arg(1)).await.unwrap();
    let large = || Call::new("celery.accumulate").arg("x".repeat(60_000));
    let mut pending = Vec::new();
    for _ in 0..10 {
        pending.push(client.send(large()).await.unwrap());
    }
    until("all are held", async || redis.length("HLEN", "unacked") >= 10).await;
    redis.stop();
    worker.wait_for_log("worker_backlog_bytes");
    // Long enough to start the others, if that were allowed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let succeeded = worker
        .log()
        .lines()
        .filter(|line| line.contains("accumulate") && line.contains("succeeded"))
        .count();
    // The one that was begun when the second result filled it may end.
    assert!((2..=3).contains(&succeeded), "{succeeded}: {}", worker.log());
    redis.start_again();
    assert_eq!(first.get::<u64>(LONG).await.unwrap(), 1, "{}", worker.log());
    for pending in pending {
        assert_eq!(pending.get::<Vec<String>>(LONG).await.unwrap()[0].len(), 60_000);
    }
    // Once each time that it is reached, not for each task.
    let said = worker.log().matches("worker_backlog_bytes").count();
    assert!((1..=5).contains(&said), "{}", worker.log());
}

/// A model that speaks while results cannot be written fills no memory: what finds no room is left out of the stream
/// and counted, and the answer is whole.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_wait_for_redis_are_bounded_in_number() {
    let (redis, results, sim) = (Redis::start(), Redis::start(), Sim::start());
    let address = format!("127.0.0.1:{}", crate::support::free_port());
    let results_url = results.url();
    let arguments = [
        "-c",
        "2",
        "--ollama-host",
        &sim.url,
        "--metrics-addr",
        &address,
        "--result-backend",
        &results_url,
    ];
    let worker = Worker::start_with(&redis, &arguments, &[("ORCHESTRA_WORKER_BACKLOG_BYTES", "100000")]);
    let page = async || {
        get(&format!("http://{address}/metrics"))
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    };
    let client = redis.client().await;
    results.signal(Signal::SIGSTOP);
    let call = Call::new("orchestra.generate").arg("endless").arg("x");
    let call = call.kwarg("options", json!({"num_predict": 20_000}));
    let pending = client.send(call).await.unwrap();
    let ended = "orchestra_tasks_total{task=\"orchestra.generate\",state=\"succeeded\"} 1\n";
    until("it has ended", async || page().await.contains(ended)).await;
    let metric = async |name: &str| {
        let page = page().await;
        let value = page.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        value.parse::<u64>().unwrap()
    };
    let dropped = metric("orchestra_stream_entries_dropped_total ").await;
    let waiting = metric("orchestra_writes_waiting ").await;
    // 8,192 notes wait, and as many entries as fill the 100,000 bytes.
    assert!(
        dropped > 8_000 && waiting < 4_000,
        "{dropped} dropped, {waiting} wait: {}",
        worker.log()
    );
    // Nor is it filled by whoever asks how the worker is.
    for _ in 0..100 {
        client.workers(Duration::from_millis(1)).await.unwrap();
    }
    client
        .inspect("pool_grow", &json!({"n": 1}), None, Duration::from_millis(1))
        .await
        .unwrap();
    until("all has been asked", async || {
        metric("orchestra_pool_places ").await == 3
    })
    .await;
    let more = metric("orchestra_writes_waiting ").await - waiting;
    assert!(more < 50, "{more} more");
    results.signal(Signal::SIGCONT);
    let results = Client::connect(&results.url()).await.unwrap();
    let answer: Value = results.result(pending.id()).get(LONG).await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 20_000);
}

/// Redis is asked what it does with what it confirmed, and what can lose messages is said once, at the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_can_lose_messages_is_warned_of() {
    let safe = Redis::start();
    let worker = Worker::start(&safe, &[]);
    assert!(!worker.log().contains("WARN"), "{}", worker.log());
    let unsafe_ = Redis::start_with(&[&["--appendonly", "no"], &["--maxmemory-policy", "allkeys-lru"]]);
    let worker = Worker::start(&unsafe_, &[]);
    for word in ["may delete whole queues", "keeps nothing on disk"] {
        assert_eq!(worker.log().matches(word).count(), 1, "{}", worker.log());
    }
    // The Redis of the results is asked, too.
    let worker = Worker::start(&safe, &["--result-backend", &unsafe_.url()]);
    let log = worker.log();
    for word in [
        "the result backend: Redis may delete",
        "the result backend: Redis keeps nothing",
    ] {
        assert_eq!(log.matches(word).count(), 1, "{log}");
    }
    assert_eq!(log.matches("WARN").count(), 2, "{log}");
    // Who may not ask is not told, and works.
    unsafe_.command::<()>(&["ACL", "SETUSER", "default", "-config", "-info"]);
    let worker = Worker::start(&unsafe_, &[]);
    assert!(!worker.log().contains("WARN"), "{}", worker.log());
}

/// A server that answers by the name of the model, and how often each was asked of.
async fn misbehaving_server(elsewhere: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut request, mut bytes) = (String::new(), [0; 4096]);
                while !request.contains("\"model\"") {
                    let Ok(count @ 1..) = stream.read(&mut bytes).await else {
                        return;
                    };
                    request.push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
                let model = request.split("\"model\":\"").nth(1).unwrap().split('"').next().unwrap();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n";
                let piece = "{\"response\":\"a\",\"done\":false}\n";
                let answer: Vec<u8> = match model {
                    "redirect" => format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{elsewhere}/\r\nContent-Length: 0\r\n\r\n").into(),
                    "html" => "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello".into(),
                    "long-line" => format!("{head}{{\"response\":\"{}", "x".repeat(300_000)).into(),
                    "many" => format!("{head}{}", piece.repeat(30_000)).into(),
                    "tools" => format!("{head}{}", "{\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{}}}]}\n".repeat(4_000)).into(),
                    "no-json" => format!("{head}{piece}{{nope\n").into(),
                    "no-utf-8" => [head.as_bytes(), b"{\"response\":\"\xff\"}\n"].concat(),
                    "no-end" => format!("{head}{piece}").into(),
                    "error" => format!("{head}{piece}{{\"error\":\"out of luck\"}}\n").into(),
                    "bad-chunk" => "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".into(),
                    _ => format!("{head}{piece}").into(),
                };
                let _ = stream.write_all(&answer).await;
                if model == "hang" {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    url
}

/// Whatever a model server does, the caller is told what it was, and nobody else is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_server_that_misbehaves_is_named() {
    let redis = Redis::start();
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = misbehaving_server(elsewhere.local_addr().unwrap().port()).await;
    let settings = [
        ("ORCHESTRA_AI_STALL_TIMEOUT", "1"),
        ("ORCHESTRA_AI_FIRST_TOKEN_TIMEOUT", "20"),
        ("ORCHESTRA_AI_MAX_ANSWER_BYTES", "20000"),
    ];
    let worker = Worker::start_with(&redis, &["-c", "20", "--ollama-host", &url], &settings);
    let client = redis.client().await;
    let told = [
        ("redirect", "HTTP 302"),
        ("html", "HTTP 200: hello"),
        ("long-line", "longer than 20000 bytes (ai_max_answer_bytes)"),
        ("many", "longer than 20000 bytes (ai_max_answer_bytes)"),
        ("tools", "longer than 20000 bytes (ai_max_answer_bytes)"),
        ("no-json", "the answer is no JSON"),
        ("no-utf-8", "the answer is no JSON"),
        ("no-end", "the answer ended before it was done"),
        ("error", "the model failed: out of luck"),
        ("bad-chunk", "the connection to the model server broke"),
        ("hang", "the answer stopped for 1 s"),
    ];
    let mut pending = Vec::new();
    for (model, text) in told {
        let call = Call::new("orchestra.generate").arg(model).arg("hello");
        pending.push((model, text, client.send(call).await.unwrap()));
    }
    for (model, text, pending) in pending {
        let error = pending.get::<serde_json::Value>(LONG).await.unwrap_err().to_string();
        assert!(error.contains(text), "{model}: {error}");
    }
    let asked = tokio::time::timeout(Duration::from_millis(100), elsewhere.accept()).await;
    assert!(asked.is_err(), "the redirect was followed");
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
}

/// What a later delivery would have to do again is kept within a bound: the step whose result is too large for it runs
/// a second time, the other one does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_keeps_no_more_than_max_kept_bytes() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let large = "x".repeat(20_000);
    let step = |id: &str, model: &str, prompt: &str| {
        format!("- {{id: {id}, type: ollama_generate, model: {model}, prompt: {prompt}}}\n")
    };
    let steps = [
        step("a", "echo", "small"),
        step("b", "echo", &large),
        step("c", "flaky", "end"),
    ];
    folder.write("keeps.yaml", &format!("steps:\n{}", steps.concat()));
    let templates = [
        "--ollama-host",
        &sim.url,
        "--templates",
        folder.path().to_str().unwrap(),
    ];
    let worker = Worker::start_with(&redis, &templates, &[("ORCHESTRA_MAX_KEPT_BYTES", "10000")]);
    let client = redis.client().await;
    let call = Call::new("orchestra.run").arg("keeps").arg(json!({}));
    let _: Value = client.send(call).await.unwrap().get(LONG).await.unwrap();
    let requests = sim.requests().await;
    let asked = |prompt: &str| {
        let its = |body: &str| serde_json::from_str::<Value>(body).is_ok_and(|body| body["prompt"] == prompt);
        requests
            .iter()
            .filter(|one| one["body"].as_str().is_some_and(its))
            .count()
    };
    assert_eq!(
        (asked("small"), asked(&large), asked("end")),
        (1, 2, 2),
        "{}",
        worker.log()
    );
    assert!(worker.log().contains("s:b is not kept"), "{}", worker.log());
}

/// A model that speaks without end fills no Redis: of its tokens the newest are in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_stream_keeps_its_newest_entries() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = Worker::start_with(
        &redis,
        &["--ollama-host", &sim.url],
        &[("ORCHESTRA_MAX_STREAM_ENTRIES", "100")],
    );
    let client = redis.client().await;
    let call = Call::new("orchestra.generate").arg("endless").arg("x");
    let call = call.kwarg("options", json!({"num_predict": 2000}));
    let pending = client.send(call).await.unwrap();
    let answer: Value = pending.get(LONG).await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 2000);
    let key = format!("orchestra:stream:{}", pending.id());
    let last = || redis.try_command(&["XREVRANGE", &key, "+", "-", "COUNT", "1"]).unwrap();
    until("it has its end", async || format!("{:?}", last()).contains("SUCCESS")).await;
    // Redis takes away whole nodes of a hundred.
    let length = redis.length("XLEN", &key);
    assert!((100..300).contains(&length), "{length} entries");
    let mut none = Worker::spawn("hello_task", &redis, &[], &[("ORCHESTRA_MAX_STREAM_ENTRIES", "0")]);
    assert_ne!(none.process.wait(), Some(0));
    assert!(
        none.log().contains("max_stream_entries: must be at least 1"),
        "{}",
        none.log()
    );
}

/// A call that sets no end has that of `ai_max_tokens`, one that sets its own keeps it, and 0 sets none.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_an_end_of_its_own_ends_at_ai_max_tokens() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let client = redis.client().await;
    let tokens = async |options: Value| {
        let call = Call::new("orchestra.generate")
            .arg("lorem")
            .arg("x")
            .kwarg("options", options);
        let answer: Value = client.send(call).await.unwrap().get(LONG).await.unwrap();
        (
            answer["usage"]["completion_tokens"].as_u64().unwrap(),
            answer["truncated"].clone(),
        )
    };
    let worker = |most| {
        Worker::start_with(
            &redis,
            &["--ollama-host", &sim.url],
            &[("ORCHESTRA_AI_MAX_TOKENS", most)],
        )
    };
    let mut some = worker("7");
    assert_eq!(tokens(json!({})).await, (7, true.into()));
    assert_eq!(tokens(json!({"num_predict": 9})).await, (9, true.into()));
    some.stop();
    let _any = worker("0");
    assert_eq!(tokens(json!({})).await, (100, false.into()));
}

/// A template is read when it has a mebibyte, and refused when it has a byte more, or no end at all.
#[test]
fn a_template_file_has_a_mebibyte_at_most() {
    let folder = Folder::new();
    let template = "steps:\n- {type: format_output, format: text, value: hello}\n# ";
    let lint = || {
        let mut command = std::process::Command::new(crate::support::program("orchestra"));
        command
            .args(["templates", "lint", "templates/large.yaml"])
            .env_clear()
            .current_dir(folder.path());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let fits = format!("{template}{}", "x".repeat((1 << 20) - template.len()));
    let path = folder.write("templates/large.yaml", &fits);
    assert_eq!(lint(), (true, String::new()));
    folder.write("templates/large.yaml", &format!("{fits}x"));
    let refused = |(passes, text): (bool, String)| {
        assert!(
            !passes && text.contains("large.yaml: is larger than 1048576 bytes"),
            "{text}"
        );
    };
    refused(lint());
    // It says that it is empty.
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    refused(lint());
}
