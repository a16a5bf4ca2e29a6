//! Labels of templates: which version runs under a name, and how that is changed.

use std::process::{Command, Output};

use orchestra::client::{Call, Client};
use serde_json::{Value, json};

use crate::support::{Folder, LONG, Redis, Sim, Worker, program, run_python, until};

fn templates(folder: &Folder, words: &[&str]) -> Output {
    Command::new(program("orchestra"))
        .arg("templates")
        .args(words)
        .env_clear()
        .current_dir(folder.path())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{out}{err}")
}

fn run(template: &str) -> Call {
    Call::new("orchestra.run").arg(template)
}

async fn say(client: &Client, call: Call) -> String {
    client.send(call).await.unwrap().get::<String>(LONG).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_moved_shared_and_rolled_back_while_tasks_keep_their_version() {
    let (redis, sim, folder) = (Redis::start(), Sim::start(), Folder::new());
    let text = |text: &str| format!("steps:\n- {{type: render, text: {text}}}\n");
    folder.write("templates/say.yaml", &text("one"));
    folder.write("templates/say@2.yaml", &text("two"));
    let asks =
        |text: &str| format!("steps:\n- {{id: ok, type: approve, message: x}}\n- {{type: render, text: {text}}}\n");
    folder.write("templates/ask.yaml", &asks("one"));
    folder.write("templates/ask@2.yaml", &asks("two"));
    folder.write(
        "templates/model.yaml",
        "steps:\n- {id: a, type: ollama_generate, model: echo, prompt: x}\noutput: \"{{ steps.a.route.template }}\"\n",
    );
    folder.write(
        "templates/labels.yaml",
        "# what runs\nsay:\n  prod: 1 # since May\nask:\n  prod: 1\n",
    );
    folder.write("tasks/say.yaml", "name: texts.say\ntemplate: say@prod\n");
    let moved = |words: &[&str]| {
        let output = templates(&folder, &[&["label"], words].concat());
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let places = ["templates", "tasks"].map(|name| folder.path().join(name));
    let arguments = [
        "--ollama-host",
        &sim.url,
        "--templates",
        places[0].to_str().unwrap(),
        "--tasks",
        places[1].to_str().unwrap(),
    ];
    let _worker = Worker::start(&redis, &arguments);
    let client = redis.client().await;
    assert_eq!(say(&client, Call::new("texts.say")).await, "one");
    let waiting = client.send(run("ask@prod")).await.unwrap();
    until("it waits", async || {
        waiting.state().await.unwrap().as_str() == "WAITING"
    })
    .await;

    // Forward, while a task waits that began before; and back.
    assert_eq!(moved(&["say@prod", "2"]), "say@prod is 2; it was 1\n");
    assert_eq!(moved(&["ask@prod", "2"]), "ask@prod is 2; it was 1\n");
    until("the label is moved", async || {
        say(&client, Call::new("texts.say")).await == "two"
    })
    .await;
    assert_eq!(say(&client, run("say@prod")).await, "two");
    let approve = Call::new("orchestra.approve").arg(waiting.id());
    client.send(approve).await.unwrap().get::<Value>(LONG).await.unwrap();
    assert_eq!(
        waiting.get::<String>(LONG).await.unwrap(),
        "one",
        "it keeps its version"
    );
    moved(&["say@prod", "1"]);
    until("the label is back", async || {
        say(&client, run("say@prod")).await == "one"
    })
    .await;

    // A share, by task: asked again, each gets the same.
    let label = moved(&["say@prod", "1", "--canary", "2", "--percent", "30"]);
    assert_eq!(label, "say@prod is 1, 30 % of tasks 2; it was 1\n");
    until("somebody gets the other", async || {
        say(&client, run("say@prod")).await == "two"
    })
    .await;
    let calls: Vec<Call> = (0..300)
        .map(|at| run("say@prod").task_id(format!("task-{at}")))
        .collect();
    let mut said_first = Vec::new();
    for pending in client.send_many(&calls).await.unwrap() {
        said_first.push(pending.get::<String>(LONG).await.unwrap());
    }
    let of_two = said_first.iter().filter(|said| *said == "two").count();
    assert!((50..130).contains(&of_two), "{of_two} of 300");
    redis.command::<()>(&["FLUSHALL"]);
    for (pending, first) in client.send_many(&calls).await.unwrap().iter().zip(said_first) {
        assert_eq!(pending.get::<String>(LONG).await.unwrap(), first);
    }

    // What people see.
    let list = said(&templates(&folder, &["list"]));
    let line = |name: &str| list.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(
        line("say ").contains("[prod 70 %]") && line("say@2").contains("[prod 30 %]"),
        "{list}"
    );
    let content = line("say@2").split_whitespace().nth(1).unwrap().to_owned();
    let shown = run_python(
        "import sys\nfrom celery import Celery\napp = Celery(broker=sys.argv[1], backend=sys.argv[1])\n\
         print(next(iter(app.control.inspect(timeout=5).registered().values())))\n",
        &redis.url(),
    );
    assert!(shown.contains(&format!("30 % say@2 ({content})")), "{shown}");
    assert!(say(&client, run("model")).await.starts_with("model@1 ("));
    let diff = templates(&folder, &["diff", "say@1", "say@2"]);
    assert_eq!(diff.status.code(), Some(1));
    assert!(
        said(&diff).contains("-- {type: render, text: one}\n+- {type: render, text: two}\n"),
        "{}",
        said(&diff)
    );
    assert!(said(&diff).contains(&format!("+++ say@2 ({content})")));
    assert!(
        templates(&folder, &["diff", "say@2"]).status.success(),
        "it is the newest"
    );
    let file = std::fs::read_to_string(folder.path().join("templates/labels.yaml")).unwrap();
    assert!(
        file.starts_with("# what runs\nsay:\n  prod: {version: 1, canary: 2, percent: 30}\nask:"),
        "{file}"
    );

    // What is wrong is said, and changes nothing.
    for (words, wrong) in [
        (
            &["label", "say@prod", "7"][..],
            "label say@prod: there is no version 7 of \"say\"; there are 1, 2",
        ),
        (&["label", "say@3", "1"], "is no label of a template"),
        (&["label", "say@prod", "1", "--canary", "2"], "--percent"),
        (&["label", "none@prod", "--remove"], "there is no label none@prod"),
        (
            &["diff", "say@next"],
            "\"say\" has the versions 1, 2 and the labels prod",
        ),
    ] {
        let output = templates(&folder, words);
        assert!(
            !output.status.success() && said(&output).contains(wrong),
            "{words:?}: {}",
            said(&output)
        );
    }
    assert_eq!(
        std::fs::read_to_string(folder.path().join("templates/labels.yaml")).unwrap(),
        file
    );
    folder.write(
        "templates/labels.yaml",
        "say:\n  prod: {version: 1, canary: 9, percent: 5}\n  x: [1]\n",
    );
    let lint = said(&templates(&folder, &["lint"]));
    assert!(
        lint.contains("labels.yaml:3:6: label \"x\" must be a version, not a list"),
        "{lint}"
    );
    assert_eq!(json!(say(&client, run("say@1")).await), "one", "the worker goes on");
}
