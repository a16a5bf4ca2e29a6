//! What somebody sees who knows Celery and types what comes to mind.

use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use orchestra::client::Call;
use serde_json::Value;

use crate::cli::{orchestra, text};
use crate::support::{Folder, LONG, Process, Redis, Worker, program, run_python, until};

/// What a program says that is asked for something it cannot do, with its exit code.
fn said(output: &Output) -> (Option<i32>, String) {
    (
        output.status.code(),
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned(),
    )
}

fn run(name: &str, line: &str) -> (Option<i32>, String) {
    let folder = Folder::new();
    let file = "parameters:\n  text: {type: string}\nsteps:\n  - {id: a, type: ollama_generate, model: m, prompt: '{{ text }}'}\n";
    folder.write("files/foo.yaml", file);
    let mut command = Command::new(program(name));
    let words = line.split(' ').map(|word| if word == "''" { "" } else { word });
    let command = command.args(words).env_clear().current_dir(folder.path());
    said(&command.output().unwrap())
}

#[test]
fn words_of_celery_are_understood_and_mistakes_are_answered() {
    let mut wrong = Vec::new();
    for (name, line, code, answer) in [
        // `worker` in every place where `celery` takes it.
        (
            "orchestra-worker",
            "-A proj worker -l info -Q ''",
            2,
            "the name of a queue has 1 to 255",
        ),
        (
            "orchestra-worker",
            "worker -Q ''",
            2,
            "the name of a queue has 1 to 255",
        ),
        (
            "orchestra-worker",
            "-A proj beat",
            2,
            "unexpected argument 'beat' found; this is `celery worker`",
        ),
        (
            "orchestra-worker",
            "--time-limit -1",
            2,
            "--time-limit <SECONDS>': that is no number of seconds",
        ),
        (
            "orchestra-worker",
            "--statedb /proc/x --quiet",
            1,
            "the state file /proc/x cannot be used: writing it failed: No such",
        ),
        (
            "orchestra-worker",
            "-c 99999999999",
            2,
            "--concurrency: at most 100000 tasks may run at once",
        ),
        (
            "orchestra-worker",
            "--autoscale 100001,1",
            2,
            "--autoscale: at most 100000 tasks may run at once",
        ),
        (
            "orchestra-worker",
            "-c -1",
            2,
            "\"-1\" is neither a whole number nor auto",
        ),
        (
            "orchestra-worker",
            "--prefetch-multiplier -1",
            2,
            "invalid value '-1' for '--prefetch-multiplier <N>'",
        ),
        (
            "orchestra-worker",
            "--time-limit 1e300",
            2,
            "--time-limit: 1e300 is no number of seconds",
        ),
        ("orchestra", "worker -l info", 2, "run orchestra-worker"),
        (
            "orchestra",
            "inspect ping -t 1e300",
            2,
            "--timeout: 1e300 is no number of seconds",
        ),
        ("orchestra", "revoke ''", 2, "a value is required for '<IDS>...'"),
        (
            "orchestra",
            "models usage --day 2026-13-45",
            2,
            "that is no day; write it as 2026-11-25",
        ),
        (
            "orchestra",
            "purge -f -Q celery,,x",
            2,
            "--queues: the name of a queue has 1 to 255 characters",
        ),
        ("orchestra", "-A proj tasks", 0, "-A proj has no effect"),
        ("orchestra", "help send", 0, "--countdown"),
        ("orchestra", "help models pull", 0, "Fetch a model"),
        // What is meant is told where it is near.
        ("orchestra", "send a.b --etaa 1", 2, "did you mean '--eta'; --help"),
        (
            "orchestra",
            "send a.b --pidfile x",
            2,
            "unexpected argument '--pidfile' found; --help",
        ),
        ("orchestra", "sned a.b", 2, "did you mean 'send'"),
        ("orchestra", "send ''", 2, "the name of the task is empty"),
        (
            "orchestra",
            &format!("send {}", "a".repeat(300)),
            2,
            "the name of the task has 300 bytes: workers take no more than 255 (max_name_bytes)",
        ),
        (
            "orchestra",
            &format!("send a.b -Q {}", "q".repeat(300)),
            2,
            "--queue: the name of a queue has 1 to 255 characters",
        ),
        (
            "orchestra",
            "send a.b --countdown x",
            2,
            "'x' for '--countdown <SECONDS>'",
        ),
        (
            "orchestra",
            "send a.b --eta tomorrow",
            2,
            "that is no time; write it as 2026-11-26T10:30:00",
        ),
        (
            "orchestra",
            "send a.b --expires later",
            2,
            "neither a number of seconds nor a time",
        ),
        ("orchestra", "send a.b --args {}", 2, "that is no JSON array"),
        ("orchestra", "send a.b -k {x", 2, "write NAME=VALUE, or a JSON object"),
        ("orchestra", "send a.b --serializer pickle", 2, "possible values: json"),
        (
            "orchestra",
            "status -t x",
            2,
            "'x' for '--timeout <SECONDS>': that is no number of seconds",
        ),
        (
            "orchestra",
            "status -t -1",
            2,
            "'-1' for '--timeout <SECONDS>': that is no number of seconds",
        ),
        (
            "orchestra",
            "batch run r.jsonl",
            2,
            "--template <TEMPLATE>|--task <TASK>",
        ),
        // Nothing to do is no success, and the advice is one that helps.
        (
            "orchestra",
            "templates lint",
            2,
            "there is no template in templates; name files, or their folder with --templates",
        ),
        (
            "orchestra",
            "templates lint --templates files",
            0,
            "1 template is in order",
        ),
        (
            "orchestra",
            "templates render nope",
            2,
            "there is no template \"nope\", nor any other; is their folder named",
        ),
        (
            "orchestra",
            "templates render foo -p txt=a --templates files",
            2,
            "did you mean \"text\"? files/foo.yaml:2: parameter \"text\" is missing",
        ),
        (
            "orchestra",
            "status -b redis://nowhere.invalid/0",
            1,
            "there is no host of that name; check the host in the URL",
        ),
        (
            "orchestra",
            "status -b redis://127.0.0.1:1/abc",
            2,
            "behind the last / is the number of a database",
        ),
        (
            "orchestra",
            "status -b redis://user:p@ss/w0rd@h:1/0",
            2,
            "write special characters of a password as %2F",
        ),
        (
            "orchestra",
            "status -b redis://127.0.0.1:99999/0",
            2,
            "\"99999\" is no port; one is a number",
        ),
    ] {
        let (ended, words) = run(name, line);
        if ended != Some(code) || !words.contains(answer) {
            wrong.push(format!("{name} {line}: {ended:?}: {words}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The options of all commands stand apart, and those of AI tasks only where they are used.
    let (_, help) = run("orchestra", "send --help");
    let (own, common) = help.split_once("Where things are:").unwrap();
    assert!(
        own.contains("--wait") && own.contains("--routing-key") && !own.contains("--broker"),
        "{help}"
    );
    assert!(common.contains("--broker") && !help.contains("--ollama-host"), "{help}");
    assert!(run("orchestra", "models list --help").1.contains("--ollama-host"));
    // One line of `control list` begins where the other does.
    let (_, list) = run("orchestra", "control list");
    let column = |text: &str| {
        let before = list.lines().find_map(|line| line.split_once(text)).unwrap().0;
        before.chars().count()
    };
    assert_eq!(
        column("stop the workers"),
        column("do not run tasks with these stamps"),
        "{list}"
    );
    assert_eq!(
        column("stop the workers"),
        column("consume from a queue as well"),
        "{list}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_called_as_celery_calls_it_and_its_id_is_never_lost() {
    let redis = Redis::start();
    // Nobody listens yet: what is in the queue is what was sent.
    let called = |words: &[&str]| {
        let id = text(&orchestra(&redis, &[&["call"], words].concat()));
        let message: Value = serde_json::from_str(&redis.command::<String>(&["LPOP", "celery"])).unwrap();
        assert_eq!(message["headers"]["id"], id.trim());
        message
    };
    let message = called(&[
        "math.add",
        "--args",
        "[2, 3]",
        "--kwargs",
        "{\"z\": 4}",
        "--eta",
        "2031-01-01T12:00:00+02:00",
        "--serializer",
        "json",
        "--expires",
        "2032-01-01T00:00:00",
    ]);
    let headers = &message["headers"];
    assert_eq!(headers["argsrepr"], "(2, 3)");
    assert_eq!(headers["kwargsrepr"], "{'z': 4}");
    assert_eq!(headers["eta"], "2031-01-01T10:00:00.000000+00:00");
    assert_eq!(headers["expires"], "2032-01-01T00:00:00.000000+00:00");
    let message = called(&["math.add", "-1", "--countdown", "-5", "--queue", "celery"]);
    assert_eq!(message["headers"]["argsrepr"], "(-1,)");
    assert!(message["headers"]["eta"].is_string(), "{message}");
    orchestra(&redis, &["call", "t", "--exchange", "x", "--routing-key", "elsewhere"]);
    assert_eq!(redis.length("LLEN", "elsewhere"), 1);

    // What is waited for can be found again.
    let waited = orchestra(&redis, &["send", "t", "--wait", "0.2"]);
    let (code, words) = said(&waited);
    let id = words.lines().next().unwrap().strip_prefix("task ").unwrap().to_owned();
    assert_eq!(
        words,
        format!("task {id}\norchestra: no result of task {id} within 0.2 s\n")
    );
    assert_eq!(code, Some(1));
    let folder = Folder::new();
    let log = folder.path().join("log");
    let mut waits: Process = Command::new(program("orchestra"))
        .args(["-b", &redis.url(), "send", "t", "--wait"])
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap()
        .into();
    let read = || std::fs::read_to_string(&log).unwrap();
    // Both begin at once: to listen for the result, and for Ctrl-C.
    until("it waits", async || {
        let channels: Vec<String> = redis.command(&["PUBSUB", "CHANNELS", "celery-task-meta-*"]);
        read().contains("task ") && !channels.is_empty()
    })
    .await;
    waits.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(waits.wait(), Some(130), "{}", read());
    assert!(
        read().contains("no longer waiting; the task goes on: orchestra result "),
        "{}",
        read()
    );
    redis.command::<u64>(&["DEL", "celery"]);

    let _worker = Worker::start(&redis, &["-P", "prefork", "-c", "1", "-Q", "celery,mail"]);
    let bindings = text(&orchestra(&redis, &["list", "bindings"]));
    let rows: Vec<Vec<&str>> = bindings.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(
        rows.contains(&vec!["QUEUE", "EXCHANGE", "ROUTING", "KEY"]),
        "{bindings}"
    );
    for queue in ["celery", "mail"] {
        assert!(rows.contains(&vec![queue; 3]), "{bindings}");
    }
    let bindings = text(&orchestra(&redis, &["list", "bindings", "--json"]));
    let bindings: Vec<Value> = serde_json::from_str(&bindings).unwrap();
    assert!(bindings.contains(&serde_json::json!({"queue": "mail", "exchange": "mail", "routing_key": "mail"})));
    let client = redis.client().await;
    let failed = client.send(Call::new("hello.add").arg("x")).await.unwrap();
    assert!(failed.failure(LONG).await.is_some());
    let traceback = text(&orchestra(&redis, &["result", failed.id(), "--traceback"]));
    let stored: Value =
        serde_json::from_str(&redis.command::<String>(&["GET", &format!("celery-task-meta-{}", failed.id())])).unwrap();
    assert_eq!(traceback.trim_end(), stored["traceback"].as_str().unwrap().trim_end());
    let shown = orchestra(&redis, &["result", failed.id(), "-j"]);
    assert_eq!(shown.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&shown.stdout).unwrap(), stored);
    // A signal of one's own ends a task in a process.
    let sleeping = client.send(Call::new("hello.sleep").arg(60)).await.unwrap();
    until("it runs", async || {
        sleeping.state().await.unwrap().as_str() == "PROGRESS"
    })
    .await;
    let told = text(&orchestra(
        &redis,
        &["revoke", "--terminate", "--signal", "SIGKILL", sleeping.id()],
    ));
    assert!(told.contains(sleeping.id()), "{told}");
    until("it is revoked", async || {
        sleeping.state().await.unwrap().as_str() == "REVOKED"
    })
    .await;
    let alone = orchestra(&redis, &["revoke", "--signal", "KILL", "x"]);
    assert_eq!(alone.status.code(), Some(2), "{alone:?}");
    let unknown = orchestra(&redis, &["revoke", "--terminate", "--signal", "SIGNONE", "x"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
}

/// Words that are no text are a mistake like others.
#[test]
fn words_that_are_no_utf_8_are_answered_in_a_line() {
    for (name, words) in [
        ("orchestra-worker", &[b"\xff".as_slice()][..]),
        ("orchestra-worker", &[b"-n", b"\xff"]),
        ("orchestra", &[b"send", b"\xff"]),
    ] {
        let words = words.iter().map(|word| std::ffi::OsStr::from_bytes(word));
        let (code, words) = said(&Command::new(program(name)).args(words).env_clear().output().unwrap());
        assert!(
            code == Some(2) && words.contains("invalid UTF-8") && words.lines().count() == 1,
            "{name}: {code:?} {words}"
        );
    }
}

/// A host that says nothing, and a server without TLS, are told in seconds.
#[test]
fn what_is_not_there_is_no_success() {
    let redis = Redis::start();
    for words in [&["models", "list"][..], &["models", "ps"], &["models", "list", "-j"]] {
        let (code, words) = said(&orchestra(
            &redis,
            &[words, &["--ollama-host", "http://127.0.0.1:1"]].concat(),
        ));
        assert!(code == Some(1) && words.contains("no model server answers"), "{words}");
    }
    let began = Instant::now();
    let secret = redis.url().replace("redis://", "rediss://");
    let (code, words) = said(&orchestra(&redis, &["-b", &secret, "status"]));
    assert!(
        code == Some(1) && words.contains("answers without TLS: write redis://"),
        "{words}"
    );
    // A hang is a minute.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    for words in [
        &["tasks", "-j"][..],
        &["templates", "list", "--json"],
        &["models", "usage", "-j"],
    ] {
        serde_json::from_str::<Value>(&text(&orchestra(&redis, words))).unwrap();
    }
}

/// no-color.org, and a terminal that cannot show any.
#[test]
fn colors_are_for_those_who_want_them() {
    let redis = Redis::start();
    let worker = program("orchestra-worker");
    let python = format!(
        r"
import os, pty, signal
def colored(**environment):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve({worker:?}, ['w', '-b', {url:?}, '-l', 'INFO', '--quiet'], environment)
    said = b''
    while b'ready' not in said:
        said += os.read(terminal, 4096)
    os.kill(pid, signal.SIGTERM)
    try:
        while more := os.read(terminal, 4096):
            said += more
    except OSError:
        pass
    os.waitpid(pid, 0)
    assert b'INFO' in said, said
    return b'\x1b[' in said
assert colored(TERM='xterm')
assert colored(TERM='xterm', NO_COLOR='')
assert not colored(TERM='xterm', NO_COLOR='1')
assert not colored(TERM='dumb')
",
        worker = worker.to_str().unwrap(),
        url = redis.url()
    );
    run_python(&python, &redis.url());
}

/// A node, a task, a model server that are somebody else's: what they say is shown, and is no command to the terminal.
#[test]
fn what_others_have_written_does_not_command_the_terminal() {
    let redis = Redis::start();
    let python = format!(
        r#"
import http.server, json, os, pty, subprocess, sys, threading, unicodedata
import redis
from celery import Celery
from kombu import Connection
from kombu.pidbox import Mailbox
url = sys.argv[1]
ESC = '\x1b[2J\x1b]0;PWN\x07\x9b31m\nforged'
answers = {{'report': {{'ok': ESC}}, 'memdump': {{'ok': ESC}}, 'stats': {{ESC: ESC}}, 'conf': {{ESC: ESC}},
           'ping': {{'ok': 'pong'}}, 'clock': {{'error': ESC}}}}
def answering(answer):
    return lambda state, **arguments: answer
def node():
    with Connection(url) as connection:
        handlers = {{name: answering(answer) for name, answer in answers.items()}}
        node = Mailbox('celery', type='fanout', accept=['json']).Node(ESC + '@h', channel=connection.channel(), handlers=handlers)
        node.listen(callback=lambda body, message: node.handle_message(body, message))
        while True:
            connection.drain_events()
class Ollama(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{'version': ESC, 'models': []}}).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
ollama = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Ollama)
for what in [node, ollama.serve_forever]:
    threading.Thread(target=what, daemon=True).start()
def command(*words):
    return [{orchestra:?}, '-b', url, *words]
def said(*words):
    return subprocess.run(command(*words), capture_output=True)
def on_terminal(*words):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv({orchestra:?}, command(*words))
    said = b''
    try:
        while more := os.read(terminal, 4096):
            said += more
    except OSError:
        pass
    os.waitpid(pid, 0)
    return said.replace(b'\r\n', b'\n')
wrong = []
def check(what, said, may_have_lines=False):
    text = said.decode(errors='replace')
    commands = [char for char in text if unicodedata.category(char) == 'Cc' and char not in '\n\t']
    forged = not may_have_lines and any(line.startswith('forged') for line in text.split('\n'))
    if commands or forged or 'forged' not in text:
        wrong.append((what, text))
until('the node is heard', lambda: b'forged' in said('inspect', 'ping').stdout)
for method in ['ping', 'report', 'memdump', 'stats', 'conf', 'clock']:
    check('inspect ' + method, said('inspect', method).stdout)
for words in [['status'], ['doctor', '--ollama-host', 'http://127.0.0.1:%d' % ollama.server_port]]:
    check(words[0], said(*words).stdout)
assert said('doctor', '--ollama-host', 'http://127.0.0.1:%d' % ollama.server_port).stdout.count(b'forged') == 2
check('JSON on a terminal', on_terminal('inspect', 'report', '--json'))
store = redis.Redis.from_url(url)
def put(name, **record):
    store.set('celery-task-meta-' + name, json.dumps(record))
put('state', status=ESC, result=None)
put('failed', status='FAILURE', result={{'exc_type': ESC, 'exc_message': [ESC], 'exc_module': ESC}}, traceback=ESC)
put('text', status='SUCCESS', result=ESC)
check('state', said('result', 'state').stdout)
check('exception', said('result', 'failed').stderr)
check('traceback', on_terminal('result', 'failed', '--traceback'), may_have_lines=True)
check('text', on_terminal('result', 'text'), may_have_lines=True)
assert said('result', 'text').stdout == ESC.encode() + b'\n', 'a file gets it whole'
for words in [['events', '--dump', '-n', '2'], ['events', '-n', '2']]:
    watching = subprocess.Popen(command(*words), stdout=subprocess.PIPE)
    with Celery(broker=url).events.default_dispatcher(hostname=ESC) as events:
        while watching.poll() is None:
            events.send('task-failed', uuid=ESC, exception=ESC)
            time.sleep(0.05)
    check(' '.join(words), watching.stdout.read())
assert not wrong, wrong
"#,
        orchestra = program("orchestra").to_str().unwrap(),
    );
    run_python(&python, &redis.url());
}

/// Whoever brings a `celeryconfig.py` is told of each setting what becomes of it.
#[test]
fn every_setting_of_celery_is_known_or_has_a_word() {
    let redis = Redis::start();
    let names = run_python(
        "from celery.app import defaults\nprint(*[name for name, _ in defaults.flatten(defaults.NAMESPACES)])\n\
         print(*[name for name in defaults._TO_NEW_KEY if name.isupper()])",
        &redis.url(),
    );
    let mut lines = names.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let (new, old) = (lines.next().unwrap(), lines.next().unwrap());
    assert!(new.len() > 200 && old.len() > 150, "{names}");
    let said = |names: &[&str]| {
        let folder = Folder::new();
        let text: String = names.iter().map(|name| format!("{name} = []\n")).collect();
        folder.write("orchestra.toml", &text);
        let mut command = Command::new(program("orchestra"));
        let output = command
            .arg("config")
            .env_clear()
            .current_dir(folder.path())
            .output()
            .unwrap();
        said(&output).1
    };
    for names in [new, old] {
        let words = said(&names);
        let lost: Vec<&str> = words
            .lines()
            .filter(|line| line.contains("there is no such setting"))
            .collect();
        assert!(lost.is_empty(), "{lost:#?}");
    }
    // What changes nothing lets the program start.
    let words = said(&["beat_scheduler", "imports"]);
    assert!(
        words.contains("orchestra.toml:1: beat_scheduler has no effect: ") && words.contains("\"broker_url\""),
        "{words}"
    );
}

/// The page has the program that does it.
#[test]
fn a_celeryconfig_becomes_an_orchestra_toml() {
    let folder = Folder::new();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/from-celery.md")).unwrap();
    let program_of_page = page.split("```python\nimport importlib").nth(1).unwrap();
    let program_of_page = program_of_page.split("```").next().unwrap();
    folder.write("to_toml.py", &format!("import importlib{program_of_page}"));
    let app = "from celery import Celery\nfrom celery.schedules import crontab\nfrom datetime import timedelta\n\
        from kombu import Queue\napp = Celery('proj')\napp.conf.update(broker_url='redis://h:1/3', result_expires=timedelta(minutes=5),\n\
        task_routes={'a.*': {'queue': 'x'}}, imports=('proj',), task_queues=[Queue('q')], beat_schedule={'tidy': {'task': 't',\n\
        'schedule': crontab(minute='*/5', hour=4), 'args': ('\u{e4}',), 'kwargs': {'a': None, 'b': True}}})\n";
    folder.write("proj.py", app);
    let made = Command::new(crate::support::python())
        .args(["to_toml.py", "proj:app"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let toml = text(&made);
    assert!(toml.contains("# task_queues has a Queue: write it by hand"), "{toml}");
    folder.write("orchestra.toml", &toml);
    let mut config = Command::new(program("orchestra"));
    let shown = config
        .arg("config")
        .env_clear()
        .current_dir(folder.path())
        .output()
        .unwrap();
    let shown: Value = serde_json::from_str(&text(&shown)).unwrap();
    assert_eq!(shown["broker_url"], "redis://h:1/3");
    assert_eq!(shown["result_expires"], 300.0);
    assert_eq!(shown["task_routes"], serde_json::json!([["a.*", {"queue": "x"}]]));
    let tidy = &shown["beat_schedule"]["tidy"];
    assert_eq!(
        (&tidy["schedule"]["minute"], &tidy["args"][0]),
        (&"*/5".into(), &"\u{e4}".into())
    );
    assert_eq!(tidy["kwargs"], serde_json::json!({"b": true}));
}
