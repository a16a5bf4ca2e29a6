//! Servers that speak OpenAI's API in ways that `ollama-sim` does not: headers at once and the answer later, calls of
//! tools without ids or cut off in the middle. The server is one of the test's own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use orchestra::client::{Call, Client, Error, Signature};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Folder, LONG, Redis, Worker};

/// Path and body of each request.
type Heard = Arc<Mutex<Vec<(String, Value)>>>;

const HEAD: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: ";

async fn server() -> (u16, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Heard::default();
    let log = heard.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, log.clone()));
        }
    });
    (port, heard)
}

async fn serve(mut stream: TcpStream, log: Heard) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.to_ascii_lowercase();
        let length = length.split_once("content-length: ").map_or(0, |(_, rest)| {
            rest.lines().next().and_then(|length| length.parse().ok()).unwrap_or(0)
        });
        if body.len() >= length {
            break (head.to_owned(), body.to_owned());
        }
    };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    log.lock().unwrap().push((path.clone(), body.clone()));
    match path.as_str() {
        "/v1/models" => {
            let models = ["slow", "never", "no-id", "no-json", "cut"].map(|id| json!({"id": id}));
            let list = format!("{HEAD}application/json\r\n\r\n{}", json!({"data": models}));
            stream.write_all(list.as_bytes()).await
        }
        "/v1/chat/completions" => {
            stream
                .write_all(format!("{HEAD}text/event-stream\r\n\r\n").as_bytes())
                .await?;
            chat(&mut stream, &body).await
        }
        _ => {
            let fine = format!("{HEAD}application/json\r\n\r\n{{\"fine\": true}}");
            stream.write_all(fine.as_bytes()).await
        }
    }
}

async fn chat(stream: &mut TcpStream, body: &Value) -> std::io::Result<()> {
    let chunk = |delta: Value, reason: Option<&str>| {
        let chunk = json!({"model": "m", "choices": [{"delta": delta, "finish_reason": reason}]});
        format!("data: {chunk}\n\n")
    };
    let call = |arguments: &str, reason: &str| {
        let calls = json!([{"index": 0, "id": null, "function": {"name": "ring", "arguments": arguments}}]);
        chunk(json!({"tool_calls": calls}), Some(reason))
    };
    let has_result = body["messages"]
        .as_array()
        .is_some_and(|messages| messages.iter().any(|message| message["role"] == "tool"));
    let said = match body["model"].as_str().unwrap_or_default() {
        _ if has_result => chunk(json!({"content": "done"}), Some("stop")),
        "slow" => {
            stream
                .write_all(chunk(json!({"role": "assistant", "content": ""}), None).as_bytes())
                .await?;
            tokio::time::sleep(Duration::from_millis(2200)).await;
            chunk(json!({"content": "at last"}), Some("stop"))
        }
        "never" => loop {
            stream.write_all(b": wait\n\n").await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        },
        "no-id" => call("{\"times\": 2}", "tool_calls"),
        "no-json" => call("{\"times\": ", "tool_calls"),
        _ => call("{\"times\": 1", "length"),
    };
    stream.write_all(format!("{said}data: [DONE]\n\n").as_bytes()).await
}

fn worker(redis: &Redis, port: u16, folder: &Folder) -> Worker {
    let settings = format!(
        "ai_hosts = [{{url = 'http://127.0.0.1:{port}', kind = 'openai'}}]\nai_http_hosts = ['127.0.0.1:{port}']\n\
         ai_first_token_timeout = 4\nai_stall_timeout = 1\n"
    );
    let tool = format!("{{name: ring, description: rings, http: {{url: \"http://127.0.0.1:{port}/tool\"}}}}");
    folder.write(
        "templates/ring.yaml",
        &format!(
            "parameters:\n  model: {{type: string}}\nsteps:\n- {{id: a, type: ollama_chat, model: \"{{{{ model }}}}\", \
             messages: [{{role: user, content: ring}}], tools: [{tool}]}}\n"
        ),
    );
    let file = folder.write("orchestra.toml", &settings);
    let templates = folder.path().join("templates");
    Worker::start(
        redis,
        &[
            "--config",
            file.to_str().unwrap(),
            "--templates",
            templates.to_str().unwrap(),
        ],
    )
}

fn asked<'a>(heard: &'a [(String, Value)], model: &str) -> Vec<&'a Value> {
    let of_model = heard.iter().filter(|(_, body)| body["model"] == model);
    of_model.map(|(_, body)| body).collect()
}

async fn ended(client: &Client, call: Signature) -> Result<Value, (String, String)> {
    match client.apply(call).await.unwrap().get::<Value>(LONG).await {
        Ok(answer) => Ok(answer),
        Err(Error::Failed { exception, .. }) => Err((exception.name.clone(), exception.message())),
        Err(other) => panic!("{other:?}"),
    }
}

/// vLLM sends its headers before it has a place for the call: until the first piece it is `ai_first_token_timeout` that
/// counts, and what is no piece does not count as one.
#[tokio::test(flavor = "multi_thread")]
async fn headers_that_come_at_once_are_no_first_token() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let (port, heard) = server().await;
    let _worker = worker(&redis, port, &folder);
    let client = redis.client().await;
    // The last try: a failure would be told at once.
    let generate = |model: &str| {
        Signature::new("orchestra.generate")
            .arg(model)
            .arg("x")
            .option("retries", 3)
    };
    let answer = ended(&client, generate("slow")).await.unwrap();
    assert_eq!(answer["text"], "at last");
    assert!(answer["timing"]["prompt_s"].as_f64().unwrap() > 2.0, "{answer}");
    assert_eq!(asked(&heard.lock().unwrap(), "slow").len(), 1, "it was asked again");
    let (name, text) = ended(&client, generate("never")).await.unwrap_err();
    assert!(
        name == "ModelError" && text.starts_with("no answer for 4 s"),
        "{name}: {text}"
    );
}

/// A result names its call, also where the call had no id; a call whose arguments are no JSON, or were cut off, is not
/// run as if it had none.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_tools_are_answered_by_id_and_never_made_up() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let (port, heard) = server().await;
    let _worker = worker(&redis, port, &folder);
    let client = redis.client().await;
    let ring = |model: &str| Call::new("orchestra.run").arg("ring").arg(json!({"model": model}));
    let rung = || {
        heard
            .lock()
            .unwrap()
            .iter()
            .filter(|(path, _)| path.starts_with("/tool"))
            .count()
    };

    let answer: Value = client.send(ring("no-id")).await.unwrap().get(LONG).await.unwrap();
    assert_eq!((&answer["text"], rung()), (&json!("done"), 1));
    let second = asked(&heard.lock().unwrap(), "no-id")[1]["messages"].clone();
    assert_eq!(second[1]["tool_calls"][0]["id"], "call_0", "{second}");
    assert_eq!(
        second[2],
        json!({"role": "tool", "tool_call_id": "call_0", "content": "{\"fine\":true}"})
    );

    let answer: Value = client.send(ring("no-json")).await.unwrap().get(LONG).await.unwrap();
    assert_eq!((&answer["text"], rung()), (&json!("done"), 1), "the tool was run");
    let second = asked(&heard.lock().unwrap(), "no-json")[1]["messages"].clone();
    assert_eq!(second[1]["tool_calls"][0]["function"]["arguments"], "{}", "{second}");
    let told = second[2]["content"].as_str().unwrap();
    assert!(told.contains("the arguments of ring are no JSON object"), "{told}");

    let call = Signature::new("orchestra.run").arg("ring").arg(json!({"model": "cut"}));
    let (name, text) = ended(&client, call).await.unwrap_err();
    assert!(
        name == "OutputTruncated" && text.contains("within its calls of tools; raise num_predict"),
        "{name}: {text}"
    );
    assert_eq!(rung(), 1, "the tool was run");
}
