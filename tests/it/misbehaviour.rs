//! Model servers that misbehave, one by one: what the caller sees. And the other way round: a model that nobody wants
//! to hear any more is left alone at once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use orchestra::client::{Call, Client, Error, Signature};
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Redis, Sim, Worker, free_port, program, until};

/// What a call ends with that has no retry left: its text, or the name and the words of its failure.
async fn outcome(client: &Client, task: &str, model: &str, input: Value) -> Result<Value, (String, String)> {
    let call = Signature::new(task).arg(model).arg(input).option("retries", 3);
    match client.apply(call).await.unwrap().get::<Value>(LONG).await {
        Ok(answer) => Ok(answer),
        Err(Error::Failed { exception, .. }) => Err((exception.name.clone(), exception.message())),
        Err(other) => panic!("{model}: {other:?}"),
    }
}

/// Each way to misbehave, below HTTP and above, and what it comes to.
#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_misbehave_has_a_name_and_none_passes_for_an_answer() {
    let redis = Redis::start();
    let wire = format!("127.0.0.1:{}", free_port());
    let sim = Sim::start_with(&["--wire", &wire]);
    let folder = Folder::new();
    let settings = format!(
        "ai_hosts = [{{url = 'http://{wire}', max_parallel = 50}}]\nai_load_timeout = 1\nai_first_token_timeout = 3\nai_stall_timeout = 2\n\
         ai_call_timeout = 60\nai_max_answer_bytes = 16000000\n"
    );
    let file = folder.write("orchestra.toml", &settings);
    let worker = Worker::start(&redis, &["-c", "50", "--config", file.to_str().unwrap()]);
    let client = redis.client().await;
    let broke = "the connection to the model server broke";
    let failures = [
        ("wire-refuse", "ModelError", broke),
        ("wire-close", "ModelError", broke),
        ("wire-cut-head", "ModelError", broke),
        ("wire-hang-head", "ModelError", "the answer stopped for 2 s"),
        ("wire-cut-chunk", "ModelError", broke),
        ("wire-cut", "ModelError", broke),
        ("wire-reset", "ModelError", broke),
        (
            "wire-huge-line",
            "ModelError",
            "longer than 16000000 bytes (ai_max_answer_bytes)",
        ),
        ("wire-not-utf8", "ModelError", "the answer is no JSON"),
        ("wire-html", "ModelError", "HTTP 200: <html>"),
        ("wire-bad-chunk", "ModelError", broke),
        ("wire-short-body", "ModelError", broke),
        ("wire-wrong-types", "ModelError", "the answer is no JSON"),
        ("wire-redirect", "ModelError", "HTTP 302"),
        ("wire-401", "ModelError", "https://ollama.com/connect?name=x"),
        ("wire-429", "ModelUnavailable", "HTTP 429: rate limit exceeded"),
        ("wire-502", "ModelUnavailable", "HTTP 502"),
        ("wire-thought-out", "OutputTruncated", "let it think less"),
        ("hang", "ModelError", "no answer for 4 s"),
        ("stall", "ModelError", "the answer stopped for 2 s"),
        ("no-done", "ModelError", "ended before it was done"),
        ("error-midstream", "ModelError", "the model failed"),
        ("bad-frame", "ModelError", "the answer is no JSON"),
        ("error-400", "ModelError", "exceeds the available context size"),
        ("error-500", "ModelError", "unexpectedly stopped"),
        ("error-503", "ModelUnavailable", "server busy"),
        ("error-load", "ModelError", "has terminated"),
        ("error-memory", "ModelUnavailable", "out of memory"),
        ("missing", "ModelNotFound", "missing"),
    ];
    let asked = failures.map(|(model, ..)| outcome(&client, "orchestra.generate", model, json!("x")));
    for ((model, name, words), ended) in failures.into_iter().zip(futures_util::future::join_all(asked).await) {
        let (called, text) = ended.expect_err(model);
        assert!(called == name && text.contains(words), "{model}: {called}: {text}");
        println!("{model:<18} {called}: {}", text.chars().take(110).collect::<String>());
    }
    for (model, text) in [
        ("wire-no-last-chunk", "one two three"),
        ("wire-drip", "one two three"),
        ("wire-one-chunk", "one two three"),
        ("wire-split", "größer 日本"),
        ("wire-crlf", "one two three"),
        ("wire-nulls", "one"),
        ("wire-odd-end", "one two three"),
    ] {
        let answer = outcome(&client, "orchestra.generate", model, json!("x"))
            .await
            .expect(model);
        assert_eq!(answer["text"], text, "{model}");
    }
    let long = outcome(&client, "orchestra.generate", "wire-long-line", json!("x"))
        .await
        .unwrap();
    assert_eq!(long["text"].as_str().unwrap().len(), 8 << 20);
    let odd = outcome(&client, "orchestra.generate", "wire-odd-end", json!("x"))
        .await
        .unwrap();
    assert_eq!(
        (&odd["done_reason"], &odd["truncated"], &odd["tokens_per_second"]),
        (&json!("flown"), &json!(false), &Value::Null)
    );
    let hello = json!([{"role": "user", "content": "hello"}]);
    let chat = outcome(&client, "orchestra.chat", "wire-tool-at-end", hello)
        .await
        .unwrap();
    assert_eq!(
        chat["tool_calls"][0]["function"]["name"], "nobody",
        "O-072, O-075: {chat}"
    );
    let (name, text) = outcome(&client, "orchestra.generate", "echo", json!(" "))
        .await
        .unwrap_err();
    assert!(
        name == "EmptyAnswer" && text.contains("answered with an empty text"),
        "{name}: {text}"
    );
    // And after all of it the worker works, and no connection is left.
    let answer = outcome(&client, "orchestra.generate", "echo", json!("well"))
        .await
        .unwrap();
    assert_eq!(answer["text"], "well");
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
    until("all are left alone", async || sim.stats().await["open"] == 0).await;
}

/// A host whose memory is full says 500: the call goes to one that has room.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_memory_is_not_the_last_word() {
    let redis = Redis::start();
    let hosts = ["error-memory", "echo"].map(|behaviour| Sim::start_with(&[&format!("--model=m={behaviour}")]));
    let folder = Folder::new();
    let settings = format!("ai_hosts = ['{}', '{}']\n", hosts[0].url, hosts[1].url);
    let file = folder.write("orchestra.toml", &settings);
    let _worker = Worker::start(&redis, &["--config", file.to_str().unwrap()]);
    let client = redis.client().await;
    let answer = outcome(&client, "orchestra.generate", "m", json!("well"))
        .await
        .unwrap();
    assert_eq!(
        (&answer["text"], &answer["host"]),
        (&json!("well"), &json!(hosts[1].url))
    );
    let failed = &answer["route"]["failed"][0];
    assert_eq!(failed["host"], json!(hosts[0].url));
    assert!(failed["fault"].as_str().unwrap().contains("out of memory"), "{failed}");
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Seconds from a moment until the server saw the connection of its only open request close.
async fn left_after(sim: &Sim, moment: f64) -> f64 {
    until("the model is left alone", async || sim.stats().await["open"] == 0).await;
    let stats = sim.stats().await;
    let last = stats["recent"].as_array().unwrap().iter();
    let last = last.max_by(|a, b| {
        a["ended_s"]
            .as_f64()
            .unwrap()
            .total_cmp(&b["ended_s"].as_f64().unwrap())
    });
    let last = last.unwrap();
    assert_eq!(last["outcome"], "client_left", "{last}");
    last["ended_s"].as_f64().unwrap() - moment
}

/// Whoever ends a generation, and whether it speaks or has not begun: the server sees the connection close within a
/// second.
#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_nobody_wants_stops_within_a_second() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let client = redis.client().await;
    let start = || Worker::start(&redis, &["--ollama-host", &sim.url]);
    let works = async || until("the model works", async || sim.stats().await["working"] == 1).await;
    let mut worker = start();
    let mut took = Vec::new();
    let mut note = |model: &str, what: &str, seconds: f64| {
        println!("{model:<6} {what:<12} {seconds:.3} s");
        took.push(seconds);
    };
    for model in ["slow", "hang"] {
        let send = async |limit: Option<f64>| {
            let call = Call::new("orchestra.generate").arg(model).arg("x");
            let call = match limit {
                Some(limit) => call.time_limit(Duration::from_secs_f64(limit)),
                None => call,
            };
            let sent = client.send(call).await.unwrap();
            works().await;
            sent
        };
        let revoked = send(None).await;
        let moment = now();
        revoked.revoke(true).await.unwrap();
        note(model, "revoke", left_after(&sim, moment).await);

        send(Some(1.5)).await;
        let started = sim.stats().await["running"][0]["started_s"].as_f64().unwrap();
        note(model, "time limit", left_after(&sim, started + 1.5).await);

        send(None).await;
        worker.process.signal(Signal::SIGTERM);
        worker.wait_for_log("warm stop");
        let moment = now();
        worker.process.signal(Signal::SIGTERM);
        note(model, "stop", left_after(&sim, moment).await);
        worker.process.wait();
        redis.command::<()>(&["FLUSHALL"]);
        worker = start();

        send(None).await;
        let moment = now();
        worker.process.kill();
        note(model, "kill -9", left_after(&sim, moment).await);
        redis.command::<()>(&["FLUSHALL"]);
        worker = start();

        // A client that asks a model itself, and goes.
        folder.write(
            "one.yaml",
            &format!("steps:\n- {{id: a, type: ollama_generate, model: {model}, prompt: x}}\n"),
        );
        let mut local = std::process::Command::new(program("orchestra"))
            .args([
                "templates",
                "run",
                "one",
                "--ollama-host",
                &sim.url,
                "--templates",
                folder.path().to_str().unwrap(),
            ])
            .current_dir(folder.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        works().await;
        let moment = now();
        local.kill().unwrap();
        note(model, "client gone", left_after(&sim, moment).await);
        local.wait().unwrap();
    }
    assert!(took.iter().all(|seconds| *seconds < 1.0), "{took:?}");
}

/// O-011, O-025, O-079, O-080: pictures go to models that see, thinking is asked of models that think, and a stub of
/// the cloud is no model.
#[tokio::test(flavor = "multi_thread")]
async fn models_are_asked_what_they_can() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = Worker::start(&redis, &["--ollama-host", &sim.url]);
    let client = redis.client().await;
    let ask = async |call: Signature| match client
        .apply(call.option("retries", 3))
        .await
        .unwrap()
        .get::<Value>(LONG)
        .await
    {
        Ok(answer) => answer,
        Err(Error::Failed { exception, .. }) => json!(format!("{}: {}", exception.name, exception.message())),
        Err(other) => panic!("{other:?}"),
    };
    let generate = |model: &str| Signature::new("orchestra.generate").arg(model).arg("what is it?");
    let pictures = json!(["iVBORw0KGgo=", "QUJD"]);
    let seen = ask(generate("vision").kwarg("images", &pictures)).await;
    assert_eq!(seen["text"], "2 pictures (8, 3 bytes): what is it?");
    let message = json!([{"role": "user", "content": "and now?", "images": ["QUJD"]}]);
    let seen = ask(Signature::new("orchestra.chat").arg("vision").arg(message)).await;
    assert_eq!(seen["text"], "1 pictures (3 bytes): and now?");
    let requests = sim.requests().await;
    let sent: Vec<Value> = requests
        .iter()
        .map(|request| serde_json::from_str(request["body"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!(
        (&sent[0]["images"], &sent[1]["messages"][0]["images"]),
        (&pictures, &json!(["QUJD"]))
    );
    let loads = sim.stats().await["loads"].clone();
    let blind = ask(generate("lorem").kwarg("images", &pictures)).await;
    assert!(
        blind
            .as_str()
            .unwrap()
            .starts_with("ValueError: images: lorem sees no pictures"),
        "{blind}"
    );
    assert_eq!(sim.stats().await["loads"], loads, "and no model was loaded to say so");
    for wrong in [
        json!(["data:image/png;base64,QUJD"]),
        json!(["not base64"]),
        json!("QUJD"),
    ] {
        let refused = ask(generate("vision").kwarg("images", &wrong)).await;
        assert!(
            refused.as_str().unwrap().starts_with("ValueError: images: must be"),
            "{refused}"
        );
    }
    for _ in 0..2 {
        let thought = ask(generate("thinking").kwarg("think", true)).await;
        assert!(
            thought["thinking"].is_string() && thought["route"].get("left_out").is_none(),
            "{thought}"
        );
        let plain = ask(generate("echo").kwarg("think", "high")).await;
        assert_eq!(
            (&plain["text"], &plain["route"]["left_out"]),
            (&json!("what is it?"), &json!("think"))
        );
    }
    let stub = ask(generate("remote")).await;
    assert!(stub.as_str().unwrap().starts_with("ModelNotFound"), "{stub}");
    let named = ask(generate("big:120b-cloud")).await;
    assert!(named.as_str().unwrap().contains("ai_allow_cloud"), "{named}");
    assert_eq!(sim.stats().await["to_the_cloud"], 0);
}

/// A server that dies in the middle of an answer and comes back: its connections are cut, then refused, and then it
/// loads again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_restarted_is_asked_again() {
    let redis = Redis::start();
    let mut sim = Sim::start_with(&["--load-delay=300ms"]);
    let worker = Worker::start(&redis, &["--ollama-host", &sim.url]);
    let client = redis.client().await;
    let pending = client
        .send(Call::new("orchestra.generate").arg("lorem").arg("x"))
        .await
        .unwrap();
    let slow = client.send(
        Call::new("orchestra.generate")
            .arg("slow")
            .arg("x")
            .kwarg("options", json!({"num_predict": 20})),
    );
    let slow = slow.await.unwrap();
    pending.get::<Value>(LONG).await.unwrap();
    until("the model speaks", async || sim.stats().await["working"] == 1).await;
    sim.process.kill();
    worker.wait_for_log("retry");
    sim.restart();
    let answer: Value = slow.get(LONG).await.unwrap();
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["done_reason"]),
        (&json!(20), &json!("length"))
    );
    assert_eq!(sim.stats().await["completed"], 1, "{}", worker.log());
}
