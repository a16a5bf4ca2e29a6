//! The control listener: what tests read and reset. Apart from the API, so that the API has nothing of ours in it.

use std::io;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::stats::Stats;

/// Serves `GET /_stats`, `GET /_requests` and `POST /_reset`, or nothing for ever where there is no listener.
pub async fn serve(listener: Option<TcpListener>, stats: Arc<Stats>) -> io::Result<()> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let router = Router::new()
        .route("/_stats", get(report))
        .route("/_requests", get(received))
        .route("/_reset", post(reset))
        .with_state(stats);
    axum::serve(listener, router).await
}

async fn report(State(stats): State<Arc<Stats>>) -> Json<Value> {
    Json(stats.report())
}

async fn received(State(stats): State<Arc<Stats>>) -> Json<Value> {
    Json(stats.received())
}

async fn reset(State(stats): State<Arc<Stats>>) -> StatusCode {
    stats.reset();
    StatusCode::NO_CONTENT
}
