//! What Celery puts on the wire, as types. No I/O, no Redis; no time but to see that a certificate has expired.
//!
//! An *envelope* is what lies in a queue (kombu); decoded it is a *message* (Celery's task protocol 2; protocol 1
//! is turned into it). What is only passed on (arguments, callbacks) stays JSON text, so that it leaves as it came.

mod argument;
mod body;
mod compression;
mod envelope;
mod event;
mod exception;
pub(crate) mod floats;
mod headers;
pub mod json;
mod limits;
mod loose;
mod message;
mod msgpack;
mod outbound;
pub mod pidbox;
mod protocol1;
pub mod python;
mod queues;
mod raw;
mod record;
pub mod redact;
mod rendering;
mod repr;
mod rest;
mod result_format;
mod retry;
mod routes;
mod scan;
mod security;
mod serializer;
mod signature;
mod sixtyfour;
mod state;
mod transcode;
mod yaml;

pub use body::{Arguments, Body, Embed};
pub use compression::{Compression, decompress};
pub(crate) use envelope::headers_alone;
pub use envelope::{DeliveryInfo, Envelope, Properties};
pub(crate) use envelope::{Outgoing, OutgoingInfo, OutgoingProperties};
pub use event::{Event, EventKind, Events, Heard, Lamport};
pub use exception::{Exception, python_modules};
pub use headers::{Headers, TimeLimit};
pub use limits::{DEEPEST, Limits};
pub(crate) use loose::Loose;
pub use message::{DecodeError, Message, Undecodable, decode};
pub use outbound::{Carried, Outbound, Parcel};
pub use queues::{ExchangeType, Queue};
pub use raw::Json;
pub(crate) use raw::Pairs;
pub use record::Record;
pub use repr::{repr, repr_bounded};
pub(crate) use repr::{repr_tuple, shown_args, shown_kwargs};
pub use rest::Rest;
pub use result_format::ResultFormat;
pub use retry::{backoff, counting_envelope, resumed_parcel, retry_envelope};
pub(crate) use routes::fits;
#[cfg(feature = "server")]
pub(crate) use routes::names_first;
pub use routes::{Destination, Routes};
pub use security::Security;
pub use serializer::{Accept, Serializer};
pub use signature::{CallOptions, Chord, Kind, Kwargs, Signature};
pub use state::State;
