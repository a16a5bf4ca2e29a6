//! Templates as workflows: the graph, loops, what survives a worker, what waits for others, what the host allows.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use orchestra::client::{Call, Client, Error, Pending};
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Redis, Sim, Worker, program, run_python, until};

/// A worker with the templates of a folder.
fn start(redis: &Redis, sim: &Sim, folder: &Folder, arguments: &[&str], environment: &[(&str, &str)]) -> Worker {
    let templates = folder.path().to_str().unwrap();
    let own = ["--ollama-host", &sim.url, "--templates", templates];
    Worker::start_with(redis, &[&own, arguments].concat(), environment)
}

fn run(template: &str, params: Value) -> Call {
    Call::new("orchestra.run").arg(template).arg(params)
}

async fn entries(pending: &Pending) -> Vec<Value> {
    let entries = pending.stream("0").await.unwrap();
    entries
        .iter()
        .map(|entry| serde_json::from_str(entry.entry.get()).unwrap())
        .collect()
}

/// Steps with a status, in order.
fn steps(entries: &[Value], status: &str) -> Vec<String> {
    let with_status = entries
        .iter()
        .filter(|entry| entry["type"] == "step" && entry["status"] == status);
    with_status
        .map(|entry| entry["step"].as_str().unwrap().to_owned())
        .collect()
}

async fn failure(client: &Client, call: Call) -> (String, String) {
    match client.send(call).await.unwrap().get::<Value>(LONG).await {
        Err(Error::Failed { exception, .. }) => (exception.name.clone(), exception.message()),
        other => panic!("no failure but {other:?}"),
    }
}

/// The record of a task, as `AsyncResult` reads it.
fn record(redis: &Redis, id: &str) -> Value {
    let record: Option<String> = redis.command(&["GET", &format!("celery-task-meta-{id}")]);
    record.map_or(Value::Null, |record| serde_json::from_str(&record).unwrap())
}

fn orchestra(folder: &Folder, arguments: &[&str]) -> Output {
    Command::new(program("orchestra"))
        .args(arguments)
        .env_clear()
        .current_dir(folder.path())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}\n{err}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn independent_steps_run_at_once_and_loops_keep_their_order() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    folder.write(
        "graph.yaml",
        "parameters:\n  words: {type: array}\n  loud: {type: boolean, default: false}\nsteps:\n\
         - {id: left, type: ollama_generate, model: slow, prompt: l, options: {num_predict: 8}}\n\
         - {id: right, type: ollama_generate, needs: [], model: slow, prompt: r, options: {num_predict: 8}}\n\
         - {id: each, type: ollama_generate, needs: [], foreach: \"{{ words }}\", parallel: 3, model: echo, prompt: \"{{ index }} {{ item }}\"}\n\
         - {id: shout, type: render, needs: each, when: loud, text: \"{{ steps.each | length }}\"}\n\
         - {id: weak, type: ollama_generate, needs: [], model: missing, prompt: x, on_error: {value: {text: \"instead\"}}}\n\
         - {id: all, type: render, needs: [left, right, shout, weak], text: \"{{ steps.left.text | length > 0 }} {{ steps.right.text | length > 0 }} {{ steps.weak.text }}\"}\n\
         output: {all: \"{{ steps.all }}\", each: \"{{ steps.each | map(attribute='text') | list }}\", shout: \"{{ steps.shout }}\"}\n",
    );
    let _worker = start(&redis, &sim, &folder, &[], &[]);
    let client = redis.client().await;
    let words: Vec<String> = (0..12).map(|n| format!("w{n}")).collect();
    let pending = client.send(run("graph", json!({"words": words}))).await.unwrap();
    let output: Value = pending.get(LONG).await.unwrap();
    assert_eq!(output["all"], "True True instead");
    assert_eq!(output["shout"], Value::Null);
    let each: Vec<String> = (0..12).map(|n| format!("{n} w{n}")).collect();
    assert_eq!(output["each"], json!(each));
    // Both slow ones and three of the loop.
    assert!(sim.stats().await["peak_open"].as_u64().unwrap() >= 3);
    let entries = entries(&pending).await;
    let at = |status: &str, step: &str| {
        let is_it = |entry: &Value| entry["status"] == status && entry["step"] == step;
        entries
            .iter()
            .position(is_it)
            .unwrap_or_else(|| panic!("{step} {status}: {entries:?}"))
    };
    assert!(at("started", "right") < at("finished", "left"), "they run at once");
    assert!(at("passed over", "weak") < at("started", "all"));
    assert_eq!(steps(&entries, "skipped"), ["shout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_tried_again_for_their_reasons_and_models_fall_back() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let format = "format: {type: object, properties: {answer: {type: string}}, required: [answer]}";
    folder.write(
        "again.yaml",
        &format!("steps:\n- {{id: a, type: ollama_generate, model: flaky-json, prompt: one, repairs: 0, retry: {{times: 2, on: invalid_output, pause: 0.05}}, {format}}}\noutput: \"{{{{ steps.a.json }}}}\"\n"),
    );
    folder.write(
        "never.yaml",
        &format!("steps:\n- {{id: a, type: ollama_generate, model: flaky-json, prompt: two, repairs: 0, retry: {{times: 2, on: timeout, pause: 0.05}}, {format}}}\n"),
    );
    folder.write(
        "models.yaml",
        &format!("steps:\n- {{id: a, type: ollama_generate, models: [missing, bad-json, json], prompt: three, repairs: 1, {format}}}\n"),
    );
    folder.write(
        "repair.yaml",
        &format!("steps:\n- {{id: a, type: ollama_chat, model: flaky-json, messages: [{{role: user, content: four}}], {format}}}\n"),
    );
    folder.write(
        "late.yaml",
        "steps:\n- {id: a, type: ollama_generate, model: hang, prompt: five, timeout: 0.3, retry: {times: 1, on: [timeout], pause: 0.05}}\n- {id: b, type: render, text: x}\n",
    );
    let _worker = start(&redis, &sim, &folder, &["-c", "8"], &[]);
    let client = redis.client().await;
    let again: Value = client
        .send(run("again", json!({})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert!(again["answer"].is_string(), "{again}");
    assert_eq!(failure(&client, run("never", json!({}))).await.0, "InvalidOutput");
    let models: Value = client
        .send(run("models", json!({})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(models["model"], "json");
    let given_up: Vec<&str> = models["fallbacks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["model"].as_str().unwrap())
        .collect();
    assert_eq!(given_up, ["missing", "bad-json"]);
    let pending = client.send(run("repair", json!({}))).await.unwrap();
    let repaired: Value = pending.get(LONG).await.unwrap();
    assert_eq!(
        (&repaired["repairs"], &repaired["truncated"]),
        (&json!(1), &json!(false)),
        "{repaired}"
    );
    assert_eq!(
        entries(&pending)
            .await
            .iter()
            .filter(|entry| entry["type"] == "repair")
            .count(),
        1
    );
    let (name, text) = failure(&client, run("late", json!({}))).await;
    assert_eq!(
        (name.as_str(), text.as_str()),
        ("TimeoutError", "step \"a\": step \"a\" took longer than 0.3 s")
    );
}

/// The worker is killed in the middle of ten steps; those that had finished are not run again.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_in_the_middle_of_ten_steps_runs_each_finished_step_once() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let mut template = String::from("steps:\n");
    for n in 0..10 {
        template.push_str(&format!(
            "- {{id: s{n}, type: ollama_generate, model: slow, prompt: \"step {n}\", options: {{num_predict: 3}}}}\n"
        ));
    }
    folder.write("ten.yaml", &template);
    // While its worker lives it runs once, however busy the machine is.
    let sure = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 20}")];
    let mut worker = start(&redis, &sim, &folder, &[], &sure);
    let client = redis.client().await;
    let pending = client.send(run("ten", json!({}))).await.unwrap();
    until("half of it is done", async || {
        let record = record(&redis, pending.id());
        record["status"] == "PROGRESS" && record["result"]["done"].as_u64().unwrap() >= 5
    })
    .await;
    let progress = record(&redis, pending.id())["result"].clone();
    assert_eq!(progress["total"], 10);
    assert!(progress["step"].as_str().unwrap().starts_with('s'));
    worker.process.kill();
    let finished = steps(&entries(&pending).await, "finished");
    assert!((4..10).contains(&finished.len()), "{finished:?}");
    redis.end_leases();
    let _second = start(&redis, &sim, &folder, &[], &sure);
    let _: Value = pending.get(LONG).await.unwrap();
    let entries = entries(&pending).await;
    let kept = steps(&entries, "kept");
    assert!(kept.len() >= finished.len(), "{kept:?} {finished:?}");
    let mut again = steps(&entries, "finished");
    again.sort();
    again.dedup();
    assert_eq!(steps(&entries, "finished").len(), again.len(), "no step finished twice");
    // Each was asked once, but for the one that was being asked when the worker died.
    let asked = sim.stats().await["requests"].as_u64().unwrap();
    assert!((10..=11).contains(&asked), "{asked}");
}

/// One place to run, and the task runs in the same worker: a step that held its place would wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_calls_a_task_holds_no_place() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    folder.write(
        "calls.yaml",
        "parameters:\n  n: {type: integer}\nsteps:\n\
         - {id: sum, type: task, task: hello.add, args: [\"{{ n }}\"], kwargs: {y: 1}}\n\
         - {id: each, type: task, foreach: [1, 2, 3, 4, 5], parallel: 2, task: hello.add, args: [\"{{ item }}\", \"{{ steps.sum }}\"]}\n\
         - {id: wrong, type: task, task: hello.add, args: [nonsense], on_error: continue}\n\
         output: {sum: \"{{ steps.sum }}\", each: \"{{ steps.each }}\", wrong: \"{{ steps.wrong }}\"}\n",
    );
    folder.write(
        "fails.yaml",
        "steps:\n- {id: a, type: task, task: hello.add, args: [nonsense]}\n",
    );
    let _worker = start(&redis, &sim, &folder, &["-c", "1"], &[]);
    let client = redis.client().await;
    let pending = client.send(run("calls", json!({"n": 41}))).await.unwrap();
    let output: Value = pending.get(LONG).await.unwrap();
    assert_eq!(output, json!({"sum": 42, "each": [43, 44, 45, 46, 47], "wrong": null}));
    let (name, text) = failure(&client, run("fails", json!({}))).await;
    assert_eq!(name, "ValueError", "{text}");
    // A template is a task: a chain goes on with its result.
    let answer = run_python(
        "import sys\nfrom celery import Celery, chain\n\
         app = Celery(broker=sys.argv[1], backend=sys.argv[1])\n\
         first = app.signature('orchestra.run', args=('calls', {'n': 1}), immutable=True)\n\
         last = app.signature('orchestra.run', args=('calls', {'n': 2}), immutable=True)\n\
         print(chain(first, last)().get(timeout=60)['sum'])\n",
        &redis.url(),
    );
    assert_eq!(answer.trim(), "3");
}

/// A person decides; the worker may be another one by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_a_person_and_holds_nothing() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    folder.write(
        "ask.yaml",
        "steps:\n\
         - {id: draft, type: ollama_generate, model: echo, prompt: a draft}\n\
         - {id: ok, type: approve, message: \"Send {{ steps.draft.text }}?\", form: {type: object, required: [to]}}\n\
         - {id: sent, type: render, text: \"{{ steps.ok.by }} sent it to {{ steps.ok.data.to }}\"}\n",
    );
    folder.write(
        "late.yaml",
        "steps:\n- {id: ok, type: approve, message: now?, limit: 1}\n",
    );
    let mut worker = start(&redis, &sim, &folder, &["-c", "1"], &[]);
    let client = redis.client().await;
    let waits = async |pending: &Pending| {
        until("it waits", async || {
            record(&redis, pending.id())["status"] == "WAITING" && redis.length("HLEN", "unacked") == 0
        })
        .await;
    };
    let (yes, no) = (
        client.send(run("ask", json!({}))).await.unwrap(),
        client.send(run("ask", json!({}))).await.unwrap(),
    );
    waits(&yes).await;
    waits(&no).await;
    assert_eq!(
        record(&redis, yes.id())["result"],
        json!({"step": "ok", "waiting": ["ok"], "done": 1, "total": 3})
    );
    // The only place is free.
    assert_eq!(
        client
            .send(Call::new("hello.add").arg(1))
            .await
            .unwrap()
            .get::<i64>(LONG)
            .await
            .unwrap(),
        1
    );
    assert_eq!(worker.stop(), Some(0));
    let asked = sim.stats().await["requests"].clone();
    // The other one runs everything in processes: there, too, a run waits and goes on.
    let _second = start(&redis, &sim, &folder, &["-c", "1", "-P", "prefork"], &[]);
    let redis_url = redis.url();
    let approve = |arguments: &[&str]| orchestra(&folder, &[&["-b", &redis_url, "approve"], arguments].concat());
    let list = text(&approve(&[]));
    assert!(
        list.contains(yes.id()) && list.contains("ask.ok  Send a draft?"),
        "{list}"
    );
    let refused = approve(&[yes.id(), "--data", "{}"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("\"to\" is a required property"),
        "{refused:?}"
    );
    let done = text(&approve(&[yes.id(), "--by", "ada", "--data", "{\"to\": \"bob\"}"]));
    assert!(done.contains("goes on"), "{done}");
    assert_eq!(yes.get::<String>(LONG).await.unwrap(), "ada sent it to bob");
    // Python decides as well.
    run_python(
        &format!(
            "import sys\nfrom celery import Celery\napp = Celery(broker=sys.argv[1], backend=sys.argv[1])\n\
                  print(app.send_task('orchestra.approve', args=['{}'], kwargs={{'approved': False, 'by': 'eve', 'comment': 'no'}}).get(timeout=20))\n",
            no.id()
        ),
        &redis.url(),
    );
    let Err(Error::Failed { exception, .. }) = no.get::<Value>(LONG).await else {
        panic!("it was rejected")
    };
    assert_eq!(exception.message(), "step \"ok\": step \"ok\" was rejected by eve: no");
    assert_eq!(sim.stats().await["requests"], asked, "no step ran again");
    let again = approve(&[yes.id()]);
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("waits for nobody's decision"),
        "{again:?}"
    );
    let (name, message) = failure(&client, run("late", json!({}))).await;
    assert_eq!(
        (name.as_str(), message.as_str()),
        ("TimeoutError", "step \"ok\" waited longer than 1 s")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_tasks_and_turns_are_bounded() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let tool = "{name: add, description: adds, task: hello.add, parameters: {type: object, required: [x], properties: {x: {type: integer, const: 4}}}}";
    folder.write(
        "tool.yaml",
        &format!("steps:\n- {{id: a, type: ollama_chat, model: tools, messages: [{{role: user, content: add}}], tools: [{tool}]}}\n"),
    );
    folder.write(
        "none.yaml",
        &format!("steps:\n- {{id: a, type: ollama_chat, model: tools, max_turns: 0, messages: [{{role: user, content: add}}], tools: [{tool}]}}\n"),
    );
    let _worker = start(&redis, &sim, &folder, &["-c", "1"], &[]);
    let client = redis.client().await;
    let answer: Value = client
        .send(run("tool", json!({})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(
        answer["tools_used"],
        json!([{"name": "add", "arguments": {"x": 4}, "result": "4"}]),
        "{answer}"
    );
    assert!(answer["text"].as_str().unwrap().contains('4'), "{answer}");
    let (name, text) = failure(&client, run("none", json!({}))).await;
    assert_eq!(name, "ToolLoop", "{text}");
}

/// Pieces without end would ask a model for days.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_of_very_many_pieces_is_refused() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    folder.write(
        "long.yaml",
        "parameters:\n  text: {type: string}\nsteps:\n- {id: a, type: ollama_analyze, model: lorem, input: \"{{ text }}\", prompt: x, window: 400, max_tokens: 50, overlap: 0}\n",
    );
    let _worker = start(&redis, &sim, &folder, &[], &[]);
    let text = "a b c. ".repeat(500_000);
    let (name, text) = failure(&redis.client().await, run("long", json!({"text": text}))).await;
    assert_eq!(name, "ContextOverflow", "{text}");
    assert!(text.contains("pieces, more than 5000; raise window"), "{text}");
    // One call, to learn how long a token is.
    assert_eq!(sim.stats().await["requests"], 1);
}

/// What a small server answers to each path, and what it heard.
async fn server() -> (u16, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
    let log = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = log.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                let count = stream.read(&mut buffer).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&buffer[..count]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                log.lock().unwrap().push(request);
                let answer = if let Some(over) = path.strip_prefix("/over/") {
                    // Each to another name of this server.
                    format!(
                        "HTTP/1.1 {} Over\r\nlocation: http://localhost:{port}/json\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                        &over[..3]
                    )
                } else if path.starts_with("/away") {
                    "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/secret\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
                } else if path.starts_with("/here") {
                    "HTTP/1.1 302 Found\r\nlocation: /json\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
                } else if path.starts_with("/gone") {
                    "HTTP/1.1 410 Gone\r\ncontent-length: 5\r\nconnection: close\r\n\r\nnever".to_owned()
                } else {
                    let body = "{\"temperature\": 21}";
                    format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                        body.len()
                    )
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (port, heard)
}

/// Tools over HTTP: arguments as query or as JSON, and a server that nobody allowed is the model's problem, not the
/// run's.
#[tokio::test(flavor = "multi_thread")]
async fn tools_are_requests_to_allowed_servers() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let (port, heard) = server().await;
    let step = |method: &str, port: u16| {
        format!(
            "steps:\n- {{id: a, type: ollama_chat, model: tools, messages: [{{role: user, content: warm?}}], tools: [{{name: \
             weather, description: tells, http: {{url: \"http://127.0.0.1:{port}/json\", method: {method}, headers: \
             {{x-key: secret}}}}, parameters: {{type: object, required: [city], properties: {{city: {{const: \"Köln\"}}}}}}}}]}}\n"
        )
    };
    folder.write("get.yaml", &step("GET", port));
    folder.write("post.yaml", &step("POST", port));
    folder.write("elsewhere.yaml", &step("GET", port + 1));
    let allowed = format!("127.0.0.1:{port}");
    let _worker = start(&redis, &sim, &folder, &[], &[("ORCHESTRA_AI_HTTP_HOSTS", &allowed)]);
    let client = redis.client().await;
    for template in ["get", "post"] {
        let answer: Value = client
            .send(run(template, json!({})))
            .await
            .unwrap()
            .get(LONG)
            .await
            .unwrap();
        assert_eq!(
            answer["tools_used"],
            json!([{"name": "weather", "arguments": {"city": "Köln"}, "result": "{\"temperature\":21}"}]),
            "{answer}"
        );
        assert!(answer["text"].as_str().unwrap().contains("21"), "{answer}");
    }
    let asked = heard.lock().unwrap().clone();
    assert!(
        asked[0].starts_with("GET /json?city=K%C3%B6ln ") && asked[0].contains("x-key: secret"),
        "{asked:?}"
    );
    assert!(
        asked[1].starts_with("POST /json ") && asked[1].ends_with("{\"city\":\"Köln\"}"),
        "{asked:?}"
    );
    let answer: Value = client
        .send(run("elsewhere", json!({})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    let told = answer["tools_used"][0]["result"].as_str().unwrap();
    assert!(told.contains("is not allowed"), "{answer}");
}

/// The cache of a step: the same question of another run is not asked again, and another one is.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_with_a_cache_asks_once() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    folder.write(
        "kept.yaml",
        "parameters:\n  text: {type: string}\nsteps:\n\
         - {id: a, type: ollama_generate, model: echo, prompt: \"{{ text }}\", cache: 60}\n\
         - {id: b, type: ollama_generate, model: echo, prompt: \"{{ text }}\"}\n\
         output: \"{{ steps.a.route.why }} {{ steps.a.text }}\"\n",
    );
    let _worker = start(&redis, &sim, &folder, &[], &[]);
    let client = redis.client().await;
    let ask = async |text: &str| -> String {
        let pending = client.send(run("kept", json!({"text": text}))).await.unwrap();
        pending.get(LONG).await.unwrap()
    };
    assert_eq!(ask("one").await, "load one");
    assert_eq!(ask("one").await, "cache one");
    assert_eq!(ask("two").await, "warm two");
    assert_eq!(sim.stats().await["requests"], 5, "step b has no cache");
}

/// How far a run is: for `AsyncResult` with all of it, and for Flower.
#[tokio::test(flavor = "multi_thread")]
async fn progress_is_seen_by_async_result_and_by_flower() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let step = |id: &str| {
        format!("- {{id: {id}, type: ollama_generate, model: slow, prompt: x, options: {{num_predict: 15}}}}\n")
    };
    folder.write(
        "three.yaml",
        &["steps:\n".to_owned(), step("one"), step("two"), step("three")].concat(),
    );
    let _worker = start(&redis, &sim, &folder, &["-E"], &[]);
    let port = crate::support::free_port();
    let flower = Command::new(crate::support::python())
        .args([
            "-m",
            "celery",
            "-b",
            &redis.url(),
            "--result-backend",
            &redis.url(),
            "flower",
            "--address=127.0.0.1",
        ])
        .arg(format!("--port={port}"))
        .env("FLOWER_UNAUTHENTICATED_API", "true")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let _flower = crate::support::Process::from(flower);
    let api = format!("http://127.0.0.1:{port}/api");
    until("Flower is there", async || {
        crate::support::get(&format!("{api}/workers")).await.is_ok()
    })
    .await;
    let program = "
import json, sys, time, urllib.request
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
result = app.send_task('orchestra.run', ('three', {}))
until('a step is done', lambda: result.state == 'PROGRESS' and result.info['done'] >= 1)
assert result.info['total'] == 3 and result.info['step'] in ('one', 'two', 'three'), result.info
with urllib.request.urlopen(f'API/task/result/{result.id}') as answer:
    shown = json.load(answer)
assert shown['state'] == 'PROGRESS', shown
# The page of the task goes by events.
with urllib.request.urlopen(f'API/task/info/{result.id}') as answer:
    shown = json.load(answer)
assert shown['state'] == 'PROGRESS', shown
assert result.get(timeout=30)['done_reason'] == 'length'
print('seen')
"
    .replace("API", &api);
    let url = redis.url();
    let ran = tokio::task::spawn_blocking(move || run_python(&program, &url));
    assert_eq!(ran.await.unwrap(), "seen\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_asked_only_where_the_operator_allows() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let (port, heard) = server().await;
    folder.write(
        "get.yaml",
        "parameters:\n  url: {type: string}\nsteps:\n\
         - {id: a, type: http_request, url: \"{{ url }}\", query: {city: \"Köln & co\"}, headers: {authorization: secret}}\n\
         output: \"{{ steps.a.json.temperature }}\"\n",
    );
    folder.write(
        "post.yaml",
        "parameters:\n  url: {type: string}\nsteps:\n\
         - {id: a, type: http_request, method: POST, url: \"{{ url }}\", json: {a: 1}, headers: {authorization: secret, \
         cookie: secret, private-token: secret, x-auth-token: secret, x-api-key: secret, accept: text/x, user-agent: we}}\n\
         output: \"{{ steps.a.json.temperature }}\"\n",
    );
    let allowed = format!("[\"127.0.0.1:{port}\", \"localhost\"]");
    let _worker = start(&redis, &sim, &folder, &[], &[("ORCHESTRA_AI_HTTP_HOSTS", &allowed)]);
    let client = redis.client().await;
    let get = |url: String| run("get", json!({"url": url}));
    let at = |path: &str| format!("http://127.0.0.1:{port}{path}");
    for path in ["/json", "/here"] {
        assert_eq!(
            client
                .send(get(at(path)))
                .await
                .unwrap()
                .get::<i64>(LONG)
                .await
                .unwrap(),
            21
        );
    }
    assert!(
        heard.lock().unwrap()[0].contains("GET /json?city=K%C3%B6ln+%26+co "),
        "{heard:?}"
    );
    // Another server is told what it needs for an answer, and no key, whatever its name.
    for (status, method, own) in [(307, "POST", "content-type: application/json"), (302, "GET", "")] {
        let call = run("post", json!({"url": at(&format!("/over/{status}"))}));
        let sent = client.send(call).await.unwrap();
        assert_eq!(sent.get::<i64>(LONG).await.unwrap(), 21);
        let heard = heard.lock().unwrap();
        let [.., first, second] = &heard[..] else {
            panic!("{heard:?}")
        };
        assert_eq!(first.matches("secret").count(), 5, "{first}");
        let mut lines = second.split("\r\n\r\n").next().unwrap().lines();
        assert_eq!(lines.next(), Some(format!("{method} /json HTTP/1.1").as_str()));
        let mut told: Vec<&str> = lines.filter(|line| !line.starts_with("content-length")).collect();
        told.sort_unstable();
        let host = format!("host: localhost:{port}");
        let mut wanted = vec!["accept: text/x", own, &host, "user-agent: we"];
        wanted.retain(|line| !line.is_empty());
        assert_eq!(told, wanted, "{status}");
    }
    for (url, wanted) in [
        // The name is allowed at every port, the address that it leads to at one.
        (
            format!("http://localhost:{}/", redis.port),
            "localhost leads to addresses that ai_http_hosts does not name",
        ),
        (at("/away"), "the server 127.0.0.1:1 is not allowed"),
        (at("/gone"), "HTTP 410: never"),
        (
            format!("http://127.0.0.1:{}/", port + 1),
            "is not allowed; the operator names servers in ai_http_hosts",
        ),
        ("http://169.254.169.254/latest".into(), "is not allowed"),
        (format!("http://user@127.0.0.1.example.com:{port}/"), "is not allowed"),
        ("file:///etc/passwd".into(), "is no address of a server"),
    ] {
        let (_, text) = failure(&client, get(url.clone())).await;
        assert!(text.contains(wanted), "{url}: {text}");
    }
    // An allowed name that leads to an address nobody allowed: the answer of the name server is not believed.
    folder.write(
        "two.yaml",
        "steps:\n- {id: a, type: http_request, url: \"http://localhost:9/\"}\n",
    );
    let only_name = [("ORCHESTRA_AI_HTTP_HOSTS", "localhost")];
    let other = Redis::start();
    let _other = start(&other, &sim, &folder, &[], &only_name);
    let client = other.client().await;
    let (_, text) = failure(&client, run("two", json!({}))).await;
    assert!(
        text.contains("leads to addresses that ai_http_hosts does not name"),
        "{text}"
    );
    // Nor is an address believed to be another one, however it is written.
    let before = heard.lock().unwrap().len();
    for host in [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "2130706433",
        "017700000001",
        "0177.0.0.1",
        "0x7f000001",
        "0x7f.0.0.0x1",
        "%31%32%37.0.0.1",
        "①②⑦.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "0.0.0.0",
        "0",
        "[::]",
        "10.0.0.1",
        "169.254.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "localhost.",
        "localhost.example.com",
        "localhost@127.0.0.1",
        "localhost:80@127.0.0.1",
    ] {
        let (_, text) = failure(&client, get(format!("http://{host}:{port}/json"))).await;
        assert!(text.contains("is not allowed"), "{host}: {text}");
    }
    assert_eq!(heard.lock().unwrap().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_programs_and_repositories_are_off_until_they_are_allowed() {
    let (redis, sim, folder, data) = (Redis::start(), Sim::start(), Folder::new(), Folder::new());
    data.write("in/a.txt", "alpha");
    data.write("in/b.txt", "beta");
    data.write("secret", "s");
    std::os::unix::fs::symlink(data.path().join("secret"), data.path().join("in/link.txt")).unwrap();
    let root = data.path().canonicalize().unwrap();
    let root = root.display();
    let repository = data.path().join("in/repo");
    std::fs::create_dir(&repository).unwrap();
    data.write(
        "in/repo/run.sh",
        "#!/bin/sh\necho \"$1 $2\" from $(pwd | sed 's/.*repository/repository/') ${SECRET:-nothing}\n",
    );
    data.write("in/repo/hog.py", "#!/usr/bin/env python3\nx = 'x' * (4 << 30)\n");
    data.write(
        "in/repo/loop.sh",
        "#!/bin/sh\n(sleep 100; echo late) & while true; do :; done\n",
    );
    // Two that leave: in a session of their own, and from a parent that is gone.
    let leave = "#!/bin/sh\nsetsid sleep 300 &\n(setsid sh -c 'sleep 300 & echo $! ; wait' &)\nsleep 0.3\necho $!\n";
    data.write("in/repo/leave.sh", leave);
    data.write(
        "in/repo/stay.sh",
        &format!("#!/bin/sh\nsetsid sleep 300 &\nfirst=$!\n(setsid sh -c 'sleep 300 & echo $! > second; wait' &)\nsleep 0.3\n\
                  echo $first $(cat second) > {root}/out/part\nmv {root}/out/part {root}/out/left\nsleep 300\n"),
    );
    data.write("in/own.sh", "#!/bin/sh\necho \"alone: $GIVEN\"\n");
    // What its authors would have git do, if somebody took the clone for a home.
    data.write(
        "in/repo/.gitconfig",
        &format!(
            "[trace2]\n normalTarget = {root}/escaped\n configParams = evil.*\n[evil]\n line = \"a line of theirs\"\n\
             [core]\n fsmonitor = touch {root}/ran\n"
        ),
    );
    let git = |arguments: &[&str]| {
        let done = Command::new("git")
            .args([
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@t",
                "-c",
                "init.defaultBranch=main",
            ])
            .args(arguments)
            .current_dir(&repository)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    folder.write(
        "files.yaml",
        &format!("parameters:\n  files: {{type: any}}\nsteps:\n- {{id: a, type: read_files, files: \"{{{{ files }}}}\"}}\n- {{type: format_output, format: json, value: \"{{{{ steps.a | map(attribute='content') | list }}}}\"}}\n- {{id: kept, type: store_result, path: \"{root}/out/result.json\"}}\n"),
    );
    folder.write(
        "script.yaml",
        "parameters:\n  repo: {type: string}\n  script: {type: string}\nsteps:\n\
         - {type: git_clone, repo: \"{{ repo }}\"}\n- {id: ran, type: execute_script, script: \"{{ script }}\", args: \"'one two' $HOME;\"}\n\
         output: \"{{ steps.ran.text | trim }}\"\n",
    );
    folder.write(
        "own.yaml",
        "parameters:\n  env: {type: any}\nsteps:\n- {id: ran, type: execute_script, script: own.sh, env: \"{{ env }}\"}\n\
         output: \"{{ steps.ran.text | trim }}\"\n",
    );
    folder.write(
        "status.yaml",
        "steps:\n- {id: clone, type: git_clone, repo: repo}\n\
         - {id: ran, type: execute_script, program: git, args: [status, --short, --branch]}\n\
         output: [\"{{ steps.ran.text | trim }}\", \"{{ steps.clone.commit | length }}\"]\n",
    );
    std::fs::create_dir(data.path().join("out")).unwrap();
    let paths = (format!("[\"{root}/in\"]"), format!("[\"{root}/out\"]"));
    let private = format!("{root}/private");
    std::fs::create_dir(&private).unwrap();
    let allowed = [
        ("ORCHESTRA_AI_READ_PATHS", paths.0.as_str()),
        ("ORCHESTRA_AI_WRITE_PATHS", paths.1.as_str()),
        ("ORCHESTRA_AI_PROGRAMS", "git,sh,python3"),
        ("ORCHESTRA_AI_PROGRAM_CPU", "1"),
        ("SECRET", "visible"),
        ("TMPDIR", private.as_str()),
        ("PATH", "/usr/bin:/bin"),
    ];
    {
        let _worker = start(&redis, &sim, &folder, &[], &[]);
        let client = redis.client().await;
        let (_, text) = failure(&client, run("files", json!({"files": format!("{root}/in/a.txt")}))).await;
        assert!(
            text.contains("reading files is not allowed; the operator names folders in ai_read_paths"),
            "{text}"
        );
        let (_, text) = failure(
            &client,
            run("script", json!({"repo": "https://example.com/x", "script": "x"})),
        )
        .await;
        assert!(text.contains("the program \"git\" is not allowed"), "{text}");
    }
    let mut worker = start(&redis, &sim, &folder, &[], &allowed);
    let client = redis.client().await;
    // What an author wrote into an address is in no result.
    let (_, text) = failure(
        &client,
        run(
            "script",
            json!({"repo": "ftp://user:hidden@example.com/x", "script": "x"}),
        ),
    )
    .await;
    assert!(
        text.contains("ftp://user:********@example.com/x") && text.contains("must be https://"),
        "{text}"
    );
    let stored: Value = client
        .send(run("files", json!({"files": ["a.txt", "b.*"]})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(stored["path"], format!("{root}/out/result.json"));
    let written = std::fs::read_to_string(data.path().join("out/result.json")).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&written).unwrap(),
        json!(["alpha", "beta"])
    );
    for escape in [
        format!("{root}/in/../secret"),
        format!("{root}/in/link.txt"),
        "/etc/passwd".into(),
    ] {
        let (_, text) = failure(&client, run("files", json!({"files": escape.clone()}))).await;
        assert!(
            text.contains("is in no folder that ai_read_paths allows"),
            "{escape}: {text}"
        );
    }
    // Nor does a pattern tell what is in a folder, or whether it is there.
    for pattern in ["secre*", "in/../secre*", "nowhere/secre*", "in/link.txt/../../secre*"] {
        let (_, text) = failure(&client, run("files", json!({"files": format!("{root}/{pattern}")}))).await;
        assert!(
            text.ends_with(": is in no folder that ai_read_paths allows") && !text.contains("secret"),
            "{pattern}: {text}"
        );
    }
    let (_, text) = failure(&client, run("files", json!({"files": "*.txt"}))).await;
    assert!(text.contains("link.txt: is in no folder"), "{text}");
    let script = |script: &str| run("script", json!({"repo": format!("{root}/in/repo"), "script": script}));
    let said: String = client.send(script("run.sh")).await.unwrap().get(LONG).await.unwrap();
    assert_eq!(said, "one two $HOME; from repository nothing");
    // A relative repository is one of them as well. Whoever wrote it does not say what git does here.
    let status: Value = client
        .send(run("status", json!({})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(status, json!(["## main...origin/main", 40]));
    for trace in ["escaped", "ran", "ran-2"] {
        assert!(!data.path().join(trace).exists(), "{trace}");
    }
    // Without a clone, a relative script is one of the folders that may be read.
    let said: String = client
        .send(run("own", json!({"env": {"GIVEN": "by the step"}})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(said, "alone: by the step");
    let (_, text) = failure(&client, run("own", json!({"env": {"LD_PRELOAD": "/any/library.so"}}))).await;
    assert!(
        text.ends_with("env: LD_PRELOAD is not allowed: it would run other code than the program's"),
        "{text}"
    );
    // Who leaves the group of processes, and its parent as well, keeps neither the step waiting nor itself alive.
    let began = Instant::now();
    let left: String = client.send(script("leave.sh")).await.unwrap().get(LONG).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(30), "it was waited for");
    let gone = |left: &str| {
        let lives =
            |id: &str| std::fs::read_to_string(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.contains("sleep"));
        !left.is_empty() && !left.split_whitespace().any(lives)
    };
    assert!(left.split_whitespace().count() == 2 && gone(&left), "{left:?}");
    // Nor where the step is ended before they are.
    let pending = client.send(script("stay.sh")).await.unwrap();
    let noted = data.path().join("out/left");
    until("it runs", async || noted.exists()).await;
    pending.revoke(true).await.unwrap();
    let left = std::fs::read_to_string(&noted).unwrap();
    assert_eq!(left.split_whitespace().count(), 2, "{left:?}");
    until("all are gone", async || gone(&left)).await;
    let began = Instant::now();
    for (name, wanted) in [
        ("hog.py", "MemoryError"),
        ("loop.sh", "was killed"),
        ("../../../../../../../../../../etc/passwd", "ai_read_paths"),
        ("none.sh", "none.sh"),
    ] {
        let (_, text) = failure(&client, script(name)).await;
        assert!(text.contains(wanted), "{name}: {text}");
    }
    assert!(began.elapsed() < Duration::from_secs(60), "the loop was not ended");
    let (_, text) = failure(
        &client,
        run("script", json!({"repo": "https://example.com/x.git", "script": "x"})),
    )
    .await;
    assert!(text.contains("example.com:443 is not allowed"), "{text}");
    // The private folders of all runs are gone with them.
    assert_eq!(std::fs::read_dir(&private).unwrap().count(), 0);
    // What a program started does not outlive the worker either.
    std::fs::remove_file(&noted).unwrap();
    client.send(script("stay.sh")).await.unwrap();
    until("it runs", async || noted.exists()).await;
    let left = std::fs::read_to_string(&noted).unwrap();
    assert!(!gone(&left), "{left:?}");
    worker.process.kill();
    until("all are gone", async || gone(&left)).await;
}

/// The form that AI Task Orchestra's templates have: parameters in a list, steps that take what the step before gave.
#[tokio::test(flavor = "multi_thread")]
async fn templates_in_the_form_of_ai_task_orchestra_run() {
    let (redis, sim, folder, data) = (Redis::start(), Sim::start(), Folder::new(), Folder::new());
    folder.write(
        "digest.yaml",
        "name: digest\ndescription: Reads files and says what is in them\nparameters:\n  - name: input_files\n    type: array\n    required: true\n    description: which files\n  - name: analysis_model\n    type: string\n    required: true\n  - name: output_format\n    type: string\n    required: true\n  - name: analysis_prompt\n    type: string\n    required: false\n  - name: max_tokens\n    type: integer\n    required: false\n\
         steps:\n  - type: read_files\n    files: \"{{input_files}}\"\n  - type: ollama_analyze\n    model: \"{{analysis_model}}\"\n    prompt: \"{{analysis_prompt}}\"\n    max_tokens: \"{{max_tokens}}\"\n  - type: format_output\n    format: \"{{output_format}}\"\n",
    );
    data.write("a.txt", "alpha");
    let root = data.path().canonicalize().unwrap().display().to_string();
    let _worker = start(&redis, &sim, &folder, &[], &[("ORCHESTRA_AI_READ_PATHS", &root)]);
    let params = json!({"input_files": [format!("{root}/a.txt")], "analysis_model": "echo", "output_format": "text"});
    let text: String = redis
        .client()
        .await
        .send(run("digest", params))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert!(
        text.starts_with("Summarize the text.") && text.ends_with("alpha"),
        "{text}"
    );
}

/// Longer than the window: pieces, and levels of putting together; a second delivery would not ask again.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_longer_than_the_window_is_analyzed_in_pieces() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    folder.write(
        "long.yaml",
        "parameters:\n  text: {type: string}\nsteps:\n- {id: a, type: ollama_analyze, model: lorem, input: \"{{ text }}\", prompt: Summarize., window: 1024, max_tokens: 200, overlap: 10, at_once: 4}\n",
    );
    folder.write(
        "short.yaml",
        "parameters:\n  texts: {type: any}\nsteps:\n- {id: a, type: ollama_analyze, model: lorem, input: \"{{ texts }}\", prompt: Summarize., window: 1024, max_tokens: 5}\n",
    );
    let _worker = start(&redis, &sim, &folder, &[], &[]);
    let text: String = (0..2000).map(|n| format!("Sentence {n} of a long text. ")).collect();
    let answer: Value = redis
        .client()
        .await
        .send(run("long", json!({"text": text})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    let (pieces, calls, levels) = (
        answer["pieces"].as_u64().unwrap(),
        answer["calls"].as_u64().unwrap(),
        answer["levels"].as_u64().unwrap(),
    );
    assert!(pieces >= 10 && levels >= 2 && calls > pieces, "{answer}");
    assert_eq!(sim.stats().await["requests"].as_u64().unwrap(), calls);
    assert_eq!(
        (&answer["truncated"], &answer["cut"]),
        (&json!(false), &json!(0)),
        "{answer}"
    );
    // Answers that were cut off are told, also where the last one was whole; a text without a word is no piece.
    let short = async |texts: Value| -> Value {
        let client = redis.client().await;
        let pending = client.send(run("short", json!({"texts": texts}))).await.unwrap();
        pending.get(LONG).await.unwrap()
    };
    let (one, with_blank) = (short(json!([text])).await, short(json!(["  ", text])).await);
    assert_eq!(one["truncated"], true, "{one}");
    assert_eq!(one["cut"], one["calls"], "{one}");
    for field in ["pieces", "calls", "cut"] {
        assert_eq!(one[field], with_blank[field], "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_stand_side_by_side_and_a_running_worker_sees_new_files() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let template = |text: &str| format!("steps:\n- {{type: render, text: {text}}}\n");
    folder.write("say.yaml", &template("one"));
    folder.write("say@2.yaml", &template("two"));
    folder.write(
        "tasks/say.yaml",
        "name: texts.say\ntemplate: say@1\ndescription: Says it\n",
    );
    let tasks = folder.path().join("tasks");
    let worker = start(&redis, &sim, &folder, &["--tasks", tasks.to_str().unwrap()], &[]);
    let client = redis.client().await;
    let say = async |call: Call| client.send(call).await.unwrap().get::<String>(LONG).await.unwrap();
    assert_eq!(say(run("say", json!({}))).await, "two");
    assert_eq!(say(run("say@1", json!({}))).await, "one");
    let (_, text) = failure(&client, run("say@3", json!({}))).await;
    assert_eq!(text, "there is no template \"say@3\"; \"say\" has the versions 1, 2");
    folder.write("say@2.yaml", &template("three"));
    until("the new one is used", async || {
        say(run("say", json!({}))).await == "three"
    })
    .await;
    // One that is broken stays as it was; the log says what is wrong.
    folder.write("say@2.yaml", &template("\"{{ nothing }}\""));
    folder.write("say.yaml", &template("uno"));
    until("the other one is used", async || {
        say(Call::new("texts.say")).await == "uno"
    })
    .await;
    assert_eq!(say(run("say", json!({}))).await, "three");
    worker.wait_for_log("there is no parameter \"nothing\"");
    folder.write("say@2.yaml", &template("four"));
    until("it is in order again", async || {
        say(run("say", json!({}))).await == "four"
    })
    .await;
    // People see what tasks are for.
    let answer = run_python(
        "import sys\nfrom celery import Celery\napp = Celery(broker=sys.argv[1], backend=sys.argv[1])\n\
         print(next(iter(app.control.inspect(timeout=5).registered().values())))\n",
        &redis.url(),
    );
    assert!(
        answer.contains("texts.say [description=Says it version=say@1 ("),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_typed() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    folder.write(
        "typed.yaml",
        "parameters:\n  n: {type: any}\nsteps:\n- {type: render, text: x}\noutput: {n: \"{{ n }}\"}\nreturns: {type: object, properties: {n: {type: integer}}}\n",
    );
    folder.write(
        "vectors.yaml",
        "parameters:\n  texts: {type: array}\nsteps:\n- {id: v, type: ollama_embed, model: embed, input: \"{{ texts }}\"}\noutput: \"{{ steps.v.embeddings | length }}\"\n",
    );
    let _worker = start(&redis, &sim, &folder, &[], &[]);
    let client = redis.client().await;
    let good: Value = client
        .send(run("typed", json!({"n": 1})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(good, json!({"n": 1}));
    let vectors = client
        .send(run("vectors", json!({"texts": ["a", "b", "c"]})))
        .await
        .unwrap();
    assert_eq!(vectors.get::<i64>(LONG).await.unwrap(), 3);
    let (name, text) = failure(&client, run("typed", json!({"n": "x"}))).await;
    assert_eq!(name, "InvalidOutput");
    assert!(text.contains("/n: \"x\" is not of type \"integer\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_are_written_checked_tried_and_tested_from_the_shell() {
    let (sim, folder) = (Sim::start(), Folder::new());
    let templates = |arguments: &[&str]| {
        orchestra(
            &folder,
            &[&["--ollama-host", &sim.url, "templates"], arguments].concat(),
        )
    };
    for kind in ["answer", "extract", "analyze"] {
        let made = text(&templates(&["new", kind, "--kind", kind]));
        assert!(made.contains(&format!("wrote templates/{kind}.yaml")), "{made}");
    }
    assert!(
        !templates(&["new", "answer"]).status.success(),
        "nothing is overwritten"
    );
    let tested = text(&templates(&["test"]));
    assert!(tested.ends_with("3 passed, 0 failed\n"), "{tested}");
    assert!(text(&templates(&["lint"])).contains("3 templates are in order"));
    let ran = templates(&["run", "answer", "-p", "text=hello", "-p", "model=echo"]);
    assert!(text(&ran).contains("hello"));
    assert!(
        String::from_utf8_lossy(&ran.stderr).contains("Say the following in other words:"),
        "tokens are shown as they come"
    );
    let ran = text(&templates(&[
        "run",
        "extract",
        "-q",
        "-p",
        "text=hello",
        "--answer",
        "facts={\"person\": \"a\", \"place\": \"b\"}",
    ]));
    assert_eq!(
        serde_json::from_str::<Value>(&ran).unwrap(),
        json!({"person": "a", "place": "b"})
    );
    // Cases that fail say why; snapshots and recorded answers are kept.
    folder.write(
        "templates/answer.test.yaml",
        "cases:\n\
         - {name: wrong, params: {text: x}, answers: {answer: \"no\"}, expect: {contains: \"yes\", json: {$.a: 1}, schema: {type: object}}}\n\
         - {name: fails, params: {}, answers: {}, expect: {fails: \"parameter \\\"text\\\" is missing\"}}\n\
         - {name: kept, params: {text: x, model: echo}, expect: {snapshot: true, matches: \"words\"}}\n",
    );
    let tested = templates(&["test", "answer"]);
    let out = String::from_utf8_lossy(&tested.stdout);
    assert!(!tested.status.success());
    for part in [
        "FAIL  answer: wrong",
        "\"yes\" is not in \"no\"",
        "$.a is not in \"no\"",
        "is not of type \"object\"",
        "ok    answer: fails",
        "--record",
        "1 passed, 2 failed",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let recorded = String::from_utf8_lossy(&templates(&["test", "answer", "--record"]).stdout).into_owned();
    assert!(
        recorded.contains("wrote") && recorded.contains("ok    answer: kept"),
        "{recorded}"
    );
    let asked = sim.stats().await["requests"].clone();
    assert!(String::from_utf8_lossy(&templates(&["test", "answer"]).stdout).contains("ok    answer: kept"));
    assert_eq!(sim.stats().await["requests"], asked, "recorded answers need no model");
    // Editors get schemas that know every template there is.
    for (format, folder_name) in [("template", "templates"), ("task", "tasks")] {
        let schema: Value = serde_json::from_str(&text(&templates(&["schema", format]))).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder_name);
        for file in std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path()) {
            let name = file.to_str().unwrap();
            if name.ends_with(".yaml") && !name.ends_with(".test.yaml") {
                let value = orchestra::ai::template::read_yaml(&file).unwrap();
                let wrong: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
                assert!(wrong.is_empty(), "{name}: {wrong:?}");
            }
        }
    }
}

/// The gallery: what is wrong with each of the files in `tests/templates-broken`, word for word as
/// `docs/template-errors.md` has it. `ORCHESTRA_UPDATE=1` writes the page.
#[test]
fn every_broken_template_says_what_is_wrong_and_where() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("tests/templates-broken");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 40);
    let mut page = String::from(
        "# Broken templates\n\nWhat `orchestra templates lint` says, for each of the files in `tests/templates-broken`: all that is wrong at once, with\nfile, line, column, and what to do. Written by a test, which fails when a message changes.\n",
    );
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let problems = orchestra::ai::template::Template::load(file).expect_err(name);
        let lines: Vec<String> = problems
            .iter()
            .map(|problem| problem.to_string().replace(&format!("{}/", folder.display()), ""))
            .collect();
        let yaml = std::fs::read_to_string(file).unwrap();
        page.push_str(&format!(
            "\n## {}\n\n```yaml\n{}```\n\n```text\n{}\n```\n",
            name.trim_end_matches(".yaml"),
            yaml,
            lines.join("\n")
        ));
    }
    let path = root.join("docs/template-errors.md");
    if std::env::var_os("ORCHESTRA_UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let shown = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(shown.lines()).find(|(is, was)| is != was);
    assert!(
        page == shown,
        "docs/template-errors.md is old (ORCHESTRA_UPDATE=1 writes it): {differs:?}"
    );
}

/// A folder that cannot be read at the moment says nothing of its files: what it had stays in use until it can be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_read_leaves_its_templates_in_use() {
    let (redis, root) = (Redis::start(), Folder::new());
    let template = |text: &str| format!("steps:\n- {{type: render, text: {text}}}\n");
    root.write("templates/say.yaml", &template("one"));
    root.write("templates/labels.yaml", "say:\n  prod: 1\n");
    let (folder, aside) = (root.path().join("templates"), root.path().join("aside"));
    let worker = Worker::start(&redis, &["--templates", folder.to_str().unwrap()]);
    let client = redis.client().await;
    let say = async || {
        let call = run("say@prod", json!({}));
        client.send(call).await.unwrap().get::<String>(LONG).await.unwrap()
    };
    assert_eq!(say().await, "one");
    let told = |why: &str| worker.log().matches(why).count();
    for (is_file, why, next) in [(true, "Not a directory", "two"), (false, "No such file", "three")] {
        std::fs::rename(&folder, &aside).unwrap();
        if is_file {
            std::fs::write(&folder, "").unwrap();
        }
        let last = say().await;
        until("the worker has seen it", async || {
            assert_eq!(say().await, last);
            told(why) == 1
        })
        .await;
        // It is looked at each second, and told once.
        let end = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < end {
            assert_eq!(say().await, last);
        }
        assert_eq!(told(why), 1, "{}", worker.log());
        if is_file {
            std::fs::remove_file(&folder).unwrap();
        }
        root.write("aside/say.yaml", &template(next));
        std::fs::rename(&aside, &folder).unwrap();
        until("the folder is read again", async || say().await == next).await;
    }
}

/// Long chains of operators and the like overflow the stack of whoever reads them, and that would end the worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_is_too_long_is_refused_and_the_worker_goes_on() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let step = |text: &str| format!("steps:\n- id: a\n  type: render\n  text: |\n    before\n    {text}\n");
    let say = "steps:\n- {type: render, text: said}\n";
    folder.write("templates/say.yaml", say);
    let templates = folder.path().join("templates");
    let worker = Worker::start(&redis, &["--templates", templates.to_str().unwrap()]);
    let client = redis.client().await;
    folder.write(
        "templates/sum.yaml",
        &step(&format!("{{{{ 1{} }}}}", "+1".repeat(6000))),
    );
    until("the worker has seen it", async || {
        let said = client.send(run("say", json!({}))).await.unwrap();
        assert_eq!(said.get::<String>(LONG).await.unwrap(), "said");
        worker.log().contains("is a chain of more than 500")
    })
    .await;
    let long = |link: &str| link.repeat(20_000);
    for (name, text) in [
        ("filters", format!("{{{{ 'a'{} }}}}", long("|trim"))),
        ("attributes", format!("{{{{ {{}}{} }}}}", long(".a"))),
        ("nots", format!("{{{{ {}true }}}}", long("not "))),
        ("branches", format!("{{% if 1 %}}{}{{% endif %}}", long("{% elif 1 %}"))),
        ("targets", format!("{{% for {}a in [] %}}", long("("))),
    ] {
        folder.write(&format!("templates/{name}.yaml"), &step(&text));
    }
    folder.write(
        "templates/value.yaml",
        &format!(
            "steps:\n- {{type: render, text: x}}\noutput:\n  a: '{{{{ 1{} }}}}'\n",
            long("-1")
        ),
    );
    folder.write(
        "templates/when.yaml",
        &format!("steps:\n- type: render\n  text: x\n  when: 1{}\n", long(" and 1")),
    );
    folder.write(
        "templates/prompts/part.j2",
        &format!("{{% macro a() %}}\n{{{{ 1{} }}}}{{% endmacro %}}", long("~1")),
    );
    let output = orchestra(&folder, &["templates", "lint"]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let chain = |place: &str| (place.to_owned(), "is a chain of more than 500");
    for (place, what) in [
        chain("sum.yaml:6"),
        chain("filters.yaml:6"),
        chain("attributes.yaml:6"),
        chain("nots.yaml:6"),
        ("branches.yaml:6".into(), "there are more than 100 elif"),
        chain("targets.yaml:6"),
        chain("value.yaml:4"),
        chain("when.yaml:4"),
        chain("prompts/part.j2:2"),
    ] {
        let line = said.lines().find(|line| line.contains(&format!("templates/{place}:")));
        assert!(line.is_some_and(|line| line.contains(what)), "{place}: {line:?}");
    }
}

/// minijinja goes through values by recursion when it shows, compares and drops them.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_nested_deeply_do_not_end_the_worker() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let nested = |name: &str, text: &str| {
        let params = "parameters:\n  count: {type: integer}\n";
        let step =
            format!("{params}steps:\n- id: a\n  type: render\n  text: |\n    {text}\noutput: '{{{{ steps.a }}}}'\n");
        folder.write(&format!("templates/{name}.yaml"), &step);
    };
    let in_namespace = |set: &str| {
        format!(
            "{{% set ns = namespace(x=range(count)) %}}{{% for w in range(count) %}}{{% set ns.x = {set} %}}{{% endfor %}}deep"
        )
    };
    nested("lists", &in_namespace("[w, ns.x]"));
    nested("slices", &in_namespace("ns.x[1:]"));
    nested(
        "sets",
        &format!("{{% set x = 1 %}}{}deep", "{% set x=[x] %}".repeat(30_000)),
    );
    let templates = folder.path().join("templates");
    let _worker = Worker::start(&redis, &["--templates", templates.to_str().unwrap()]);
    let client = redis.client().await;
    for (name, count) in [("lists", 10_000), ("slices", 2_000), ("sets", 1)] {
        let sent = client.send(run(name, json!({"count": count}))).await.unwrap();
        let said = sent.get::<String>(LONG).await;
        assert!(
            said.as_ref().is_ok_and(|said| said.ends_with("deep")),
            "{name}: {said:?}"
        );
    }
    // More levels than the stack holds take more steps than such a text has.
    let sent = client.send(run("lists", json!({"count": 90_000}))).await.unwrap();
    let said = sent.get::<String>(LONG).await.unwrap_err().to_string();
    assert!(said.contains("ai_template_steps") || said.contains("range"), "{said}");
    let sent = client.send(run("lists", json!({"count": 1}))).await.unwrap();
    assert!(sent.get::<String>(LONG).await.is_ok());
}
