//! What senders use: send tasks, wait for their results, ask and tell workers.
//!
//! ```no_run
//! use std::time::Duration;
//! use orchestra::client::{Call, Client};
//!
//! # async fn example() -> Result<(), orchestra::client::Error> {
//! let client = Client::connect("redis://localhost:6379/0").await?;
//! let pending = client.send(Call::new("math.add").arg(2).arg(3)).await?;
//! let sum: i64 = pending.get(Duration::from_secs(10)).await?;
//! # Ok(()) }
//! ```

mod applied;
mod batch;
mod call;
mod control;
mod error;
mod events;
mod hearing;
mod notes;
mod results;
mod send;
mod sending;
mod sent;

pub use crate::wire::Signature;
pub use applied::Applied;
pub use call::Call;
pub use error::Error;
pub use events::Events;
pub use notes::Resumption;
pub use results::{Pending, outcome};
pub use sending::Sending;

use std::sync::Arc;

use crate::backend::{self, Backend};
use crate::broker::{self, Broker};
use crate::canvas::{Priorities, Reach};
use crate::conn::{Endpoint, Link, LinkOptions};
use crate::wire::{Lamport, Routes, Security};
use results::Results;
pub(crate) use send::{Message, group_write};
pub(crate) use sent::SentEvents;

/// A producer. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    broker: Broker,
    backend: Option<Backend>,
    results: Arc<Results>,
    signer: Option<Arc<Security>>,
    routes: Arc<Routes>,
    sent_events: Option<Arc<SentEvents>>,
    priorities: Priorities,
    reach: Reach,
    /// Without `.pidbox`.
    control_exchange: Arc<str>,
}

impl Client {
    /// Connects to a broker that is the result backend as well.
    ///
    /// # Errors
    /// The URL is wrong, or the server cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::connect_to(url, Some(url)).await
    }

    /// Connects to a broker and, if results are wanted, to a result backend.
    ///
    /// # Errors
    /// A URL is wrong, or a server cannot be reached.
    pub async fn connect_to(broker: &str, backend: Option<&str>) -> Result<Self, Error> {
        let broker = Broker::connect(&Endpoint::parse(broker)?, broker::Options::default()).await?;
        let backend = match backend {
            None => None,
            Some(url) => {
                let link = Link::connect(&Endpoint::parse(url)?, LinkOptions::default()).await?;
                Some(Backend::new(link, backend::Options::default()).await?)
            }
        };
        Ok(Self::new(broker, backend))
    }

    /// A client on connections that exist already.
    pub fn new(broker: Broker, backend: Option<Backend>) -> Self {
        Self {
            broker,
            backend,
            results: Arc::default(),
            signer: None,
            routes: Arc::default(),
            sent_events: None,
            priorities: Priorities::default(),
            reach: Reach::default(),
            control_exchange: sending::CONTROL_EXCHANGE.into(),
        }
    }

    /// Sends as the settings say: what of them concerns every sender, in one.
    #[must_use]
    pub fn sending(self, sending: Sending) -> Self {
        let client = self
            .signing(sending.signer)
            .routed(sending.routes)
            .with_priorities(sending.priorities)
            .reaching(sending.reach)
            .controlling(sending.control_exchange);
        match sending.sent_events {
            Some(exchange) => client.with_sent_events(exchange),
            None => client,
        }
    }

    /// Tells and asks workers at that exchange (`control_exchange`), without `.pidbox`; mostly `celery`.
    #[must_use]
    pub fn controlling(mut self, exchange: impl Into<Arc<str>>) -> Self {
        self.control_exchange = exchange.into();
        self
    }

    /// Sends tasks to the queues that routes name, where a call names none (`task_routes`).
    #[must_use]
    pub fn routed(mut self, routes: Routes) -> Self {
        self.routes = Arc::new(routes);
        self
    }

    /// Gives a priority to what has none (`task_default_priority`, `task_inherit_parent_priority`).
    #[must_use]
    pub fn with_priorities(mut self, priorities: Priorities) -> Self {
        self.priorities = priorities;
        self
    }

    /// With error callbacks of chains that reach so far into the chords in them
    /// (`task_allow_error_cb_on_chord_header`).
    #[must_use]
    pub fn reaching(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// Signs what it sends, or with `None` does not (`task_serializer = "auth"`).
    #[must_use]
    pub fn signing(mut self, signer: Option<Arc<Security>>) -> Self {
        self.signer = signer;
        self
    }

    /// Tells monitors of every task that is sent (`task_send_sent_event`): without it Flower knows of a task when a
    /// worker has it. The exchange is `event_exchange`, mostly `celeryev`.
    #[must_use]
    pub fn with_sent_events(self, exchange: impl Into<String>) -> Self {
        let events = SentEvents {
            exchange: exchange.into(),
            sender: self.origin().to_owned(),
            clock: Lamport::default(),
        };
        self.telling(Some(events))
    }

    pub(crate) fn telling(mut self, events: Option<SentEvents>) -> Self {
        self.sent_events = events.map(Arc::new);
        self
    }
}

impl Client {
    /// The result backend, if there is one.
    pub(crate) fn backend(&self) -> Option<&Backend> {
        self.backend.as_ref()
    }

    /// The number of the connection to the broker; see [`Broker::connection`].
    pub(crate) fn connection(&self) -> u64 {
        self.broker.connection()
    }

    /// What this client calls itself where somebody asks for results.
    pub(crate) fn oid(&self) -> &str {
        self.results.oid()
    }

    /// What tells monitors of what is sent, if they are to be told.
    pub(crate) fn sent_events(&self) -> Option<&SentEvents> {
        self.sent_events.as_deref()
    }

    /// What this process calls itself where it sends.
    pub(crate) fn origin(&self) -> &str {
        self.results.origin()
    }
}
