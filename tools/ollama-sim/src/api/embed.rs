//! `POST /api/embed`: texts as vectors.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::complete::settings;
use super::fields::{self, Fields};
use super::{App, reply};
use crate::error::Error;
use crate::frames::json_bytes;
use crate::keep_alive::KeepAlive;
use crate::names::Name;
use crate::options::Options;
use crate::stats::Outcome;

pub async fn embed(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut track = app.stats.begin("/api/embed", headers, body.clone());
    let answer = async {
        let value = fields::parse(&body)?;
        let fields = Fields::new(&value, "EmbedRequest")?;
        track.model(fields.string("model")?);
        vectors(&app, &fields).await
    };
    let answer = answer.await;
    track.finish(if answer.is_ok() {
        Outcome::Completed
    } else {
        Outcome::Error
    });
    match answer {
        Ok(answer) => reply::json(StatusCode::OK, json_bytes(&answer)),
        Err(error) => reply::refusal(&error),
    }
}

/// The vectors of a request's texts, as the API tells them.
pub(super) async fn vectors(app: &App, fields: &Fields<'_>) -> Result<Value, Error> {
    let arrived = Instant::now();
    let written = fields.string("model")?;
    if written.is_empty() {
        return Err(super::not_found(""));
    }
    let name = Name::parse(written).ok_or_else(|| Error::bad_request("invalid model name"))?;
    let missing = || Error::new(404, format!("model {written:?} not found, try pulling it first"));
    let model = app.model(&name).ok_or_else(missing)?;
    let texts = match fields.value("input") {
        None => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(texts)) => {
            let text = |text: &Value| text.as_str().map(str::to_owned);
            let texts: Option<Vec<String>> = texts.iter().map(text).collect();
            texts.ok_or_else(|| Error::bad_request("invalid input type"))?
        }
        Some(_) => return Err(Error::bad_request("invalid input type")),
    };
    let keep_alive = fields.value("keep_alive").map(KeepAlive::parse).transpose();
    let keep_alive = keep_alive.map_err(Error::bad_request)?.flatten();
    let options = Options::parse(&fields.object("options")?.cloned().unwrap_or_default())?;
    let settings = settings(app, &model, &options, true);
    let lease = app.runners.acquire(&model, settings, keep_alive).await?;
    let load = arrived.elapsed();
    if texts.is_empty() {
        return Ok(json!({ "model": written, "embeddings": [] }));
    }
    let length = |text: &String| text.split_whitespace().count().max(1);
    let words: usize = texts.iter().map(length).sum();
    let longest = texts.iter().map(length).max().unwrap_or(0);
    // All or nothing: one text that is too long fails the call.
    if fields.boolean("truncate")? == Some(false) && i64::try_from(longest).unwrap_or(i64::MAX) > settings.num_ctx {
        return Err(Error::bad_request("the input length exceeds the context length"));
    }
    let _slot = lease.slot().await;
    let _working = app.stats.work(&model.name.to_string());
    let mut vectors = app.backend.embed(model, texts).await?;
    // Shorter where that is asked for, and never longer.
    if let Some(most) = fields.value("dimensions").and_then(Value::as_u64) {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        vectors.iter_mut().for_each(|vector| vector.truncate(most));
    }
    Ok(json!({
        "model": written,
        "embeddings": vectors,
        "total_duration": u64::try_from(arrived.elapsed().as_nanos()).unwrap_or(u64::MAX),
        "load_duration": u64::try_from(load.as_nanos()).unwrap_or(u64::MAX),
        "prompt_eval_count": words,
    }))
}
