//! What can be asked about the server and its models.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::fields::{self, Fields};
use super::{App, not_found, reply};
use crate::backend::{CHATML, Model};
use crate::error::Error;
use crate::frames::json_bytes;
use crate::names::Name;
use crate::runners::Loaded;

pub async fn root() -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], "Ollama is running").into_response()
}

pub async fn version() -> Response {
    ok(&json!({ "version": concat!("0.0.0-sim-", env!("CARGO_PKG_VERSION")) }))
}

pub async fn status() -> Response {
    ok(&json!({ "cloud": { "disabled": true, "source": "env" } }))
}

pub async fn tags(State(app): State<Arc<App>>) -> Response {
    let models: Vec<_> = app.backend.models().iter().map(|model| tag(model)).collect();
    ok(&json!({ "models": models }))
}

pub async fn ps(State(app): State<Arc<App>>) -> Response {
    let models: Vec<_> = app.runners.loaded().iter().map(loaded).collect();
    ok(&json!({ "models": models }))
}

pub async fn show(State(app): State<Arc<App>>, body: Bytes) -> Response {
    match find(&app, &body) {
        Ok(model) => ok(&description(&model)),
        Err(error) => reply::refusal(&error),
    }
}

fn ok(value: &Value) -> Response {
    reply::json(StatusCode::OK, json_bytes(value))
}

/// `DELETE /api/delete`: an empty 200.
pub async fn delete(State(app): State<Arc<App>>, body: Bytes) -> Response {
    match find(&app, &body) {
        Ok(model) => {
            app.runners.unload(&model);
            app.backend.delete(&model.name);
            StatusCode::OK.into_response()
        }
        Err(error) => reply::refusal(&error),
    }
}

/// `POST /api/copy`: an empty 200.
pub async fn copy(State(app): State<Arc<App>>, body: Bytes) -> Response {
    match copied(&app, &body) {
        Ok((model, name)) => {
            app.backend.copy(&model, name);
            StatusCode::OK.into_response()
        }
        Err(error) => reply::refusal(&error),
    }
}

fn copied(app: &App, body: &[u8]) -> Result<(Arc<Model>, Name), Error> {
    let body = fields::parse(body)?;
    let fields = Fields::new(&body, "CopyRequest")?;
    let (source, destination) = (fields.string("source")?, fields.string("destination")?);
    let name = |what: &str, text: &str| {
        Name::parse(text).ok_or_else(|| Error::bad_request(format!("{what} {text:?} is invalid")))
    };
    let (from, to) = (name("source", source)?, name("destination", destination)?);
    let model = app.model(&from);
    let model = model.ok_or_else(|| Error::new(404, format!("model {source:?} not found")))?;
    Ok((model, to))
}

fn tag(model: &Model) -> Value {
    let mut tag = json!({
        "name": model.name.to_string(),
        "model": model.name.to_string(),
        "modified_at": model.modified_at.to_string(),
        "size": model.size,
        "digest": model.digest,
        "details": model.details(),
        "capabilities": model.capabilities,
    });
    if model.remote {
        tag["remote_model"] = model.name.to_string().into();
        tag["remote_host"] = "https://ollama.com:443".into();
    }
    tag
}

fn loaded(runner: &Loaded) -> Value {
    let model = &runner.model;
    let now = jiff::Timestamp::now();
    json!({
        "name": model.name.to_string(),
        "model": model.name.to_string(),
        "size": model.size,
        "digest": model.digest,
        "details": model.details(),
        "expires_at": now.checked_add(runner.remaining).unwrap_or(jiff::Timestamp::MAX).to_string(),
        "size_vram": model.size,
        "context_length": runner.settings.num_ctx,
    })
}

/// The model that the body of `/api/show` names; `name` is the field's old name.
fn find(app: &App, body: &[u8]) -> Result<Arc<Model>, Error> {
    let body = fields::parse(body)?;
    let fields = Fields::new(&body, "ShowRequest")?;
    let written = match fields.string("model")? {
        "" => fields.string("name")?,
        model => model,
    };
    if written.is_empty() {
        return Err(Error::bad_request("model is required"));
    }
    let name = Name::parse(written).ok_or_else(|| Error::bad_request("invalid model name"))?;
    app.model(&name).ok_or_else(|| not_found(&name.to_string()))
}

fn description(model: &Model) -> Value {
    let family = model.family;
    json!({
        "license": model.license,
        "modelfile": format!("FROM {}\nTEMPLATE \"\"\"{}\"\"\"\n", model.name, CHATML),
        "template": CHATML,
        "details": model.details(),
        "model_info": {
            "general.architecture": family,
            format!("{family}.context_length"): model.context_length,
        },
        "tensors": [],
        "capabilities": model.capabilities,
        "modified_at": model.modified_at.to_string(),
    })
}
