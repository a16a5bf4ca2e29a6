//! What a Python sender can put into a message: the stock client in each of its ways to write one.

use orchestra::task::{Context, Failure, Registry, Task, python};
use orchestra::wire::{Accept, Limits, json, retry_envelope};
use orchestra::worker;
use serde_json::Value;

use crate::support::{Folder, Redis, Worker, program, run_python};

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
# What follows a task lies in the body too; a chain is callbacks within callbacks.
add = lambda *args: app.signature('hello.add', args)
last = add(30).set(task_id='last')
assert app.send_task('hello.add', (1, 2), link=add(20) | last).get(timeout=20) == 3
assert app.AsyncResult('last').get(timeout=20) == 53
# An app that is not in UTC.
there = Celery(broker=sys.argv[1], backend=sys.argv[1])
there.conf.update(task_protocol=1, enable_utc=False, timezone='Asia/Tokyo')
assert there.send_task('hello.add', (1,), countdown=0.1).get(timeout=20) == 1
print('all good')
";
    assert_eq!(run_python(&program, &redis.url()), "all good\n", "{}", worker.log());
}

/// Where a Python worker serves the same queue, it may be the one that gets the retry of a message of protocol 1.
#[test]
fn a_python_worker_runs_our_retry_of_protocol_1() {
    let redis = Redis::start();
    let send = HEAD.to_owned()
        + "
app.conf.task_protocol = 1
for name in ('json', 'msgpack'):
    options = dict(serializer=name, compression='gzip', task_id=name, queue='ours', headers={'x-mine': name})
    app.send_task('there.report', (1,), {'k': [2]}, expires=100, **options)
";
    run_python(&send, &redis.url());
    let accept = Accept::parse(&["json", "msgpack"], None).unwrap();
    for raw in redis.command::<Vec<String>>(&["LRANGE", "ours", "0", "-1"]) {
        let message = accept.decode(raw.as_bytes(), &Limits::default()).unwrap();
        let again = retry_envelope(raw.as_bytes(), &message, orchestra::clock::now(), None, "gen1@here").unwrap();
        redis.command::<i64>(&["LPUSH", "theirs", std::str::from_utf8(&again).unwrap()]);
    }
    let program = HEAD.to_owned()
        + "
import threading
@app.task(name='there.report', bind=True)
def report(self, *args, **kwargs):
    request = self.request
    return [request.id, args, kwargs, request.retries, request.parent_id, request.get('x-mine'), bool(request.expires), request.eta is not None]
app.conf.update(accept_content=['json', 'msgpack'], worker_redirect_stdouts=False)
worker = app.Worker(pool='solo', queues=['theirs'], loglevel='ERROR', without_gossip=True, without_mingle=True)
threading.Thread(target=worker.start, daemon=True).start()
for name in ('json', 'msgpack'):
    found = app.AsyncResult(name).get(timeout=30, disable_sync_subtasks=False)
    assert found == [name, [1], {'k': [2]}, 1, name, name, True, True], found
print('all good', flush=True)
import os
os._exit(0)
";
    assert!(run_python(&program, &redis.url()).ends_with("\nall good\n"));
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

/// Values of every type that a serializer of kombu can write, made by chance, sent with every serializer and
/// compression: the arguments that we read are those that kombu itself would read, as kombu writes them in JSON.
#[test]
fn arguments_are_read_as_kombu_reads_them() {
    let redis = Redis::start();
    let program = HEAD.to_owned()
        + r#"
import random, string, uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from kombu import compression
from kombu.serialization import dumps, loads
from kombu.utils import json
chance = random.Random(64)
def text():
    odd = ['yes', 'No', 'null', '~', '', '1', '0o7', '010', '08', '1e5', '.5', '1_0', '2024-01-02', '2024-01-02 03:04:05', '<<', '=', '!x',
           '&a', '*a', '- a', 'a: b', '#', '"', "'", '%', 'é\u2028\U0001f600', '\x07\t\n', ' x ', '\n', 'a\nb\n', '.inf', '0x1', '1:30', '-', '---']
    return chance.choice(odd + [''.join(chance.choice(string.printable) for _ in range(chance.randrange(200)))])
def plain():
    return chance.choice([None, True, False, 0, -1, 2**63 - 1, -2**63, 2**64 - 1, chance.randrange(-10**6, 10**6), 1.5, -0.25, 1e300, 1e-7,
                          chance.random(), float('nan'), float('inf'), text(), text(), text()])
def when():
    return datetime(chance.randrange(1, 9999), chance.randrange(1, 13), chance.randrange(1, 29), chance.randrange(24), chance.randrange(60),
                    chance.randrange(60), chance.choice([0, 6, 100000, 123456]),
                    chance.choice([None, timezone.utc, timezone(timedelta(hours=-5, minutes=-30)), timezone(timedelta(hours=2))]))
data = lambda: bytes(chance.randrange(256) for _ in range(chance.randrange(100)))
more = {
    'json': [lambda: data(), lambda: b'abc', when, lambda: when().date(), lambda: when().time(), lambda: Decimal('1.50'), lambda: uuid.UUID(int=5)],
    'yaml': [lambda: data(), lambda: b'abc', when, lambda: when().date()],
    'msgpack': [lambda: data(), lambda: b'abc'],
}
def value(name, depth):
    kind = chance.randrange(8) if depth else 0
    if kind == 7:
        return [value(name, depth - 1) for _ in range(chance.randrange(4))]
    if kind == 6:
        return {text(): value(name, depth - 1) for _ in range(chance.randrange(4))}
    return chance.choice(more[name])() if kind == 5 else plain()
for name in more:
    for method in [None] + compression.encoders():
        for _ in range(40):
            shared = value(name, 3)
            args = [value(name, 4) for _ in range(3)] + [shared, [shared]]
            app.send_task('t', args, serializer=name, compression=method, queue='q')
            kind, encoding, body = dumps(args, serializer=name)
            print(json.dumps(loads(body, kind, encoding, force=True)))
"#;
    let printed = run_python(&program, &redis.url());
    let accept = Accept::parse(&["json", "application/x-yaml", "msgpack"], None).unwrap();
    let messages: Vec<String> = redis.command(&["LRANGE", "q", "0", "-1"]);
    assert_eq!((messages.len(), printed.lines().count()), (3 * 6 * 40, 3 * 6 * 40));
    for (message, expected) in messages.iter().rev().zip(printed.lines()) {
        let message = accept.decode(message.as_bytes(), &Limits::default()).unwrap();
        let read: Value = json::parse(message.body.args()).unwrap();
        let expected: Value = json::parse(expected).unwrap();
        assert_eq!(read, expected);
    }
}

#[test]
fn every_serializer_is_served_where_it_is_accepted() {
    let redis = Redis::start();
    let accept = [("ORCHESTRA_ACCEPT_CONTENT", "json, msgpack, application/x-yaml")];
    let worker = Worker::start_with(&redis, &["-c", "2"], &accept);
    let program = HEAD.to_owned()
        + "
from kombu import compression
for protocol in (1, 2):
    app = Celery(broker=sys.argv[1], backend=sys.argv[1])
    app.conf.task_protocol = protocol
    for name in ('json', 'msgpack', 'yaml'):
        for method in [None] + compression.encoders():
            sent = dict(serializer=name, compression=method)
            assert app.send_task('hello.add', (2,), {'y': 3}, **sent).get(timeout=20) == 5, sent
            assert app.send_task('hello.flaky', (1,), **sent).get(timeout=20) == 1, sent
            # Remote control is written as tasks are.
            app.conf.task_serializer, app.conf.accept_content = name, ['json', name]
            del app.control
            assert app.control.inspect(timeout=20, limit=1).ping(), name
    error = raised(app.send_task('hello.add', (1, 2, 3), serializer='yaml'))
    assert type(error) is TypeError, repr(error)
error = raised(app.send_task('hello.add', (1,), serializer='pickle'))
assert type(error).__name__ == 'ContentDisallowed' and 'type pickle' in str(error) and 'any code' in str(error), repr(error)
print('all good')
";
    assert_eq!(run_python(&program, &redis.url()), "all good\n", "{}", worker.log());
}

#[test]
fn what_is_not_accepted_is_refused_by_name() {
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, &[]);
    let program = HEAD.to_owned()
        + "
from kombu.exceptions import ContentDisallowed
for name in ('msgpack', 'yaml', 'pickle'):
    error = raised(app.send_task('hello.add', (1,), serializer=name))
    assert type(error) is ContentDisallowed and f'type {name} ' in str(error), repr(error)
assert app.send_task('hello.add', (1,)).get(timeout=20) == 1
print('all good')
";
    assert_eq!(run_python(&program, &redis.url()), "all good\n", "{}", worker.log());
    assert_eq!(redis.length("LLEN", "celery.dead"), 3);
    assert_eq!(worker.stop(), Some(0));
    for (names, why) in [
        ("json,pickle", "is never accepted"),
        ("jsn", "\"jsn\" is no serializer"),
    ] {
        let mut refused = Worker::spawn("hello_task", &redis, &[], &[("ORCHESTRA_ACCEPT_CONTENT", names)]);
        assert_ne!(refused.process.wait(), Some(0));
        assert!(
            refused.log().contains("accept_content: ") && refused.log().contains(why),
            "{}",
            refused.log()
        );
    }
}

/// Makes keys and certificates: `store` knows `worker` and `client`, nobody knows `stranger`, and `old` has expired.
const CERTIFICATES: &str = r#"
import os, sys
from datetime import datetime, timedelta, timezone
from cryptography import x509
from cryptography.x509.oid import NameOID
from cryptography.hazmat.primitives import hashes, serialization as s
from cryptography.hazmat.primitives.asymmetric import rsa
folder = sys.argv[1]
os.mkdir(folder + '/store')
def make(name, bits, form, password, days):
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    issuer = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, 'DE'), x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'Größe & Co'),
                        x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    cert = (x509.CertificateBuilder().subject_name(issuer).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=9)).not_valid_after(now + timedelta(days=days))
            .sign(key, hashes.SHA256()))
    lock = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    open(f'{folder}/{name}.key', 'wb').write(key.private_bytes(s.Encoding.PEM, form, lock))
    pem = cert.public_bytes(s.Encoding.PEM)
    open(f'{folder}/{name}.pem', 'wb').write(pem)
    if name in ('worker', 'client'):
        open(f'{folder}/store/{name}.pem', 'wb').write(pem)
make('worker', 2048, s.PrivateFormat.PKCS8, b'open sesame', 9)
make('client', 3072, s.PrivateFormat.PKCS8, None, 9)
make('stranger', 2048, s.PrivateFormat.TraditionalOpenSSL, None, 9)
make('old', 2048, s.PrivateFormat.PKCS8, None, -1)
"#;

/// Celery's own `setup_security` on the other side, in both directions.
#[test]
fn signed_messages_are_verified_and_signed() {
    for digest in ["sha256", "sha512"] {
        let (redis, keys) = (Redis::start(), Folder::new());
        let folder = keys.path().to_str().unwrap();
        run_python(CERTIFICATES, folder);
        let file = |name: &str| format!("{folder}/{name}");
        let (store, key, certificate) = (file("store"), file("worker.key"), file("worker.pem"));
        let settings = [
            ("ORCHESTRA_ACCEPT_CONTENT", "auth"),
            ("ORCHESTRA_TASK_SERIALIZER", "auth"),
            ("ORCHESTRA_SECURITY_CERT_STORE", &store),
            ("ORCHESTRA_SECURITY_KEY", &key),
            ("ORCHESTRA_SECURITY_KEY_PASSWORD", "open sesame"),
            ("ORCHESTRA_SECURITY_CERTIFICATE", &certificate),
            ("ORCHESTRA_SECURITY_DIGEST", digest),
        ];
        let mut worker = Worker::start_with(&redis, &["-c", "2"], &settings);
        let sent = std::process::Command::new(program("orchestra"))
            .args([
                "--broker",
                &redis.url(),
                "send",
                "hello.add",
                "2",
                "3",
                "--queue",
                "signed",
            ])
            .env_clear()
            .envs(settings)
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
        // Beat signs, too: a worker that takes nothing else runs it.
        let entry = (
            "ORCHESTRA_BEAT_SCHEDULE",
            "{e = {task = 'hello.add', schedule = 1, args = [40, 2]}}",
        );
        let mut beat = Worker::spawn_words("orchestra", &["beat"], &redis, &[], &[&settings[..], &[entry]].concat());
        worker.wait_for_log(": 42");
        assert_eq!(beat.stop(), Some(0));
        let asked = std::process::Command::new(program("orchestra"))
            .args(["--broker", &redis.url(), "status"])
            .env_clear()
            .envs(settings)
            .current_dir(folder)
            .output()
            .unwrap();
        let asked = String::from_utf8_lossy(&asked.stdout).into_owned();
        assert!(asked.contains("celery@"), "{asked}");
        let program = HEAD.to_owned()
            + &format!("folder, digest = {folder:?}, {digest:?}\n")
            + r#"
import json
from base64 import b64decode, b64encode
from kombu import compression
from kombu.serialization import registry
url = sys.argv[1]
def signing(name, protocol=2, serializer='json'):
    app = Celery(broker=url, backend=url)
    app.conf.update(task_serializer='auth', accept_content=['auth'], result_accept_content=['json'], task_protocol=protocol,
                    security_key=f'{folder}/{name}.key', security_certificate=f'{folder}/{name}.pem',
                    security_cert_store=f'{folder}/store/*.pem')
    app.setup_security(serializer=serializer, digest=digest)
    registry.enable('json')
    return app
for protocol in (1, 2):
    for serializer in ('json', 'yaml', 'msgpack'):
        client = signing('client', protocol, serializer)
        for method in (None, 'gzip', 'zstd'):
            assert client.send_task('hello.add', (2, 3), compression=method).get(timeout=20) == 5
            assert client.send_task('hello.flaky', (1,), compression=method).get(timeout=20) == 1
add = lambda *args: client.signature('hello.add', args)
assert (add(1, 2) | add(3) | add(4)).apply_async().get(timeout=20) == 10
error = raised(client.send_task('hello.add', (1,), serializer='json'))
assert type(error).__name__ == 'ContentDisallowed' and 'accept_content is auth' in str(error), repr(error)
error = raised(signing('stranger').send_task('hello.add', (1,)))
assert type(error).__name__ == 'SecurityError' and 'nobody here knows' in str(error) and 'Größe & Co stranger' in str(error), repr(error)
# One bit of what was signed, of the signature, of everything.
client = signing('client')
def spoiled(at):
    def spoil(body):
        fields = b64decode(body).split(b'\0\1', 4)
        if at == 1:
            signature = bytearray(b64decode(fields[1]))
            signature[9] ^= 1
            fields[1] = b64encode(bytes(signature))
        else:
            fields[at] = fields[at].replace(b'[[1]', b'[[2]').replace(b'client', b'nobody')
        return b64encode(b'\0\1'.join(fields)).decode()
    return spoil
import redis as r
store = r.Redis.from_url(url)
for at, spoil in enumerate([spoiled(1), spoiled(4), lambda body: body[:40], lambda body: '!', lambda body: '']):
    result = client.send_task('hello.add', (1,), queue='spoiled')
    message = json.loads(store.rpop('spoiled'))
    body = b64decode(message['body']).decode()
    message['body'] = b64encode(spoil(body).encode()).decode()
    store.lpush('celery', json.dumps(message))
    error = raised(result)
    assert type(error).__name__ == 'SecurityError' and str(error).startswith('refusing a signed message'), (at, repr(error))
    assert ('the signature is not one of' in str(error)) == (at < 2), (at, repr(error))
assert client.send_task('hello.add', (1,)).get(timeout=20) == 1
assert client.control.inspect(timeout=20, limit=1).ping()
plain = Celery(broker=url, backend=url)
plain.conf.accept_content = ['json', 'auth']
assert plain.control.inspect(timeout=1).ping() is None
# What we signed is what Celery verifies.
message = json.loads(store.rpop('signed'))
body = registry.loads(b64decode(message['body']), message['content-type'], message['content-encoding'], accept={'application/data'})
assert body[0] == [2, 3] and message['content-type'] == 'application/data', message
print('all good')
"#;
        assert_eq!(run_python(&program, &redis.url()), "all good\n", "{}", worker.log());
        assert_eq!(worker.stop(), Some(0));
    }
}

#[test]
fn keys_and_certificates_that_cannot_be_used_are_named() {
    let (redis, keys) = (Redis::start(), Folder::new());
    let folder = keys.path().to_str().unwrap();
    run_python(CERTIFICATES, folder);
    let file = |name: &str| format!("{folder}/{name}");
    let base = ("ORCHESTRA_ACCEPT_CONTENT", "auth".to_owned());
    let store = ("ORCHESTRA_SECURITY_CERT_STORE", file("store"));
    let key = |name: &str| ("ORCHESTRA_SECURITY_KEY", file(name));
    let certificate = |name: &str| ("ORCHESTRA_SECURITY_CERTIFICATE", file(name));
    for (settings, why) in [
        (vec![], "auth needs security_cert_store"),
        (vec![("ORCHESTRA_SECURITY_CERT_STORE", file("nothing"))], "cannot read"),
        (vec![("ORCHESTRA_SECURITY_CERT_STORE", file("old.pem"))], "has expired"),
        (
            vec![("ORCHESTRA_SECURITY_CERT_STORE", file("client.key"))],
            "it is no certificate",
        ),
        (
            vec![("ORCHESTRA_SECURITY_CERT_STORE", file("*er.pem")), key("client.key")],
            "go together",
        ),
        (
            vec![store.clone(), key("client.key"), certificate("worker.pem")],
            "the key is not that of the certificate",
        ),
        (
            vec![store.clone(), key("worker.key"), certificate("worker.pem")],
            "security_key_password",
        ),
        (
            vec![store.clone(), ("ORCHESTRA_SECURITY_DIGEST", "md5".into())],
            "not one of sha224",
        ),
        (
            vec![store, ("ORCHESTRA_TASK_SERIALIZER", "auth".into())],
            "auth needs security_key",
        ),
    ] {
        let settings: Vec<(&str, &str)> = [&base]
            .into_iter()
            .chain(&settings)
            .map(|(name, value)| (*name, &**value))
            .collect();
        let mut refused = Worker::spawn("hello_task", &redis, &[], &settings);
        assert_ne!(refused.process.wait(), Some(0), "{why}");
        assert!(refused.log().contains(why), "{why}: {}", refused.log());
    }
}

/// Takes and gives back one of each of Python's own types.
#[derive(serde::Deserialize)]
struct Mirror {
    bytes: python::Bytes,
    at: python::DateTime,
    day: Option<python::Date>,
    price: Option<python::Decimal>,
    id: Option<python::Uuid>,
}

type Mirrored = (
    python::Bytes,
    python::DateTime,
    Option<python::Date>,
    Option<python::Decimal>,
    Option<python::Uuid>,
);

impl Task for Mirror {
    const NAME: &'static str = "here.mirror";
    type Env = ();
    type Output = Mirrored;

    async fn run(self, (): (), _: Context) -> Result<Mirrored, Failure> {
        let reversed = self.bytes.0.into_iter().rev().collect();
        Ok((python::Bytes(reversed), self.at, self.day, self.price, self.id))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pythons_own_types_are_parameters_and_results() {
    let redis = Redis::start();
    let mut options = worker::Options::new("w1@here", orchestra::conn::Endpoint::parse(&redis.url()).unwrap());
    options.accept = Accept::parse(&["json", "yaml", "msgpack"], None).unwrap();
    let mut registry = Registry::new();
    registry.register::<Mirror>(()).unwrap();
    let (worker, stop) = (
        worker::Worker::connect(options, registry).await.unwrap(),
        worker::Stop::new(),
    );
    let running = tokio::spawn(worker.run(stop.clone()));
    let program = HEAD.to_owned()
        + "
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID
at = datetime(2024, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=2)))
for data in (b'ab', b'\\xff\\x00'):
    sent = [data, at, date(2024, 1, 2), Decimal('1.50'), UUID(int=5)]
    got = app.send_task('here.mirror', sent).get(timeout=20)
    assert got == [data[::-1]] + sent[1:] and str(got[3]) == '1.50', got
    got = app.send_task('here.mirror', sent[:3] + [None, None], serializer='yaml').get(timeout=20)
    assert got == [data[::-1], at, date(2024, 1, 2), None, None], got
    got = app.send_task('here.mirror', [data, at.isoformat(), None, None, None], serializer='msgpack').get(timeout=20)
    assert got == [data[::-1], at, None, None, None], got
error = raised(app.send_task('here.mirror', [date(2024, 1, 2)] + sent[1:]))
assert type(error) is ValueError and 'expected a bytes or base64' in str(error), repr(error)
print('all good')
";
    let url = redis.url();
    let printed = tokio::task::spawn_blocking(move || run_python(&program, &url)).await;
    assert_eq!(printed.unwrap(), "all good\n");
    stop.warm();
    running.await.unwrap();
}
