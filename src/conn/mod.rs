//! Redis connections: where a Redis is ([`Endpoint`]) and a connection to it that comes back by itself ([`Link`]).

mod advice;
mod endpoint;
mod errand;
mod error;
mod link;
mod patience;
mod plain;
mod script;
mod secret;
mod sentinel;
mod several;

pub use advice::{advice, advice_on_results, uptime};
pub use endpoint::Endpoint;
pub use errand::Errand;
pub use error::Error;
pub(crate) use error::refusal;
pub(crate) use link::Share;
pub use link::{Link, LinkOptions, Patience, Push};
pub use patience::patiently;
pub use script::invocation;
pub use sentinel::Login;
