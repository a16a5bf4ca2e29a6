//! Users of Redis with the rights that docs/redis.md gives them, and no others: what AI tasks, beat, batches and people
//! need beyond a plain worker.

use std::process::Command;

use orchestra::client::{Call, Client};
use serde_json::Value;

use crate::fleet::{failure, generate};
use crate::support::{Folder, LONG, Redis, Sim, Worker, program, until};
use crate::transport::{denied, documented_rights};

/// Limits, budgets and the cache all keep something in Redis.
const SETTINGS: &str = "ai_rate_limits = [{requests = 6000}]\nai_budgets = [{tokens = 1000000, per = 'day'}]\n";

/// All lines of a user.
const ALL: usize = usize::MAX;

fn worker(url: &str, sim: &Sim, folder: &Folder, arguments: &[&str]) -> Worker {
    let config = folder.write("orchestra.toml", SETTINGS);
    let own = ["--config", config.to_str().unwrap(), "--ollama-host", &sim.url];
    let worker = Worker::spawn_at("hello_task", url, &[&own[..], arguments].concat(), &[]);
    worker.wait_for_log("ready");
    worker
}

/// Without the rights for the fleet a call would wait for its place as long as `ai_queue_timeout` says, an hour: it
/// fails at once, the log says why, once, and from the moment when the rights are there calls go through.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_a_model_fails_at_once_where_redis_refuses_its_place() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let url = documented_rights(&redis, "worker", 1);
    let worker = worker(&url, &sim, &folder, &[]);
    let client = redis.client().await;
    for _ in 0..2 {
        let (name, text) = failure(&client, generate("echo", "hello")).await;
        assert_eq!(name, "ModelError", "{text}");
        assert!(text.contains("NoPerm") && text.contains("docs/redis.md"), "{text}");
    }
    let said = worker.log().matches("no model can be asked").count();
    assert_eq!(said, 1, "{}", worker.log());
    assert!(sim.requests().await.is_empty(), "no host was asked");
    documented_rights(&redis, "worker", ALL);
    let answered = client.send(generate("echo", "hello")).await.unwrap();
    let answer: Value = answered.get(LONG).await.unwrap();
    assert_eq!(
        answer["text"].as_str().map(str::trim),
        Some("hello"),
        "{}",
        worker.log()
    );
}

/// Redis refuses a claim as a whole when its user may not use one of the lists. The other queues are served, also when
/// that one is taken away again; and it is served when the rights are there.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_may_not_be_used_stops_no_other() {
    let redis = Redis::start();
    let worker = Worker::start_at(&documented_rights(&redis, "worker", 1), &["-n", "w@here"]);
    let client = redis.client().await;
    let order = async |method: &str| {
        let (queue, to) = (serde_json::json!({"queue": "billing"}), ["w@here".to_owned()]);
        let answers = client.inspect(method, &queue, Some(&to), LONG).await.unwrap();
        assert!(answers["w@here"].to_string().contains("ok"), "{answers:?}");
    };
    let add = |n: i64| Call::new("hello.add").arg(n);
    let is_served = async |n| {
        let sum = client.send(add(n)).await.unwrap();
        assert_eq!(sum.get::<i64>(LONG).await.ok(), Some(n), "{}", worker.log());
    };
    order("add_consumer").await;
    let billed = client.send(add(1).queue("billing")).await.unwrap();
    worker.wait_for_log("messages of queue \"billing\" cannot be taken");
    is_served(2).await;
    is_served(3).await;
    order("cancel_consumer").await;
    is_served(4).await;
    assert_eq!(
        worker.log().matches("\"billing\" cannot be taken").count(),
        1,
        "{}",
        worker.log()
    );
    redis.command::<()>(&["ACL", "SETUSER", "worker", "~billing*"]);
    order("add_consumer").await;
    assert_eq!(billed.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
    assert!(!worker.log().contains("trying again each second"), "{}", worker.log());
}

/// Everything that the page names is tried, and nothing that it does not give.
#[tokio::test(flavor = "multi_thread")]
async fn ai_tasks_beat_batches_and_people_with_no_more_than_the_documented_rights() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let [url, sender, operator, beat] =
        ["worker", "sender", "operator", "beat"].map(|name| documented_rights(&redis, name, ALL));
    folder.write(
        "templates/twice.yaml",
        "description: Asks here and elsewhere\nparameters:\n  text: {type: string}\nsteps:\n  - {id: a, type: ollama_generate, \
         model: echo, prompt: '{{ text }}', cache: true}\n  - {id: b, type: task, task: orchestra.generate, args: [echo, again]}\n\
         output: '{{ steps.a.text }}'\n",
    );
    folder.write("rows.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n");
    let templates = folder.path().join("templates");
    let mut worker = worker(&url, &sim, &folder, &["-E", "--templates", templates.to_str().unwrap()]);

    let client = Client::connect(&sender).await.unwrap();
    let twice = || {
        Call::new("orchestra.run")
            .arg("twice")
            .kwarg("params", serde_json::json!({"text": "hi"}))
    };
    for _ in 0..2 {
        let said: Value = client.send(twice()).await.unwrap().get(LONG).await.unwrap();
        assert_eq!(said.as_str().map(str::trim), Some("hi"), "{}", worker.log());
    }
    let once = || generate("echo", "once").header("idempotency_key", "k");
    let (first, second) = (client.send(once()).await.unwrap(), client.send(once()).await.unwrap());
    for pending in [&first, &second] {
        pending.get::<Value>(LONG).await.unwrap();
    }
    assert!(!first.stream("0").await.unwrap().is_empty(), "tokens can be read");

    let orchestra = |url: &str, words: &[&str]| {
        let out = Command::new(program("orchestra"))
            .args(["--broker", url, "--ollama-host", &sim.url])
            .args(words)
            .env_clear()
            .current_dir(folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "{words:?}: {text}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        text
    };
    orchestra(&sender, &["batch", "run", "rows.jsonl", "--template", "twice"]);
    assert!(orchestra(&operator, &["status"]).contains("OK"));
    orchestra(&operator, &["revoke", "nobody"]);
    assert_eq!(redis.length("ZCARD", "orchestra:revoked"), 1);
    orchestra(&operator, &["models", "ps"]);
    orchestra(&operator, &["approve"]);
    assert!(orchestra(&operator, &["models", "usage"]).contains("echo"));
    orchestra(&operator, &["models", "explain", first.id()]);
    orchestra(
        &operator,
        &["schedule", "add", "tick", "hello.add", "1", "2", "--every", "1"],
    );
    let sent = |count| {
        let counted = || {
            redis
                .try_command(&["HGET", "orchestra:beat:total_run_count", "tick"])
                .unwrap()
        };
        let number = redis::from_redis_value::<Option<usize>>(counted()).unwrap();
        number.is_some_and(|number| number >= count)
    };
    let mut by_itself = Worker::spawn_process("orchestra", &["beat"], &beat, &[], &[]);
    until("beat sends", async || sent(2)).await;
    assert_eq!(by_itself.stop(), Some(0), "{}", by_itself.log());
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
    let beside = self::worker(&url, &sim, &folder, &["-B"]);
    until("beat beside a worker sends", async || sent(5)).await;
    drop(beside);
    orchestra(&operator, &["schedule", "remove", "tick"]);
    assert_eq!(denied(&redis), Vec::<String>::new());
}
