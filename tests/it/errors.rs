//! The gallery of errors, `docs/errors.md`, against what the programs really print.
//!
//! `ORCHESTRA_UPDATE_GALLERY=1 cargo test --test it gallery` writes what they print into the file, to be read and
//! committed by a person.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::proxy::Proxy;
use crate::support::{Folder, Redis, Sim, Worker, program};

/// A piece of the page.
enum Piece {
    /// Everything else.
    Prose(String),
    /// A file that the commands of its section find.
    File { info: String, text: String },
    /// Commands and what they print.
    Console(Vec<(String, String)>),
}

fn parse(page: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            pieces.push(Piece::Prose(line.to_owned()));
            continue;
        };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if info == "console" {
            let mut commands: Vec<(String, String)> = Vec::new();
            for line in block {
                match line.strip_prefix("$ ") {
                    Some(command) => commands.push((command.to_owned(), String::new())),
                    None => commands.last_mut().expect("a command comes first").1 += &format!("{line}\n"),
                }
            }
            pieces.push(Piece::Console(commands));
        } else {
            pieces.push(Piece::File {
                info: info.to_owned(),
                text: block.join("\n"),
            });
        }
    }
    pieces
}

fn print(pieces: &[Piece]) -> String {
    let mut page = String::new();
    for piece in pieces {
        match piece {
            Piece::Prose(line) => page += &format!("{line}\n"),
            Piece::File { info, text } => page += &format!("```{info}\n{text}\n```\n"),
            Piece::Console(commands) => {
                page += "```console\n";
                for (command, output) in commands {
                    page += &format!("$ {command}\n{output}");
                }
                page += "```\n";
            }
        }
    }
    page
}

/// Whether `text` is what `pattern` says, with `…` for anything within a line.
fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<&str>, Vec<&str>) = (pattern.lines().collect(), text.lines().collect());
    pattern.len() == text.len() && pattern.iter().zip(text).all(|(pattern, text)| line_fits(pattern, text))
}

fn line_fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    rest.is_empty() || last == Some("")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gallery_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let mut pieces = parse(&page);
    assert_eq!(print(&pieces), page, "the page is read without loss");
    let (redis, sim) = (Redis::start(), Sim::start());
    let root = env!("CARGO_MANIFEST_DIR");
    let (templates, tasks) = (format!("{root}/templates"), format!("{root}/tasks"));
    let shipped = ["--templates", &templates, "--tasks", &tasks];
    let _worker = Worker::start_program(
        "orchestra-worker",
        &redis,
        &[&shipped[..], &["--ollama-host", &sim.url]].concat(),
        &[],
    );
    let alone = ["-Q", "no-ollama", "--ollama-host", "http://127.0.0.1:1"];
    let _without_model = Worker::start_program("orchestra-worker", &redis, &[&shipped[..], &alone].concat(), &[]);
    let mut folder = Folder::new();
    let mut wrong = Vec::new();
    for piece in &mut pieces {
        match piece {
            Piece::Prose(line) if line.starts_with('#') => folder = Folder::new(),
            Piece::Prose(_) => {}
            Piece::File { info, text } => {
                if let Some((_, name)) = info.split_once(' ').filter(|(_, name)| name.contains('.')) {
                    folder.write(name, &format!("{text}\n"));
                }
            }
            Piece::Console(commands) => {
                for (command, expected) in commands {
                    let here = format!("127.0.0.1:{}/", redis.port);
                    let command = command.replace("127.0.0.1:6379/", &here);
                    let out = Command::new("timeout")
                        .args(["60", "sh", "-c", &command])
                        .env_clear()
                        .env(
                            "PATH",
                            format!("{}:/usr/bin:/bin", program("orchestra").parent().unwrap().display()),
                        )
                        .env("CELERY_BROKER_URL", redis.url())
                        .current_dir(folder.path())
                        .output()
                        .unwrap();
                    assert!(!out.status.success(), "{command} succeeds");
                    let printed = [out.stdout, out.stderr].concat();
                    let printed = String::from_utf8_lossy(&printed)
                        .replace(&here, "127.0.0.1:6379/")
                        .replace(&sim.url, "http://127.0.0.1:11434")
                        .replace("http://127.0.0.1:1)", "http://127.0.0.1:11434)")
                        .replace(&format!("{root}/"), "");
                    if !fits(expected, &printed) {
                        wrong.push(format!(
                            "$ {command}\nthe page says:\n{expected}the program says:\n{printed}"
                        ));
                        *expected = printed;
                    }
                }
            }
        }
    }
    if std::env::var_os("ORCHESTRA_UPDATE_GALLERY").is_some() {
        std::fs::write(&path, print(&pieces)).unwrap();
        return;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gallery_is_true_about_a_redis_that_goes_away() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md")).unwrap();
    let block = page.split("```text log\n").nth(1).unwrap().split("```").next().unwrap();
    let mut redis = Redis::start();
    let worker = Worker::start(&redis, &[]);
    redis.stop();
    worker.wait_for_log("reconnecting");
    redis.start_again();
    worker.wait_for_log("again after");
    let log = worker.log().replace(&redis.url(), "redis://127.0.0.1:6379/0");
    for pattern in block.lines() {
        assert!(
            log.lines().any(|line| line_fits(pattern, line)),
            "{pattern}\nis not in\n{log}"
        );
    }
}

#[test]
fn a_redis_that_wants_a_password_is_told_from_one_that_is_down() {
    let redis = Redis::start();
    redis.command::<String>(&["CONFIG", "SET", "requirepass", "sesame"]);
    for (credentials, text) in [
        ("", "it wants a password; write redis://:PASSWORD@"),
        (":wrong@", "it knows no such user and password"),
    ] {
        let url = redis.url().replace("://", &format!("://{credentials}"));
        let out = Command::new(program("orchestra-worker"))
            .args(["--quiet", "--broker", &url])
            .env_clear()
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.code() == Some(1) && printed.contains(text) && printed.lines().count() == 1,
            "{printed}"
        );
        assert!(!printed.contains("wrong"), "{printed}");
    }
}

/// What a program says that is started with this environment and these words.
fn said(name: &str, environment: &[(&str, &str)], words: &[&str]) -> (Option<i32>, String) {
    let folder = Folder::new();
    let out = Command::new(program(name))
        .args(words)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(folder.path())
        .output()
        .unwrap();
    let printed = [out.stdout, out.stderr].concat();
    (out.status.code(), String::from_utf8_lossy(&printed).into_owned())
}

#[test]
fn an_address_of_a_model_server_that_is_none_is_shown_without_its_password() {
    let port = "http://u:s3cr3tpw@127.0.0.1:port";
    let scheme = "[{url=\"ftp://u:s3cr3tpw@h\"}]";
    let unknown = "[{url=\"http://u:s3cr3tpw@h:1\", x=1}]";
    for (environment, words, text) in [
        (
            None,
            &["--ollama-host", port, "models", "list"][..],
            "u:********@127.0.0.1:port",
        ),
        (Some(port), &["models", "list"], "u:********@127.0.0.1:port"),
        (Some(scheme), &["models", "list"], "ftp://u:********@h"),
        (
            Some(unknown),
            &["models", "list"],
            "ORCHESTRA_AI_HOSTS: the list does not fit: unknown field `x`",
        ),
        (None, &["--ollama-host", port], "u:********@127.0.0.1:port"),
        (
            Some(unknown),
            &[],
            "ORCHESTRA_AI_HOSTS: the list does not fit: unknown field `x`",
        ),
    ] {
        let name = if words.contains(&"models") {
            "orchestra"
        } else {
            "orchestra-worker"
        };
        let environment: Vec<_> = environment
            .map(|hosts| ("ORCHESTRA_AI_HOSTS", hosts))
            .into_iter()
            .collect();
        let (code, printed) = said(name, &environment, words);
        assert!(
            code == Some(2) && printed.contains(text),
            "{environment:?} {words:?}: {printed}"
        );
        assert!(!printed.contains("s3cr3tpw"), "{printed}");
    }
}

#[test]
fn a_password_in_the_query_of_a_url_is_used_and_not_shown() {
    let redis = Redis::start();
    redis.command::<String>(&["CONFIG", "SET", "requirepass", "s3cr3tpw"]);
    let url = |password: &str| format!("{}?password={password}", redis.url());
    let (code, printed) = said("orchestra", &[], &["-b", &url("s3cr3tpw"), "purge", "-f"]);
    assert_eq!((code, &*printed), (Some(0), "purged 0 messages from celery\n"));
    let (code, printed) = said("orchestra", &[], &["-b", &url("s3cr3tpw2"), "purge", "-f"]);
    assert!(
        code == Some(1) && printed.contains("?password=**: it knows no such user and password"),
        "{printed}"
    );
    assert!(!printed.contains("s3cr3tpw"), "{printed}");
    let (code, printed) = said("orchestra", &[], &["-b", &url("s3cr3tpw"), "config"]);
    assert!(code == Some(0) && printed.contains("?password=********"), "{printed}");
    assert!(!printed.contains("s3cr3tpw"), "{printed}");
}

#[test]
fn a_result_that_cannot_be_read_is_named_and_shown_as_it_is() {
    let redis = Redis::start();
    let digits = format!(r#"{{"status":"SUCCESS","result":{}}}"#, "9".repeat(5000));
    let deep = format!(
        r#"{{"status":"SUCCESS","result":{}1{}}}"#,
        "[".repeat(9000),
        "]".repeat(9000)
    );
    for (stored, why) in [
        ("hello", "expected value at line 1 column 1"),
        (r#"{"result":1}"#, "missing field `status`"),
        (&digits, "number out of range"),
        (&deep, "cannot be read"),
    ] {
        redis.command::<String>(&["SET", "celery-task-meta-x1", stored]);
        let (code, printed) = said("orchestra", &[], &["-b", &redis.url(), "result", "x1"]);
        assert!(
            code == Some(1)
                && printed.starts_with("orchestra: the result of x1 cannot be read: ")
                && printed.contains(why)
                && printed.lines().count() == 1,
            "{printed}"
        );
        let (code, printed) = said("orchestra", &[], &["-b", &redis.url(), "result", "x1", "--json"]);
        let read: String = printed.split_whitespace().collect();
        assert_eq!((code, read), (Some(0), stored.to_owned()));
    }
    redis.command::<u64>(&["DEL", "celery-task-meta-x1"]);
    redis.command::<u64>(&["RPUSH", "celery-task-meta-x1", "x"]);
    for words in [&["result", "x1"][..], &["result", "x1", "--json"]] {
        let (code, printed) = said("orchestra", &[], &[&["-b", &redis.url()], words].concat());
        assert!(
            code == Some(1)
                && printed.starts_with("orchestra: the result of x1 cannot be read: Redis refused: ")
                && printed.contains("WRONGTYPE"),
            "{printed}"
        );
    }
}

#[test]
fn a_redis_that_runs_is_not_to_be_started() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://:s3cr3tpw@{}/0", listener.local_addr().unwrap());
    // Redis 5.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut asked) {
                let commands = asked[..count].iter().filter(|byte| **byte == b'*').count();
                let answer =
                    b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `s3cr3tpw`, \r\n";
                stream.write_all(&answer.repeat(commands)).unwrap();
            }
        }
    });
    for words in [&["status"][..], &["doctor"]] {
        let (code, printed) = said("orchestra", &[], &[&["-b", &url], words].concat());
        assert!(
            code == Some(1) && printed.contains("this Redis is too old: 6.2 or later is needed"),
            "{printed}"
        );
        assert!(
            !printed.contains("is it running") && !printed.contains("s3cr3tpw"),
            "{printed}"
        );
    }
    let redis = Redis::start();
    let orchestra = program("orchestra");
    let script = format!("ulimit -n 10; exec {} -b {} status", orchestra.display(), redis.url());
    let out = Command::new("sh").args(["-c", &script]).env_clear().output().unwrap();
    let printed = String::from_utf8_lossy(&out.stderr);
    assert!(
        printed.contains("(os error 24); let this process open more of them (`ulimit -n`)"),
        "{printed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_too_old_is_named_by_its_version() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let (code, printed) = said("orchestra", &[], &["-b", &proxy.url(), "doctor"]);
    assert!(code.is_some() && !printed.contains("or later is needed"), "{printed}");
    let info: String = redis.command(&["INFO", "server"]);
    let line = info.lines().find(|line| line.starts_with("redis_version:")).unwrap();
    let old = line.replace(|char: char| char.is_ascii_digit(), "0");
    proxy.says(old.leak(), line.to_owned().leak());
    let (_, printed) = said("orchestra", &[], &["-b", &proxy.url(), "doctor"]);
    assert!(printed.contains("note  this Redis is of version 0."), "{printed}");
    let worker = Worker::start_at(&proxy.url(), &[]);
    worker.wait_for_log("6.2 or later is needed");
}
