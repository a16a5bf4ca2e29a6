//! Messages whose holder is gone: found, marked as redelivered, put back (`kombu.transport.redis.QoS.restore_visible`).
//!
//! No mutex: what is moved must be unchanged and overdue at the moment of the move, so any number of workers may look.

use std::time::Duration;

use redis::{Pipeline, Value};
use serde_json::value::RawValue;

use super::claim::unexpected;
use super::{Broker, Error};
use crate::clock::{self, Instant};
use crate::conn::Patience;

/// Messages looked at in one go.
const BATCH: usize = 100;
/// Bytes of them: each goes both ways, and whoever waits behind them on the same connection has his time limits.
const BYTES: usize = 1 << 20;

/// So many of the newest dead letters are looked through for one.
const LETTERS: usize = 1000;

/// How often those are tried again that Redis refused to move.
const AGAIN: Duration = Duration::from_secs(60);

/// The header that counts deliveries: one more for each whose holder was gone before it was done. It is kept by who
/// gives a message back, and is 1 where nobody was gone yet.
pub const DELIVERIES: &str = "x-orchestra-deliveries";

/// Where a sweep through the overdue messages stands.
#[derive(Debug, Default)]
pub struct Sweep {
    /// So many were looked at and had to stay; they are the oldest, and those behind them get their turn.
    passed: usize,
    /// When it began with the oldest.
    began: Option<Instant>,
    /// More were left by the last look.
    more: bool,
    patience: Patience,
    /// Messages that were to be given up, and of which no answer says whether they were.
    unsure: Vec<Unsure>,
    /// By the server's clock in seconds: later than that nothing is taken for left behind.
    until: Option<f64>,
}

/// A message that may be in a dead-letter list.
#[derive(Debug)]
struct Unsure {
    tag: Vec<u8>,
    list: String,
    letter: Vec<u8>,
    given_up: GivenUp,
}

impl Sweep {
    /// From that moment on, in seconds by the server's clock, our own leases may have run out.
    pub fn trust_until(&mut self, until: f64) {
        self.until = Some(until);
    }

    /// Those that had to stay are tried again once in a while, when all others have had their turn.
    fn go_on(&mut self) {
        let now = clock::instant();
        let is_long_ago = |began| now.saturating_duration_since(began) > AGAIN;
        if !self.more && self.began.is_none_or(is_long_ago) {
            (self.passed, self.began) = (0, Some(now));
        }
    }
}

/// What a look did.
#[derive(Debug, Default)]
pub struct Restored {
    /// Back in their queues.
    pub requeued: usize,
    /// In a dead-letter list: beyond repair, or given back too often.
    pub dead: Vec<GivenUp>,
    /// How many stay where they are, because Redis refused to move them.
    pub stay: usize,
    /// Why the first of those does.
    pub refusal: Option<String>,
    /// There are more to look at.
    pub more: bool,
    /// Nothing was looked at: what is overdue may be ours.
    pub stale: bool,
}

/// A message that nobody gets any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Its envelope, or what stood in its place.
    pub raw: Vec<u8>,
    /// Why.
    pub reason: String,
}

/// What becomes of a held message.
struct Fate {
    exchange: String,
    routing_key: String,
    priority: u8,
    push: Vec<u8>,
    /// Set when it goes to the dead-letter list of its routing key.
    given_up: Option<GivenUp>,
}

/// The parts of a value of `unacked`: kombu's `[envelope, exchange, routing_key]`, with the envelope as text.
type Held<'a> = (&'a RawValue, String, String);

impl Broker {
    /// Puts back messages that nobody has kept fresh within the visibility timeout, some of them at a time.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn restore_overdue(&self, sweep: &mut Sweep) -> Result<Restored, Error> {
        let timeout = self.options.visibility_timeout.as_secs_f64();
        sweep.go_on();
        let dead = self.given_up(sweep).await?;
        let mut call = self.scripts.overdue.prepare_invoke();
        call.key(self.keys.name("unacked"))
            .key(self.keys.name("unacked_index"))
            .arg(timeout)
            .arg(sweep.passed)
            .arg(BATCH)
            .arg(BYTES)
            .arg(sweep.until.map_or_else(String::new, |until| format!("{until:.6}")));
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&call);
        let found = match self.main.pipeline_with(&pipe, &sweep.patience).await?.pop() {
            Some(Value::Array(found)) => found,
            other => return Err(unexpected(other.as_ref())),
        };
        let mut found = found.into_iter();
        let mut restored = Restored {
            dead,
            ..Restored::default()
        };
        match found.next() {
            Some(Value::Int(-1)) => restored.stale = true,
            more => restored.more = more == Some(Value::Int(1)),
        }
        let (mut pipe, mut whose, mut fates, mut unsure) = (Pipeline::new(), Vec::new(), Vec::new(), Vec::new());
        while let (Some(Value::BulkString(tag)), Some(Value::BulkString(value)), Some(Value::BulkString(digest))) =
            (found.next(), found.next(), found.next())
        {
            let fate = self.fate(&value);
            let mut call = self.scripts.restore.prepare_invoke();
            call.key(self.keys.name("unacked")).key(self.keys.name("unacked_index"));
            call.key(match &fate.given_up {
                None => self.keys.bindings(&fate.exchange),
                Some(_) => self.dead_key(&fate.routing_key),
            });
            call.arg(&tag[..]).arg(&digest[..]).arg(timeout).arg(&fate.push[..]);
            call.arg(fate.given_up.as_ref().map_or(0, |_| self.options.dead_limit));
            call.arg(&fate.exchange).arg(&fate.routing_key);
            call.arg(self.keys.name(""))
                .arg(self.keys.suffix(fate.priority))
                .arg(self.keys.sep());
            pipe.invoke_script(&call);
            if let Some(given_up) = &fate.given_up {
                unsure.push(Unsure {
                    tag: tag.clone(),
                    list: self.dead_key(&fate.routing_key),
                    letter: fate.push,
                    given_up: given_up.clone(),
                });
            }
            whose.push((tag, fate.routing_key));
            fates.push(fate.given_up);
        }
        let answers = match fates.is_empty() {
            true => Vec::new(),
            false => match self.main.pipeline_with(&pipe, &sweep.patience).await {
                Ok(answers) => answers,
                Err(error) => {
                    sweep.unsure = unsure;
                    return Err(error);
                }
            },
        };
        sweep.patience = Patience::default();
        for ((answer, (tag, queue)), given_up) in answers.into_iter().zip(whose).zip(fates) {
            match answer {
                Value::Int(moved @ 1..) => match given_up {
                    Some(given_up) => {
                        self.note_pushed_out(u64::try_from(moved - 1).unwrap_or_default());
                        restored.dead.push(given_up);
                    }
                    None => restored.requeued += 1,
                },
                Value::ServerError(error) => {
                    restored.stay += 1;
                    let tag = String::from_utf8_lossy(&tag);
                    let refusal = || format!("{tag}, which belongs in {queue:?}: {error}");
                    restored.refusal.get_or_insert_with(refusal);
                }
                // Somebody was quicker, or keeps it fresh again.
                _ => {}
            }
        }
        sweep.passed += restored.stay;
        sweep.more = restored.more;
        if restored.requeued > 0 {
            self.main.wake();
        }
        Ok(restored)
    }

    /// Of those of which no answer came: they are no longer held, and are dead letters of ours.
    async fn given_up(&self, sweep: &mut Sweep) -> Result<Vec<GivenUp>, Error> {
        if sweep.unsure.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = Pipeline::new();
        for unsure in &sweep.unsure {
            pipe.cmd("HEXISTS").arg(self.keys.name("unacked")).arg(&unsure.tag);
            pipe.cmd("LPOS").arg(&unsure.list).arg(&unsure.letter);
            pipe.arg("MAXLEN").arg(LETTERS);
        }
        let answers = self.main.pipeline_with(&pipe, &sweep.patience).await?;
        let given_up = std::mem::take(&mut sweep.unsure).into_iter().zip(answers.chunks(2));
        let are_dead = given_up.filter(|(_, answers)| matches!(answers, [Value::Int(0), Value::Int(_)]));
        Ok(are_dead.map(|(unsure, _)| unsure.given_up).collect())
    }

    fn fate(&self, value: &[u8]) -> Fate {
        let held = std::str::from_utf8(value)
            .ok()
            .and_then(|text| serde_json::from_str::<Held<'_>>(text).ok());
        let Some((envelope, exchange, routing_key)) = held else {
            let reason = "an entry of unacked that is no message".into();
            return self.give_up(value, "", "celery".into(), reason);
        };
        let raw = envelope.get().as_bytes();
        let Some((push, priority, deliveries)) = redelivered(envelope) else {
            let reason = "an entry of unacked that cannot be marked as redelivered".to_owned();
            return self.give_up(raw, &exchange, routing_key, reason);
        };
        if deliveries > self.options.max_deliveries {
            let reason = worn_out(deliveries - 1, "each worker that took it was gone before it was done");
            return self.give_up(raw, &exchange, routing_key, reason);
        }
        Fate {
            exchange,
            routing_key,
            priority,
            push,
            given_up: None,
        }
    }

    fn give_up(&self, raw: &[u8], exchange: &str, routing_key: String, reason: String) -> Fate {
        Fate {
            exchange: String::new(),
            push: self.letter(raw, exchange, &routing_key, &reason),
            routing_key,
            priority: 0,
            given_up: Some(GivenUp {
                raw: raw.to_vec(),
                reason,
            }),
        }
    }
}

/// Why a message is delivered no more: after so many times, of which the last one ended thus.
pub(crate) fn worn_out(deliveries: u32, how: &str) -> String {
    format!("delivered {deliveries} times without an end: {how}")
}

/// Which delivery it is: as the header [`DELIVERIES`] says. Python workers keep that and count nothing, so that one
/// which was delivered before and does not say how often was delivered twice, at least.
pub fn deliveries(counted: Option<u32>, redelivered: bool) -> u32 {
    counted.unwrap_or(if redelivered { 2 } else { 1 })
}

/// The envelope with `redelivered` set in both places, the headers and `delivery_info`, every other byte of its
/// values kept, and the count of deliveries. `None` when it is no envelope.
pub fn mark_redelivered(envelope: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(envelope).ok()?;
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    mark(raw, false).map(|(marked, _, _)| marked)
}

/// The envelope with one more delivery counted: whoever held it was gone before it was done. `None` when it is no
/// envelope.
pub fn count_delivery(envelope: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(envelope).ok()?;
    redelivered(serde_json::from_str(text).ok()?).map(|(counted, _, _)| counted)
}

fn redelivered(envelope: &RawValue) -> Option<(Vec<u8>, u8, u32)> {
    mark(envelope, true)
}

/// An object whose values stay text: numbers keep their digits, strings their escapes.
type Members = Vec<(String, Box<RawValue>)>;

/// The marked envelope, its priority, and which delivery comes next.
fn mark(envelope: &RawValue, count: bool) -> Option<(Vec<u8>, u8, u32)> {
    let mut envelope = members(envelope.get())?;
    let mut headers = take(&mut envelope, "headers")
        .and_then(|headers| members(headers.get()))
        .unwrap_or_default();
    let mut properties = take(&mut envelope, "properties")
        .and_then(|raw| members(raw.get()))
        .unwrap_or_default();
    let mut info = take(&mut properties, "delivery_info")
        .and_then(|raw| members(raw.get()))
        .unwrap_or_default();
    let priority = priority_of(&properties);
    let counted = take(&mut headers, DELIVERIES).and_then(|raw| raw.get().parse().ok());
    let says = |raw: Option<Box<RawValue>>| raw.is_some_and(|raw| raw.get() == "true");
    let redelivered = says(take(&mut headers, "redelivered")) | says(take(&mut info, "redelivered"));
    let deliveries = deliveries(counted, redelivered).saturating_add(count.into());
    headers.push((DELIVERIES.to_owned(), raw(deliveries.to_string())?));
    headers.push(("redelivered".to_owned(), raw("true".to_owned())?));
    info.push(("redelivered".to_owned(), raw("true".to_owned())?));
    properties.push(("delivery_info".to_owned(), raw(object(&info)?)?));
    envelope.push(("headers".to_owned(), raw(object(&headers)?)?));
    envelope.push(("properties".to_owned(), raw(object(&properties)?)?));
    Some((object(&envelope)?.into_bytes(), priority, deliveries))
}

/// The envelope as it was when it was sent, without a word of how often it was delivered; `None` when it is no
/// envelope.
pub(super) fn as_new(envelope: &[u8]) -> Option<Vec<u8>> {
    let mut envelope = members(std::str::from_utf8(envelope).ok()?)?;
    let headers = envelope.iter_mut().find(|(name, _)| name == "headers");
    if let Some((_, value)) = headers
        && let Some(mut headers) = members(value.get())
    {
        headers.retain(|(name, _)| name != DELIVERIES && name != "redelivered");
        *value = raw(object(&headers)?)?;
    }
    let properties = envelope.iter_mut().find(|(name, _)| name == "properties");
    if let Some((_, value)) = properties
        && let Some(mut properties) = members(value.get())
    {
        let info = properties.iter_mut().find(|(name, _)| name == "delivery_info");
        if let Some((_, value)) = info
            && let Some(mut info) = members(value.get())
        {
            info.retain(|(name, _)| name != "redelivered");
            *value = raw(object(&info)?)?;
        }
        *value = raw(object(&properties)?)?;
    }
    object(&envelope).map(String::into_bytes)
}

/// What its sender named this very message, as it is written.
pub(super) fn delivery_tag(envelope: &[u8]) -> Option<String> {
    let mut envelope = members(std::str::from_utf8(envelope).ok()?)?;
    let mut properties = members(take(&mut envelope, "properties")?.get())?;
    let tag = take(&mut properties, "delivery_tag")?;
    (tag.get().len() > 20).then(|| tag.get().to_owned())
}

/// The priority of an envelope; 0 when it is none.
pub(super) fn priority(envelope: &[u8]) -> u8 {
    let properties = || {
        let mut envelope = members(std::str::from_utf8(envelope).ok()?)?;
        members(take(&mut envelope, "properties")?.get())
    };
    properties().as_ref().map_or(0, priority_of)
}

fn priority_of(properties: &Members) -> u8 {
    let priority = properties.iter().find(|(name, _)| name == "priority");
    priority
        .and_then(|(_, value)| value.get().parse::<f64>().ok())
        .map_or(0, |number| number.clamp(0.0, 9.0) as u8)
}

fn members(text: &str) -> Option<Members> {
    struct Visit;
    impl<'de> serde::de::Visitor<'de> for Visit {
        type Value = Members;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
            let mut members = Members::new();
            while let Some(member) = map.next_entry()? {
                members.push(member);
            }
            Ok(members)
        }
    }
    serde::Deserializer::deserialize_map(&mut serde_json::Deserializer::from_str(text), Visit).ok()
}

fn take(members: &mut Members, name: &str) -> Option<Box<RawValue>> {
    let at = members.iter().position(|(known, _)| known == name)?;
    Some(members.remove(at).1)
}

fn raw(text: String) -> Option<Box<RawValue>> {
    RawValue::from_string(text).ok()
}

fn object(members: &Members) -> Option<String> {
    let mut out = String::from("{");
    for (at, (name, value)) in members.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        out.push_str(&serde_json::to_string(name).ok()?);
        out.push_str(": ");
        out.push_str(value.get());
    }
    out.push('}');
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_039_redelivered_is_set_in_both_places_and_nothing_else_changes() {
        let envelope = r#"{"body": "W10=", "n": 12345678901234567890123, "headers": {"id": "\u00e9", "f": 1.10},
            "properties": {"delivery_tag": "t", "priority": 6, "delivery_info": {"exchange": "", "routing_key": "q"}}}"#;
        let marked = String::from_utf8(mark_redelivered(envelope.as_bytes()).unwrap()).unwrap();
        assert!(marked.contains("12345678901234567890123") && marked.contains("1.10") && marked.contains("\\u00e9"));
        let value: serde_json::Value = serde_json::from_str(&marked.replace("12345678901234567890123", "1")).unwrap();
        assert_eq!(value["headers"]["redelivered"], true);
        assert_eq!(value["properties"]["delivery_info"]["redelivered"], true);
        assert_eq!(value["properties"]["delivery_tag"], "t");
        assert!(mark_redelivered(b"[]").is_none());
    }

    #[test]
    fn what_is_put_back_by_hand_is_as_new() {
        let sent = br#"{"body": "W10=", "headers": {"n": 1.10}, "properties": {"priority": 6, "delivery_info": {"exchange": ""}}}"#;
        let raw = RawValue::from_string(String::from_utf8(sent.to_vec()).unwrap()).unwrap();
        let marked = redelivered(&raw).unwrap().0;
        let new: serde_json::Value = serde_json::from_slice(&as_new(&marked).unwrap()).unwrap();
        assert_eq!(new, serde_json::from_slice::<serde_json::Value>(sent).unwrap());
        assert_eq!((priority(&marked), priority(b"[]")), (6, 0));
        assert!(as_new(b"garbage").is_none());
    }

    #[test]
    fn deliveries_are_counted_and_the_priority_is_read() {
        let raw = RawValue::from_string(r#"{"headers": {}, "properties": {"priority": 6}}"#.into()).unwrap();
        let (marked, priority, deliveries) = redelivered(&raw).unwrap();
        assert_eq!((priority, deliveries), (6, 2));
        let again = RawValue::from_string(String::from_utf8(marked).unwrap()).unwrap();
        assert_eq!(redelivered(&again).unwrap().2, 3);
    }

    #[test]
    fn what_is_given_back_keeps_its_count() {
        let count = |envelope: &[u8]| {
            let envelope: serde_json::Value = serde_json::from_slice(envelope).unwrap();
            envelope["headers"][DELIVERIES].as_u64()
        };
        let sent = br#"{"body": "W10=", "headers": {}, "properties": {"delivery_info": {}}}"#;
        let restored = count_delivery(sent).unwrap();
        let given_back = mark_redelivered(&restored).unwrap();
        assert_eq!((count(&restored), count(&given_back)), (Some(2), Some(2)));
        assert_eq!(count(&count_delivery(&given_back).unwrap()), Some(3));
        // One that never was in bad hands is at its first, however often it is given back.
        let given_back = mark_redelivered(&mark_redelivered(sent).unwrap()).unwrap();
        assert_eq!(count(&given_back), Some(1));
        assert_eq!(count(&count_delivery(&given_back).unwrap()), Some(2));
    }

    #[test]
    fn python_workers_do_not_count_and_so_it_was_delivered_twice_at_least() {
        let by_python = br#"{"body": "W10=", "headers": {"redelivered": true}, "properties": {"delivery_info": {"redelivered": true}}}"#;
        for told in [
            &by_python[..],
            br#"{"properties": {"delivery_info": {"redelivered": true}}}"#,
        ] {
            let counted: serde_json::Value = serde_json::from_slice(&count_delivery(told).unwrap()).unwrap();
            assert_eq!(counted["headers"][DELIVERIES], 3);
        }
        for odd in ["-1", "\"x\"", "null", "1.5", "99999999999"] {
            let odd = format!(r#"{{"headers": {{"redelivered": "yes", "{DELIVERIES}": {odd}}}}}"#);
            let counted: serde_json::Value = serde_json::from_slice(&count_delivery(odd.as_bytes()).unwrap()).unwrap();
            assert_eq!(counted["headers"][DELIVERIES], 2, "{odd}");
        }
    }
}
