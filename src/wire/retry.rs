//! The message of a retry (`celery.app.task.Task.signature_from_request`): the same message, told to wait.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{Arguments, Json, Message, Parcel, Signature, shown_args, shown_kwargs, sixtyfour};
use crate::clock::{self, Timestamp};

/// The envelope that runs `message` again at `eta`.
///
/// Everything the worker does not know travels on: unknown headers, unknown properties, the body as it came unless it
/// gets other `arguments`.
///
/// # Errors
/// `raw` is not the envelope that `message` was decoded from.
pub fn retry_envelope(
    raw: &[u8],
    message: &Message,
    eta: Timestamp,
    arguments: Option<&Arguments>,
    origin: &str,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut envelope: Map<String, Value> = super::json::parse(&String::from_utf8_lossy(raw))?;
    let mut headers = object(envelope.remove("headers"));
    // A message of protocol 1 has none: with all of them it becomes a hybrid, whose body can stay as it is. Python
    // workers read it too.
    if !headers.contains_key("task") {
        headers.extend(object(Some(serde_json::to_value(&message.headers)?)));
    }
    headers.insert("retries".into(), message.headers.retries.saturating_add(1).into());
    headers.insert("eta".into(), clock::iso(eta).into());
    // Celery: a retried task is its own parent when it had none (P-088).
    let parent = message.headers.parent_id.as_deref().unwrap_or(&message.headers.id);
    headers.insert("parent_id".into(), parent.into());
    headers.insert("root_id".into(), message.headers.root().into());
    headers.remove("redelivered");
    headers.remove("x-orchestra-deliveries");
    if let Some(arguments) = arguments {
        let text = message.body.with_arguments(arguments)?;
        envelope.insert("body".into(), sixtyfour::encode(text).into());
        envelope.insert("content-type".into(), "application/json".into());
        envelope.insert("content-encoding".into(), "utf-8".into());
        headers.remove("compression");
        headers.insert("argsrepr".into(), shown_args(&arguments.args).into());
        headers.insert("kwargsrepr".into(), shown_kwargs(&arguments.kwargs).into());
    }
    envelope.insert("headers".into(), headers.into());

    let mut properties = object(envelope.remove("properties"));
    properties.insert("delivery_tag".into(), uuid::Uuid::new_v4().to_string().into());
    properties.insert("origin".into(), origin.into());
    if arguments.is_some() {
        properties.insert("body_encoding".into(), "base64".into());
    }
    let mut info = object(properties.remove("delivery_info"));
    info.remove("redelivered");
    properties.insert("delivery_info".into(), info.into());
    envelope.insert("properties".into(), properties.into());
    serde_json::to_vec(&envelope)
}

/// The message that counts a member of a chord, should its worker die before it has: the same member, with a task that
/// ends as it ended (`task`, of `args`), and nothing to follow but the `chord`.
///
/// # Errors
/// `raw` is not the envelope that `message` was decoded from.
pub fn counting_envelope(
    raw: &[u8],
    message: &Message,
    task: &str,
    args: &[&Json],
    chord: &Signature,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut envelope: Map<String, Value> = super::json::parse(&String::from_utf8_lossy(raw))?;
    let mut headers = object(Some(serde_json::to_value(&message.headers)?));
    headers.insert("task".into(), task.into());
    let past = [
        "eta",
        "expires",
        "timelimit",
        "compression",
        "shadow",
        "argsrepr",
        "kwargsrepr",
    ];
    for past in past.into_iter().chain(["redelivered", "x-orchestra-deliveries"]) {
        headers.remove(past);
    }
    envelope.insert("headers".into(), headers.into());
    let chord = serde_json::to_string(chord)?;
    let body = format!(
        r#"[{}, {{}}, {{"callbacks": null, "errbacks": null, "chain": null, "chord": {chord}}}]"#,
        Json::list(args.iter().copied()).get()
    );
    envelope.insert("body".into(), sixtyfour::encode(body).into());
    envelope.insert("content-type".into(), "application/json".into());
    envelope.insert("content-encoding".into(), "utf-8".into());
    let mut properties = object(envelope.remove("properties"));
    properties.insert("body_encoding".into(), "base64".into());
    properties.insert("delivery_tag".into(), uuid::Uuid::new_v4().to_string().into());
    let mut info = object(properties.remove("delivery_info"));
    info.remove("redelivered");
    properties.insert("delivery_info".into(), info.into());
    envelope.insert("properties".into(), properties.into());
    serde_json::to_vec(&envelope)
}

/// The message of a task that was put down, to be run again: the same one, without what was said about when it may
/// start, since it did. `queue` is where it goes if it does not say.
///
/// # Errors
/// `raw` is no envelope.
pub fn resumed_parcel(raw: &[u8], queue: &str) -> Result<Parcel, serde_json::Error> {
    let mut envelope: Map<String, Value> = super::json::parse(&String::from_utf8_lossy(raw))?;
    let mut headers = object(envelope.remove("headers"));
    for past in ["redelivered", "x-orchestra-deliveries", "eta", "expires"] {
        headers.remove(past);
    }
    envelope.insert("headers".into(), headers.into());
    let mut properties = object(envelope.remove("properties"));
    properties.insert("delivery_tag".into(), uuid::Uuid::new_v4().to_string().into());
    properties.remove("expiration");
    let mut info = object(properties.remove("delivery_info"));
    info.remove("redelivered");
    let text = |name: &str| info.get(name).and_then(Value::as_str).map(str::to_owned);
    let (exchange, routing_key) = (text("exchange"), text("routing_key"));
    let priority = properties.get("priority").and_then(Value::as_u64).unwrap_or(0).min(9);
    properties.insert("delivery_info".into(), info.into());
    envelope.insert("properties".into(), properties.into());
    Ok(Parcel {
        exchange: exchange.unwrap_or_default(),
        routing_key: routing_key.unwrap_or_else(|| queue.to_owned()),
        queue: None,
        priority: u8::try_from(priority).unwrap_or_default(),
        envelope: serde_json::to_vec(&envelope)?,
    })
}

/// Celery's pause before an automatic retry (`celery.utils.time.get_exponential_backoff_interval`):
/// `factor × 2^retries` up to `max`, and with jitter a random whole number of seconds up to that.
pub fn backoff(factor: Duration, retries: u32, max: Duration, jitter: bool) -> Duration {
    let factor = factor.as_secs().max(1);
    let pause = factor
        .saturating_mul(1_u64.checked_shl(retries).unwrap_or(u64::MAX))
        .min(max.as_secs());
    let pause = if jitter { rand::random_range(0..=pause) } else { pause };
    Duration::from_secs(pause)
}

fn object(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Limits, decode};

    #[test]
    fn p_087_p_088_a_retry_is_the_same_message_with_one_more_retry() {
        let raw = br#"{"body": "[[1], {}, {}]", "content-type": "application/json", "more": 1,
            "headers": {"task": "t", "id": "1", "x-mine": [1], "redelivered": true},
            "properties": {"priority": 3, "delivery_tag": "old", "delivery_info": {"exchange": "", "routing_key": "q", "redelivered": true}}}"#;
        let message = decode(raw, &Limits::default()).unwrap();
        let eta = clock::parse_iso("2026-11-22T15:51:04.161433+00:00").unwrap();
        let again = retry_envelope(raw, &message, eta, None, "gen1@h").unwrap();
        let value: Value = serde_json::from_slice(&again).unwrap();
        assert_eq!(value["headers"]["retries"], 1);
        assert_eq!(value["headers"]["eta"], "2026-11-22T15:51:04.161433+00:00");
        assert_eq!(value["headers"]["parent_id"], "1");
        assert_eq!(value["headers"]["x-mine"][0], 1);
        assert_eq!(value["properties"]["priority"], 3);
        assert_eq!(value["properties"]["origin"], "gen1@h");
        assert_ne!(value["properties"]["delivery_tag"], "old");
        assert_eq!(value["more"], 1);
        assert!(value["headers"].get("redelivered").is_none());
        assert!(value["properties"]["delivery_info"].get("redelivered").is_none());
    }

    #[test]
    fn a_retry_may_have_other_arguments() {
        let raw = br#"{"body": "[[1], {\"y\": 2}, {\"chain\": [9]}]", "content-type": "application/json",
            "headers": {"task": "t", "id": "1", "argsrepr": "(1,)"}, "properties": {}}"#;
        let message = decode(raw, &Limits::default()).unwrap();
        let arguments = Arguments {
            args: vec![2.into(), 3.into()],
            kwargs: Map::new(),
        };
        let again = retry_envelope(raw, &message, clock::now(), Some(&arguments), "gen1@h").unwrap();
        let again = decode(&again, &Limits::default()).unwrap();
        assert_eq!((again.body.args(), again.body.kwargs()), ("[2,3]", "{}"));
        assert_eq!(again.headers.argsrepr.as_deref(), Some("(2, 3)"));
        assert!(again.body.embed().is_err(), "what follows is the same text");
    }

    #[test]
    fn p_061_a_retry_of_protocol_1_is_a_hybrid() {
        let raw = br#"{"body": "{\"task\": \"t\", \"id\": \"1\", \"args\": [1], \"retries\": 1, \"taskset\": \"g\"}",
            "content-type": "application/json", "headers": {"x-mine": 1}, "properties": {}}"#;
        let message = decode(raw, &Limits::default()).unwrap();
        assert_eq!(message.headers.retries, 1);
        let again = retry_envelope(raw, &message, clock::now(), None, "gen1@h").unwrap();
        let again = decode(&again, &Limits::default()).unwrap();
        assert_eq!((&*again.headers.task, again.headers.retries), ("t", 2));
        assert_eq!(again.headers.group.as_deref(), Some("g"));
        assert_eq!(again.headers.extra["x-mine"], 1);
        assert_eq!(again.body.args(), "[1]");
    }

    #[test]
    fn p_091_backoff_doubles_up_to_its_maximum() {
        let pause = |retries| backoff(Duration::from_secs(2), retries, Duration::from_secs(600), false).as_secs();
        assert_eq!([0, 1, 2, 8, 9, 200].map(pause), [2, 4, 8, 512, 600, 600]);
        for _ in 0..100 {
            assert!(backoff(Duration::from_secs(2), 3, Duration::from_secs(600), true).as_secs() <= 16);
        }
    }
}
