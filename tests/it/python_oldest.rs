//! The oldest Celery whose clients are served: 5.3.0, with the kombu and the Redis client of its time. The newest is in
//! all other tests.

use std::process::{Command, Stdio};

use crate::support::{Folder, Process, Redis, Worker, oldest_python, run_python_of};

const PROGRAM: &str = r#"
import sys, time, datetime
import celery, kombu, redis
from celery import Celery, chain, chord, group
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult, GroupResult
assert celery.__version__ == '5.3.0' and kombu.__version__ == '5.3.0' and redis.__version__ < '5', (celery, kombu, redis)
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
s = lambda name, *args: app.signature('flow.' + name, args)
value = lambda result: result.get(timeout=20)
assert value(s('add', 1, 2).delay()) == 3
assert value(s('add').apply_async((1,), {'y': 5}, priority=9, compression='gzip', expires=60, headers={'own': 1})) == 6
soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=0.5)
assert value(s('add', 1, 2).apply_async(eta=soon)) == 3
error = raised(s('fail', 'why').delay())
assert type(error) is ValueError and str(error) == 'why', repr(error)
assert value(chain(s('add', 1, 2), s('add', 3), s('add', 4))()) == 10
assert value(group(s('add', n, n) for n in range(10))()) == [2 * n for n in range(10)]
for _ in range(5):
    # Its clients put a chord of one member together in another way than those of today.
    assert value(chord([s('add', n, 1) for n in range(8)])(s('sum'))) == 36
    assert value(chord([s('add', 1, 1)])(s('sum'))) == 2
assert value(chain(s('add', 0, 1), group(s('add', 1), s('add', 2)), s('sum'), s('add', 1))()) == 6
failed = chord([s('add', 1, 1), s('fail', 'no')])(s('sum'))
assert 'no' in str(raised(failed)), repr(raised(failed))
value(s('add', 1, 1).apply_async(link=s('note').set(task_id='linked')))
raised(s('fail', 'x').apply_async(link_error=s('note').set(task_id='told')))
assert value(AsyncResult('linked', app=app)) == 2 and value(AsyncResult('told', app=app))
saved = group(s('add', 1, 1), s('add', 2, 2)).apply_async()
saved.save()
until('the group is done', lambda: GroupResult.restore(saved.id, app=app).successful())
# What waits is revoked; what was revoked says so.
waits = s('add', 1, 1).apply_async(countdown=60)
until('it waits', lambda: any(app.control.inspect(timeout=1).scheduled().values()))
waits.revoke()
assert isinstance(raised(waits), TaskRevokedError)
inspect = app.control.inspect(timeout=3)
[name] = inspect.ping()
assert name == 'ours@here' and inspect.ping()[name] == {'ok': 'pong'}
assert 'flow.add' in inspect.registered()[name]
assert inspect.stats()[name]['total']['flow.add'] > 10
assert [queue['name'] for queue in inspect.active_queues()[name]] == ['celery', 'ours', 'shared']
assert app.control.rate_limit('flow.add', '1000/s', reply=True, timeout=3) and inspect.conf()[name]
# Its worker beside ours: members end on both.
until('its worker is there', lambda: app.send_task('python.double', (2,), queue='stock').get(timeout=20) == 4)
double = lambda *args: app.signature('python.double', args, queue='stock')
assert value(chain(double(1), s('add', 1).set(queue='ours'), double())()) == 6
assert value(group(double(2), s('add', 1, 1).set(queue='ours'))()) == [4, 2]
# Chords whose parts both count, and whose body either sends: on one queue, and with a last member of either.
shared = lambda name, *args: app.signature('flow.' + name, args, queue='shared')
for _ in range(20):
    assert value(chord([shared('add', n, 1) for n in range(8)])(shared('sum'))) == 36
late = lambda queue: app.signature('python.double' if queue == 'stock' else 'flow.add', (2,) if queue == 'stock' else (2, 2), queue=queue, countdown=0.7)
for queue in 'stock', 'ours':
    assert value(chord([late(queue), s('add', 1, 1).set(queue='ours'), double(1)])(s('sum').set(queue='ours'))) == 8
    failed = chord([late(queue), app.signature('flow.fail', ('no',), queue='ours'), double(1)])(s('sum').set(queue='ours'))
    assert 'no' in str(raised(failed)), repr(raised(failed))
theirs = int(app.backend.client.get('theirs'))
ours = app.control.inspect(['ours@here'], timeout=3).stats()['ours@here']['total']['flow.add']
assert theirs > 20 and ours > 60, (theirs, ours)
left = [key for key in app.backend.client.scan_iter('celery-taskset-meta-*') if key[-2:] in (b'.j', b'.t', b'.s')]
# What is left is of chords that failed, and goes by itself.
assert len(left) <= 6 and all(app.backend.client.ttl(key) > 0 for key in left), left
print('all good')
"#;

const STOCK: &str = "
import os
from celery import Celery
app = Celery(broker=os.environ['URL'], backend=os.environ['URL'])
@app.task(name='python.double')
def double(x):
    return 2 * x
@app.task(name='flow.add')
def add(x, y):
    app.backend.client.incr('theirs')
    return x + y
@app.task(name='flow.sum')
def total(numbers):
    return sum(numbers)
";

#[test]
fn the_oldest_celery_sends_composes_revokes_and_inspects() {
    let redis = Redis::start();
    let _ours = Worker::start_program(
        "workflow",
        &redis,
        &["-Q", "celery,ours,shared", "-n", "ours@here", "-c", "4"],
        &[],
    );
    let folder = Folder::new();
    folder.write("stock.py", STOCK);
    let mut stock = Command::new(oldest_python());
    stock
        .args([
            "-m",
            "celery",
            "-A",
            "stock",
            "worker",
            "-P",
            "solo",
            "-Q",
            "stock,shared",
            "-l",
            "ERROR",
        ])
        .args(["-n", "stock@here"])
        .current_dir(folder.path())
        .env("URL", redis.url())
        .stdout(Stdio::null());
    let program = PROGRAM.split("# Its worker beside ours").collect::<Vec<_>>();
    assert_eq!(
        run_python_of(
            &oldest_python(),
            &(program[0].to_owned() + "print('all good')"),
            &redis.url()
        ),
        "all good\n"
    );
    let _stock = Process::from(stock.spawn().unwrap());
    // The second part needs the head of the first.
    let head = program[0].split("assert value(s('add', 1, 2).delay())").next().unwrap();
    let second = format!("{head}\n#{}", program[1]);
    assert_eq!(run_python_of(&oldest_python(), &second, &redis.url()), "all good\n");
}
