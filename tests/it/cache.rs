//! Which answers are given again: those of the same weights, and those that are right.

use std::time::Duration;

use orchestra::client::Call;
use serde_json::{Value, json};

use crate::fleet::{answers, generate, worker};
use crate::support::{Folder, LONG, Redis, Sim};

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_was_fetched_anew_is_asked_again() {
    let (redis, host) = (Redis::start(), Sim::start_with(&["--model=m=echo"]));
    let (_worker, _folder) = worker(&redis, &format!("ai_hosts = '{}'\n", host.url), &[]);
    let client = redis.client().await;
    let ask = async || -> Value {
        let call = generate("m", "one two").kwarg("cache", true);
        client.send(call).await.unwrap().get(LONG).await.unwrap()
    };
    assert_eq!(ask().await["text"], "one two");
    assert_eq!(ask().await["route"]["why"], "cache");
    // As after a pull: other weights under the same name.
    host.stats().await;
    let copied = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(format!("{}/api/copy", host.url))
        .json(&json!({"source": "lorem", "destination": "m"}))
        .send()
        .await
        .unwrap();
    assert!(copied.status().is_success());
    // What a host said counts for three seconds.
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    let answer = ask().await;
    assert_ne!(answer["route"]["why"], "cache", "{answer}");
    assert!(answer["text"].as_str().unwrap().starts_with("lorem ipsum"));
    assert_eq!(ask().await["route"]["why"], "cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_fit_is_not_given_again() {
    let redis = Redis::start();
    let host = Sim::start_with(&["--model=m=misfit,misfit,misfit,json"]);
    let templates = Folder::new();
    templates.write(
        "fit.yaml",
        "steps:\n- {id: a, type: ollama_generate, model: m, prompt: x, cache: true, format: {type: object}, \
         retry: {times: 3, on: [invalid_output], pause: 0.05}}\noutput: \"{{ steps.a.json }}\"\n",
    );
    let folder = templates.path().to_str().unwrap();
    let settings = format!("ai_hosts = '{}'\n", host.url);
    let (_worker, _folder) = worker(&redis, &settings, &["--templates", folder]);
    let client = redis.client().await;
    for _ in 0..2 {
        let call = Call::new("orchestra.run").arg("fit").arg(json!({}));
        let output: Value = client.send(call).await.unwrap().get(LONG).await.unwrap();
        assert!(output.is_object(), "{output}");
        // A question, two repairs, and the second try; then what was right.
        assert_eq!(host.requests().await.len(), 4);
    }
}

/// What was cut off is not kept, and those who waited for it have it all the same: they do not ask one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_answer_that_is_not_kept_has_it_too() {
    let (redis, host) = (
        Redis::start(),
        // All of them have begun to wait when it has said its last word, also on a busy machine.
        Sim::start_with(&["--model=m=echo", "--token-delay=1000ms"]),
    );
    let settings = format!("ai_hosts = '{}'\n", host.url);
    // Room for all in each: one that has to wait for a place comes when the answer is over.
    let _workers: Vec<_> = (0..2).map(|_| worker(&redis, &settings, &["-c", "6"])).collect();
    let client = redis.client().await;
    let call = || {
        generate("m", "one two three four five")
            .kwarg("options", json!({"num_predict": 3}))
            .kwarg("cache", 60)
    };
    let mut pending = Vec::new();
    for _ in 0..6 {
        pending.push(client.send(call()).await.unwrap());
    }
    let answers = answers(pending).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer["text"] == "one two three" && answer["truncated"] == true)
    );
    let joined = answers.iter().filter(|answer| answer["route"]["why"] == "joined");
    assert_eq!((joined.count(), host.requests().await.len()), (5, 1));
    let again: Value = client.send(call()).await.unwrap().get(LONG).await.unwrap();
    assert_eq!(
        (&again["route"]["why"], host.requests().await.len()),
        (&json!("warm"), 2)
    );
}

/// A large answer is given to who asked for it, and asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_beyond_ai_max_cached_bytes_is_not_kept() {
    let (redis, host) = (Redis::start(), Sim::start());
    let settings = format!("ai_hosts = '{}'\nai_max_cached_bytes = 3000\n", host.url);
    let (_worker, _folder) = worker(&redis, &settings, &[]);
    let client = redis.client().await;
    let everything = ["slowlog-log-slower-than", "0", "slowlog-max-len", "10000"];
    redis.command::<()>(&[&["CONFIG", "SET"], &everything[..]].concat());
    for (length, again) in [(1_000, "cache"), (3_001, "warm")] {
        let text = "x".repeat(length);
        let mut why = Value::Null;
        for _ in 0..2 {
            let call = generate("echo", &text).kwarg("cache", true);
            let answer: Value = client.send(call).await.unwrap().get(LONG).await.unwrap();
            assert_eq!(answer["text"], text);
            why = answer["route"]["why"].clone();
        }
        assert_eq!(why, again, "{length}");
    }
    // What is said meanwhile to those who wait for the same answer has a bound of its own.
    type Slow = (i64, i64, i64, Vec<String>, String, String);
    let commands = redis.command::<Vec<Slow>>(&["SLOWLOG", "GET", "-1"]);
    let mut said = commands.iter().map(|slow| &slow.3);
    let said = said.find(|words| words[0] == "XADD" && words[1].starts_with("orchestra:said:"));
    assert_eq!(said.unwrap()[2..5], ["MAXLEN", "~", "10000"]);
}
