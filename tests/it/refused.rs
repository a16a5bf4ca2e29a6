//! What follows a task and Redis refuses for good: nothing of it is lost in silence.

use std::time::Duration;

use orchestra::client::Call;
use serde_json::{Value, json};

use crate::cli::{orchestra, text};
use crate::messages::message;
use crate::proxy::Proxy;
use crate::support::{LONG, Redis, Worker, run_python, until};

/// From the stock client. Each key that is a text is a queue that nobody can send to.
const PYTHON: &str = r#"
import sys
from celery import Celery, chain, chord, group
from celery.result import AsyncResult
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
redis = app.backend.client
add = lambda *args, **options: app.signature('hello.add', args=args, options=options)
def is_refused(result, queue):
    error = raised(result)
    assert type(error).__name__ == 'OperationalError' and queue in str(error) and 'WRONGTYPE' in str(error), repr(error)
    until(queue, lambda: redis.llen(queue + '.dead') == 1)
for queue in ('next', 'linked', 'again', 'told', 'body', 'late'):
    redis.set(queue, 'no list')

# The next step of a chain, early and late acks; what stands behind it fails as well, and its error callbacks are called.
last = chain(add(1, 2), add(3, queue='next'), add(4)).apply_async(link_error=app.signature('celery.accumulate', task_id='called'))
is_refused(last.parent, 'next')
assert type(raised(last)).__name__ == 'OperationalError'
assert last.parent.parent.get(timeout=20) == 3
last = chain(app.signature('hello.sleep', args=(0,)), add(3, queue='late', immutable=True)).apply_async()
is_refused(last, 'late')
assert last.parent.get(timeout=20) == 'rested'

# A callback.
first = add(1, 2).apply_async(link=add(3, queue='linked', task_id='the-callback'))
assert first.get(timeout=20) == 3
is_refused(AsyncResult('the-callback', app=app), 'linked')

# An error callback, of a name that runs in no worker of ours.
failed = add(2**63 - 1, 1).apply_async(link_error=app.signature('far.away', queue='told', task_id='the-errback'))
assert type(raised(failed)).__name__ == 'ValueError'
is_refused(AsyncResult('the-errback', app=app), 'told')

# A retry goes where the task was sent, and here that is not where it was taken from.
redis.delete('again')
flaky = app.send_task('hello.flaky', (2,), queue='again')
message = redis.rpop('again')
redis.set('again', 'no list')
redis.lpush('celery', message)
is_refused(flaky, 'again')

# The body of a chord.
body = chord([add(1, 1), add(2, 2)])(app.signature('celery.accumulate', queue='body'))
error = raised(body)
assert type(error).__name__ == 'ChordError' and 'WRONGTYPE' in str(error), repr(error)
until('body', lambda: redis.llen('body.dead') == 1)

until('nothing is held', lambda: redis.hlen('unacked') == 0)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_will_not_take_of_a_workflow_is_kept_and_the_workflow_fails() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &["-c", "2"]);
    run_python(PYTHON, &redis.url());
    let log = worker.log();
    for (queue, id) in [("linked", "the-callback"), ("told", "the-errback")] {
        let line = log
            .lines()
            .find(|line| line.contains(id) && line.contains("cannot be sent"));
        assert!(
            line.is_some_and(|line| line.contains(&format!("{queue}.dead"))),
            "{log}"
        );
    }
    assert!(!log.contains("refused a write"), "{log}");
    let letters = text(&orchestra(&redis, &["dead", "list", "--json", "-Q", "next"]));
    let letter: Value = serde_json::from_str(&letters).unwrap();
    let reason = letter["reason"].as_str().unwrap();
    assert!(reason.contains("\"next\"") && reason.contains("WRONGTYPE"), "{letter}");
    // It runs once somebody has made room for it.
    redis.command::<u64>(&["DEL", "next"]);
    let requeued = text(&orchestra(&redis, &["dead", "requeue", "--all", "--yes", "-Q", "next"]));
    assert_eq!(requeued, "requeued 1 to next\n");
    assert_eq!(redis.length("LLEN", "next"), 1);
}

/// Where the dead letter is refused as well, the task that it follows is not acknowledged, and runs again.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_and_can_be_kept_nowhere_keeps_the_task_before_it() {
    const PROGRAM: &str = r#"
import sys
from celery import Celery, chain, chord
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
rest = lambda **options: app.signature('hello.sleep', args=(0,), options=options)
add = app.signature('hello.add', args=(1, 2), queue='next', immutable=True)
last = chain(rest(), add).apply_async()
assert 'next.dead' in str(raised(last)) or 'WRONGTYPE' in str(raised(last))
# The member of a chord is counted, and kept.
body = chord([rest(link=add.clone()), rest()])(app.signature('celery.accumulate'))
assert body.get(timeout=20)
"#;
    let redis = Redis::start();
    for key in ["next", "next.dead"] {
        redis.command::<()>(&["SET", key, "no list"]);
    }
    let settings = [(
        "ORCHESTRA_BROKER_TRANSPORT_OPTIONS",
        "{visibility_timeout = 4, max_deliveries = 100}",
    )];
    let worker = Worker::start_with(&redis, &["-c", "2"], &settings);
    run_python(PROGRAM, &redis.url());
    until("both are held", async || redis.length("HLEN", "unacked") == 2).await;
    assert!(worker.log().contains("stays in unacked"), "{}", worker.log());
    redis.command::<u64>(&["DEL", "next", "next.dead"]);
    until("both ran again", async || redis.length("LLEN", "next") == 2).await;
    until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
}

/// The connection breaks when Redis has done what was asked, and before it has said so.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_is_sent_once_though_the_answer_is_lost() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let worker = Worker::spawn_at("hello_task", &proxy.url(), &["-c", "1"], &[]);
    worker.wait_for_log("orchestra-worker: ready");
    let client = redis.client().await;
    // A task with a callback, into a queue that nobody serves.
    let follow = async |id: &str, queue: &str| {
        let callback = json!({"task": "hello.add", "args": [1], "kwargs": {}, "options": {"queue": queue},
                              "subtask_type": null, "immutable": false});
        let mut sent = message(id, &json!([[300, 1], {}, {"callbacks": [callback]}]));
        sent["headers"]["task"] = json!("hello.nap");
        redis.command::<u64>(&["LPUSH", "celery", &sent.to_string()]);
        worker.wait_for_log(&format!("{id}] received"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        proxy.cut();
        assert_eq!(client.result(id).get::<u64>(LONG).await.unwrap(), 1);
    };
    for n in 1..=3 {
        follow(&format!("nap-{n}"), "next").await;
        let pending = client.send(Call::new("hello.add").arg(n)).await.unwrap();
        assert_eq!(pending.get::<u64>(LONG).await.unwrap(), n);
        assert_eq!(redis.length("LLEN", "next") as u64, n, "{}", worker.log());
    }
    // A retry, which goes where the message was sent.
    let mut sent = message("flaky", &json!([[1], {}, {}]));
    sent["headers"]["task"] = json!("hello.flaky");
    sent["properties"]["delivery_info"]["routing_key"] = json!("again");
    proxy.cut();
    redis.command::<u64>(&["LPUSH", "celery", &sent.to_string()]);
    until("it is sent", async || redis.length("LLEN", "again") > 0).await;
    let pending = client.send(Call::new("hello.add").arg(5)).await.unwrap();
    assert_eq!(pending.get::<u64>(LONG).await.unwrap(), 5);
    assert_eq!(redis.length("LLEN", "again"), 1, "{}", worker.log());
    // Where very many are held nobody looks through all of them: the server would do nothing else meanwhile.
    let many = "for i = 1, 20000 do redis.call('HSET', 'unacked', 'held.' .. i, '[]') end return 1";
    redis.command::<u64>(&["EVAL", many, "0"]);
    let reads = || {
        let stats: String = redis.command(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_hkeys:"));
        line.map(|line| line.split(',').next().map(str::to_owned))
    };
    let before = reads();
    follow("many", "many").await;
    assert_eq!((reads(), redis.length("LLEN", "many")), (before, 1), "{}", worker.log());
}

/// A user who may not do what a worker does: where its rights stand is said.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_may_not_do_is_said_with_where_the_rights_stand() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &[]);
    redis.command::<()>(&["ACL", "SETUSER", "default", "-rpop"]);
    redis.command::<u64>(&["LPUSH", "celery", "{}"]);
    worker.wait_for_log("docs/redis.md#acl");
}

/// A task whose callback cannot be made fails, and who has the same idempotency key runs.
#[test]
fn a_task_that_fails_for_what_follows_it_has_no_result_for_others() {
    const PROGRAM: &str = r#"
import sys
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
def send(*args, **options):
    return app.send_task('hello.add', args, headers={'idempotency_key': 'k'}, **options)
first = send(1, 2, link=app.signature('hello.add', args=(1,), queue='nowhere'))
assert type(raised(first)).__name__ == 'QueueNotFound', raised(first)
assert send(5, 5).get(timeout=20) == 10
"#;
    let redis = Redis::start();
    let settings = [
        ("ORCHESTRA_TASK_CREATE_MISSING_QUEUES", "false"),
        ("ORCHESTRA_TASK_QUEUES", "[{name = \"celery\"}]"),
    ];
    let worker = Worker::start_with(&redis, &["-c", "1"], &settings);
    run_python(PROGRAM, &redis.url());
    assert!(worker.log().contains("QueueNotFound"), "{}", worker.log());
}
