//! What a Python sender can put into a message: the stock client in each of its ways to write one.

use crate::support::{Redis, Worker, run_python};

const HEAD: &str = "
import sys
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
def raised(result):
    try:
        value = result.get(timeout=20)
    except Exception as error:
        return error
    raise SystemExit(f'no exception but {value!r}')
";

#[test]
fn protocol_1_is_served() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &["-c", "2", "-E"]);
    let program = HEAD.to_owned()
        + "
app.conf.task_protocol = 1
sent = []
def note(body, headers=None, **_):
    sent.append('task' in (headers or {}))
from celery.signals import before_task_publish
before_task_publish.connect(note)
assert app.send_task('hello.add', (2, 3)).get(timeout=20) == 5
assert sent == [False], sent
assert app.send_task('hello.add', kwargs={'x': 4}, headers={'x-mine': 1}).get(timeout=20) == 4
assert app.send_task('hello.add', (1,), countdown=0.1, compression='gzip').get(timeout=20) == 1
# Retried twice: what the worker sends itself is read again.
assert app.send_task('hello.flaky', (2,)).get(timeout=20) == 2
assert app.send_task('hello.flaky', (2,), compression='gzip').get(timeout=20) == 2
assert type(raised(app.send_task('hello.unknown'))).__name__ == 'NotRegistered'
assert type(raised(app.send_task('hello.add', (1,), expires=-1))).__name__ == 'TaskRevokedError'
assert type(raised(app.send_task('hello.sleep', (60,), time_limit=1))).__name__ == 'TimeLimitExceeded'
error = raised(app.send_task('hello.add', (1, 2, 3)))
assert type(error) is TypeError, repr(error)
# An app that is not in UTC.
there = Celery(broker=sys.argv[1], backend=sys.argv[1])
there.conf.update(task_protocol=1, enable_utc=False, timezone='Asia/Tokyo')
assert there.send_task('hello.add', (1,), countdown=0.1).get(timeout=20) == 1
print('all good')
";
    assert_eq!(run_python(&program, &redis.url()), "all good\n", "{}", worker.log());
}

#[test]
fn every_compression_of_kombu_is_read() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &["-c", "2"]);
    let program = HEAD.to_owned()
        + "
from kombu import compression
names = list(compression._aliases) + compression.encoders()
assert len(compression.encoders()) == 5, names
sent = {n: app.send_task('hello.add', (2,), {'y': i}, compression=n) for i, n in enumerate(names)}
for i, result in enumerate(sent.values()):
    assert result.get(timeout=20) == 2 + i
for name in compression.encoders():
    # The body of a retry stays compressed.
    assert app.send_task('hello.flaky', (1,), compression=name).get(timeout=20) == 1
    # A zstd frame of this size names a window larger than every decoder must have.
    error = raised(app.send_task('hello.add', (1,), {'note': 'x' * 10_000_000}, compression=name))
    assert type(error) is TypeError and len(str(error)) < 100
print('all good')
";
    let program = program.replace(
        "import sys
",
        "import sys
from kombu.exceptions import ContentDisallowed
",
    );
    assert_eq!(run_python(&program, &redis.url()), "all good\n", "{}", worker.log());
}
