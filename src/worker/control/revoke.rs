//! Commands that keep tasks from running: by id, by stamp, with or without ending what runs.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use serde_json::{Map, Value, json};
use tracing::{info, warn};

use super::{Answer, Arguments, ok, short, text_repr};
use crate::broker::Write;
use crate::clock;
use crate::wire;
use crate::worker::consumer::{Consumer, Key};
use crate::worker::outbox::Out;
use crate::worker::request::{Input, State};
use crate::worker::revoke::Id;

/// Ids that wait until they are noted.
const UNTOLD: usize = 200_000;
/// While so many writes wait, only some are added to them at a time.
const TOLD: usize = 512;

impl Consumer {
    pub(super) fn revoke(&mut self, arguments: &Arguments<'_>, terminate: bool) -> Result<Answer, String> {
        let mut ids = arguments.texts("task_id")?;
        let signal = terminate.then(|| signal_number(arguments.get("signal"))).transpose()?;
        let all = ids.len();
        ids.retain(|id| self.revoked.fits(id));
        if ids.len() < all {
            warn!(
                "{} ids are longer than max_name_bytes ({}): no task has them",
                all - ids.len(),
                self.options.limits.name
            );
        }
        let wanted: HashSet<&str> = ids.iter().copied().collect();
        let known = self.keys(|id, _| wanted.contains(id));
        // What is parked comes back, and ends when it is seen to be revoked.
        let parked = self.parked.take_tasks(wanted.iter().copied());
        self.recall(parked);
        let here: HashSet<&str> = known.iter().map(|(_, id)| &**id).collect();
        let now = clock::instant();
        self.untold.reserve_exact(ids.len());
        for id in &ids {
            let revoked = Id::from(*id);
            self.untold.push_back((revoked.clone(), here.contains(id)));
            self.revoked.add(revoked, now);
        }
        self.tell_revoked();
        if let Some(signal) = signal {
            let ended: BTreeSet<&str> = known.iter().map(|(_, id)| &**id).collect();
            let ended: Vec<&str> = ended.into_iter().collect();
            info!("Terminating {} ({signal})", listed(&ended));
            let text = if ended.is_empty() {
                "terminate: tasks unknown".to_owned()
            } else {
                format!("terminate: {}", ended.join(", "))
            };
            self.revoke_keys(&known, Some(signal));
            return ok(text);
        }
        info!("Tasks flagged as revoked: {}", listed(&ids));
        self.revoke_keys(&known, None);
        if !arguments.is_answered {
            return ok("");
        }
        ok(format!("tasks {} flagged as revoked", set_repr(ids.iter().copied())))
    }

    /// Notes some of what is revoked for workers that come later, and writes REVOKED where nobody has started it. All
    /// of 100,000 at once would fill the memory, and hold up what else is to be written.
    pub(in crate::worker) fn tell_revoked(&mut self) {
        if self.untold.len() > UNTOLD {
            let left_out = self.untold.len() - UNTOLD;
            warn!(
                "{left_out} more tasks are revoked than can be noted now: this worker will not run them, a later one may"
            );
            self.untold.truncate(UNTOLD);
        }
        let least = if self.outbox.is_full() { 0 } else { TOLD / 8 };
        let count = TOLD.saturating_sub(self.outbox.backlog()).max(least);
        let count = count.min(self.untold.len());
        if count == 0 {
            return;
        }
        let mut ids = Vec::with_capacity(count);
        for (id, is_here) in self.untold.drain(..count) {
            let id = id.to_string();
            if !is_here {
                self.out.extend(self.scribe.revoked((*id).into()));
            }
            ids.push(id);
        }
        self.out.push(Out::Early(Write::Revoked(ids)));
        if self.untold.is_empty() {
            // What a flood needed.
            self.untold = VecDeque::new();
        }
    }

    pub(super) fn revoke_by_stamps(&mut self, arguments: &Arguments<'_>) -> Result<Answer, String> {
        let headers = stamps(arguments)?;
        let signal = signal_number(arguments.get("signal"))?;
        for (header, values) in &headers {
            for value in one_or_many(values) {
                self.revoked.add_stamp(header, value);
            }
        }
        let shown = wire::repr(&Value::Object(headers.clone()));
        let stamped = self.keys(|_, headers_of| !matches(&headers, headers_of).is_empty());
        if !arguments.flag("terminate") {
            self.revoke_keys(&stamped, None);
            return ok(format!("headers {shown} flagged as revoked, but not terminated"));
        }
        let mut matched: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (key, _) in &stamped {
            if let Some(active) = self.active.get(key)
                && matches!(active.state, State::Running { .. })
            {
                for (header, value) in matches(&headers, &active.request.message.headers) {
                    matched.entry(header).or_default().insert(value);
                }
            }
        }
        self.revoke_keys(&stamped, Some(signal));
        if matched.is_empty() {
            return ok(format!("headers {shown} were not terminated"));
        }
        let matched: Vec<String> = matched
            .iter()
            .map(|(header, values)| format!("{}: {{{}}}", text_repr(header), join(values.iter().map(String::as_str))))
            .collect();
        // What Python shows of its dictionary.
        ok(format!(
            "headers defaultdict(<class 'set'>, {{{}}}) revoked",
            matched.join(", ")
        ))
    }

    /// Requests in this worker; a message may be here twice, so an id may be as well.
    fn keys(&self, wanted: impl Fn(&str, &wire::Headers) -> bool) -> Vec<(Key, std::sync::Arc<str>)> {
        let mut keys: Vec<_> = self
            .active
            .iter()
            .filter(|(_, active)| wanted(&active.request.id, &active.request.message.headers))
            .map(|(key, active)| (*key, active.request.id.clone()))
            .collect();
        keys.sort_unstable();
        keys
    }

    fn revoke_keys(&mut self, keys: &[(Key, std::sync::Arc<str>)], terminate: Option<i32>) {
        for (key, _) in keys {
            self.step(*key, Input::Revoked { terminate });
        }
    }
}

/// `{"header": ["stamp", …]}`, or `["header=stamp", …]` as the celery command sends it.
fn stamps(arguments: &Arguments<'_>) -> Result<Map<String, Value>, String> {
    match arguments.get("headers") {
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(Value::Array(_)) => arguments
            .texts("headers")
            .map_err(|_| "TypeError('headers must be key=value')")?
            .into_iter()
            .map(|pair| {
                let (header, rest) = pair.split_once('=').ok_or("IndexError('list index out of range')")?;
                let value = rest.split('=').next().unwrap_or_default();
                Ok((header.to_owned(), json!(value)))
            })
            .collect(),
        _ => Err("TypeError('headers must be an object or a list of key=value')".into()),
    }
}

fn one_or_many(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        one => std::slice::from_ref(one),
    }
}

/// The stamps of a task that are among the wanted ones, with their header, in Python's repr.
fn matches(wanted: &Map<String, Value>, headers: &wire::Headers) -> Vec<(String, String)> {
    let Some(stamps) = &headers.stamps else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (header, values) in wanted {
        let own = stamps
            .get(header)
            .filter(|own| !own.is_null())
            .map_or(&[][..], one_or_many);
        let same = own.iter().filter(|own| one_or_many(values).contains(own));
        found.extend(same.map(|value| (header.clone(), wire::repr(value))));
    }
    found
}

fn set_repr<'a>(items: impl ExactSizeIterator<Item = &'a str>) -> String {
    if items.len() == 0 {
        return "set()".to_owned();
    }
    let mut set = String::new();
    for item in items {
        set.push_str(if set.is_empty() { "{" } else { ", " });
        set.push_str(&text_repr(item));
    }
    set + "}"
}

/// For the log: not more than a person reads, and nothing that could be taken for another line.
fn listed(ids: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = ids.iter().take(SHOWN).map(|id| short(id.as_ref())).collect();
    match ids.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn join<'a>(items: impl Iterator<Item = &'a str>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

/// `SIGTERM`, `TERM`, `15`; Celery's default is SIGTERM. The signal itself is not sent: the run is ended exactly, and
/// the number is told to the monitors.
fn signal_number(signal: Option<&Value>) -> Result<i32, String> {
    let name = match signal {
        None => return Ok(15),
        Some(Value::Number(number)) => {
            let number = number.as_i64().and_then(|number| i32::try_from(number).ok());
            return number.ok_or_else(|| "ValueError('signal number out of range')".into());
        }
        Some(Value::String(name)) if !name.chars().any(char::is_lowercase) => name,
        Some(_) => return Err("TypeError('signal name must be uppercase string.')".into()),
    };
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let full = format!("SIG{}", name.trim_start_matches("SIG"));
    full.parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| {
            format!(
                "AttributeError({})",
                text_repr(&format!("module 'signal' has no attribute '{full}'"))
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_185_signals_are_named_or_numbered() {
        let number = |value: Value| signal_number(Some(&value));
        assert_eq!(signal_number(None), Ok(15));
        assert_eq!(number(json!("SIGKILL")), Ok(9));
        assert_eq!(number(json!("KILL")), Ok(9));
        assert_eq!(number(json!("9")), Ok(9));
        assert_eq!(number(json!(2)), Ok(2));
        assert_eq!(
            number(json!("SIGNOPE")).unwrap_err(),
            "AttributeError(\"module 'signal' has no attribute 'SIGNOPE'\")"
        );
        assert!(number(json!("kill")).is_err() && number(json!([])).is_err() && number(json!(1e300)).is_err());
    }

    #[test]
    fn p_186_stamps_come_as_an_object_or_as_pairs() {
        let given = |value: Value| {
            let given = serde_json::from_value(json!({"headers": value})).unwrap();
            stamps(&Arguments {
                map: Some(&given),
                is_answered: true,
            })
        };
        assert_eq!(
            given(json!(["a=b", "c=d=e"])).unwrap(),
            *json!({"a": "b", "c": "d"}).as_object().unwrap()
        );
        assert_eq!(
            given(json!(["a"])).unwrap_err(),
            "IndexError('list index out of range')"
        );
        assert!(given(json!("a=b")).is_err());
        let headers = wire::Headers {
            stamps: json!({"a": ["x", "y"], "b": 1, "c": null}).as_object().cloned(),
            ..wire::Headers::default()
        };
        let found = |wanted: Value| matches(wanted.as_object().unwrap(), &headers);
        assert_eq!(found(json!({"a": "y"})), [("a".to_owned(), "'y'".to_owned())]);
        assert_eq!(found(json!({"b": [1, 2]})), [("b".to_owned(), "1".to_owned())]);
        assert!(found(json!({"a": "z", "c": null, "d": "x"})).is_empty());
    }
}
