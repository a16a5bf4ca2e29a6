//! The control listener: what tests read and reset. Apart from the API, so that the API has nothing of ours in it.

use std::io;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::api::App;

/// Serves `GET /_stats`, `GET /_requests` and `POST /_reset`, or nothing for ever where there is no listener.
pub async fn serve(listener: Option<TcpListener>, app: Arc<App>) -> io::Result<()> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let router = Router::new()
        .route("/_stats", get(report))
        .route("/_requests", get(received))
        .route("/_reset", post(reset))
        .with_state(app);
    axum::serve(listener, router).await
}

async fn report(State(app): State<Arc<App>>) -> Json<Value> {
    let mut report = app.stats.report();
    let (queued, peak_queued) = app.runners.queued();
    if let Value::Object(report) = &mut report {
        report.insert("queued".to_owned(), queued.into());
        report.insert("peak_queued".to_owned(), peak_queued.into());
        if let Value::Object(loads) = app.runners.loads.report() {
            report.extend(loads);
        }
    }
    Json(report)
}

async fn received(State(app): State<Arc<App>>) -> Json<Value> {
    Json(app.stats.received())
}

async fn reset(State(app): State<Arc<App>>) -> StatusCode {
    app.stats.reset();
    app.runners.loads.reset();
    StatusCode::NO_CONTENT
}
