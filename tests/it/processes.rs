//! Tasks in processes of their own, and how a worker ends what it runs. The tasks are those of `examples/processes.rs`.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use orchestra::client::{Call, Client, Error, Pending};
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Process, Redis, Worker, python, run_python, until};

fn start(redis: &Redis, arguments: &[&str], environment: &[(&str, &str)]) -> Worker {
    Worker::start_program("processes", redis, arguments, environment)
}

/// What `inspect stats` says of the pool.
async fn pool(client: &Client) -> Value {
    let until = Instant::now() + LONG;
    loop {
        let ask = client.inspect("stats", &json!({}), None, Duration::from_secs(1)).await;
        // Just started it may not listen yet.
        if let Some(mut stats) = ask.unwrap().into_values().next() {
            return stats["pool"].take();
        }
        assert!(Instant::now() < until, "nobody answers");
    }
}

/// The child processes of a worker; one without any shows itself, once for each place.
async fn children(client: &Client, worker: &Worker) -> Vec<u64> {
    let pids = pool(client).await["processes"].take();
    let own = u64::try_from(worker.process.id()).unwrap();
    let pids = pids.as_array().into_iter().flatten().filter_map(Value::as_u64);
    pids.filter(|pid| *pid != own).collect()
}

async fn runs(pending: &Pending) {
    until("it runs", async || pending.state().await.unwrap().as_str() == "STARTED").await;
}

/// The same tasks in Python, for a worker of processes: what is lost there is lost here.
const PYTHON_APP: &str = "
import os
from celery import Celery
app = Celery('app', broker=os.environ['URL'], backend=os.environ['URL'])
app.conf.worker_lost_wait = 0.1
@app.task(name='process.end', acks_late=True)
def end(how):
    os.abort() if how == 'abort' else os._exit(3)
@app.task(name='process.spin', track_started=True)
def spin():
    while True: pass
@app.task(name='process.once', bind=True, acks_late=True, reject_on_worker_lost=True)
def once(self, file):
    if os.path.exists(file):
        return self.request.delivery_info['redelivered']
    open(file, 'w').close()
    os.abort()
@app.task(name='process.again', retry_on_worker_lost=True, max_retries=1, default_retry_delay=0.1)
def again():
    os.abort()
";

/// Results, states and events of tasks whose process dies, from a Python worker and from ours.
const LOSSES: &str = r"
import os, re, signal, sys, tempfile, threading
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
told = {}
def note(event):
    fields = {k: event[k] for k in ('exception', 'requeue', 'terminated', 'signum', 'expired', 'result') if k in event}
    # Python shows its own wrapper here, not what was raised; and tells twice of a hard limit.
    if fields.get('exception') == 'ExceptionWithTraceback()' or event['type'] == 'task-failed':
        fields.pop('exception', None)
    seen = told.setdefault(event.get('uuid'), [])
    if not seen or seen[-1] != (event['type'], fields):
        seen.append((event['type'], fields))
def listen():
    with app.connection() as connection:
        app.events.Receiver(connection, handlers={'*': note}).capture(limit=None, timeout=None)
threading.Thread(target=listen, daemon=True).start()
until('both are heard', lambda: len(app.control.inspect(timeout=0.5).ping() or {}) == 2)
until('events are heard', lambda: told.get(None))
folder = tempfile.mkdtemp()
def run(queue):
    def send(name, *args, **options):
        return app.send_task(name, args, queue=queue, **options)
    def spinning():
        result = send('process.spin')
        until('it runs', lambda: result.state == 'STARTED')
        return result, result.info['pid']
    def killed(by):
        result, pid = spinning()
        # The first SIGSEGV is taken by Rust, which looks whether a stack is full; at a real one the second follows at once.
        while os.path.exists(f'/proc/{pid}') and ') Z' not in open(f'/proc/{pid}/stat').read():
            os.kill(pid, by)
            time.sleep(0.05)
        return result
    def revoked(**how):
        result, pid = spinning()
        result.revoke(terminate=True, **how)
        until('its process is dead', lambda: not os.path.exists(f'/proc/{pid}') or ') Z' in open(f'/proc/{pid}/stat').read())
        return result
    cases = {
        'abort': lambda: send('process.end', 'abort'),
        'exit': lambda: send('process.end', 'exit'),
        'hard limit': lambda: send('process.spin', time_limit=1),
        # As the kernel does when there is no memory left, and when a program reads where it must not.
        'killed': lambda: killed(signal.SIGKILL),
        'segfault': lambda: killed(signal.SIGSEGV),
        'terminated': revoked,
        'terminated by SIGKILL': lambda: revoked(signal='SIGKILL'),
        'rejected': lambda: send('process.once', f'{folder}/{queue}'),
        'retried': lambda: send('process.again'),
    }
    seen = {}
    for name, case in cases.items():
        result = case()
        try:
            end = repr(result.get(timeout=30))
        except Exception as error:
            end = f'{type(error).__module__}: {error!r}'
        last = {'SUCCESS': 'task-succeeded', 'FAILURE': 'task-failed', 'REVOKED': 'task-revoked'}[result.state]
        until('its last event came', lambda: told.get(result.id, [('',)])[-1][0] == last)
        seen[name] = (re.sub(r'Job: \d+', 'Job: N', end), result.state, told[result.id])
    return seen
ours, theirs = run('celery'), run('py')
for name, case in ours.items():
    print(name, case)
    assert case == theirs[name], f'{name}\n{case}\n{theirs[name]}'
";

#[test]
fn what_kills_a_process_ends_its_task_as_with_a_python_worker() {
    let (redis, folder) = (Redis::start(), Folder::new());
    folder.write("app.py", PYTHON_APP);
    let theirs = Command::new(python())
        .args([
            "-m",
            "celery",
            "-A",
            "app",
            "worker",
            "-c",
            "1",
            "-E",
            "-Q",
            "py",
            "-n",
            "theirs@here",
        ])
        .current_dir(folder.path())
        .env("URL", redis.url())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut theirs = Process::from(theirs.unwrap());
    let mut ours = start(&redis, &["-c", "1", "-E"], &[]);
    let text = run_python(LOSSES, &redis.url());
    for words in [
        "Worker exited prematurely: signal 6 (SIGABRT) Job: N.",
        "Worker exited prematurely: exitcode 3 Job: N.",
        "Worker exited prematurely: signal 9 (SIGKILL) Job: N.",
        "Worker exited prematurely: signal 11 (SIGSEGV) Job: N.",
        "TimeLimitExceeded(1)",
        "('task-rejected', {'requeue': True})",
        "('task-retried', ",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    assert!(ours.process.is_running());
    // Both in peace, or the Python worker's own children stay.
    theirs.signal(Signal::SIGTERM);
    theirs.wait();
    assert_eq!(ours.stop(), Some(0));
}

/// States, streams, events, sub-tasks, retries, replacement: what a task says in a process is heard.
const TALK: &str = "
import sys, threading
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
events = []
def listen():
    with app.connection() as connection:
        app.events.Receiver(connection, handlers={'task-greeted': events.append}).capture(limit=None, timeout=None)
listening = lambda: app.backend.client.pubsub_numpat()
before = listening()
threading.Thread(target=listen, daemon=True).start()
until('somebody listens', lambda: listening() > before)
states = []
talk = app.send_task('process.talk')
child = talk.get(timeout=20, on_message=lambda meta: states.append((meta['status'], meta['result'])))
assert [c.id for c in talk.children] == [child], talk.children
assert app.AsyncResult(child).get(timeout=20) > 0
until('the event came', lambda: events)
assert events[0]['whom'] == 'everybody' and events[0]['uuid'] == talk.id, events
assert app.send_task('process.decide', ['retry']).get(timeout=20) == 2
assert type(raised(app.send_task('process.decide', ['reject']))).__name__ == 'Reject'
assert app.send_task('process.decide', ['replace']).get(timeout=20) > 0
assert repr(raised(app.send_task('process.decide', ['what']))) == \"ValueError('what')\"
assert 'on purpose' in repr(raised(app.send_task('process.end', ['panic'])))
assert app.send_task('process.soft', soft_time_limit=0.3).get(timeout=20) == 'in time'
assert app.send_task('process.soft', soft_time_limit=0.3, time_limit=0.3).get(timeout=20) == 'in time'
assert repr(raised(app.send_task('process.spin', soft_time_limit=0.3))) == 'SoftTimeLimitExceeded()'
print('heard')
";

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_heard_used_again_and_replaced() {
    let redis = Redis::start();
    let client = redis.client().await;
    let settings = [("ORCHESTRA_WORKER_POOL_RESTARTS", "true")];
    let worker = start(&redis, &["-c", "2", "--max-memory-per-child", "150000"], &settings);
    // Nothing before somebody wants one.
    assert!(children(&client, &worker).await.is_empty());
    let nap = client.send(Call::new("process.nap").arg(0)).await.unwrap();
    assert_eq!(nap.get::<i32>(LONG).await.unwrap(), worker.process.id());
    assert!(children(&client, &worker).await.is_empty());
    run_python(TALK, &redis.url());

    let run = async |call: Call| client.send(call).await.unwrap().get::<u64>(LONG).await.unwrap();
    let first = run(Call::new("process.pid")).await;
    assert_eq!(run(Call::new("process.pid")).await, first);
    assert!(children(&client, &worker).await.contains(&first));
    // One that dies while it is idle is nobody's failure.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(first).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    let second = run(Call::new("process.pid")).await;
    assert_ne!(second, first);
    // Too much memory, and it has run its last task.
    let fat = run(Call::new("process.eat").arg(200)).await;
    assert_ne!(run(Call::new("process.pid")).await, fat);
    let control = async |method: &str, arguments: Value| {
        client
            .inspect(method, &arguments, None, Duration::from_secs(2))
            .await
            .unwrap();
    };
    let before = run(Call::new("process.pid")).await;
    control("pool_restart", json!({})).await;
    let after = run(Call::new("process.pid")).await;
    assert_ne!(after, before);
    // More memory than there is: the process ends, the worker does not.
    let huge = client.send(Call::new("process.eat").arg(1_u64 << 40)).await.unwrap();
    let Err(Error::Failed { exception, .. }) = huge.get::<Value>(LONG).await else {
        panic!("there was memory")
    };
    assert_eq!(exception.name, "WorkerLostError");
    // What it says comes through while it runs.
    let talk = client.send(Call::new("process.talk")).await.unwrap();
    talk.get::<String>(LONG).await.unwrap();
    let stream = talk.stream("0").await.unwrap();
    assert!(stream[0].entry.get().contains("hello"), "{stream:?}");
    // No more of them than places: three at once, then one.
    control("pool_grow", json!({"n": 1})).await;
    let spins = [1, 2, 3].map(|_| Call::new("process.spin").time_limit(Duration::from_secs(60)));
    let spins = client.send_many(&spins).await.unwrap();
    for spin in &spins {
        runs(spin).await;
    }
    assert_eq!(children(&client, &worker).await.len(), 3);
    for spin in &spins {
        spin.revoke(true).await.unwrap();
    }
    control("pool_shrink", json!({"n": 2})).await;
    run(Call::new("process.pid")).await;
    until("one is left", async || children(&client, &worker).await.len() == 1).await;
    // A worker that dies takes its children along.
    let [child] = children(&client, &worker).await[..] else {
        panic!()
    };
    let mut worker = worker;
    worker.process.kill();
    until("it is gone", async || {
        !std::path::Path::new(&format!("/proc/{child}")).exists()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_processes_runs_everything_and_replaces_them_by_count() {
    let redis = Redis::start();
    let client = redis.client().await;
    let settings = [("ORCHESTRA_WORKER_POOL_RESTARTS", "true")];
    let arguments = ["-c", "1", "-P", "prefork", "--max-tasks-per-child", "2"];
    let mut worker = start(&redis, &arguments, &settings);
    assert_eq!(pool(&client).await["max-tasks-per-child"], 2);
    // They are there before a task is, also in place of those that end.
    let first = children(&client, &worker).await;
    assert_eq!(first.len(), 1);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(first[0]).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    let replaced = async |old: &[u64], size: usize| {
        let mut now = Vec::new();
        until("they are replaced", async || {
            now = children(&client, &worker).await;
            now.len() == size && !now.iter().any(|pid| old.contains(pid))
        })
        .await;
        now
    };
    let second = replaced(&first, 1).await;
    let control = async |method: &str| {
        client
            .inspect(method, &json!({}), None, Duration::from_secs(2))
            .await
            .unwrap()
    };
    control("pool_grow").await;
    assert_eq!(children(&client, &worker).await.len(), 2);
    control("pool_restart").await;
    let third = replaced(&second, 2).await;
    control("pool_shrink").await;
    until("one is left", async || children(&client, &worker).await.len() == 1).await;
    assert!(third.contains(&children(&client, &worker).await[0]));
    let mut pids = Vec::new();
    for _ in 0..4 {
        let pending = client.send(Call::new("process.nap").arg(0)).await.unwrap();
        pids.push(pending.get::<i32>(LONG).await.unwrap());
    }
    assert!(
        pids[0] == pids[1] && pids[1] != pids[2] && pids[2] == pids[3],
        "{pids:?}"
    );
    assert!(!pids.contains(&worker.process.id()));
    // A cold stop kills what runs, and with it its process.
    let spin = client.send(Call::new("process.spin")).await.unwrap();
    runs(&spin).await;
    let child = *children(&client, &worker).await.last().unwrap();
    worker.process.signal(Signal::SIGQUIT);
    assert_eq!(worker.process.wait(), Some(1));
    until("it is gone", async || {
        !std::path::Path::new(&format!("/proc/{child}")).exists()
    })
    .await;
}

/// P-113, P-114: a cold stop waits for what runs where it is told to, as long as it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn a_soft_stop_lets_short_tasks_end_and_gives_back_long_ones() {
    let redis = Redis::start();
    let client = redis.client().await;
    let settings = [
        ("ORCHESTRA_WORKER_SOFT_SHUTDOWN_TIMEOUT", "5"),
        ("REMAP_SIGTERM", "SIGQUIT"),
    ];
    let mut worker = start(&redis, &["-c", "2", "-E"], &settings);
    // It still runs when it is looked at, and ends before the stop does.
    let short = client.send(Call::new("process.nap").arg(3)).await.unwrap();
    let long = client.send(Call::new("process.nap").arg(60)).await.unwrap();
    for pending in [&short, &long] {
        runs(pending).await;
    }
    let began = Instant::now();
    worker.process.signal(Signal::SIGTERM);
    assert_eq!(worker.process.wait(), Some(1), "{}", worker.log());
    assert!(began.elapsed() >= Duration::from_millis(4900), "{:?}", began.elapsed());
    assert!(
        worker
            .log()
            .contains("Initiating Soft Shutdown, terminating in 5 seconds")
    );
    short.get::<u32>(LONG).await.unwrap();
    assert_eq!(redis.length("LLEN", "celery"), 1, "{}", worker.log());

    // With nothing left to wait for it does not wait; the next signal ends the waiting.
    redis.command::<i64>(&["DEL", "celery"]);
    let mut idle = start(&redis, &[], &[("ORCHESTRA_WORKER_SOFT_SHUTDOWN_TIMEOUT", "60")]);
    idle.process.signal(Signal::SIGQUIT);
    assert_eq!(idle.process.wait(), Some(1));
    let settings = [
        ("ORCHESTRA_WORKER_SOFT_SHUTDOWN_TIMEOUT", "60"),
        ("ORCHESTRA_WORKER_ENABLE_SOFT_SHUTDOWN_ON_IDLE", "true"),
    ];
    let mut idle = start(&redis, &[], &settings);
    idle.process.signal(Signal::SIGQUIT);
    idle.wait_for_log("Initiating Soft Shutdown");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(idle.process.is_running());
    idle.process.signal(Signal::SIGQUIT);
    assert_eq!(idle.process.wait(), Some(1));
}

/// `worker_cancel_long_running_tasks_on_connection_loss`: late acks only.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acknowledged_ends_with_the_connection_if_that_is_wanted() {
    let mut redis = Redis::start();
    let settings = [("ORCHESTRA_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS", "true")];
    let worker = start(&redis, &["-c", "2", "-E"], &settings);
    let client = redis.client().await;
    let late = client.send(Call::new("process.nap").arg(4)).await.unwrap();
    let early = client
        .send(Call::new("process.spin").time_limit(Duration::from_secs(60)))
        .await
        .unwrap();
    for pending in [&late, &early] {
        runs(pending).await;
    }
    redis.stop();
    worker.wait_for_log("was cancelled");
    redis.start_again();
    let client = redis.client().await;
    // It ran again.
    client.result(late.id()).get::<u32>(LONG).await.unwrap();
    assert_eq!(worker.log().matches("process.nap").count(), 4, "{}", worker.log());
    assert_eq!(client.result(early.id()).state().await.unwrap().as_str(), "STARTED");
    assert!(!matches!(
        client.result(early.id()).get::<Value>(Duration::ZERO).await,
        Err(Error::Revoked(_))
    ));
}
