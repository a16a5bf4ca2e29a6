//! What follows a task: composed by the stock Python client or in Rust, followed by our worker, alone and together with
//! a Python worker.

use std::process::{Command, Stdio};

use orchestra::backend::{self, Backend, Counted, Part};
use orchestra::broker::{self, Broker};
use orchestra::canvas::{StampingVisitor, Stamps, accumulate, chain, chord, chunks, group, map, starmap};
use orchestra::client::Signature;
use orchestra::conn::{Endpoint, Link, LinkOptions};
use orchestra::wire::Json;
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Process, Redis, Worker, program, python, run_python, until};

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

/// Dates in the options of what follows, a header whose handle is deeper than a parser goes, and what cannot be sent.
#[test]
fn what_follows_waits_until_its_date_is_joined_and_fails_where_it_cannot_be_sent() {
    let redis = Redis::start();
    let environment = [
        ("ORCHESTRA_TASK_CREATE_MISSING_QUEUES", "false"),
        ("ORCHESTRA_TASK_QUEUES", r#"["celery", "dated"]"#),
        (
            "ORCHESTRA_TASK_ROUTES",
            r#"{"flow.grow" = "celery", "flow.sum" = {queue = "nowhere"}}"#,
        ),
    ];
    let _worker = Worker::start_program("workflow", &redis, &["-c", "4", "-Q", "celery"], &environment);
    python_says(
        &redis,
        r#"
import json, redis
from datetime import datetime, timedelta, timezone
store = redis.Redis.from_url(sys.argv[1])
# Python writes a date in the options of what follows as kombu marks it.
at = datetime(2099, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
until_then = at + timedelta(hours=1)
def dated():
    return s('add', 1).set(queue='dated', eta=at, expires=until_then)
def sent():
    until('it is sent', lambda: store.llen('dated') == 1)
    headers = json.loads(store.lpop('dated'))['headers']
    return headers['eta'], headers['expires']
for what in (
    chain(s('add', 1, 1), dated()),
    s('add', 1, 1).set(link=dated()),
    chord([s('add', 1, 1)], dated()),
    chain(s('add', 1, 1), chord([dated()], s('note'))),
):
    what.apply_async()
    assert sent() == (at.isoformat(), until_then.isoformat()), what
chain(s('add', 1, 1), chord([s('add', 1).set(queue='dated')], s('note')).set(eta=at)).apply_async()
assert sent()[0] == at.isoformat()
# The handle of a header holds the line of each result: this one is nested deeper than a parser goes, whoever writes it.
def header():
    return [chain(s('add', 0, 1), *[s('add', 1) for _ in range(90)], group(s('add', 1), s('add', 2)))]
assert value(chord(header(), s('note'))()) == [[92, 93]]
# Behind a task it is our worker that applies it.
steps = [si('add', 0, 1) for _ in range(90)] + [group(si('add', 1, 1), si('add', 1, 2))]
assert value(chain(si('add', 0, 0), chord([si('add', 0, 1), chain(*steps)], s('note')))()) == [1, [2, 3]]
# What cannot be sent fails the task that it was to follow, and all that hangs on that.
def refused(result, failed):
    error = raised(result)
    assert type(error).__name__ == 'QueueNotFound', repr(error)
    assert AsyncResult(failed, app=app).state == states.FAILURE
    return True
unknown = lambda: s('add', 1).set(queue='unknown')
steps = chain(s('add', 1, 1).set(task_id='before'), unknown(), s('add', 1))
steps.link_error(s('note').set(task_id='told'))
result = steps()
assert refused(result, 'before') and value(AsyncResult('told', app=app)) == 'before'
assert result.state == states.FAILURE
assert refused(s('add', 1, 1).apply_async(link=unknown(), task_id='linked'), 'linked')
# Of a group none is sent, and the body does not wait for those.
result = chain(s('add', 1, 1).set(task_id='before group'), group(s('note').set(queue='dated'), unknown()), s('note'))()
assert refused(result, 'before group') and result.state == states.FAILURE and store.llen('dated') == 0
# What takes a task's place, where that is routed elsewhere.
result = chain(s('triple', 4), s('sum'))()
assert refused(result, result.parent.id if result.parent else result.id)
# The body of a chord, by its queue and by its route.
for body in (unknown(), s('sum')):
    result = chord([s('add', 1, 1)])(body)
    until('the body failed', lambda: result.state == states.FAILURE)
    assert type(result.result) is ChordError and str(result.result).startswith('Callback error: QueueNotFound('), repr(result.result)
"#,
    );
}

/// The body of a chord is not lost with the worker that was about to send it.
#[tokio::test(flavor = "multi_thread")]
async fn no_chord_is_lost_with_a_killed_worker() {
    let redis = Redis::start();
    // A message may be among what each of the killed ones held.
    let environment = [(
        "ORCHESTRA_BROKER_TRANSPORT_OPTIONS",
        "{visibility_timeout = 1, max_deliveries = 1000}",
    )];
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
    // Redis is gone long before it ends, also on a machine that is slow to end a process.
    let steps = chord([careful(4000)], Signature::new("flow.sum"));
    client.apply(steps).await.unwrap();
    worker.wait_for_log("received");
    redis.stop();
    // Its result could not be written.
    assert_eq!(worker.stop(), Some(1), "{}", worker.log());
}

/// An error callback that runs in the worker is part of what a warm stop waits for, as it is in Celery.
#[tokio::test(flavor = "multi_thread")]
async fn a_warm_stop_waits_for_error_callbacks() {
    let redis = Redis::start();
    let mut worker = Worker::start_program("workflow", &redis, &["-c", "1"], &[]);
    let apology = Signature::new("flow.apology").kwarg("ms", 1500);
    let fails = Signature::new("flow.fail").arg("no").link_error(apology);
    redis.client().await.apply(fails).await.unwrap();
    worker.wait_for_log("failed");
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
    // Its note waits for the next worker.
    assert_eq!(redis.length("LLEN", "celery"), 1, "{}", worker.log());
}

/// What the tests above leave out: the same messages, looked at from beside.
#[test]
fn p_118_to_p_143_what_is_seen_beside_a_workflow() {
    let redis = Redis::start();
    let environment = [
        ("ORCHESTRA_TASK_SEND_SENT_EVENT", "true"),
        ("ORCHESTRA_RESULT_EXTENDED", "true"),
        ("ORCHESTRA_RESULT_CHORD_JOIN_TIMEOUT", "0.2"),
        ("ORCHESTRA_RESULT_FAILURE_EXPIRES", "1000"),
    ];
    let _worker = Worker::start_program("workflow", &redis, &["-c", "2", "-E"], &environment);
    let short = [
        ("ORCHESTRA_RESULT_EXPIRES", "100"),
        ("ORCHESTRA_RESULT_EXTENDED", "true"),
    ];
    let _hello = Worker::start_with(&redis, &["-Q", "hello", "-n", "hello@here"], &short);
    let unordered = [(
        "ORCHESTRA_RESULT_BACKEND_TRANSPORT_OPTIONS",
        "{result_chord_ordered = false}",
    )];
    let arguments = ["-Q", "unordered", "-n", "unordered@here", "-c", "2"];
    let _unordered = Worker::start_program("workflow", &redis, &arguments, &unordered);
    python_says(
        &redis,
        r#"
import base64, json, threading, redis
store = redis.Redis.from_url(sys.argv[1])
def record(id):
    return json.loads(store.get('celery-task-meta-' + id))
def settled():
    # Whatever was to be done is done when a task that was sent after it is.
    assert value(s('note', 1).apply_async()) == 1
# P-118: callbacks are sent before SUCCESS is stored.
with store.monitor() as monitor:
    s('add', 1, 1).apply_async(task_id='first', link=s('note').set(queue='aside'))
    seen = []
    for command in monitor.listen():
        words = command['command']
        if words.startswith('LPUSH aside'):
            seen.append('callback')
        if 'celery-task-meta-first' in words and 'SUCCESS' in words:
            seen.append('SUCCESS')
            break
assert seen == ['callback', 'SUCCESS'], seen
# P-123: what is revoked fails no chain and calls no error callback.
steps = chain(s('careful', 0, 1).set(task_id='gone', countdown=60), s('note').set(task_id='later'))
steps.link_error(s('note').set(task_id='told of gone'))
result = steps()
app.control.revoke('gone')
until('it is revoked', lambda: AsyncResult('gone', app=app).state == states.REVOKED)
settled()
assert [AsyncResult(id, app=app).state for id in ('later', 'told of gone')] == [states.PENDING] * 2
# P-125: an error callback that no worker here knows is sent with the id.
result = s('fail', 'no').apply_async(link_error=app.signature('python.only', queue='elsewhere'))
assert type(raised(result)) is ValueError
assert 100 < store.ttl('celery-task-meta-' + result.id) <= 1000
until('it is sent', lambda: store.llen('elsewhere'))
message = json.loads(store.lindex('elsewhere', 0))
assert json.loads(base64.b64decode(message['body']))[0] == [result.id] and message['headers']['task'] == 'python.only'
# P-129: where it is said so, the results come as the members ended.
header = [s('careful', 300, 1).set(queue='unordered'), s('add', 1, 1).set(queue='unordered')]
assert value(chord(header)(s('note'))) == [2, 1]
# P-139: Redis forgets by itself.
assert value(app.signature('celery.backend_cleanup').apply_async()) is None
# P-131: the body has the group's id, and the member that came last for its parent.
result = chord([s('add', 1, 1), s('careful', 400, 1).set(task_id='last')])(s('sum').set(task_id='body'))
assert value(result) == 3
assert (record('body')['group_id'], record('body')['parent_id']) == (result.parent.id, 'last'), record('body')
# P-133: members that are done twice send the body once.
chord([s('careful', 0, n).set(queue='side') for n in range(2)])(s('sum').set(queue='bodies'))
members = store.lrange('side', 0, -1)
store.lpush('celery', *members, *members)
until('there is a body', lambda: store.llen('bodies'))
until('all is done', lambda: not store.llen('celery') and not store.hlen('unacked'))
settled()
assert store.llen('bodies') == 1
# Applied again with the same ids it is another chord, also when its first members are done before its size is known.
again = chord([s('add', 1, 1), s('add', 2, 2)], s('sum').set(queue='again'))
again.freeze()
again.apply_async()
until('there is a body', lambda: store.llen('again') == 1)
size = app.backend.set_chord_size
def slowly(*args):
    settled()
    size(*args)
app.backend.set_chord_size = slowly
again.apply_async()
app.backend.set_chord_size = size
until('there is another body', lambda: store.llen('again') == 2)
# P-135: who holds a member of a body that failed drops it.
result = chord([s('fail', 'why')])(group(s('add', 1).set(task_id='g1'), s('add', 2).set(task_id='g2')))
def revoked():
    return set(sum((app.control.inspect(timeout=1).revoked() or {}).values(), []))
until('both are revoked', lambda: {'g1', 'g2'} <= revoked())
# P-143, P-152: a stamp is still there after a retry, and in the record.
flaky = app.signature('hello.flaky', (1,), queue='hello', task_id='flaky')
flaky.stamp(mark='m')
assert value(flaky.apply_async()) == 1
assert record('flaky')['retries'] == 1 and record('flaky')['stamped_headers'] == ['mark'] and record('flaky')['mark'] == 'm', record('flaky')
# P-145: and the record goes when it is told to.
assert 0 < store.ttl('celery-task-meta-flaky') <= 100 < store.ttl('celery-task-meta-first')
# P-086, P-144: what has succeeded stays so, whatever a second run of it says.
s('fail', 'late').apply_async(task_id='first')
until('it has run', lambda: not store.llen('celery') and not store.hlen('unacked'))
settled()
assert (AsyncResult('first', app=app).state, record('first')['result']) == (states.SUCCESS, 2)
# A header with a group in it whose results do not come: result_chord_join_timeout, which is 3 s where nothing is said.
began = time.monotonic()
silent = s('add', 1, 1).set(ignore_result=True)
result = chord([s('add', 1, 1), chain(s('add', 0, 1), group(s('add', 1).set(ignore_result=True), s('add', 2)))])(s('sum'))
until('the body failed', lambda: result.state == states.FAILURE)
assert type(result.result) is ChordError and 'TimeoutError' in str(result.result), repr(result.result)
assert time.monotonic() - began < 3
# Members whose results are ignored are counted all the same.
assert value(chord([silent, s('add', 2, 2)])(s('sum'))) == 6
# P-166: monitors hear of everything that the worker sends: steps, callbacks, members and bodies of chords, error callbacks.
events = []
with app.connection() as connection:
    receiver = app.events.Receiver(connection, handlers={'*': events.append})
    def listen():
        try:
            receiver.capture(limit=None, timeout=60, wakeup=False)
        except OSError:
            pass
    threading.Thread(target=listen, daemon=True).start()
    until('somebody listens', lambda: events)
    steps = chain(s('add', 1, 1).set(task_id='one'), group(s('add', 1), s('add', 2)), s('sum').set(task_id='three'))
    steps.link(s('note').set(task_id='four'))
    assert value(steps()) == 7 and value(AsyncResult('four', app=app)) == 7
    s('fail', 'no').apply_async(task_id='bad', link_error=s('note').set(task_id='told'))
    assert value(AsyncResult('told', app=app)) == 'bad'
    def uuids(type):
        return {event['uuid'] for event in list(events) if event['type'] == type}
    until('all is told', lambda: len(uuids('task-succeeded')) == 6 and len(uuids('task-sent')) == 5)
    assert uuids('task-sent') == uuids('task-received') - {'one', 'bad'}, events
    sent = {event['uuid']: event for event in events if event['type'] == 'task-sent'}
    assert {event['parent_id'] for event in sent.values()} >= {'one', 'three', 'bad'}, sent
    body = sent['three']
    assert (body['name'], body['root_id'], body['queue'], body['args']) == ('flow.sum', 'one', 'celery', '([3, 4],)'), body
    receiver.should_stop = True
"#,
    );
}

/// The worker that sends a body may die before it has said so on the server of the results: nobody sends it again.
#[tokio::test]
async fn the_body_of_a_chord_is_sent_once_over_two_servers() {
    let (first, second) = (Redis::start(), Redis::start());
    let endpoint = |redis: &Redis| Endpoint::parse(&redis.url()).unwrap();
    let broker = Broker::connect(&endpoint(&first), broker::Options::default())
        .await
        .unwrap();
    let link = Link::connect(&endpoint(&second), LinkOptions::default()).await.unwrap();
    let backend = Backend::new(link, backend::Options::default()).await.unwrap();
    // Each worker that has the member's message makes its own.
    let part = || Part::new("g", Some(0), "member", "SUCCESS", &Json::number(1));
    let body = [broker::Write::Publish {
        exchange: String::new(),
        routing_key: "bodies".into(),
        priority: 0,
        envelope: b"a body".to_vec().into(),
    }];
    let begin = || {
        second.command::<i64>(&["DEL", "celery-taskset-meta-g.c"]);
        second.command::<String>(&["SET", "celery-taskset-meta-g.s", "1"]);
    };
    let claim = async || match backend.count_parts(&[part()]).await.unwrap().pop() {
        Some(Ok(Counted::Mine(claim))) => claim,
        other => panic!("{other:?}"),
    };
    begin();
    let dies = claim().await;
    let run = backend.keep_claim(&dies).await.unwrap().unwrap();
    assert!(broker.publish_once(&run, &body).await.unwrap());
    // It died. Its claim has run out, its message is delivered again, to another.
    second.command::<i64>(&["DEL", "celery-taskset-meta-g.c"]);
    let follows = claim().await;
    assert_eq!(backend.keep_claim(&dies).await.unwrap(), None);
    let same = backend.keep_claim(&follows).await.unwrap().unwrap();
    assert_eq!(same, run);
    assert!(!broker.publish_once(&same, &body).await.unwrap());
    backend.end_chord(&follows).await.unwrap();
    broker.forget_once(&same).await.unwrap();
    assert_eq!(first.length("LLEN", "bodies"), 1);
    // Applied again with the same ids it is another run, even if nobody could say that the first one ended.
    begin();
    let again = claim().await;
    let other = backend.keep_claim(&again).await.unwrap().unwrap();
    assert_ne!(other, run);
    assert!(broker.publish_once(&other, &body).await.unwrap());
    assert_eq!(first.length("LLEN", "bodies"), 2);
}

/// Of what goes to Redis together each stands alone: a chord that somebody broke does not hold up the one beside it,
/// nor a key that is no result the other results.
#[tokio::test]
async fn what_redis_refuses_of_a_batch_is_alone_in_it() {
    let redis = Redis::start();
    let link = Link::connect(&Endpoint::parse(&redis.url()).unwrap(), LinkOptions::default())
        .await
        .unwrap();
    let options = backend::Options {
        result_expires: Some(std::time::Duration::from_millis(500)),
        ..backend::Options::default()
    };
    let brief = Backend::new(link.clone(), options).await.unwrap();
    let part = Part::new("brief", Some(0), "t", "SUCCESS", &orchestra::wire::Json::number(1));
    brief.count_parts(&[part]).await.unwrap();
    assert!(
        (1..=1000).contains(&redis.command::<i64>(&["PTTL", "celery-taskset-meta-brief.j"])),
        "less than a second is not for ever"
    );
    let backend = Backend::new(link.clone(), backend::Options::default()).await.unwrap();
    let part = |group: &str| Part::new(group, Some(0), "member", "SUCCESS", &Json::number(1));
    for group in ["broken", "sound"] {
        redis.command::<String>(&["SET", &format!("celery-taskset-meta-{group}.s"), "1"]);
    }
    redis.command::<String>(&["SET", "celery-taskset-meta-broken.j", "x"]);
    let counted = backend.count_parts(&[part("broken"), part("sound")]).await.unwrap();
    assert!(matches!(&counted[..], [Err(_), Ok(Counted::Mine(_))]), "{counted:?}");

    redis.command::<i64>(&["RPUSH", "celery-task-meta-list", "x"]);
    let store = |id: &str| backend::Write::Store {
        id: id.into(),
        status: orchestra::wire::State::Success,
        record: br#"{"status": "SUCCESS", "result": 1}"#.to_vec().into(),
        late: false,
    };
    let mut pipe = redis::Pipeline::new();
    backend.append(&mut pipe, &[store("list"), store("sound")]);
    let answers = link.pipeline(&pipe).await.unwrap();
    assert!(
        matches!(&answers[..], [redis::Value::ServerError(error)] if error.code() == "WRONGTYPE"),
        "{answers:?}"
    );
    assert_eq!(redis.length("EXISTS", "celery-task-meta-sound"), 1);
    assert_eq!(redis.length("LLEN", "celery-task-meta-list"), 1);
}

/// Stamps each call with its name and everything in a group, a chain, a body or behind a call with where it is.
#[derive(Default)]
struct Surveyor {
    groups: u32,
}

impl StampingVisitor for Surveyor {
    fn on_signature(&mut self, call: &Signature, _: &Stamps) -> Stamps {
        Stamps::from([("name".into(), call.task.as_str().into())])
    }

    fn on_group_start(&mut self, _: &Signature, _: &Stamps) -> Stamps {
        self.groups += 1;
        Stamps::from([("number".into(), self.groups.into())])
    }

    fn on_chain_start(&mut self, _: &Signature, _: &Stamps) -> Stamps {
        Stamps::from([("chained".into(), true.into())])
    }

    fn on_chord_body(&mut self, _: &Signature, _: &Stamps) -> Stamps {
        Stamps::from([("last".into(), true.into())])
    }

    fn on_callback(&mut self, callback: &Signature, _: &Stamps) -> Stamps {
        Stamps::from([("after".into(), callback.task.as_str().into())])
    }

    fn on_errback(&mut self, _: &Signature, _: &Stamps) -> Stamps {
        Stamps::from([("trouble".into(), true.into())])
    }
}

const SURVEYOR: &str = r#"
import json
from celery.canvas import StampingVisitor
class Surveyor(StampingVisitor):
    groups = 0
    def on_signature(self, sig, **stamps):
        return {'name': sig.task}
    def on_group_start(self, group, **stamps):
        self.groups += 1
        return {'number': self.groups}
    def on_chain_start(self, chain, **stamps):
        return {'chained': True}
    def on_chord_body(self, sig, **stamps):
        return {'last': True}
    def on_callback(self, callback, **stamps):
        return {'after': callback.task}
    def on_errback(self, errback, **stamps):
        return {'trouble': True}
def stamps(sig):
    'Every call of a composition with its stamps, in order.'
    options, kwargs = sig['options'], sig['kwargs']
    if not sig['subtask_type']:
        yield [sig['task'], {name: options[name] for name in sorted(options.get('stamped_headers') or [])}]
    for key in ('link', 'link_error'):
        for call in options.get(key) or []:
            yield from stamps(call)
    header = kwargs.get('header') or []
    tasks = kwargs.get('tasks') or (header['kwargs']['tasks'] if isinstance(header, dict) else header)
    for task in tasks:
        yield from stamps(task)
    if kwargs.get('body'):
        yield from stamps(kwargs['body'])
"#;

#[test]
fn a_visitor_stamps_what_it_stamps_in_python() {
    let s = |name: &str| Signature::new(name);
    let linked = s("b").link(s("after b")).link(s("too")).link_error(s("sorry"));
    let header = [linked, chain([s("c"), group([s("d"), s("e")])])];
    let steps = chain([
        s("a"),
        chord(header, chain([s("body"), s("end")])),
        s("z").stamp("own", 1),
    ]);
    let plain = serde_json::to_string(&steps).unwrap();
    let stamped = serde_json::to_string(&steps.stamp_with(&mut Surveyor::default())).unwrap();
    let program = format!(
        "{HEAD}{SURVEYOR}
plain, ours = json.loads({plain:?}), json.loads({stamped:?})
theirs = app.signature(plain)
theirs.stamp(Surveyor())
theirs = json.loads(json.dumps(theirs))
assert list(stamps(ours)) == list(stamps(theirs)), f'{{list(stamps(ours))}}\\n{{list(stamps(theirs))}}'
assert len(list(stamps(ours))) == 11 and {{'trouble', 'after', 'own', 'last'}} <= {{name for _, of in stamps(ours) for name in of}}
print('all good')
"
    );
    assert_eq!(run_python(&program, "redis://127.0.0.1:1"), "all good\n");
}

/// The forms that a Rust author has; what they give is what they give in Python, above.
#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_a_composition_is_there_in_rust() {
    let redis = Redis::start();
    let _worker = Worker::start_program("workflow", &redis, &["-c", "4"], &[]);
    let client = redis.client().await;
    let add = |x: i64, y: i64| Signature::new("flow.add").arg(x).arg(y);
    let get = async |steps: Signature| -> Value { client.apply(steps).await.unwrap().get(LONG).await.unwrap() };
    let pairs = || (0..5).map(|n| (n, n));
    assert_eq!(
        get(map(Signature::new("flow.note"), ["a", "b"])).await,
        json!(["a", "b"])
    );
    assert_eq!(
        get(starmap(Signature::new("flow.add"), pairs())).await,
        json!([0, 2, 4, 6, 8])
    );
    let parts = client
        .apply(chunks(&Signature::new("flow.add"), pairs(), 2))
        .await
        .unwrap();
    let parts: Vec<Value> = parts.join(LONG).await.unwrap();
    assert_eq!(parts, [json!([0, 2]), json!([4, 6]), json!([8])]);
    // A chord of chunks; of members whose results are ignored; of what is wanted as it is.
    assert_eq!(
        get(chunks(&Signature::new("flow.add"), pairs(), 3) | accumulate()).await,
        json!([[0, 2, 4], [6, 8]])
    );
    let silent = add(1, 1).option("ignore_result", true);
    assert_eq!(
        get(chord([silent, add(2, 2)], Signature::new("flow.sum"))).await,
        json!(6)
    );
    // Members of a group that start one after the other.
    let began = std::time::Instant::now();
    let skewed = client
        .apply(group([add(1, 0), add(2, 0)]).skew(0.2, 0.3))
        .await
        .unwrap();
    assert_eq!(skewed.join::<i64>(LONG).await.unwrap(), [1, 2]);
    assert!(began.elapsed() >= std::time::Duration::from_millis(450));
    // An error callback for the header as well: called for the member, and for the body.
    let fail = Signature::new("flow.fail").arg("why");
    let told = Signature::new("flow.note").arg("told").option("queue", "told");
    let failed = chord([fail], Signature::new("flow.sum")).link_error_everywhere(told);
    let failed = client.apply(failed).await.unwrap();
    failed.get::<Value>(LONG).await.unwrap_err();
    until("both are told", async || redis.length("LLEN", "told") == 2).await;
}
