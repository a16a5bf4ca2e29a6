//! What is too large is refused with a word, and the worker goes on.

use orchestra::client::Call;

use crate::support::{LONG, Redis, Worker, run_python, until};

/// The caller is told that its result was too large, in chains as well; what fits is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_beyond_max_result_bytes_is_a_failure() {
    let redis = Redis::start();
    let worker = Worker::start_with(&redis, &[], &[("ORCHESTRA_MAX_RESULT_BYTES", "5")]);
    let program = "
import sys
from celery import Celery
from orchestra.exceptions import ResultTooLarge
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
nap = lambda n: app.signature('hello.nap', (1, n))
assert app.send_task('hello.nap', (1, 12345)).get(timeout=30) == 12345
too_large = nap(123456).delay()
error = raised(too_large)
assert isinstance(error, ResultTooLarge), error
assert '6 bytes and may have 5' in str(error) and 'max_result_bytes' in str(error), error
after = (nap(123456) | nap(2).clone(immutable=True)).delay()
assert isinstance(raised(after.parent), ResultTooLarge)
";
    run_python(program, &redis.url());
    let sum = redis.client().await.send(Call::new("hello.add").arg(1)).await.unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
}

/// Bombs of every kind: what they unpack to is bounded, and their senders are told.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_unpack_to_more_than_max_body_bytes_are_refused() {
    let redis = Redis::start();
    let settings = [
        ("ORCHESTRA_MAX_BODY_BYTES", "100000"),
        ("ORCHESTRA_ACCEPT_CONTENT", "json,yaml,msgpack"),
    ];
    let worker = Worker::start_with(&redis, &[], &settings);
    let program = r#"
import base64, bz2, json, lzma, sys, zlib
from celery import Celery
import redis
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
server = redis.Redis.from_url(sys.argv[1])
def send(name, body, content_type='application/json', **headers):
    headers = {'id': name, 'task': 'hello.add', **headers}
    server.lpush('celery', json.dumps({
        'body': base64.b64encode(body).decode(), 'content-type': content_type, 'headers': headers,
        'properties': {'body_encoding': 'base64', 'correlation_id': name}}))
bomb = b'[["' + b'x' * 10_000_000 + b'"], {}, {}]'
send('plain', b'[["' + b'x' * 100_001 + b'"], {}, {}]')
send('gzip', zlib.compress(bomb), compression='application/x-gzip')
send('bzip2', bz2.compress(bomb), compression='application/x-bz2')
send('xz', lzma.compress(bomb), compression='application/x-lzma')
laughs = '- &a0 [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'- &a{n} [' + ', '.join([f'*a{n - 1}'] * 9) + ']\n' for n in range(1, 9))
send('yaml', laughs.encode(), 'application/x-yaml')
send('deep', b'[' * 100_000, )
send('deep-yaml', b'[' * 50_000, 'application/x-yaml')
send('msgpack', b'\x91' * 50_000, 'application/x-msgpack')
for name in ['plain', 'gzip', 'bzip2', 'xz', 'yaml', 'deep', 'deep-yaml', 'msgpack']:
    error = raised(app.AsyncResult(name))
    print(name, type(error).__name__, str(error)[:90])
    assert type(error).__name__ == 'DecodeError', (name, error)
assert app.send_task('hello.add', (1, 2)).get(timeout=20) == 3
"#;
    run_python(program, &redis.url());
    assert_eq!(redis.length("LLEN", "celery.dead"), 8);
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
}

/// A control request that is too large is named in the log and not read; the next one is answered.
#[tokio::test(flavor = "multi_thread")]
async fn control_requests_beyond_max_control_bytes_are_not_read() {
    let redis = Redis::start();
    let worker = Worker::start_with(&redis, &[], &[("ORCHESTRA_MAX_CONTROL_BYTES", "2000")]);
    until("it listens", async || {
        redis.command::<i64>(&["PUBLISH", "/0.celery.pidbox", &"x".repeat(2001)]) > 0
    })
    .await;
    worker.wait_for_log("larger than max_control_bytes (2000)");
    let workers = redis
        .client()
        .await
        .workers(std::time::Duration::from_secs(2))
        .await
        .unwrap();
    assert_eq!(workers.len(), 1, "{}", worker.log());
}

/// Redis is asked what it does with what it confirmed, and what can lose messages is said once, at the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_can_lose_messages_is_warned_of() {
    let safe = Redis::start();
    let worker = Worker::start(&safe, &[]);
    assert!(!worker.log().contains("WARN"), "{}", worker.log());
    let unsafe_ = Redis::start_with(&[&["--appendonly", "no"], &["--maxmemory-policy", "allkeys-lru"]]);
    let worker = Worker::start(&unsafe_, &[]);
    for word in ["may delete whole queues", "keeps nothing on disk"] {
        assert_eq!(worker.log().matches(word).count(), 1, "{}", worker.log());
    }
    // Who may not ask is not told, and works.
    unsafe_.command::<()>(&["ACL", "SETUSER", "default", "-config", "-info"]);
    let worker = Worker::start(&unsafe_, &[]);
    assert!(!worker.log().contains("WARN"), "{}", worker.log());
}
