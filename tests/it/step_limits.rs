//! Bounds on what steps of templates do with the host: each of them, by its setting or as it is, ends the step with a
//! word that names it, and the worker goes on.

use std::time::{Duration, Instant};

use orchestra::client::{Call, Client, Error};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{Folder, LONG, Redis, Worker, program, until};

/// What a run came to: its output, or its error.
async fn outcome(client: &Client, template: &str, params: &Value) -> Result<Value, String> {
    outcome_in("celery", client, template, params).await
}

async fn outcome_in(queue: &str, client: &Client, template: &str, params: &Value) -> Result<Value, String> {
    let call = Call::new("orchestra.run").arg(template).arg(params).queue(queue);
    match client.send(call).await.unwrap().get::<Value>(LONG).await {
        Ok(value) => Ok(value),
        Err(Error::Failed { exception, .. }) => Err(exception.message()),
        Err(error) => panic!("{template} {params}: {error}"),
    }
}

/// A server whose answers are as long as the path says, and which sends on to itself for as often as it says.
async fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                let count = stream.read(&mut asked).await.unwrap_or(0);
                let asked = String::from_utf8_lossy(&asked[..count]).into_owned();
                let path = asked.split_whitespace().nth(1).unwrap_or_default();
                let number = |path: &str| path.parse::<usize>().unwrap_or(0);
                let answer = match path.strip_prefix("/on/").map(number) {
                    Some(on) if on > 0 => format!(
                        "HTTP/1.1 302 Found\r\nlocation: /on/{}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                        on - 1
                    ),
                    _ => {
                        let length = number(path.trim_start_matches('/'));
                        let body = "x".repeat(length);
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
                    }
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

/// Processes whose command line has a word.
fn with_word(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| line.split(|byte| *byte == 0).any(|other| other == word.as_bytes()))
        .count()
}

const SHELL: &str = "parameters:\n  code: {type: string}\nsteps:\n\
                     - {id: a, type: execute_script, program: sh, args: ['-c', '{{ code }}']}\noutput: '{{ steps.a }}'\n";

#[tokio::test(flavor = "multi_thread")]
async fn each_bound_of_a_step_ends_it_with_its_name_and_the_worker_goes_on() {
    let (redis, folder, data) = (Redis::start(), Folder::new(), Folder::new());
    folder.write("shell.yaml", SHELL);
    folder.write(
        "files.yaml",
        "parameters:\n  files: {type: any}\nsteps:\n- {id: a, type: read_files, files: '{{ files }}'}\n\
         output: '{{ steps.a | length }}'\n",
    );
    folder.write(
        "ask.yaml",
        "parameters:\n  url: {type: string}\nsteps:\n- {id: a, type: http_request, url: '{{ url }}'}\n\
         output: '{{ steps.a.text | length }}'\n",
    );
    folder.write(
        "many.yaml",
        "parameters:\n  n: {type: integer}\nsteps:\n\
         - {id: a, foreach: '{{ range(n) | list }}', type: format_output, format: text, value: x}\n\
         output: '{{ steps.a | length }}'\n",
    );
    for n in 0..6 {
        data.write(&format!("ten{n}"), "0123456789");
        data.write(&format!("one{n}"), "0");
    }
    data.write("eleven", "0123456789x");
    let (port, root) = (server().await, data.path().display().to_string());
    let hosts = format!("127.0.0.1:{port}");
    let settings = [
        ("ORCHESTRA_AI_PROGRAMS", "sh"),
        ("ORCHESTRA_AI_PROGRAM_PROCESSES", "20"),
        ("ORCHESTRA_AI_PROGRAM_MEMORY", "200000000"),
        ("ORCHESTRA_AI_PROGRAM_FILE", "1000"),
        ("ORCHESTRA_AI_PROGRAM_OUTPUT", "100"),
        // Longer than a busy machine takes to come to any of the others.
        ("ORCHESTRA_AI_PROGRAM_TIMEOUT", "50"),
        ("ORCHESTRA_AI_READ_PATHS", &root),
        ("ORCHESTRA_AI_MAX_FILE_BYTES", "10"),
        ("ORCHESTRA_AI_MAX_FILES", "5"),
        ("ORCHESTRA_AI_MAX_HTTP_BYTES", "10"),
        ("ORCHESTRA_AI_HTTP_HOSTS", &hosts),
    ];
    let templates = ["--templates", folder.path().to_str().unwrap()];
    let worker = Worker::start_with(&redis, &templates, &settings);
    let client = redis.client().await;
    // A number that is in the command lines of nobody else.
    let mark = format!("864{port}");
    let bomb = |how: &str| format!("i=0; while [ $i -lt 2000 ]; do {how} sleep {mark} & i=$((i+1)); done; wait");
    let hog = "for i in 1 2 3 4; do head -c 80000000 /dev/zero | tail & done; wait";
    let table = [
        (
            "shell",
            json!({"code": bomb("")}),
            "more than 20 processes and threads (ai_program_processes)",
        ),
        (
            "shell",
            json!({"code": bomb("setsid")}),
            "more than 20 processes and threads (ai_program_processes)",
        ),
        (
            "shell",
            json!({"code": hog}),
            "more than 200000000 bytes of memory together (ai_program_memory)",
        ),
        (
            "shell",
            json!({"code": "head -c 1001 /dev/zero > large"}),
            "ended with 153",
        ),
        (
            "files",
            json!({"files": "eleven"}),
            "is larger than 10 bytes (ai_max_file_bytes)",
        ),
        ("files", json!({"files": "one*"}), "more than 5 (ai_max_files)"),
        ("files", json!({"files": "ten*"}), "or larger than 40 bytes together"),
        (
            "ask",
            json!({"url": format!("http://{hosts}/11")}),
            "larger than 10 bytes (ai_max_http_bytes)",
        ),
        (
            "ask",
            json!({"url": format!("http://{hosts}/on/6")}),
            "more than 5 redirects",
        ),
        ("many", json!({"n": 10_001}), "has 10001 items, more than 10000"),
    ];
    for (template, params, word) in table {
        let began = Instant::now();
        let error = outcome(&client, template, &params).await.unwrap_err();
        assert!(error.contains(word), "{template} {params}: {error}");
        assert!(
            began.elapsed() < Duration::from_secs(40),
            "{params}: {:?}",
            began.elapsed()
        );
    }
    // One with a process for its tasks, and a password. Root has no more rights there than in most containers: with all of
    // them it looks into everybody.
    let password = format!("hidden{port}");
    let short = [
        ("ORCHESTRA_AI_PROGRAMS", "sh"),
        ("ORCHESTRA_AI_PROGRAM_TIMEOUT", "5"),
        ("PASSWORD_OF_THE_WORKER", &password),
    ];
    let own = program("hello_task").display().to_string();
    let mut words = vec!["setpriv", "--bounding-set=-all", "--inh-caps=-all", &own, "--quiet"];
    if !nix::unistd::geteuid().is_root() {
        words.drain(..3);
    }
    let prefork = [&templates[..], &["-Q", "soon", "-P", "prefork", "-c", "1"]].concat();
    let soon = Worker::spawn_words("/usr/bin/env", &words, &redis, &prefork, &short);
    soon.wait_for_log("orchestra-worker: ready");
    let code = json!({"code": format!("sleep {mark}")});
    let error = outcome_in("soon", &client, "shell", &code).await.unwrap_err();
    assert!(error.contains("takes longer than 5 s"), "{error}");
    // A program sees no environment of the worker or of its process: that of its own `grep` alone has the word. Nor does
    // it see into who watches over it.
    let code = format!(
        "OWN={password} grep -las {password} /proc/[0-9]*/environ | wc -l; (cat < /proc/$PPID/environ) 2>&- | wc -c"
    );
    let code = json!({"code": code});
    let ran = outcome_in("soon", &client, "shell", &code).await.unwrap();
    assert_eq!((&ran["text"], &ran["stderr"]), (&json!("1\n0\n"), &json!("")), "{ran}");
    drop(soon);
    // Who is killed is there for a moment longer.
    until("nothing is left behind", async || with_word(&mark) == 0).await;
    // What is just within them works.
    for (template, params, result) in [
        ("files", json!({"files": ["ten0", "ten1", "ten2", "ten3"]}), json!(4)),
        ("ask", json!({"url": format!("http://{hosts}/10")}), json!(10)),
        ("ask", json!({"url": format!("http://{hosts}/on/5")}), json!(0)),
    ] {
        assert_eq!(
            outcome(&client, template, &params).await,
            Ok(result),
            "{template} {params}"
        );
    }
    let code = "head -c 1000 /dev/zero > fits; grep NoNewPrivs /proc/self/status";
    let ran = outcome(&client, "shell", &json!({"code": code})).await.unwrap();
    assert_eq!(
        (&ran["text"], &ran["truncated"]),
        (&json!("NoNewPrivs:\t1\n"), &json!(false)),
        "{ran}"
    );
    let ran = outcome(&client, "shell", &json!({"code": "head -c 101 /dev/zero"}))
        .await
        .unwrap();
    assert_eq!(
        (ran["text"].as_str().map(str::len), &ran["truncated"]),
        (Some(100), &json!(true))
    );
    let sum = client.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
}

/// The name of a template comes from whoever sends: it is looked up among those that were read, and never made a path.
#[tokio::test(flavor = "multi_thread")]
async fn no_name_of_a_template_leads_out_of_the_folder() {
    let (redis, root) = (Redis::start(), Folder::new());
    let template = "description: d\nsteps:\n- {type: format_output, format: text, value: hello}\n";
    root.write("secret.yaml", template);
    root.write("in/greet.yaml", template);
    root.write("in/deep/below.yaml", template);
    root.write("in/not-read.txt", template);
    std::os::unix::fs::symlink(root.path().join("secret.yaml"), root.path().join("in/linked.yaml")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.path().join("in/passwd")).unwrap();
    let inside = root.path().join("in");
    let worker = Worker::start(&redis, &["--templates", inside.to_str().unwrap()]);
    let client = redis.client().await;
    let absolute = root.path().join("secret.yaml").display().to_string();
    for name in [
        "../../etc/passwd",
        "../secret",
        "../secret.yaml",
        "./greet",
        "greet.yaml",
        "deep/../greet",
        "deep/../../secret",
        "..\\secret",
        "%2e%2e/secret",
        "%2e%2e%2fsecret",
        "..%00/secret",
        "greet\0",
        "/etc/passwd",
        "passwd",
        "not-read",
        "file:///etc/passwd",
        "~/secret",
        "greet@../secret",
        "greet@1/../secret",
        "*",
        "",
        &absolute,
    ] {
        let error = outcome(&client, name, &json!({})).await.unwrap_err();
        assert!(error.contains("there is no template"), "{name:?}: {error}");
        assert!(!error.contains("root:"), "{error}");
    }
    // What the operator has put there is one, a link as well: Kubernetes mounts its files so.
    for name in ["greet", "linked"] {
        assert_eq!(outcome(&client, name, &json!({})).await, Ok(json!("hello")), "{name}");
    }
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
}

/// A FIFO to which nobody writes is read by nobody: each read would keep a thread for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_refused_and_not_waited_for() {
    let (redis, folder, data) = (Redis::start(), Folder::new(), Folder::new());
    let step = |fields: &str| format!("steps:\n- {{id: a, timeout: 5, {fields}}}\n");
    folder.write("read.yaml", &step("type: read_files, files: fifo"));
    folder.write("script.yaml", &step("type: execute_script, script: fifo"));
    folder.write("clone.yaml", &step("type: git_clone, repo: repository"));
    data.write("repository/config", "");
    for fifo in ["fifo", "repository/HEAD"] {
        nix::unistd::mkfifo(&data.path().join(fifo), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let settings = [
        ("ORCHESTRA_AI_PROGRAMS", "git"),
        ("ORCHESTRA_AI_READ_PATHS", data.path().to_str().unwrap()),
    ];
    let templates = ["--templates", folder.path().to_str().unwrap()];
    let _worker = Worker::start_with(&redis, &templates, &settings);
    let client = redis.client().await;
    for template in ["read", "script", "clone"] {
        let error = outcome(&client, template, &json!({})).await.unwrap_err();
        assert!(error.contains("is no file"), "{template}: {error}");
    }
}

/// A program has the user of who watches over it, and may stop that process; not with its step, its time or its worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_stops_its_watcher_ends_all_the_same() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let template = |more: &str| {
        format!(
            "parameters:\n  mark: {{type: string}}\nsteps:\n- {{id: a{more}, type: execute_script, program: sh, \
             args: ['-c', 'kill -STOP $PPID; setsid sleep $0 & sleep $0', '{{{{ mark }}}}']}}\n"
        )
    };
    folder.write("long.yaml", &template(""));
    folder.write("short.yaml", &template(", timeout: 1"));
    let settings = [("ORCHESTRA_AI_PROGRAMS", "sh"), ("ORCHESTRA_AI_PROGRAM_TIMEOUT", "3")];
    let templates = ["--templates", folder.path().to_str().unwrap()];
    let mut worker = Worker::start_with(&redis, &templates, &settings);
    let client = redis.client().await;
    let marks = ["1", "2", "3"].map(|mark| format!("{mark}753{}", redis.port));
    let params = |mark: &String| json!({"mark": mark});
    let (long, short) = (params(&marks[0]), params(&marks[1]));
    let (long, short) = tokio::join!(outcome(&client, "long", &long), outcome(&client, "short", &short));
    let (long, short) = (long.unwrap_err(), short.unwrap_err());
    assert!(long.contains("takes longer than 3 s"), "{long}");
    assert!(short.contains("longer than 1 s"), "{short}");
    until("nothing is left of both", async || {
        with_word(&marks[0]) + with_word(&marks[1]) == 0
    })
    .await;
    let call = Call::new("orchestra.run").arg("long").arg(params(&marks[2]));
    client.send(call).await.unwrap();
    // Who watches, the shell, and what it has started twice.
    until("it runs", async || with_word(&marks[2]) == 4).await;
    worker.process.kill();
    until("nothing is left of the third", async || with_word(&marks[2]) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_has_no_files_that_its_worker_was_started_with() {
    let (redis, folder) = (Redis::start(), Folder::new());
    folder.write(
        "files.yaml",
        "steps:\n- {id: a, type: execute_script, program: ls, args: [/proc/self/fd]}\noutput: '{{ steps.a.text }}'\n",
    );
    let own = program("hello_task").display().to_string();
    let words = ["-c", "exec 9< /dev/null; exec \"$0\" --quiet \"$@\"", &own];
    let templates = ["--templates", folder.path().to_str().unwrap()];
    let worker = Worker::spawn_words(
        "/bin/sh",
        &words,
        &redis,
        &templates,
        &[("ORCHESTRA_AI_PROGRAMS", "ls")],
    );
    worker.wait_for_log("orchestra-worker: ready");
    // The last is the folder that it reads.
    let found = outcome(&redis.client().await, "files", &json!({})).await;
    assert_eq!(found, Ok(json!("0\n1\n2\n3\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_that_could_never_apply_are_told_at_the_start() {
    let redis = Redis::start();
    for (entry, why) in [
        ("http://api.example.com/x", "is a URL"),
        ("api.example.com/x", "has a path"),
        ("10.0.0.0/33", "is no network"),
    ] {
        let setting = [("ORCHESTRA_AI_HTTP_HOSTS", entry)];
        let mut worker = Worker::spawn("hello_task", &redis, &[], &setting);
        assert_eq!(worker.process.wait(), Some(2), "{}", worker.log());
        let told = format!("ai_http_hosts: {entry:?} {why}");
        assert!(worker.log().contains(&told), "{told}: {}", worker.log());
    }
    let settings = [
        ("ORCHESTRA_AI_PROGRAMS", "sh,/no/such,none-such"),
        ("ORCHESTRA_AI_READ_PATHS", "/nope,/tmp"),
    ];
    let log = Worker::start_with(&redis, &[], &settings).log();
    for told in [
        "ai_read_paths: /nope is not there",
        "ai_programs: /no/such is not there",
        "ai_programs: the program \"none-such\" is not in /usr/local/bin",
    ] {
        assert_eq!(log.matches(told).count(), 1, "{told}: {log}");
    }
    assert!(!log.contains("ai_read_paths: /tmp") && !log.contains("\"sh\""), "{log}");
}
