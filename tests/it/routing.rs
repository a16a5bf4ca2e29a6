//! Exchanges, bindings and queues as kombu has them, with Python on the other side.

use orchestra::client::{Call, Signature};

use crate::support::{LONG, Redis, Worker, run_python, until};

const HEAD: &str = "
import sys
from celery import Celery
from kombu import Exchange, Queue
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
def declare(*queues):
    connection = app.connection_for_write()
    for queue in queues:
        queue(connection.default_channel).declare()
";

/// The second and third try are published by our worker: they must go where the first came from.
#[test]
fn p_017_p_018_retries_go_through_the_binding_table_of_their_exchange() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, &["-Q", "jobs,topics"]);
    let program = HEAD.to_owned()
        + "
topic = Exchange('news', type='topic')
jobs = Queue('jobs', Exchange('work', type='direct'), routing_key='jobs.now')
topics = Queue('topics', topic, routing_key='a.*.#')
declare(jobs, topics, Queue('elsewhere', topic, routing_key='b.#'))
def send(queue, key):
    return app.send_task('hello.flaky', (2,), queue=queue, routing_key=key)
assert app.send_task('hello.flaky', (2,), exchange=jobs.exchange, routing_key='jobs.now').get(timeout=30) == 2
assert send(topics, 'a.b.c').get(timeout=30) == 2
assert send(topics, 'a.b.c.d').get(timeout=30) == 2
client = app.connection_for_write().default_channel.client
assert not client.exists('elsewhere', 'work', 'news', 'a.b.c', 'jobs.now'), client.keys('*')
";
    run_python(&program, &redis.url());
    assert_eq!(worker.log().matches(" retry: ").count(), 6, "{}", worker.log());
}

/// Nobody bound a queue: kombu would drop the retry, we keep it where somebody can find it.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_no_queue_is_bound_for_is_kept_in_the_list_of_its_routing_key() {
    let redis = Redis::start();
    let program = HEAD.to_owned()
        + "
jobs = Queue('jobs', Exchange('work', type='direct'), routing_key='gone')
declare(jobs)
app.send_task('hello.flaky', (1,), exchange=jobs.exchange, routing_key='gone')
app.connection_for_write().default_channel.client.delete('_kombu.binding.work')
";
    run_python(&program, &redis.url());
    assert_eq!(redis.length("LLEN", "jobs"), 1);
    let worker = Worker::start(&redis, &["-Q", "jobs"]);
    worker.wait_for_log(" retry: ");
    until("the retry is kept", async || redis.length("LLEN", "gone") == 1).await;
}

/// Our script and kombu's regular expressions say the same of 3,000 random keys.
#[test]
fn topics_fit_as_they_do_in_kombu() {
    let redis = Redis::start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/broker/scripts/route.lua");
    let program = HEAD.to_owned()
        + &format!("script = open({script:?}).read()\n")
        + "
import random
from kombu.transport.virtual.exchange import TopicExchange
topic, dice = TopicExchange(None), random.Random(1)
client = app.connection_for_write().default_channel.client
fits = client.register_script(script + 'return fits(ARGV[1], ARGV[2]) and 1 or 0')
words = lambda of: '.'.join(dice.choice(of) for _ in range(dice.randint(1, 6)))
count = 0
for _ in range(3000):
    bound, key = words(['a', 'bc', '*', '#', '#', '']), words(['a', 'bc', 'c', ''])
    theirs = topic._match(topic.key_to_pattern(bound), key) is not None
    assert theirs == bool(fits(args=[bound, key])), (bound, key, theirs)
    count += theirs
assert 300 < count < 2700, count
";
    run_python(&program, &redis.url());
}

/// Priorities before queues, steps as the settings say, in both libraries' messages.
#[tokio::test(flavor = "multi_thread")]
async fn p_004_p_005_priorities_come_before_queues() {
    let redis = Redis::start();
    let program = HEAD.to_owned()
        + "
app.conf.broker_transport_options = {'priority_steps': [0, 5], 'sep': ':'}
for queue in 'first', 'second':
    for priority in 9, 5, 4, 0:
        app.send_task('hello.add', (1,), task_id=f'{queue}-{priority}', queue=queue, priority=priority)
";
    // P-008: by the order of `-Q`, or by name.
    for (strategy, queues) in [("priority", "second,first,third"), ("sorted", "second,third,first")] {
        run_python(&program, &redis.url());
        assert_eq!((redis.length("LLEN", "first"), redis.length("LLEN", "first:5")), (2, 2));
        let options = format!("{{priority_steps = [0, 5], sep = ':', queue_order_strategy = '{strategy}'}}");
        let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", options.as_str())];
        let arguments = ["-Q", queues, "-X", "third", "-c", "1", "--prefetch-multiplier", "1"];
        let worker = Worker::start_with(&redis, &arguments, &settings);
        until("all are done", async || {
            worker.log().matches(" succeeded ").count() == 8
        })
        .await;
        let log = worker.log();
        let place = |id: &str| log.find(&format!("hello.add[{id}] received")).unwrap();
        let (one, two) = match strategy {
            "sorted" => ("first", "second"),
            _ => ("second", "first"),
        };
        let mut order: Vec<String> = [one, two]
            .iter()
            .flat_map(|queue| [9, 5, 4, 0].map(|priority| format!("{queue}-{priority}")))
            .collect();
        order.sort_unstable_by_key(|id| place(id));
        let expected = [
            (one, 4),
            (one, 0),
            (two, 4),
            (two, 0),
            (one, 9),
            (one, 5),
            (two, 9),
            (two, 5),
        ];
        assert_eq!(
            order,
            expected.map(|(queue, priority)| format!("{queue}-{priority}")),
            "{strategy}"
        );
    }
}

/// A queue with many messages does not keep another one waiting.
#[tokio::test(flavor = "multi_thread")]
async fn p_007_queues_take_turns() {
    let redis = Redis::start();
    let client = redis.client().await;
    let calls: Vec<_> = (0..60)
        .map(|n| orchestra::client::Call::new("hello.add").arg(n).queue("long"))
        .collect();
    client.send_many(&calls).await.unwrap();
    let short = orchestra::client::Call::new("hello.add")
        .arg(1)
        .queue("short")
        .task_id("short");
    client.send(short).await.unwrap();
    let worker = Worker::start(&redis, &["-Q", "long,short", "-c", "1", "--prefetch-multiplier", "1"]);
    until("all are done", async || {
        worker.log().matches(" succeeded ").count() == 61
    })
    .await;
    let log = worker.log();
    let before = log[..log.find("hello.add[short] received").unwrap()]
        .matches(" received")
        .count();
    assert!(before <= 2, "{before} came first");
}

/// Celery consumes `task_default_queue` where nobody says anything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_consumes_the_default_queue() {
    let redis = Redis::start();
    let settings = [("ORCHESTRA_TASK_DEFAULT_QUEUE", "work")];
    let _worker = Worker::start_with(&redis, &[], &settings);
    let client = redis.client().await;
    let sum = client.send(Call::new("hello.add").arg(1).queue("work")).await.unwrap();
    assert_eq!(sum.get::<u64>(LONG).await.unwrap(), 1);
}

/// `task_routes`: what a task sends goes to the queue of its name.
#[tokio::test(flavor = "multi_thread")]
async fn follow_ups_go_where_their_route_says() {
    let redis = Redis::start();
    let settings = [(
        "ORCHESTRA_TASK_ROUTES",
        r#"{"hello.na*" = {queue = "naps"}, "hello.add" = "sums"}"#,
    )];
    let _first = Worker::start_with(&redis, &["-Q", "celery"], &settings);
    let client = redis.client().await;
    let steps =
        Signature::new("hello.add").arg(1) | Signature::new("hello.add").arg(1) | Signature::new("hello.nap").arg(5);
    let sent = client.apply(steps).await.unwrap();
    until("the next step waits in its queue", async || {
        redis.length("LLEN", "sums") == 1
    })
    .await;
    let _second = Worker::start_with(&redis, &["-Q", "sums"], &settings);
    until("and the last one in its own", async || {
        redis.length("LLEN", "naps") == 1
    })
    .await;
    let _third = Worker::start(&redis, &["-Q", "naps"]);
    assert_eq!(sent.get::<u64>(LONG).await.unwrap(), 5);
}
