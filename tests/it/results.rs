//! Results in every form that Celery has for them, written by our worker and read by the stock client, and the other
//! way round in chords that are shared with a Python worker.

use std::process::{Command, Stdio};

use crate::support::{Folder, Process, Redis, Worker, python, run_python};

const CONFIG: &str = "
import json, os, sys
from celery import Celery
url = os.environ.get('URL') or sys.argv[1]
app = Celery(broker=url, backend=url)
app.conf.update(json.loads(os.environ.get('CONF') or sys.argv[2] if len(sys.argv) > 2 or 'CONF' in os.environ else '{}'))
def s(name, *args):
    return app.signature(name, args)
";

const TASKS: &str = "
@app.task(name='flow.add')
def add(x, y):
    return x + y
@app.task(name='python.same')
def same(value):
    return value
@app.task(name='python.numbers')
def numbers():
    return [float('nan'), float('inf'), -float('inf'), 1.5]
";

/// The settings of both, in Celery's JSON and in our environment.
fn shared(serializer: &str, compression: &str, ordered: bool) -> (String, Vec<(&'static str, String)>) {
    let compressed = match compression {
        "" => "null".to_owned(),
        name => format!("{name:?}"),
    };
    let python = format!(
        r#"{{"result_serializer": "{serializer}", "result_compression": {compressed}, "result_accept_content": ["{serializer}"],
        "result_backend_transport_options": {{"result_chord_ordered": {ordered}}}}}"#
    );
    let ours = vec![
        ("ORCHESTRA_RESULT_SERIALIZER", serializer.to_owned()),
        ("ORCHESTRA_RESULT_COMPRESSION", compression.to_owned()),
        ("ORCHESTRA_RESULT_ACCEPT_CONTENT", serializer.to_owned()),
        (
            "ORCHESTRA_RESULT_BACKEND_TRANSPORT_OPTIONS",
            format!("{{result_chord_ordered = {ordered}}}"),
        ),
    ];
    (python, ours)
}

const SHARED: &str = r#"
import math
from celery import chain, chord, group
from celery.result import AsyncResult
def value(result):
    return result.get(timeout=30)
until('the stock worker is there', lambda: app.send_task('python.same', (4,), queue='stock').get(timeout=20) == 4)
assert value(s('flow.add', 1, 2).set(queue='ours').delay()) == 3
text = {'a': [1, None, True, 2.5, 1e300, -7, 'é😀\u2028\n"', '', '2024-01-02', 'yes', '1_000', {}], '': []}
assert value(s('flow.note', text).set(queue='ours').delay()) == text
error = raised(s('flow.fail', 'why').set(queue='ours').delay())
assert type(error) is ValueError and str(error) == 'why', repr(error)
# A chord whose members end on both, and whose body is sent by the one or the other.
for _ in range(6):
    header = [s('flow.add', n, n).set(queue=('ours', 'stock')[n % 2]) for n in range(6)]
    got = value(chord(header)(s('flow.note').set(queue='ours')))
    assert sorted(got) == [0, 2, 4, 6, 8, 10] and (got == sorted(got) or not ORDERED), got
    inner = group(s('flow.add', 3).set(queue='ours'), s('flow.add', 4).set(queue='stock'))
    nested = [s('flow.add', 1, 1).set(queue='stock'), chain(s('flow.add', 2, 2).set(queue='ours'), inner)]
    got = value(chord(nested)(s('python.same').set(queue='stock')))
    assert got == [2, [7, 8]], got
failed = chord([s('flow.add', 1, 1).set(queue='stock'), s('flow.fail', 'no').set(queue='ours')])(s('flow.note').set(queue='ours'))
error = raised(failed)
assert type(error) is ValueError, repr(error)
# What a Python worker makes of numbers that JSON does not have goes through ours.
late = s('flow.add', 1, 1).set(queue='ours', countdown=1)
numbers, two = sorted(value(chord([s('python.numbers').set(queue='stock'), late])(s('python.same').set(queue='stock'))), key=str, reverse=True)
assert two == 2 or numbers == 2
numbers = numbers if two == 2 else two
assert math.isnan(numbers[0]) and numbers[1:] == [math.inf, -math.inf, 1.5], numbers
# A SUCCESS stays, whoever stored it and in whatever form; what was started is not revoked.
app.backend.store_result('done', 7, 'SUCCESS')
app.backend.store_result('started', None, 'STARTED')
app.backend.store_result('again', ValueError('before'), 'RETRY')
for _ in range(2):
    assert value(app.send_task('flow.add', (1, 1), task_id='marker' + str(_), queue='ours')) == 2
    app.send_task('flow.add', (1, 1), task_id='done', queue='ours')
    assert value(app.send_task('flow.add', (1, 1), task_id='again', queue='ours')) == 2
app.control.revoke(['started', 'done', 'never'])
until('the other is revoked', lambda: AsyncResult('never', app=app).state == 'REVOKED')
assert value(s('flow.add', 1, 2).set(queue='ours').delay()) == 3
assert value(AsyncResult('done', app=app)) == 7 and AsyncResult('started', app=app).state == 'STARTED'
raw = app.backend.client.get('celery-task-meta-marker0')
assert raw.startswith(b'\0celery-compressed\0') == bool(app.conf.result_compression), raw
print('all good')
"#;

fn is_shared(serializer: &str, compression: &str, ordered: bool) {
    let redis = Redis::start();
    let (conf, environment) = shared(serializer, compression, ordered);
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let _ours = Worker::start_program("workflow", &redis, &["-Q", "ours", "-c", "2"], &environment);
    let folder = Folder::new();
    folder.write("stock.py", &[CONFIG, TASKS].concat());
    let mut stock = Command::new(python());
    stock
        .args(["-m", "celery", "-A", "stock", "worker", "-P", "threads", "-c", "2"])
        .args(["-Q", "stock", "-n", "stock@here", "-l", "ERROR"])
        .current_dir(folder.path())
        .env("URL", redis.url())
        .env("CONF", &conf)
        .stdout(Stdio::null());
    let _stock = Process::from(stock.spawn().unwrap());
    let ordered = if ordered { "True" } else { "False" };
    let program = format!("import sys\nsys.argv.append({conf:?})\n{CONFIG}ORDERED = {ordered}\n{SHARED}");
    assert_eq!(run_python(&program, &redis.url()), "all good\n");
}

#[test]
fn p_153_p_129_compressed_results_and_chords_without_order_are_shared_with_python() {
    is_shared("json", "gzip", false);
}

#[test]
fn p_154_p_015_results_in_msgpack_and_yaml_are_shared_with_python() {
    is_shared("msgpack", "", true);
    is_shared("yaml", "zstd", true);
}

/// Every compression, read by who has none.
#[test]
fn p_153_every_compression_of_results_is_read_by_celery() {
    let redis = Redis::start();
    let workers: Vec<Worker> = ["zlib", "bzip2", "xz", "brotli", "zstandard"]
        .iter()
        .map(|name| {
            let environment = [("ORCHESTRA_RESULT_COMPRESSION", *name)];
            Worker::start_program("workflow", &redis, &["-Q", name, "-c", "1"], &environment)
        })
        .collect();
    let program = [
        CONFIG,
        r#"
import random
text = ''.join(random.Random(1).choice('abcdefgh ') for _ in range(200_000))
for name in 'zlib', 'bzip2', 'xz', 'brotli', 'zstandard':
    result = app.send_task('flow.note', (text,), queue=name)
    assert result.get(timeout=30) == text, name
    raw = app.backend.client.get('celery-task-meta-' + result.id)
    assert raw.startswith(b'\0celery-compressed\0application/') and len(raw) < 150_000, (name, len(raw))
"#,
    ]
    .concat();
    run_python(&program, &redis.url());
    drop(workers);
}

/// With Redis nobody sends it; an app whose other workers have another backend might.
#[test]
fn p_139_chord_unlock_waits_for_its_parts_and_sends_the_body() {
    let redis = Redis::start();
    let environment = [
        ("ORCHESTRA_RESULT_CHORD_RETRY_INTERVAL", "0.2"),
        ("ORCHESTRA_RESULT_FAILURE_EXPIRES", "100"),
    ];
    let _worker = Worker::start_program("workflow", &redis, &["-c", "4"], &environment);
    let program = [
        CONFIG,
        r#"
from celery.result import AsyncResult
def unlock(body, *parts, **options):
    result = [[[id, None], None] for id in parts]
    app.send_task('celery.chord_unlock', ('some-group', body), {'result': result, 'interval': None, **options})
parts = [s('flow.add', n, n).set(countdown=0.7 * n).delay().id for n in range(2)]
unlock(s('flow.sum').set(task_id='body'), *parts)
assert AsyncResult('body', app=app).get(timeout=20) == 2
bad = s('flow.fail', 'why').delay().id
raised(AsyncResult(bad, app=app))
kept = lambda id: app.backend.client.ttl('celery-task-meta-' + id)
assert 90 <= kept(bad) <= 100 < 80000 < kept(parts[0]), (kept(bad), kept(parts[0]))
unlock(s('flow.sum').set(task_id='failed', link_error=[s('flow.note').set(task_id='told')]), parts[0], bad)
error = raised(AsyncResult('failed', app=app))
assert type(error).__name__ == 'ChordError' and f'Dependency {bad} raised' in str(error), repr(error)
assert AsyncResult('told', app=app).get(timeout=20) == 'failed'
unlock(s('flow.sum').set(task_id='late'), 'nobody', max_retries=2)
assert 'could not be retried' in str(raised(AsyncResult('late', app=app)))
"#,
    ]
    .concat();
    run_python(&program, &redis.url());
}

/// Celery's client subscribes and looks on two connections, and a busy Redis may take the look first: what workers send
/// may be done in between, and `get()` would wait for ever.
#[test]
fn a_result_that_nobody_heard_of_is_told_once_more() {
    let redis = Redis::start();
    let silent = ["-c", "1", "--without-heartbeat", "--without-gossip", "--without-mingle"];
    // P-158: the prefix of results, which gets a `_`.
    let environment = [(
        "ORCHESTRA_RESULT_BACKEND_TRANSPORT_OPTIONS",
        "{global_keyprefix = 'mine'}",
    )];
    let _worker = Worker::start_program("workflow", &redis, &silent, &environment);
    let program = [
        CONFIG,
        r#"
from celery import chain
app.conf.result_backend_transport_options = {'global_keyprefix': 'mine'}
redis = app.backend.client
def told(listens, *steps):
    published = lambda: redis.info('commandstats').get('cmdstat_publish', {}).get('calls', 0)
    before = published()
    last = chain(*steps).apply_async(countdown=0.3)
    pubsub = redis.pubsub()
    if listens:
        pubsub.subscribe('mine_celery-task-meta-' + last.id)
    until('it is done', lambda: redis.exists('mine_celery-task-meta-' + last.id))
    time.sleep(0.3)
    return published() - before
two = s('flow.add', 1, 2), s('flow.add', 3)
# The one that the client has sent is told once, though nobody listens: who sent it would. So are steps in between.
assert told(False, s('flow.add', 1, 2).set(immutable=True)) == 1
assert told(False, *two) == 3 and told(True, *two) == 2
assert told(False, *two, s('flow.add', 4)) == 4
"#,
    ]
    .concat();
    run_python(&program, &redis.url());
}

/// A name of none, and the one that is never written.
#[test]
fn serializers_and_compressions_that_are_none_are_refused_by_name() {
    for (setting, value, word) in [
        ("ORCHESTRA_RESULT_SERIALIZER", "pickle", "any code"),
        ("ORCHESTRA_RESULT_COMPRESSION", "rar", "zstd"),
        ("ORCHESTRA_RESULT_ACCEPT_CONTENT", "pickle", "any code"),
    ] {
        let redis = Redis::start();
        let mut worker = Worker::spawn("workflow", &redis, &[], &[(setting, value)]);
        assert_eq!(worker.process.wait(), Some(2));
        assert!(worker.log().contains(word), "{}", worker.log());
    }
}
