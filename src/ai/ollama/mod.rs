//! The clients of model servers: Ollama's HTTP API, and OpenAI's. The only place that speaks HTTP to a model.

mod answer;
mod check;
mod client;
mod embed;
mod fault;
mod frame;
mod http;
mod models;
mod openai;
mod request;
mod server;

pub use answer::{Answer, Failed, Limited, Route, Stood, Timing, Usage};
pub use client::Ollama;
pub(crate) use client::Piece;
pub use embed::{Embedded, Embedding};
pub use fault::{Class, Fault};
pub use frame::{Frame, Lines, Message, TooLong};
pub use models::{Installed, Loaded, Progress};
pub use openai::Chunks;
pub use request::{Kind, Request};
pub use server::{Server, Speaks};
