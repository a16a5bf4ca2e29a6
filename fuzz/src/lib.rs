//! What is done with bytes from outside, one function for each kind. None of them may panic, hang, or take more memory
//! than its limits say, whatever the bytes are. `cargo +nightly fuzz run NAME` feeds them for hours (`make fuzz`), and
//! `tests/it/fuzz.rs` feeds them changed seeds of `fuzz/corpus` in every run of the tests.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::tz::TimeZone;
use orchestra::ai::ollama::{Chunks, Frame, Lines};
use orchestra::ai::template::Template;
use orchestra::beat;
use orchestra::broker::mark_redelivered;
use orchestra::canvas::ResultNode;
use orchestra::client::{Error, outcome};
use orchestra::clock::{self, Timestamp};
use orchestra::config::Settings;
use orchestra::conn::Endpoint;
use orchestra::wire::{
    Accept, Exception, Heard, Json, Limits, Message, Rest, ResultFormat, Security, json, pidbox, redact,
};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json as object};

/// Small, so that a bound that does not hold is seen.
const LIMITS: Limits = Limits {
    body: 1 << 20,
    name: 255,
    control: 1 << 20,
    depth: 64,
};

/// A target.
pub type Target = fn(&[u8]);

/// All of them.
pub const TARGETS: [(&str, Target); 16] = [
    ("envelope", envelope),
    ("body", body),
    ("headers", headers),
    ("event", event),
    ("pidbox", pidbox),
    ("template", template),
    ("ndjson", ndjson),
    ("sse", sse),
    ("json", json_text),
    ("chain", chain),
    ("entry", entry),
    ("time", time),
    ("url", url),
    ("secrets", secrets),
    ("result", result),
    ("config", config),
];

/// Of a key that nobody has any more: what it signed is in `corpus/body`, and it will sign nothing else.
const CERTIFICATE: &str = include_str!("../certificate.crt");
/// The arguments of all that it signed.
const SIGNED: &str = "[7]";

fn accept() -> Accept {
    static ACCEPT: LazyLock<Accept> = LazyLock::new(|| {
        let security = Security::new("sha256").and_then(|mut security| {
            security.trust(CERTIFICATE)?;
            Ok(security)
        });
        let security = security.expect("the certificate can be read and holds for a thousand years");
        Accept::parse(&["json", "msgpack", "yaml", "auth"], Some(Arc::new(security))).expect("all four are there")
    });
    ACCEPT.clone()
}

/// What a worker does with a message that could be read.
fn read(message: &Message) {
    let _ = (
        message.properties.priority(),
        message.properties.routing_key(),
        message.properties.redelivered(),
    );
    if let Ok(arguments) = message.body.arguments() {
        let _ = message.body.with_arguments(&arguments);
    }
    let _ = message.body.embed();
    for time in [&message.headers.eta, &message.headers.expires].into_iter().flatten() {
        if let Ok(at) = clock::parse_iso(time) {
            let _ = (clock::iso(at), clock::epoch_seconds(at), clock::until(at, clock::now()));
        }
    }
    let _ = (message.headers.shown_name(), message.headers.root());
}

/// An element of a queue.
pub fn envelope(data: &[u8]) {
    if let Ok(message) = accept().decode(data, &LIMITS) {
        read(&message);
    }
    if let Some(marked) = mark_redelivered(data)
        && serde_json::from_slice::<Value>(data).is_ok()
    {
        // What is put back can be read by whoever takes it next.
        assert!(serde_json::from_slice::<Value>(&marked).is_ok());
    }
}

/// A body: the first byte says in which serializer, the second how it is compressed. What is signed may come as it is,
/// or as what is base64 then, of which no fuzzer makes much by itself.
pub fn body(data: &[u8]) {
    let [serializer, compression, body @ ..] = data else {
        return;
    };
    let types = [
        "application/json",
        "application/x-msgpack",
        "application/x-yaml",
        "application/data",
        "application/data",
    ];
    let kind = usize::from(*serializer) % types.len();
    let parts = if kind == 4 { BASE64.encode(body) } else { String::new() };
    let body = if kind == 4 { parts.as_bytes() } else { body };
    let methods = [
        None,
        Some("application/x-gzip"),
        Some("application/x-bz2"),
        Some("application/x-lzma"),
        Some("application/x-brotli"),
        Some("application/zstd"),
    ];
    let mut headers = object!({"id": "1", "task": "t"});
    if let Some(method) = methods[usize::from(*compression) % methods.len()] {
        headers["compression"] = method.into();
    }
    let envelope = object!({
        "body": BASE64.encode(body),
        "content-type": types[kind],
        "headers": headers,
        "properties": {"body_encoding": "base64"},
    });
    if let Ok(message) = accept().decode(envelope.to_string().as_bytes(), &LIMITS) {
        assert!(message.body.args().len() <= 2 * LIMITS.body);
        // Nobody signed anything else.
        assert!(types[kind] != "application/data" || message.body.args() == SIGNED);
        read(&message);
    }
}

/// The headers of a message.
pub fn headers(data: &[u8]) {
    let Ok(headers) = std::str::from_utf8(data) else {
        return;
    };
    let envelope = format!(
        r#"{{"body": "[[1], {{}}, {{}}]", "content-type": "application/json", "headers": {headers}, "properties": {{}}}}"#
    );
    self::envelope(envelope.as_bytes());
}

/// What a worker says of itself.
pub fn event(data: &[u8]) {
    let one = Heard::decode(data);
    // What `top` reads: one event, or the tasks of a moment.
    assert!(one.is_err() || Heard::decode_all(data).is_ok());
}

/// A remote control request, or an answer to one.
pub fn pidbox(data: &[u8]) {
    if let Ok(request) = pidbox::decode(data, &accept(), 1 << 20) {
        let _ = request.is_for("celery@here");
    }
    let _ = pidbox::decode_reply(data, &accept());
}

/// A template file: what a worker reads at its start, and renders.
pub fn template(data: &[u8]) {
    let path = std::env::temp_dir().join(format!("orchestra-fuzz-{}.yaml", std::process::id()));
    if std::fs::write(&path, data).is_err() {
        return;
    }
    let loaded = Template::load(&path);
    let _ = std::fs::remove_file(&path);
    if let Ok(template) = loaded {
        let _ = template.schema();
        let _ = template.preview(Map::new());
    }
}

/// A streamed answer of a model; the first byte says in pieces of which size it comes.
pub fn ndjson(data: &[u8]) {
    let [size, stream @ ..] = data else {
        return;
    };
    let mut lines = Lines::new(1 << 10);
    for chunk in stream.chunks(usize::from(*size).max(1)) {
        lines.push(chunk);
        loop {
            match lines.next_line() {
                Ok(Some(line)) => drop(serde_json::from_slice::<Frame>(&line)),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    if let Some(line) = lines.last() {
        let _ = serde_json::from_slice::<Frame>(&line);
    }
}

/// A streamed answer of a server that speaks as OpenAI does.
pub fn sse(data: &[u8]) {
    let (mut lines, mut chunks) = (Lines::new(1 << 10), Chunks::default());
    lines.push(data);
    while let Ok(Some(line)) = lines.next_line() {
        if chunks.frame(&line, Duration::ZERO).is_err() {
            return;
        }
    }
}

/// JSON as Python writes it: what serde reads is read alike, and nothing is taken for JSON but for Python's numbers.
pub fn json_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (ours, plain) = (json::parse::<Value>(text), serde_json::from_str::<Value>(text));
    if let Ok(plain) = plain {
        assert_eq!(ours.ok().as_ref(), Some(&plain));
        assert!(json::depth(text) >= deep(&plain));
    } else if ours.is_ok() {
        assert!(serde_json::from_str::<&RawValue>(&json::carried(text)).is_ok());
    }
}

fn deep(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(deep).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(deep).max().unwrap_or(0),
        _ => 0,
    }
}

/// The rest of a chain, cut from its end: what is cut off is what a reader of the whole list finds there.
pub fn chain(data: &[u8]) {
    let Ok(mut rest) = serde_json::from_slice::<Rest>(data) else {
        return;
    };
    let mut steps = rest.each().unwrap_or_default();
    while let Some(last) = steps.pop() {
        match (rest.next(), last) {
            (Ok(Some((step, before))), Ok(last)) => {
                assert_eq!(step, last);
                rest = before;
            }
            (Err(_), Err(_)) => return,
            (found, last) => panic!("cut off: {found:?}, read: {last:?}"),
        }
    }
    assert!(rest.is_empty());
}

/// An entry of beat, as somebody wrote it into Redis: what it is written as again is the same entry.
pub fn entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(entry) = beat::Entry::parse("fuzz", text, &TimeZone::UTC) {
        let last = Timestamp::UNIX_EPOCH;
        let next = entry.schedule.next(last);
        assert!(next > last);
        let again = beat::Entry::parse("fuzz", &entry.text(), &TimeZone::UTC);
        assert_eq!(again.map(|again| again.schedule.next(last)), Ok(next));
    }
}

/// The year 1, with which Python's times begin.
const YEAR_1: i64 = -62_135_596_800;

/// A time: what it is written as is the same time.
pub fn time(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(at) = clock::parse_iso(text)
        && at.as_second() >= YEAR_1
    {
        let again = clock::parse_iso(&clock::iso(at)).map(Timestamp::as_microsecond);
        assert_eq!(again.ok(), Some(at.as_microsecond()));
        let _ = clock::local_time(at);
    }
    let _ = clock::parse_local(text);
}

/// The URL of a server, a user and a host around a password: no error shows that.
pub fn url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = Endpoint::parse(text);
    let (user, place) = text.split_once('\n').unwrap_or(("", text));
    // What stands beside the password is no secret.
    if user.contains(['/', '?', '#', '@', ':', ';', ',']) || text.contains("hunter2") {
        return;
    }
    for scheme in ["redis", "rediss", "sentinel", "redis+socket"] {
        let secret = Endpoint::parse(&format!("{scheme}://{user}:hunter2@{place}"));
        let error = secret.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// A value with secrets: what is hidden once has nothing left to hide.
pub fn secrets(data: &[u8]) {
    let Ok(mut value) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    redact::hide(&mut value);
    let hidden = value.clone();
    redact::hide(&mut value);
    assert_eq!(hidden, value);
    let _ = redact::may_hold_secret(&value.to_string());
}

/// What stands in Redis as the result of a task, of a group, of a member of a chord; the first byte says in which
/// serializer it is expected.
pub fn result(data: &[u8]) {
    let [serializer, stored @ ..] = data else {
        return;
    };
    let serializer = ["json", "msgpack", "yaml"][usize::from(*serializer) % 3];
    let Ok(format) = ResultFormat::new(Some(serializer), None, accept()) else {
        return;
    };
    let format = format.bounded(1 << 20);
    let state = format.state(stored.to_vec());
    let Ok(text) = format.read(stored.to_vec()) else {
        assert_eq!(state, None);
        return;
    };
    match outcome::<Value>(&text) {
        Ok(value) => assert_eq!(value.is_some(), state.is_some_and(|state| state.is_ready())),
        Err(Error::Failed { exception, .. }) => show(&exception),
        Err(error) => drop(error.to_string()),
    }
    let _ = (ResultNode::read(&text), ResultNode::read_alone(&text));
    // A member of a chord, as it is counted.
    if let Ok((_, _, _, value)) = serde_json::from_str::<(Json, String, String, Json)>(&json::carried(&text))
        && let Ok(exception) = value.parse::<Exception>()
    {
        show(&exception);
    }
    // What is read can be stored again, in every form that has all of it.
    let _ = format.write(text.as_bytes());
}

fn show(exception: &Exception) {
    let _ = (exception.repr(), exception.message(), exception.traceback_text());
    let _ = (exception.hidden(), serde_json::to_string(exception));
}

/// A settings file: what each of the programs makes of it at its start.
pub fn config(data: &[u8]) {
    let path = std::env::temp_dir().join(format!("orchestra-fuzz-{}.toml", std::process::id()));
    if std::fs::write(&path, data).is_err() {
        return;
    }
    let loaded = Settings::load(Some(&path));
    let _ = std::fs::remove_file(&path);
    let Ok(settings) = loaded else { return };
    let _ = (settings.broker(), settings.backend(), settings.shared_ai());
    let _ = (settings.sending(), settings.routes(), settings.signer());
    let _ = (settings.broker_options(), settings.backend_options());
    let _ = (settings.named_queues(), settings.unknown_queue());
    let _ = settings.worker("worker@here".into());
    if let Ok(beat) = settings.beat("beat@here".into()) {
        let _ = settings.beat_schedule(&beat.zone);
    }
    // It is JSON, for `inspect conf`.
    let _ = serde_json::to_string(&settings.shown());
}
