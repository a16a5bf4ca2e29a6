//! `--metrics-addr`: numbers for Prometheus and answers for whoever looks after the process, over HTTP.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::log::Log;
use super::visits::Visits;
use crate::worker::Watch;

/// Listens at `address`, or at that port of this machine only when it is `:port`.
pub(super) async fn listen(address: &str, log: &Log) -> Result<TcpListener, String> {
    let full = match address.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => address.to_owned(),
    };
    let wrong = |error| format!("--metrics-addr: cannot listen at {full}: {error}");
    let listener = TcpListener::bind(&full).await.map_err(wrong)?;
    let at = listener.local_addr().map_err(wrong)?;
    log.say(format_args!("metrics at http://{at}/metrics"));
    Ok(listener)
}

/// Answers until it is dropped.
pub(super) async fn serve(listener: TcpListener, watch: Watch) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .layer(map_response(last))
        .with_state(watch);
    if let Err(error) = axum::serve(Visits::new(listener), router).await {
        tracing::error!("metrics are not served any more: {error}");
    }
    // The worker goes on without.
    std::future::pending::<()>().await;
}

/// Each connection is for one answer: one that is kept would take a place until it is ended for another.
async fn last(mut answer: Response) -> Response {
    let close = HeaderValue::from_static("close");
    answer.headers_mut().insert(header::CONNECTION, close);
    answer
}

async fn metrics(State(watch): State<Watch>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], watch.metrics())
}

async fn healthz(State(watch): State<Watch>) -> (StatusCode, String) {
    answer(watch.health())
}

async fn readyz(State(watch): State<Watch>) -> (StatusCode, String) {
    answer(watch.readiness())
}

fn answer(state: Result<(), String>) -> (StatusCode, String) {
    match state {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
