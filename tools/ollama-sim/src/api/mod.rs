//! The HTTP API: routes, and what every handler shares.

mod check;
mod complete;
mod embed;
mod fields;
mod guard;
mod models;
mod openai;
mod pull;
mod reply;
mod request;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};

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
    num_ctx: i64,
    pull_delay: std::time::Duration,
}

impl App {
    pub fn new(backend: Arc<dyn Backend>, args: &Args) -> Arc<Self> {
        let limits = Limits {
            max_queue: args.max_queue,
            keep_alive: args.keep_alive,
            max_loaded: args.max_loaded(),
            vram: args.vram,
            slots: args.slots(),
        };
        Arc::new(Self {
            runners: Runners::new(Arc::clone(&backend), limits),
            stats: Arc::default(),
            num_ctx: i64::from(args.num_ctx),
            pull_delay: args.pull_delay,
            backend,
        })
    }

    fn model(&self, name: &Name) -> Option<Arc<Model>> {
        self.backend.models().into_iter().find(|model| model.name == *name)
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
        .route("/api/embed", post(embed::embed))
        .route("/api/copy", post(models::copy))
        .route("/api/delete", delete(models::delete))
        .route("/api/pull", post(pull::pull))
        .route("/v1/models", get(openai::models))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/embeddings", post(openai::embeddings))
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
