//! What a worker shows of itself and of its tasks: secrets nowhere, log lines with the names of tasks, traces that go
//! on, numbers that Prometheus can read.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use orchestra::client::{Call, Signature};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::transport::server::TcpIncoming;

use crate::support::{Folder, LONG, Process, Redis, Sim, Worker, get, program, run_python, until};

/// A worker with the tasks of `examples/conformance_worker/monitor.rs`.
fn start(redis: &Redis, arguments: &[&str], environment: &[(&str, &str)]) -> Worker {
    let worker = Worker::spawn_words(
        "conformance_worker",
        &["monitor", "--quiet"],
        redis,
        arguments,
        environment,
    );
    worker.wait_for_log("orchestra-worker: ready");
    worker
}

#[test]
fn secrets_are_shown_nowhere() {
    let redis = Redis::start();
    let environment = [
        ("ORCHESTRA_RESULT_EXTENDED", "true"),
        ("ORCHESTRA_TASK_SEND_SENT_EVENT", "true"),
        ("ORCHESTRA_REDACT_NAMES", "iban,-cookie"),
    ];
    let worker = start(&redis, &["-n", "w@h", "-E", "-c", "2"], &environment);
    let shown = run_python(
        r#"
import json, sys, threading
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
events, ready = [], threading.Event()
def listen():
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={'*': events.append})
        ready.set()
        receiver.capture(limit=None, timeout=None, wakeup=False)
threading.Thread(target=listen, daemon=True).start()
ready.wait()
until('the worker is heard', lambda: events)
send = lambda name, *args, **kwargs: app.send_task(name, args, kwargs)
S, CARD = 'hunter2', 'hunter2-4111'
shown = []
# Positional and by name, nested, in JSON, in a URL, in a pair.
done = [
    send('watch.login', 'bob', S, CARD),
    send('watch.login', user='bob', password=S, card=CARD, mode='x'),
    send('watch.vault', S), send('watch.vault', 'bad ' + S),
    send('watch.login', 'bob', S, mode='retry'),
    send('watch.count', 1, {'api_key': S}), send('watch.count', 'x' * 5000), send('watch.count', options={'iban': S}, number=['x']),
    send('watch.login', {'user': 'bob'}, S), send('watch.vault', {'what': S}),
]
for result in done:
    result.get(timeout=20, propagate=False)
records = [app.backend.get_task_meta(result.id, cache=False) for result in done]
assert [record['status'] for record in records[:4]] == ['SUCCESS', 'SUCCESS', 'SUCCESS', 'FAILURE'], records
# The record of a task has its result and what it raised, which are for whoever asked, but no arguments.
shown += [(record.get('args'), record.get('kwargs')) for record in records]
shown += [str(record['result']) for record in records[4:]]
assert 'is not shown' in str(records[5]['result']) and len(str(records[6]['result'])) < 400, records
assert "Can't retry" in str(records[4]['result']), records[4]
# What a task tells monitors itself, and what it could not reach.
for result in [send('watch.login', 'bob', S, mode='tell'), send('watch.login', 'bob', S, mode='away')]:
    result.get(timeout=20, propagate=False)
waiting = [send('watch.login', 'bob', S, mode='sleep') for _ in range(3)]
later = app.send_task('watch.login', ('bob', S), {'card': CARD, 'headers': {'X-Api-Key': S}}, countdown=600)
ask = lambda method, arguments={}: app.control.broadcast(method, arguments=arguments, destination=['w@h'], reply=True, timeout=10)[0]['w@h']
until('two run and one waits', lambda: (len(ask('active')), len(ask('reserved')), len(ask('scheduled'))) == (2, 1, 1))
for method, arguments in [('active', {}), ('active', {'safe': True}), ('reserved', {}), ('scheduled', {}),
                          ('query_task', {'ids': [later.id, waiting[0].id]}), ('conf', {'with_defaults': True}), ('report', {}), ('stats', {})]:
    shown.append(ask(method, arguments))
ask('revoke', {'task_id': [result.id for result in waiting] + [later.id], 'terminate': True})
until('all is told', lambda: sum(event['type'] == 'task-revoked' for event in events) >= 3)
kinds = {event['type'] for event in events}
assert {'task-sent', 'task-received', 'task-succeeded', 'task-failed', 'task-retried', 'task-told'} <= kinds, kinds
assert any('no answer from redis://u:********@h/0' in event.get('exception', '') for event in events), events
text = json.dumps([shown, events], default=str)
assert 'bob' in text and "'bob', '********', '********'" in text, text
print(text)
"#,
        &redis.url(),
    );
    assert!(!shown.contains("hunter2"), "{}", around(&shown));
    let log = worker.log();
    assert!(
        log.contains("somebody logs in") && log.contains("user=bob password=********"),
        "{log}"
    );
    assert!(!log.contains("hunter2"), "{}", around(&log));
}

/// Where the secret is, for whoever reads the failure.
fn around(text: &str) -> String {
    let at = text.find("hunter2").unwrap_or(0);
    let from = (0..=at.saturating_sub(600)).rev().find(|at| text.is_char_boundary(*at));
    text[from.unwrap_or(0)..].chars().take(1200).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_task_logs_names_it() {
    let redis = Redis::start();
    let client = redis.client().await;
    let call = || Call::new("watch.login").arg("bob").arg("p");
    let text = start(&redis, &[], &[]);
    let pending = client.send(call()).await.unwrap();
    pending.get::<u64>(LONG).await.unwrap();
    let wanted = format!("watch.login[{}]: somebody logs in", pending.id());
    until("the line is there", async || text.log().contains(&wanted)).await;
    let line = |log: String, part: &str| log.lines().find(|line| line.contains(part)).unwrap().to_owned();
    assert!(line(text.log(), &wanted).contains(" attempt=0"), "{}", text.log());
    assert!(line(text.log(), "received").contains(" attempt=0"), "{}", text.log());
    drop(text);

    let worker = start(&redis, &["--log-json", "--metrics-addr", ":0"], &[]);
    let pending = client.send(call().kwarg("mode", "retry")).await.unwrap();
    pending.get::<u64>(LONG).await.unwrap_err();
    until("both attempts have logged", async || {
        worker.log().matches("somebody logs in").count() == 2
    })
    .await;
    // Also what the worker says of itself, from its start to its end.
    let mut worker = worker;
    assert_eq!(worker.stop(), Some(0));
    let log = worker.log();
    let json = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line:?}"));
    let lines: Vec<Value> = log.lines().map(json).collect();
    for said in ["ready", "metrics at http://", "warm stop"] {
        let said = format!("orchestra-worker: {said}");
        let is_it = |line: &Value| {
            line["fields"]["message"]
                .as_str()
                .is_some_and(|text| text.starts_with(&said))
        };
        assert!(lines.iter().any(is_it), "{said}: {log}");
    }
    let of_task: Vec<&Value> = lines
        .iter()
        .map(|line| &line["fields"])
        .filter(|fields| fields.get("task.id").is_some())
        .collect();
    for (message, attempt) in [
        ("somebody logs in", 0),
        ("somebody logs in", 1),
        ("received", 1),
        ("failed", 1),
    ] {
        let found = of_task
            .iter()
            .find(|fields| fields["message"].as_str().unwrap().contains(message) && fields["run.attempt"] == attempt);
        let fields = found.unwrap_or_else(|| panic!("no {message} of attempt {attempt}: {of_task:?}"));
        assert_eq!(
            (&fields["task.id"], &fields["task.name"]),
            (&json!(pending.id()), &json!("watch.login"))
        );
    }
}

/// What collects spans, as the collector of OpenTelemetry does: over HTTP, or over gRPC.
struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// What of it speaks gRPC.
struct Grpc(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Grpc {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        assert_eq!(request.metadata().get("x-key").unwrap(), "hunter2");
        note(&self.0, request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn note(spans: &Mutex<Vec<Span>>, request: ExportTraceServiceRequest) {
    for resource in request.resource_spans {
        for scope in resource.scope_spans {
            spans.lock().unwrap().extend(scope.spans);
        }
    }
}

impl Collector {
    async fn start() -> Self {
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new()
            .route("/v1/traces", post(collect))
            .with_state(spans.clone());
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { url, spans }
    }

    async fn start_grpc() -> Self {
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Grpc(spans.clone())));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { url, spans }
    }

    /// The span of that name, when it is there.
    async fn span(&self, name: &str) -> Span {
        let mut found = None;
        until(name, async || {
            found = self
                .spans
                .lock()
                .unwrap()
                .iter()
                .find(|span| span.name == name)
                .cloned();
            found.is_some()
        })
        .await;
        found.unwrap()
    }
}

async fn collect(
    State(spans): State<Arc<Mutex<Vec<Span>>>>,
    headers: axum::http::HeaderMap,
    body: Bytes,
) -> ([(axum::http::HeaderName, &'static str); 1], Vec<u8>) {
    assert_eq!(headers[CONTENT_TYPE], "application/x-protobuf");
    note(&spans, ExportTraceServiceRequest::decode(body).unwrap());
    ([(CONTENT_TYPE, "application/x-protobuf")], Vec::new())
}

fn attribute(span: &Span, name: &str) -> Value {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Attribute::StringValue(text)) => text.into(),
        Some(Attribute::IntValue(number)) => number.into(),
        Some(Attribute::DoubleValue(number)) => number.into(),
        other => Value::String(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// From a stock client, through a task, what it sends and what follows it, to the call of a model: one trace.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_tasks_and_models() {
    let (redis, sim, collector) = (Redis::start(), Sim::start(), Collector::start().await);
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let _worker = start(&redis, &["--ollama-host", &sim.url], &environment);
    run_python(
        &r#"
import sys
from celery import Celery, chain, signature
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
# As opentelemetry-instrumentation-celery writes it.
headers = {'traceparent': '00-TRACE-PARENT-01', 'tracestate': 'vendor=x'}
app.send_task('watch.relay', ('watch.fail',), headers=headers, link=signature('watch.count', (1,), immutable=True)).get(timeout=20)
app.send_task('orchestra.generate', ('echo', 'one two'), {'options': {'temperature': 0.5}}, headers=headers).get(timeout=20)
app.send_task('watch.vault', ('bad hunter2',), headers=headers).get(timeout=20, propagate=False)
"#
        .replace("TRACE", TRACE)
        .replace("PARENT", PARENT),
        &redis.url(),
    );
    let relay = collector.span("run/watch.relay").await;
    assert_eq!(
        (hex(&relay.trace_id), hex(&relay.parent_span_id)),
        (TRACE.into(), PARENT.into())
    );
    assert_eq!((relay.kind, &*relay.trace_state), (5, "vendor=x"), "a consumer");
    assert_eq!(attribute(&relay, "celery.action"), "run");
    assert_eq!(attribute(&relay, "celery.state"), "SUCCESS");
    assert_eq!(attribute(&relay, "celery.task_name"), "watch.relay");
    assert_eq!(attribute(&relay, "messaging.destination"), "celery");
    assert_eq!(
        attribute(&relay, "messaging.message.id"),
        attribute(&relay, "messaging.conversation_id")
    );
    // What it sent, and what follows it.
    let sent = collector.span("apply_async/watch.fail").await;
    assert_eq!(
        (sent.parent_span_id, sent.kind),
        (relay.span_id.clone(), 4),
        "a producer"
    );
    let failed = collector.span("run/watch.fail").await;
    assert_eq!(failed.parent_span_id, sent.span_id);
    assert_eq!(failed.status.as_ref().unwrap().code, 2);
    assert_eq!(attribute(&failed, "celery.state"), "FAILURE");
    let event = &failed.events[0];
    assert!(
        event.name == "exception"
            && event
                .attributes
                .iter()
                .any(|attribute| attribute.key == "exception.type")
    );
    let follows = collector.span("run/watch.count").await;
    assert_eq!(follows.parent_span_id, relay.span_id);
    // The model.
    let task = collector.span("run/orchestra.generate").await;
    let call = collector.span("text_completion echo").await;
    assert_eq!((&call.parent_span_id, call.kind), (&task.span_id, 3), "a client");
    assert_eq!(attribute(&call, "gen_ai.operation.name"), "text_completion");
    assert_eq!(attribute(&call, "gen_ai.request.model"), "echo");
    assert_eq!(attribute(&call, "gen_ai.request.temperature"), 0.5);
    assert!(attribute(&call, "gen_ai.usage.input_tokens").as_i64().unwrap() > 0);
    assert!(attribute(&call, "gen_ai.usage.output_tokens").as_i64().unwrap() > 0);
    assert_eq!(attribute(&call, "server.address"), "127.0.0.1");
    let hidden = collector.span("run/watch.vault").await;
    assert!(!format!("{hidden:?}").contains("hunter2"), "{hidden:?}");
    for span in collector.spans.lock().unwrap().iter() {
        assert_eq!(hex(&span.trace_id), TRACE, "{}", span.name);
    }
}

/// The same over gRPC, from a pool of processes: a child's spans are under the run, and go out before it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_child_processes_and_grpc() {
    let (redis, sim, collector) = (Redis::start(), Sim::start(), Collector::start_grpc().await);
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=hunter2"),
        // Nothing goes out before the end.
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
    ];
    let mut worker = start(
        &redis,
        &["-P", "prefork", "-c", "1", "--ollama-host", &sim.url],
        &environment,
    );
    let client = redis.client().await;
    let header = format!("00-{TRACE}-{PARENT}-01");
    let ask = Call::new("orchestra.generate").arg("echo").arg("one two");
    client
        .send(ask.header("traceparent", &header))
        .await
        .unwrap()
        .get::<Value>(LONG)
        .await
        .unwrap();
    let relay = Call::new("watch.relay")
        .arg("watch.fail")
        .header("traceparent", &header);
    client.send(relay).await.unwrap().get::<String>(LONG).await.unwrap();
    until("all is done", async || redis.length("HLEN", "unacked") == 0).await;
    assert_eq!(worker.stop(), Some(0));
    let run = collector.span("run/orchestra.generate").await;
    assert_eq!(
        (hex(&run.trace_id), hex(&run.parent_span_id)),
        (TRACE.into(), PARENT.into())
    );
    let call = collector.span("text_completion echo").await;
    assert_eq!((call.parent_span_id, call.trace_id), (run.span_id, run.trace_id));
    let relay = collector.span("run/watch.relay").await;
    let sent = collector.span("apply_async/watch.fail").await;
    assert_eq!(sent.parent_span_id, relay.span_id);
    assert!(!worker.log().contains("hunter2"), "{}", worker.log());
}

/// Nobody records spans, and the context still reaches what a task sends and what follows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_passed_on_without_export() {
    let redis = Redis::start();
    let routes = r#"{"elsewhere.sent" = {queue = "sent"}, "elsewhere.next" = {queue = "next"}}"#;
    let _worker = start(&redis, &[], &[("ORCHESTRA_TASK_ROUTES", routes)]);
    let client = redis.client().await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let call = Call::new("watch.relay")
        .arg("elsewhere.sent")
        .header("traceparent", &parent);
    let call = call.link(Signature::new("elsewhere.next"));
    client.send(call).await.unwrap().get::<String>(LONG).await.unwrap();
    for queue in ["sent", "next"] {
        let raw: String = redis.command(&["LINDEX", queue, "0"]);
        assert!(raw.contains(&parent), "{queue}: {raw}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_every_number() {
    let (redis, sim) = (Redis::start(), Sim::start());
    let worker = start(&redis, &["--metrics-addr", ":0", "--ollama-host", &sim.url], &[]);
    let client = redis.client().await;
    let ask = |model: &str| Call::new("orchestra.generate").arg(model).arg("one two");
    client
        .send(ask("echo"))
        .await
        .unwrap()
        .get::<Value>(LONG)
        .await
        .unwrap();
    client.send(ask("nosuch").kwarg("stream", false)).await.unwrap();
    let log = worker.log();
    let url = log
        .lines()
        .find_map(|line| line.strip_prefix("orchestra-worker: metrics at "))
        .unwrap();
    until("the failed call is counted", async || {
        let text = get(url).await.unwrap().text().await.unwrap();
        text.contains("outcome=\"not_found\"} 1")
    })
    .await;
    let read = run_python(
        r#"
import json, sys, urllib.request
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
from prometheus_client.parser import text_string_to_metric_families as lenient
text = urllib.request.urlopen(sys.argv[1]).read().decode()
assert len(list(lenient(text))) > 10
found = {}
for family in strict(text):
    assert family.documentation and family.name.startswith('orchestra_'), family
    for sample in family.samples:
        found[sample.name + json.dumps(sample.labels, sort_keys=True)] = sample.value
print(json.dumps(found))
"#,
        url,
    );
    let found: Value = serde_json::from_str(&read).unwrap();
    let number = |name: &str, labels: Value| found[format!("{name}{}", python_json(&labels))].as_f64();
    let (ok, host) = (json!({"host": sim.url, "model": "echo", "outcome": "ok"}), &sim.url);
    assert_eq!(number("orchestra_model_calls_total", ok), Some(1.0), "{found}");
    for kind in ["prompt", "completion"] {
        let labels = json!({"host": host, "kind": kind, "model": "echo"});
        assert!(number("orchestra_model_tokens_total", labels) > Some(0.0), "{found}");
    }
    for name in [
        "orchestra_model_first_token_seconds_count",
        "orchestra_model_call_seconds_count",
    ] {
        assert_eq!(
            number(name, json!({"host": host, "model": "echo"})),
            Some(1.0),
            "{name}"
        );
    }
    assert_eq!(
        number("orchestra_model_calls_running", json!({"model": "echo"})),
        Some(0.0)
    );
    assert!(number("orchestra_redis_write_seconds_count", json!({"server": "broker"})) > Some(0.0));
    assert!(number("orchestra_redis_claim_seconds_count", json!({})) > Some(0.0));
    for connection in ["claims", "news", "writes"] {
        assert_eq!(
            number("orchestra_reconnects_total", json!({"connection": connection})),
            Some(0.0)
        );
    }
    for name in [
        "dead_letters_removed",
        "events_dropped",
        "stream_entries_dropped",
        "writes_refused",
    ] {
        assert_eq!(
            number(&format!("orchestra_{name}_total"), json!({})),
            Some(0.0),
            "{name}"
        );
    }
    // The page that lists them is complete.
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/monitoring.md")).unwrap();
    for name in found.as_object().unwrap().keys() {
        let name = name.split('{').next().unwrap();
        let name = ["_bucket", "_count", "_sum"]
            .iter()
            .fold(name, |name, end| name.strip_suffix(end).unwrap_or(name));
        assert!(
            page.contains(&format!("`{name}`")) || name == "orchestra_prefetch",
            "docs/monitoring.md lacks {name}"
        );
    }
    let stats = client
        .inspect("stats", &json!({}), None, Duration::from_secs(1))
        .await
        .unwrap();
    let models = &stats.values().next().unwrap()["models"];
    assert_eq!(
        (&models["echo"]["succeeded"], &models["nosuch"]["failed"]),
        (&json!(1), &json!(1)),
        "{models}"
    );
}

/// As Python's `json.dumps` writes it.
fn python_json(value: &Value) -> String {
    value.to_string().replace(":\"", ": \"").replace(",\"", ", \"")
}

/// `orchestra events`, chosen by type and task, as lines, as JSON, and in the form of `celery events --dump`.
#[tokio::test(flavor = "multi_thread")]
async fn events_are_printed_as_they_come() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let _worker = start(&redis, &["-n", "w@here"], &[]);
    let client = redis.client().await;
    let listen = |name: &str, arguments: &[&str]| {
        let out = std::fs::File::create(folder.path().join(name)).unwrap();
        let mut command = std::process::Command::new(program("orchestra"));
        command.args(["-b", &redis.url(), "events"]).args(arguments).stdout(out);
        Process::from(command.spawn().unwrap())
    };
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let mut listeners = [
        listen(
            "lines",
            &[
                "-e",
                "--type",
                "task-failed,task-received",
                "--task",
                "watch.f*",
                "-n",
                "2",
            ],
        ),
        listen("json", &["--json", "--type", "task-*", "--worker", "w@*", "-n", "3"]),
        listen("dump", &["--dump", "--type", "task-*", "-n", "3"]),
    ];
    until("all listen", async || {
        // The worker listens to the others by a pattern, too.
        redis
            .command::<String>(&["CLIENT", "LIST", "TYPE", "PUBSUB"])
            .matches("psub=1")
            .count()
            == 4
    })
    .await;
    client
        .inspect("enable_events", &json!({}), None, Duration::from_secs(1))
        .await
        .unwrap();
    let id = client.send(Call::new("watch.fail")).await.unwrap().id().to_owned();
    for listener in &mut listeners {
        assert_eq!(listener.wait(), Some(0));
    }
    let lines = read("lines");
    assert!(
        lines.contains(&format!("task-received     watch.fail[{id}]  w@here")),
        "{lines}"
    );
    assert!(
        lines.contains("task-failed") && lines.contains("exception=KeyError('not there')"),
        "{lines}"
    );
    let kinds: Vec<String> = read("json")
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["type"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(kinds, ["task-received", "task-started", "task-failed"]);
    let dump = read("dump");
    assert!(dump.starts_with("-> evdump: starting capture...\nw@here ["), "{dump}");
    assert!(
        dump.contains(&format!("] task started: watch.fail({id}) args=() kwargs={{}} clock=")),
        "{dump}"
    );
}

/// A terminal of 80 columns and 24 lines, in which `orchestra top` runs.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn start(redis: &Redis) -> Self {
        let socket = format!("orchestra-test-{}", uuid::Uuid::new_v4());
        let command = format!(
            "{} top -b {} -i 0.3; echo it ended with $?; exec cat",
            program("orchestra").display(),
            redis.url()
        );
        let terminal = Self { socket };
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", &command]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let out = std::process::Command::new("tmux")
            .args(["-L", &self.socket])
            .args(arguments)
            .output()
            .expect("tmux is on PATH; tools/setup/debian.sh installs it");
        assert!(
            out.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    async fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let end = std::time::Instant::now() + LONG;
        loop {
            let screen = self.screen();
            if is_so(&screen) {
                return screen;
            }
            assert!(std::time::Instant::now() < end, "never: {what}\n{screen}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let kill = ["-L", &self.socket, "kill-server"];
        let _ = std::process::Command::new("tmux").args(kill).output();
    }
}

/// What a person sees who keeps it open: work, a failure, a revoke, Redis gone and back, and a clean end.
#[tokio::test(flavor = "multi_thread")]
async fn top_shows_what_is_going_on() {
    let (mut redis, sim) = (Redis::start(), Sim::start());
    let _one = start(&redis, &["-n", "one@here", "-c", "2", "--ollama-host", &sim.url], &[]);
    let _two = start(&redis, &["-n", "two@here", "-c", "1", "-Q", "other"], &[]);
    let client = redis.client().await;
    let terminal = Terminal::start(&redis);
    let seen = |texts: &'static [&'static str]| move |screen: &str| texts.iter().all(|text| screen.contains(text));
    terminal
        .until(
            "both workers",
            seen(&["2 workers", "one@here", "two@here", "0/2", "nothing runs"]),
        )
        .await;
    let sleeping = client
        .send(Call::new("watch.login").arg("bob").arg("p").kwarg("mode", "sleep"))
        .await
        .unwrap();
    for _ in 0..3 {
        client
            .send(
                Call::new("watch.login")
                    .arg("a")
                    .arg("p")
                    .kwarg("mode", "sleep")
                    .queue("other"),
            )
            .await
            .unwrap();
    }
    client
        .send(Call::new("orchestra.generate").arg("echo").arg("one two"))
        .await
        .unwrap();
    let screen = terminal
        .until(
            "tasks, queues and models",
            seen(&["2 running", "1/2", "1/1", "watch.login", "echo", "1/0"]),
        )
        .await;
    assert!(screen.contains("'********'") && !screen.contains("hunter"), "{screen}");
    assert!(
        screen.lines().all(|line| line.chars().count() <= 80) && screen.lines().count() <= 24,
        "{screen}"
    );
    terminal.press("e");
    until("events are on", async || {
        let set = client
            .inspect("enable_events", &json!({}), None, Duration::from_secs(1))
            .await
            .unwrap();
        set.values().all(|answer| answer["ok"] == "task events already enabled")
    })
    .await;
    client.send(Call::new("watch.fail")).await.unwrap();
    terminal
        .until(
            "the failure",
            seen(&["1 failed", "watch.fail", "KeyError('not there')"]),
        )
        .await;
    // A smaller window, and a larger one.
    terminal.tmux(&["resize-window", "-x", "60", "-y", "15"]);
    terminal
        .until("it fits", |screen| {
            screen.contains("q quit") && screen.lines().count() <= 15
        })
        .await;
    terminal.tmux(&["resize-window", "-x", "130", "-y", "30"]);
    terminal
        .until("whole ids", |screen| screen.contains(sleeping.id()))
        .await;
    terminal.press("Down");
    terminal.press("Enter");
    terminal
        .until("the task", |screen| {
            screen.contains("id      ") && screen.contains("queue   ")
        })
        .await;
    terminal.press("Escape");
    terminal
        .until("it is closed", |screen| !screen.contains("queue   "))
        .await;
    // Sorted by worker, the first is on the first worker.
    terminal.press("s");
    terminal.press("s");
    terminal.until("sorted", seen(&["sort: worker"])).await;
    terminal.press("PageUp");
    terminal.press("r");
    terminal
        .until("the question", |screen| {
            screen.contains(&format!("End watch.login[{}]", sleeping.id()))
        })
        .await;
    terminal.press("n");
    terminal.until("no", |screen| !screen.contains("End watch.login")).await;
    terminal.press("r");
    terminal.press("y");
    until("it is revoked", async || {
        sleeping.state().await.unwrap().as_str() == "REVOKED"
    })
    .await;
    redis.stop();
    terminal.until("Redis is gone", seen(&["trying again"])).await;
    redis.start_again();
    terminal
        .until("Redis is back", |screen| {
            !screen.contains("trying again") && screen.contains("2 workers")
        })
        .await;
    terminal.press("q");
    let screen = terminal.until("the end", seen(&["it ended with 0"])).await;
    assert!(!screen.contains("2 workers"), "the screen is as it was:\n{screen}");
}
