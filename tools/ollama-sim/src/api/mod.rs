//! The HTTP API: routes, and what every handler shares.

mod check;
mod complete;
mod fields;
mod guard;
mod models;
mod reply;
mod request;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use crate::backend::{Backend, Model};
use crate::cli::Args;
use crate::error::Error;
use crate::names::Name;
use crate::runners::{Limits, Runners};
use crate::stats::Stats;

/// The state of the front.
pub struct App {
    backend: Arc<dyn Backend>,
    pub runners: Arc<Runners>,
    pub stats: Arc<Stats>,
    slots: Slots,
    num_ctx: i64,
}

/// Places of the runners, first come first served, without a limit on who waits.
struct Slots(Option<Arc<Semaphore>>);

impl App {
    pub fn new(backend: Arc<dyn Backend>, args: &Args) -> Arc<Self> {
        let limits = Limits {
            max_queue: args.max_queue,
            keep_alive: args.keep_alive,
        };
        Arc::new(Self {
            runners: Runners::new(Arc::clone(&backend), limits),
            stats: Arc::default(),
            slots: Slots(args.slots().map(|slots| Arc::new(Semaphore::new(slots)))),
            num_ctx: i64::from(args.num_ctx),
            backend,
        })
    }

    fn model(&self, name: &Name) -> Option<Arc<Model>> {
        self.backend.models().iter().find(|model| model.name == *name).cloned()
    }
}

/// The whole API, listening on `address`.
pub fn router(app: Arc<App>, address: SocketAddr) -> Router {
    Router::new()
        .route("/", get(models::root))
        .route("/api/version", get(models::version))
        .route("/api/status", get(models::status))
        .route("/api/tags", get(models::tags))
        .route("/api/show", post(models::show))
        .route("/api/ps", get(models::ps))
        .route("/api/generate", post(complete::generate))
        .route("/api/chat", post(complete::chat))
        .with_state(app)
        .fallback(async || plain(StatusCode::NOT_FOUND, "404 page not found"))
        .method_not_allowed_fallback(async || plain(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed"))
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(guard::Guard::new(address), guard::check))
}

fn plain(status: StatusCode, text: &'static str) -> impl IntoResponse {
    (status, [("content-type", "text/plain")], text)
}

fn not_found(model: &str) -> Error {
    Error::new(404, format!("model '{model}' not found"))
}
