//! Protocol 1, which senders choose with `task_protocol = 1`: all about the task lies in its body. It is read as
//! protocol 2, so that nothing behind this file knows the difference (`celery.worker.strategy.proto1_to_proto2` and
//! `hybrid_to_proto2`).

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::message::DecodeError;
use super::{Headers, json, shown_args, shown_kwargs};
use crate::clock;

/// Arguments longer than this are not parsed only to be shown in events.
const SHOWN: usize = 64 << 10;

/// Whether the text can be a body of protocol 1: an object, where protocol 2 has a list.
pub(super) fn is_body(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

/// The headers and the body that the message would have in protocol 2. `outside` are the headers of the envelope. Where
/// they name the task (a hybrid) they win over the body; otherwise they are only what the sender added.
///
/// # Errors
/// The text is not a body of protocol 1.
pub(super) fn unfold(text: &str, outside: &str) -> Result<(Headers, String), DecodeError> {
    let wrong = |error: serde_json::Error| DecodeError::Body(format!("the body is not one of protocol 1: {error}"));
    let (text, outside) = (json::carried(text), json::carried(outside));
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(&text).map_err(wrong)?;
    let has_args = fields.contains_key("args");
    let mut take = |name: &str, missing| fields.remove(name).map_or(missing, RawValue::get);
    let (args, kwargs) = (take("args", "[]"), take("kwargs", "{}"));
    let (callbacks, errbacks) = (take("callbacks", "null"), take("errbacks", "null"));
    let (chord, utc) = (take("chord", "null"), take("utc", "true"));
    let body = format!(
        r#"[{args}, {kwargs}, {{"callbacks": {callbacks}, "errbacks": {errbacks}, "chain": null, "chord": {chord}}}]"#
    );
    // What groups were called once; it wins, as in Celery.
    if let Some(taskset) = fields.remove("taskset") {
        fields.insert("group".to_owned(), taskset);
    }
    let outside: Option<BTreeMap<String, &RawValue>> = serde_json::from_str(&outside).map_err(wrong)?;
    let outside = outside.unwrap_or_default();
    let hybrid = outside.contains_key("task");
    if hybrid && !has_args {
        return Err(DecodeError::Body(
            "the body is neither [args, kwargs, embed] nor has it `args`".into(),
        ));
    }
    for (name, value) in outside {
        if hybrid || !fields.contains_key(&name) {
            fields.insert(name, value);
        }
    }
    let fields = serde_json::to_string(&fields).map_err(wrong)?;
    let mut headers: Headers = json::parse(&fields).map_err(wrong)?;
    if utc == "false" {
        headers.eta = headers.eta.map(with_offset);
        headers.expires = headers.expires.map(with_offset);
    }
    if headers.argsrepr.is_none() {
        headers.argsrepr = shown(args, |args: Vec<Value>| shown_args(&args));
    }
    if headers.kwargsrepr.is_none() {
        headers.kwargsrepr = shown(kwargs, |kwargs: Map<String, Value>| shown_kwargs(&kwargs));
    }
    Ok((headers, body))
}

/// Where `utc` is false, a time without offset is local.
fn with_offset(text: String) -> String {
    clock::parse_local(&text).map_or(text, clock::iso)
}

fn shown<T: DeserializeOwned>(text: &str, repr: impl FnOnce(T) -> String) -> Option<String> {
    if text.len() > SHOWN {
        return Some("...".to_owned());
    }
    serde_json::from_str(text).ok().map(repr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Body;

    const BODY: &str = r#"{"task": "proj.add", "id": "1", "args": [2, 3], "kwargs": {"k": 1}, "group": null,
        "group_index": 4, "retries": 2, "eta": "2026-11-22T16:13:53.734821+00:00", "expires": null, "utc": true,
        "callbacks": [{"task": "t"}], "errbacks": null, "timelimit": [3, null], "taskset": "g", "chord": null}"#;

    #[test]
    fn p_060_a_body_of_protocol_1_becomes_headers_and_a_body_of_protocol_2() {
        let (headers, body) = unfold(BODY, r#"{"x-mine": [1], "id": "another"}"#).unwrap();
        assert_eq!((&*headers.task, &*headers.id, headers.retries), ("proj.add", "1", 2));
        assert_eq!(headers.group.as_deref(), Some("g"));
        assert_eq!(headers.group_index, Some(4));
        assert_eq!(headers.timelimit.hard, Some(std::time::Duration::from_secs(3)));
        assert_eq!(headers.argsrepr.as_deref(), Some("(2, 3)"));
        assert_eq!(headers.kwargsrepr.as_deref(), Some("{'k': 1}"));
        let extra: Vec<&String> = headers.extra.keys().collect();
        assert_eq!(extra, ["x-mine"]);
        let body = Body::parse(body).unwrap();
        assert_eq!(body.args(), "[2, 3]");
        let embed = body.embed().unwrap();
        assert_eq!(embed.callbacks.unwrap()[0].task, "t");
        assert!(embed.chain.is_none() && embed.errbacks.is_none() && embed.chord.is_none());
    }

    #[test]
    fn p_061_the_headers_of_a_hybrid_win() {
        let (headers, _) = unfold(BODY, r#"{"task": "proj.mul", "retries": 5}"#).unwrap();
        assert_eq!((&*headers.task, &*headers.id, headers.retries), ("proj.mul", "1", 5));
        assert!(unfold("{}", r#"{"task": "proj.mul"}"#).is_err());
    }

    #[test]
    fn p_060_what_is_missing_is_empty_and_what_is_wrong_is_refused() {
        let (headers, body) = unfold(r#"{"task": "t", "id": "1"}"#, "null").unwrap();
        assert_eq!(headers.task, "t");
        assert!(body.starts_with("[[], {}, "));
        let (_, body) = unfold(r#"{"task": "t", "id": "1", "args": [NaN]}"#, "{}").unwrap();
        // Carried, as `wire::json` says.
        assert!(body.starts_with("[[1e99998], "));
        for wrong in [r#"{"task": 1}"#, "{", r#"{"task": "t", "retries": -1}"#] {
            assert!(unfold(wrong, "{}").is_err(), "{wrong}");
        }
        let (_, body) = unfold(r#"{"task": "t", "id": "1", "kwargs": []}"#, "{}").unwrap();
        assert!(Body::parse(body).is_err());
    }

    #[test]
    fn p_060_without_utc_a_naive_eta_is_local() {
        let body = |eta: &str| format!(r#"{{"task": "t", "id": "1", "utc": false, "eta": "{eta}"}}"#);
        let eta = |text: &str| unfold(&body(text), "{}").unwrap().0.eta.unwrap();
        let local = clock::parse_local("2026-11-22T16:13:53").unwrap();
        assert_eq!(eta("2026-11-22T16:13:53"), clock::iso(local));
        assert_eq!(eta("2026-11-22T16:13:53+02:00"), "2026-11-22T16:13:53+02:00");
        assert_eq!(eta("garbage"), "garbage");
    }
}
