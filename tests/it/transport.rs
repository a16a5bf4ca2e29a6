//! The ways to a Redis: TLS, Unix sockets, ACL users, Sentinels, each against a real server that is set up so.

use std::path::Path;
use std::process::{Command, Stdio};

use orchestra::client::{Call, Client};
use orchestra::wire::State;

use crate::support::{Folder, LONG, Redis, Worker, run_python, until};

/// Files of a certificate authority of our own, a server and a client.
struct Authority(Folder);

impl Authority {
    fn new() -> Self {
        let folder = Folder::new();
        folder.write("san", "subjectAltName=IP:127.0.0.1");
        let authority = Self(folder);
        authority.openssl("req -x509 -new -nodes -keyout ca.key -out ca.pem -subj /CN=test-ca -days 2 -newkey ec -pkeyopt ec_paramgen_curve:P-256");
        for name in ["server", "client"] {
            authority.openssl(&format!("req -new -nodes -keyout {name}.key -out {name}.csr -subj /CN={name} -newkey ec -pkeyopt ec_paramgen_curve:P-256"));
            authority.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile san"
            ));
        }
        authority
    }

    fn openssl(&self, words: &str) {
        let out = Command::new("openssl")
            .args(words.split(' '))
            .current_dir(self.0.path())
            .output();
        let out = out.expect("openssl is on PATH");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// A Redis that speaks TLS as well, and whether clients must have a certificate.
    fn redis(&self, auth_clients: &str) -> Redis {
        let file = |name| self.file(name);
        Redis::start_with(&[
            &[
                "--tls-cert-file",
                &file("server.pem"),
                "--tls-key-file",
                &file("server.key"),
            ],
            &[
                "--tls-ca-cert-file",
                &file("ca.pem"),
                "--tls-auth-clients",
                auth_clients,
            ],
        ])
    }
}

async fn adds(url: &str, redis: &Redis) {
    let _worker = Worker::start_at(url, &["--result-backend", url]);
    let client = redis.client().await;
    let sum = client.send(Call::new("hello.add").arg(2).arg(3)).await.unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 5);
    // Our own client goes the same way.
    let client = Client::connect(url).await.unwrap();
    let sum = client.send(Call::new("hello.add").arg(3).arg(4)).await.unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 7);
}

fn refusal(url: &str) -> String {
    let mut worker = Worker::spawn_at("hello_task", url, &[], &[]);
    assert_ne!(worker.process.wait(), Some(0));
    worker.log()
}

#[tokio::test(flavor = "multi_thread")]
async fn p_046_tls_with_an_authority_of_our_own() {
    let authority = Authority::new();
    let redis = authority.redis("no");
    let url = redis.tls_url();
    let trusted = format!("{url}?ssl_cert_reqs=required&ssl_ca_certs={}", authority.file("ca.pem"));
    adds(&trusted, &redis).await;
    adds(&format!("{url}?ssl_cert_reqs=CERT_NONE"), &redis).await;
    // A certificate for another name.
    let elsewhere = trusted.replace("127.0.0.1", "localhost");
    let misnamed = refusal(&elsewhere);
    assert!(misnamed.contains("certificate"), "{misnamed}");
    adds(&format!("{elsewhere}&ssl_check_hostname=false"), &redis).await;
    // Nobody vouches for the server: that is no Redis to send tasks to.
    let untrusted = refusal(&url);
    assert!(untrusted.contains("certificate"), "{untrusted}");
    let missing = refusal(&format!("{url}?ssl_ca_certs=/no/such/file.pem"));
    assert!(
        missing.contains("cannot read ssl_ca_certs /no/such/file.pem"),
        "{missing}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_certificate_of_the_client() {
    let authority = Authority::new();
    let redis = authority.redis("yes");
    let url = format!("{}?ssl_ca_certs={}", redis.tls_url(), authority.file("ca.pem"));
    let own = format!(
        "{url}&ssl_certfile={}&ssl_keyfile={}",
        authority.file("client.pem"),
        authority.file("client.key")
    );
    adds(&own, &redis).await;
    // The same URL, with kombu's name for the check, serves Celery.
    let program = "
import sys
from celery import Celery
url = sys.argv[1] + '&ssl_cert_reqs=required'
app = Celery(broker=url, backend=url)
assert app.send_task('hello.add', (1, 2)).get(timeout=30) == 3
";
    let _worker = Worker::start_at(&own, &[]);
    run_python(program, &own);
    let nameless = refusal(&url);
    assert!(nameless.contains("cannot reach Redis"), "{nameless}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket() {
    let folder = Folder::new();
    let path = folder.path().join("redis.sock").display().to_string();
    let redis = Redis::start_with(&[&["--unixsocket", &path]]);
    adds(&format!("redis+socket://{path}?virtual_host=0"), &redis).await;
    assert!(Path::new(&path).exists());
}

/// The rules of docs/redis.md are enough, and nothing is tried that they refuse.
#[tokio::test(flavor = "multi_thread")]
async fn an_acl_user_with_no_more_than_the_documented_rights() {
    let redis = Redis::start();
    let url = documented_user(&redis, "worker");
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 1}")];
    let mut first = Worker::spawn_at("hello_task", &url, &["-c", "1", "-E"], &settings);
    first.wait_for_log("ready");
    let program = "
import sys
from celery import Celery, chord
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
assert app.send_task('hello.add', (1, 2)).get(timeout=30) == 3
assert app.send_task('hello.flaky', (1,)).get(timeout=30) == 1
assert app.control.ping(timeout=2)
add = lambda *args: app.signature('hello.add', args)
body = app.signature('hello.nap', kwargs={'n': 7}).set(link_error=add(1))
error = chord([add(1, 2), add(3, 4)])(body).get(timeout=30, propagate=False)
assert 'invalid type' in str(error), error
app.send_task('hello.sleep', (60,)).revoke(terminate=True)
app.connection_for_write().default_channel.client.lpush('celery', 'garbage')
";
    run_python(program, &redis.url());
    let client = redis.client().await;
    let held = client.send(Call::new("hello.sleep").arg(1)).await.unwrap();
    until("it is held", async || redis.length("HLEN", "unacked") > 0).await;
    first.process.kill();
    let second = Worker::spawn_at("hello_task", &url, &["-c", "1"], &settings);
    assert_eq!(held.get::<String>(LONG).await.unwrap(), "rested", "{}", second.log());
    assert_eq!(denied(&redis), Vec::<String>::new());
}

/// Two teams share `unacked`, and each may write to its own queues only. What a worker may not put back it leaves where
/// it is, says so, and restores what is behind it.
#[tokio::test(flavor = "multi_thread")]
async fn an_overdue_message_that_may_not_be_restored_stays_where_it_is() {
    let redis = Redis::start();
    let url = documented_user(&redis, "worker");
    let envelope = |id: &str| {
        format!(
            r#"{{"body": "W1sxXSwge30sIG51bGxd", "content-type": "application/json", "headers": {{"task": "hello.add", "id": "{id}"}}, "properties": {{"body_encoding": "base64"}}}}"#
        )
    };
    let hold = |tag: &str, queue: &str, since: &str| {
        redis.command::<i64>(&["HSET", "unacked", tag, &format!(r#"[{},"","{queue}"]"#, envelope(tag))]);
        redis.command::<i64>(&["ZADD", "unacked_index", since, tag]);
    };
    // More of theirs than are looked at in one go, all overdue for longer than ours.
    const THEIRS: usize = 230;
    for n in 0..THEIRS {
        hold(&format!("theirs-{n}"), "reports", "0");
    }
    hold("ours", "celery", "1000");
    let settings = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 1}")];
    let worker = Worker::spawn_at("hello_task", &url, &["-c", "1"], &settings);
    until("ours is done", async || {
        redis.length("EXISTS", "celery-task-meta-ours") == 1
    })
    .await;
    worker.wait_for_log("overdue messages cannot be restored");
    // Ours is done with, and it has looked at theirs once more.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    until("theirs are left", async || {
        (redis.length("HLEN", "unacked"), redis.length("ZCARD", "unacked_index")) == (THEIRS, THEIRS)
    })
    .await;
    assert_eq!(redis.length("LLEN", "reports"), 0);
    let said = worker.log().matches("which belongs in \"reports\"").count();
    assert_eq!(said, 1, "{}", worker.log());
}

/// The same for whoever looks after dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn an_acl_user_for_dead_letters() {
    let redis = Redis::start();
    let mut worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    redis.command::<i64>(&["LPUSH", "celery", "garbage"]);
    // Pickled, so that nobody runs it.
    let envelope = r#"{"body": "gAIu", "content-type": "application/x-python-serialize", "headers": {"id": "1", "task": "hello.add"}, "properties": {"body_encoding": "base64"}}"#;
    redis.command::<i64>(&["LPUSH", "celery", envelope]);
    until("they are dead letters", async || {
        redis.length("LLEN", "celery.dead") == 2
    })
    .await;
    assert_eq!(worker.stop(), Some(0));
    drop(client);
    let url = documented_user(&redis, "undertaker");
    let dead = |words: &[&str]| {
        let words = [&["--broker", &url, "dead"], words].concat();
        let out = Command::new(crate::support::program("orchestra"))
            .args(words)
            .env_clear()
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert!(dead(&["list"]).contains("hello.add"));
    assert!(dead(&["show", "1"]).contains("pickle"), "{}", dead(&["show", "1"]));
    assert_eq!(dead(&["requeue", "1", "-y"]), "requeued 1 to celery\n");
    assert_eq!(dead(&["drop", "--all", "-y"]), "dropped 1 of celery\n");
    assert_eq!(
        (redis.length("LLEN", "celery"), redis.length("LLEN", "celery.dead")),
        (1, 0)
    );
    assert_eq!(denied(&redis), Vec::<String>::new());
}

/// Makes the user of that name as docs/redis.md says, with the first line of its rules; its URL.
fn documented_user(redis: &Redis, name: &str) -> String {
    documented_rights(redis, name, 1)
}

/// The same, with that many lines.
pub(crate) fn documented_rights(redis: &Redis, name: &str, lines: usize) -> String {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/redis.md")).unwrap();
    let start = format!("ACL SETUSER {name} ");
    let mut given = 0;
    for rules in page.lines().filter_map(|line| line.strip_prefix(&start)).take(lines) {
        let user = ["ACL", "SETUSER", name];
        let words: Vec<&str> = user.into_iter().chain(rules.split_whitespace()).collect();
        redis.command::<()>(&words);
        given += 1;
    }
    assert!(given > 0, "the page has the rules of {name}");
    format!("redis://{name}:PASSWORD@127.0.0.1:{}/0", redis.port)
}

/// What was tried and refused. Saying its name is not needed, and Redis before 7.2 does not know the rule. Nor is
/// asking what can be lost.
pub(crate) fn denied(redis: &Redis) -> Vec<String> {
    let denied: Vec<redis::Value> = redis.command(&["ACL", "LOG"]);
    let spared = ["client|setinfo", "config|get", "\"info\""];
    let entries = denied.iter().map(|entry| format!("{entry:?}"));
    entries
        .filter(|entry| !spared.iter().any(|spared| entry.contains(spared)))
        .collect()
}

/// A user who may not ask for news of keys is served from looks, also on the connection after the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_news_of_keys_comes_back_after_its_connection_broke() {
    let redis = Redis::start();
    let url = documented_user(&redis, "worker");
    redis.command::<()>(&["ACL", "SETUSER", "worker", "-client|tracking"]);
    let worker = Worker::start_at(&url, &[]);
    assert!(worker.log().contains("CLIENT TRACKING"), "{}", worker.log());
    let client = redis.client().await;
    for n in 0..2 {
        let sum = client.send(Call::new("hello.add").arg(n)).await.unwrap();
        assert_eq!(sum.get::<i64>(LONG).await.unwrap(), n, "{}", worker.log());
        redis.command::<i64>(&["CLIENT", "KILL", "USER", "worker"]);
    }
}

#[test]
fn wrong_credentials_are_explained() {
    let redis = Redis::start_with(&[&["--requirepass", "right"]]);
    let wrong = refusal(&format!("redis://:wrong@127.0.0.1:{}/0", redis.port));
    assert!(
        wrong.contains("it knows no such user and password") && !wrong.contains(":wrong@"),
        "{wrong}"
    );
}

/// A master, a replica and three Sentinels; the master is killed while tasks flow.
#[tokio::test(flavor = "multi_thread")]
async fn p_046_sentinels_and_a_failover() {
    let master = Redis::start();
    let replica = Redis::start_with(&[&["--replicaof", "127.0.0.1", &master.port.to_string()]]);
    until("it is a replica", async || {
        let info: String = replica.command(&["INFO", "replication"]);
        info.contains("master_link_status:up")
    })
    .await;
    let folder = Folder::new();
    let mut sentinels = Vec::new();
    let mut urls = Vec::new();
    for n in 0..3 {
        let port = crate::support::free_port();
        let config = folder.write(
            &format!("{n}.conf"),
            &format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds mymaster 2000\nsentinel failover-timeout mymaster 3000\n",
                folder.path().display(),
                master.port
            ),
        );
        let child = Command::new("redis-server")
            .arg(config)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn();
        sentinels.push(crate::support::Process::from(child.unwrap()));
        urls.push(format!("sentinel://127.0.0.1:{port}/0"));
    }
    let ask = |url: &str, words: &[&str]| -> redis::RedisResult<redis::Value> {
        let mut connection = redis::Client::open(url.replace("sentinel", "redis"))?.get_connection()?;
        redis::cmd("SENTINEL").arg(words).query(&mut connection)
    };
    for url in &urls {
        until("the Sentinels know each other and the replica", async || {
            let master: Vec<String> = ask(url, &["MASTER", "mymaster"])
                .and_then(|known| Ok(redis::from_redis_value(known)?))
                .unwrap_or_default();
            let count = |name: &str| {
                let at = master.iter().position(|word| word == name).map(|at| at + 1);
                at.and_then(|at| master.get(at).cloned())
            };
            count("num-other-sentinels").as_deref() == Some("2") && count("num-slaves").as_deref() == Some("1")
        })
        .await;
    }
    let url = urls.join(";");
    let settings = [
        (
            "ORCHESTRA_BROKER_TRANSPORT_OPTIONS",
            "{master_name = 'mymaster', visibility_timeout = 2}",
        ),
        ("ORCHESTRA_TASK_ACKS_LATE", "true"),
    ];
    let worker = Worker::spawn_at("hello_task", &url, &["-c", "2"], &settings);
    worker.wait_for_log("ready");
    let client = Client::connect(&format!("{}?master_name=mymaster", urls[0]))
        .await
        .unwrap();
    let sum = client.send(Call::new("hello.add").arg(1).arg(2)).await.unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 3);
    let waiting = client
        .send(
            Call::new("hello.add")
                .arg(5)
                .countdown(std::time::Duration::from_secs(4)),
        )
        .await
        .unwrap();
    until("it is replicated", async || replica.length("HLEN", "unacked") == 1).await;
    drop(master);
    let after = loop {
        match client.send(Call::new("hello.add").arg(7)).await {
            Ok(pending) => break pending,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    };
    assert_eq!(after.get::<i64>(LONG).await.unwrap(), 7, "{}", worker.log());
    assert_eq!(waiting.get::<i64>(LONG).await.unwrap(), 5, "{}", worker.log());
    let role: redis::Value = replica.command(&["ROLE"]);
    assert!(format!("{role:?}").contains("master"), "{role:?}");
}

#[test]
fn sentinels_without_the_name_of_a_master_are_explained() {
    let said = refusal("sentinel://127.0.0.1:26379/0");
    assert!(said.contains("set master_name in the transport options"), "{said}");
}

/// A list of brokers: the worker starts at the first that can be reached, and goes on to the next with all its
/// connections when that one is gone; as kombu's client does with the same list.
#[tokio::test(flavor = "multi_thread")]
async fn p_048_a_list_of_brokers_and_a_failover() {
    let (mut first, second) = (Redis::start(), Redis::start());
    let nobody = format!("redis://127.0.0.1:{}/0", crate::support::free_port());
    let list = format!("{nobody};{};{}", first.url(), second.url());
    let mut worker = Worker::start_at(&list, &["-c", "2"]);
    let call = |n: i64| orchestra::client::Call::new("hello.add").arg(n).arg(1);
    let client = first.client().await;
    let sum: i64 = client.send(call(1)).await.unwrap().get(LONG).await.unwrap();
    assert_eq!(sum, 2);
    first.stop();
    worker.wait_for_log("cannot be reached; trying");
    // The client of Python goes the same way.
    let program = "
import sys
from celery import Celery
first, second = sys.argv[1].split(';')[1:]
app = Celery(broker=sys.argv[1], backend=second)
for n in range(20):
    assert app.send_task('hello.add', (n, 1)).get(timeout=30) == n + 1
assert app.control.ping(timeout=3)
";
    run_python(program, &list);
    assert_eq!(second.length("HLEN", "unacked"), 0);
    assert_eq!(worker.stop(), Some(0));
}

/// A broker that takes no more connections is not gone: as long as one stands there all others wait for it, and what is
/// held there stays ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_of_a_list_that_refuses_one_more_connection_is_not_left() {
    let (first, second) = (Redis::start(), Redis::start());
    let worker = Worker::start_at(&format!("{};{}", first.url(), second.url()), &["-c", "2"]);
    let client = first.client().await;
    let mut admin = redis::Client::open(first.url()).unwrap().get_connection().unwrap();
    // It has no room for another connection of the test either.
    let mut say = |words: &[&str]| -> String {
        let answer = redis::cmd(words[0]).arg(&words[1..]).query(&mut admin).unwrap();
        redis::from_redis_value(answer).unwrap()
    };
    let refusals = |stats: String| {
        let count = stats
            .lines()
            .find_map(|line| line.strip_prefix("rejected_connections:"));
        count.unwrap().parse::<usize>().unwrap()
    };
    say(&["CONFIG", "SET", "maxclients", "1"]);
    let add = |n: i64| Call::new("hello.add").arg(n);
    // A connection that carried much is followed by another; this one is refused.
    let large = client.send(add(1).kwarg("y", "y".repeat(17 << 20))).await.unwrap();
    until("it is refused", async || refusals(say(&["INFO", "stats"])) > 0).await;
    let small = client.send(add(2)).await.unwrap();
    until("both are done", async || {
        small.state().await.unwrap() == State::Success && large.state().await.unwrap() == State::Failure
    })
    .await;
    // One of several is lost and cannot be made again.
    let before = refusals(say(&["INFO", "stats"]));
    say(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    until("it is refused again", async || {
        refusals(say(&["INFO", "stats"])) > before + 3
    })
    .await;
    let next = client.send(add(3)).await.unwrap();
    until("it is served", async || next.state().await.unwrap() == State::Success).await;
    assert!(!worker.log().contains("cannot be reached; trying"), "{}", worker.log());
    say(&["CONFIG", "SET", "maxclients", "1000"]);
    worker.wait_for_log("again after");
}
