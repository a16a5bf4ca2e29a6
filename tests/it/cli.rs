//! The two programs, as somebody types them.

use std::process::{Command, Output};

use orchestra::client::Call;

use crate::support::{Folder, LONG, Process, Redis, Sim, Worker, program, run_python, until};

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
    let ended = orchestra(&redis, &["send", "hello.add", "x", "--wait", "20"]);
    assert!(failed(&ended).contains("\norchestra: ValueError("), "{ended:?}");
    let streamed = text(&orchestra(
        &redis,
        &["send", "orchestra.generate", "echo", "one two", "--stream"],
    ));
    assert!(streamed.starts_with("one two\n{"), "{streamed}");
    assert_eq!(
        text(&orchestra(&redis, &["status"])),
        "->  w1@here: OK\n\n1 node online.\n"
    );
    // Whoever consumes it; and nobody asks the result backend.
    redis.command::<u64>(&["RPUSH", "elsewhere.dead", "no letter"]);
    let away = ["--result-backend", "redis://127.0.0.1:1/0", "status"];
    let status = text(&orchestra(&redis, &away));
    assert!(status.contains("queue \"elsewhere\" has 1 message that"), "{status}");
    redis.command::<u64>(&["DEL", "elsewhere.dead"]);
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
    // What has no end is not followed for ever.
    let ended = orchestra(&redis, &["stream", sleeping.id(), "--wait", "0.3"]);
    assert!(failed(&ended).contains("within 0.3 s"), "{ended:?}");
    let ended = orchestra(&redis, &["send", "hello.sleep", "9", "--stream", "--wait", "0.3"]);
    assert!(failed(&ended).contains("within 0.3 s"), "{ended:?}");
    let id = text(&orchestra(&redis, &["send", "hello.add", "x"]));
    let ended = orchestra(&redis, &["stream", id.trim()]);
    assert!(failed(&ended).starts_with("orchestra: ValueError("), "{ended:?}");
    let told = text(&orchestra(&redis, &["revoke", "one", "another"]));
    assert!(
        told.starts_with("->  w1@here: tasks {") && told.contains("'one'") && told.contains("'another'"),
        "{told}"
    );
    let told = text(&orchestra(&redis, &["revoke", "--terminate", sleeping.id()]));
    assert_eq!(told, format!("->  w1@here: terminate: {}\n", sleeping.id()));
    until("it is revoked", async || {
        sleeping.state().await.unwrap().as_str() == "REVOKED"
    })
    .await;
    let doctor = orchestra(&redis, &["doctor", "--ollama-host", &sim.url]);
    assert!(text(&doctor).contains("workers: w1@here"));
    assert_eq!(
        text(&orchestra(&redis, &["inspect", "--list"])),
        text(&orchestra(&redis, &["inspect", "list"]))
    );
    assert_eq!(text(&orchestra(&redis, &["control", "shutdown", "--json"])), "{}\n");
    until("nobody is there", async || {
        let unheard = orchestra(&redis, &["inspect", "ping", "-t", "0.3"]);
        unheard.status.code() == Some(1) && failed(&unheard).contains("no worker answered")
    })
    .await;
    // To be noted for those that come is all that is wanted; one worker alone has to hear it.
    let noted = text(&orchestra(&redis, &["revoke", "x", "-t", "0.3"]));
    assert!(noted.starts_with("no worker answered; those that start"), "{noted}");
    let unheard = orchestra(&redis, &["revoke", "x", "-t", "0.3", "-d", "nobody@here"]);
    assert!(failed(&unheard).contains("no worker answered"), "{unheard:?}");
    let nothing = orchestra(&redis, &["approve", "x"]);
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
    let nothing = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(nothing.contains("x waits for no decision"), "{nothing}");
    redis.command::<u64>(&["HSET", "orchestra:notes:x", "q:s", "{}"]);
    let undecided = orchestra(&redis, &["approve", "x", "--timeout", "0.1"]);
    assert!(failed(&undecided).contains("no worker has taken"), "{undecided:?}");
}

/// What a command says that ends with 1.
fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_queue_is_purged_by_who_says_so_twice() {
    let redis = Redis::start();
    redis.command::<u64>(&["RPUSH", "celery", "1", "2", "3"]);
    let asked = orchestra(&redis, &["purge"]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&asked.stderr).contains("wait in celery; say --force"));
    assert_eq!(redis.length("LLEN", "celery"), 3);
    let purged = text(&orchestra(
        &redis,
        &["purge", "-f", "-Q", "celery,other", "-X", "other"],
    ));
    assert_eq!(purged, "purged 3 messages from celery\n");
    assert_eq!(redis.length("LLEN", "celery"), 0);
}

#[test]
fn a_model_is_warm_where_it_could_be_and_the_rest_is_told() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let hosts = ["--ollama-host", &sim.url, "--ollama-host", "http://127.0.0.1:1"];
    let warmed = orchestra(&redis, &[&hosts[..], &["models", "warm", "echo"]].concat());
    assert!(failed(&warmed).contains("127.0.0.1:1"), "{warmed:?}");
    assert!(
        String::from_utf8_lossy(&warmed.stdout).starts_with("echo:latest loaded on"),
        "{warmed:?}"
    );
}

/// A message of somebody else's clears no screen.
#[test]
fn what_waits_for_a_person_is_shown_without_control_characters() {
    let redis = Redis::start();
    redis.command::<u64>(&["ZADD", "orchestra:parked", "1", "an-id"]);
    let question = serde_json::json!({"name": "a", "template": "t", "step": "s", "message": "ship it?\u{1b}[2J"});
    redis.command::<u64>(&["HSET", "orchestra:notes:an-id", "q:s", &question.to_string()]);
    assert_eq!(
        text(&orchestra(&redis, &["approve"])),
        "an-id  t.s  ship it?\u{fffd}[2J\n"
    );
}

/// Rotated logs go on under the old name; what kills a process that does not listen kills no worker.
#[tokio::test(flavor = "multi_thread")]
async fn sighup_opens_the_log_again_and_sigusr1_ends_nothing() {
    use nix::sys::signal::Signal::{SIGHUP, SIGUSR1};
    let (redis, folder) = (Redis::start(), Folder::new());
    let (log, old) = (folder.path().join("log"), folder.path().join("log.1"));
    let mut worker = Worker::start(&redis, &["-f", log.to_str().unwrap()]);
    std::fs::rename(&log, &old).unwrap();
    worker.process.signal(SIGHUP);
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    until("it goes on", async || read().contains("SIGHUP: the log goes on in ")).await;
    worker.process.signal(SIGUSR1);
    until("it says how to look", async || {
        read().contains("SIGUSR1: `orchestra inspect active")
    })
    .await;
    // Nobody needs to say so either.
    std::fs::remove_file(&log).unwrap();
    let client = redis.client().await;
    until("it is seen", async || {
        let sum = client.send(Call::new("hello.add").arg(2).arg(3)).await.unwrap();
        assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 5);
        read().contains("hello.add")
    })
    .await;
    assert_eq!(worker.stop(), Some(0));
    assert!(read().contains("warm stop"), "{}", read());
}

/// Closing the window of a worker is a warm stop, of `up` the end of all that it started.
#[test]
fn a_terminal_that_is_closed_ends_what_ran_in_it() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let port = crate::support::free_port();
    let broker = format!("redis://127.0.0.1:{port}/0");
    let data = folder.path().join("data");
    let worker = [
        program("orchestra-worker").to_str().unwrap(),
        "--quiet",
        "-b",
        &redis.url(),
    ]
    .join(" ");
    let up = program("orchestra");
    let up = [
        up.to_str().unwrap(),
        "-b",
        &broker,
        "--ollama-host",
        "http://127.0.0.1:1",
        "up",
        "--no-flower",
        "--data",
        data.to_str().unwrap(),
    ]
    .join(" ");
    let python = format!(
        r"
import os, pty
for command, ready in (({worker:?}, b'ready'), ({up:?}, b'Ctrl-C stops')):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir({folder:?})
        os.execv(command.split()[0], command.split())
    said = b''
    while ready not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert status == 0, (command, status, said)
",
        folder = folder.path().to_str().unwrap()
    );
    run_python(&python, &redis.url());
    let gone = std::net::TcpStream::connect(("127.0.0.1", port)).is_err();
    assert!(gone, "the Redis that up started is gone");
}

/// Flower's API can stop workers: `up` opens it to nobody on a broker that is not its own.
#[tokio::test(flavor = "multi_thread")]
async fn up_starts_nothing_beside_a_redis_that_answers() {
    use std::os::unix::fs::PermissionsExt as _;
    let (redis, folder) = (Redis::start(), Folder::new());
    let celery = folder.write(".venv/bin/celery", "#!/bin/sh\nenv >environment\n");
    std::fs::set_permissions(&celery, std::fs::Permissions::from_mode(0o755)).unwrap();
    let start = |url: &str| {
        let mut up = Command::new(program("orchestra"));
        up.args(["-b", url, "--ollama-host", "http://127.0.0.1:1", "up", "--data", "data"]);
        up.args(["--flower-port", &crate::support::free_port().to_string()]);
        // The worker's own -l comes behind ours.
        up.args(["--", "-l", "DEBUG"]).current_dir(folder.path());
        up
    };
    let log = folder.path().join("log");
    let out = std::fs::File::create(&log).unwrap();
    let mut up: Process = start(&redis.url()).stdout(out).spawn().unwrap().into();
    until("it is up", async || {
        std::fs::read_to_string(&log).unwrap().contains("Ctrl-C stops")
    })
    .await;
    let environment = std::fs::read_to_string(folder.path().join("environment")).unwrap();
    assert!(environment.contains("CELERY_BROKER_URL="), "{environment}");
    assert!(!environment.contains("FLOWER_UNAUTHENTICATED_API"), "{environment}");
    // It has no terminal that could be closed.
    up.signal(nix::sys::signal::Signal::SIGHUP);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(up.is_running());
    up.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(up.wait(), Some(0));

    let locked = Redis::start_with(&[&["--requirepass", "secret"]]);
    let refused = start(&locked.url()).output().unwrap();
    assert!(failed(&refused).contains("it wants a password"), "{refused:?}");
    assert!(!folder.path().join("data").exists(), "no second Redis was started");
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let folder = Folder::new();
    let results = "{\"batch\": \"b\", \"task\": \"t\"}\n\
        {\"row\": 0, \"attempt\": 0, \"id\": \"b-0-0\", \"state\": \"SUCCESS\", \"input\": [1], \"result\": 1}\n";
    folder.write("r.jsonl", results);
    for (name, arguments) in [
        ("orchestra", &["config", "--all"][..]),
        ("orchestra", &["templates", "schema"]),
        ("orchestra", &["batch", "export", "r.jsonl"]),
        ("orchestra", &["--help"]),
        ("orchestra-worker", &["--version"]),
    ] {
        let run = |out: std::process::Stdio| {
            let mut command = Command::new(program(name));
            command.args(arguments).current_dir(folder.path());
            command.stdout(out).output().unwrap()
        };
        let full = run(std::fs::File::options().write(true).open("/dev/full").unwrap().into());
        assert!(
            failed(&full).starts_with(&format!("{name}: cannot write to the standard output: No space left")),
            "{full:?}"
        );
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let piped = run(writer.into());
        assert_eq!((piped.status.code(), piped.stderr.len()), (Some(141), 0), "{piped:?}");
    }
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
    // As with click, the last counts.
    let twice = ["-b", "redis://line:1/0", "-b", "redis://line:2/0"];
    assert_eq!(shown(&[], &twice)["broker_url"], "redis://line:2/0");
}

/// `ORCHESTRA_UPDATE_SETTINGS=1 cargo test --test it settings` writes the page.
#[test]
fn the_page_of_settings_is_complete() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    let mut page = String::from(
        "# Settings\n\nSettings come from `orchestra.toml` in the working folder (or `--config FILE`), then from the environment, then\n\
         from the command line; the last one wins.\n\n\
         In the environment a setting is `ORCHESTRA_` and its name in capitals, with a value as in the file:\n\
         `ORCHESTRA_WORKER_CONCURRENCY=8`,\n\
         `ORCHESTRA_BROKER_TRANSPORT_OPTIONS='{visibility_timeout = 600}'`. With `_FILE` at its end the name is that of a file\n\
         with the value in it, as secrets are mounted: `ORCHESTRA_BROKER_URL_FILE=/run/secrets/broker`.\n\n\
         Names are Celery's where Celery has the setting. `orchestra config` shows what is in force. This page is made from\n\
         the program.\n\n\
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
