//! What is done with bytes from outside, one function for each kind. None of them may panic, hang, or take more memory
//! than its limits say, whatever the bytes are. `cargo +nightly fuzz run NAME` feeds them for hours (`make fuzz`), and
//! `tests/it/fuzz.rs` feeds them changed seeds of `fuzz/corpus` in every run of the tests.

use base64::Engine as _;
use orchestra::ai::ollama::{Frame, Lines};
use orchestra::ai::template::Template;
use orchestra::broker::mark_redelivered;
use orchestra::clock;
use orchestra::wire::{Accept, Heard, Limits, Message, pidbox};
use serde_json::{Map, Value, json};

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
pub const TARGETS: [(&str, Target); 7] = [
    ("envelope", envelope),
    ("body", body),
    ("headers", headers),
    ("event", event),
    ("pidbox", pidbox),
    ("template", template),
    ("ndjson", ndjson),
];

fn accept() -> Accept {
    Accept::parse(&["json", "msgpack", "yaml"], None).unwrap_or_default()
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

/// A body: the first byte says in which serializer, the second how it is compressed.
pub fn body(data: &[u8]) {
    let [serializer, compression, body @ ..] = data else {
        return;
    };
    let types = ["application/json", "application/x-msgpack", "application/x-yaml"];
    let methods = [
        None,
        Some("application/x-gzip"),
        Some("application/x-bz2"),
        Some("application/x-lzma"),
        Some("application/x-brotli"),
        Some("application/zstd"),
    ];
    let mut headers = json!({"id": "1", "task": "t"});
    if let Some(method) = methods[usize::from(*compression) % methods.len()] {
        headers["compression"] = method.into();
    }
    let envelope = json!({
        "body": base64::engine::general_purpose::STANDARD.encode(body),
        "content-type": types[usize::from(*serializer) % types.len()],
        "headers": headers,
        "properties": {"body_encoding": "base64"},
    });
    if let Ok(message) = accept().decode(envelope.to_string().as_bytes(), &LIMITS) {
        assert!(message.body.args().len() <= 2 * LIMITS.body);
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
    let _ = Heard::decode(data);
}

/// A remote control request, or an answer to one.
pub fn pidbox(data: &[u8]) {
    if let Ok(request) = pidbox::decode(data, &accept()) {
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
