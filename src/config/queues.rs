//! Queues and routes in the forms that Celery's settings have.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::values::{Seconds, Words};
use crate::wire::{ExchangeType, Json, Kwargs, Queue, Routes, names_first};

/// `task_queues`: names, a table by name, or a list of both.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum Queues {
    Words(Words),
    Table(BTreeMap<String, QueueOptions>),
    List(Vec<Named>),
}

/// An element of a list of queues.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum Named {
    Name(String),
    Table {
        name: String,
        #[serde(flatten)]
        options: QueueOptions,
    },
}

/// What Celery's dict form has for a queue; what RabbitMQ alone has use for is taken and left alone.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct QueueOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routing_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binding_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_priority: Option<u8>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    queue_arguments: BTreeMap<String, toml::Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, toml::Value>,
}

/// What kombu's queues have besides, for RabbitMQ.
const UNUSED: [&str; 15] = [
    "alias",
    "auto_delete",
    "binding_arguments",
    "consumer_arguments",
    "delivery_mode",
    "durable",
    "exchange_auto_delete",
    "exchange_durable",
    "exclusive",
    "max_length",
    "max_length_bytes",
    "message_ttl",
    "no_ack",
    "no_declare",
    "queue_durable",
];

impl Queues {
    /// The names, in their order, and what is known of those that have more than one.
    ///
    /// # Errors
    /// A queue is described by what makes no sense.
    pub(super) fn read(&self) -> Result<(Vec<String>, Vec<Queue>), String> {
        let described: Vec<(String, Option<QueueOptions>)> = match self {
            Self::Words(words) => words.clone().into_vec().into_iter().map(|name| (name, None)).collect(),
            Self::Table(table) => table
                .iter()
                .map(|(name, options)| (name.clone(), Some(options.clone())))
                .collect(),
            Self::List(list) => list
                .iter()
                .map(|element| match element {
                    Named::Name(name) => (name.clone(), None),
                    Named::Table { name, options } => (name.clone(), Some(options.clone())),
                })
                .collect(),
        };
        let mut queues = Vec::new();
        for (name, options) in &described {
            let options = options.clone().unwrap_or_default();
            queues.push(
                options
                    .queue(name)
                    .map_err(|error| format!("task_queues.{name}: {error}"))?,
            );
        }
        Ok((described.into_iter().map(|(name, _)| name).collect(), queues))
    }
}

impl QueueOptions {
    fn queue(self, name: &str) -> Result<Queue, String> {
        let mut queue = Queue::new(name);
        if let Some(unknown) = self.rest.keys().find(|name| !UNUSED.contains(&name.as_str())) {
            return Err(format!(
                "a queue has no option {unknown:?}; it has exchange, exchange_type, routing_key, expires, max_priority and \
                 queue_arguments"
            ));
        }
        if let Some(exchange_type) = &self.exchange_type {
            queue.exchange_type = ExchangeType::parse(exchange_type)?;
        }
        // Celery's `task_default_routing_key`, for exchanges that are named.
        if self.exchange.is_some() || queue.is_broadcast() {
            queue.routing_key = "celery".to_owned();
        }
        queue.exchange = self.exchange.unwrap_or(queue.exchange);
        queue.routing_key = self.routing_key.or(self.binding_key).unwrap_or(queue.routing_key);
        if queue.is_broadcast() && queue.exchange.contains('/') {
            return Err("the exchange of a fanout queue has no / in its name".into());
        }
        let argument = |name: &str| self.queue_arguments.get(name).and_then(toml::Value::as_integer);
        let milliseconds = argument("x-expires").and_then(|number| u64::try_from(number).ok());
        queue.expires = self
            .expires
            .map(|seconds| seconds.0)
            .or(milliseconds.map(Duration::from_millis));
        if queue.expires.is_some_and(|expires| expires < Duration::from_millis(1)) {
            return Err("expires must be more than nothing".into());
        }
        let priority = argument("x-max-priority").and_then(|number| u8::try_from(number).ok());
        queue.max_priority = self.max_priority.or(priority);
        Ok(queue)
    }
}

/// `task_routes`: a table by name or pattern, a list of pairs, or a list of routers, which are asked in its order:
/// tables, and lists of pairs. Each of them gives a whole name before a pattern.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct RouteTable(Vec<(String, Route)>);

/// Where tasks go: the name of a queue, or options of `apply_async`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Route {
    Queue(String),
    Options(BTreeMap<String, toml::Value>),
}

impl<'de> Deserialize<'de> for RouteTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Table(toml::Table),
            List(Vec<Element>),
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Element {
            Pair((String, Route)),
            Table(toml::Table),
            Pairs(Vec<(String, Route)>),
        }
        let pairs = |table: toml::Table| {
            let mut pairs = Vec::with_capacity(table.len());
            for (pattern, route) in table {
                let route = Route::deserialize(route);
                let route = route.map_err(|_| D::Error::custom(format!("{pattern:?} has no queue and no options")))?;
                pairs.push((pattern, route));
            }
            // A table of TOML has no order: of patterns that fit the longest is meant.
            pairs.sort_by_key(|(pattern, _): &(String, Route)| std::cmp::Reverse(pattern.len()));
            names_first(&mut pairs);
            Ok(pairs)
        };
        let form = Form::deserialize(deserializer)
            .map_err(|_| D::Error::custom("expected a table of patterns, or a list of pairs of pattern and route"))?;
        let routes = match form {
            Form::Table(table) => pairs(table)?,
            Form::List(list) => {
                let (mut routes, mut loose) = (Vec::new(), Vec::new());
                // Pairs that stand beside each other are one router.
                let mut end = |loose: &mut Vec<(String, Route)>, router: &mut Vec<(String, Route)>| {
                    names_first(loose);
                    names_first(router);
                    routes.append(loose);
                    routes.append(router);
                };
                for element in list {
                    match element {
                        Element::Pair(pair) => loose.push(pair),
                        Element::Table(table) => end(&mut loose, &mut pairs(table)?),
                        Element::Pairs(mut pairs) => end(&mut loose, &mut pairs),
                    }
                }
                end(&mut loose, &mut Vec::new());
                routes
            }
        };
        Ok(Self(routes))
    }
}

impl RouteTable {
    /// # Errors
    /// An option of a route cannot be sent.
    pub(super) fn read(&self) -> Result<Routes, String> {
        let mut routes = Vec::with_capacity(self.0.len());
        for (pattern, route) in &self.0 {
            let mut options = Kwargs::new();
            match route {
                Route::Queue(queue) => drop(options.insert("queue".into(), Json::string(queue))),
                Route::Options(given) => {
                    for (name, value) in given {
                        let value =
                            Json::new(value).map_err(|error| format!("task_routes.{pattern}.{name}: {error}"))?;
                        options.insert(name.clone(), value);
                    }
                }
            }
            if options.get("queue").is_some_and(|queue| queue.as_str().is_none()) {
                return Err(format!("task_routes.{pattern}.queue: expected the name of a queue"));
            }
            routes.push((pattern.clone(), options));
        }
        Ok(Routes::with_options(routes))
    }
}
