//! `orchestra batch`, as somebody types it, and `Client.map` of Python on the same file.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use orchestra::client::Call;
use serde_json::Value;

use crate::support::{Folder, Process, Redis, Sim, Worker, program, run_python, until};

fn batch(redis: &Redis, folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("orchestra"));
    command
        .args(["--broker", &redis.url(), "batch"])
        .args(arguments)
        .env_clear()
        .current_dir(folder.path());
    command
}

fn run(redis: &Redis, folder: &Folder, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = batch(redis, folder, arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// How often the worker has run a task.
fn runs(redis: &Redis, task: &str) -> u64 {
    let out = Command::new(program("orchestra"))
        .args(["--broker", &redis.url(), "inspect", "stats", "--json"])
        .env_clear()
        .output()
        .unwrap();
    let stats: Value = serde_json::from_slice(&out.stdout).unwrap();
    let worker = stats.as_object().unwrap().values().next().unwrap();
    worker["total"][task].as_u64().unwrap_or_default()
}

#[test]
fn rows_are_run_failures_are_listed_and_run_again_and_all_of_it_is_a_table() {
    let redis = Redis::start();
    let folder = Folder::new();
    let worker = Worker::start(&redis, &[]);
    let rows = "{\"x\": 1, \"y\": 2}\n{\"x\": 9223372036854775807, \"y\": 1}\n{\"x\": 5}\n";
    folder.write("rows.jsonl", rows);
    let (code, out, error) = run(
        &redis,
        &folder,
        &["run", "rows.jsonl", "--task", "hello.add", "-p", "y=10"],
    );
    assert_eq!((code, out.as_str()), (Some(1), ""), "{error}");
    assert!(
        error.contains("3 rows, 1 failed; results are in rows.results.jsonl"),
        "{error}"
    );
    let (code, out, _) = run(&redis, &folder, &["failed", "rows.results.jsonl"]);
    assert_eq!(code, Some(0));
    assert!(
        out.contains(": ValueError('the sum is too large')\n1 of 3 rows failed\n"),
        "{out}"
    );
    // Nothing is left to do, and nothing is done.
    run(
        &redis,
        &folder,
        &["run", "rows.jsonl", "--task", "hello.add", "-p", "y=10"],
    );
    assert_eq!(runs(&redis, "hello.add"), 3);
    run(
        &redis,
        &folder,
        &[
            "run",
            "rows.jsonl",
            "--task",
            "hello.add",
            "-p",
            "y=10",
            "--retry-failed",
        ],
    );
    assert_eq!(runs(&redis, "hello.add"), 4);
    let (_, table, _) = run(&redis, &folder, &["export", "rows.results.jsonl"]);
    assert_eq!(
        table,
        "row,state,input.x,input.y,result,error\n0,SUCCESS,1,2,3,\n\
         1,FAILURE,9223372036854775807,1,,ValueError('the sum is too large')\n2,SUCCESS,5,,15,\n"
    );
    // What was run is not silently something else.
    folder.write("rows.jsonl", "{\"x\": 7}\n");
    let (code, _, error) = run(&redis, &folder, &["run", "rows.jsonl", "--task", "hello.add"]);
    assert_eq!(code, Some(2));
    assert!(
        error.contains("row 0 is not the one that was run before; name another file"),
        "{error}"
    );
    drop(worker);
}

/// A pipe has its rows once: it is refused, and not taken for a file without rows.
#[test]
fn rows_of_a_pipe_are_refused() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"[1, 2]\n[3, 4]\n").unwrap();
    drop(writer);
    let arguments = ["run", "/dev/stdin", "--task", "hello.add", "-o", "r.jsonl"];
    let out = batch(&redis, &folder, &arguments).stdin(reader).output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{error}");
    assert!(
        error.starts_with("orchestra: /dev/stdin is no regular file, and rows are read twice"),
        "{error}"
    );
    assert!(!folder.path().join("r.jsonl").exists());
}

/// Rows that are gone before they are sent are missed; results of rows that the file never had are no rows of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_becomes_shorter_is_noticed() {
    let (redis, folder) = (Redis::start(), Folder::new());
    // As long as what is read at once: none is in memory before its turn.
    let row = format!("{:<8191}\n", "{\"x\": 1, \"y\": 2}");
    let file = folder.write("rows.jsonl", &row.repeat(4));
    let arguments = [
        "run",
        "rows.jsonl",
        "--task",
        "hello.add",
        "--in-flight",
        "1",
        "--quiet",
    ];
    let mut command = batch(&redis, &folder, &arguments);
    let running = command.stderr(Stdio::piped()).spawn().unwrap();
    until("a row was sent", async || redis.length("LLEN", "celery") == 1).await;
    std::fs::write(&file, &row).unwrap();
    let _worker = Worker::start(&redis, &[]);
    let out = running.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{error}");
    assert!(error.contains("rows.jsonl had 4 rows, and only "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_killed_goes_on_and_sends_no_row_twice() {
    let redis = Redis::start();
    let folder = Folder::new();
    let _worker = Worker::start(&redis, &["-c", "2"]);
    let rows: String = (0..40).map(|n| format!("[{}]\n", u8::from(n % 4 == 0))).collect();
    folder.write("rows.jsonl", &rows);
    let arguments = [
        "run",
        "rows.jsonl",
        "--task",
        "hello.sleep",
        "--in-flight",
        "12",
        "--quiet",
    ];
    let results = folder.path().join("rows.results.jsonl");
    let mut first: Process = batch(&redis, &folder, &arguments)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
        .into();
    until("some rows are done", async || {
        results.exists() && lines(&results).len() > 8
    })
    .await;
    first.kill();
    let before = lines(&results).len();
    assert!(before < 40, "it was killed too late");
    let (code, _, error) = run(&redis, &folder, &arguments);
    assert_eq!(code, Some(0), "{error}");
    let lines = lines(&results);
    assert_eq!(lines.len(), 41);
    let mut rows: Vec<u64> = lines[1..].iter().map(|line| line["row"].as_u64().unwrap()).collect();
    rows.sort_unstable();
    assert_eq!(rows, (0..40).collect::<Vec<_>>());
    assert_eq!(runs(&redis, "hello.sleep"), 40);
}

#[tokio::test]
async fn what_was_sent_and_not_noted_is_not_sent_again() {
    let redis = Redis::start();
    let client = redis.client().await;
    let call = |id: &str| Call::new("hello.add").task_id(id);
    // As a caller leaves it that is killed between the two.
    redis.command::<String>(&["SET", "celery-sent-once-row-1", "1"]);
    client.send_once(&call("row-1")).await.unwrap();
    assert_eq!(redis.length("LLEN", "celery"), 0);
    client.send_once(&call("row-2")).await.unwrap();
    client.send_once(&call("row-2")).await.unwrap();
    assert_eq!(redis.length("LLEN", "celery"), 1);
    for row in ["row-1", "row-2"] {
        let key = format!("celery-sent-once-{row}");
        assert_eq!(redis.command::<u64>(&["EXISTS", &key]), 0, "the note is enough");
    }
}

#[test]
fn python_maps_a_template_over_rows_and_goes_on_with_the_same_file() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let folder = Folder::new();
    let templates = concat!(env!("CARGO_MANIFEST_DIR"), "/templates");
    let _worker = Worker::start(&redis, &["--templates", templates, "--ollama-host", &sim.url]);
    let output = folder.path().join("out.jsonl");
    let program = format!(
        r"
import sys
from orchestra import Client
client = Client(sys.argv[1])
rows = [{{'text': f'text {{n}}', 'model': 'echo'}} for n in range(50)] + [{{'nonsense': 1}}]
done = list(client.map('summarize', rows, in_flight=20, output='{out}'))
assert sorted(row.index for row in done) == list(range(51)), done
failed = [row for row in done if row.error]
assert [row.index for row in failed] == [50] and 'ValueError' in failed[0].error, failed
assert all('text' in row.value for row in done if not row.error)
again = list(client.map('summarize', rows, output='{out}'))
assert [row.id for row in sorted(done, key=lambda row: row.index)] == [row.id for row in again], again
try:
    list(client.map('summarize', [{{'text': 'other'}}], output='{out}'))
except ValueError as error:
    assert 'row 0 is not the one that was run before' in str(error), error
else:
    raise SystemExit('a batch of other rows went on')
retried = list(client.map('summarize', rows, output='{out}', retry_failed=True))
assert [row.attempt for row in retried if row.error] == [1]
",
        out = output.display()
    );
    run_python(&program, &redis.url());
    let lines = lines(&output);
    assert_eq!(lines.len(), 1 + 51 + 1);
    let (_, out, _) = run(&redis, &folder, &["failed", "out.jsonl"]);
    assert!(out.ends_with("1 of 51 rows failed\n"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_loaded_before_the_first_row() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let templates = concat!(env!("CARGO_MANIFEST_DIR"), "/templates");
    let _worker = Worker::start(&redis, &["--templates", templates, "--ollama-host", &sim.url]);
    folder.write("rows.jsonl", "{\"text\": \"a text\", \"model\": \"echo\"}\n");
    let command = [
        "run",
        "rows.jsonl",
        "--template",
        "summarize",
        "--warm",
        "echo",
        "--ollama-host",
        &sim.url,
    ];
    let (code, out, err) = run(&redis, &folder, &command);
    assert!(code == Some(0) && out.contains("echo:latest loaded on"), "{out}{err}");
    let bodies: Vec<Value> = sim
        .requests()
        .await
        .iter()
        .map(|request| serde_json::from_str(request["body"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!(
        (bodies.len(), bodies[0].get("prompt"), bodies[1]["prompt"].is_string()),
        (2, None, true),
        "{bodies:?}"
    );
    assert_eq!(sim.stats().await["loads"], 1);
}
