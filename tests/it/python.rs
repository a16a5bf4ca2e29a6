//! The stock Python client, command line and Flower against our worker: nothing of ours on the Python side.

use std::process::Command;
use std::time::Duration;

use orchestra::client::{Call, Error};
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Process, Redis, Sim, Worker, python, run_python, until};

const HEAD: &str = "
import sys, time, json
from celery import Celery, group, states
from celery.exceptions import TaskRevokedError, NotRegistered, TimeLimitExceeded
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
";

#[test]
fn celerys_client_sends_and_gets() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &["-c", "2"]);
    let program = HEAD.to_owned()
        + "
assert app.send_task('hello.add', (2, 3)).get(timeout=20) == 5
assert app.send_task('hello.add', kwargs={'x': 4}).get(timeout=20) == 4
assert app.send_task('hello.flaky', (2,)).get(timeout=20) == 2
error = raised(app.send_task('hello.add'))
assert type(error) is TypeError and str(error) == \"hello.add() missing 1 required positional argument: 'x'\", repr(error)
error = raised(app.send_task('hello.add', (2**63 - 1, 1)))
assert type(error) is ValueError, repr(error)
assert type(raised(app.send_task('hello.unknown'))) is NotRegistered
result = app.send_task('hello.sleep', (60,))
until('it runs', lambda: result.state == 'PROGRESS')
assert result.info['total'] == 60
result.revoke(terminate=True)
error = raised(result)
assert type(error) is TaskRevokedError and str(error) == 'terminated', repr(error)
assert result.state == states.REVOKED
error = raised(app.send_task('hello.sleep', (60,), time_limit=1))
assert type(error).__name__ == 'TimeLimitExceeded', repr(error)
results = [app.send_task('hello.add', (n,)) for n in range(100)]
assert [r.get(timeout=20) for r in results] == list(range(100))
began = time.time()
assert app.send_task('hello.add', (1,), countdown=1).get(timeout=20) == 1
assert time.time() - began >= 1
assert type(raised(app.send_task('hello.add', (1,), expires=-1))) is TaskRevokedError
assert group(app.signature('hello.add', (n, 1)) for n in range(5)).apply_async().get(timeout=20) == [1, 2, 3, 4, 5]
result = app.send_task('hello.add', (1,))
result.get(timeout=20)
result.forget()
assert result.state == states.PENDING
print('all good')
";
    assert_eq!(run_python(&program, &redis.url()), "all good\n");
}

#[test]
fn celerys_command_line_sees_the_worker() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &["-n", "w1@here"]);
    let celery = |arguments: &[&str]| {
        let out = Command::new(python())
            .args(["-m", "celery", "-b", &redis.url()])
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert!(celery(&["status"]).contains("w1@here: \u{1b}[32mOK") || celery(&["status"]).contains("w1@here: OK"));
    assert!(celery(&["inspect", "ping"]).contains("pong"));
    assert!(celery(&["inspect", "registered"]).contains("hello.add"));
    assert!(celery(&["inspect", "active"]).contains("empty"));
    assert!(celery(&["inspect", "stats"]).contains("\"prefetch_count\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn flower_shows_the_worker_and_its_tasks() {
    let redis = Redis::start();
    let arguments = ["-n", "w1@here", "-E", "-c", "1", "--prefetch-multiplier", "1"];
    let mut worker = Worker::start(&redis, &arguments);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    // Flower changes limits only of tasks that its app knows.
    let folder = Folder::new();
    let app = "from celery import Celery\napp = Celery()\n@app.task(name='hello.add')\ndef add(x, y=0): pass\n";
    folder.write("app.py", app);
    let child = Command::new(python())
        .current_dir(folder.path())
        .args([
            "-m",
            "celery",
            "-A",
            "app",
            "-b",
            &redis.url(),
            "flower",
            "--address=127.0.0.1",
            &format!("--port={port}"),
        ])
        .env("FLOWER_UNAUTHENTICATED_API", "true")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let _flower = Process::from(child);
    let api = |path: &str| format!("http://127.0.0.1:{port}/api/{path}");
    let get = async |path: &str| match crate::support::get(&api(path)).await {
        Ok(answer) if answer.status().is_success() => answer.json::<Value>().await.unwrap_or_default(),
        _ => Value::Null,
    };
    until("Flower lists the worker", async || {
        get("workers?refresh=true").await["w1@here"]["stats"]["pid"].is_number()
    })
    .await;
    let shown = &get("workers").await["w1@here"];
    assert!(
        shown["registered"]
            .as_array()
            .unwrap()
            .iter()
            .any(|name| name == "hello.add"),
        "{shown}"
    );
    assert_eq!(shown["active_queues"][0]["name"], "celery");
    let client = redis.client().await;
    let good = client
        .send(orchestra::client::Call::new("hello.add").arg(2).arg(3))
        .await
        .unwrap();
    let bad = client
        .send(orchestra::client::Call::new("hello.add").arg("x"))
        .await
        .unwrap();
    good.get::<i64>(LONG).await.unwrap();
    until("Flower has both tasks", async || {
        get(&format!("task/info/{}", bad.id())).await["state"] == "FAILURE"
            && get(&format!("task/info/{}", good.id())).await["state"] == "SUCCESS"
    })
    .await;
    let good = get(&format!("task/info/{}", good.id())).await;
    assert_eq!(
        (good["name"].as_str(), good["result"].as_str(), good["args"].as_str()),
        (Some("hello.add"), Some("5"), Some("(2, 3)"))
    );
    assert!(good["runtime"].is_number());
    let bad = get(&format!("task/info/{}", bad.id())).await;
    assert!(bad["exception"].as_str().unwrap().starts_with("ValueError("), "{bad}");
    assert!(bad["traceback"].as_str().unwrap().contains("ValueError"), "{bad}");

    // P-210: what waits, whatever its priority, behind one that runs.
    let sleeper = client.send(Call::new("hello.sleep").arg(600)).await.unwrap();
    until("it runs", async || sleeper.state().await.unwrap().as_str() != "PENDING").await;
    let waiting = [0, 6, 9].map(|priority| Call::new("hello.add").arg(1).priority(priority));
    let waiting = client.send_many(&waiting).await.unwrap();
    until("Flower counts them", async || {
        let queues = get("queues/length").await;
        queues["active_queues"][0]["messages"] == 3
    })
    .await;
    // P-208: its buttons.
    let push = async |path: &str| {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = http.post(api(path)).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
    };
    push(&format!("task/revoke/{}?terminate=true", sleeper.id())).await;
    assert!(matches!(sleeper.get::<Value>(LONG).await, Err(Error::Revoked(_))));
    for sum in waiting {
        sum.get::<i64>(LONG).await.unwrap();
    }
    push("worker/pool/grow/w1@here?n=3").await;
    push("worker/pool/shrink/w1@here?n=1").await;
    push("worker/queue/add-consumer/w1@here?queue=more").await;
    push("worker/queue/cancel-consumer/w1@here?queue=celery").await;
    push("task/rate-limit/hello.add?workername=w1@here&ratelimit=50/s").await;
    push("task/timeout/hello.add?workername=w1@here&soft=10&hard=20").await;
    let asked = async |method: &str, arguments: Value| {
        let answers = client.inspect(method, &arguments, None, Duration::from_secs(2)).await;
        answers.unwrap().remove("w1@here").unwrap()
    };
    assert_eq!(asked("stats", json!({})).await["pool"]["max-concurrency"], 3);
    let queues = asked("active_queues", json!({})).await;
    assert_eq!(
        (queues.as_array().unwrap().len(), &queues[0]["name"]),
        (1, &json!("more"))
    );
    let items = json!({"taskinfoitems": ["rate_limit", "time_limit", "soft_time_limit"]});
    let tasks = asked("registered", items).await;
    let wanted = "hello.add [rate_limit=50/s time_limit=20 soft_time_limit=10]";
    assert!(tasks.as_array().unwrap().iter().any(|task| task == wanted), "{tasks}");
    push("worker/shutdown/w1@here").await;
    assert_eq!(worker.process.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_python_shell_asks_a_model() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = Worker::start(&redis, &["--ollama-host", &sim.url]);
    let program = HEAD.to_owned()
        + "
answer = app.send_task('orchestra.generate', kwargs={'model': 'echo', 'prompt': 'one two three'}).get(timeout=20)
assert answer['text'].split() == ['one', 'two', 'three'], answer
assert answer['done_reason'] == 'stop' and answer['usage']['completion_tokens'] >= 3, answer
error = raised(app.send_task('orchestra.generate', kwargs={'model': 'missing', 'prompt': 'x'}))
assert type(error).__name__ == 'ModelNotFound' and 'ollama pull missing' in str(error), repr(error)
error = raised(app.send_task('orchestra.generate', kwargs={'model': 'echo'}))
assert type(error) is TypeError, repr(error)
result = app.send_task('orchestra.generate', kwargs={'model': 'slow', 'prompt': 'x'})
until('it runs', lambda: result.state == 'STARTED')
time.sleep(0.5)
result.revoke(terminate=True)
assert type(raised(result)) is TaskRevokedError
print('all good')
";
    let url = redis.url();
    let ran = tokio::task::spawn_blocking(move || run_python(&program, &url));
    assert_eq!(ran.await.unwrap(), "all good\n");
    // The model sees the connection close.
    let closed = tokio::time::timeout(
        Duration::from_secs(1),
        until("the model is left alone", async || {
            sim.stats().await["client_left_early"] == 1
        }),
    );
    closed.await.expect("within a second");
}
