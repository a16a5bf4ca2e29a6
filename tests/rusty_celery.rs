//! The feature `rusty-celery`: tasks of that crate in our worker, its producer before our worker, our client and
//! Celery's before its worker. Run by `make rusty-celery`; a program of its own, so that the other tests do not build
//! that crate.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    dead_code,
    reason = "tests fail loudly and may block; they share the support of the others"
)]

#[path = "it/support.rs"]
mod support;

use std::process::Command;

use orchestra::client::Call;
use support::{Folder, LONG, Redis, Worker, program, run_python, until};

const PROGRAM: &str = "
import sys
from celery import Celery, chain, chord
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
s = lambda name, *args, **kwargs: app.signature(name, args, kwargs)
assert s('add', 1, 2).delay().get(timeout=20) == 3
assert s('add', 1, y=2).delay().get(timeout=20) == 3
assert 'Error' in repr(raised(s('add', 1).delay())) and type(raised(s('add', 1, 2, 3).delay())) is TypeError
# What it fails with is tried again, as that crate's worker does; then it is a failure.
assert s('flaky', 2).delay().get(timeout=20) == 2
error = raised(s('flaky', 9).delay())
assert type(error).__name__ == 'ExpectedError' and 'try 3' in str(error), repr(error)
error = raised(s('buggy').delay())
assert type(error).__name__ == 'UnexpectedError' and 'it cannot be read' in str(error), repr(error)
assert type(raised(s('long', 20).delay())).__name__ == 'TimeoutError'
assert s('long', 0).delay().get(timeout=20) is None
# What that crate's worker drops: links, chains, chords, priorities, compression.
assert chain(s('add', 1, 2), s('add', 3))().get(timeout=20) == 6
assert chain(chord([s('long', 0), s('long', 0)], s('add', 4, 5).set(immutable=True)))().get(timeout=20) == 9
assert s('add', 1, 2).apply_async(priority=9, compression='gzip').get(timeout=20) == 3
assert app.AsyncResult(s('sender', 5).delay().get(timeout=20)).get(timeout=20) == 6
";

#[test]
fn its_tasks_run_in_our_worker_unchanged() {
    let redis = Redis::start();
    let _worker = Worker::start_program("rusty_celery", &redis, &["-c", "4"], &[]);
    run_python(PROGRAM, &redis.url());
}

#[tokio::test(flavor = "multi_thread")]
async fn its_producer_reaches_our_worker() {
    let redis = Redis::start();
    let worker = Worker::start_program("rusty_celery", &redis, &["-c", "1"], &[]);
    let sent = Command::new(program("rusty_celery"))
        .args(["send", &redis.url(), "20", "22"])
        .output()
        .unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let id = String::from_utf8_lossy(&sent.stdout).trim().to_owned();
    let sum: i64 = redis.client().await.result(id).get(LONG).await.unwrap();
    assert_eq!(sum, 42, "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_and_celerys_reach_its_worker() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let theirs = Command::new(program("rusty_celery"))
        .args(["theirs", &redis.url()])
        .spawn()
        .unwrap();
    let _theirs = support::Process::from(theirs);
    let (rust, python) = (folder.path().join("rust"), folder.path().join("python"));
    let call = Call::new("note").arg(rust.display().to_string()).arg("from orchestra");
    redis.client().await.send(call).await.unwrap();
    let program = format!(
        "import sys\nfrom celery import Celery\n\
         Celery(broker=sys.argv[1]).send_task('note', ({python:?},), {{'text': 'from Celery'}})\n"
    );
    run_python(&program, &redis.url());
    for (path, text) in [(&rust, "from orchestra"), (&python, "from Celery")] {
        until("it has run there, and is written", async || {
            std::fs::read_to_string(path).is_ok_and(|written| written == text)
        })
        .await;
    }
}
