//! Remote control, events and neighbours: the same questions to a Python worker and to ours, with Celery's client, and
//! what the answers must have in common.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use orchestra::client::{Call, Client};
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Process, Redis, Worker, get, python, run_python, until};

const HEAD: &str = "
import json, sys, threading, time
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
PY, RS = 'py@ref', 'rs@ours'
def until(what, test):
    for _ in range(600):
        if test():
            return
        time.sleep(0.05)
    raise SystemExit(f'never: {what}')
def ask(method, arguments=None, nodes=(PY, RS), **more):
    # Ends with the last answer.
    found = app.control.broadcast(method, arguments=arguments or {}, destination=list(nodes), reply=True, timeout=20, **more)
    return {node: answer for reply in found for node, answer in reply.items()}
def one(method, arguments=None, node=RS):
    return ask(method, arguments, [node])[node]
def state(result, wanted):
    until(f'{result.id} is {wanted}', lambda: result.state == wanted)
";

/// A stock worker, with tasks of the same names as ours.
fn python_worker(redis: &Redis, folder: &Folder, arguments: &[&str]) -> Process {
    folder.write(
        "app.py",
        "import sys, time\nfrom celery import Celery\n\
         app = Celery('app')\n\
         app.conf.update(task_track_started=True, worker_pool_restarts=True)\n\
         @app.task(name='hello.add')\ndef add(x, y=0): return x + y\n\
         @app.task(name='hello.sleep', acks_late=True)\ndef sleep(seconds): time.sleep(seconds)\n",
    );
    let log = std::fs::File::create(folder.path().join("python.log")).unwrap();
    let child = Command::new(python())
        .args(["-m", "celery", "-A", "app", "-b", &redis.url()])
        .args(["--result-backend", &redis.url(), "worker", "-l", "INFO"])
        .args(arguments)
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    Process::from(child)
}

#[test]
fn every_command_answers_as_a_python_worker_does() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let _python = python_worker(&redis, &folder, &["-n", "py@ref", "-Q", "py", "-c", "1"]);
    let environment = [
        ("ORCHESTRA_WORKER_POOL_RESTARTS", "true"),
        ("ORCHESTRA_TASK_TRACK_STARTED", "true"),
    ];
    let _worker = Worker::start_with(&redis, &["-n", "rs@ours", "-Q", "rs", "-c", "1"], &environment);
    let program = HEAD.to_owned()
        + r#"
until('both answer', lambda: len(app.control.ping(timeout=0.3)) == 2)
problems = []
def same(method, arguments=None, key=lambda answer: answer):
    answers = ask(method, arguments)
    if set(answers) != {PY, RS} or key(answers[PY]) != key(answers[RS]):
        problems.append(f'{method}({arguments}): {answers}')
def shape(value):
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return 'number' if type(value) in (int, float) else type(value).__name__
exact = [
    ('ping', {}), ('ping', {'unknown': 1}), ('nosuch', {}), ('it\'s', {}), ('heartbeat', {}), ('heartbeat', {'x': 1}),
    ('report', {'x': 1}), ('active_queues', {'x': 1}), ('enable_events', {'x': 1}), ('disable_events', {'x': 1}),
    ('autoscale', {'x': 1}), ('hello', {}), ('query_task', {}), ('query_task', {'ids': 'x'}), ('query_task', {'ids': ['x']}),
    ('revoke', {}), ('terminate', {}), ('terminate', {'signal': 'KILL'}), ('rate_limit', {}), ('time_limit', {}),
    ('add_consumer', {}), ('cancel_consumer', {}), ('revoke_by_stamped_headers', {}), ('election', {}),
    ('rate_limit', {'task_name': 'nope', 'rate_limit': '1/s'}), ('rate_limit', {'task_name': 'hello.add', 'rate_limit': 'x'}),
    ('rate_limit', {'task_name': 'hello.add', 'rate_limit': '0'}), ('rate_limit', {'task_name': 'hello.add', 'rate_limit': 0}),
    ('rate_limit', {'task_name': 'hello.add', 'rate_limit': '5/m'}), ('rate_limit', {'task_name': 'hello.add', 'rate_limit': None}),
    ('time_limit', {'task_name': 'nope', 'soft': 1.0, 'hard': 2.0}), ('time_limit', {'task_name': 'hello.add', 'soft': 1.5, 'hard': 2}),
    ('time_limit', {'task_name': 'hello.add'}),
    ('pool_grow', {'n': 2}), ('pool_shrink', {'n': 1}), ('pool_shrink', {}), ('pool_restart', {}),
    ('autoscale', {'max': 3, 'min': 1}),
    ('enable_events', {}), ('enable_events', {}), ('disable_events', {}), ('disable_events', {}),
    ('revoke', {'task_id': None}), ('revoke', {'task_id': 'a1'}), ('revoke', {'task_id': ['a2']}), ('revoked', {}),
    ('revoke', {'task_id': ['a1'], 'terminate': True, 'signal': 'SIGKILL'}), ('terminate', {'task_id': 'a1', 'signal': 'TERM'}),
    ('revoke', {'task_id': 'a1', 'terminate': True, 'signal': 'SIGNOPE'}),
    ('revoke_by_stamped_headers', {'headers': {'a': ['b'], 'c': 'd'}}),
    ('revoke_by_stamped_headers', {'headers': ['a=b', 'c=d'], 'terminate': True}),
    ('revoke_by_stamped_headers', {'headers': ['a'], 'terminate': True}),
    ('add_consumer', {'queue': 'more'}), ('add_consumer', {'queue': 'more'}),
    ('add_consumer', {'queue': 'other', 'exchange': 'ex', 'exchange_type': 'topic', 'routing_key': 'a_b.#'}),
]
for method, arguments in exact:
    same(method, arguments)
def queues():
    return {node: [queue for queue in found if queue['name'] in ('more', 'other')] for node, found in ask('active_queues').items()}
# Python's worker adds a queue a moment after it has said so.
until('both consume from the new queues', lambda: all(len(found) == 2 for found in queues().values()))
found = queues()
if found[PY] != found[RS]:
    problems.append(f'active_queues: {found}')
for queue in ('more', 'other', 'never'):
    same('cancel_consumer', {'queue': queue})
for method in ('clock', 'stats', 'revoked', 'active_queues', 'report'):
    # What a pool is made of differs, as it does between Celery's own.
    same(method, key=lambda answer: shape({**answer, 'pool': None} if isinstance(answer, dict) else answer))
pools = {node: set(stats['pool']) for node, stats in ask('stats').items()}
assert {'implementation', 'max-concurrency'} <= pools[RS] and 'autoscaler' not in ask('stats')[RS], pools
same('hello', {'from_node': 'x@y', 'revoked': ['b1']}, key=lambda answer: (answer['revoked'], type(answer['clock'])))
same('registered', {'taskinfoitems': ['max_retries', 'acks_late']},
     key=lambda answer: [name for name in answer if name.startswith(('hello.add', 'hello.sleep'))])
assert one('hello', {'from_node': RS}) is None
for secret in (one('conf'), one('conf', {'with_defaults': True})):
    assert secret['timezone'] == 'UTC' and secret['broker_url'].startswith('redis://'), secret
assert len(one('conf', {'with_defaults': True})) > len(one('conf'))
sample = one('memsample')
assert sample.endswith('MB') and sample in one('memdump') and one('memdump').startswith('- rss (sample):'), sample
assert 'objgraph' in one('objgraph')['error']
# Requests in all their places.
def send(seconds, **options):
    return {node: app.send_task('hello.sleep', (seconds,), queue=queue, argsrepr='(...)', **options).id for node, queue in ((PY, 'py'), (RS, 'rs'))}
running = send(600)
until('both run', lambda: all(len(found) == 1 for found in ask('active').values()))
waiting, later = send(601), send(602, countdown=600)
until('all are there', lambda: all(len(found) == 1 for method in ('reserved', 'scheduled') for found in ask(method).values()))
for method in ('active', 'reserved', 'scheduled', 'query_task'):
    ids = [*running.values(), *waiting.values(), *later.values(), 'unknown']
    answers = ask(method, {'ids': ids} if method == 'query_task' else {})
    if method == 'query_task':
        answers = {node: [[found[ids[node]][0], shape(found[ids[node]][1])] for ids in (running, waiting, later)] for node, found in answers.items()}
        assert [place for place, _ in answers[RS]] == ['active', 'reserved', 'scheduled'], answers
    if shape(answers[PY]) != shape(answers[RS]):
        problems.append(f'{method}: {answers}')
safe = ask('active', {'safe': True})
assert safe[RS][0]['args'] == safe[PY][0]['args'] == '(...)', safe
for node, ids in running.items():
    answer = one('revoke', {'task_id': ids, 'terminate': True}, node)
    assert answer == {'ok': f'terminate: {ids}'}, answer
if problems:
    raise SystemExit('\n'.join(problems))
print('all good')
"#;
    assert_eq!(run_python(&program, &redis.url()), "all good\n");
}

/// The same lives of tasks in a Python worker and in ours, both with pools of processes: what is told of them, of the
/// workers, and of the pools.
#[test]
fn events_pools_and_settings_look_as_those_of_a_python_worker() {
    let (redis, folder) = (Redis::start(), Folder::new());
    folder.write("app.py", TOLD);
    let log = std::fs::File::create(folder.path().join("python.log")).unwrap();
    let mut python = Process::from(
        Command::new(python())
            .args(["-m", "celery", "-A", "app", "-b", &redis.url()])
            .args([
                "--result-backend",
                &redis.url(),
                "worker",
                "-E",
                "-n",
                "py@ref",
                "-Q",
                "py",
                "-c",
                "1",
            ])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    let environment = [
        ("ORCHESTRA_TASK_TRACK_STARTED", "true"),
        ("ORCHESTRA_TASK_SEND_SENT_EVENT", "true"),
    ];
    let arguments = ["-E", "-n", "rs@ours", "-Q", "rs", "-c", "1"];
    let mut worker = Worker::spawn_words(
        "conformance_worker",
        &["flower", "--quiet"],
        &redis,
        &arguments,
        &environment,
    );
    let program = HEAD.to_owned()
        + r#"
told = []
ready = threading.Event()
def listen():
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={'*': told.append})
        ready.set()
        receiver.capture(limit=None, timeout=None, wakeup=False)
threading.Thread(target=listen, daemon=True).start()
ready.wait()
until('both answer', lambda: len(app.control.ping(timeout=0.3)) == 2)
until('both are heard', lambda: {PY, RS} <= {event['hostname'] for event in told})
def shape(value):
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__
# What differs between two runs of the same: only of which type it is matters.
VARIES = {'uuid', 'root_id', 'parent_id', 'timestamp', 'clock', 'pid', 'hostname', 'runtime', 'traceback', 'local_received', 'eta', 'expires',
          'queue', 'routing_key', 'freq', 'active', 'processed', 'loadavg', 'sw_ident', 'sw_ver', 'utcoffset'}
def seen(event):
    return {name: shape(value) if name in VARIES else value for name, value in event.items()}
def life(node, queue, name, args, what, last, **options):
    result = app.send_task(name, args, queue=queue, **options)
    what(node, result)
    mine = lambda: [event for event in told if event.get('uuid') == result.id and event['type'] != 'task-sent']
    until(f'{last} of {name} in {node}', lambda: any(event['type'] == last for event in mine()))
    return [seen(event) for event in mine()]
def nothing(node, result): pass
def started(node, result):
    until('it runs', lambda: any(event.get('uuid') == result.id and event['type'] == 'task-started' for event in told))
def terminated(node, result):
    started(node, result)
    app.control.revoke(result.id, terminate=True, destination=[node])
def revoked(node, result):
    until('it waits', lambda: any(event.get('uuid') == result.id for event in told))
    app.control.revoke(result.id, destination=[node])
lives = {
    'success': ('probe.add', (2, 3), nothing, 'task-succeeded', {}),
    'by another name': ('probe.add', (2, 3), nothing, 'task-succeeded', {'shadow': 'shown', 'countdown': 0.1}),
    'failure': ('probe.fail', ('what',), nothing, 'task-failed', {}),
    'wrong arguments': ('probe.add', (1, 2, 3), nothing, 'task-failed', {}),
    'retry': ('probe.retry', (1,), nothing, 'task-succeeded', {}),
    'reject': ('probe.reject', (), nothing, 'task-rejected', {}),
    'expired': ('probe.add', (2, 3), nothing, 'task-revoked', {'expires': -1}),
    'unknown': ('probe.nosuch', (), nothing, 'task-failed', {}),
    'terminated': ('probe.sleep', (600,), terminated, 'task-revoked', {}),
    'soft limit': ('probe.sleep', (600,), nothing, 'task-failed', {'soft_time_limit': 1}),
    'waits and is revoked': ('probe.add', (2, 3), revoked, 'task-revoked', {'countdown': 1.5}),
}
problems = []
for name, (task, args, what, last, options) in lives.items():
    theirs, ours = (life(node, queue, task, args, what, last, **options) for node, queue in ((PY, 'py'), (RS, 'rs')))
    if name == 'retry':
        # Python's worker may have the retry before it tells that it was sent.
        theirs, ours = (sorted(events, key=str) for events in (theirs, ours))
    if theirs != ours:
        problems.append(f'{name}:\n  {theirs}\n  {ours}')
# The retries, told by who sends them: a process of each worker.
sent = [event for event in told if event['type'] == 'task-sent']
if (len({event['hostname'] for event in sent}), len({json.dumps(shape(event), sort_keys=True) for event in sent})) != (2, 1):
    problems.append(f'task-sent: {sent}')
# The pools, as far as there is something to show: ours has no pipes, and so no numbers of them.
pools = {node: stats['pool'] for node, stats in ask('stats').items()}
pools[PY].pop('writes')
if shape(pools[PY]) != shape(pools[RS]) or len(pools[RS]['processes']) != 1:
    problems.append(f'pools: {pools}')
# Settings that both have are of one type, or not set; a time is a number of seconds here, as a user writes it.
settings = {node: shape(found) for node, found in ask('conf', {'with_defaults': True}).items()}
for name in settings[PY].keys() & settings[RS].keys():
    kinds = {str(settings[node][name]) for node in (PY, RS)}
    if len(kinds) > 1 and not kinds & {'NoneType', '[]'} and kinds != {'int', 'float'} and name != 'result_expires':
        problems.append(f'conf: {name}: {kinds}')
# Both go; what each says of itself while it lives and at the end has one form.
app.control.shutdown(destination=[PY, RS])
gone = lambda: {event['hostname'] for event in told if event['type'] == 'worker-offline'}
until('both say goodbye', lambda: gone() >= {PY, RS})
for kind in ('worker-heartbeat', 'worker-offline'):
    forms = [seen(next(event for event in told if (event['type'], event['hostname']) == (kind, node))) for node in (PY, RS)]
    if forms[0] != forms[1]:
        problems.append(f'{kind}: {forms}')
if problems:
    raise SystemExit('\n'.join(problems))
print('all good')
"#;
    assert_eq!(run_python(&program, &redis.url()), "all good\n");
    assert_eq!((python.wait(), worker.process.wait()), (Some(0), Some(0)));
}

/// The tasks of the profile `flower` of our example, in Python.
const TOLD: &str = "
import time
from celery import Celery
from celery.exceptions import Reject
app = Celery('app')
app.conf.update(task_track_started=True, task_send_sent_event=True)
@app.task(name='probe.add')
def add(x, y): return x + y
@app.task(name='probe.fail')
def fail(message='probe failure'): raise ValueError(message)
@app.task(name='probe.sleep')
def sleep(seconds): time.sleep(seconds)
@app.task(name='probe.retry', bind=True, max_retries=5)
def retry(self, times=2):
    if self.request.retries < times:
        raise self.retry(exc=KeyError('not yet'), countdown=1)
    return self.request.retries
@app.task(name='probe.reject', acks_late=True)
def reject(): raise Reject('not wanted', requeue=False)
";

#[test]
fn commands_do_what_they_say() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &["-n", "rs@ours", "-c", "1"]);
    let program = HEAD.to_owned()
        + r#"
def send(name, *args, **options):
    return app.send_task(name, args, **options)
def stamped(stamp, *args, **options):
    return send('hello.sleep', *args, headers={'stamped_headers': ['batch'], 'stamps': {'batch': stamp}}, **options)
# Terminate by stamp: what runs is ended, what waits never starts, others go on.
running, waiting, other = stamped('b1', 600), stamped(['b0', 'b1'], 600), stamped('b2', 0)
until('it runs', lambda: len(one('active')) == 1)
until('the others wait', lambda: len(one('reserved')) == 2)
answer = one('revoke_by_stamped_headers', {'headers': {'batch': ['b1', 'b9']}, 'terminate': True})
assert answer == {'ok': "headers defaultdict(<class 'set'>, {'batch': {'b1'}}) revoked"}, answer
state(running, 'REVOKED'), state(waiting, 'REVOKED'), state(other, 'SUCCESS')
late = stamped('b1', 600)
state(late, 'REVOKED')
# By id: one that waits for its time, and one that nobody has; a result that is there stays.
later, done = send('hello.add', 1, countdown=600), send('hello.add', 2)
assert done.get(timeout=20) == 2
until('it is scheduled', lambda: len(one('scheduled')) == 1)
one('revoke', {'task_id': [later.id, done.id, 'nobody-has-it']})
state(later, 'REVOKED'), state(app.AsyncResult('nobody-has-it'), 'REVOKED')
assert done.state == 'SUCCESS' and one('scheduled') == []
assert set(one('revoked')) >= {later.id, done.id, 'nobody-has-it'}
# Expired tasks are listed with the revoked ones, as Celery lists them.
expired = send('hello.add', 1, expires=-1)
state(expired, 'REVOKED')
assert expired.id in one('revoked')
# Limits reach what was received before them.
running, waiting = send('hello.sleep', 600), send('hello.sleep', 600)
until('one waits', lambda: len(one('reserved')) == 1)
assert one('time_limit', {'task_name': 'hello.sleep', 'hard': 0.2}) == {'ok': 'time limits set successfully'}
one('revoke', {'task_id': running.id, 'terminate': True})
state(waiting, 'FAILURE')
assert type(waiting.result).__name__ == 'TimeLimitExceeded', waiting.result
one('time_limit', {'task_name': 'hello.sleep'})
one('rate_limit', {'task_name': 'hello.add', 'rate_limit': '1/h'})
assert any(name == 'hello.add [rate_limit=1/h]' for name in one('registered'))
assert send('hello.add', 1).get(timeout=20) == 1
held = [send('hello.add', n) for n in range(3)]
# One rate-limited task is in none of the lists, and does not run.
until('they are here', lambda: len(one('query_task', {'ids': [task.id for task in held]})) == 3)
one('rate_limit', {'task_name': 'hello.add', 'rate_limit': '0'})
assert [task.get(timeout=20) for task in held] == [0, 1, 2]
# The pool, and with it the prefetch count, which shrinks also while all of it is in use.
size = lambda: (one('stats')['pool']['max-concurrency'], one('stats')['prefetch_count'])
assert size() == (1, 4), size()
one('pool_grow', {'n': 2})
assert size() == (3, 12), size()
tasks = [send('hello.sleep', 600) for _ in range(20)]
until('three run', lambda: len(one('active')) == 3 and len(one('reserved')) == 9)
one('pool_shrink', {'n': 2})
assert one('pool_shrink') == {'error': "ValueError(\"Can't shrink pool. All processes busy!\")"}
assert size() == (1, 4), size()
one('terminate', {'task_id': [task['id'] for task in one('active')], 'signal': 'KILL'})
until('one runs', lambda: len(one('active')) == 1)
app.control.revoke([task.id for task in tasks], terminate=True)
for task in tasks:
    state(task, 'REVOKED')
# Queues come and go.
one('add_consumer', {'queue': 'extra', 'exchange': 'ex', 'routing_key': 'key'})
assert send('hello.add', 7, queue='extra').get(timeout=20) == 7
one('cancel_consumer', {'queue': 'extra'})
left = send('hello.add', 8, queue='extra')
assert send('hello.add', 9).get(timeout=20) == 9 and left.state == 'PENDING'
# Who is meant: by name, by pattern, by expression; a flood of requests is answered in order, and tasks go on.
assert ask('ping', nodes=[RS], pattern='nobody@*', matcher='glob') == {RS: {'ok': 'pong'}}
def asked(pattern, matcher, **options):
    return app.control.broadcast('ping', reply=True, pattern=pattern, matcher=matcher, **options)
for pattern, matcher in (('rs@*', 'glob'), ('[a-z]s@ours', 'glob'), ('r.@o', 'pcre')):
    assert asked(pattern, matcher, timeout=20, limit=1) == [{RS: {'ok': 'pong'}}], pattern
for pattern, matcher in (('rs@', 'glob'), ('s@', 'pcre'), ('r(', 'pcre')):
    assert asked(pattern, matcher, timeout=0.5) == [], pattern
for _ in range(500):
    app.control.broadcast('stats')
assert send('hello.add', 10).get(timeout=20) == 10
assert one('ping') == {'ok': 'pong'}
print('all good')
"#;
    assert_eq!(run_python(&program, &redis.url()), "all good\n");
}

#[test]
fn a_pool_scales_itself() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &["-n", "rs@ours", "--autoscale", "3,1"]);
    let program = HEAD.to_owned()
        + r#"
assert one('stats')['autoscaler'] == {'max': 3, 'min': 1, 'current': 1, 'qty': 0}, one('stats')
assert one('stats')['prefetch_count'] == 12
tasks = [app.send_task('hello.sleep', (600,)) for _ in range(5)]
until('three run', lambda: len(one('active')) == 3)
assert one('autoscale', {'max': 4}) == {'ok': 'autoscale now max=4 min=1'}
until('four run', lambda: len(one('active')) == 4)
assert one('stats')['autoscaler'] == {'max': 4, 'min': 1, 'current': 4, 'qty': 5}, one('stats')['autoscaler']
assert one('stats')['prefetch_count'] == 16
for method in ('pool_grow', 'pool_shrink'):
    assert one(method) == {'error': f'{method} is not supported with autoscale. Adjust autoscale range instead.'}
assert 'error' in one('autoscale', {'max': 1, 'min': 2}) and 'error' in one('autoscale', {'max': 0})
app.control.revoke([task.id for task in tasks], terminate=True)
print('all good')
"#;
    assert_eq!(run_python(&program, &redis.url()), "all good\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn p_197_p_198_neighbours_tell_each_other_what_was_revoked() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let state = folder.path().join("worker.state");
    let state = state.to_str().unwrap();
    let client = redis.client().await;
    let mut first = Worker::start(&redis, &["-n", "w1@here", "--statedb", state]);
    first.wait_for_log("mingle: all alone");
    client.result("old").revoke(false).await.unwrap();
    first.wait_for_log("Tasks flagged as revoked: old");
    // Across a restart.
    assert_eq!(first.stop(), Some(0));
    let first = Worker::start(&redis, &["-n", "w1@here", "--statedb", state]);
    first.wait_for_log("mingle: all alone");
    let revoked = async |node: &str| -> Vec<String> {
        let nodes = [node.to_owned()];
        let answers = client.inspect("revoked", &json!({}), Some(&nodes), LONG).await.unwrap();
        serde_json::from_value(answers[node].clone()).unwrap()
    };
    assert_eq!(revoked("w1@here").await, ["old"]);
    // From Rust to Python, at its start.
    let mut python = python_worker(&redis, &folder, &["-n", "py@ref", "-Q", "py", "-c", "1"]);
    first.wait_for_log("sync with py@ref");
    until("Python's worker answers", async || {
        client.workers(Duration::from_millis(200)).await.unwrap().len() == 2
    })
    .await;
    assert_eq!(revoked("py@ref").await, ["old"]);
    // From Python to Rust: a worker that was not there then, and before it takes its first task.
    let py = ["py@ref".to_owned()];
    let revoke = json!({"task_id": "later"});
    client.inspect("revoke", &revoke, Some(&py), LONG).await.unwrap();
    let later = client
        .send(Call::new("hello.add").arg(1).task_id("later").queue("q2"))
        .await
        .unwrap();
    let second = Worker::start(&redis, &["-n", "w2@here", "-Q", "q2"]);
    second.wait_for_log("mingle: sync with 2 nodes");
    assert_eq!(revoked("w2@here").await, ["old", "later"]);
    later.get::<Value>(LONG).await.unwrap_err();
    assert_eq!(later.state().await.unwrap().as_str(), "REVOKED");
    // A clock that was seen counts on: no event is older than what it follows.
    let clocks = client
        .inspect("clock", &json!({}), None, Duration::from_secs(2))
        .await
        .unwrap();
    assert_eq!(clocks.len(), 3, "{clocks:?}");
    // Who falls silent is missed, and who has the same name is warned of.
    let double = Worker::start(&redis, &["-n", "w2@here", "-Q", "q3"]);
    double.wait_for_log("another worker has the node name w2@here too");
    second.wait_for_log("another worker has the node name w2@here too");
    python.kill();
    first.wait_for_log("missed heartbeat from py@ref");
}

#[tokio::test(flavor = "multi_thread")]
async fn p_201_an_election_has_one_winner_who_runs_the_task() {
    let redis = Redis::start();
    let workers = [
        Worker::start(&redis, &["-n", "w1@here", "-Q", "none"]),
        Worker::start(&redis, &["-n", "w2@here", "-Q", "none"]),
    ];
    // Each has heard of the other.
    let client = redis.client().await;
    client.cast("heartbeat", &json!({}), None).await.unwrap();
    let action = json!({"task": "hello.add", "args": [1, 2], "kwargs": {}, "options": {"task_id": "elected"}});
    let election = json!({"id": "e1", "topic": "task", "action": action});
    let answers = client
        .inspect("election", &election, None, Duration::from_secs(2))
        .await
        .unwrap();
    assert_eq!(answers, *json!({"w1@here": null, "w2@here": null}).as_object().unwrap());
    until("the task is sent", async || redis.length("LLEN", "celery") == 1).await;
    let won = |worker: &Worker| worker.log().contains("I won the election \"e1\"");
    let lost = |worker: &Worker| worker.log().contains("elected for \"e1\"");
    until("both know", async || {
        workers.iter().all(|worker| won(worker) || lost(worker))
    })
    .await;
    assert_eq!(workers.iter().filter(|worker| won(worker)).count(), 1);
    assert_eq!(redis.length("LLEN", "celery"), 1);
    // Nonsense harms nobody.
    for bad in [
        json!({"id": "e2", "topic": "task", "action": 5}),
        json!({"id": "e3", "topic": "x"}),
        json!({"id": 1, "topic": 2}),
    ] {
        client.cast("election", &bad, None).await.unwrap();
    }
    until("both answer", async || {
        client.workers(Duration::from_millis(500)).await.unwrap().len() == 2
    })
    .await;
}

/// Twenty thousand questions that nobody reads the answers of: tasks go on meanwhile. Then as many more as it takes until
/// no more answers are sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_commands_does_not_starve_tasks() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &["-n", "w@here", "-c", "2"]);
    let client = redis.client().await;
    // A client that asks and never reads.
    let (exchange, oid) = ("reply.celery.pidbox", "deaf");
    redis.command::<i64>(&[
        "SADD",
        &format!("_kombu.binding.{exchange}"),
        &format!("{oid}\x06\x16\x06\x16{oid}.{exchange}"),
    ]);
    let body = json!({"method": "report", "arguments": {}, "destination": null, "ticket": "t",
        "reply_to": {"exchange": exchange, "routing_key": oid}});
    let body = base64(body.to_string().as_bytes());
    let request = json!({"body": body, "content-type": "application/json", "content-encoding": "utf-8", "headers": {},
        "properties": {"body_encoding": "base64", "delivery_info": {}}})
    .to_string();
    let url = redis.url();
    let ask = move |times: usize| {
        let mut connection = redis::Client::open(&*url).unwrap().get_connection().unwrap();
        for _ in 0..times {
            let mut pipe = redis::pipe();
            for _ in 0..200 {
                pipe.publish("/0.celery.pidbox", &request).ignore();
            }
            pipe.exec(&mut connection).unwrap();
        }
    };
    let asks = ask.clone();
    let flood = std::thread::spawn(move || asks(100));
    let mut slowest = Duration::ZERO;
    let mut done = 0;
    while !flood.is_finished() || done < 20 {
        let began = std::time::Instant::now();
        let sum: i64 = client
            .send(Call::new("hello.add").arg(1).arg(2))
            .await
            .unwrap()
            .get(LONG)
            .await
            .unwrap();
        assert_eq!(sum, 3);
        slowest = slowest.max(began.elapsed());
        done += 1;
    }
    flood.join().unwrap();
    assert!(
        slowest < Duration::from_secs(5),
        "a task took {slowest:?} beside the flood"
    );
    // It is still to be asked, and what the deaf client was sent is bounded and goes. What waits is bounded as well, so
    // that the flood alone may have been too fast for it to answer that often.
    let answers = async || {
        until("it answers again", async || {
            let answers = client
                .inspect("ping", &json!({}), None, Duration::from_secs(2))
                .await
                .unwrap();
            answers.contains_key("w@here")
        })
        .await;
    };
    let key = format!("{oid}.{exchange}");
    answers().await;
    until("there are as many answers as there may be", async || {
        ask(10);
        answers().await;
        redis.length("LLEN", &key) >= 10_000
    })
    .await;
    ask(2);
    answers().await;
    assert_eq!(redis.length("LLEN", &key), 10_000);
    assert!((1..=60).contains(&redis.command::<i64>(&["TTL", &key])));
    let nonsense = client
        .inspect("nosuch", &json!({}), None, Duration::from_secs(2))
        .await
        .unwrap();
    assert_eq!(nonsense["w@here"], json!({"error": "KeyError('nosuch')"}));
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn p_166_whoever_sends_a_task_tells_if_asked() {
    let redis = Redis::start();
    let environment = [("ORCHESTRA_TASK_SEND_SENT_EVENT", "true")];
    let mut worker = Worker::start_with(&redis, &["-n", "rs@ours", "-E"], &environment);
    // Celery's own receiver of events, until the worker has said goodbye.
    let program = HEAD.to_owned()
        + r#"
events = []
def note(event):
    events.append(event)
    if event['type'] == 'worker-heartbeat' and len(events) == 1:
        print('listening', file=sys.stderr, flush=True)
    if event['type'] == 'worker-offline':
        receiver.should_stop = True
with app.connection() as connection:
    receiver = app.events.Receiver(connection, handlers={'*': note})
    receiver.capture(limit=None, timeout=60, wakeup=False)
clocks = [event['clock'] for event in events if event['hostname'] == 'rs@ours']
assert clocks == sorted(set(clocks)), clocks
for event in events:
    assert {'type', 'hostname', 'timestamp', 'utcoffset', 'pid', 'clock'} <= set(event), event
print(json.dumps(events))
"#;
    let folder = Folder::new();
    let listening = folder.path().join("stderr");
    let child = Command::new(python())
        .args(["-c", &program, &redis.url()])
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&listening).unwrap())
        .spawn()
        .unwrap();
    until("somebody listens", async || {
        std::fs::read_to_string(&listening).unwrap().contains("listening")
    })
    .await;
    let client = Client::connect(&redis.url())
        .await
        .unwrap()
        .with_sent_events("celeryev");
    let flaky = client.send(Call::new("hello.flaky").arg(2)).await.unwrap();
    assert_eq!(flaky.get::<u32>(LONG).await.unwrap(), 2);
    worker.wait_for_log("succeeded in");
    worker.process.signal(Signal::SIGTERM);
    assert_eq!(worker.process.wait(), Some(0));
    let out = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{text}{}",
        std::fs::read_to_string(&listening).unwrap()
    );
    let events: Vec<Value> = serde_json::from_str(&text).unwrap();
    let told: Vec<&Value> = events.iter().filter(|event| event["uuid"] == flaky.id()).collect();
    let names: Vec<&str> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let run = ["task-sent", "task-received", "task-started"];
    assert_eq!(
        names.iter().filter(|name| **name == "task-sent").count(),
        3,
        "{names:?}"
    );
    assert!(
        run.iter().all(|name| names.contains(name)) && names.contains(&"task-succeeded"),
        "{names:?}"
    );
    let sent = told.iter().find(|event| event["type"] == "task-sent").unwrap();
    for (field, value) in [
        ("name", json!("hello.flaky")),
        ("args", json!("(2,)")),
        ("kwargs", json!("{}")),
        ("retries", json!(0)),
        ("queue", json!("celery")),
        ("routing_key", json!("celery")),
        ("exchange", json!("")),
        ("root_id", json!(flaky.id())),
        ("parent_id", Value::Null),
        ("eta", Value::Null),
        ("expires", Value::Null),
    ] {
        assert_eq!(sent[field], value, "{field}");
    }
    assert!(
        worker.log().contains(": 2"),
        "the result is in the log:\n{}",
        worker.log()
    );
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["processed"]),
        (&json!("worker-offline"), &json!(3))
    );
}

#[test]
fn a_state_file_that_is_not_ours_is_refused() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let path = folder.write("celery.db", "a shelf of Python's");
    let mut worker = Worker::spawn("hello_task", &redis, &["--statedb", path.to_str().unwrap()], &[]);
    assert_eq!(worker.process.wait(), Some(1));
    assert!(worker.log().contains("it is not one of ours"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_prometheus_how_it_is() {
    let mut redis = Redis::start();
    let mut worker = Worker::start(&redis, &["-c", "1", "--metrics-addr", ":0"]);
    let log = worker.log();
    let url = log
        .lines()
        .find_map(|line| line.strip_prefix("orchestra-worker: metrics at "))
        .unwrap();
    let base = url.strip_suffix("/metrics").unwrap().to_owned();
    let asked = async |path: &str| {
        let answer = get(&format!("{base}{path}")).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(asked("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(asked("/readyz").await, (200, "ok\n".to_owned()));
    let client = redis.client().await;
    client
        .send(Call::new("hello.add").arg(1))
        .await
        .unwrap()
        .get::<i64>(LONG)
        .await
        .unwrap();
    client
        .send(Call::new("hello.add"))
        .await
        .unwrap()
        .get::<i64>(LONG)
        .await
        .unwrap_err();
    let long = client.send(Call::new("hello.sleep").arg(600)).await.unwrap();
    client.send(Call::new("hello.add").arg(2)).await.unwrap();
    let lines = async || asked("/metrics").await.1;
    for wanted in [
        "orchestra_tasks_total{task=\"hello.add\",state=\"succeeded\"} 1",
        "orchestra_tasks_total{task=\"hello.add\",state=\"failed\"} 1",
        "orchestra_tasks_total{task=\"hello.sleep\",state=\"started\"} 1",
        "orchestra_task_runtime_seconds_count{task=\"hello.add\"} 2",
        "orchestra_task_wait_seconds_count{task=\"hello.sleep\"} 1",
        "orchestra_tasks_running 1",
        "orchestra_tasks_reserved 1",
        "orchestra_tasks_held 2",
        "orchestra_pool_places 1",
        "orchestra_prefetch_count 4",
    ] {
        until(wanted, async || lines().await.lines().any(|line| line == wanted)).await;
    }
    let text = lines().await;
    assert!(
        text.contains("# TYPE orchestra_tasks counter") && text.ends_with("# EOF\n"),
        "{text}"
    );
    assert_eq!(asked("/other").await.0, 404);
    redis.stop();
    until("it is not ready without Redis", async || {
        asked("/readyz").await.0 == 503
    })
    .await;
    assert_eq!(asked("/healthz").await.0, 200);
    redis.start_again();
    until("it is ready again", async || asked("/readyz").await.0 == 200).await;
    until("that was counted", async || {
        lines()
            .await
            .contains("orchestra_reconnects_total{connection=\"news\"} 1")
    })
    .await;
    // A Redis that answers and gives nothing: said once, and whoever asks is told.
    redis.command::<()>(&["ACL", "SETUSER", "default", "-evalsha"]);
    redis.command::<i64>(&["LPUSH", "celery", "garbage"]);
    until("it takes nothing", async || {
        let (status, why) = asked("/readyz").await;
        status == 503 && why.starts_with("messages cannot be taken: ")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    redis.command::<()>(&["ACL", "SETUSER", "default", "+evalsha"]);
    until("it takes messages again", async || asked("/readyz").await.0 == 200).await;
    worker.wait_for_log("messages can be taken again");
    let log = worker.log();
    assert_eq!(
        log.matches("messages cannot be taken; trying again").count(),
        1,
        "{log}"
    );
    // While it waits for what runs it takes nothing new, and says so.
    worker.process.signal(Signal::SIGTERM);
    until("it is about to stop", async || {
        asked("/readyz").await == (503, "the worker is about to stop\n".to_owned())
    })
    .await;
    long.revoke(true).await.unwrap();
    assert_eq!(worker.process.wait(), Some(0));
}
