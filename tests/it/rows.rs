//! Rows of docs/compatibility.md that are too small for a test each: odd messages that a Python client does not send,
//! and what its command line does to our queues.

use std::process::Command;

use crate::support::{Redis, Worker, python, run_python};

const PUSH: &str = r#"
import json, sys, uuid
from celery import Celery
from celery.result import AsyncResult
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
store = app.backend.client
def push(body, headers, queue='celery', tag=None, **properties):
    info = {'exchange': '', 'routing_key': queue}
    properties = {'delivery_tag': tag or str(uuid.uuid4()), 'delivery_info': info, 'priority': 0, **properties}
    store.lpush(queue, json.dumps({'body': json.dumps(body), 'content-type': 'application/json', 'content-encoding': 'utf-8',
                                   'headers': headers, 'properties': properties}))
def value(id):
    return AsyncResult(id, app=app).get(timeout=20)
# P-014: no headers at all is protocol 1.
push({'task': 'hello.add', 'id': 'no-headers', 'args': [1, 2], 'kwargs': {}}, None)
assert value('no-headers') == 3
# P-020, P-040: copies that share a delivery tag, on two queues, both run and both go.
for n, queue in enumerate(('celery', 'other')):
    push([[n, 1], {}, {}], {'task': 'hello.add', 'id': f'twin-{n}'}, queue, tag='twins')
assert value('twin-0') == 1 and value('twin-1') == 2
# P-058: the message says that no result is wanted; null leaves it to the task.
push([[5, 5], {}, {}], {'task': 'hello.add', 'id': 'unwanted', 'ignore_result': True})
push([[5, 5], {}, {}], {'task': 'hello.add', 'id': 'wanted', 'ignore_result': None})
assert value('wanted') == 10 and not store.exists('celery-task-meta-unwanted')
# P-072: a broken ETA.
push([[5, 5], {}, {}], {'task': 'hello.add', 'id': 'broken', 'eta': 'garbage'})
error = raised(AsyncResult('broken', app=app))
assert type(error).__name__ == 'InvalidTaskError' and 'garbage' in str(error), repr(error)
until('it is kept', lambda: store.llen('celery.dead') == 1)
# P-013: a body whose encoding is not said is text.
for n, encoding in enumerate(({}, {'body_encoding': None})):
    push([[n, 3], {}, {}], {'task': 'hello.add', 'id': f'plain-{n}'}, **encoding)
    assert value(f'plain-{n}') == n + 3
until('nothing is held', lambda: not store.exists('unacked') and not store.exists('unacked_index'))
# P-051: for `celery purge`.
for priority in 0, 6:
    app.send_task('hello.add', (1, 1), queue='full', priority=priority)
assert store.llen('full') == 1 and store.llen('full\x06\x166') == 1
"#;

#[test]
fn p_014_p_020_p_040_p_049_p_051_p_058_p_072_odd_messages_and_a_purge() {
    // P-049: a password alone is that of the user `default`.
    let redis = Redis::start_with(&[&["--requirepass", "secret"]]);
    let url = format!("redis://:secret@127.0.0.1:{}/0", redis.port);
    let _worker = Worker::start_at(&url, &["-Q", "celery,other", "-c", "2"]);
    run_python(PUSH, &url);
    let purged = Command::new(python())
        .args(["-m", "celery", "-b", &url, "purge", "-f", "-Q", "full"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&purged.stdout).into_owned();
    assert!(
        said.contains("2 messages"),
        "{said}{}",
        String::from_utf8_lossy(&purged.stderr)
    );
}

/// P-031 to P-033, with the tasks of `examples/conformance_worker/ends.rs`.
const RESTORED: &str = r#"
import json, sys, time, uuid
from celery import Celery
from kombu import Exchange, Queue
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
store = app.backend.client
# What is put back comes behind what waits, and keeps its priority.
app.send_task('end.nap', (1,), queue='ours')
ids = [app.send_task('end.' + name, queue='ours', priority=6).id for name in ('requeue', 'well', 'well')]
for id in ids:
    app.AsyncResult(id).get(timeout=20)
# Gone from `unacked` it is somebody else's, and is not put back.
slow = app.send_task('end.slow', queue='ours', time_limit=1)
until('it is held', lambda: store.hlen('unacked') == 1)
store.delete('unacked', 'unacked_index')
assert 'TimeLimitExceeded' in repr(raised(slow))
time.sleep(0.5)
assert store.llen('ours') == 0 and store.hlen('unacked') == 0
# What a dead Python worker held goes to every queue that is bound for its routing key.
work = Exchange('work', type='direct')
for name in 'ours', 'copies':
    Queue(name, work, routing_key='now')(app.connection_for_write().default_channel).declare()
body = json.dumps([[], {}, {}])
envelope = {'body': body, 'content-type': 'application/json', 'content-encoding': 'utf-8',
            'headers': {'task': 'end.well', 'id': 'restored'},
            'properties': {'delivery_tag': 'dead', 'delivery_info': {'exchange': 'work', 'routing_key': 'now'}, 'priority': 6}}
store.hset('unacked', 'dead', json.dumps([envelope, 'work', 'now']))
store.zadd('unacked_index', {'dead': time.time() - 100})
assert app.AsyncResult('restored').get(timeout=20) == 1
[copy] = store.lrange('copies\x06\x166', 0, -1)
assert json.loads(copy)['properties']['delivery_info']['redelivered'] is True, copy
"#;

#[test]
fn p_031_p_032_p_033_what_goes_back_goes_where_it_came_from() {
    let redis = Redis::start();
    let words = ["ends", "--quiet", "-Q", "ours", "-c", "1", "--disable-prefetch"];
    let environment = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 3}")];
    let worker = Worker::spawn_words("conformance_worker", &words, &redis, &[], &environment);
    worker.wait_for_log("orchestra-worker: ready");
    run_python(RESTORED, &redis.url());
    let log = worker.log();
    let order: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" received"))
        .filter_map(|line| line.split("end.").nth(1)?.split('[').next())
        .collect();
    assert_eq!(order[..5], ["nap", "requeue", "well", "well", "requeue"], "{log}");
}
