//! `POST /api/pull`: a download, as the script plays it. Whatever goes wrong after the first line is a line under 200.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::fields::{self, Fields};
use super::{App, reply};
use crate::error::Error;
use crate::frames::json_bytes;
use crate::names::Name;

pub async fn pull(State(app): State<Arc<App>>, body: Bytes) -> Response {
    match wanted(&body) {
        Ok(name) => {
            let lines = lines(app, name);
            ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
        }
        Err(error) => reply::refusal(&error),
    }
}

fn wanted(body: &[u8]) -> Result<Name, Error> {
    let body = fields::parse(body)?;
    let fields = Fields::new(&body, "PullRequest")?;
    let written = match fields.string("model")? {
        "" => fields.string("name")?,
        model => model,
    };
    if written.is_empty() {
        return Err(Error::bad_request("model is required"));
    }
    Name::parse(written).ok_or_else(|| Error::bad_request("invalid model name"))
}

/// The progress goes back once, and lacks a field once, as that of a real download may.
fn lines(app: Arc<App>, name: Name) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let pause = app.pull_delay / 8;
    let layer = |completed: Option<u64>| {
        let mut line = json!({ "status": "pulling 0123456789ab", "digest": "sha256:0123456789ab", "total": 1000 });
        if let Some(completed) = completed {
            line["completed"] = completed.into();
        }
        line
    };
    let mut steps = vec![json!({ "status": "pulling manifest" })];
    steps.extend([None, Some(300), Some(100), Some(700), Some(1000)].map(layer));
    steps.push(json!({ "status": "verifying sha256 digest" }));
    steps.push(json!({ "status": "writing manifest" }));
    stream::unfold(Some(steps.into_iter()), move |steps| {
        let (app, name) = (Arc::clone(&app), name.clone());
        async move {
            let mut steps = steps?;
            let line = match steps.next() {
                Some(line) => {
                    wait(pause).await;
                    (line, Some(steps))
                }
                None => (last(&app, &name), None),
            };
            let (line, rest) = line;
            let mut bytes = json_bytes(&line);
            bytes.push(b'\n');
            Some((Ok(bytes.into()), rest))
        }
    })
}

/// An unknown name is known as such only at the end here; the real server says so after its first line.
fn last(app: &App, name: &Name) -> Value {
    match app.backend.pull(name) {
        Some(_) => {
            app.stats.pulled();
            json!({ "status": "success" })
        }
        None => json!({ "error": "pull model manifest: file does not exist" }),
    }
}

async fn wait(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}
