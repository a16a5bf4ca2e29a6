//! Every way in which a run may end, and what a worker says of itself: by a Python worker and by ours, which must not
//! differ. The tasks are those of `examples/conformance_worker/ends.rs`.

use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use nix::sys::signal::Signal;
use orchestra::client::Call;

use crate::proxy::Proxy;
use crate::support::{Folder, LONG, Process, Redis, Worker, python, run_python, until};

const APP: &str = "
import os, time
from celery import Celery
from celery.exceptions import Ignore, Reject
app = Celery('app', broker=os.environ['URL'], backend=os.environ['URL'])
app.conf.worker_enable_remote_control = 'ORCHESTRA_WORKER_ENABLE_REMOTE_CONTROL' not in os.environ
def task(name, run, **options):
    run.__name__ = name
    app.task(run, bind=True, name='end.' + name, **options)
def fails(self): raise ValueError('no')
def ignore(self): raise Ignore()
def requeue(self):
    if not self.request.delivery_info['redelivered']: raise Reject('later', requeue=True)
    return 'again'
def slow(self):
    if not self.request.delivery_info['redelivered']: time.sleep(60)
    return 'again'
def retry(self): raise self.retry()
def once_more(self):
    if not self.request.retries: raise self.retry(countdown=0)
    return self.request.retries
def nap(self, seconds):
    time.sleep(seconds)
    return seconds
task('floats', lambda self, numbers: numbers + [float('nan'), float('inf')])
task('unwritable', lambda self: {(1, 2): 3})
task('well', lambda self: 1)
task('ignore', ignore)
task('requeue', requeue, acks_late=True)
task('late_fail', fails, acks_late=True)
task('dropped', fails, acks_late=True, acks_on_failure=False)
task('slow', slow, acks_late=True, acks_on_timeout=False)
task('gives_up', retry, max_retries=0)
task('later', retry)
task('once_more', once_more)
task('unwanted', fails, ignore_result=True, track_started=True)
task('unwanted_but_told', fails, ignore_result=True, track_started=True, store_errors_even_if_ignored=True)
task('silent', lambda self: 2, send_events=False)
task('nap', nap)
";

const HEAD: &str = r"
import json, math, sys, threading
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
redis = app.backend.client
heard = []
def listen():
    with app.connection() as connection:
        app.events.Receiver(connection, handlers={'*': heard.append}).capture(limit=None, timeout=None)
before = redis.pubsub_numpat()
threading.Thread(target=listen, daemon=True).start()
until('somebody listens', lambda: redis.pubsub_numpat() > before)
PLACES = {'ours': 'ours@here', 'theirs': 'theirs@here'}
def started(test):
    # On a busy machine a Python worker takes its time.
    for _ in range(3):
        try:
            return until('both have started', test)
        except SystemExit as error:
            late = error
    raise late
";

/// P-015, P-031, P-074, P-075, P-078 to P-081, P-083, P-089, P-090, P-094, P-149, P-164, P-165.
const ENDS: &str = r"
started(lambda: len(app.control.inspect(timeout=0.5).ping() or {}) == 2)
def events(id):
    told = []
    for event in list(heard):
        if event.get('uuid') == id and event['type'] != 'task-sent':
            fields = {k: event[k] for k in ('requeue', 'retries', 'result') if k in event}
            # Python tells twice of a hard limit: its pool and its worker.
            if not told or told[-1] != (event['type'], fields):
                told.append((event['type'], fields))
    return told
def held():
    return redis.hlen('unacked') + redis.llen('ours') + redis.llen('theirs')
def shown(value):
    if isinstance(value, list):
        return [shown(item) for item in value]
    return 'nan' if isinstance(value, float) and math.isnan(value) else value
def run(queue):
    seen = {}
    def case(name, *args, last, stored=True, **options):
        result = app.send_task('end.' + name, args, queue=queue, **options)
        if last:
            until(f'{name} on {queue}: {last}, {events(result.id)}', lambda: any(kind == last for kind, _ in events(result.id)))
        until(f'nothing is held of {name} on {queue}', lambda: held() == 0)
        record = json.loads(redis.get('celery-task-meta-' + result.id) or 'null')
        assert bool(record) == stored, (name, queue, record)
        end = record and (record['status'], shown(record['result']), [child[0][0] == result.id for child in record['children']])
        if name == 'unwritable':
            # The words for it are each language's own.
            end, told = (end[0], end[1]['exc_type']), [kind for kind, _ in events(result.id)]
        else:
            told = events(result.id)
        if name == 'once_more':
            # Python may receive the retry before it tells of it.
            told.sort(key=repr)
        end, told = json.loads(json.dumps([end, told]).replace(result.id, 'its-id'))
        seen[name + str(args or '')] = end, told
        return result
    case('floats', [1.5, math.nan, -math.inf], last='task-succeeded')
    case('unwritable', last='task-failed')
    case('well', last='task-succeeded')
    case('ignore', last='task-started', stored=False)
    case('requeue', last='task-succeeded', priority=6)
    case('late_fail', last='task-failed')
    case('dropped', last='task-rejected')
    case('slow', last='task-succeeded', time_limit=1)
    case('gives_up', last='task-failed')
    case('once_more', last='task-succeeded')
    case('unwanted', last='task-failed', stored=False)
    case('unwanted_but_told', last='task-failed')
    # No events, but a result.
    silent = app.send_task('end.silent', queue=queue)
    assert silent.get(timeout=20) == 2 and not events(silent.id), events(silent.id)
    # P-090: three minutes when nothing is said.
    later = app.send_task('end.later', queue=queue)
    until('it waits', lambda: later.state == 'RETRY' and any(r['request']['id'] == later.id for r in app.control.inspect([PLACES[queue]], timeout=2).scheduled()[PLACES[queue]]))
    from datetime import datetime, timezone
    [waits] = [r for r in app.control.inspect([PLACES[queue]], timeout=2).scheduled()[PLACES[queue]] if r['request']['id'] == later.id]
    pause = datetime.fromisoformat(waits['eta']) - datetime.now(timezone.utc)
    assert 150 < pause.total_seconds() <= 180, waits
    later.revoke()
    raised(later)
    return seen
ours, theirs = run('ours'), run('theirs')
different = [f'{name}\n  ours:   {ours[name]}\n  theirs: {theirs[name]}' for name in ours if ours[name] != theirs[name]]
assert not different, '\n'.join(different)
assert ours['floats([1.5, nan, -inf],)'][0][1] == [1.5, 'nan', -math.inf, 'nan', math.inf], ours
assert ours['requeue'][1][-1][0] == 'task-succeeded' and ['task-rejected', {'requeue': True}] in ours['requeue'][1], ours
print('all good')
";

/// A Python worker with the same tasks.
fn theirs(redis: &Redis, folder: &Folder, arguments: &[&str], environment: &[(&str, &str)]) -> Process {
    folder.write("app.py", APP);
    let child = Command::new(python())
        .args(["-m", "celery", "-A", "app", "worker", "-c", "1"])
        .args(["-Q", "theirs", "-n", "theirs@here", "-l", "ERROR"])
        .args(arguments)
        .current_dir(folder.path())
        .env("URL", redis.url())
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Process::from(child.unwrap())
}

fn ours(redis: &Redis, arguments: &[&str], environment: &[(&str, &str)]) -> Worker {
    let words = ["ends", "--quiet", "-Q", "ours", "-n", "ours@here", "-c", "1"];
    let worker = Worker::spawn_words("conformance_worker", &words, redis, arguments, environment);
    worker.wait_for_log("orchestra-worker: ready");
    worker
}

#[test]
fn p_074_to_p_094_every_end_of_a_run_is_that_of_a_python_worker() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let mut theirs = theirs(&redis, &folder, &["-E"], &[]);
    let mut ours = ours(&redis, &["-E"], &[]);
    let program = [HEAD, ENDS].concat();
    assert_eq!(run_python(&program, &redis.url()), "all good\n");
    // P-112: Ctrl-C, with Celery's exit code for it.
    ours.process.signal(Signal::SIGINT);
    assert_eq!(ours.process.wait(), Some(1));
    // In peace, or its children stay.
    theirs.signal(Signal::SIGTERM);
    theirs.wait();
}

/// P-163, P-165, P-167, P-168, P-170, P-172, P-176, P-194, P-199.
const PRESENCE: &str = r"
def by(place, kind):
    return [event for event in list(heard) if event['hostname'] == PLACES[place] and event['type'] == kind]
def both(what, test):
    for place in PLACES:
        until(f'{what}: {place}', lambda: test(place))
started(lambda: all(by(place, 'worker-online') for place in PLACES))
both('a heartbeat', lambda place: by(place, 'worker-heartbeat'))
for kind in 'worker-online', 'worker-heartbeat':
    ours, theirs = (by(place, kind)[0] for place in PLACES)
    assert set(ours) == set(theirs), (kind, set(ours) ^ set(theirs))
    assert ours['freq'] == theirs['freq'], (ours, theirs)
    assert all(type(ours[name]) is type(theirs[name]) for name in ours), (ours, theirs)
until('both answer', lambda: len(app.control.inspect(timeout=0.5).ping() or {}) == 2)
bound = {member.decode().split('\x06\x16')[-1] for member in redis.smembers('_kombu.binding.celery.pidbox')}
assert {name + '.celery.pidbox' for name in PLACES.values()} <= bound, bound
# Nobody waits for an answer: none is sent.
for key in redis.scan_iter('*reply.celery.pidbox*'):
    redis.delete(key)
app.control.broadcast('ping')
def told(place):
    before = len(by(place, 'task-succeeded'))
    app.send_task('end.well', queue=place).get(timeout=20)
    time.sleep(0.3)
    return len(by(place, 'task-succeeded')) - before
assert not list(redis.scan_iter('*reply.celery.pidbox*')), list(redis.scan_iter('*'))
# Whoever was started with -E goes on.
assert [told('ours'), told('theirs')] == [1, 1]
answers = app.control.disable_events(reply=True, timeout=2)
said = {name: text for answer in answers for name, text in answer.items()}
assert len(said) == 2 and said['ours@here'] == said['theirs@here'], said
assert told('ours') == told('theirs'), 'one tells, the other not'
# The clock follows whoever is ahead.
with app.connection() as connection, app.events.Dispatcher(connection, hostname='far@away') as far:
    app.clock.value = 10_000_000
    far.send('worker-heartbeat', freq=2, active=0, processed=0, loadavg=[0, 0, 0])
both('the clock follows', lambda place: by(place, 'worker-heartbeat')[-1]['clock'] > 10_000_000)
app.control.shutdown()
both('offline', lambda place: by(place, 'worker-offline'))
assert set(by('ours', 'worker-offline')[0]) == set(by('theirs', 'worker-offline')[0])
print('all good')
";

/// P-169, P-196, and P-165 without `-E`.
const SILENCE: &str = r"
for place in PLACES:
    assert app.send_task('end.well', queue=place).get(timeout=60) == 1
time.sleep(2.5)
assert not heard, heard
assert not app.control.inspect(timeout=0.5).ping()
assert not redis.exists('_kombu.binding.celery.pidbox'), redis.smembers('_kombu.binding.celery.pidbox')
print('all good')
";

/// Runs the program, and workers as soon as it listens.
fn listened_to(program: &str, options: &[&str], environment: &[(&str, &str)]) -> (Redis, Worker, Process, Folder) {
    let (redis, folder) = (Redis::start(), Folder::new());
    let (program, url) = ([HEAD, program].concat(), redis.url());
    let listener = std::thread::spawn(move || run_python(&program, &url));
    while redis.command::<i64>(&["PUBSUB", "NUMPAT"]) == 0 && !listener.is_finished() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let theirs = theirs(&redis, &folder, options, environment);
    let ours = ours(&redis, options, environment);
    assert_eq!(listener.join().unwrap(), "all good\n", "{}", ours.log());
    (redis, ours, theirs, folder)
}

#[test]
fn p_163_to_p_199_a_worker_says_of_itself_what_a_python_worker_says() {
    let (redis, mut ours, mut theirs, _folder) = listened_to(PRESENCE, &["-E"], &[]);
    assert_eq!((ours.process.wait(), theirs.wait()), (Some(0), Some(0)));
    // P-025: who is gone is not bound any more.
    let bound: Vec<String> = redis.command(&["SMEMBERS", "_kombu.binding.celery.pidbox"]);
    assert!(!bound.iter().any(|member| member.contains("ours@here")), "{bound:?}");
}

#[test]
fn p_165_p_169_p_196_a_worker_that_is_to_be_silent_says_nothing() {
    let silent = [("ORCHESTRA_WORKER_ENABLE_REMOTE_CONTROL", "false")];
    let options = ["--without-heartbeat"];
    let (_redis, mut ours, mut theirs, _folder) = listened_to(SILENCE, &options, &silent);
    assert_eq!(ours.stop(), Some(0));
    theirs.signal(Signal::SIGTERM);
    theirs.wait();
}

/// P-171: what happened while nobody could be told is told later.
#[tokio::test(flavor = "multi_thread")]
async fn p_171_events_wait_for_the_connection() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let words = ["ends", "--quiet", "-Q", "ours", "-n", "ours@here", "-E"];
    let worker = Worker::spawn_process("conformance_worker", &words, &proxy.url(), &[], &[]);
    worker.wait_for_log("orchestra-worker: ready");
    let (seen, mut events) = tokio::sync::mpsc::unbounded_channel();
    let url = redis.url();
    std::thread::spawn(move || {
        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_connection().unwrap();
        let mut listener = connection.as_pubsub();
        listener.psubscribe("*celeryev/task.multi").unwrap();
        while let Ok(message) = listener.get_message() {
            let text: String = message.get_payload().unwrap();
            if seen.send(text).is_err() {
                return;
            }
        }
    });
    until("somebody listens", async || {
        redis.command::<i64>(&["PUBSUB", "NUMPAT"]) > 0
    })
    .await;
    let client = redis.client().await;
    let nap = client.send(Call::new("end.nap").queue("ours").arg(1)).await.unwrap();
    worker.wait_for_log("received");
    proxy.refuse(true);
    proxy.close();
    worker.wait_for_log("lost the connection");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    proxy.refuse(false);
    nap.get::<f64>(LONG).await.unwrap();
    let succeeded = async {
        loop {
            let text = events.recv().await.unwrap();
            let body = &serde_json::from_str::<serde_json::Value>(&text).unwrap()["body"];
            let body = base64::engine::general_purpose::STANDARD
                .decode(body.as_str().unwrap())
                .unwrap();
            if String::from_utf8(body).unwrap().contains("task-succeeded") {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, succeeded).await.expect("the event came");
}
