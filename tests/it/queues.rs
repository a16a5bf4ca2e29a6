//! Queues that are more than a list: told to everybody, expiring, bound to exchanges; and routes to them. With Python
//! on the other side.

use std::process::{Command, Stdio};

use orchestra::broker::{self, Broker};
use orchestra::conn::Endpoint;
use orchestra::wire::Queue;
use serde_json::json;

use crate::messages::message;
use crate::support::{Folder, LONG, Process, Redis, Worker, python, run_python, until};

const STOCK: &str = "
import json, os
from celery import Celery
from kombu.common import Broadcast
app = Celery(broker=os.environ['URL'], backend=os.environ['URL'])
app.conf.broker_transport_options = json.loads(os.environ['OPTIONS'])
app.conf.task_queues = [Broadcast('everybody')]
@app.task(name='hello.add')
def add(x, y=0):
    app.backend.client.rpush('heard', f'python:{add.request.id}')
    return x + y
";

const TELL: &str = r#"
import json, sys
from celery import Celery
from kombu.common import Broadcast
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
app.conf.broker_transport_options = OPTIONS
app.conf.task_queues = [Broadcast('everybody')]
# A Python process that has not declared an exchange takes it for direct, and its message is dropped.
exchange = app.amqp.queues['everybody'].exchange
redis = app.backend.client
# What is no message is dropped by all (P-023).
until('all listen', lambda: redis.publish('CHANNEL', 'no message') >= 3)
result = app.send_task('hello.add', (1, 2), task_id='told', queue='everybody', declare=[exchange])
assert result.get(timeout=20) == 3
until('the Python worker heard', lambda: redis.lrange('heard', 0, -1) == [b'python:told'])
assert not redis.exists('everybody', 'celery'), redis.keys('*')
"#;

/// Both our workers and the Python one run what is told to everybody, whoever tells; with kombu's ways to name
/// channels.
#[tokio::test(flavor = "multi_thread")]
async fn p_022_p_024_what_is_told_to_everybody_is_run_by_everybody() {
    for (ours, theirs, channel) in [
        ("", "{}", "/0.everybody/celery"),
        (
            "fanout_prefix = '/all{db}.', fanout_patterns = false",
            r#"{"fanout_prefix": "/all{db}.", "fanout_patterns": false}"#,
            "/all0.everybody",
        ),
    ] {
        let redis = Redis::start();
        let options = format!("{{{ours}}}");
        let environment = [
            ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", options.as_str()),
            (
                "ORCHESTRA_TASK_QUEUES",
                "{everybody = {exchange_type = 'fanout'}, own = {}}",
            ),
        ];
        let start = |name| Worker::start_with(&redis, &["-n", name, "-c", "1"], &environment);
        let workers = [start("a@here"), start("b@here")];
        let folder = Folder::new();
        folder.write("stock.py", STOCK);
        let mut stock = Command::new(python());
        stock
            .args([
                "-m", "celery", "-A", "stock", "worker", "-P", "solo", "-l", "ERROR", "-n", "c@here",
            ])
            .args(["--without-gossip", "--without-mingle"])
            .current_dir(folder.path())
            .env("URL", redis.url())
            .env("OPTIONS", theirs)
            .stdout(Stdio::null());
        let _stock = Process::from(stock.spawn().unwrap());
        let theirs = theirs.replace("false", "False");
        let program = TELL.replace("OPTIONS", &theirs).replace("CHANNEL", channel);
        run_python(&program, &redis.url());
        for worker in &workers {
            worker.wait_for_log("hello.add[told] succeeded");
        }
        // Ours tells them, too, in the same way.
        let sent = Command::new(crate::support::program("orchestra"))
            .args([
                "send",
                "hello.add",
                "4",
                "--queue",
                "everybody",
                "--broker",
                &redis.url(),
            ])
            .env_clear()
            .envs(environment)
            .output()
            .unwrap();
        assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
        until("it is heard again", async || redis.length("LLEN", "heard") == 2).await;
        for worker in &workers {
            until("both have run it", async || {
                worker.log().matches(" succeeded ").count() == 2
            })
            .await;
        }
        until("nothing is held", async || redis.length("HLEN", "unacked") == 0).await;
    }
}

/// A retry of what was told to everybody is told to everybody, as in Celery; a worker that stops gives nothing back.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_what_was_told_is_told() {
    let redis = Redis::start();
    let environment = [(
        "ORCHESTRA_TASK_QUEUES",
        "{all = {exchange_type = 'fanout', exchange = 'world'}}",
    )];
    let worker = Worker::start_with(&redis, &[], &environment);
    let program = "
import sys
from celery import Celery
from kombu import Exchange
from kombu.common import Broadcast
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
app.conf.task_queues = [Broadcast('all', exchange=Exchange('world', type='fanout'))]
exchange = app.amqp.queues['all'].exchange
redis = app.backend.client
until('it listens', lambda: redis.pubsub_numpat() >= 2)
assert app.send_task('hello.flaky', (1,), queue='all', declare=[exchange]).get(timeout=20) == 1
queues = app.control.inspect(timeout=3).active_queues()
[[queue]] = queues.values()
assert queue['name'] == 'all' and queue['exchange']['name'] == 'world' and queue['exchange']['type'] == 'fanout', queue
assert app.control.cancel_consumer('all', reply=True, timeout=3)
until('it listens no more', lambda: redis.pubsub_numpat() < 2)
assert not redis.exists('celery', 'all'), redis.keys('*')
";
    run_python(program, &redis.url());
    assert_eq!(worker.log().matches(" retry: ").count(), 1, "{}", worker.log());
}

/// What was told to everybody is held nowhere; each worker that cannot run it keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_that_cannot_be_run_is_a_dead_letter() {
    let redis = Redis::start();
    let environment = [("ORCHESTRA_TASK_QUEUES", "{all = {exchange_type = 'fanout'}}")];
    let worker = Worker::start_with(&redis, &[], &environment);
    let heard = || redis.command::<u64>(&["PUBLISH", "/0.all/celery", "{\"headers\": {}}"]);
    until("it listens", async || heard() > 0).await;
    until("it is kept", async || redis.length("LLEN", "all.dead") > 0).await;
    let letter: Vec<String> = redis.command(&["LRANGE", "all.dead", "0", "0"]);
    assert!(
        letter[0].ends_with("\n{\"headers\": {}}"),
        "{letter:?}\n{}",
        worker.log()
    );
}

/// What was heard and waits for a place stays when queues come and go, also such as are told to everybody.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_is_run_when_the_queues_change() {
    const TOLD: usize = 12;
    let redis = Redis::start();
    let environment = [(
        "ORCHESTRA_TASK_QUEUES",
        "{celery = {}, news = {exchange_type = 'fanout'}, weather = {exchange_type = 'fanout'}}",
    )];
    let arguments = [
        "-n",
        "w@here",
        "-Q",
        "celery,news",
        "-c",
        "1",
        "--prefetch-multiplier",
        "1",
    ];
    let worker = Worker::start_with(&redis, &arguments, &environment);
    let client = redis.client().await;
    let order = async |method: &str, queue: &str| {
        let (queue, to) = (json!({"queue": queue}), ["w@here".to_owned()]);
        client.inspect(method, &queue, Some(&to), LONG).await.unwrap();
    };
    let tell = |queue: &str, id: &str, ms: usize| {
        let mut nap = message(id, &json!([[], {"ms": ms, "n": 1}, {}]));
        nap["headers"]["task"] = json!("hello.nap");
        redis.command::<usize>(&["PUBLISH", &format!("/0.{queue}/celery"), &nap.to_string()])
    };
    let is_done = |id: &str| redis.length("EXISTS", &format!("celery-task-meta-{id}")) == 1;
    until("it listens", async || redis.length("PUBSUB", "NUMPAT") == 2).await;
    for n in 0..TOLD {
        assert_eq!(tell("news", &format!("news-{n}"), 100), 1);
    }
    until("the first has run", async || is_done("news-0")).await;
    order("add_consumer", "other").await;
    order("add_consumer", "weather").await;
    until("it hears of the weather", async || tell("weather", "rain", 1) == 1).await;
    order("cancel_consumer", "other").await;
    until("all have run", async || {
        is_done("rain") && (0..TOLD).all(|n| is_done(&format!("news-{n}")))
    })
    .await;
    order("cancel_consumer", "weather").await;
    until("it hears no more of it", async || tell("weather", "wind", 1) == 0).await;
    assert_eq!(tell("news", "last", 1), 1);
    until("it still hears news", async || is_done("last")).await;
    let runs = worker.log().matches(" succeeded ").count();
    assert!((TOLD + 2..=TOLD + 3).contains(&runs), "each once\n{}", worker.log());
}

/// A Redis that comes back empty: whoever knows only exchange and routing key finds the queues again. Celery, too,
/// declares its queues at each new connection.
#[tokio::test(flavor = "multi_thread")]
async fn bindings_are_there_again_when_redis_comes_back_empty() {
    let mut redis = Redis::start_with(&[&["--appendonly", "no"]]);
    let environment = [(
        "ORCHESTRA_TASK_QUEUES",
        "{celery = {}, feeds = {exchange = 'orders', routing_key = 'new'}}",
    )];
    let worker = Worker::start_with(&redis, &["-n", "w@here"], &environment);
    let more = json!({"queue": "more", "exchange": "ex", "exchange_type": "topic", "routing_key": "a.#"});
    let to = ["w@here".to_owned()];
    let client = redis.client().await;
    client.inspect("add_consumer", &more, Some(&to), LONG).await.unwrap();
    let bindings = |redis: &Redis| {
        let names = ["celery", "orders", "more", "ex"]
            .map(|exchange| ["binding", "binding_permanent"].map(|table| format!("_kombu.{table}.{exchange}")));
        let sets = names.as_flattened().iter();
        sets.map(|name| redis.command::<Vec<String>>(&["SMEMBERS", name]))
            .collect::<Vec<_>>()
    };
    until("all are bound", async || {
        bindings(&redis).iter().all(|bound| bound.len() == 1)
    })
    .await;
    let before = bindings(&redis);
    redis.command::<()>(&["SET", "kept", ""]);
    redis.stop();
    redis.start_again();
    assert_eq!(redis.length("EXISTS", "kept"), 0);
    until("they are bound again", async || bindings(&redis) == before).await;
    drop(worker);
}

/// Topics, queues of named exchanges and routes with more than a queue, by what our side sends; kombu's own tables
/// agree.
#[tokio::test(flavor = "multi_thread")]
async fn routes_lead_through_exchanges_as_in_celery() {
    let redis = Redis::start();
    let environment = [
        (
            "ORCHESTRA_TASK_QUEUES",
            "{news = {exchange = 'world', exchange_type = 'topic', routing_key = 'news.#', max_priority = 10}, \
             jobs = {exchange = 'work', routing_key = 'jobs.now'}, celery = {}}",
        ),
        (
            "ORCHESTRA_TASK_ROUTES",
            "[['hello.add', {exchange = 'world', exchange_type = 'topic', routing_key = 'news.europe', priority = 6}], \
             ['hello.n*', 'jobs'], ['hello.*', 'never']]",
        ),
    ];
    let _worker = Worker::start_with(&redis, &["-Q", "celery"], &environment);
    let program = "
import sys
from celery import Celery, chain
from kombu import Exchange, Queue
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
redis = app.backend.client
s = lambda name, *args: app.signature('hello.' + name, args)
chain(s('add', 1, 1).set(queue='celery'), s('add', 1))()
chain(s('add', 1, 1).set(queue='celery'), s('nap'), s('add', 1))()
until('both wait', lambda: redis.llen('news\\x06\\x166') == 1 and redis.llen('jobs') == 1)
# What kombu makes of the same queues is what is there.
mine = {key: redis.smembers(key) for key in redis.keys('_kombu.binding*') if not key.endswith(b'deadlines')}
channel = app.connection_for_write().default_channel
Queue('news', Exchange('world', type='topic'), routing_key='news.#')(channel).declare()
Queue('jobs', Exchange('work', type='direct'), routing_key='jobs.now')(channel).declare()
theirs = {key: redis.smembers(key) for key in mine}
assert theirs == mine, (theirs, mine)
assert set(mine) >= {b'_kombu.binding.world', b'_kombu.binding_permanent.world'}
";
    // The worker declares what it consumes: the others are declared by one that consumes them for a moment.
    let mut other = Worker::start_with(&redis, &["-Q", "news,jobs", "-n", "other@here"], &environment);
    assert_eq!(other.stop(), Some(0));
    run_python(program, &redis.url());
}

/// `x-expires`: the lists go, the binding has a deadline that a consumer puts off, and kombu's sweep of what is overdue
/// leaves the bindings of queues that stay.
#[tokio::test(flavor = "multi_thread")]
async fn p_025_p_026_p_044_queues_expire_and_bindings_are_renewed() {
    let redis = Redis::start();
    let queues = vec![Queue {
        expires: Some(std::time::Duration::from_secs(2)),
        exchange: "shared".into(),
        routing_key: "brief".into(),
        ..Queue::new("brief")
    }];
    let environment = [(
        "ORCHESTRA_TASK_QUEUES",
        "{brief = {expires = 2, exchange = 'shared', routing_key = 'brief'}, lasting = {exchange = 'shared', routing_key = 'lasting'}}",
    )];
    let mut worker = Worker::start_with(&redis, &[], &environment);
    let deadline = || redis.command::<Option<f64>>(&["ZSCORE", "_kombu.binding_deadlines", "shared"]);
    assert!(deadline().is_some());
    let members = |set: &str| redis.command::<Vec<String>>(&["SMEMBERS", &format!("_kombu.{set}.shared")]);
    assert_eq!(members("binding_permanent"), ["lasting\x06\x16\x06\x16lasting"]);
    assert_eq!(members("binding").len(), 2);
    assert_eq!(worker.stop(), Some(0));
    // One that consumes puts the deadline off.
    redis.command::<i64>(&["ZADD", "_kombu.binding_deadlines", "1", "shared"]);
    let options = broker::Options {
        queues,
        ..broker::Options::default()
    };
    let broker = Broker::connect(&Endpoint::parse(&redis.url()).unwrap(), options)
        .await
        .unwrap();
    broker.declare(&["brief".into()]).await.unwrap();
    redis.command::<i64>(&["ZADD", "_kombu.binding_deadlines", "1", "shared"]);
    broker.renew_bindings().await.unwrap();
    assert!(deadline().unwrap() > 1e12);
    // kombu's sweep, when the deadline has passed.
    redis.command::<i64>(&["ZADD", "_kombu.binding_deadlines", "1", "shared"]);
    let program = "
import sys
from celery import Celery
from kombu import Exchange, Queue
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
channel = app.connection_for_write().default_channel
queue = Queue('other', Exchange('elsewhere', type='direct'), routing_key='other', expires=30)(channel)
queue.declare()
queue.consume()
channel.sweep_bindings()
until('it is swept', lambda: not channel.client.zscore('_kombu.binding_deadlines', 'shared'))
assert channel.client.exists('_kombu.binding.shared'), channel.client.keys('*')
";
    run_python(program, &redis.url());
    // The lists of an expiring queue go.
    let sent = Command::new(crate::support::program("orchestra"))
        .args(["send", "hello.add", "4", "--queue", "brief", "--broker", &redis.url()])
        .env_clear()
        .envs(environment)
        .output()
        .unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    assert_eq!(redis.length("LLEN", "brief"), 1);
    assert!(redis.command::<i64>(&["PTTL", "brief"]) > 0);
    until("it is gone", async || redis.length("LLEN", "brief") == 0).await;
}

/// `task_create_missing_queues = false`, and queues that are described by what makes no sense.
#[test]
fn queues_that_nobody_knows_are_refused_where_that_is_wanted() {
    let redis = Redis::start();
    let known = [
        ("ORCHESTRA_TASK_QUEUES", "{a = {}, b = {}}"),
        ("ORCHESTRA_TASK_CREATE_MISSING_QUEUES", "false"),
    ];
    let mut worker = Worker::spawn("hello_task", &redis, &["-Q", "a,c"], &known);
    assert_eq!(worker.process.wait(), Some(2));
    assert!(worker.log().contains("c is not in task_queues"), "{}", worker.log());
    let sent = Command::new(crate::support::program("orchestra"))
        .args(["send", "hello.add", "4", "--queue", "c", "--broker", &redis.url()])
        .env_clear()
        .envs(known)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&sent.stderr).into_owned();
    assert!(!sent.status.success() && error.contains("QueueNotFound"), "{error}");
    for (queues, word) in [
        ("{a = {exchange_type = 'headers'}}", "direct, topic and fanout"),
        ("{a = {expires = 0}}", "expires"),
        ("{a = {exchang = 'x'}}", "no option"),
        ("{a = {exchange_type = 'fanout', exchange = 'x/y'}}", "no /"),
    ] {
        let mut worker = Worker::spawn("hello_task", &redis, &[], &[("ORCHESTRA_TASK_QUEUES", queues)]);
        assert_eq!(worker.process.wait(), Some(2));
        assert!(worker.log().contains(word), "{}", worker.log());
    }
}
