//! What users can say about who gets a host: strategies, limits in a time, and which task of several goes first.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use orchestra::client::{Call, Pending};
use serde_json::{Value, json};

use crate::fleet::{answers, failure, generate, number, worker};
use crate::support::{Folder, LONG, Redis, Sim, program, until};

fn orchestra(words: &[&str], redis: &Redis, folder: &Folder) -> (bool, String) {
    let out = Command::new(program("orchestra"))
        .args(words)
        .args(["--broker", &redis.url(), "--config"])
        .arg(folder.path().join("orchestra.toml"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.success(), text(&out.stdout) + &text(&out.stderr))
}

async fn entries(pending: &Pending, kind: &str) -> Vec<Value> {
    let entries = pending.stream("0").await.unwrap();
    let read = entries
        .iter()
        .map(|entry| serde_json::from_str::<Value>(entry.entry.get()).unwrap());
    read.filter(|entry| entry["type"] == kind).collect()
}

fn by_host(answers: &[Value]) -> BTreeMap<&str, usize> {
    let mut by_host = BTreeMap::new();
    for answer in answers {
        *by_host.entry(answer["host"].as_str().unwrap()).or_default() += 1;
    }
    by_host
}

/// Three hosts that are alike, but for the time that the second one takes.
#[tokio::test(flavor = "multi_thread")]
async fn each_strategy_chooses_its_hosts_and_its_reasons_can_be_asked() {
    let redis = Redis::start();
    let hosts = ["1ms", "150ms", "1ms"]
        .map(|delay| Sim::start_with(&["--model=m=echo", "--model=n=slow", &format!("--token-delay={delay}")]));
    let urls: Vec<String> = hosts.iter().map(|host| format!("'{}'", host.url)).collect();
    let settings = format!(
        "ai_hosts = [{}]\n[ai_models.n]\nrouting = 'least-busy'\n",
        urls.join(", ")
    );
    let (_worker, folder) = worker(&redis, &settings, &["-c", "8"]);
    let (warmed, text) = orchestra(&["models", "warm", "m"], &redis, &folder);
    assert!(warmed, "{text}");
    let client = redis.client().await;
    // One after the other, so that all hosts are idle at each choice.
    let ask = async |calls: usize, routing: &str, user: &str| -> Vec<Value> {
        let mut answers = Vec::new();
        for at in 0..calls {
            let call = generate("m", &format!("one two {at}"))
                .kwarg("routing", routing)
                .header("user", user);
            answers.push(client.send(call).await.unwrap().get(LONG).await.unwrap());
        }
        answers
    };
    for strategy in ["warm-first", "weighted"] {
        let answers = ask(12, strategy, "").await;
        // Which two are drawn goes by the id of the call: that one of three has none of twelve is seen once in forty
        // runs.
        assert!(by_host(&answers).len() > 1, "{strategy}: no host has all: {answers:?}");
    }
    let answers = ask(12, "latency", "").await;
    let slow = by_host(&answers).get(&*hosts[1].url).copied().unwrap_or(0);
    assert_eq!(slow, 1, "the slow one is tried once");
    assert!(
        answers[11]["route"]["hosts"][1]["was"]
            .as_str()
            .unwrap()
            .contains("ms for 100 tokens"),
        "{answers:?}"
    );
    let mut homes = BTreeMap::new();
    // Their homes go by the hosts' ports, too: five users have the same one once in eighty runs.
    for user in (0..12).map(|at| format!("user {at}")) {
        let answers = ask(2, "sticky(user)", &user).await;
        let home = by_host(&answers);
        assert_eq!(home.len(), 1, "{user}: {home:?}");
        homes.insert(home.into_keys().next().unwrap().to_owned(), user);
    }
    assert!(homes.len() > 1, "users are shared out: {homes:?}");

    // A model's own strategy: the second call goes to an idle host though that has to load.
    let first = client.send(generate("n", "x")).await.unwrap();
    until("it speaks", async || {
        let mut working = 0;
        for host in &hosts {
            working += number(&host.stats().await["working"]);
        }
        working == 1
    })
    .await;
    let call = generate("n", "y").kwarg("options", json!({"num_predict": 3}));
    let pending = client.send(call).await.unwrap();
    let second: Value = pending.get(LONG).await.unwrap();
    assert_eq!(
        (&second["route"]["strategy"], &second["route"]["why"]),
        (&json!("least-busy"), &json!("load"))
    );
    first.revoke(true).await.unwrap();
    let (known, text) = orchestra(&["models", "explain", pending.id()], &redis, &folder);
    assert!(known && text.contains("why     load, chosen by least-busy"), "{text}");
    assert!(
        text.contains(&format!("host  * {}", second["host"].as_str().unwrap())),
        "{text}"
    );
    assert!(
        text.contains("in memory, 1 of 4 calls") && text.contains("to be loaded, 0 of 4 calls"),
        "{text}"
    );
    let (known, text) = orchestra(&["models", "explain", "nobody"], &redis, &folder);
    assert!(!known && text.contains("nothing is known of a task nobody"), "{text}");
    let (name, text) = failure(&client, generate("m", "x").kwarg("routing", "fastest")).await;
    assert!(
        name == "ValueError" && text.starts_with("routing: \"fastest\" is no way to choose a host"),
        "{name}: {text}"
    );
}

/// Without a prefetch a message has the place of its run; one that is put off waits without it, and others run.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_a_limit_keep_no_place_of_a_worker_that_prefetches_nothing() {
    let (redis, host) = (Redis::start(), Sim::start_with(&["--model=m=echo"]));
    let settings = format!(
        "ai_hosts = '{}'\n[[ai_rate_limits]]\nmodel = 'm'\nrequests = 1\nburst = 0\n",
        host.url
    );
    let _worker = worker(&redis, &settings, &["-c", "2", "--disable-prefetch"]);
    let client = redis.client().await;
    let mut limited = Vec::new();
    for at in 0..4 {
        limited.push(client.send(generate("m", &format!("{at}"))).await.unwrap());
    }
    let free = client.send(generate("echo", "free")).await.unwrap();
    free.get::<Value>(LONG).await.unwrap();
    until("three wait for the limit", async || {
        let mut waiting = 0;
        for pending in &limited {
            waiting += usize::from(pending.state().await.unwrap().as_str() == "WAITING");
        }
        waiting == 3
    })
    .await;
}

/// Two workers with one place each and a limit of a call a second: who waits for it holds up nobody, is not tried again
/// for it, and survives the stop of its worker.
#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_a_limit_and_others_go_on_meanwhile() {
    let (redis, host) = (Redis::start(), Sim::start_with(&["--model=m=echo"]));
    let settings = format!(
        "ai_hosts = '{}'\n[[ai_rate_limits]]\nmodel = 'm'\nrequests = 60\nburst = 0\n",
        host.url
    );
    let mut workers: Vec<_> = (0..2)
        .map(|at| worker(&redis, &settings, &["-c", "1", "-n", &format!("w{at}@%h")]))
        .collect();
    let client = redis.client().await;
    let mut limited = Vec::new();
    for at in 0..6 {
        limited.push(client.send(generate("m", &format!("one {at}"))).await.unwrap());
    }
    until("somebody waits", async || {
        let state = limited[5].state().await.unwrap();
        state.as_str() == "WAITING"
    })
    .await;
    let (_, text) = orchestra(&["models", "explain", limited[5].id()], &redis, &workers[0].1);
    assert!(
        text.contains("it waits for a limit: model m: 60 requests a minute"),
        "{text}"
    );
    let began = Instant::now();
    let mut free = Vec::new();
    for at in 0..6 {
        free.push(client.send(generate("echo", &format!("two {at}"))).await.unwrap());
    }
    answers(free).await;
    let took = began.elapsed();
    let last = limited[5].state().await.unwrap();
    assert!(
        !last.is_ready(),
        "others were answered after {took:?}, and it was {}",
        last.as_str()
    );
    assert_eq!(workers[0].0.stop(), Some(0), "what is put off goes back to its queue");
    let ids: Vec<String> = limited.iter().map(|pending| pending.id().to_owned()).collect();
    let answers = answers(limited).await;
    let stats = host.stats().await;
    let recent = stats["recent"].as_array().unwrap();
    let mut starts: Vec<f64> = recent
        .iter()
        .filter(|call| call["model"].as_str().unwrap().starts_with('m'))
        .map(|call| call["started_s"].as_f64().unwrap())
        .collect();
    starts.sort_by(f64::total_cmp);
    assert_eq!(starts.len(), 6, "each was asked once");
    // Their turns are a second apart; a start is a moment after its turn.
    assert!(starts[5] - starts[0] > 4.5, "{starts:?}");
    let waited = answers
        .iter()
        .filter(|answer| answer["route"]["limited"]["by"] == "model m: 60 requests a minute");
    assert_eq!(waited.count(), 5, "{answers:?}");
    for id in ids {
        let calls = entries(&client.result(id), "call").await;
        assert_eq!((calls.len(), &calls[0]["attempt"]), (1, &json!(0)), "it is no retry");
    }
}

/// What a call uses is known when it is over: the next one of the same tenant waits for it, one of another does not.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_seconds_are_limited_for_each_tenant() {
    let redis = Redis::start();
    let host = Sim::start_with(&["--model=m=lorem", "--model=g=slow"]);
    let settings = format!(
        "ai_hosts = '{}'\n[[ai_rate_limits]]\nmodel = 'm'\neach = 'tenant'\ntokens = 600\nburst = 0\n\
         [[ai_rate_limits]]\nmodel = 'g'\neach = 'team'\ngpu_seconds = 360\nburst = 0\n",
        host.url
    );
    let (_worker, _folder) = worker(&redis, &settings, &["-c", "2"]);
    let client = redis.client().await;
    let wait = async |call: Call| -> f64 {
        let pending = client.send(call).await.unwrap();
        let mut wait = 0.0;
        until("it waits or ends", async || {
            if let Some(entry) = entries(&pending, "limit").await.first() {
                wait = entry["wait_s"].as_f64().unwrap();
            }
            wait > 0.0 || pending.state().await.unwrap().is_ready()
        })
        .await;
        pending.revoke(true).await.unwrap();
        wait
    };
    let call = |tenant: &str| generate("m", "x").header("tenant", tenant);
    let answer: Value = client.send(call("a")).await.unwrap().get(LONG).await.unwrap();
    // A token each tenth of a second.
    let tokens = answer["usage"]["total_tokens"].as_f64().unwrap() / 10.0;
    let (again, other) = (wait(call("a")).await, wait(call("b")).await);
    assert!(
        again > tokens - 4.0 && again <= tokens,
        "{again} s after {tokens} s of tokens"
    );
    assert!(other == 0.0, "{other}");

    let call = |team: &str| {
        generate("g", "x")
            .header("team", team)
            .kwarg("options", json!({"num_predict": 6}))
    };
    let answer: Value = client.send(call("red")).await.unwrap().get(LONG).await.unwrap();
    // A second of the host each ten seconds.
    let seconds = answer["timing"]["total_s"].as_f64().unwrap() * 10.0;
    let again = wait(call("red")).await;
    assert!(
        again > seconds - 4.0 && again <= seconds,
        "{again} s after {seconds} s of work"
    );
    let nobody = generate("g", "x").kwarg("options", json!({"num_predict": 1}));
    assert!(wait(nobody).await == 0.0, "one without a team has no limit");
}

/// Steps that wait for a limit put the run off, and what was done is not done again.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_goes_on_where_a_limit_stopped_it() {
    let (redis, host) = (Redis::start(), Sim::start_with(&["--model=m=echo"]));
    let templates = Folder::new();
    templates.write(
        "each.yaml",
        "description: asks for each\nparameters:\n  words: {type: array}\nsteps:\n  - id: ask\n    type: ollama_generate\n    \
         foreach: \"{{ words }}\"\n    parallel: 4\n    model: m\n    prompt: \"say {{ item }}\"\noutput: \"{{ steps.ask | length }}\"\n",
    );
    let settings = format!(
        "ai_hosts = '{}'\n[[ai_rate_limits]]\ntemplate = 'each'\nrequests = 60\nburst = 0\n",
        host.url
    );
    let folder = templates.path().to_str().unwrap();
    let (_worker, _folder) = worker(&redis, &settings, &["-c", "1", "--templates", folder]);
    let client = redis.client().await;
    let call = Call::new("orchestra.run")
        .arg("each")
        .arg(json!({"words": ["a", "b", "c", "d"]}));
    let pending = client.send(call).await.unwrap();
    let other: Value = client.send(generate("m", "x")).await.unwrap().get(LONG).await.unwrap();
    assert_eq!(other["route"].get("limited"), None);
    assert!(
        !pending.state().await.unwrap().is_ready(),
        "the other one ran in the only place meanwhile"
    );
    let output: Value = pending.get(LONG).await.unwrap();
    assert!(output == json!(4) || output == json!("4"), "{output}");
    assert_eq!(host.stats().await["requests"], 5, "four items and the other");
}

/// How often the host loads for ten tasks of two models in turn, of which only one fits; and the order of the models.
async fn loads_of_ten(overtaking: u32) -> (u64, Vec<String>) {
    let redis = Redis::start();
    let host = Sim::start_with(&[
        "--model=a=echo",
        "--model=b=echo",
        "--max-loaded=1",
        "--load-delay=200ms",
    ]);
    let client = redis.client().await;
    let mut pending = Vec::new();
    for at in 0..10 {
        let model = if at % 2 == 0 { "a" } else { "b" };
        pending.push(client.send(generate(model, &format!("one {at}"))).await.unwrap());
    }
    let settings = format!(
        "ai_hosts = [{{url = '{}', max_loaded = 1}}]\nai_overtaking = {overtaking}\n",
        host.url
    );
    let (_worker, _folder) = worker(&redis, &settings, &["-c", "1", "--prefetch-multiplier", "10"]);
    answers(pending).await;
    let stats = host.stats().await;
    let mut calls: Vec<(f64, String)> = stats["recent"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|call| number(&call["tokens"]) > 0)
        .map(|call| {
            (
                call["started_s"].as_f64().unwrap(),
                call["model"].as_str().unwrap()[..1].to_owned(),
            )
        })
        .collect();
    calls.sort_by(|a, b| a.0.total_cmp(&b.0));
    (number(&stats["loads"]), calls.into_iter().map(|call| call.1).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_a_model_in_memory_go_first_but_not_for_ever() {
    let (fifo, order) = loads_of_ten(0).await;
    assert_eq!((fifo, order.concat()), (10, "ababababab".to_owned()));
    let (loads, order) = loads_of_ten(16).await;
    println!("{loads} loads where there were {fifo}: {}", order.concat());
    assert!(loads * 2 < fifo, "{loads} loads: {order:?}");
    let (bounded, order) = loads_of_ten(2).await;
    println!("{bounded} loads with at most two overtaking: {}", order.concat());
    // The oldest of b came second: two of a may go before it, no more.
    assert_eq!(order.iter().position(|model| model == "b"), Some(3), "{order:?}");
    assert!(bounded < fifo);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_limit_is_told_before_the_worker_starts() {
    let redis = Redis::start();
    let folder = Folder::new();
    for (settings, what) in [
        (
            "[[ai_rate_limits]]\nmodel = 'm'\n",
            "ai_rate_limits: model m: say how many requests or tokens a minute",
        ),
        (
            "ai_routing = 'fastest'\n",
            "\"fastest\" is no way to choose a host: use warm-first",
        ),
    ] {
        folder.write("orchestra.toml", settings);
        let out = Command::new(program("hello_task"))
            .args(["--quiet", "--broker", &redis.url(), "--config"])
            .arg(folder.path().join("orchestra.toml"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && text.contains(what), "{text}");
    }
}

/// Whoever is put off begins anew: what was paid for before, an answer to repair or a try, must not be lost by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_and_a_further_try_wait_in_their_place() {
    let redis = Redis::start();
    let host = Sim::start_with(&["--model=m=misfit,json", "--model=n=misfit"]);
    let templates = Folder::new();
    templates.write(
        "twice.yaml",
        "steps:\n- {id: a, type: ollama_generate, model: n, prompt: x, repairs: 0, format: {type: object}, \
         retry: {times: 1, on: [invalid_output], pause: 0.05}}\n",
    );
    let settings = format!(
        "ai_hosts = '{}'\n[[ai_rate_limits]]\neach = 'model'\nrequests = 30\nburst = 0\n",
        host.url
    );
    let folder = templates.path().to_str().unwrap();
    let (_worker, _folder) = worker(&redis, &settings, &["-c", "2", "--templates", folder]);
    let client = redis.client().await;
    let call = generate("m", "x").kwarg("format", json!({"type": "object"}));
    let answer: Value = client.send(call).await.unwrap().get(LONG).await.unwrap();
    assert_eq!((&answer["repairs"], host.requests().await.len()), (&json!(1), 2));
    let prompt = |request: &Value| request["body"].as_str().unwrap().contains("Your last answer was");
    assert!(prompt(&host.requests().await[1]), "the second is the repair");

    let call = Call::new("orchestra.run").arg("twice").arg(json!({}));
    let (name, text) = failure(&client, call).await;
    assert_eq!(name, "InvalidOutput", "{text}");
    assert_eq!(host.requests().await.len(), 4, "one try and one more");
}

/// A process shows sixty-four of its calls to the others: calls of one model must not be all of them.
#[tokio::test(flavor = "multi_thread")]
async fn seventy_calls_for_a_full_host_do_not_hide_one_for_an_idle_host() {
    let redis = Redis::start();
    let (full, idle) = (
        Sim::start_with(&["--model=a=slow"]),
        Sim::start_with(&["--model=b=echo"]),
    );
    let settings = format!(
        "ai_hosts = [{{ url = '{}', max_parallel = 1, models = ['a'] }}, {{ url = '{}', models = ['b'] }}]\n",
        full.url, idle.url
    );
    let (_worker, _folder) = worker(&redis, &settings, &["-c", "80", "--prefetch-multiplier", "1"]);
    let client = redis.client().await;
    let calls: Vec<Call> = (0..70).map(|at| generate("a", &format!("{at}"))).collect();
    let pending = client.send_many(&calls).await.unwrap();
    for one in &pending {
        until("it waits or runs", async || {
            one.state().await.unwrap().as_str() == "STARTED"
        })
        .await;
    }
    let answer = client.send(generate("b", "at once")).await.unwrap();
    answer.get::<Value>(Duration::from_secs(20)).await.unwrap();
    // An answer takes half a minute.
    assert!(number(&full.stats().await["completed"]) < 2);
}
