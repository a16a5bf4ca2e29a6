//! Periodic tasks, from the outside: beats as processes, and schedules compared with Python's own.

use std::collections::HashSet;
use std::process::{Command, Output};

use base64::Engine as _;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::sys::signal::Signal;
use orchestra::beat::{Due, Schedule};
use serde_json::Value;

use crate::support::{Folder, Redis, Worker, run_python, until};

/// A beat that is missed soon, with a task every second.
const EVERY_SECOND: &[(&str, &str)] = &[
    ("ORCHESTRA_BEAT_LOCK_TIMEOUT", "2"),
    (
        "ORCHESTRA_BEAT_SCHEDULE",
        "{tick = {task = 'hello.add', schedule = 1, args = [2, 3]}}",
    ),
];

/// A beat that has sent, or waits for the lock.
fn beat(redis: &Redis, arguments: &[&str], environment: &[(&str, &str)]) -> Worker {
    let beat = Worker::spawn_words("orchestra", &["beat"], redis, arguments, environment);
    beat.wait_for_log("beat is ready");
    beat
}

fn schedule(redis: &Redis, arguments: &[&str]) -> Output {
    let folder = Folder::new();
    Command::new(crate::support::program("orchestra"))
        .args(["schedule", "--broker", &redis.url()])
        .args(arguments)
        .env_clear()
        .current_dir(folder.path())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Writes an entry that is no text.
fn raw(redis: &Redis, name: &[u8], entry: &[u8]) {
    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let mut command = redis::cmd("HSET");
    command.arg("orchestra:beat:schedule").arg(name).arg(entry);
    command.exec(&mut connection).unwrap();
}

/// The headers of all messages in a queue, oldest first.
fn sent(redis: &Redis, queue: &str) -> Vec<Value> {
    let messages: Vec<String> = redis.command(&["LRANGE", queue, "0", "-1"]);
    let headers = |message: &String| serde_json::from_str::<Value>(message).unwrap()["headers"].clone();
    messages.iter().rev().map(headers).collect()
}

/// Every message is for a due time of its own, later than the one before it, and all are counted.
fn assert_no_due_time_twice(redis: &Redis, name: &str) {
    let sent = sent(redis, "celery");
    let due: Vec<Timestamp> = sent
        .iter()
        .map(|headers| headers["orchestra_due_at"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(due.is_sorted_by(|a, b| a < b), "{due:?}");
    let count: usize = redis.command(&["HGET", "orchestra:beat:total_run_count", name]);
    assert_eq!(count, sent.len());
    let ids: HashSet<&str> = sent.iter().map(|headers| headers["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), sent.len());
}

async fn until_sent(redis: &Redis, count: usize) {
    until("as many messages", async || redis.length("LLEN", "celery") >= count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p_202_a_beat_sends_and_a_worker_runs() {
    let redis = Redis::start();
    let _beat = beat(&redis, &[], EVERY_SECOND);
    until_sent(&redis, 1).await;
    let headers = &sent(&redis, "celery")[0];
    assert_eq!(headers["celery_beat_task"], true);
    assert_eq!(headers["root_id"], headers["id"]);
    assert_eq!(headers["parent_id"], Value::Null);
    let id = headers["id"].as_str().unwrap();
    let _worker = Worker::start(&redis, &[]);
    let client = redis.client().await;
    let sum: i64 = client.result(id).get(crate::support::LONG).await.unwrap();
    assert_eq!(sum, 5);
    until("more runs", async || {
        redis.command::<Vec<String>>(&["KEYS", "celery-task-meta-*"]).len() >= 3
    })
    .await;
    // P-206: with Redis nothing has to be cleaned up.
    let listed = text(&schedule(&redis, &["list"]));
    assert!(!listed.is_empty() && !listed.contains("backend_cleanup"), "{listed}");
}

/// Celery's own beat, until it has sent an entry.
const CELERYS_BEAT: &str = r#"
import sys, time
from celery import Celery
from celery.beat import Scheduler
app = Celery(broker=sys.argv[1])
app.conf.beat_schedule = {"e": {
    "task": "proj.add", "schedule": 0.05, "args": [1, "é"], "kwargs": {"x": 2.5},
    "options": {"queue": "theirs", "expires": 60, "priority": 3, "time_limit": 9.5, "soft_time_limit": 8.5, "headers": {"h": 1}}}}
scheduler = Scheduler(app)
with app.connection_for_read() as connection:
    while not connection.default_channel._size("theirs"):
        time.sleep(max(scheduler.tick(), 0))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn p_202_a_message_of_beat_is_what_celerys_beat_sends() {
    let redis = Redis::start();
    run_python(CELERYS_BEAT, &redis.url());
    let entry = "{e = {task = 'proj.add', schedule = 1, args = [1, 'é'], kwargs = {x = 2.5}, \
        options = {queue = 'ours', expires = 60, priority = 3, time_limit = 9.5, soft_time_limit = 8.5, headers = {h = 1}}}}";
    let _beat = beat(&redis, &[], &[("ORCHESTRA_BEAT_SCHEDULE", entry)]);
    let message = |queue: &str| {
        let key = format!("{queue}\x06\x163");
        let message: Vec<String> = redis.command(&["LRANGE", &key, "-1", "-1"]);
        message.first().map(|text| serde_json::from_str::<Value>(text).unwrap())
    };
    until("a message of ours", async || message("ours").is_some()).await;
    let [ours, theirs] = ["ours", "theirs"].map(|queue| {
        let mut message = message(queue).unwrap();
        let body = base64::engine::general_purpose::STANDARD.decode(message["body"].as_str().unwrap());
        message["body"] = serde_json::from_slice(&body.unwrap()).unwrap();
        assert_eq!(message["properties"]["delivery_info"]["routing_key"], queue);
        assert_eq!(message["headers"]["root_id"], message["headers"]["id"]);
        assert_eq!(message["properties"]["correlation_id"], message["headers"]["id"]);
        assert!(message["headers"]["expires"].is_string());
        // What differs from message to message, from program to program; the text of arguments, which is for people;
        // and our own header.
        for (part, names) in [
            (
                "headers",
                &[
                    "id",
                    "root_id",
                    "expires",
                    "origin",
                    "lang",
                    "argsrepr",
                    "kwargsrepr",
                    "orchestra_due_at",
                ][..],
            ),
            (
                "properties",
                &["correlation_id", "reply_to", "delivery_tag", "delivery_info"],
            ),
        ] {
            let part = message[part].as_object_mut().unwrap();
            part.retain(|name, _| !names.contains(&name.as_str()));
        }
        message
    });
    assert_eq!(ours, theirs);
    for table in ["_kombu.binding.", "_kombu.binding_permanent."] {
        let members = |queue: &str| redis.command::<Vec<String>>(&["SMEMBERS", &format!("{table}{queue}")]);
        let theirs: Vec<String> = members("theirs")
            .iter()
            .map(|member| member.replace("theirs", "ours"))
            .collect();
        assert_eq!(members("ours"), theirs);
    }
}

/// What a call says nothing of is as the settings say, as for every other sender: Celery's beat sends by `apply_async`,
/// too.
#[tokio::test(flavor = "multi_thread")]
async fn beat_sends_where_routes_queues_and_defaults_say() {
    let redis = Redis::start();
    let settings = [
        ("ORCHESTRA_TASK_DEFAULT_QUEUE", "work"),
        ("ORCHESTRA_TASK_DEFAULT_PRIORITY", "6"),
        ("ORCHESTRA_TASK_SEND_SENT_EVENT", "true"),
        ("ORCHESTRA_TASK_ROUTES", "{'r.*' = {queue = 'routed'}}"),
        (
            "ORCHESTRA_TASK_QUEUES",
            "{work = {}, routed = {exchange = 'x', exchange_type = 'topic', routing_key = 'r.#', expires = 60}, \
             all = {exchange_type = 'fanout'}}",
        ),
        (
            "ORCHESTRA_BEAT_SCHEDULE",
            "{a = {task = 'p.x', schedule = 1}, b = {task = 'r.x', schedule = 1}, \
             c = {task = 't.x', schedule = 1, options = {queue = 'all'}}}",
        ),
    ];
    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let mut heard = connection.as_pubsub();
    heard.psubscribe("/0.*").unwrap();
    heard.set_read_timeout(Some(crate::support::LONG)).unwrap();
    let _beat = beat(&redis, &[], &settings);
    let list = |queue: &str, step: u8| redis.length("LLEN", &format!("{queue}\x06\x16{step}")) > 0;
    until("what has no queue is in the default one", async || list("work", 6)).await;
    until("what has a route is in its queue", async || list("routed", 6)).await;
    assert!(redis.length("PTTL", "routed\x06\x166") > 0, "the queue expires");
    let mut wanted = HashSet::from(["/0.all", "/0.celeryev/task.sent"]);
    while !wanted.is_empty() {
        let channel = heard.get_message().unwrap().get_channel_name().to_owned();
        wanted.retain(|begin| !channel.starts_with(begin));
    }
    assert_eq!(redis.length("EXISTS", "celery"), 0);
    assert_eq!(redis.length("EXISTS", "all"), 0);
}

/// Where Redis tells nobody of changes, beat looks for them once a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_beat_without_news_of_keys_looks_seldom() {
    let redis = Redis::start();
    redis.command::<()>(&["ACL", "SETUSER", "default", "-client|tracking"]);
    let entry = "{e = {task = 'p.x', schedule = 3600}}";
    let beat = beat(&redis, &[], &[("ORCHESTRA_BEAT_SCHEDULE", entry)]);
    assert!(
        beat.log().contains("the schedule is looked at every 1000 ms"),
        "{}",
        beat.log()
    );
    until("it has taken over", async || {
        redis.length("EXISTS", "orchestra:beat:lock") == 1
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    redis.command::<()>(&["CONFIG", "RESETSTAT"]);
    let began = std::time::Instant::now();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let stats: String = redis.command(&["INFO", "commandstats"]);
    let calls = |name: &str| {
        let line = stats
            .lines()
            .find(|line| line.starts_with(&format!("cmdstat_{name}:calls=")));
        line.map_or(0, |line| line.split(['=', ',']).nth(1).unwrap().parse::<u32>().unwrap())
    };
    // A look is one script and five commands; ten looks a second would be thirty in three seconds, which a busy machine
    // makes longer.
    let looks = u64::from(calls("evalsha"));
    assert!(looks <= 2 * began.elapsed().as_secs() + 2, "{looks}: {stats}");
    text(&schedule(&redis, &["add", "tick", "p.tick", "--every", "1"]));
    until_sent(&redis, 1).await;
}

/// However far the next entry is, beat looks up as often as it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn beat_sleeps_no_longer_than_beat_max_loop_interval() {
    let redis = Redis::start();
    let settings = [
        ("ORCHESTRA_BEAT_SCHEDULE", "{e = {task = 'p.x', schedule = 3600}}"),
        ("ORCHESTRA_BEAT_MAX_LOOP_INTERVAL", "0.5"),
    ];
    let beat = beat(&redis, &["-l", "DEBUG"], &settings);
    let sleeps = || -> Vec<f64> {
        let log = beat.log();
        let after = log.lines().filter_map(|line| line.split("waking up in ").nth(1));
        after
            .map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
            .collect()
    };
    until("it has slept some times", async || sleeps().len() >= 4).await;
    assert!(sleeps().iter().all(|seconds| *seconds <= 0.5), "{:?}", sleeps());
}

/// The file is gone for a while, as in a rolling change of versions; who disabled its entry meant it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_entry_stays_so_while_a_beat_without_its_file_sends() {
    let redis = Redis::start();
    let listed = || text(&schedule(&redis, &["list"]));
    for environment in [EVERY_SECOND, &[], EVERY_SECOND] {
        let mut beat = beat(&redis, &[], environment);
        let is_there = !environment.is_empty();
        until("its files are taken over", async || {
            let listed = listed();
            listed.contains("sent by") && listed.contains("tick:") == is_there
        })
        .await;
        if is_there && redis.length("SCARD", "orchestra:beat:disabled") == 0 {
            text(&schedule(&redis, &["disable", "tick"]));
        }
        assert_eq!(beat.stop(), Some(0));
    }
    assert!(listed().contains("disabled"), "{}", listed());
    redis.command::<()>(&["DEL", "orchestra:beat:schedule", "orchestra:beat:files"]);
    text(&schedule(&redis, &["add", "tick", "p.x", "--every", "9"]));
    assert!(!listed().contains("disabled"), "another one of that name: {}", listed());
}

/// `next` begins where beat does: an interval counts from when it was sent last.
#[test]
fn the_next_times_are_those_of_beat() {
    let redis = Redis::start();
    text(&schedule(&redis, &["add", "e", "p.x", "--every", "3600"]));
    let last = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(3000);
    redis.command::<()>(&["HSET", "orchestra:beat:last_run_at", "e", &last.to_string()]);
    let expected = [3600, 7200].map(|after| {
        let at = last + jiff::SignedDuration::from_secs(after);
        at.strftime("%Y-%m-%d %H:%M:%S UTC\n").to_string()
    });
    assert_eq!(text(&schedule(&redis, &["next", "e", "-n", "2"])), expected.concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_b_sends_and_runs_and_gives_the_lock_back() {
    let redis = Redis::start();
    let mut worker = Worker::start_with(&redis, &["-B"], EVERY_SECOND);
    until("two runs", async || {
        redis.command::<Vec<String>>(&["KEYS", "celery-task-meta-*"]).len() >= 2
    })
    .await;
    let doctor = || {
        let mut command = Command::new(crate::support::program("orchestra"));
        let out = command
            .args(["doctor", "-b", &redis.url()])
            .env_clear()
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert!(
        doctor().contains("ok    periodic tasks are sent by celerybeat@"),
        "{}",
        doctor()
    );
    assert_eq!(worker.stop(), Some(0));
    assert_eq!(redis.length("EXISTS", "orchestra:beat:lock"), 0, "{}", worker.log());
    assert!(
        doctor().contains("note  no beat is running, but the schedule has entries (1)"),
        "{}",
        doctor()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_beats_one_sends_and_the_other_takes_over_when_it_is_killed() {
    let redis = Redis::start();
    let mut beats = vec![beat(&redis, &[], EVERY_SECOND)];
    beats[0].wait_for_log("sends from now on");
    for _ in 0..3 {
        beats.push(beat(&redis, &[], EVERY_SECOND));
        until_sent(&redis, redis.length("LLEN", "celery") + 2).await;
        assert!(!beats[1].log().contains("sends from now on"), "{}", beats[1].log());
        beats.remove(0).process.kill();
        beats[0].wait_for_log("sends from now on");
    }
    until_sent(&redis, redis.length("LLEN", "celery") + 2).await;
    // One that stops in order does not make the next one wait for the lock to expire.
    beats.push(beat(
        &redis,
        &[],
        &[&[("ORCHESTRA_BEAT_LOCK_TIMEOUT", "600")], &EVERY_SECOND[1..]].concat(),
    ));
    assert_eq!(beats[0].stop(), Some(0));
    beats[1].wait_for_log("sends from now on");
    assert_no_due_time_twice(&redis, "tick");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beat_that_slept_longer_than_its_lock_sends_nothing() {
    let redis = Redis::start();
    let slept = beat(&redis, &[], EVERY_SECOND);
    until_sent(&redis, 1).await;
    slept.process.signal(Signal::SIGSTOP);
    let other = beat(&redis, &[], EVERY_SECOND);
    other.wait_for_log("sends from now on");
    until_sent(&redis, redis.length("LLEN", "celery") + 2).await;
    let before = slept.log().matches("sent due task").count();
    slept.process.signal(Signal::SIGCONT);
    slept.wait_for_log("nothing is sent");
    until_sent(&redis, redis.length("LLEN", "celery") + 2).await;
    assert_eq!(slept.log().matches("sent due task").count(), before, "{}", slept.log());
    assert_no_due_time_twice(&redis, "tick");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_does_not_stop_beat_and_repeats_nothing() {
    let mut redis = Redis::start();
    let beat = beat(&redis, &[], EVERY_SECOND);
    until_sent(&redis, 2).await;
    redis.stop();
    beat.wait_for_log("lost the connection");
    redis.start_again();
    let before = redis.length("LLEN", "celery");
    assert!(before >= 2, "the server came back without its data");
    until_sent(&redis, before + 2).await;
    assert_no_due_time_twice(&redis, "tick");
    // And one that comes back without any data: the files are still there.
    redis.command::<()>(&["FLUSHALL"]);
    until_sent(&redis, 2).await;
    assert_no_due_time_twice(&redis, "tick");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_longer_than_the_lock_repeats_nothing() {
    let redis = Redis::start();
    let beats = [beat(&redis, &[], EVERY_SECOND), beat(&redis, &[], EVERY_SECOND)];
    until_sent(&redis, 2).await;
    for _ in 0..3 {
        redis.signal(Signal::SIGSTOP);
        // Longer than the lock lives. What both beats ask meanwhile is answered when the server goes on, late.
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        redis.signal(Signal::SIGCONT);
        until_sent(&redis, redis.length("LLEN", "celery") + 2).await;
    }
    assert_no_due_time_twice(&redis, "tick");
    let begun = |beat: &Worker| beat.log().matches("sends from now on").count();
    assert!(
        begun(&beats[0]) + begun(&beats[1]) > 1,
        "the lock was never lost: the test proves nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_is_changed_while_beat_runs() {
    let redis = Redis::start();
    // Whoever waits for the next look at the schedule waits for minutes.
    let beat = beat(&redis, &[], &[("ORCHESTRA_BEAT_LOCK_TIMEOUT", "3600")]);
    beat.wait_for_log("sends from now on");
    text(&schedule(
        &redis,
        &[
            "add",
            "mine",
            "hello.add",
            "2",
            "-k",
            "y=4",
            "--every",
            "1",
            "-Q",
            "other",
        ],
    ));
    until("it is sent", async || redis.length("LLEN", "other") >= 2).await;
    let message: String = redis.command(&["LINDEX", "other", "0"]);
    let message: Value = serde_json::from_str(&message).unwrap();
    let body = base64::engine::general_purpose::STANDARD
        .decode(message["body"].as_str().unwrap())
        .unwrap();
    assert!(body.starts_with(br#"[[2],{"y":4},"#));

    text(&schedule(&redis, &["disable", "mine"]));
    let disabled = redis.length("LLEN", "other");
    // Written by anybody, in the form that docs/beat.md shows; what is no entry is named, and stops nothing.
    redis.command::<()>(&["HSET", "orchestra:beat:schedule", "broken", "{}"]);
    redis.command::<()>(&[
        "HSET",
        "orchestra:beat:schedule",
        "theirs",
        r#"{"task": "hello.add", "schedule": 1}"#,
    ]);
    beat.wait_for_log("the entry \"broken\" cannot be sent: missing field `task`");
    raw(&redis, b"binary", b"{\"task\": \"\xff\xfe\", \"schedule\": 1}");
    raw(&redis, b"\xff\xfe\x1b", b"\x00\x1b[2J");
    until_sent(&redis, 2).await;
    assert_eq!(redis.length("LLEN", "other"), disabled);

    let list = text(&schedule(&redis, &["list"]));
    assert!(list.contains("mine: hello.add 1.0, disabled, sent "), "{list}");
    assert!(list.contains("broken: cannot be sent: missing field `task`"), "{list}");
    assert!(!list.contains('\x1b'), "{list:?}");
    text(&schedule(&redis, &["enable", "mine"]));
    until("it is sent again", async || redis.length("LLEN", "other") > disabled).await;
    text(&schedule(&redis, &["remove", "mine"]));
    let removed = redis.length("LLEN", "other");
    let sent = redis.length("LLEN", "celery");
    until_sent(&redis, sent + 2).await;
    assert_eq!(redis.length("LLEN", "other"), removed);

    redis.command::<()>(&["DEL", "celery"]);
    redis.command::<()>(&[
        "HSET",
        "orchestra:beat:schedule",
        "theirs",
        r#"{"task": "hello.add", "schedule": 3600}"#,
    ]);
    let id = text(&schedule(&redis, &["run-now", "theirs"]));
    until_sent(&redis, 1).await;
    assert!(
        self::sent(&redis, "celery")
            .iter()
            .any(|headers| headers["id"] == id.trim())
    );
    let wrong = schedule(&redis, &["remove", "thiers"]);
    assert_eq!(
        String::from_utf8_lossy(&wrong.stderr),
        "orchestra: there is no entry \"thiers\"; did you mean \"theirs\"?\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_files_come_and_go_with_the_files() {
    let (redis, folder) = (Redis::start(), Folder::new());
    folder.write(
        "templates/hello.yaml",
        "parameters:\n  name: {type: string}\nsteps:\n  - {id: a, type: render, text: hi}\n",
    );
    folder.write(
        "tasks/hello.yaml",
        "name: greet.hello\ntemplate: hello\nparams: {name: x}\nschedule: {minute: '*/5', hour: 8-18, day_of_week: mon-fri}\n",
    );
    let folders = ["--templates", "templates", "--tasks", "tasks"];
    let folders = folders.map(|word| match word.strip_prefix("--") {
        Some(_) => word.to_owned(),
        None => folder.path().join(word).display().to_string(),
    });
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    let mut one = beat(&redis, &folders, EVERY_SECOND);
    one.wait_for_log("sends from now on");
    until_sent(&redis, 1).await;
    let list = text(&schedule(&redis, &["list"]));
    assert!(
        list.contains("greet.hello: greet.hello {\"minute\":\"*/5\",") && list.contains("(from a file)"),
        "{list}"
    );
    let refused = schedule(&redis, &["remove", "tick"]);
    assert_eq!(refused.status.code(), Some(2));
    text(&schedule(
        &redis,
        &[
            "add",
            "mine",
            "hello.add",
            "--crontab",
            "0 4 * * *",
            "--timezone",
            "Europe/Berlin",
        ],
    ));
    one.stop();
    let two = beat(&redis, &[], &EVERY_SECOND[1..]);
    two.wait_for_log("sends from now on");
    until("the schedule is that of the files", async || {
        redis.length("HLEN", "orchestra:beat:schedule") == 2
    })
    .await;
    let names: HashSet<String> = redis.command(&["HKEYS", "orchestra:beat:schedule"]);
    assert_eq!(names, HashSet::from(["tick".to_owned(), "mine".to_owned()]));
    // It was last sent by the beat before.
    until_sent(&redis, 2).await;
    assert_no_due_time_twice(&redis, "tick");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_schedule_is_one_line_that_says_where() {
    let redis = Redis::start();
    let template = "steps:\n  - {id: a, type: render, text: hi}\n";
    let asks = "parameters:\n  name: {type: string}\nsteps:\n  - {id: a, type: render, text: hi}\n";
    let cases: &[(&str, &str, &str, &str)] = &[
        (
            template,
            "",
            "[beat_schedule.a]\ntask = 't'\nschedule = 'x'\n",
            "orchestra.toml:3: beat_schedule.a: schedule: a crontab has five fields (minute hour day_of_month month_of_year day_of_week), \"x\" has 1",
        ),
        (
            template,
            "",
            "[beat_schedule.a]\ntask = 't'\nschedule = {minute = 60}\n",
            "orchestra.toml:3: beat_schedule.a: schedule: minute: 60 is not in 0-59",
        ),
        (
            template,
            "",
            "timezone = 'Mars/Olympus'\n",
            "timezone: there is no time zone \"Mars/Olympus\" on this machine; a name is like Europe/Berlin, and the package tzdata has them",
        ),
        (
            template,
            "name: t\ntemplate: hello\nschedule: [1]\n",
            "",
            "tasks/t.yaml:3: schedule: [1] is no schedule: give seconds, a crontab (\"*/5 * * * *\") or its fields ({minute = …})",
        ),
        (
            asks,
            "name: t\ntemplate: hello\nschedule: 5\n",
            "",
            "tasks/t.yaml:3:1: the parameter \"name\" has no value; give it one in params",
        ),
    ];
    for (template, task, settings, expected) in cases {
        let folder = Folder::new();
        folder.write("templates/hello.yaml", template);
        folder.write("orchestra.toml", settings);
        if !task.is_empty() {
            folder.write("tasks/t.yaml", task);
        }
        let out = Command::new(crate::support::program("orchestra"))
            .args(["beat", "-b", &redis.url()])
            .env_clear()
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stderr), format!("orchestra: {expected}\n"));
        assert_eq!(out.status.code(), Some(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn celery_inspect_ping_finds_beat() {
    let redis = Redis::start();
    let _beat = beat(&redis, &["--enable-remote-control", "-n", "here"], EVERY_SECOND);
    let silent = beat(&redis, &["-n", "silent"], &EVERY_SECOND[..1]);
    let program = r#"
import sys
from celery import Celery
app = Celery(broker=sys.argv[1])
print(app.control.inspect(timeout=2).ping())
print(app.control.inspect(timeout=2, destination=["celerybeat@here"]).ping())
print(app.control.inspect(timeout=1).active())
"#;
    let pong = "{'celerybeat@here': {'ok': 'pong'}}";
    assert_eq!(
        run_python(program, &redis.url()),
        format!("{pong}\n{pong}\nNone\n"),
        "{}",
        silent.log()
    );
}

/// Random crontabs, times of runs and times of looking, many of them around changes of the clocks; and what Python's
/// own schedules say.
const PYTHON: &str = r#"
import json, random, sys
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo
from celery import Celery
from celery.schedules import ParseException, crontab, schedule

random.seed(int(sys.argv[1]))
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]
CHANGES = [datetime(2026, 3, 29, 1), datetime(2026, 10, 25, 1), datetime(2027, 3, 28, 1), datetime(2026, 3, 8, 7),
           datetime(2026, 11, 1, 6), datetime(2027, 3, 14, 7), datetime(2026, 4, 4, 15), datetime(2026, 10, 3, 15, 30)]
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
DAYS = "sunday mon tue wed thursday fri sat".split()

def field(low, high, names=None):
    def number():
        n = random.randint(low, high)
        return names[n - low] if names and random.random() < 0.4 else str(n)
    def part():
        return random.choice([
            lambda: "*", lambda: "*/%d" % random.randint(1, high), number, number, number,
            lambda: number() + "-" + number(), lambda: "%s-%s/%d" % (number(), number(), random.randint(1, 7)),
        ])()
    kind = random.random()
    if kind < 0.35: return "*"
    if kind < 0.45: return random.randint(low, high)
    if kind < 0.5: return random.sample(range(low, high + 1), min(3, high - low))
    return ",".join(part() for _ in range(random.choice([1, 1, 2, 3])))

cases = []
while len(cases) < 3000:
    fields = {"minute": field(0, 59), "hour": field(0, 23), "day_of_week": field(0, 6, DAYS),
              "day_of_month": field(1, 31), "month_of_year": field(1, 12, MONTHS)}
    if random.random() < 0.5:
        fields.update(day_of_week="*", day_of_month="*", month_of_year="*")
    if random.random() < 0.3:
        fields.update(hour=random.choice(["*", "1-3", 2, "2,3", "0-4/2"]))
    if random.random() < 0.03:
        fields.update(random.choice([{"minute": "60"}, {"hour": -1}, {"day_of_week": "7"}, {"day_of_month": "0"},
                                     {"month_of_year": "sun"}, {"minute": "*/0"}, {"hour": "1,,2"}, {"hour": "tag"},
                                     {"minute": "5/2"}, {"day_of_month": "30-31", "month_of_year": "feb"}]))
    zone = random.choice(ZONES)
    tz = ZoneInfo(zone)
    if random.random() < 0.7:
        last = random.choice(CHANGES) + timedelta(seconds=random.randint(-30, 30) * random.choice([60, 613, 3600, 86400]))
    else:
        last = datetime(2026, 1, 1) + timedelta(seconds=random.randint(0, 5 * 366 * 86400))
    # Python's arithmetic forgets which of two equal hours it is in: everything is added in UTC.
    last += timedelta(microseconds=random.choice([0, 0, 1, 999999]))
    last = last.replace(tzinfo=timezone.utc).astimezone(tz)
    now = (last.astimezone(timezone.utc) + timedelta(seconds=random.choice([0, 1, 59, 60, 3600, 86400, 40 * 86400]) * random.random())).astimezone(tz)
    app = Celery(set_as_current=False)
    app.conf.timezone = zone
    deadline = random.choice([None, None, 30, 3600])
    app.conf.beat_cron_starting_deadline = deadline
    interval = random.random() < 0.2
    if interval:
        written = random.choice([0.5, 1, 30, 60, 1800, 3600, 86400, 7 * 86400, round(random.random() * 1e5 + 1, 3)])
        relative = random.random() < 0.7
        theirs = schedule(written, relative, app=app, nowfun=lambda: now)
    else:
        written = dict(fields, timezone=zone)
        try:
            theirs = crontab(app=app, nowfun=lambda: now, **fields)
        except (ValueError, ParseException):
            cases.append({"schedule": written, "refused": True})
            continue
    us = lambda delta: delta // timedelta(microseconds=1)
    epoch = lambda at: us(at - datetime(1970, 1, 1, tzinfo=timezone.utc))
    left = theirs.remaining_estimate(last)
    due, wait = theirs.is_due(last)
    cases.append({"schedule": written, "last": epoch(last), "now": epoch(now), "deadline": deadline, "zone": zone,
                  "relative": interval and relative,
                  # Celery looks for a time from before the deadline, and may begin in the second of two equal hours.
                  "twice": bool(deadline and (now.astimezone(timezone.utc) - timedelta(seconds=deadline)).astimezone(tz).fold),
                  "next": epoch(now) + us(left), "due": due, "wait": round(wait * 1e6)})
print(json.dumps(cases))
"#;

#[test]
fn p_204_due_times_are_those_of_pythons_schedules() {
    let seed = std::env::var("ORCHESTRA_TEST_SEED").unwrap_or_else(|_| "5".into());
    let cases: Vec<Value> = serde_json::from_str(&run_python(PYTHON, &seed)).unwrap();
    let (mut refused, mut sound, mut due_now, mut again_and_again) = (0, 0, 0, 0);
    for case in &cases {
        let zone = TimeZone::get(case["zone"].as_str().unwrap_or("UTC")).unwrap();
        let ours = Schedule::read(&case["schedule"], case["relative"] == true, &zone);
        if case["refused"] == true {
            refused += 1;
            assert!(ours.is_err(), "Celery refuses {case}");
            continue;
        }
        let ours = ours.unwrap_or_else(|error| panic!("{error}: {case}"));
        let time = |name: &str| Timestamp::from_microsecond(case[name].as_i64().unwrap()).unwrap();
        let (last, now, next) = (time("last"), time("now"), time("next"));
        let deadline = case["deadline"].as_u64().map(std::time::Duration::from_secs);
        assert!(ours.next(last) > last, "{case}");
        if next <= last {
            // The second of two equal hours, or a relative interval below a second: Celery takes a time in the past for
            // the next one, and sends at every tick.
            again_and_again += 1;
            continue;
        }
        sound += 1;
        assert_eq!(ours.next(last), next, "{case}");
        if case["twice"] == true {
            continue;
        }
        match ours.due(last, now, deadline) {
            Due::Now(due_at) => {
                due_now += 1;
                assert_eq!((case["due"].as_bool(), due_at), (Some(true), next), "{case}");
            }
            Due::At(at) => {
                assert_eq!(case["due"], false, "{case}");
                let wait = at.duration_since(now).as_micros();
                let theirs = i128::from(case["wait"].as_i64().unwrap());
                // Celery's is a float.
                assert!((wait - theirs).abs() <= 2 || theirs == 0, "{wait} {case}");
            }
        }
    }
    let counts =
        format!("{sound} equal, {refused} refused, {due_now} due, {again_and_again} where Celery repeats itself");
    assert!(
        sound > 2000 && refused > 10 && due_now > 300 && again_and_again < 150,
        "{counts}"
    );
    println!("{counts}");
}
