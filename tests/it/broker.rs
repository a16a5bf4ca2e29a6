//! The broker at its worst: what is held back, done in part, or refused for now.

use std::sync::Arc;
use std::time::Duration;

use orchestra::backend::{self, Backend};
use orchestra::broker::{self, Broker, ClaimId, Claims, Sweep, Write};
use orchestra::clock;
use orchestra::conn::{Endpoint, Link, LinkOptions, Patience};
use redis::Pipeline;

use crate::proxy::Proxy;
use crate::support::{Redis, until};

async fn connect(url: &str) -> Broker {
    let link = LinkOptions {
        // Only answers that never come take longer, also on a busy machine.
        response_timeout: Duration::from_secs(4),
        ..LinkOptions::default()
    };
    let options = broker::Options {
        link,
        ..broker::Options::default()
    };
    Broker::connect(&Endpoint::parse(url).unwrap(), options).await.unwrap()
}

fn publish(n: usize) -> Write {
    Write::Publish {
        exchange: String::new(),
        routing_key: "celery".into(),
        priority: 0,
        envelope: format!("{{\"n\": {n}}}").into_bytes().into(),
    }
}

async fn write(broker: &Broker, writes: &[Write]) {
    let mut pipe = Pipeline::new();
    broker.append(&mut pipe, writes);
    broker.writer().pipeline(&pipe).await.unwrap();
}

async fn push(broker: &Broker, count: usize) {
    write(broker, &(0..count).map(publish).collect::<Vec<_>>()).await;
}

fn queues() -> [Arc<str>; 1] {
    ["celery".into()]
}

/// Asks until it is answered.
async fn claim(broker: &Broker, id: &ClaimId, count: usize) -> Claims {
    loop {
        match broker.claim(id, &queues(), count, 1 << 20).await {
            Ok(claims) => return claims,
            Err(_) => broker.ready().await,
        }
    }
}

/// As many queues as remote control lets a worker have, each with ten priorities: Lua hands over no more than some 8,000
/// values at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_looks_at_ten_thousand_lists() {
    let redis = Redis::start();
    let options = broker::Options {
        priority_steps: (0..10).collect(),
        ..broker::Options::default()
    };
    let broker = Broker::connect(&Endpoint::parse(&redis.url()).unwrap(), options)
        .await
        .unwrap();
    let queues: Vec<Arc<str>> = (0..1000).map(|n| format!("q{n}").into()).collect();
    for list in ["q0", "q500\x06\x165", "q999\x06\x169"] {
        redis.command::<i64>(&["LPUSH", list, "{}"]);
    }
    let claims = broker.claim(&ClaimId::new(), &queues, 10, 1 << 20).await.unwrap();
    let from: Vec<&str> = claims.messages.iter().map(|message| &*message.queue).collect();
    assert_eq!((from, claims.drained), (vec!["q0", "q500", "q999"], true));
    let claims = broker.claim(&ClaimId::new(), &queues, 10, 1 << 20).await.unwrap();
    assert!(claims.messages.is_empty() && claims.drained);
}

/// A network that drops packets delivers them when it is well again, and a server does what they say, also when whoever
/// sent them has long asked again on another connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_comes_late_takes_nothing_from_the_one_in_its_place() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    // Where the server does not end the connection before.
    redis.command::<()>(&["ACL", "SETUSER", "default", "-client|kill"]);
    let broker = connect(&proxy.url()).await;
    push(&broker, 4).await;
    let id = ClaimId::new();
    proxy.hold();
    assert!(broker.claim(&id, &queues(), 2, 1 << 20).await.is_err());
    let claims = claim(&broker, &id, 2).await;
    assert_eq!(claims.messages.len(), 2);
    proxy.release();
    until("the late one has come", async || redis.length("LLEN", "celery") == 0).await;
    assert_eq!(redis.length("HLEN", "unacked"), 4);
    let acks: Vec<Write> = claims
        .messages
        .into_iter()
        .map(|message| Write::Ack(message.tag))
        .collect();
    write(&broker, &acks).await;
    // What the late one took is nobody's, and comes back when its lease ends.
    let left: Vec<String> = redis.command(&["HVALS", "unacked"]);
    let has = |n: usize| left.iter().any(|held| held.contains(&format!("\"n\": {n}")));
    assert!(left.len() == 2 && has(2) && has(3), "{left:?}");
}

/// The same for what is written: a new connection ends the one before, and what is on its way there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_on_a_connection_that_was_given_up_is_not_done() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let broker = connect(&proxy.url()).await;
    for (right, late) in [("-client|kill", 1), ("+client|kill", 0)] {
        redis.command::<()>(&["ACL", "SETUSER", "default", right]);
        redis.command::<()>(&["DEL", "celery"]);
        proxy.hold();
        let mut pipe = Pipeline::new();
        broker.append(&mut pipe, &[publish(1)]);
        assert!(broker.writer().pipeline(&pipe).await.is_err());
        broker.writer().ready().await;
        write(&broker, &[publish(2)]).await;
        proxy.release();
        if late == 1 {
            until("it comes late", async || redis.length("LLEN", "celery") == 2).await;
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(redis.length("LLEN", "celery"), 1);
        }
    }
}

/// Who has more patience does not wait on a connection that somebody else found dead: it would have more each time.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_on_a_connection_that_was_given_up() {
    let redis = Redis::start();
    // The network lets nobody know that the server has ended it.
    redis.command::<()>(&["ACL", "SETUSER", "default", "-client|kill"]);
    let proxy = Proxy::start(redis.port).await;
    let broker = connect(&proxy.url()).await;
    let (writer, patience) = (broker.writer(), Patience::default());
    let mut pipe = Pipeline::new();
    pipe.cmd("PING");
    proxy.silence();
    let error = writer.pipeline_with(&pipe, &patience).await.unwrap_err().to_string();
    assert!(error.contains("timed out"), "{error}");
    writer.ready().await;
    // Twice as patient now, and behind one that is not.
    proxy.silence();
    let ends = async |patience: &Patience| writer.pipeline_with(&pipe, patience).await.unwrap_err().to_string();
    let little = Patience::default();
    let (first, second) = tokio::join!(ends(&little), ends(&patience));
    assert!(
        first.contains("timed out") && !second.contains("timed out"),
        "{first}; {second}"
    );
}

/// A connection that breaks is told again what is to be heard, and also what somebody asked for at any moment of that.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_while_a_connection_is_made_is_heard() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let options = LinkOptions {
        connect_timeout: Duration::from_secs(10),
        ..LinkOptions::default()
    };
    let endpoint = Endpoint::parse(&proxy.url()).unwrap();
    let link = Link::connect(&endpoint, options).await.unwrap();
    link.subscribe_to("0").await.unwrap();
    let before = link.ears_epoch();
    proxy.delay(Duration::from_millis(100));
    proxy.close();
    let mut asked = 1;
    while link.ears_epoch() <= before {
        // Whoever hears that its connection broke need not ask again.
        let _ = link.subscribe_to(&asked.to_string()).await;
        asked += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(asked > 20, "{asked}");
    let hears = |channel: usize| redis.command::<i64>(&["PUBLISH", &channel.to_string(), "news"]) == 1;
    until("all are heard", async || (0..asked).all(hears)).await;
}

/// What cannot be written down as held goes back: it is never nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_written_down_stays_in_its_queue() {
    let redis = Redis::start();
    let broker = connect(&redis.url()).await;
    push(&broker, 2).await;
    for key in ["unacked", "unacked_index"] {
        redis.command::<()>(&["SET", key, "something else"]);
        let error = broker.claim(&ClaimId::new(), &queues(), 1, 1 << 20).await.unwrap_err();
        assert!(error.to_string().contains("WRONGTYPE"), "{error}");
        assert_eq!(redis.length("LLEN", "celery"), 2);
        redis.command::<i64>(&["DEL", key]);
        assert_eq!(redis.length("EXISTS", "unacked"), 0);
    }
    let claims = claim(&broker, &ClaimId::new(), 2).await;
    let raw: Vec<&[u8]> = claims.messages.iter().map(|message| &message.raw[..]).collect();
    assert_eq!(raw, [b"{\"n\": 0}", b"{\"n\": 1}"]);
}

/// Holds an overdue message; `deliveries` of it came to no end.
fn hold(redis: &Redis, queue: &str, deliveries: u32) {
    let held =
        format!(r#"[{{"headers": {{"x-orchestra-deliveries": {deliveries}}}, "properties": {{}}}},"","{queue}"]"#);
    redis.command::<i64>(&["HSET", "unacked", "tag", &held]);
    redis.command::<i64>(&["ZADD", "unacked_index", "7", "tag"]);
}

/// A user may read the queue of another team, as one who looks after all of them does, and not write to it.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_go_back_stays_held_also_where_its_queue_may_be_read() {
    let redis = Redis::start();
    let rules = "ACL SETUSER team on nopass ~unacked* ~_kombu* %R~theirs* &* +@all";
    redis.command::<()>(&rules.split(' ').collect::<Vec<_>>());
    let broker = connect(&format!("redis://team:x@127.0.0.1:{}/0", redis.port)).await;
    // Back to its queue, or to the dead letters.
    for deliveries in [1, 9] {
        hold(&redis, "theirs", deliveries);
        let restored = broker.restore_overdue(&mut Sweep::default()).await.unwrap();
        assert_eq!((restored.stay, restored.requeued), (1, 0), "{restored:?}");
        assert!(restored.dead.is_empty());
        let refusal = restored.refusal.unwrap();
        assert!(refusal.contains("belongs in \"theirs\""), "{refusal}");
        assert_eq!(redis.length("HLEN", "unacked"), 1);
        assert_eq!(redis.command::<f64>(&["ZSCORE", "unacked_index", "tag"]), 7.0);
    }
}

/// A message is given up, and the answer that says so is lost: whoever gave it up still tells that its task failed.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_told_though_the_answer_was_lost() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let broker = connect(&proxy.url()).await;
    let mut sweep = Sweep::default();
    hold(&redis, "celery", 9);
    proxy.cut_at("delivered 9 times");
    assert!(broker.restore_overdue(&mut sweep).await.is_err());
    assert_eq!(
        (redis.length("LLEN", "celery.dead"), redis.length("HLEN", "unacked")),
        (1, 0)
    );
    let dead = loop {
        match broker.restore_overdue(&mut sweep).await {
            Ok(restored) => break restored.dead,
            Err(_) => broker.ready().await,
        }
    };
    assert!(
        dead.len() == 1 && dead[0].reason.starts_with("delivered 9 times"),
        "{dead:?}"
    );
    assert!(broker.restore_overdue(&mut sweep).await.unwrap().dead.is_empty());
}

/// A machine that is paused stops its clock as well. By the server's, our own leases may have run out.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_for_left_behind_once_our_own_leases_may_have_run_out() {
    let redis = Redis::start();
    let broker = connect(&redis.url()).await;
    hold(&redis, "celery", 1);
    let (now, ours) = broker.extend(&[]).await.unwrap();
    assert!(ours.is_empty());
    let mut sweep = Sweep::default();
    sweep.trust_until(now - 1.0);
    let restored = broker.restore_overdue(&mut sweep).await.unwrap();
    assert!(restored.stale && restored.requeued == 0 && redis.length("HLEN", "unacked") == 1);
    sweep.trust_until(now + 60.0);
    let restored = broker.restore_overdue(&mut sweep).await.unwrap();
    assert!(!restored.stale && restored.requeued == 1, "{restored:?}");
}

/// Whoever counts the last member and does not hear that the chord is his asks again.
#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_end_a_chord_is_given_again_to_whoever_has_it() {
    let redis = Redis::start();
    let broker = connect(&redis.url()).await;
    let backend = Backend::new(broker.writer().clone(), backend::Options::default())
        .await
        .unwrap();
    redis.command::<()>(&["SET", "celery-taskset-meta-g.s", "1"]);
    let part = |task: &str| {
        [backend::Part::new(
            "g",
            Some(0),
            task,
            "SUCCESS",
            &orchestra::wire::Json::null(),
        )]
    };
    let ours = part("a");
    for _ in 0..2 {
        let counted = backend.count_parts(&ours).await.unwrap().remove(0).unwrap();
        assert!(matches!(counted, backend::Counted::Mine(_)), "{counted:?}");
    }
    // The same member, delivered again to another worker.
    let counted = backend.count_parts(&part("a")).await.unwrap().remove(0).unwrap();
    assert!(matches!(counted, backend::Counted::Taken), "{counted:?}");
}

/// Asked again, the broker gives what a lost answer carried, with a lease that begins then.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_was_lost_is_found_again() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port).await;
    let broker = connect(&proxy.url()).await;
    push(&broker, 3).await;
    let id = ClaimId::new();
    proxy.cut();
    assert!(broker.claim(&id, &queues(), 2, 1 << 20).await.is_err());
    redis.end_leases();
    let claims = claim(&broker, &id, 2).await;
    let raw: Vec<&[u8]> = claims.messages.iter().map(|message| &message.raw[..]).collect();
    assert_eq!(raw, [b"{\"n\": 0}", b"{\"n\": 1}"]);
    let restored = broker.restore_overdue(&mut Sweep::default()).await.unwrap();
    assert_eq!(restored.requeued, 0, "{restored:?}");
    assert_eq!(
        (redis.length("LLEN", "celery"), redis.length("HLEN", "unacked")),
        (1, 2)
    );
}

/// What is held says whose it is, as JSON; the name of a queue may have what JSON has not.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_may_have_quotes_in_its_name() {
    let redis = Redis::start();
    let broker = connect(&redis.url()).await;
    let (name, taken) = (r#"a"b\c"#, [Arc::from(r#"a"b\c"#)]);
    for message in [r#"{"n": 1}"#, "garbage"] {
        redis.command::<u64>(&["LPUSH", name, message]);
    }
    let id = ClaimId::new();
    let claims = broker.claim(&id, &taken, 2, 1 << 20).await.unwrap();
    assert_eq!((claims.messages.len(), claims.dead.len()), (1, 1), "{claims:?}");
    let held: Vec<String> = redis.command(&["HVALS", "unacked"]);
    let held: serde_json::Value = serde_json::from_str(&held[0]).unwrap();
    assert_eq!(held, serde_json::json!([{"n": 1}, "", name]));
    let letters = broker.dead_letters(name, 0, 9, 999).await.unwrap();
    assert_eq!(
        (letters[0].letter.queue.as_str(), letters[0].message()),
        (name, &b"garbage"[..])
    );
    // Asked again after a lost answer.
    let again = broker.claim(&id, &taken, 2, 1 << 20).await.unwrap().messages;
    assert_eq!(again[0].tag, claims.messages[0].tag);
    let back = Write::GiveBack {
        queue: name.into(),
        priority: 0,
        tags: vec![again[0].tag.clone()],
    };
    write(&broker, &[back]).await;
    assert_eq!(
        redis.command::<Vec<String>>(&["LRANGE", name, "0", "-1"]),
        [r#"{"n": 1}"#]
    );
    assert_eq!(redis.length("HLEN", "unacked"), 0);
}

/// What follows a task and its result go in one pipeline. When the server forgot the scripts it does one of them.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_of_a_pipeline_is_not_done_again() {
    let redis = Redis::start();
    let broker = connect(&redis.url()).await;
    let backend = Backend::new(broker.writer().clone(), backend::Options::default())
        .await
        .unwrap();
    redis.command::<()>(&["SCRIPT", "FLUSH"]);
    let mut pipe = Pipeline::new();
    broker.append(&mut pipe, &[publish(1)]);
    let result = backend::Write::Store {
        id: "a".into(),
        status: orchestra::wire::State::Success,
        record: b"{\"status\": \"SUCCESS\"}".to_vec().into(),
        late: false,
    };
    backend.append(&mut pipe, &[result]);
    broker.append(&mut pipe, &[publish(2)]);
    broker.writer().pipeline(&pipe).await.unwrap();
    let sent: Vec<String> = redis.command(&["LRANGE", "celery", "0", "-1"]);
    assert_eq!(sent, ["{\"n\": 2}", "{\"n\": 1}"]);
    assert_eq!(redis.length("EXISTS", "celery-task-meta-a"), 1);
}

/// A server that takes no writes now has nothing against the key of the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_writes_is_asked_again() {
    let redis = Redis::start();
    let broker = connect(&redis.url()).await;
    push(&broker, 1).await;
    let id = ClaimId::new();
    for (no, yes) in [
        (
            &["CONFIG", "SET", "min-replicas-to-write", "1"][..],
            &["CONFIG", "SET", "min-replicas-to-write", "0"][..],
        ),
        (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
    ] {
        redis.command::<()>(no);
        let error = broker.claim(&id, &queues(), 1, 1 << 20).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        redis.command::<()>(yes);
    }
    let claims = claim(&broker, &id, 1).await;
    assert_eq!((claims.messages.len(), claims.unusable), (1, None));
}

/// How long a message that waits for its ETA stays ours is between its ETA and the server's clock: it must not depend
/// on that of the worker, which may be an hour ahead.
#[tokio::test]
async fn a_parked_message_is_ours_until_its_eta_whatever_our_clock_says() {
    let redis = Redis::start();
    let broker = connect(&redis.url()).await;
    push(&broker, 1).await;
    let claims = claim(&broker, &ClaimId::new(), 1).await;
    let tag = claims.messages[0].tag.clone();
    let now = clock::now();
    let held_since = |at: clock::Timestamp| clock::epoch_seconds(at);
    let noted = || -> f64 { redis.command(&["ZSCORE", "unacked_index", &name(&redis)]) };
    // As the server noted it whose clock is an hour behind ours: the visibility timeout is an hour, too.
    let score = held_since(now) - 3600.0;
    redis.command::<i64>(&["ZADD", "unacked_index", "XX", &score.to_string(), &name(&redis)]);
    let eta = clock::after(now, Duration::from_secs(30));
    let park = || Write::Park { tag: tag.clone(), eta };
    write(&broker, &[park()]).await;
    let due = noted() + 3600.0 - held_since(eta);
    assert!((1.0..=61.0).contains(&due), "it ends {due} s after the ETA");
    // One that has longer keeps it.
    let score = held_since(now);
    redis.command::<i64>(&["ZADD", "unacked_index", "XX", &score.to_string(), &name(&redis)]);
    write(&broker, &[park()]).await;
    assert!((noted() - score).abs() < 0.001, "{}", noted());
}

/// The tag of the one message that is held.
fn name(redis: &Redis) -> String {
    redis.command::<Vec<String>>(&["HKEYS", "unacked"]).remove(0)
}
