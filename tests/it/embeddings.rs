//! Single texts of several tasks that go to a model together.

use orchestra::client::{Call, Client, Error};
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Redis, Sim, Worker, until};

fn worker(redis: &Redis, host: &Sim, settings: &str) -> (Worker, Folder) {
    let folder = Folder::new();
    let settings = format!("ai_hosts = ['{}']\n{settings}", host.url);
    let file = folder.write("orchestra.toml", &settings);
    let arguments = ["--config", file.to_str().unwrap(), "-c", "100"];
    (Worker::start(redis, &arguments), folder)
}

fn embed(input: impl Into<Value>) -> Call {
    Call::new("orchestra.embed")
        .arg("embed")
        .arg(input.into())
        .kwarg("options", json!({"num_ctx": 8}))
}

/// The texts of each request.
async fn asked(host: &Sim) -> Vec<Vec<String>> {
    let requests = host.requests().await.into_iter();
    let embeds = requests.filter(|request| request["path"] == "/api/embed");
    let input = |request: Value| {
        let body: Value = serde_json::from_str(request["body"].as_str().unwrap()).unwrap();
        serde_json::from_value(body["input"].clone()).unwrap()
    };
    embeds.map(input).collect()
}

async fn get(client: &Client, call: Call) -> Value {
    client.send(call).await.unwrap().get(LONG).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn single_texts_go_together_and_each_has_its_own_end() {
    let (redis, host) = (Redis::start(), Sim::start());
    let (mut together, _folder) = worker(&redis, &host, "ai_embed_wait = 1\n");
    let client = redis.client().await;
    let texts: Vec<String> = (0..64)
        .map(|at| match at {
            41 => "a text of more words than there is room for".to_owned(),
            at => format!("text {at}"),
        })
        .collect();
    // Those of a tenant go with those of that tenant.
    let calls: Vec<Call> = texts.iter().map(|text| embed(text.as_str())).collect();
    let apart = [
        embed("text 1").header("tenant", "blue"),
        embed("text 1").kwarg("dimensions", 4),
    ];
    let pending = client.send_many(&calls).await.unwrap();
    let apart = client.send_many(&apart).await.unwrap();
    let good: Vec<&str> = texts
        .iter()
        .map(String::as_str)
        .filter(|text| text.len() < 10)
        .collect();
    let whole = get(&client, embed(good.clone())).await;
    let mut tokens = 0;
    let mut vectors = whole["embeddings"].as_array().unwrap().iter();
    for (at, one) in pending.into_iter().enumerate() {
        match one.get::<Value>(LONG).await {
            Ok(answer) if at != 41 => {
                assert_eq!(answer["embeddings"][0], *vectors.next().unwrap());
                tokens += answer["usage"]["prompt_tokens"].as_u64().unwrap();
            }
            Err(Error::Failed { exception, .. }) if at == 41 => {
                assert_eq!(exception.name, "ModelError");
                assert!(
                    exception
                        .message()
                        .contains("the input length exceeds the context length")
                );
            }
            other => panic!("{at}: {other:?}"),
        }
    }
    assert_eq!(
        tokens,
        whole["usage"]["prompt_tokens"].as_u64().unwrap(),
        "shares are the whole"
    );
    for one in apart {
        assert_eq!(one.get::<Value>(LONG).await.unwrap()["route"]["together"], Value::Null);
    }
    let asked = asked(&host).await;
    // All, then halves: 32, 32 (with the wrong one), 16, 16, … down to two of one; the two that go apart, and the list.
    let sizes: Vec<usize> = asked.iter().map(Vec::len).filter(|size| *size != good.len()).collect();
    assert_eq!(sizes.iter().max(), Some(&64), "{sizes:?}");
    assert_eq!(sizes.len(), 1 + 2 * 6 + 2, "{sizes:?}");
    together.stop();

    // With a batch of three, or of so many bytes, nobody waits for more.
    for setting in ["ai_embed_batch = 3", "ai_embed_batch_bytes = 21"] {
        let (mut three, _folder) = worker(&redis, &host, &format!("ai_embed_wait = 120\n{setting}\n"));
        let calls: Vec<Call> = ["text 10", "text 11", "text 12", "text 13"].map(embed).into();
        let pending = client.send_many(&calls).await.unwrap();
        let mut together = Vec::new();
        until("three ended", async || {
            together.clear();
            for one in &pending {
                if one.state().await.unwrap().is_ready() {
                    let answer: Value = one.get(LONG).await.unwrap();
                    together.push(answer["route"]["together"].clone());
                }
            }
            together == [3, 3, 3]
        })
        .await;
        three.process.kill();
        redis.command::<()>(&["FLUSHALL"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_takes_only_its_own_text_out() {
    let (redis, host) = (Redis::start(), Sim::start());
    let (_worker, _folder) = worker(&redis, &host, "ai_embed_wait = 3\n");
    let client = redis.client().await;
    let calls: Vec<Call> = ["one", "two", "three"].map(embed).into();
    let pending = client.send_many(&calls).await.unwrap();
    // The first as well: whoever came first must not be needed.
    for one in &pending[..2] {
        until("it runs", async || {
            let record: Option<String> = redis.command(&["GET", &format!("celery-task-meta-{}", one.id())]);
            record.is_some_and(|record| record.contains("STARTED"))
        })
        .await;
        one.revoke(true).await.unwrap();
    }
    let mut ends = Vec::new();
    for one in pending {
        ends.push(one.get::<Value>(LONG).await);
    }
    assert!(matches!(&ends[0], Err(Error::Revoked(_))), "{ends:?}");
    assert!(matches!(&ends[1], Err(Error::Revoked(_))), "{ends:?}");
    assert_eq!(ends[2].as_ref().unwrap()["embeddings"].as_array().unwrap().len(), 1);
    assert_eq!(asked(&host).await, [["three"]]);
}

/// The limits that a task was told to wait for.
async fn waits(redis: &Redis, id: &str) -> usize {
    let entries = redis.client().await.result(id).stream("0").await.unwrap();
    let is_wait = |text: &str| text.contains("\"type\":\"limit\"");
    entries.iter().filter(|entry| is_wait(entry.entry.get())).count()
}

/// A batch has one turn: it is not charged again when its tasks are others, and those behind it come in their time.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_keeps_its_turn_whoever_leaves_it() {
    let (redis, host) = (Redis::start(), Sim::start());
    let settings = format!(
        "ai_hosts = ['{}']\nai_embed_wait = 0.3\n[[ai_rate_limits]]\nmodel = 'embed'\nrequests = 30\nburst = 0\n",
        host.url
    );
    let (_worker, _folder) = crate::fleet::worker(&redis, &settings, &["-c", "8"]);
    let client = redis.client().await;
    get(&client, embed("the first")).await;
    let calls: Vec<Call> = ["one", "two"].map(embed).into();
    let pending = client.send_many(&calls).await.unwrap();
    for one in &pending {
        until("it waits", async || waits(&redis, one.id()).await > 0).await;
    }
    pending[0].revoke(true).await.unwrap();
    pending[1].get::<Value>(LONG).await.unwrap();
    assert_eq!(waits(&redis, pending[1].id()).await, 1, "its turn is kept");
    assert_eq!(asked(&host).await.len(), 2);

    let calls: Vec<Call> = (0..30).map(|at| embed(format!("text {at}"))).collect();
    let pending = client.send_many(&calls).await.unwrap();
    for one in &pending {
        one.get::<Value>(LONG).await.unwrap();
        assert!(waits(&redis, one.id()).await <= 1);
    }
    // Eight at a time; how they fall together is chance.
    let batches = asked(&host).await.len() - 2;
    assert!((4..=12).contains(&batches), "{batches} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_passes_does_not_cost_the_batches_that_are_done() {
    let (redis, host) = (Redis::start(), Sim::start_with(&["--model=e=embed,error-500,embed"]));
    let (_worker, _folder) = worker(&redis, &host, "");
    let client = redis.client().await;
    let texts: Vec<String> = (0..130).map(|at| format!("text {at}")).collect();
    let answer = get(&client, Call::new("orchestra.embed").arg("e").arg(json!(texts))).await;
    assert_eq!(answer["embeddings"].as_array().unwrap().len(), 130);
    let sizes: Vec<usize> = asked(&host).await.iter().map(Vec::len).collect();
    assert_eq!(
        sizes,
        [64, 64, 64, 2],
        "the second batch failed once, and the first is not asked again"
    );
}
