//! `POST /api/generate` and `POST /api/chat`: completion, load and unload.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::request::Request;
use super::{App, check, reply};
use crate::answer::Answer;
use crate::backend::{BoxFuture, Emitter, End, Format, Frame, Input, Job, Model, Settings};
use crate::error::Error;
use crate::frames::{Kind, Last, Shape, json_bytes};
use crate::keep_alive::KeepAlive;
use crate::options::Options;
use crate::runners::Lease;
use crate::stats::{Outcome, Track};

/// Frames that may wait for a client that does not read.
const BUFFERED: usize = 16;

/// What becomes of a request that was not refused.
pub(super) enum Accepted {
    /// Answered with one object, without any generation.
    Object(Vec<u8>),
    Work {
        answer: Answer,
        shape: Shape,
        stream: bool,
    },
}

pub async fn generate(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let track = app.stats.begin("/api/generate", headers, body.clone());
    run(app, Kind::Generate, &body, track).await
}

pub async fn chat(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let track = app.stats.begin("/api/chat", headers, body.clone());
    run(app, Kind::Chat, &body, track).await
}

/// When the client hangs up, this future is dropped with the record in it, which then says so.
async fn run(app: Arc<App>, kind: Kind, body: &[u8], mut track: Track) -> Response {
    match accept(&app, kind, body, &track).await {
        Ok(Accepted::Work { answer, shape, stream }) => {
            let reader = reply::Reader::new(answer, shape, track);
            if stream {
                reader.stream().await
            } else {
                reader.collect().await
            }
        }
        Ok(Accepted::Object(object)) => {
            track.finish(Outcome::Completed);
            reply::json(StatusCode::OK, object)
        }
        Err(error) => {
            track.finish(Outcome::Error);
            reply::refusal(&error)
        }
    }
}

/// The order of the steps is the server's: it decides which error a request with several faults gets.
pub(super) async fn accept(app: &App, kind: Kind, body: &[u8], track: &Track) -> Result<Accepted, Error> {
    let mut shape = Shape {
        kind,
        model: String::new(),
        arrived: Instant::now(),
        load: Duration::ZERO,
    };
    let request = Request::parse(kind, body)?;
    track.model(&request.model);
    shape.model.clone_from(&request.model);
    let model = app.wanted(&request)?;
    if request.is_empty() && request.keep_alive == Some(KeepAlive::ZERO) {
        app.runners.unload(&model);
        return Ok(Accepted::Object(without_text(&shape, "unload")));
    }
    check::demands(&request, &model)?;
    let options = Options::parse(&request.options)?;
    let settings = settings(app, &model, &options, request.shift);
    let lease = app.runners.acquire(&model, settings, request.keep_alive).await?;
    shape.load = shape.arrived.elapsed();
    if request.is_empty() {
        return Ok(Accepted::Object(without_text(&shape, "load")));
    }
    check::after_load(&request, &model)?;
    let job = job(&request, model, options, settings);
    if request.render_only {
        let rendered = app.backend.render(job).await?;
        return Ok(Accepted::Object(debug_info(&shape, &rendered)));
    }
    let (sender, events) = mpsc::channel(BUFFERED);
    let out = Emitter::new(sender, track.tokens());
    let answer = Answer::new(work(app, job, request.format(), lease, out), events);
    Ok(Accepted::Work {
        answer,
        shape,
        stream: request.stream,
    })
}

/// The whole of the work on one request. It holds the runner, and its slot, until it ends or is dropped.
fn work(
    app: &App,
    mut job: Job,
    format: Result<Format, Error>,
    lease: Lease,
    out: Emitter,
) -> BoxFuture<Result<End, Error>> {
    let (backend, stats) = (Arc::clone(&app.backend), Arc::clone(&app.stats));
    Box::pin(async move {
        let _slot = lease.slot().await;
        let _working = stats.work(&job.model.name.to_string());
        // Found out this late by the server, too.
        job.format = format?;
        backend.answer(job, out).await
    })
}

pub(super) fn settings(app: &App, model: &Model, options: &Options, shift: bool) -> Settings {
    let num_ctx = options.num_ctx.filter(|given| *given > 0).unwrap_or(app.num_ctx);
    Settings {
        // Four tokens is the least that the server passes on, and the trained window the most.
        num_ctx: num_ctx.clamp(4, model.context_length.into()),
        num_thread: options.num_thread.unwrap_or(0),
        num_batch: options.num_batch.unwrap_or(0),
        shift,
    }
}

fn job(request: &Request, model: Arc<Model>, options: Options, settings: Settings) -> Job {
    let raw = matches!(request.input, Input::Prompt { raw: true, .. });
    Job {
        think: model.can("thinking") && request.think != Some(false),
        model,
        input: request.input.clone(),
        format: Format::Free,
        options,
        settings,
        truncate: request.truncate,
        has_template: !request.template.is_empty(),
        logprobs: request.logprobs.then_some(request.top_logprobs.unsigned_abs()),
        wants_context: request.kind == Kind::Generate && !raw,
        images: request.images.clone(),
    }
}

fn without_text(shape: &Shape, reason: &'static str) -> Vec<u8> {
    shape.json(
        &Frame::default(),
        Some(&Last {
            reason,
            timing: None,
            context: Vec::new(),
        }),
    )
}

fn debug_info(shape: &Shape, rendered: &str) -> Vec<u8> {
    let answer = shape.json(&Frame::default(), None);
    let mut answer: Map<String, Value> = serde_json::from_slice(&answer).unwrap_or_default();
    answer.insert("_debug_info".to_owned(), json!({ "rendered_template": rendered }));
    json_bytes(&answer)
}
