//! Redis connections: where a Redis is ([`Endpoint`]) and a connection to it that comes back by itself ([`Link`]).

mod endpoint;
mod error;
mod link;
mod script;
mod sentinel;
mod several;

pub use endpoint::Endpoint;
pub use error::Error;
pub use link::{Link, LinkOptions, Patience, Push};
pub use script::invocation;
pub use sentinel::Login;
