//! AI tasks against a model server that plays its answers from a script.

use std::time::Duration;

use orchestra::client::{Call, Client, Error, Pending};
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Redis, Sim, Worker, until};

fn start(redis: &Redis, sim: &Sim, arguments: &[&str]) -> Worker {
    let root = env!("CARGO_MANIFEST_DIR");
    let (templates, tasks) = (format!("{root}/templates"), format!("{root}/tasks"));
    let own = ["--ollama-host", &sim.url, "--templates", &templates, "--tasks", &tasks];
    Worker::start(redis, &[&own[..], arguments].concat())
}

fn generate(model: &str, prompt: &str) -> Call {
    Call::new("orchestra.generate").arg(model).arg(prompt)
}

async fn entries(pending: &Pending) -> Vec<Value> {
    pending
        .stream("0")
        .await
        .unwrap()
        .iter()
        .map(|entry| serde_json::from_str(entry.entry.get()).unwrap())
        .collect()
}

async fn failure(client: &Client, call: Call) -> (String, String) {
    match client.send(call).await.unwrap().get::<Value>(LONG).await {
        Err(Error::Failed { exception, .. }) => (exception.name.clone(), exception.message()),
        other => panic!("no failure but {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_what_it_took_and_its_tokens_are_in_the_stream() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = start(&redis, &sim, &[]);
    let client = redis.client().await;
    let pending = client.send(generate("echo", "one two three")).await.unwrap();
    let answer: Value = pending.get(LONG).await.unwrap();
    assert_eq!(
        answer["text"].as_str().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["one", "two", "three"]
    );
    assert_eq!((&answer["model"], &answer["host"]), (&json!("echo"), &json!(sim.url)));
    assert_eq!(
        (&answer["done_reason"], &answer["truncated"]),
        (&json!("stop"), &json!(false))
    );
    let usage = &answer["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );
    assert!(answer["timing"]["total_s"].as_f64().unwrap() > 0.0);

    until("the stream has its end", async || {
        entries(&pending)
            .await
            .last()
            .is_some_and(|entry| entry["type"] == "end")
    })
    .await;
    let entries = entries(&pending).await;
    let text: String = entries
        .iter()
        .filter(|entry| entry["type"] == "token")
        .map(|entry| entry["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, answer["text"].as_str().unwrap());
    assert_eq!(entries.last().unwrap()["state"], "SUCCESS");
    let key = format!("orchestra:stream:{}", pending.id());
    assert!((1..=3600).contains(&redis.command::<i64>(&["TTL", &key])));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_come_while_the_model_speaks() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = start(&redis, &sim, &[]);
    let client = redis.client().await;
    let pending = client.send(generate("slow", "x")).await.unwrap();
    until("three tokens are there", async || {
        entries(&pending)
            .await
            .iter()
            .filter(|entry| entry["type"] == "token")
            .count()
            >= 3
    })
    .await;
    assert_eq!(
        pending.state().await.unwrap().as_str(),
        "STARTED",
        "and the task still runs"
    );
    pending.revoke(true).await.unwrap();
    assert!(matches!(pending.get::<Value>(LONG).await, Err(Error::Revoked(_))));
    until("the model is left alone", async || {
        sim.stats().await["client_left_early"] == 1
    })
    .await;
    until("the stream ends", async || {
        entries(&pending).await.last().unwrap()["state"] == "REVOKED"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_closes_the_connection_to_the_model() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = start(&redis, &sim, &[]);
    let client = redis.client().await;
    for model in ["slow", "hang"] {
        // Within it the model is asked, also on a busy machine.
        let (name, _) = failure(&client, generate(model, "x").time_limit(Duration::from_millis(1500))).await;
        assert_eq!(name, "TimeLimitExceeded");
    }
    until("both are left alone", async || {
        sim.stats().await["client_left_early"] == 2
    })
    .await;
    assert_eq!(sim.stats().await["open"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_stop_gives_the_task_back_and_leaves_the_model() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let mut worker = start(&redis, &sim, &[]);
    let client = redis.client().await;
    let pending = client.send(generate("slow", "x")).await.unwrap();
    until("it speaks", async || !entries(&pending).await.is_empty()).await;
    worker.process.signal(nix::sys::signal::Signal::SIGTERM);
    worker.wait_for_log("warm stop");
    worker.process.signal(nix::sys::signal::Signal::SIGTERM);
    worker.process.wait();
    assert_eq!(redis.length("LLEN", "celery"), 1, "{}", worker.log());
    until("the model is left alone", async || sim.stats().await["open"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_answers_are_checked() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = start(&redis, &sim, &[]);
    let client = redis.client().await;
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]});
    let answer: Value = client
        .send(generate("json", "who?").kwarg("format", &schema))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert!(
        answer["json"]["name"].is_string() && answer["json"]["age"].is_i64(),
        "{answer}"
    );
    let (name, text) = failure(&client, generate("bad-json", "who?").kwarg("format", &schema)).await;
    assert_eq!(name, "InvalidOutput", "{text}");
    let (name, text) = failure(
        &client,
        generate("json", "x").kwarg("format", json!({"type": "no such type"})),
    )
    .await;
    assert_eq!(name, "ValueError");
    assert!(text.starts_with("format: is no JSON Schema"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_keep_their_messages() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = start(&redis, &sim, &[]);
    let client = redis.client().await;
    let chat = |model: &str| {
        Call::new("orchestra.chat")
            .arg(model)
            .arg(json!([{"role": "user", "content": "hello there"}]))
    };
    let answer: Value = client.send(chat("echo")).await.unwrap().get(LONG).await.unwrap();
    assert_eq!(answer["message"]["role"], "assistant");
    assert_eq!(answer["message"]["content"], answer["text"]);
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]);
    let answer: Value = client
        .send(chat("tools").kwarg("tools", tools))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert!(!answer["tool_calls"].as_array().unwrap().is_empty(), "{answer}");
    let answer: Value = client
        .send(chat("thinking").kwarg("think", true))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert!(
        answer["thinking"].is_string() && !answer["text"].as_str().unwrap().is_empty(),
        "{answer}"
    );
}

/// O-033 to O-035, O-048, O-050, O-053: what may work later is tried again, what cannot is not.
#[tokio::test(flavor = "multi_thread")]
async fn transient_faults_are_tried_again_and_others_are_not() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let worker = start(&redis, &sim, &["-c", "20"]);
    let client = redis.client().await;
    let flaky = client.send(generate("flaky", "again")).await.unwrap();
    let midstream = client
        .send(generate("flaky-midstream", "one two three four five six"))
        .await
        .unwrap();
    assert_eq!(
        flaky.get::<Value>(LONG).await.unwrap()["text"].as_str().unwrap().trim(),
        "again"
    );
    let answer: Value = midstream.get(LONG).await.unwrap();
    // O-054: nothing of the first try is in the result, and readers of the stream are told.
    assert_eq!(
        answer["text"].as_str().unwrap().split_whitespace().count(),
        6,
        "{answer}"
    );
    let entries = entries(&midstream).await;
    let restart = entries
        .iter()
        .position(|entry| entry["type"] == "restart")
        .expect("readers are told");
    assert!(
        entries[..restart]
            .iter()
            .any(|entry| entry["type"] == "end" && entry["state"] == "RETRY")
    );
    let after: String = entries[restart..]
        .iter()
        .filter_map(|entry| entry["text"].as_str())
        .collect();
    assert_eq!(after, answer["text"].as_str().unwrap());

    for (model, name, retried) in [
        ("missing", "ModelNotFound", false),
        ("error-400", "ModelError", false),
        ("error-500", "ModelError", true),
        ("error-503", "ModelUnavailable", true),
        ("error-midstream", "ModelError", true),
        ("cut-midstream", "ModelError", true),
        ("no-done", "ModelError", true),
        ("bad-frame", "ModelError", true),
    ] {
        let pending = client.send(generate(model, "x")).await.unwrap();
        let Err(Error::Failed { exception, .. }) = pending.get::<Value>(LONG).await else {
            panic!("{model}: no failure")
        };
        assert_eq!(
            (exception.name.as_str(), exception.module.as_str()),
            (name, "orchestra.exceptions"),
            "{model}"
        );
        let was_retried = worker
            .log()
            .contains(&format!("orchestra.generate[{}] retry", pending.id()));
        assert_eq!(was_retried, retried, "{model}: {}", exception.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_is_asked_when_one_cannot() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = Worker::start(
        &redis,
        &["--ollama-host", "http://127.0.0.1:1", "--ollama-host", &sim.url],
    );
    let client = redis.client().await;
    let answer: Value = client
        .send(generate("echo", "hi"))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(answer["host"], json!(sim.url));
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_and_task_files_are_tasks() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = start(&redis, &sim, &[]);
    let client = redis.client().await;
    let run = |template: &str, params: Value| Call::new("orchestra.run").arg(template).arg(params);
    let answer: Value = client
        .send(run("ollama-inference", json!({"prompt": "one two", "model": "echo"})))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert!(answer["text"].as_str().unwrap().contains("two"), "{answer}");
    let summary: String = client
        .send(
            Call::new("texts.summarize")
                .arg("A long text.")
                .kwarg("model", "echo")
                .kwarg("words", 20),
        )
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert!(
        summary.contains("Summarize") && summary.contains("20 words") && summary.contains("A long text."),
        "{summary}"
    );
    let label: Value = client
        .send(
            Call::new("texts.classify")
                .kwarg("text", "x")
                .kwarg("labels", ["good", "bad"])
                .kwarg("model", "json"),
        )
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert!(["good", "bad"].contains(&label["label"].as_str().unwrap()), "{label}");

    let (name, text) = failure(&client, run("ollama-inferense", json!({}))).await;
    assert_eq!(
        (name.as_str(), text.as_str()),
        (
            "TemplateNotFound",
            "there is no template \"ollama-inferense\"; did you mean \"ollama-inference\"?"
        )
    );
    let (name, text) = failure(
        &client,
        run("ollama-inference", json!({"promt": "x", "temperature": "hot"})),
    )
    .await;
    assert_eq!(name, "ValueError");
    for part in [
        "ollama-inference.yaml:",
        "\"promt\"; did you mean \"prompt\"?",
        "parameter \"prompt\" is missing",
        "parameter \"temperature\"",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let (name, text) = failure(&client, Call::new("texts.summarize").kwarg("texxt", "x")).await;
    assert_eq!(
        (name.as_str(), text.as_str()),
        (
            "TypeError",
            "texts.summarize() got an unexpected keyword argument 'texxt'"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_see_the_steps_before_them() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    folder.write(
        "two.yaml",
        "parameters:\n  word: {type: string}\n  loud: {type: boolean, default: false}\nsteps:\n\
         - {id: first, type: ollama_generate, model: echo, prompt: \"say {{ word }}\"}\n\
         - {id: shout, type: render, when: \"loud\", text: \"{{ steps.first.text | upper }}\"}\n\
         - {id: second, type: ollama_chat, model: echo, messages: [{role: user, content: \"again {{ steps.first.text }}\"}]}\n\
         output: {first: \"{{ steps.first.text }}\", shout: \"{{ steps.shout }}\", second: \"{{ steps.second.text }}\"}\n",
    );
    let _worker = Worker::start(
        &redis,
        &[
            "--ollama-host",
            &sim.url,
            "--templates",
            folder.path().to_str().unwrap(),
        ],
    );
    let client = redis.client().await;
    let pending = client
        .send(Call::new("orchestra.run").arg("two").arg(json!({"word": "moo"})))
        .await
        .unwrap();
    let output: Value = pending.get(LONG).await.unwrap();
    assert_eq!(output["first"].as_str().unwrap().trim(), "say moo");
    assert_eq!(output["shout"], Value::Null);
    assert!(output["second"].as_str().unwrap().contains("again say moo"), "{output}");
    let entries = entries(&pending).await;
    let steps: Vec<(&str, &str)> = entries
        .iter()
        .filter(|entry| entry["type"] == "step")
        .map(|entry| (entry["step"].as_str().unwrap(), entry["status"].as_str().unwrap()))
        .collect();
    assert_eq!(
        steps,
        [
            ("first", "started"),
            ("first", "finished"),
            ("shout", "skipped"),
            ("second", "started"),
            ("second", "finished")
        ]
    );
}

/// 200 calls at once through one worker, to a host that may have as many.
#[tokio::test(flavor = "multi_thread")]
async fn many_calls_run_side_by_side() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let settings = format!("ai_hosts = [{{url = '{}', max_parallel = 200}}]\n", sim.url);
    let settings = folder.write("orchestra.toml", &settings);
    let _worker = Worker::start(&redis, &["-c", "200", "--config", settings.to_str().unwrap()]);
    let client = redis.client().await;
    let calls: Vec<Call> = (0..200)
        .map(|n| generate("slow", &n.to_string()).kwarg("options", json!({"num_predict": 10})))
        .collect();
    for pending in client.send_many(&calls).await.unwrap() {
        let answer: Value = pending.get(LONG).await.unwrap();
        assert_eq!(answer["truncated"], true);
    }
    assert!(
        sim.stats().await["peak_open"].as_u64().unwrap() > 100,
        "{}",
        sim.stats().await["peak_open"]
    );
}
