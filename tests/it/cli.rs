//! The two programs, as somebody types them.

use std::process::{Command, Output};

use orchestra::client::Call;

use crate::support::{Folder, Process, Redis, Sim, Worker, program, until};

pub fn orchestra(redis: &Redis, arguments: &[&str]) -> Output {
    let folder = Folder::new();
    Command::new(program("orchestra"))
        .args(["--broker", &redis.url()])
        .args(arguments)
        .env_clear()
        .current_dir(folder.path())
        .output()
        .unwrap()
}

pub fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_sent_and_watched_from_the_shell() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let _worker = Worker::start(&redis, &["-n", "w1@here", "--ollama-host", &sim.url]);
    assert_eq!(
        text(&orchestra(&redis, &["send", "hello.add", "2", "3", "--wait"])),
        "5\n"
    );
    let id = text(&orchestra(&redis, &["send", "hello.add", "2", "-k", "y=5"]));
    assert_eq!(text(&orchestra(&redis, &["result", id.trim(), "--wait", "20"])), "7\n");
    let failed = orchestra(&redis, &["send", "hello.add", "x", "--wait", "20"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("orchestra: ValueError("));
    let streamed = text(&orchestra(
        &redis,
        &["send", "orchestra.generate", "echo", "one two", "--stream"],
    ));
    assert!(streamed.starts_with("one two\n{"), "{streamed}");
    assert_eq!(
        text(&orchestra(&redis, &["status"])),
        "->  w1@here: OK\n\n1 node online.\n"
    );
    assert_eq!(
        text(&orchestra(&redis, &["control", "pool_grow", "2"])),
        "->  w1@here: pool will grow\n"
    );
    let refused = orchestra(&redis, &["control", "autoscale", "3"]);
    assert_eq!(refused.status.code(), Some(1));
    let answer = String::from_utf8_lossy(&refused.stdout);
    assert_eq!(answer, "->  w1@here: error: ValueError('Autoscale not enabled')\n");
    assert!(text(&orchestra(&redis, &["inspect", "registered", "-d", "w1@here"])).contains("hello.add"));
    let sleeping = redis
        .client()
        .await
        .send(Call::new("hello.sleep").arg(60))
        .await
        .unwrap();
    until("it runs", async || {
        sleeping.state().await.unwrap().as_str() == "PROGRESS"
    })
    .await;
    text(&orchestra(&redis, &["revoke", "--terminate", sleeping.id()]));
    until("it is revoked", async || {
        sleeping.state().await.unwrap().as_str() == "REVOKED"
    })
    .await;
    let doctor = orchestra(&redis, &["doctor", "--ollama-host", &sim.url]);
    assert!(text(&doctor).contains("workers: w1@here"));
}

#[test]
fn approve_says_how_many_it_does_not_list() {
    let redis = Redis::start();
    let numbers: Vec<String> = (0..1002).map(|n| n.to_string()).collect();
    let pairs = numbers.iter().flat_map(|n| [n.as_str(), n.as_str()]);
    let words: Vec<&str> = ["ZADD", "orchestra:parked"].into_iter().chain(pairs).collect();
    redis.command::<i64>(&words);
    let listed = orchestra(&redis, &["approve"]);
    let error = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(error.contains("2 more wait"), "{error}");
}

/// Who asks and tells does so where the workers of the same settings listen.
#[test]
fn control_goes_to_the_exchange_of_the_settings() {
    let redis = Redis::start();
    let settings = [("ORCHESTRA_CONTROL_EXCHANGE", "ours")];
    let _worker = Worker::start_with(&redis, &["-n", "w1@here"], &settings);
    let folder = Folder::new();
    let status = Command::new(program("orchestra"))
        .args(["--broker", &redis.url(), "status"])
        .env_clear()
        .envs(settings)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(text(&status), "->  w1@here: OK\n\n1 node online.\n");
}

/// What is no text in somebody else's variable is no reason to end.
#[test]
fn only_our_variables_have_to_be_texts() {
    use std::os::unix::ffi::OsStrExt as _;
    let odd = std::ffi::OsStr::from_bytes(b"\xff");
    let run = |name: &str| {
        let mut command = Command::new(program("orchestra"));
        command.arg("config").env_clear().env(name, odd).output().unwrap()
    };
    text(&run("SOMETHING"));
    let refused = run("ORCHESTRA_LOG_LEVEL");
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("ORCHESTRA_LOG_LEVEL: its value is no UTF-8"), "{error}");
}

#[test]
fn up_starts_what_is_missing_and_stops_only_that() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (sim, folder) = (Sim::start(), Folder::new());
    let log = folder.path().join("log");
    let child = Command::new(program("orchestra"))
        .args([
            "--broker",
            &format!("redis://127.0.0.1:{port}/0"),
            "--ollama-host",
            &sim.url,
            "up",
            "--no-flower",
            "--data",
        ])
        .arg(folder.path().join("data"))
        .current_dir(folder.path())
        .stdout(std::fs::File::create(&log).unwrap())
        .stderr(std::fs::File::options().append(true).open(&log).unwrap())
        .spawn()
        .unwrap();
    let mut up = Process::from(child);
    let end = std::time::Instant::now() + crate::support::LONG;
    let read = || std::fs::read_to_string(&log).unwrap();
    while !read().contains("Ctrl-C stops") {
        assert!(std::time::Instant::now() < end && up.is_running(), "{}", read());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(read().contains("(started; data in"), "{}", read());
    assert!(
        read().contains("ollama   http://127.0.0.1:") && read().contains("was running"),
        "{}",
        read()
    );
    let sent = Command::new(program("orchestra"))
        .args([
            "--broker",
            &format!("redis://127.0.0.1:{port}/0"),
            "send",
            "orchestra.generate",
            "echo",
            "hi",
            "--wait",
            "30",
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(text(&sent).contains("\"done_reason\": \"stop\""));
    up.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(up.wait(), Some(0), "{}", read());
    assert!(
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the Redis it started is gone"
    );
    let status = std::net::TcpStream::connect(sim.url.trim_start_matches("http://"));
    assert!(status.is_ok(), "the model server it found still runs");
}

#[test]
fn who_reads_no_further_is_shown_no_panic() {
    for arguments in [&["config", "--all"][..], &["tasks"], &["templates", "schema"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = Command::new(program("orchestra"))
            .args(arguments)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert_eq!(out.status.code(), Some(141), "{arguments:?}: {said}");
    }
}

#[test]
fn settings_come_from_file_environment_and_command_line() {
    let folder = Folder::new();
    folder.write(
        "orchestra.toml",
        "worker_concurrency = 3\ntask_queues = ['a', 'b']\nbroker_url = 'redis://user:secret@file:1/0'\n",
    );
    let shown = |environment: &[(&str, &str)], arguments: &[&str]| {
        let out = Command::new(program("orchestra"))
            .args(arguments)
            .arg("config")
            .env_clear()
            .envs(environment.iter().copied())
            .current_dir(folder.path())
            .output()
            .unwrap();
        serde_json::from_str::<serde_json::Value>(&text(&out)).unwrap()
    };
    let file = shown(&[], &[]);
    assert_eq!(
        (&file["worker_concurrency"], &file["task_queues"][1]),
        (&3.into(), &"b".into())
    );
    assert_eq!(file["broker_url"], "redis://user:********@file:1/0");
    let environment = [
        ("ORCHESTRA_WORKER_CONCURRENCY", "5"),
        ("CELERY_BROKER_URL", "redis://environment:1/0"),
    ];
    assert_eq!(shown(&environment, &[])["worker_concurrency"], 5);
    assert_eq!(shown(&environment, &[])["broker_url"], "redis://environment:1/0");
    assert_eq!(
        shown(&environment, &["--broker", "redis://line:1/0"])["broker_url"],
        "redis://line:1/0"
    );
}

/// `ORCHESTRA_UPDATE_SETTINGS=1 cargo test --test it settings` writes the page.
#[test]
fn the_page_of_settings_is_complete() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    let mut page = String::from(
        "# Settings\n\nFrom `orchestra.toml` in the working folder (or `--config FILE`), then the environment, then the command line; later\n\
         wins. In the environment a setting is `ORCHESTRA_` and its name in capitals, with a value as in the file:\n\
         `ORCHESTRA_WORKER_CONCURRENCY=8`, `ORCHESTRA_BROKER_TRANSPORT_OPTIONS='{visibility_timeout = 600}'`. With `_FILE` at its end it names a file in which the value\n\
         stands, as secrets are mounted: `ORCHESTRA_BROKER_URL_FILE=/run/secrets/broker`. Names are Celery's where\n\
         Celery has the setting. `orchestra config` shows what is in force. This page is made from the program.\n\n\
         | setting | what it does | default |\n| --- | --- | --- |\n",
    );
    for setting in orchestra::config::SETTINGS {
        page += &format!("| `{}` | {} | `{}` |\n", setting.name, setting.about, setting.default);
    }
    if std::env::var_os("ORCHESTRA_UPDATE_SETTINGS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), page);
}
