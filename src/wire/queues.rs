//! Queues as `task_queues` describes them, and where what is sent to one goes (`celery.app.amqp`).

use std::time::Duration;

/// What an exchange does with a routing key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExchangeType {
    /// Queues that are bound with that key.
    #[default]
    Direct,
    /// Queues whose pattern fits it.
    Topic,
    /// Everybody who listens: nothing is kept for those who do not.
    Fanout,
}

impl ExchangeType {
    /// By Celery's name.
    ///
    /// # Errors
    /// There is no such type.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "direct" => Ok(Self::Direct),
            "topic" => Ok(Self::Topic),
            "fanout" => Ok(Self::Fanout),
            other => Err(format!(
                "exchange_type {other:?} is not one of direct, topic and fanout"
            )),
        }
    }

    /// Celery's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Topic => "topic",
            Self::Fanout => "fanout",
        }
    }
}

/// A queue and how it is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The exchange it is bound to.
    pub exchange: String,
    /// What that exchange does.
    pub exchange_type: ExchangeType,
    /// With which key, or pattern.
    pub routing_key: String,
    /// After that long without a new message it is gone, with what is in it (`x-expires`).
    pub expires: Option<Duration>,
    /// `x-max-priority`, which Redis has no use for: priorities are there anyway.
    pub max_priority: Option<u8>,
}

impl Queue {
    /// One that is bound to the direct exchange of its own name, as Celery makes those it is not told about.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            exchange: name.clone(),
            exchange_type: ExchangeType::Direct,
            routing_key: name.clone(),
            name,
            expires: None,
            max_priority: None,
        }
    }

    /// Whether it is only a name for what is told to everybody.
    pub fn is_broadcast(&self) -> bool {
        self.exchange_type == ExchangeType::Fanout
    }
}
