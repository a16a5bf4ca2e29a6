//! The headers of a task message (protocol 2, `celery.app.amqp.AMQP.as_task_v2`).

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::envelope::Text;

/// `timelimit`: `[hard, soft]` in seconds (hard first, whatever Celery's own page says).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimeLimit {
    /// After this the run is ended.
    pub hard: Option<Duration>,
    /// After this the run is asked to end.
    pub soft: Option<Duration>,
}

/// Everything Celery says about a task outside its body. Unknown headers are kept in `extra` and travel on with a
/// retry, as Python workers do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers {
    /// The language of the sender; Python workers ignore it.
    pub lang: Option<String>,
    /// The task's name. Its presence makes the message protocol 2.
    pub task: String,
    /// The task's id.
    pub id: String,
    /// A name to show instead of `task`.
    pub shadow: Option<String>,
    /// Not before; ISO-8601, naive is UTC.
    pub eta: Option<String>,
    /// Not after; ISO-8601, naive is UTC.
    pub expires: Option<String>,
    /// The group the task belongs to.
    pub group: Option<String>,
    /// Its place in the group.
    pub group_index: Option<i64>,
    /// How often it was retried.
    pub retries: u32,
    /// Limits of this message, which override the task's.
    pub timelimit: TimeLimit,
    /// The first task of the workflow.
    pub root_id: Option<String>,
    /// The task that sent this one.
    pub parent_id: Option<String>,
    /// Python `repr` of the positional arguments, for logs and events.
    pub argsrepr: Option<String>,
    /// Python `repr` of the keyword arguments.
    pub kwargsrepr: Option<String>,
    /// The sender, `gen<pid>@<host>`.
    pub origin: Option<String>,
    /// Store no result; `None` leaves it to the task's own option.
    pub ignore_result: Option<bool>,
    /// Grows with each `replace()`.
    pub replaced_task_nesting: u32,
    /// Names of the stamps.
    pub stamped_headers: Option<Vec<String>>,
    /// Values of the stamps.
    pub stamps: Option<Map<String, Value>>,
    /// Mime type of the body's compression.
    pub compression: Option<String>,
    /// Set by whoever put the message back.
    pub redelivered: bool,
    /// All other headers.
    pub extra: Map<String, Value>,
}

impl Headers {
    /// What is shown to people: the shadow name if there is one.
    pub fn shown_name(&self) -> &str {
        self.shadow.as_deref().unwrap_or(&self.task)
    }

    /// The id of the workflow's first task; a lone task is its own root.
    pub fn root(&self) -> &str {
        self.root_id.as_deref().unwrap_or(&self.id)
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeadersVisitor)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Headers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of task headers")
    }

    // By hand rather than `flatten`, which would buffer every header: this runs once for every message.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
        let mut headers = Headers::default();
        while let Some(Text(key)) = map.next_key()? {
            match &*key {
                "lang" => headers.lang = text(&mut map, "lang")?,
                "task" => headers.task = text(&mut map, "task")?.unwrap_or_default(),
                "id" => headers.id = text(&mut map, "id")?.unwrap_or_default(),
                "shadow" => headers.shadow = said(&mut map, "shadow")?,
                "eta" => headers.eta = text(&mut map, "eta")?,
                "expires" => headers.expires = text(&mut map, "expires")?,
                "group" => headers.group = said(&mut map, "group")?,
                "group_index" => headers.group_index = value(&mut map, "group_index")?,
                "retries" => headers.retries = value(&mut map, "retries")?.unwrap_or(0),
                "timelimit" => headers.timelimit = time_limit(value(&mut map, "timelimit")?)?,
                "root_id" => headers.root_id = said(&mut map, "root_id")?,
                "parent_id" => headers.parent_id = said(&mut map, "parent_id")?,
                "argsrepr" => headers.argsrepr = text(&mut map, "argsrepr")?,
                "kwargsrepr" => headers.kwargsrepr = text(&mut map, "kwargsrepr")?,
                "origin" => headers.origin = text(&mut map, "origin")?,
                "ignore_result" => headers.ignore_result = value(&mut map, "ignore_result")?,
                "replaced_task_nesting" => {
                    headers.replaced_task_nesting = value(&mut map, "replaced_task_nesting")?.unwrap_or(0);
                }
                "stamped_headers" => headers.stamped_headers = value(&mut map, "stamped_headers")?,
                "stamps" => headers.stamps = value(&mut map, "stamps")?,
                "compression" => headers.compression = said(&mut map, "compression")?,
                "redelivered" => headers.redelivered = value(&mut map, "redelivered")?.unwrap_or(false),
                _ => {
                    let other = map.next_value()?;
                    headers.extra.insert(key.into_owned(), other);
                }
            }
        }
        Ok(headers)
    }
}

fn value<'de, A: MapAccess<'de>, T: Deserialize<'de>>(map: &mut A, name: &str) -> Result<Option<T>, A::Error> {
    map.next_value::<Option<T>>()
        .map_err(|error| de::Error::custom(format_args!("header {name}: {error}")))
}

fn text<'de, A: MapAccess<'de>>(map: &mut A, name: &str) -> Result<Option<String>, A::Error> {
    value(map, name)
}

/// A text where Python asks whether there is one: an empty one is none.
fn said<'de, A: MapAccess<'de>>(map: &mut A, name: &str) -> Result<Option<String>, A::Error> {
    Ok(text(map, name)?.filter(|text| !text.is_empty()))
}

fn time_limit<E: de::Error>(raw: Option<Vec<Option<f64>>>) -> Result<TimeLimit, E> {
    let Some(raw) = raw.filter(|raw| !raw.is_empty()) else {
        return Ok(TimeLimit::default());
    };
    let [hard, soft] = raw[..] else {
        return Err(E::custom("header timelimit: not a pair [hard, soft]"));
    };
    let seconds = |value: Option<f64>| -> Result<Option<Duration>, E> {
        match value {
            // Python tests `if time_limit`, so 0 means none.
            None | Some(0.0) => Ok(None),
            Some(value) => Duration::try_from_secs_f64(value)
                .map(Some)
                .map_err(|_| E::custom(format_args!("header timelimit: {value:e} is no number of seconds"))),
        }
    };
    Ok(TimeLimit {
        hard: seconds(hard)?,
        soft: seconds(soft)?,
    })
}

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("lang", self.lang.as_deref().unwrap_or("rust"))?;
        map.serialize_entry("task", &self.task)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("shadow", &self.shadow)?;
        map.serialize_entry("eta", &self.eta)?;
        map.serialize_entry("expires", &self.expires)?;
        map.serialize_entry("group", &self.group)?;
        map.serialize_entry("group_index", &self.group_index)?;
        map.serialize_entry("retries", &self.retries)?;
        map.serialize_entry(
            "timelimit",
            &[seconds(self.timelimit.hard), seconds(self.timelimit.soft)],
        )?;
        map.serialize_entry("root_id", &self.root_id)?;
        map.serialize_entry("parent_id", &self.parent_id)?;
        map.serialize_entry("argsrepr", &self.argsrepr)?;
        map.serialize_entry("kwargsrepr", &self.kwargsrepr)?;
        map.serialize_entry("origin", &self.origin)?;
        map.serialize_entry("ignore_result", &self.ignore_result)?;
        map.serialize_entry("replaced_task_nesting", &self.replaced_task_nesting)?;
        map.serialize_entry("stamped_headers", &self.stamped_headers)?;
        map.serialize_entry("stamps", self.stamps.as_ref().unwrap_or(&Map::new()))?;
        if let Some(compression) = &self.compression {
            map.serialize_entry("compression", compression)?;
        }
        if self.redelivered {
            map.serialize_entry("redelivered", &true)?;
        }
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn p_057_unknown_headers_are_kept() {
        let headers: Headers = serde_json::from_value(json!({"task": "t", "id": "1", "x-mine": {"a": [1]}})).unwrap();
        let again = serde_json::to_value(&headers).unwrap();
        assert_eq!(again["x-mine"], json!({"a": [1]}));
    }

    #[test]
    fn p_093_timelimit_is_hard_then_soft_and_zero_is_none() {
        let parse = |limit: Value| {
            serde_json::from_value::<Headers>(json!({"task": "t", "id": "1", "timelimit": limit}))
                .map(|headers| headers.timelimit)
        };
        let limit = parse(json!([3.5, 1])).unwrap();
        assert_eq!(limit.hard, Some(Duration::from_millis(3500)));
        assert_eq!(limit.soft, Some(Duration::from_secs(1)));
        assert_eq!(parse(json!([null, 0])).unwrap(), TimeLimit::default());
        assert_eq!(parse(json!([])).unwrap(), TimeLimit::default());
        assert!(parse(json!(["5", null])).is_err());
        assert!(parse(json!([1])).is_err());
        assert!(parse(json!([-1, null])).is_err());
        let digits: Value = serde_json::from_str(&format!("[{}, null]", "9".repeat(300))).unwrap();
        let error = parse(digits).unwrap_err().to_string();
        assert_eq!(error, "header timelimit: 1e300 is no number of seconds");
    }

    #[test]
    fn an_empty_text_is_none_where_python_takes_it_for_none() {
        let empty = json!({"task": "t", "id": "1", "shadow": "", "group": "", "root_id": "", "parent_id": "", "compression": ""});
        let headers: Headers = serde_json::from_value(empty).unwrap();
        let plain: Headers = serde_json::from_value(json!({"task": "t", "id": "1"})).unwrap();
        assert_eq!(headers, plain);
        assert_eq!((headers.shown_name(), headers.root()), ("t", "1"));
    }

    #[test]
    fn a_header_of_the_wrong_type_is_named() {
        let error = serde_json::from_value::<Headers>(json!({"task": "t", "id": {}}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("header id"), "{error}");
    }
}
