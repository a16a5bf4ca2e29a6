//! Several model servers as one fleet: who gets which call, and what happens when one of them fails.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use orchestra::client::{Call, Client, Error, Pending, Signature};
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Redis, Sim, Worker, until};

/// A worker with settings of its own.
pub(crate) fn worker(redis: &Redis, settings: &str, arguments: &[&str]) -> (Worker, Folder) {
    let folder = Folder::new();
    let file = folder.write("orchestra.toml", settings);
    let own = ["--config", file.to_str().unwrap()];
    (Worker::start(redis, &[&own[..], arguments].concat()), folder)
}

pub(crate) fn generate(model: &str, prompt: &str) -> Call {
    Call::new("orchestra.generate").arg(model).arg(prompt)
}

pub(crate) async fn answers(pending: Vec<Pending>) -> Vec<Value> {
    let mut answers = Vec::new();
    for one in pending {
        answers.push(one.get::<Value>(LONG).await.unwrap());
    }
    answers
}

pub(crate) async fn failure(client: &Client, call: Call) -> (String, String) {
    match client.send(call).await.unwrap().get::<Value>(LONG).await {
        Err(Error::Failed { exception, .. }) => (exception.name.clone(), exception.message()),
        other => panic!("no failure but {other:?}"),
    }
}

/// What a call fails with that has no retry left.
async fn last_failure(client: &Client, call: Signature) -> (String, String) {
    let applied = client.apply(call.option("retries", 3)).await.unwrap();
    match applied.get::<Value>(LONG).await {
        Err(Error::Failed { exception, .. }) => (exception.name.clone(), exception.message()),
        other => panic!("no failure but {other:?}"),
    }
}

pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// The same seeded choice of models for every run.
fn workload(calls: usize) -> Vec<usize> {
    let mut seed = 7_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % 6
    };
    (0..calls).map(|_| next()).collect()
}

/// Three hosts with one model in memory each, whose loads take forty times as long as an answer; the third one
/// fails the first try of every prompt of half of its models.
fn hosts() -> Vec<Sim> {
    (0..3)
        .map(|host| {
            let behaviour = |model| {
                if host == 2 && model % 2 == 0 { "flaky" } else { "echo" }
            };
            let models: Vec<String> = (0..6)
                .map(|model| format!("--model=m{model}={}", behaviour(model)))
                .collect();
            let mut arguments = vec![
                "--max-loaded=1",
                "--load-delay=800ms",
                "--token-delay=10ms",
                "--parallel=2",
            ];
            arguments.extend(models.iter().map(String::as_str));
            Sim::start_with(&arguments)
        })
        .collect()
}

fn tables(hosts: &[Sim], more: &str) -> String {
    let table = |host: &Sim| format!("{{url = '{}', max_parallel = 2, max_loaded = 1{more}}}", host.url);
    let tables: Vec<String> = hosts.iter().map(table).collect();
    format!("ai_hosts = [{}]\n", tables.join(", "))
}

async fn sum(hosts: &[Sim], what: &str) -> u64 {
    let mut sum = 0;
    for host in hosts {
        sum += number(&host.stats().await[what]);
    }
    sum
}

/// Sends the calls in turn to one host after the other, as many at once as the fleet's workers would; what a host fails
/// goes to the next.
async fn round_robin(hosts: &[Sim], calls: &[usize]) -> Duration {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let began = Instant::now();
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(32));
    let urls: Vec<String> = hosts.iter().map(|host| format!("{}/api/generate", host.url)).collect();
    let mut asked = tokio::task::JoinSet::new();
    for (at, model) in calls.iter().enumerate() {
        let place = places.clone().acquire_owned().await.unwrap();
        let body = json!({"model": format!("m{model}"), "prompt": format!("one {at}"), "stream": false});
        let (http, urls) = (http.clone(), urls.clone());
        asked.spawn(async move {
            let _place = place;
            for again in 0.. {
                let request = http.post(&urls[(at + again) % 3]).json(&body);
                if request.send().await.unwrap().status() == 200 {
                    break;
                }
                assert!(again < 3, "three hosts fail");
            }
        });
    }
    asked.join_all().await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_workers_keep_the_limits_of_three_hosts_and_load_a_fifth_as_often_as_round_robin() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let calls = workload(120);
    let blind = hosts();
    let blind_time = round_robin(&blind, &calls).await;
    let blind_loads = sum(&blind, "loads").await;
    drop(blind);

    let (redis, hosts) = (Redis::start(), hosts());
    let settings = tables(&hosts, "");
    let _workers: Vec<_> = (0..8)
        .map(|at| worker(&redis, &settings, &["-c", "4", "-n", &format!("w{at}@%h")]))
        .collect();
    let client = redis.client().await;
    let began = Instant::now();
    let mut pending = Vec::new();
    for (at, model) in calls.iter().enumerate() {
        pending.push(
            client
                .send(generate(&format!("m{model}"), &format!("one {at}")))
                .await
                .unwrap(),
        );
    }
    let answers = answers(pending).await;
    let time = began.elapsed();
    for (at, answer) in answers.iter().enumerate() {
        assert_eq!(answer["text"].as_str().unwrap().trim(), format!("one {at}"));
    }
    let mut by_host: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in &answers {
        *by_host.entry(answer["host"].as_str().unwrap()).or_default() += 1;
    }
    for host in &hosts {
        let stats = host.stats().await;
        assert!(number(&stats["peak_working"]) <= 2, "{stats}");
        assert_eq!(
            stats["peak_queued"].as_u64().unwrap().min(3),
            number(&stats["peak_queued"]),
            "{stats}"
        );
    }
    let loads = sum(&hosts, "loads").await;
    println!("{loads} loads in {time:?}; round robin {blind_loads} in {blind_time:?}; answers by host {by_host:?}");
    assert!(loads * 5 <= blind_loads, "{loads} loads against {blind_loads}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_in_the_middle_loses_no_call() {
    let redis = Redis::start();
    let start = || Sim::start_with(&["--model=m=lorem", "--token-delay=20ms"]);
    let mut hosts = vec![start(), start()];
    let settings = tables(&hosts, "");
    let _workers: Vec<_> = (0..2).map(|_| worker(&redis, &settings, &["-c", "4"])).collect();
    let client = redis.client().await;
    let mut pending = Vec::new();
    for at in 0..12 {
        pending.push(client.send(generate("m", &at.to_string())).await.unwrap());
    }
    until("both hosts work", async || {
        let mut working = Vec::new();
        for host in &hosts {
            working.push(number(&host.stats().await["working"]));
        }
        working.iter().all(|calls| *calls > 0)
    })
    .await;
    let mut dead = hosts.remove(0);
    dead.process.kill();
    let answers = answers(pending).await;
    assert!(
        answers.iter().all(|answer| answer["usage"]["completion_tokens"] == 100),
        "{answers:?}"
    );
    let moved = answers
        .iter()
        .filter(|answer| answer["route"]["failed"][0]["host"] == dead.url.as_str());
    assert!(moved.count() > 0, "calls of the dead host went on elsewhere");
    // Every call has one answer: those the dead host gave are not given again.
    let by_dead = answers
        .iter()
        .filter(|answer| answer["host"] == dead.url.as_str())
        .count();
    assert_eq!(
        number(&hosts[0].stats().await["completed"]),
        12 - u64::try_from(by_dead).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_places_of_a_dead_worker_come_back() {
    let (redis, host) = (Redis::start(), Sim::start());
    let settings = format!("ai_hosts = [{{url = '{}', max_parallel = 1}}]\n", host.url);
    let (mut dead, _folder) = worker(&redis, &settings, &["-Q", "dead"]);
    let (_alive, _other) = worker(&redis, &settings, &["-Q", "alive"]);
    let client = redis.client().await;
    client.send(generate("hang", "x").queue("dead")).await.unwrap();
    until("it has the only place", async || host.stats().await["working"] == 1).await;
    let waits = client.send(generate("echo", "x").queue("alive")).await.unwrap();
    until("the other waits", async || {
        redis.length("HLEN", "orchestra:fleet:waiting") == 1
    })
    .await;
    dead.process.kill();
    let answer: Value = waits.get(LONG).await.unwrap();
    assert!(answer["route"]["waited_s"].as_f64().unwrap() > 0.0, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_has_a_limit_on_all_hosts_together_and_one_profile() {
    let redis = Redis::start();
    let hosts: Vec<Sim> = (0..2)
        .map(|_| Sim::start_with(&["--model=m=echo", "--token-delay=30ms"]))
        .collect();
    let settings = tables(&hosts, "") + "[ai_models.m]\nmax_parallel = 1\nnum_ctx = 4096\n";
    let (_worker, _folder) = worker(&redis, &settings, &["-c", "8"]);
    let client = redis.client().await;
    let mut pending = Vec::new();
    for num_ctx in [512, 1024, 2048, 4096, 512, 1024] {
        let call = generate("m", "one two").kwarg("options", json!({"num_ctx": num_ctx, "num_thread": num_ctx / 512}));
        pending.push(client.send(call).await.unwrap());
    }
    answers(pending).await;
    let (mut spans, mut reloads) = (Vec::new(), 0);
    for host in &hosts {
        let stats = host.stats().await;
        reloads += number(&stats["reloads"]);
        for call in stats["recent"].as_array().unwrap() {
            spans.push((call["started_s"].as_f64().unwrap(), call["ended_s"].as_f64().unwrap()));
        }
    }
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert_eq!((spans.len(), reloads), (6, 0));
    assert!(
        spans.windows(2).all(|pair| pair[0].1 <= pair[1].0),
        "one at a time: {spans:?}"
    );
    let (name, text) = failure(&client, generate("m", "x").kwarg("options", json!({"num_ctx": 8192}))).await;
    assert!(
        name == "ValueError" && text.contains("runs with 4096 here"),
        "{name}: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_is_asked_once_and_remembered() {
    let (redis, host) = (
        Redis::start(),
        Sim::start_with(&["--model=m=echo", "--token-delay=100ms"]),
    );
    let settings = format!("ai_hosts = '{}'\n", host.url);
    let _workers: Vec<_> = (0..2).map(|_| worker(&redis, &settings, &["-c", "4"])).collect();
    let client = redis.client().await;
    let call = || generate("m", "one two three").kwarg("cache", 60);
    let mut pending = Vec::new();
    for _ in 0..6 {
        pending.push(client.send(call()).await.unwrap());
    }
    let first = answers(pending).await;
    assert!(first.iter().all(|answer| answer["text"] == first[0]["text"]));
    assert_eq!(host.stats().await["requests"], 1, "the others waited for its answer");
    let again: Value = client.send(call()).await.unwrap().get(LONG).await.unwrap();
    assert_eq!(
        (&again["route"]["why"], &again["text"]),
        (&json!("cache"), &first[0]["text"])
    );
    let other: Value = client
        .send(generate("m", "one two").kwarg("cache", 60))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(other["route"]["why"], "warm");
    assert_eq!(host.stats().await["requests"], 2);
    let pending = client.send(call()).await.unwrap();
    pending.get::<Value>(LONG).await.unwrap();
    let text: String = pending
        .stream("0")
        .await
        .unwrap()
        .iter()
        .map(|entry| serde_json::from_str::<Value>(entry.entry.get()).unwrap())
        .filter(|entry| entry["type"] == "token")
        .map(|entry| entry["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        text,
        first[0]["text"].as_str().unwrap(),
        "who streams gets the text as well"
    );
}

/// Whoever waits for the answer of another's call hears its tokens while they come; when who asks is lost, another
/// asks, and readers are told that it begins again.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_same_answer_hears_it_come() {
    let (redis, host) = (
        Redis::start(),
        Sim::start_with(&["--model=m=echo", "--token-delay=150ms"]),
    );
    let settings = format!("ai_hosts = '{}'\n", host.url);
    let [(mut first, _a), (_second, _b)] = ["one", "two"].map(|queue| worker(&redis, &settings, &["-Q", queue]));
    let client = redis.client().await;
    let words = (0..40).map(|at| at.to_string()).collect::<Vec<_>>().join(" ");
    let call = |queue: &str| generate("m", &words).kwarg("cache", 60).queue(queue);
    let asks = client.send(call("one")).await.unwrap();
    until("the model speaks", async || host.stats().await["working"] == 1).await;
    let waits = client.send(call("two")).await.unwrap();
    let heard = async || -> Vec<Value> {
        let entries = waits.stream("0").await.unwrap();
        entries
            .iter()
            .map(|entry| serde_json::from_str(entry.entry.get()).unwrap())
            .collect()
    };
    let tokens = |entries: &[Value]| entries.iter().filter(|entry| entry["type"] == "token").count();
    until("who waits hears tokens", async || tokens(&heard().await) >= 5).await;
    assert_eq!(host.stats().await["working"], 1, "and the model still speaks");
    assert_eq!(waits.state().await.unwrap().as_str(), "STARTED");
    first.process.kill();
    let answer: Value = waits.get(LONG).await.unwrap();
    assert_eq!(answer["text"].as_str().unwrap(), words);
    let entries = heard().await;
    let restart = entries
        .iter()
        .rposition(|entry| entry["type"] == "restart")
        .expect("readers are told");
    let after: String = entries[restart..]
        .iter()
        .filter_map(|entry| entry["text"].as_str())
        .collect();
    assert_eq!(after, words);
    assert_eq!(host.stats().await["requests"], 2, "one of them was lost");
    drop(asks);
}

#[tokio::test(flavor = "multi_thread")]
async fn o_081_to_o_084_texts_become_vectors_in_batches() {
    let (redis, host) = (Redis::start(), Sim::start());
    for kind in ["ollama", "openai"] {
        let before = number(&host.stats().await["requests"]);
        let settings = format!("ai_hosts = [{{url = '{}', kind = '{kind}'}}]\n", host.url);
        let (mut one, _folder) = worker(&redis, &settings, &[]);
        let client = redis.client().await;
        let embed = |model: &str, input: Value| Call::new("orchestra.embed").arg(model).arg(input);
        let texts: Vec<String> = (0..130).map(|at| format!("text {}", at % 100)).collect();
        let answer: Value = client
            .send(embed("embed", json!(texts)))
            .await
            .unwrap()
            .get(LONG)
            .await
            .unwrap();
        let vectors = answer["embeddings"].as_array().unwrap();
        assert_eq!((vectors.len(), vectors[0].as_array().unwrap().len()), (130, 8));
        assert_eq!(
            (&vectors[0], &vectors[29]),
            (&vectors[100], &vectors[129]),
            "in the order of the texts"
        );
        assert_ne!(vectors[0], vectors[1]);
        assert_eq!(answer["usage"]["prompt_tokens"], 260);
        assert_eq!(number(&host.stats().await["requests"]) - before, 3, "in batches of 64");
        for (call, what) in [
            (embed("embed", json!([])), "ValueError: input: is empty"),
            (
                embed("embed", json!(["x", 5])),
                "ValueError: input[1]: must be a text, not 5",
            ),
            (embed("embed", json!(["x", ""])), "ValueError: input[1]: is empty"),
            (
                embed("echo", json!("x")),
                "ModelError: HTTP 501: This server does not support embeddings",
            ),
        ] {
            let (name, text) = failure(&client, call).await;
            assert!(format!("{name}: {text}").starts_with(what), "{name}: {text}");
        }
        let shorter = |wanted: u64| embed("embed", json!(["a", "b"])).kwarg("dimensions", wanted);
        let answer: Value = client.send(shorter(4)).await.unwrap().get(LONG).await.unwrap();
        assert_eq!(answer["embeddings"][1].as_array().unwrap().len(), 4, "{kind}");
        let (name, text) = failure(&client, shorter(16)).await;
        assert!(
            name == "ModelError"
                && text.starts_with("the vectors have 8 numbers and not 16, which dimensions asks for"),
            "{kind}: {name}: {text}"
        );
        for (model, what) in [
            ("embed-short", "1 vectors came for 2 texts"),
            ("embed-uneven", "the vectors differ in length"),
        ] {
            let call = Signature::new("orchestra.embed").arg(model).arg(["a", "b"]);
            let (name, text) = last_failure(&client, call).await;
            assert!(name == "ModelError" && text.starts_with(what), "{name}: {text}");
        }
        one.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o_096_servers_that_speak_openais_api_are_hosts_too() {
    let (redis, host) = (Redis::start(), Sim::start());
    let settings = format!(
        "ai_hosts = [{{url = '{}', kind = 'openai', api_key_env = 'MODEL_KEY', headers = {{X-Team = 'blue'}}}}]\n",
        host.url
    );
    let folder = Folder::new();
    let file = folder.write("orchestra.toml", &settings);
    let arguments = ["--config", file.to_str().unwrap()];
    let worker = Worker::start_with(&redis, &arguments, &[("MODEL_KEY", "hunter2")]);
    let client = redis.client().await;
    let pending = client.send(generate("echo", "one two three")).await.unwrap();
    let answer: Value = pending.get(LONG).await.unwrap();
    assert_eq!(answer["text"].as_str().unwrap().trim(), "one two three");
    assert_eq!(
        (&answer["done_reason"], &answer["usage"]["completion_tokens"]),
        (&json!("stop"), &json!(3))
    );
    let request = host.requests().await.pop().unwrap();
    assert_eq!(request["path"], "/v1/chat/completions");
    assert_eq!(
        (&request["headers"]["authorization"], &request["headers"]["x-team"]),
        (&json!("Bearer hunter2"), &json!("blue"))
    );
    assert!(!worker.log().contains("hunter2"));
    let tokens = pending.stream("0").await.unwrap().len();
    assert!(tokens >= 3, "they came one by one");

    let schema = json!({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]});
    let call = generate("json", "who?").kwarg("format", &schema);
    let answer: Value = client.send(call).await.unwrap().get(LONG).await.unwrap();
    assert!(answer["json"]["age"].is_i64(), "{answer}");
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]);
    let chat = |model: &str| {
        Call::new("orchestra.chat")
            .arg(model)
            .arg(json!([{"role": "user", "content": "hi there"}]))
    };
    let answer: Value = client
        .send(chat("tools").kwarg("tools", tools))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert!(answer["tool_calls"][0]["function"]["arguments"].is_object(), "{answer}");
    let answer: Value = client.send(chat("thinking")).await.unwrap().get(LONG).await.unwrap();
    assert!(
        answer["thinking"].is_string() && answer["text"].as_str().unwrap().trim() == "hi there",
        "{answer}"
    );
    let call = generate("lorem", "x").kwarg("options", json!({"num_predict": 5}));
    let answer: Value = client.send(call).await.unwrap().get(LONG).await.unwrap();
    assert_eq!(
        (&answer["truncated"], &answer["usage"]["completion_tokens"]),
        (&json!(true), &json!(5))
    );
    for (model, what) in [
        ("missing", "ModelNotFound"),
        ("no-done", "the answer ended before it was done"),
        ("error-midstream", "the server hid an error"),
        ("cut-midstream", "the connection to the model server broke"),
        ("error-400", "HTTP 400"),
    ] {
        let call = Signature::new("orchestra.generate").arg(model).arg("x");
        let (name, text) = last_failure(&client, call).await;
        assert!(format!("{name} {text}").contains(what), "{model}: {name}: {text}");
    }
    let (name, text) = failure(&client, generate("echo", "x").kwarg("raw", true)).await;
    assert!(name == "ModelError" && text.starts_with("raw: "), "{name}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn o_087_to_o_089_a_model_that_none_has_is_fetched_once_where_that_is_allowed() {
    let redis = Redis::start();
    let host = Sim::start_with(&["--pullable=new:1b=echo", "--pull-delay=2s"]);
    let settings = format!("ai_hosts = '{}'\nai_pull = ['new:*', 'nobody']\n", host.url);
    let _workers: Vec<_> = (0..2).map(|_| worker(&redis, &settings, &["-c", "2"])).collect();
    let client = redis.client().await;
    let mut pending = Vec::new();
    for _ in 0..3 {
        pending.push(client.send(generate("new:1b", "one")).await.unwrap());
    }
    assert!(
        answers(pending)
            .await
            .iter()
            .all(|answer| answer["text"].as_str().unwrap().trim() == "one")
    );
    assert_eq!(host.stats().await["pulls"], 1);
    let (name, text) = failure(&client, generate("nobody", "x")).await;
    assert!(
        name == "ModelError" && text.contains("file does not exist"),
        "{name}: {text}"
    );
    let (name, _) = failure(&client, generate("other", "x")).await;
    assert_eq!(name, "ModelNotFound", "it may not be fetched");
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_refuse_a_call_or_give_it_a_smaller_model() {
    let (redis, host) = (
        Redis::start(),
        Sim::start_with(&["--model=big=lorem", "--model=small=echo"]),
    );
    let settings = format!(
        "ai_hosts = '{}'\n[[ai_budgets]]\ntenant = 'acme'\ntokens = 50\nper = 'month'\n\
         [[ai_budgets]]\nmodel = 'big'\ntenant = 'poor'\ntokens = 50\ndowngrade_to = 'small'\n",
        host.url
    );
    let (_worker, folder) = worker(&redis, &settings, &[]);
    let client = redis.client().await;
    let call = |tenant: &str| generate("big", "hi").header("tenant", tenant);
    for (tenant, model) in [
        ("acme", "big"),
        ("poor", "big"),
        ("rich", "big"),
        ("rich", "big"),
        ("poor", "small"),
    ] {
        let answer: Value = client.send(call(tenant)).await.unwrap().get(LONG).await.unwrap();
        assert_eq!(answer["model"], model, "{tenant}");
        if model == "small" {
            assert_eq!(answer["route"]["downgraded_from"], "big");
        }
    }
    let (name, text) = failure(&client, call("acme")).await;
    assert_eq!(
        (name.as_str(), text.as_str()),
        ("BudgetExceeded", "the budget of tenant acme for this month is used up")
    );
    let out = std::process::Command::new(crate::support::program("orchestra"))
        .args(["models", "usage", "--json", "--broker", &redis.url(), "--config"])
        .arg(folder.path().join("orchestra.toml"))
        .output()
        .unwrap();
    let used: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    let rich = used
        .iter()
        .find(|line| line["what"] == "tenant" && line["name"] == "rich")
        .unwrap();
    assert_eq!((&rich["calls"], &rich["completion_tokens"]), (&json!(2), &json!(200)));
    assert!(
        used.iter()
            .any(|line| line["what"] == "task" && line["name"] == "orchestra.generate" && line["calls"] == 5)
    );
}

/// A soft and a hard bound of one tenant are two budgets and one count; another time is another count.
#[tokio::test(flavor = "multi_thread")]
async fn budgets_that_count_the_same_calls_count_them_once() {
    let (redis, host) = (
        Redis::start(),
        Sim::start_with(&["--model=big=lorem", "--model=small=echo"]),
    );
    let settings = format!(
        "ai_hosts = '{}'\n[[ai_budgets]]\ntenant = 'acme'\ntokens = 150\ndowngrade_to = 'small'\n\
         [[ai_budgets]]\ntenant = 'acme'\ntokens = 250\n[[ai_budgets]]\ntenant = 'acme'\nseconds = 900.0\nper = 'month'\n",
        host.url
    );
    let (_worker, folder) = worker(&redis, &settings, &[]);
    let client = redis.client().await;
    let mut tokens = 0;
    for model in ["big", "big", "small"] {
        let call = generate("big", "hi").header("tenant", "acme");
        let answer: Value = client.send(call).await.unwrap().get(LONG).await.unwrap();
        assert_eq!(answer["model"], model);
        tokens += number(&answer["usage"]["total_tokens"]);
    }
    let out = std::process::Command::new(crate::support::program("orchestra"))
        .args(["models", "usage", "--json", "--broker", &redis.url(), "--config"])
        .arg(folder.path().join("orchestra.toml"))
        .output()
        .unwrap();
    let used: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    let budgets: Vec<&Value> = used.iter().filter(|line| line["what"] == "budget").collect();
    let lines: Vec<(&str, u64, u64)> = budgets
        .iter()
        .map(|line| {
            let tokens = number(&line["prompt_tokens"]) + number(&line["completion_tokens"]);
            (line["per"].as_str().unwrap_or_default(), number(&line["calls"]), tokens)
        })
        .collect();
    assert_eq!(lines, [("day", 3, tokens), ("month", 3, tokens)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_given_up_counts_with_what_it_had() {
    let (redis, host) = (Redis::start(), Sim::start_with(&["--model=m=slow"]));
    let settings = format!(
        "ai_hosts = '{}'\n[[ai_budgets]]\ntenant = 'acme'\ntokens = 3\n",
        host.url
    );
    let (_worker, folder) = worker(&redis, &settings, &[]);
    let client = redis.client().await;
    let call = || generate("m", "one two three four").header("tenant", "acme");
    let pending = client.send(call()).await.unwrap();
    let tokens = async || {
        let entries = pending.stream("0").await.unwrap();
        let is_token = |text: &str| text.contains("\"type\":\"token\"");
        entries.iter().filter(|entry| is_token(entry.entry.get())).count()
    };
    until("it speaks", async || tokens().await >= 3).await;
    pending.revoke(true).await.unwrap();
    let mut line = Value::Null;
    until("it is counted", async || {
        let out = std::process::Command::new(crate::support::program("orchestra"))
            .args(["models", "usage", "--json", "--broker", &redis.url(), "--config"])
            .arg(folder.path().join("orchestra.toml"))
            .output()
            .unwrap();
        let used: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
        let budget = used.into_iter().find(|line| line["what"] == "budget");
        budget.map(|budget| line = budget).is_some()
    })
    .await;
    assert_eq!((&line["calls"], &line["prompt_tokens"]), (&json!(1), &json!(4)));
    // A token each tenth of a second.
    assert!(
        number(&line["completion_tokens"]) >= 3 && line["seconds"].as_f64().unwrap() > 0.2,
        "{line}"
    );
    let (name, text) = failure(&client, call()).await;
    assert_eq!(name, "BudgetExceeded", "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_can_be_seen_and_told() {
    let (redis, host) = (Redis::start(), Sim::start_with(&["--pullable=new=echo"]));
    let folder = Folder::new();
    folder.write(
        "orchestra.toml",
        &format!("ai_hosts = '{}'\n[ai_models.lorem]\nnum_ctx = 1024\n", host.url),
    );
    let models = |words: &[&str]| {
        let out = std::process::Command::new(crate::support::program("orchestra"))
            .arg("models")
            .args(words)
            .args(["--broker", &redis.url()])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.success(), text(&out.stdout) + &text(&out.stderr))
    };
    assert!(models(&["list"]).1.contains("lorem:latest"));
    let (good, text) = models(&["warm", "lorem", "--keep-alive", "-1"]);
    assert!(good && text.contains("lorem:latest loaded on"), "{text}");
    let (good, text) = models(&["ps"]);
    assert!(
        good && text.contains("0 of 4 calls  ok") && text.contains("lorem:latest"),
        "{text}"
    );
    assert_eq!(host.stats().await["loads"], 1);
    let (good, text) = models(&["unload", "lorem"]);
    assert!(good && !models(&["ps"]).1.contains("lorem"), "{text}");
    let (good, text) = models(&["pull", "new"]);
    assert!(good && text.contains("new:latest is on"), "{text}");
    let (good, text) = models(&["copy", "lorem", "same"]);
    assert!(good && text.contains("lorem:latest copied to same:latest on"), "{text}");
    let (good, text) = models(&["delete", "same", "--host", &host.url]);
    assert!(good && text.contains("same:latest deleted on"), "O-090: {text}");
    assert!(!models(&["list"]).1.contains("same:latest"));
    let (good, text) = models(&["delete", "same", "--host", &host.url]);
    assert!(!good && text.contains("model 'same:latest' not found"), "{text}");
    let (good, text) = models(&["pull", "nobody"]);
    assert!(!good && text.contains("file does not exist"), "{text}");
    let (good, text) = models(&["warm", "lorem", "--host", "http://elsewhere:1"]);
    assert!(!good && text.contains("is no host of ai_hosts"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_said_is_recorded_and_played_again_without_it() {
    let (redis, tape) = (Redis::start(), Folder::new());
    let folder = tape.path().to_str().unwrap();
    let call = || generate("echo", "one two three");
    let answers_of = async |url: &str| {
        let (mut one, _folder) = worker(&redis, &format!("ai_hosts = '{url}'\n"), &[]);
        let client = redis.client().await;
        let answer: Value = client.send(call()).await.unwrap().get(LONG).await.unwrap();
        let other = failure(&client, generate("error-400", "x")).await;
        one.stop();
        (answer, other)
    };
    let recorded = {
        let real = Sim::start_with(&["--token-delay=50ms"]);
        let recorder = Sim::start_with(&["--record", &real.url, "--cassette", folder]);
        answers_of(&recorder.url).await
    };
    let player = Sim::start_with(&["--backend", "cassette", "--cassette", folder]);
    let played = answers_of(&player.url).await;
    assert_eq!(played.0["text"], recorded.0["text"]);
    assert_eq!(
        (&played.0["usage"], &played.0["timing"]["total_s"]),
        (&recorded.0["usage"], &recorded.0["timing"]["total_s"])
    );
    assert_eq!(played.1.0, recorded.1.0);
    let client = redis.client().await;
    let (_worker, _folder) = worker(&redis, &format!("ai_hosts = '{}'\n", player.url), &[]);
    let (_, text) = failure(&client, generate("echo", "never said")).await;
    assert!(text.contains("no take of this POST /api/generate"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_says_which_way_a_call_went() {
    let (redis, host) = (
        Redis::start(),
        Sim::start_with(&["--max-loaded=1", "--load-delay=300ms"]),
    );
    let settings = format!(
        "ai_hosts = ['http://127.0.0.1:1', {{url = '{}', max_loaded = 1}}]\nai_record_prompts = true\n",
        host.url
    );
    let (_worker, _folder) = worker(&redis, &settings, &["-c", "1"]);
    let client = redis.client().await;
    let mut why = Vec::new();
    let mut hashes = Vec::new();
    for (model, prompt) in [("echo", "a"), ("echo", "b"), ("lorem", "a"), ("echo", "a")] {
        let call = generate(model, prompt).kwarg("options", json!({"seed": 1}));
        let answer: Value = client.send(call).await.unwrap().get(LONG).await.unwrap();
        let route = &answer["route"];
        why.push(route["why"].as_str().unwrap().to_owned());
        hashes.push(route["prompt_sha256"].as_str().unwrap().to_owned());
        assert_eq!(
            (&route["options"], &route["prompt"]),
            (&json!({"seed": 1}), &json!(prompt))
        );
        assert_eq!(answer["host"], host.url);
    }
    assert_eq!(
        why,
        [
            "load",
            "warm",
            "load instead of echo:latest",
            "load instead of lorem:latest"
        ]
    );
    assert!(hashes[0] == hashes[3] && hashes[0] != hashes[1] && hashes[0] != hashes[2] && hashes[0].len() == 64);
    let pending = client.send(generate("echo", "x")).await.unwrap();
    pending.get::<Value>(LONG).await.unwrap();
    let entries = pending.stream("0").await.unwrap();
    let calls: Vec<Value> = entries
        .iter()
        .map(|entry| serde_json::from_str::<Value>(entry.entry.get()).unwrap())
        .filter(|entry| entry["type"] == "call")
        .collect();
    assert_eq!((calls.len(), &calls[0]["route"]["why"]), (1, &json!("warm")));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_carry_what_they_must_and_nothing_else() {
    let (redis, host) = (Redis::start(), Sim::start());
    let (worker, _folder) = worker(&redis, &format!("ai_hosts = '{}'\n", host.url), &[]);
    let client = redis.client().await;
    let call = generate("lorem", "a secret prompt");
    client.send(call).await.unwrap().get::<Value>(LONG).await.unwrap();
    let request = host.requests().await.pop().unwrap();
    assert!(request["headers"].get("origin").is_none(), "{request}");
    let body: Value = serde_json::from_str(request["body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&body["stream"], &body["truncate"], &body["prompt"]),
        (&json!(true), &json!(false), &json!("a secret prompt"))
    );
    let body = body.as_object().unwrap();
    assert_eq!(
        body["options"],
        json!({"num_predict": 32_768}),
        "O-022: an answer has an end"
    );
    assert_eq!(body.len(), 5, "{body:?}");
    assert!(!worker.log().contains("secret prompt"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wait_has_a_limit_of_its_own() {
    let redis = Redis::start();
    // Words come ten times a second: a busy machine that makes them wait shall not pass for a model that says no more.
    let host = Sim::start_with(&["--load-delay=2s"]);
    let settings = format!(
        "ai_hosts = '{}'\nai_load_timeout = 20\nai_first_token_timeout = 1.5\nai_stall_timeout = 1.2\nai_call_timeout = 6\n",
        host.url
    );
    let (_worker, _folder) = worker(&redis, &settings, &[]);
    let client = redis.client().await;
    let answer: Value = client
        .send(generate("echo", "x"))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(
        answer["route"]["why"], "load",
        "the load took longer than a first token may"
    );
    client
        .send(generate("hang", "x").time_limit(Duration::from_secs(2)))
        .await
        .unwrap();
    for (model, what) in [
        ("hang", "no answer for"),
        ("stall", "the answer stopped for 1.2 s"),
        ("slow", "the call took longer than 6 s"),
    ] {
        let call = Signature::new("orchestra.generate").arg(model).arg("x");
        let (_, text) = last_failure(&client, call).await;
        assert!(text.contains(what), "{model}: {text}");
    }
    until("all are left alone", async || host.stats().await["open"] == 0).await;
}

/// A host whose network swallows what is sent to it: the attempt to connect has its own limit.
#[tokio::test(flavor = "multi_thread")]
async fn the_attempt_to_connect_has_a_limit() {
    // A socket that listens and accepts nothing, with no room for one more: it does not answer.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    let moment = Duration::from_millis(500);
    while let Ok(stream) = tokio::time::timeout(moment, tokio::net::TcpStream::connect(address)).await {
        held.push(stream.unwrap());
        assert!(held.len() < 100, "it answers whoever comes");
    }
    let redis = Redis::start();
    let settings = format!("ai_hosts = 'http://{address}'\nai_connect_timeout = 0.5\n");
    let (_worker, _folder) = worker(&redis, &settings, &[]);
    let call = Signature::new("orchestra.generate").arg("echo").arg("x");
    let began = Instant::now();
    let (name, text) = last_failure(&redis.client().await, call).await;
    assert_eq!(name, "ModelUnavailable", "{text}");
    // The system itself gives up after half a minute at the earliest.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(
        text.contains("no answer to the attempt to connect (ai_connect_timeout)"),
        "{text}"
    );
}

/// Who waits for a place too long gives its own place up, and is tried again later as long as it has retries.
#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_a_place_has_a_limit() {
    let (redis, host) = (Redis::start(), Sim::start());
    let settings = format!(
        "ai_hosts = [{{url = '{}', max_parallel = 1}}]\nai_queue_timeout = 1\n",
        host.url
    );
    let (_worker, _folder) = worker(&redis, &settings, &["-c", "4"]);
    let client = redis.client().await;
    // Half a minute of words.
    let first = client.send(generate("slow", "x")).await.unwrap();
    until("it speaks", async || host.stats().await["working"] == 1).await;
    let patient = client.send(generate("echo", "patient")).await.unwrap();
    let call = Signature::new("orchestra.generate").arg("echo").arg("x");
    let (name, text) = last_failure(&client, call).await;
    assert_eq!(name, "ModelUnavailable", "{text}");
    assert!(
        text.contains("no host had a place for echo within 1 s (ai_queue_timeout)"),
        "{text}"
    );
    until("the other one will be tried again", async || {
        patient.state().await.unwrap().as_str() == "RETRY"
    })
    .await;
    first.revoke(true).await.unwrap();
    assert_eq!(patient.get::<Value>(LONG).await.unwrap()["text"], "patient");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_kept_a_moment_after_a_call_was_given_up() {
    let (redis, host) = (Redis::start(), Sim::start());
    let (_worker, _folder) = worker(
        &redis,
        &format!("ai_hosts = [{{url = '{}', max_parallel = 1}}]\n", host.url),
        &[],
    );
    let client = redis.client().await;
    let given_up = client.send(generate("slow", "x")).await.unwrap();
    until("it speaks", async || host.stats().await["working"] == 1).await;
    let place = || redis.length("ZCARD", "orchestra:fleet:places");
    assert_eq!(place(), 1);
    given_up.revoke(true).await.unwrap();
    until("the host is left alone", async || host.stats().await["working"] == 0).await;
    assert_eq!(place(), 1, "the engine ends its batch");
    let next: Value = client
        .send(generate("echo", "x"))
        .await
        .unwrap()
        .get(LONG)
        .await
        .unwrap();
    assert_eq!(next["text"].as_str().unwrap().trim(), "x");
}
