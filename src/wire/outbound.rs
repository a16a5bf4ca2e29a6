//! A task call on its way out: from its options to headers, properties and body (`celery.app.amqp.AMQP.as_task_v2`).

use std::time::Duration;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::envelope::with_body;
use super::{
    CallOptions, Destination, Headers, Json, Kwargs, Outgoing, OutgoingInfo, OutgoingProperties, Routes, TimeLimit,
    python, repr,
};
use crate::clock::{self, Timestamp};

/// Arguments longer than this, in bytes of JSON, are shown cut instead of as Python would show them.
const SHOWN: usize = 64 << 10;

/// One call, with everything decided but where it goes.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Task name.
    pub task: String,
    /// Its id.
    pub id: String,
    /// The first task of the workflow.
    pub root_id: String,
    /// The task that sends it.
    pub parent_id: Option<String>,
    /// Positional arguments.
    pub args: Vec<Json>,
    /// Keyword arguments.
    pub kwargs: Kwargs,
    /// The other options.
    pub options: CallOptions,
    /// Headers that go along with everything a task sends: its trace.
    pub carried: Option<Carried>,
}

/// Headers that a task passes on to all that it sends.
pub type Carried = std::sync::Arc<Map<String, Value>>;

/// A message and where it goes.
#[derive(Debug)]
pub struct Parcel {
    /// Exchange; empty is the default one.
    pub exchange: String,
    /// Routing key; on the default exchange the queue.
    pub routing_key: String,
    /// The queue that was meant, if one was: a sender declares it.
    pub queue: Option<String>,
    /// 0 to 9.
    pub priority: u8,
    /// The envelope.
    pub envelope: Vec<u8>,
}

/// Properties that a sender may set besides those of the call.
const PROPERTIES: [&str; 6] = ["app_id", "cluster_id", "message_id", "timestamp", "type", "user_id"];

/// Options of a route that say where.
const WAY: [&str; 4] = ["queue", "exchange", "exchange_type", "routing_key"];

impl Outbound {
    /// The message, at the time `now`, sent by `origin`, to where the call or its route says.
    ///
    /// # Errors
    /// An argument is no JSON, or a queue is not known where only known ones may be used.
    pub fn parcel(&self, now: Timestamp, origin: &str, routes: &Routes) -> Result<Parcel, serde_json::Error> {
        let to = routes
            .destination(&self.task, &self.options)
            .map_err(serde::ser::Error::custom)?;
        match routes.options(&self.task) {
            // What a route adds besides the way: priority, time limits and whatever else `apply_async` takes.
            Some(added) if added.keys().any(|name| !WAY.contains(&name.as_str())) => {
                let mut routed = self.clone();
                for (name, value) in added {
                    if !WAY.contains(&name.as_str()) && routed.options.get(name).is_none() {
                        routed.options.rest.insert(name.clone(), value.clone());
                    }
                }
                routed.parcel_to(now, origin, to)
            }
            _ => self.parcel_to(now, origin, to),
        }
    }

    fn parcel_to(&self, now: Timestamp, origin: &str, to: Destination) -> Result<Parcel, serde_json::Error> {
        let options = &self.options;
        let expires = options.get("expires").and_then(|expires| time(expires, now));
        let headers = self.headers(now, origin, expires.as_ref());
        let priority = options
            .get("priority")
            .and_then(|priority| priority.parse::<f64>().ok())
            .map_or(0, |priority| priority.clamp(0.0, 9.0) as u8);
        let Destination {
            exchange,
            routing_key,
            queue,
        } = to;
        let reply_to = options.str("reply_to");
        let properties: Map<String, Value> = PROPERTIES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), options.get(name)?.parse().ok()?)))
            .collect();
        let empty = Outgoing {
            body: String::new(),
            content_encoding: "utf-8",
            content_type: "application/json",
            headers,
            properties: OutgoingProperties {
                correlation_id: Some(&self.id),
                reply_to: Some(reply_to.as_deref().unwrap_or_default()),
                expiration: expires.map(|(after, _)| after.as_millis().to_string()),
                delivery_mode: 2,
                delivery_info: OutgoingInfo {
                    exchange: &exchange,
                    routing_key: &routing_key,
                },
                priority,
                body_encoding: "base64",
                delivery_tag: Uuid::new_v4().to_string(),
                extra: properties,
            },
        };
        let envelope = with_body(&empty, &self.body()?)?;
        Ok(Parcel {
            exchange,
            routing_key,
            queue,
            priority,
            envelope,
        })
    }

    /// `[args, kwargs, embed]`. What is text already, and mostly the longest part, is put in and not read again.
    fn body(&self) -> Result<Vec<u8>, serde_json::Error> {
        let options = &self.options;
        let mut body = b"[".to_vec();
        serde_json::to_writer(&mut body, &self.args)?;
        body.push(b',');
        serde_json::to_writer(&mut body, &self.kwargs)?;
        body.extend_from_slice(br#",{"callbacks":"#);
        serde_json::to_writer(&mut body, &(!options.link.is_empty()).then_some(&options.link))?;
        body.extend_from_slice(br#","errbacks":"#);
        serde_json::to_writer(
            &mut body,
            &(!options.link_error.is_empty()).then_some(&options.link_error),
        )?;
        body.extend_from_slice(br#","chain":"#);
        body.extend_from_slice(options.chain.as_ref().map_or("null", super::Rest::get).as_bytes());
        body.extend_from_slice(br#","chord":"#);
        serde_json::to_writer(&mut body, &options.chord)?;
        body.extend_from_slice(b"}]");
        Ok(body)
    }

    fn headers(&self, now: Timestamp, origin: &str, expires: Option<&(Duration, String)>) -> Headers {
        let options = &self.options;
        let parse = |name: &str| options.get(name).and_then(|value| value.parse::<Value>().ok());
        let seconds = |name: &str| {
            let value: f64 = options.get(name)?.parse().ok()?;
            Duration::try_from_secs_f64(value).ok().filter(|limit| !limit.is_zero())
        };
        let eta = match seconds("countdown") {
            Some(pause) => Some(clock::iso(clock::after(now, pause))),
            None => options.get("eta").and_then(python::iso_text),
        };
        let stamped: Option<Vec<String>> = options.get("stamped_headers").and_then(|names| names.parse().ok());
        let stamps = stamped.as_ref().map(|names| {
            names
                .iter()
                .filter_map(|name| Some((name.clone(), parse(name)?)))
                .collect::<Map<String, Value>>()
        });
        let number = |name: &str| {
            options
                .get(name)
                .and_then(|value| value.parse::<u32>().ok())
                .unwrap_or(0)
        };
        let mut headers = Headers {
            lang: None,
            task: self.task.clone(),
            id: self.id.clone(),
            shadow: options.str("shadow"),
            eta,
            expires: expires.map(|(_, at)| at.clone()),
            group: options.str("group_id"),
            group_index: options.get("group_index").and_then(|index| index.parse().ok()),
            retries: number("retries"),
            timelimit: TimeLimit {
                hard: seconds("time_limit"),
                soft: seconds("soft_time_limit"),
            },
            root_id: Some(self.root_id.clone()),
            parent_id: self.parent_id.clone(),
            argsrepr: Some(options.str("argsrepr").unwrap_or_else(|| args_repr(&self.args))),
            kwargsrepr: Some(options.str("kwargsrepr").unwrap_or_else(|| kwargs_repr(&self.kwargs))),
            origin: Some(origin.to_owned()),
            ignore_result: options.get("ignore_result").and_then(|ignore| ignore.parse().ok()),
            replaced_task_nesting: number("replaced_task_nesting"),
            stamped_headers: stamped,
            stamps,
            ..Headers::default()
        };
        if let Some(Value::Object(own)) = parse("headers") {
            headers.extra = own;
        }
        if let Some(carried) = &self.carried {
            headers
                .extra
                .extend(carried.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        headers
    }
}

/// A time that is given as seconds from now or as a date (a text, or as kombu marks one): how long from now, and the
/// date.
fn time(value: &Json, now: Timestamp) -> Option<(Duration, String)> {
    if let Ok(seconds) = value.parse::<f64>() {
        let after = Duration::try_from_secs_f64(seconds.max(0.0)).ok()?;
        return Some((after, clock::iso(clock::after(now, after))));
    }
    let text = python::iso_text(value)?;
    let at = clock::parse_iso(&text).ok()?;
    Some((clock::until(at, now), text))
}

fn args_repr(args: &[Json]) -> String {
    if args.iter().map(|arg| arg.get().len()).sum::<usize>() > SHOWN {
        return "(...)".to_owned();
    }
    let values: Vec<Value> = args.iter().map(|arg| arg.parse().unwrap_or_default()).collect();
    repr::shown_args(&values)
}

fn kwargs_repr(kwargs: &Kwargs) -> String {
    if kwargs.values().map(|value| value.get().len()).sum::<usize>() > SHOWN {
        return "{...}".to_owned();
    }
    let values = kwargs
        .iter()
        .map(|(name, value)| (name.clone(), value.parse().unwrap_or_default()))
        .collect();
    repr::shown_kwargs(&values)
}
