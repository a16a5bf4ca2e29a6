//! The states of a Redis that refuses for a while, one after the other while tasks go through it: nothing is lost, no
//! worker ends, and each of them is one outage at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orchestra::canvas::chain;
use orchestra::client::{Call, Client};
use orchestra::wire::Signature;
use redis::Connection;
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Redis, Worker, until};

/// How long each state lasts.
const LASTS: Duration = Duration::from_millis(1500);

/// So many send at once, and wait so long between two tasks.
const SENDERS: usize = 4;
const PACE: Duration = Duration::from_millis(40);

/// Lets Redis be in a state for a while.
type Pass = fn(&mut Redis, &mut Admin);

/// Those that Redis can be in, and what lets it be.
const STATES: [(&str, Pass); 10] = [
    ("READONLY", |_, admin| {
        admin.say::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
        std::thread::sleep(LASTS);
        admin.say::<()>(&["REPLICAOF", "NO", "ONE"]);
    }),
    ("LOADING", |redis, admin| {
        // Each key takes it a while (`key-load-delay`).
        let fill = "for i = 1, 5000 do redis.call('SET', 'fill:' .. i, i) end";
        admin.say::<()>(&["EVAL", fill, "0"]);
        redis.stop();
        let began = Instant::now();
        redis.start_again();
        assert!(
            began.elapsed() > LASTS / 2,
            "it was loading for {:?} only",
            began.elapsed()
        );
        *admin = Admin::connect(redis);
    }),
    ("BUSY", |redis, admin| {
        let mut busy = Admin::connect(redis);
        let spins = std::thread::spawn(move || busy.try_say(&["EVAL", "while true do end", "0"]));
        std::thread::sleep(LASTS);
        admin.say::<()>(&["SCRIPT", "KILL"]);
        assert!(spins.join().unwrap().is_err());
    }),
    // One worker gives no password then, and the other a wrong one.
    ("NOAUTH and WRONGPASS", |_, admin| {
        admin.say::<()>(&["CONFIG", "SET", "requirepass", "other"]);
        admin.cut_all();
        std::thread::sleep(LASTS);
        admin.say::<()>(&["CONFIG", "SET", "requirepass", ""]);
    }),
    ("OOM", |_, admin| {
        admin.say::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
        std::thread::sleep(LASTS);
        admin.say::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    }),
    ("no room for clients", |_, admin| {
        admin.say::<()>(&["CONFIG", "SET", "maxclients", "1"]);
        admin.cut_all();
        std::thread::sleep(LASTS);
        admin.say::<()>(&["CONFIG", "SET", "maxclients", "1000"]);
    }),
    ("paused", |_, admin| {
        let lasts = LASTS.as_millis().to_string();
        admin.say::<()>(&["CLIENT", "PAUSE", &lasts, "ALL"]);
        std::thread::sleep(LASTS);
    }),
    // What never blocks is never told so; an operator may try all the same.
    ("UNBLOCKED", |_, admin| {
        let list: String = admin.say(&["CLIENT", "LIST"]);
        for id in list
            .lines()
            .filter_map(|line| line.strip_prefix("id=")?.split(' ').next())
        {
            admin.say::<i64>(&["CLIENT", "UNBLOCK", id, "ERROR"]);
        }
    }),
    ("NOSCRIPT", |_, admin| {
        for _ in 0..15 {
            admin.say::<()>(&["SCRIPT", "FLUSH"]);
            std::thread::sleep(LASTS / 15);
        }
    }),
    ("MISCONF", |_, admin| {
        // A folder of the snapshot's name is in its way.
        let folder: Vec<String> = admin.say(&["CONFIG", "GET", "dir"]);
        std::fs::create_dir_all(format!("{}/snapshot/full", folder[1])).unwrap();
        admin.say::<()>(&["CONFIG", "SET", "save", "3600 1"]);
        admin.say::<()>(&["BGSAVE"]);
        while !admin
            .say::<String>(&["INFO", "persistence"])
            .contains("bgsave_status:err")
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(LASTS);
        admin.say::<()>(&["CONFIG", "SET", "save", ""]);
    }),
];

/// A user whom no password of others concerns, on a connection that is there already.
struct Admin(Connection);

impl Admin {
    fn url(redis: &Redis) -> String {
        format!("redis://admin:admin@127.0.0.1:{}/0", redis.port)
    }

    fn connect(redis: &Redis) -> Self {
        let client = redis::Client::open(Self::url(redis)).unwrap();
        Self(client.get_connection().unwrap())
    }

    fn try_say(&mut self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut self.0)
    }

    fn say<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> T {
        redis::from_redis_value(self.try_say(words).unwrap()).unwrap()
    }

    /// Everybody else has to connect again.
    fn cut_all(&mut self) {
        for kind in ["normal", "pubsub"] {
            self.say::<i64>(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        }
    }
}

/// Sends tasks until it is told to end; the ids of those that Redis confirmed.
async fn feed(client: Client, ends: Arc<AtomicBool>) -> Vec<String> {
    let mut confirmed = Vec::new();
    for number in 0_u64.. {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        let call = Call::new("hello.nap").arg(number % 40).arg(number);
        let id = call.id().to_owned();
        // One whose publish failed may be there or not: it is not counted.
        if client.send(call).await.is_ok() {
            confirmed.push(id);
        }
        tokio::time::sleep(PACE).await;
    }
    confirmed
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_redis_refuses_for_a_while_nothing_is_lost() {
    let mut redis = Redis::start_with(&[
        &["--user", "admin", "on", ">admin", "~*", "&*", "+@all"],
        &["--key-load-delay", "300"],
        &["--dbfilename", "snapshot"],
    ]);
    let mut admin = Admin::connect(&redis);
    let (plain, with_password) = (redis.url(), format!("redis://:secret@127.0.0.1:{}/0", redis.port));
    let late = [("ORCHESTRA_TASK_ACKS_LATE", "true")];
    let mut workers = [
        Worker::spawn_at("hello_task", &plain, &["-c", "4"], &[]),
        Worker::spawn_at("hello_task", &with_password, &["-c", "4"], &late),
    ];
    for worker in &workers {
        worker.wait_for_log("orchestra-worker: ready");
    }
    let ends = Arc::new(AtomicBool::new(false));
    let mut fed = tokio::task::JoinSet::new();
    for _ in 0..SENDERS {
        fed.spawn(feed(Client::connect(&Admin::url(&redis)).await.unwrap(), ends.clone()));
    }
    let outages = |worker: &Worker| {
        let log = worker.log();
        (
            log.matches("; reconnecting").count(),
            log.matches(" again after ").count(),
        )
    };
    // Of each worker: outages beyond one for each state.
    let mut more = [0, 0];
    for (state, pass_through) in STATES {
        let before = [&workers[0], &workers[1]].map(outages);
        tokio::task::block_in_place(|| pass_through(&mut redis, &mut admin));
        let left = Instant::now();
        let client = Client::connect(&Admin::url(&redis)).await.unwrap();
        let probe = client.send(Call::new("hello.nap").arg(1).arg(7)).await.unwrap();
        assert_eq!(
            probe.get::<u64>(LONG).await.unwrap(),
            7,
            "{state}: {}",
            workers[0].log()
        );
        eprintln!("{state}: a task was done {:.1} s later", left.elapsed().as_secs_f64());
        for ((worker, before), more) in workers.iter_mut().zip(before).zip(&mut more) {
            let patience = Instant::now();
            while outages(worker).0 != outages(worker).1 {
                assert!(patience.elapsed() < LONG, "{state} is not over:\n{}", worker.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let told = outages(worker).0 - before.0;
            *more += told.saturating_sub(1);
            // A Redis that a busy machine gives no time for two seconds is one too.
            assert!(*more <= 1, "{state} was {told} outages:\n{}", worker.log());
            assert!(worker.process.is_running(), "{state}:\n{}", worker.log());
        }
    }
    ends.store(true, Ordering::Relaxed);
    let confirmed = fed.join_all().await.concat();
    assert!(confirmed.len() > 200, "{} were sent", confirmed.len());
    let keys: Vec<String> = confirmed.iter().map(|id| format!("celery-task-meta-{id}")).collect();
    let command: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let state_of = |result: Option<String>| {
        let result = serde_json::from_str::<Value>(&result?).unwrap();
        Some(result["status"].as_str()?.to_owned())
    };
    let mut states = || -> Vec<Option<String>> {
        let results: Vec<Option<String>> = admin.say(&command);
        results.into_iter().map(state_of).collect()
    };
    let patience = Instant::now();
    while states().contains(&None) {
        if patience.elapsed() > LONG {
            let states = states();
            let without = confirmed.iter().zip(states).filter(|(_, state)| state.is_none());
            let ids: Vec<&String> = without.map(|(id, _)| id).collect();
            let held: Vec<String> = redis.command(&["HVALS", "unacked"]);
            let waits: Vec<String> = redis.command(&["LRANGE", "celery", "0", "-1"]);
            let logs = [&workers[0], &workers[1]].map(Worker::log).join("\n---\n");
            panic!("no result: {ids:?}; held: {held:?}; in the queue: {waits:?}\n{logs}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let odd: Vec<_> = confirmed
        .iter()
        .zip(states())
        .filter(|(_, state)| state.as_deref() != Some("SUCCESS"))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
    for worker in &mut workers {
        assert!(!worker.log().contains("panicked"), "{}", worker.log());
        assert_eq!(
            tokio::task::block_in_place(|| worker.stop()),
            Some(0),
            "{}",
            worker.log()
        );
    }
}

/// Only the Redis of the results is away: tasks go on, their results and then their acks wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn results_wait_for_a_result_redis_that_is_away() {
    let (redis, mut results) = (Redis::start(), Redis::start());
    let worker = Worker::start(&redis, &["-c", "4", "--result-backend", &results.url()]);
    let client = Client::connect_to(&redis.url(), None).await.unwrap();
    let calls: Vec<Call> = (0..40).map(|n| Call::new("hello.nap").arg(20).arg(n)).collect();
    tokio::task::block_in_place(|| results.stop());
    let sent = client.send_many(&calls).await.unwrap();
    until("all have run", async || {
        worker.log().matches(" succeeded in ").count() == 40
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let of_results = |line: &&str| line.contains("; reconnecting") && line.contains(&results.port.to_string());
    assert_eq!(worker.log().lines().filter(of_results).count(), 1, "{}", worker.log());
    tokio::task::block_in_place(|| results.start_again());
    let told = Client::connect_to(&redis.url(), Some(&results.url())).await.unwrap();
    for (n, sent) in sent.iter().enumerate() {
        let result = told.result(sent.id()).get::<usize>(LONG).await;
        assert_eq!(result.unwrap(), n, "{}", worker.log());
    }
    let log = worker.log();
    assert_eq!(log.matches(" succeeded in ").count(), 40, "none ran twice:\n{log}");
}

/// Only the Redis of the results is away: what needs no result is done as ever. Early acks go, chains go on, the worker
/// answers, and gives back at its end what has not started.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_needs_a_result_waits_for_a_result_redis_that_is_away() {
    let (redis, mut results) = (Redis::start(), Redis::start());
    let mut worker = Worker::start(&redis, &["-c", "2", "-n", "w@here", "--result-backend", &results.url()]);
    let client = Client::connect_to(&redis.url(), None).await.unwrap();
    tokio::task::block_in_place(|| results.stop());
    let add = |x: i64| Signature::new("hello.add").arg(x);
    client
        .apply(chain([add(1).arg(1), add(2), add(3), add(4)]))
        .await
        .unwrap();
    let done = |worker: &Worker| worker.log().matches(" succeeded in ").count();
    until("the chain is at its end", async || done(&worker) == 4).await;
    until("they are acknowledged", async || redis.length("HLEN", "unacked") == 0).await;
    let wait = Duration::from_secs(2);
    let answers = client.inspect("ping", &json!({}), None, wait).await.unwrap();
    assert!(answers.contains_key("w@here"), "{answers:?}");
    // Late acks wait, and are not taken for left behind.
    client.send(Call::new("hello.sleep").arg(0)).await.unwrap();
    until("it has run", async || done(&worker) == 5).await;
    assert_eq!(redis.length("HLEN", "unacked"), 1);
    let naps: Vec<Call> = (0..8).map(|n| Call::new("hello.nap").arg(300).arg(n)).collect();
    client.send_many(&naps).await.unwrap();
    until("they are taken", async || {
        worker.log().matches("hello.nap").count() >= 8
    })
    .await;
    worker.process.signal(nix::sys::signal::Signal::SIGTERM);
    worker.wait_for_log("warm stop");
    until("what waited is given back", async || {
        redis.length("LLEN", "celery") >= 4
    })
    .await;
    assert!(worker.process.is_running(), "{}", worker.log());
    tokio::task::block_in_place(|| results.start_again());
    assert_eq!(
        tokio::task::block_in_place(|| worker.process.wait()),
        Some(0),
        "{}",
        worker.log()
    );
    assert_eq!(redis.length("HLEN", "unacked"), 0, "{}", worker.log());
}

/// A password that stands in a file is read there again when the server does not know it any more: whoever changes it
/// need not start workers again. Of the broker and of the results.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_was_changed_is_read_again() {
    let servers = [(); 2].map(|()| Redis::start_with(&[&["--user", "admin", "on", ">admin", "~*", "&*", "+@all"]]));
    let mut admins = [&servers[0], &servers[1]].map(Admin::connect);
    let folder = Folder::new();
    let mut change = |password: &str| {
        for (name, (server, admin)) in ["broker", "results"].into_iter().zip(servers.iter().zip(&mut admins)) {
            admin.say::<()>(&["ACL", "SETUSER", "default", "resetpass", &format!(">{password}")]);
            admin.cut_all();
            folder.write(name, &format!("redis://:{password}@127.0.0.1:{}/0\n", server.port));
        }
    };
    change("first");
    let files = ["broker", "results"].map(|name| folder.path().join(name).display().to_string());
    let environment = [
        ("ORCHESTRA_BROKER_URL_FILE", &*files[0]),
        ("ORCHESTRA_RESULT_BACKEND_FILE", &*files[1]),
    ];
    let worker = Worker::spawn_at("hello_task", "", &["-c", "2"], &environment);
    worker.wait_for_log("orchestra-worker: ready");
    let urls = [&servers[0], &servers[1]].map(Admin::url);
    for password in ["changed-once", "changed-twice"] {
        change(password);
        let client = Client::connect_to(&urls[0], Some(&urls[1])).await.unwrap();
        let sum = client.send(Call::new("hello.add").arg(1)).await.unwrap();
        assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1, "{}", worker.log());
    }
    let log = worker.log();
    assert_eq!(
        log.matches("is asked with the login that stands in").count(),
        4,
        "{log}"
    );
    assert!(!log.contains("changed-"), "{log}");
}
