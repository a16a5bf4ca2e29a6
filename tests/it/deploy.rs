//! What `deploy/` and the examples at the root say, against the programs, Redis and systemd that they are for.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use orchestra::client::Call;

use crate::support::{Folder, LONG, Redis, Worker, free_port, get, program, until};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// What a line that begins so has behind it.
fn behind<'a>(text: &'a str, start: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(start));
    line.unwrap_or_else(|| panic!("no line begins with {start}"))
}

/// What ends a fork bomb of a template's program that is faster than we count, and keeps passwords out of cores.
#[test]
fn the_units_bound_processes_and_leave_no_cores() {
    let unit = read("deploy/systemd/orchestra-worker.service");
    let most: usize = behind(&unit, "TasksMax=").parse().unwrap();
    let counted = orchestra::ai::ProgramLimits::default().processes;
    assert!((2 * counted..10_000).contains(&most), "{most}");
    for unit in [unit, read("deploy/systemd/orchestra-beat.service")] {
        assert_eq!(behind(&unit, "LimitCORE="), "0");
    }
}

/// systemd's own word on the units, where it is installed; the third is the first one as a template.
#[test]
fn systemd_reads_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return;
    }
    let folder = Folder::new();
    let install = |name: &str, to: &str| {
        let text = read(&format!("deploy/systemd/{name}"));
        let there = |name: &str| program(name).display().to_string();
        let text = text
            .replace("/usr/local/bin/orchestra-worker", &there("orchestra-worker"))
            .replace("/usr/local/bin/orchestra ", &format!("{} ", there("orchestra")));
        folder.write(to, &text)
    };
    let mut units: Vec<PathBuf> = ["orchestra-worker.service", "orchestra-beat.service"]
        .map(|name| install(name, name))
        .into();
    install("orchestra-worker.service", "orchestra-worker@.service");
    install("instance.conf", "orchestra-worker@.service.d/instance.conf");
    units.push(folder.path().join("orchestra-worker@mail.service"));
    for unit in units {
        let out = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&unit)
            .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        // On a machine without systemd's own units it says that they are not there.
        let said: Vec<&str> = said
            .lines()
            .filter(|line| line.contains(folder.path().to_str().unwrap()))
            .collect();
        assert_eq!(said, Vec::<&str>::new(), "{}", unit.display());
    }
}

/// The stop of the unit: a warm one, a cold one when that takes too long, and an exit code that systemd takes for a
/// stop as wanted.
#[tokio::test(flavor = "multi_thread")]
async fn the_units_stop_is_warm_then_cold_and_no_failure() {
    let unit = read("deploy/systemd/orchestra-worker.service");
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    client.send(Call::new("hello.sleep").arg(60)).await.unwrap();
    until("it runs", async || worker.log().contains("received")).await;
    let stop = behind(&unit, "ExecStop=-/bin/sh -c '")
        .trim_end_matches('\'')
        .replace("$$", "$");
    let stopped = Command::new("sh")
        .args(["-c", &stop])
        .env("MAINPID", worker.process.id().to_string())
        .env("WARM_STOP", "1")
        .status();
    assert_eq!(stopped.unwrap().code(), Some(124), "it waited as long as it may");
    assert!(worker.process.is_running(), "{}", worker.log());
    worker.process.signal(Signal::SIGTERM);
    let code = worker.process.wait().unwrap().to_string();
    assert_eq!(code, behind(&unit, "SuccessExitStatus="), "{}", worker.log());
}

/// The health check of the image asks the worker alone: well while it takes tasks, and not while its Redis is away.
#[tokio::test(flavor = "multi_thread")]
async fn the_health_check_of_the_image_knows_whether_the_worker_takes_tasks() {
    let port = free_port();
    let dockerfile = read("Dockerfile");
    let words = behind(&dockerfile, "    CMD ");
    let words: Vec<String> = serde_json::from_str(words).unwrap();
    let check = || {
        let words = words.iter().map(|word| word.replace("9808", &port.to_string()));
        let words: Vec<String> = words.collect();
        let out = Command::new(&words[0]).args(&words[1..]).output().unwrap();
        out.status.success()
    };
    assert!(!check(), "nobody is there");
    let mut redis = Redis::start();
    let address = format!("127.0.0.1:{port}");
    let worker = Worker::start(&redis, &["--metrics-addr", &address]);
    assert!(check(), "{}", worker.log());
    redis.stop();
    until("it is not well", async || !check()).await;
    redis.start_again();
    until("it is well again", async || check()).await;
}

/// An alert on a number that nobody gives never fires.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_are_about_numbers_that_are_there() {
    let (redis, port) = (Redis::start(), free_port());
    let address = format!("127.0.0.1:{port}");
    let _worker = Worker::start(&redis, &["--metrics-addr", &address]);
    let client = redis.client().await;
    let sum = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    sum.get::<i64>(LONG).await.unwrap();
    let page = get(&format!("http://{address}/metrics"))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let told = read("docs/monitoring.md");
    let rules = read("deploy/prometheus/orchestra.rules.yml");
    let names = rules
        .split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'))
        .filter(|word| word.starts_with("orchestra_"));
    let mut count = 0;
    for name in names {
        count += 1;
        let base = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        let family = base.unwrap_or(name);
        assert!(
            told.contains(&format!("| `{family}` |")),
            "docs/monitoring.md has no {family}"
        );
        // Those of models come with the first call of one.
        if !name.starts_with("orchestra_model_") {
            let family = family.trim_end_matches("_total");
            assert!(
                page.contains(&format!("# TYPE {family} ")),
                "{family} is not in\n{page}"
            );
        }
    }
    assert!(count > 10, "{count}");
}

/// The example file is read as it stands, and with all that it shows.
#[test]
fn the_example_of_a_settings_file_is_one() {
    let example = read("orchestra.toml.example");
    let shown = |text: &str| {
        let folder = Folder::new();
        let file = folder.write("orchestra.toml", text);
        let out = Command::new(program("orchestra"))
            .args(["config", "--config"])
            .arg(file)
            .env_clear()
            .output()
            .unwrap();
        assert!(out.status.success(), "{}\n{text}", String::from_utf8_lossy(&out.stderr));
    };
    shown(&example);
    // A comment that is one begins with a space; the second list of hosts takes the place of the first.
    let is_setting = |line: &str| line.starts_with('#') && !line.starts_with("# ");
    let first = example.lines().find(|line| line.starts_with("ai_hosts")).unwrap();
    let all: Vec<&str> = example
        .lines()
        .filter(|line| *line != first)
        .map(|line| if is_setting(line) { &line[1..] } else { line })
        .collect();
    shown(&all.join("\n"));
}
