//! The client of Ollama's HTTP API. The only place that speaks HTTP to a model.

mod answer;
mod check;
mod client;
mod fault;
mod frame;
mod request;

pub use answer::{Answer, Timing, Usage};
pub use client::Ollama;
pub(crate) use client::Piece;
pub use fault::{Class, Fault};
pub use frame::{Frame, Lines, Message, TooLong};
pub use request::{Kind, Request};
