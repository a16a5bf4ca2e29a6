//! Idempotency keys: of several messages with one key one is run, and all get its result.

use std::time::Duration;

use nix::sys::signal::Signal;
use orchestra::client::Call;
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Redis, Sim, Worker, run_python, until};

/// From the stock client, with two workers that have one place each.
const PYTHON: &str = r#"
import sys, time
from celery import Celery, chain, chord, group
from celery.exceptions import TaskRevokedError
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
redis = app.backend.client
runs = lambda: any(redis.hget(key, 'state') in (b'HELD', b'AWAY') for key in redis.keys('orchestra:unique:*'))
def send(key, task, *args, **more):
    options = {name: more.pop(name) for name in ('queue', 'link') if name in more}
    headers = {'idempotency_key': key, **{'idempotency_' + name: value for name, value in more.items()}}
    return app.send_task(task, args, headers=headers, **options)
def get(*results):
    return [result.get(timeout=20) for result in results]

# One runs; those that wait hold no place, have callbacks of their own, and are told when it ends.
first = send('a', 'hello.nap', 3000, 1)
until('it runs', runs)
later = [send('a', 'hello.nap', 0, n) for n in range(2, 12)]
other = app.send_task('hello.nap', (0, 99))
assert other.get(timeout=20) == 99
assert get(first, *later) == [1] * 11
assert other.date_done < first.date_done <= min(one.date_done for one in later)
same = lambda: app.signature('hello.nap', args=(0, 5), headers={'idempotency_key': 'a'})
add = lambda n: app.signature('hello.add', args=(n,))
assert chain(same(), add(10)).apply_async().get(timeout=20) == 11
assert chord([same(), same(), app.signature('hello.nap', args=(0, 7))], app.signature('celery.accumulate'))().get(timeout=20) == [[1, 1, 7]]
# Another task with that key is another.
assert get(send('a', 'hello.add', 2, 3)) == [5]

# A failure does not count unless somebody says so.
most = 2**63 - 1
assert 'too large' in str(raised(send('b', 'hello.add', most, 1)))
# Which of two comes first is chance: there are two workers.
assert get(send('b', 'hello.add', 1, 2), send('b', 'hello.add', 3, 4)) in ([3, 3], [7, 7])
both = ['SUCCESS', 'FAILURE']
failed = send('c', 'hello.add', most, 1, states=both)
assert 'too large' in str(raised(failed))
second = send('c', 'hello.add', 1, 2, states=both)
assert type(raised(second)).__name__ == 'ValueError' and 'too large' in str(raised(second))
assert second.traceback == failed.traceback
assert get(send('c', 'hello.add', 1, 2)) == [3]

# One that is tried again keeps its key between two tries.
flaky = send('d', 'hello.flaky', 3)
until('it runs', runs)
assert get(send('d', 'hello.flaky', 0), send('d', 'hello.flaky', 0), flaky) == [3, 3, 3]

# A period passes.
assert get(send('e', 'hello.nap', 0, 1, period=1)) == [1]
time.sleep(1.2)
assert get(send('e', 'hello.nap', 0, 2, period=1)) == [2]

# Revoking one that waits takes only that one out; when the one that runs is ended, the next runs.
first = send('f', 'hello.nap', 30000, 1)
until('it runs', runs)
out, second, third = [send('f', 'hello.nap', 100, n) for n in (2, 3, 4)]
time.sleep(0.3)
out.revoke()
assert isinstance(raised(out), TaskRevokedError)
first.revoke(terminate=True)
values = get(second, third)
assert values[0] == values[1] and values[0] in (3, 4), values

# Wrong headers are told.
for wrong in ({'idempotency_key': ''}, {'idempotency_key': 'x', 'idempotency_period': 0},
              {'idempotency_key': 'x', 'idempotency_states': ['DONE']}):
    error = raised(app.send_task('hello.add', (1,), headers=wrong))
    assert type(error).__name__ == 'InvalidTaskError' and 'idempotency' in str(error), error
"#;

#[test]
fn of_messages_with_one_key_one_is_run_and_all_get_its_result() {
    let redis = Redis::start();
    // Nothing is held behind what runs: the other worker is free for it.
    let arguments = ["-c", "1", "--prefetch-multiplier", "1", "-n"];
    let _workers = [(); 2].map(|()| {
        let node = format!("{}@h", uuid::Uuid::new_v4());
        Worker::start(&redis, &[&arguments[..], &[&node]].concat())
    });
    run_python(PYTHON, &redis.url());
}

/// Whether the message was acknowledged or not: another runs in place of one whose worker died.
#[tokio::test(flavor = "multi_thread")]
async fn when_the_worker_of_the_one_that_runs_dies_another_runs() {
    let redis = Redis::start();
    let client = redis.client().await;
    let timeout = [("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", "{visibility_timeout = 3}")];
    let _survivor = Worker::start_with(&redis, &["-c", "2", "-Q", "other", "-n", "survivor@h"], &timeout);
    for (task, args, key) in [
        ("hello.nap", vec![60_000, 1], "early"),
        ("hello.sleep", vec![60], "late"),
    ] {
        let dies = Worker::start_with(&redis, &["-c", "1", "-n", "dies@h"], &timeout);
        let call = |args: &[u64]| {
            let call = args.iter().fold(Call::new(task), |call, arg| call.arg(*arg));
            call.header("idempotency_key", key)
        };
        let first = client.send(call(&args)).await.unwrap();
        until("it runs", async || {
            redis.command::<Vec<String>>(&["KEYS", "orchestra:unique:*"]).len() == 1
        })
        .await;
        let short = if task == "hello.nap" { vec![0, 2] } else { vec![0] };
        let second = client.send(call(&short).queue("other")).await.unwrap();
        let third = client.send(call(&short).queue("other")).await.unwrap();
        // While it lives they wait, longer than a dead one is believed to live.
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(second.get::<Value>(Duration::from_millis(50)).await.is_err());
        dies.process.signal(Signal::SIGKILL);
        let expected = if task == "hello.nap" { json!(2) } else { json!("rested") };
        for pending in [second, third] {
            assert_eq!(pending.get::<Value>(LONG).await.unwrap(), expected);
        }
        if task == "hello.sleep" {
            // Its own message comes back, and finds the result of the one that took its place.
            let _next = Worker::start_with(&redis, &["-c", "1", "-n", "next@h"], &timeout);
            assert_eq!(first.get::<Value>(LONG).await.unwrap(), expected);
        }
        redis.command::<()>(&["FLUSHALL"]);
    }
}

/// `unique` of a task file: the key is made of the parameters.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_file_can_say_that_the_same_parameters_are_one_run() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    folder.write(
        "say.yaml",
        "parameters:\n  text: {type: string}\n  n: {type: integer, default: 1}\nsteps:\n\
         - {type: ollama_generate, model: slow, prompt: \"{{ text }}\", options: {num_predict: 8}}\n",
    );
    folder.write(
        "tasks/say.yaml",
        "name: texts.say\ntemplate: say\nunique: {period: 60}\n",
    );
    let (templates, tasks) = (folder.path().to_str().unwrap(), folder.path().join("tasks"));
    let arguments = [
        "--ollama-host",
        &sim.url,
        "--templates",
        templates,
        "--tasks",
        tasks.to_str().unwrap(),
    ];
    let _worker = Worker::start(&redis, &arguments);
    let client = redis.client().await;
    let say = |text: &str| Call::new("texts.say").kwarg("text", text);
    let calls = [
        say("a").kwarg("n", 2),
        Call::new("texts.say").kwarg("n", 2).kwarg("text", "a"),
        say("b").kwarg("n", 2),
        say("a").kwarg("n", 2),
    ];
    let mut results = Vec::new();
    for pending in client.send_many(&calls).await.unwrap() {
        results.push(pending.get::<Value>(LONG).await.unwrap());
    }
    assert!(results[0] == results[1] && results[0] == results[3], "{results:?}");
    let asked = sim.requests().await;
    assert_eq!(
        asked
            .iter()
            .filter(|request| request["path"] == "/api/generate")
            .count(),
        2
    );
}
