//! What follows a task: composed by the stock Python client or in Rust, followed by our worker, alone and together with
//! a Python worker.

use std::process::{Command, Stdio};

use orchestra::canvas::chord;
use orchestra::client::Signature;

use crate::support::{Folder, Process, Redis, Worker, program, python, run_python, until};

const HEAD: &str = "
import sys, time
from celery import Celery, chain, chord, group, states
from celery.exceptions import ChordError
from celery.result import AsyncResult
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
def s(name, *args, **kwargs):
    return app.signature('flow.' + name, args, kwargs)
def si(name, *args, **kwargs):
    return s(name, *args, **kwargs).set(immutable=True)
def value(result):
    return result.get(timeout=20)
";

fn python_says(redis: &Redis, program: &str) {
    let program = format!("{HEAD}{program}\nprint('all good')\n");
    assert_eq!(run_python(&program, &redis.url()), "all good\n");
}

#[test]
fn p_116_to_p_123_chains_groups_and_callbacks() {
    let redis = Redis::start();
    let _worker = Worker::start_program("workflow", &redis, &["-c", "2"], &[]);
    python_says(
        &redis,
        r#"
result = chain(s('add', 1, 2), s('add', 3), s('add', 4))()
assert value(result) == 10 and value(result.parent) == 6 and value(result.parent.parent) == 3
first = result.parent.parent
assert [child.id for child in first.children] == [result.parent.id]
assert value(group(s('add', n, n) for n in range(20))()) == [2 * n for n in range(20)]
assert value(chain(s('add', 1, 1), group(s('add', 1), s('add', 2)))()) == [3, 4]
assert value(chain(s('add', 1, 1), group(s('add', 1), s('add', 2)), s('sum'), s('add', 1))()) == 8
assert value(chain(s('add', 1, 1), si('add', 5, 5))()) == 10
# A callback runs with the result, and is a child.
result = s('add', 1, 1).apply_async(link=[s('note').set(task_id='linked'), s('add', 1).set(task_id='linked too')])
assert value(result) == 2 and value(AsyncResult('linked', app=app)) == 2 and value(AsyncResult('linked too', app=app)) == 3
assert len(result.children) == 1 and {child.id for child in result.children[0].children} == {'linked', 'linked too'}
# A failed step fails all that come after it, and an error callback gets the id.
result = chain(s('add', 1, 1), s('fail'), s('add', 1).set(task_id='after'))
result.link_error(s('note').set(task_id='told'))
result = result()
error = raised(result)
assert type(error) is ValueError and str(error) == '2', repr(error)
assert AsyncResult('after', app=app).state == states.FAILURE
assert value(AsyncResult('told', app=app)) == result.parent.id
# One that takes the request, the exception and the traceback runs where the failure is handled.
result = s('fail', 'no').apply_async(link_error=s('apology'))
assert type(raised(result)) is ValueError
sorry = AsyncResult('sorry-' + result.id, app=app)
assert value(sorry) == '"flow.fail" said "no"', value(sorry)
# A task that nobody knows fails what waits for it.
assert 'unknown' in repr(raised(chain(s('unknown'), s('add', 1))()))
"#,
    );
}

#[test]
fn p_126_to_p_142_chords_replacement_and_built_in_tasks() {
    let redis = Redis::start();
    let _worker = Worker::start_program("workflow", &redis, &["-c", "4"], &[]);
    python_says(
        &redis,
        r#"
import redis
store = redis.Redis.from_url(sys.argv[1])
assert value(chord([s('add', n, 1) for n in range(50)])(s('sum'))) == 1275
# Nothing of a chord is left behind but the note that it is done.
until('only that is left', lambda: {key.rsplit(b'.', 1)[-1] for key in store.keys('celery-taskset-meta-*.*')} <= {b'c'})
assert value(chord([], body=s('sum')).apply_async()) == 0
# Chords in chains in groups, in order.
nested = chain(s('add', 0, 1), group(s('add', 1), chain(s('add', 2), group(s('add', 3), s('add', 4)))), s('note'))
assert value(nested()) == [2, [6, 7]], value(nested())
inner = chord([s('add', 1, 1), s('add', 2, 2)], s('sum'))
assert value(chord([inner, s('add', 4, 4)], s('note'))()) == [6, 8]
# A failed member fails the body, with the reason.
result = chord([s('add', 1, 1), s('fail', 'why').set(task_id='member')])(s('sum').set(task_id='body').on_error(s('note').set(task_id='told')))
error = raised(result)
assert type(error) is ValueError, repr(error)
until('the body failed', lambda: result.state == states.FAILURE)
assert type(result.result) is ChordError and str(result.result) == "Dependency member raised ValueError('why')", repr(result.result)
assert value(AsyncResult('told', app=app)) == 'body'
# A body that Redis refuses fails: it does not wait for ever.
store.set('no-list', 'text')
result = chord([s('add', 1, 1)])(s('sum').set(queue='no-list'))
until('the body failed', lambda: result.state == states.FAILURE)
assert type(result.result) is ChordError and 'Callback error' in str(result.result), repr(result.result)
# Both members of a body that is a group fail with the reason itself.
result = chord([s('fail', 'why')])(group(s('add', 1), s('add', 2)))
until('both failed', lambda: [r.state for r in result.results] == [states.FAILURE] * 2)
assert type(raised(result)) is ValueError
# A revoked member fails the body as well.
result = chord([s('add', 1, 1), s('careful', 0, 1).set(countdown=30, task_id='revoked')])(s('sum'))
app.control.revoke('revoked', reply=True, timeout=2)
until('the body failed', lambda: result.state == states.FAILURE)
assert 'TaskRevokedError' in str(result.result)
# A task that puts a group in its place, with what follows it.
assert value(s('triple', 4).apply_async()) == [4, 4, 4]
assert value(chain(s('triple', 4), s('sum'), s('add', 1))()) == 13
assert value(chord([s('triple', 1), s('add', 1, 1)])(s('note'))) == [[1, 1, 1], 2]
assert sorted(value(chord([s('grow', 3), s('add', 5, 5)])(s('note')))) == [0, 1, 2, 3, 10]
from celery.canvas import chunks, xmap, xstarmap
assert value(xstarmap(s('add'), [(1, 1), (2, 2)], app=app).apply_async()) == [2, 4]
assert value(xmap(s('note'), [1, 'x', None], app=app).apply_async()) == [1, 'x', None]
assert value(chunks(s('add'), [(n, n) for n in range(10)], 4, app=app).group()()) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
"#,
    );
}

#[test]
fn a_workflow_composed_in_rust_gives_what_it_gives_in_python() {
    let redis = Redis::start();
    let _worker = Worker::start_program("workflow", &redis, &["-c", "2"], &[]);
    let out = Command::new(program("workflow"))
        .args(["run", &redis.url()])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "the sum of it all: 70\n",
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The stock worker, with a task of the same name as one of ours and one of its own.
const PYTHON_WORKER: &str = "
import os
from celery import Celery
app = Celery(broker=os.environ['URL'], backend=os.environ['URL'])
@app.task(name='flow.add')
def add(x, y):
    return x + y
@app.task(name='python.double')
def double(x):
    return 2 * x
";

#[test]
fn p_128_a_chord_is_counted_together_with_a_python_worker() {
    let redis = Redis::start();
    let _ours = Worker::start_program("workflow", &redis, &["-Q", "celery,ours"], &[]);
    let folder = Folder::new();
    folder.write("stock.py", PYTHON_WORKER);
    let mut stock = Command::new(python());
    stock
        .args(["-m", "celery", "-A", "stock", "worker", "-P", "threads", "-c", "2"])
        .args(["-Q", "celery,stock", "-n", "stock@here", "-l", "ERROR"])
        .current_dir(folder.path())
        .env("URL", redis.url())
        .stdout(Stdio::null());
    let _stock = Process::from(stock.spawn().unwrap());
    python_says(
        &redis,
        r#"
until('the stock worker is there', lambda: app.send_task('python.double', (2,), queue='stock').get(timeout=20) == 4)
for _ in range(20):
    # Members on either, and on whoever is quicker; the body on the one and on the other.
    header = [s('add', n, n).set(queue=('ours', 'stock', 'celery')[n % 3]) for n in range(12)]
    assert value(chord(header)(s('sum').set(queue='ours'))) == 132
    members = [app.signature('python.double', (n,), queue='stock') for n in range(3)] + [s('add', 1, 1).set(queue='ours')]
    assert value(chord(members)(s('note').set(queue='ours'))) == [0, 2, 4, 2]
    assert value(chain(s('add', 1, 1).set(queue='stock'), s('add', 1).set(queue='ours'), app.signature('python.double', queue='stock'))()) == 6
"#,
    );
}

/// The body of a chord is not lost with the worker that was about to send it.
#[tokio::test(flavor = "multi_thread")]
async fn no_chord_is_lost_with_a_killed_worker() {
    let redis = Redis::start();
    let environment = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 1}")];
    let start = || Worker::start_program("workflow", &redis, &["-c", "4"], &environment);
    let mut worker = start();
    let url = redis.url();
    let client = std::thread::spawn(move || {
        let program = format!(
            "{HEAD}{}",
            r#"
results = [chord([s('careful', 20, n) for n in range(8)])(s('sum')) for _ in range(25)]
assert [r.get(timeout=120) for r in results] == [28] * 25
print('all good')
"#
        );
        run_python(&program, &url)
    });
    for round in 0..8 {
        tokio::time::sleep(std::time::Duration::from_millis(150 + 90 * round)).await;
        worker.process.kill();
        worker = start();
    }
    assert_eq!(
        tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap(),
        "all good\n"
    );
    until("nothing is held", async || {
        redis.length("HLEN", "unacked") == 0 && redis.length("LLEN", "celery") == 0
    })
    .await;
    assert_eq!(redis.length("LLEN", "celery.dead"), 0);
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
}

/// A member whose count cannot be told to Redis does not keep the worker from stopping.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_counts_can_be_stopped_without_redis() {
    let mut redis = Redis::start();
    let mut worker = Worker::start_program("workflow", &redis, &["-c", "1"], &[]);
    let careful = |ms: u64| Signature::new("flow.careful").arg(ms).arg(1);
    let client = redis.client().await;
    let steps = chord([careful(1500)], Signature::new("flow.sum"));
    client.apply(steps).await.unwrap();
    until("it runs", async || redis.length("HLEN", "unacked") == 1).await;
    redis.stop();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
}
