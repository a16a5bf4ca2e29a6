//! Rows of docs/compatibility.md that are too small for a test each: odd messages that a Python client does not send, and
//! what its command line does to our queues.

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
assert store.llen('celery.dead') == 1
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
