//! The shapes that settings have.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ai::HostOptions;
use crate::conn::Login;

/// A list of words, or one text with commas.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum Words {
    One(String),
    Many(Vec<String>),
}

impl Words {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => text
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty())
                .map(Into::into)
                .collect(),
            Self::Many(words) => words,
        }
    }
}

/// Model servers: URLs, or tables that say more.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Hosts {
    One(String),
    Many(Vec<HostEntry>),
}

// By hand, as the next one: of untagged ones serde says only that nothing fits.
impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |error: toml::de::Error| serde::de::Error::custom(error.message());
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(urls) => Ok(Self::One(urls)),
            list => Vec::deserialize(list).map(Self::Many).map_err(wrong),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum HostEntry {
    Url(String),
    Options(Box<HostOptions>),
}

impl<'de> Deserialize<'de> for HostEntry {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(url) => Ok(Self::Url(url)),
            table => match HostOptions::deserialize(table) {
                Ok(options) => Ok(Self::Options(Box::new(options))),
                Err(error) => Err(serde::de::Error::custom(error.message())),
            },
        }
    }
}

impl Hosts {
    pub(super) fn into_vec(self) -> Vec<HostOptions> {
        match self {
            Self::One(text) => Words::One(text)
                .into_vec()
                .iter()
                .map(|url| url.as_str().into())
                .collect(),
            Self::Many(hosts) => hosts
                .into_iter()
                .map(|host| match host {
                    HostEntry::Url(url) => url.as_str().into(),
                    HostEntry::Options(options) => *options,
                })
                .collect(),
        }
    }
}

/// A number of seconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(try_from = "f64", into = "f64")]
pub(super) struct Seconds(pub(super) Duration);

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, String> {
        let duration = Duration::try_from_secs_f64(seconds);
        duration
            .map(Self)
            .map_err(|_| format!("{} is no number of seconds", crate::text::number(seconds)))
    }
}

impl From<Seconds> for f64 {
    fn from(seconds: Seconds) -> Self {
        seconds.0.as_secs_f64()
    }
}

impl Seconds {
    pub(super) fn positive(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

/// kombu's `fanout_prefix`: a text, or whether there is one.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum FanoutPrefix {
    Is(bool),
    Named(String),
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TransportOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) master_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sentinel_kwargs: Option<SentinelLogin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) visibility_timeout: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lease: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) global_keyprefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) priority_steps: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sep: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queue_order_strategy: Option<Order>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fanout_prefix: Option<FanoutPrefix>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fanout_patterns: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_message_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_deliveries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dead_limit: Option<usize>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SentinelLogin {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) password: Option<String>,
}

impl From<SentinelLogin> for Login {
    fn from(SentinelLogin { username, password }: SentinelLogin) -> Self {
        Self { username, password }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    RoundRobin,
    Priority,
    Sorted,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResultTransportOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) master_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sentinel_kwargs: Option<SentinelLogin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) global_keyprefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result_chord_ordered: Option<bool>,
}
