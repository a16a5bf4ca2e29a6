//! Settings and options of Celery's that say how a worker takes and runs tasks.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orchestra::client::{Call, Signature};
use serde_json::Value;

use crate::support::{Folder, LONG, Redis, Worker, program, run_python, until};

/// P-108: without it a task that was acknowledged early makes room for the next while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn p_108_without_prefetch_what_cannot_run_stays_in_its_queue() {
    let redis = Redis::start();
    let client = redis.client().await;
    let _worker = Worker::start(&redis, &["-c", "1", "--disable-prefetch"]);
    // The first is still running when it is looked at, also on a busy machine.
    let naps = [5000, 1, 1].into_iter().zip(0..);
    let calls: Vec<Call> = naps.map(|(ms, n)| Call::new("hello.nap").arg(ms).arg(n)).collect();
    let naps = client.send_many(&calls).await.unwrap();
    until("one runs", async || redis.length("LLEN", "celery") == 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        (redis.length("LLEN", "celery"), redis.length("HLEN", "unacked")),
        (2, 0)
    );
    for (n, nap) in (0..).zip(naps) {
        assert_eq!(nap.get::<u64>(LONG).await.unwrap(), n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p_096_no_more_tasks_wait_for_their_eta_than_is_allowed() {
    let redis = Redis::start();
    let client = redis.client().await;
    let settings = [("ORCHESTRA_WORKER_ETA_TASK_LIMIT", "6")];
    let _worker = Worker::start_with(&redis, &["-c", "1"], &settings);
    let later = Duration::from_secs(3600);
    let calls: Vec<Call> = (0..10)
        .map(|n| Call::new("hello.add").arg(n).countdown(later))
        .collect();
    client.send_many(&calls).await.unwrap();
    until("six are held", async || redis.length("HLEN", "unacked") == 6).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        (redis.length("LLEN", "celery"), redis.length("HLEN", "unacked")),
        (4, 6)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p_116_what_follows_has_the_priority_that_settings_give_it() {
    let redis = Redis::start();
    let client = redis.client().await;
    // What a task inherits wins over its own (`celery.app.trace`: an option of the call).
    for (setting, value, steps, own_steps) in [
        (
            "ORCHESTRA_TASK_INHERIT_PARENT_PRIORITY",
            "true",
            "\x06\x166",
            "\x06\x166",
        ),
        ("ORCHESTRA_TASK_DEFAULT_PRIORITY", "3", "\x06\x163", "\x06\x169"),
        ("ORCHESTRA_TASK_DEFAULT_RATE_LIMIT", "100/s", "", "\x06\x169"),
    ] {
        let mut worker = Worker::start_with(&redis, &[], &[(setting, value)]);
        let follow = |name: &str| Signature::new("hello.add").option("queue", name);
        let own = follow("own").option("priority", 9);
        let call = Call::new("hello.add")
            .arg(1)
            .priority(6)
            .link(follow("follow"))
            .link(own);
        client.send(call).await.unwrap().get::<Value>(LONG).await.unwrap();
        let queue = format!("follow{steps}");
        until(setting, async || redis.length("LLEN", &queue) == 1).await;
        assert_eq!(redis.length("LLEN", &format!("own{own_steps}")), 1);
        worker.stop();
        redis.command::<()>(&["FLUSHALL"]);
    }
}

/// `worker_direct`, failures that are kept for another time, and what monitors hear of a message that came twice
/// (P-110, P-145, P-111).
const PYTHON: &str = r#"
import json, sys, threading
from celery import Celery
from celery.utils.nodenames import worker_direct
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
app.conf.update(result_extended=True)
direct = app.send_task('hello.add', (1, 2), queue=worker_direct('w1@here'), shadow='shown.so')
assert direct.get(timeout=20) == 3
names = {queue['name']: queue for queue in app.control.inspect(timeout=2).active_queues()['w1@here']}
assert names['w1@here.dq2']['exchange']['name'] == 'C.dq2', names
assert names['w1@here.dq2']['routing_key'] == 'w1@here'
redis = app.backend.client
failed = app.send_task('hello.add', (), queue='other')
raised(failed)
assert 0 < redis.ttl('celery-task-meta-' + failed.id) <= 50, redis.ttl('celery-task-meta-' + failed.id)
assert redis.ttl('celery-task-meta-' + direct.id) > 50
events = []
def listen():
    with app.connection() as connection:
        app.events.Receiver(connection, handlers={'task-succeeded': events.append}).capture(limit=None, timeout=None)
before = redis.pubsub_numpat()
threading.Thread(target=listen, daemon=True).start()
until('somebody listens', lambda: redis.pubsub_numpat() > before)
# With a result, and without: then the worker itself remembers.
for options in ({}, {'ignore_result': True}):
    first = app.send_task('hello.sleep', (0,), queue='hidden', **options)
    raw = json.loads(redis.lindex('hidden', 0))
    redis.lpush('other', json.dumps(raw))
    until('it ran', lambda: len([e for e in events if e['uuid'] == first.id]) == 1)
    raw['headers']['redelivered'] = True
    redis.lpush('other', json.dumps(raw))
    until('it came again', lambda: len([e for e in events if e['uuid'] == first.id]) == 2)
"#;

#[test]
fn p_110_p_111_p_145_a_queue_of_its_own_failures_and_messages_that_come_twice() {
    let redis = Redis::start();
    let settings = [
        ("ORCHESTRA_WORKER_DIRECT", "true"),
        ("ORCHESTRA_RESULT_FAILURE_EXPIRES", "50"),
        ("ORCHESTRA_WORKER_DEDUPLICATE_SUCCESSFUL_TASKS", "true"),
    ];
    let worker = Worker::start_with(&redis, &["-Q", "other", "-n", "w1@here", "-E"], &settings);
    run_python(PYTHON, &redis.url());
    let log = worker.log();
    // P-056.
    assert_eq!(log.matches("Task shown.so[").count(), 2, "{log}");
    assert_eq!(log.matches("already completed successfully").count(), 2, "{log}");
    assert_eq!(log.matches("succeeded in").count(), 3, "{log}");
}

/// In the background, with a pidfile that keeps a second one away, after the queue was emptied.
#[test]
fn a_worker_is_detached_and_alone_and_begins_with_an_empty_queue() {
    let (redis, folder) = (Redis::start(), Folder::new());
    for _ in 0..3 {
        redis.command::<i64>(&["LPUSH", "celery", "no message"]);
    }
    let url = redis.url();
    let run = |arguments: &[&str]| {
        let out = Command::new(program("hello_task"))
            .args([
                "worker",
                "-b",
                &url,
                "-n",
                "w1@here",
                "-l",
                "INFO",
                "--pidfile",
                "%n.pid",
            ])
            .args(arguments)
            .current_dir(folder.path())
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, said) = run(&["--detach", "-f", "%n.log", "--purge", "-c", "auto"]);
    assert!(code == Some(0) && said.contains("ready"), "{code:?} {said}");
    assert!(said.contains("erased 3 messages"), "{said}");
    assert_eq!(redis.length("LLEN", "celery") + redis.length("LLEN", "celery.dead"), 0);
    let pidfile = folder.path().join("w1.pid");
    let pid: i32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    let (code, said) = run(&[]);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains(&format!("process {pid} in it is running")), "{said}");
    // Another session: it has left the terminal.
    assert_eq!(nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap().as_raw(), pid);
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    let gone = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        !pidfile.exists()
    });
    assert!(gone, "the pidfile stays");
    let log = std::fs::read_to_string(folder.path().join("w1.log")).unwrap();
    assert!(log.contains("warm stop"), "{log}");
    // A disk that is full is told, and leaves no empty file that would be taken for a stale one.
    let pids = Folder::new();
    let full = format!(
        "trap '' XFSZ; ulimit -f 0; exec {} -b {url} --quiet --pidfile {}/w.pid",
        program("hello_task").display(),
        pids.path().display()
    );
    let out = Command::new("sh").args(["-c", &full]).env_clear().output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.code() == Some(73) && said.contains("cannot write the pidfile"),
        "{:?} {said}",
        out.status
    );
    assert_eq!(std::fs::read_dir(pids.path()).unwrap().count(), 0);
    // A start that fails says why, and how.
    let (code, said) = run(&["--detach", "-P", "prefrok"]);
    assert!(code == Some(2) && said.contains("prefrok"), "{code:?} {said}");
}
