//! Cassettes: what a server said, recorded once and played again, with the pauses it made.
//!
//! `--record URL` puts this program in front of a server: requests go through, and each answer is written to a file.
//! `--backend cassette` plays the files: the same request gets the same answer, without any server. A request that was
//! never recorded is refused in words that say so.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::stats::{Outcome, Stats};

/// Largest body of a request.
const LARGEST: usize = 64 << 20;

/// One request and its answer; a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Take {
    method: String,
    path: String,
    /// The body as JSON; `null` if there was none.
    request: Value,
    status: u16,
    content_type: String,
    /// Pieces of the answer, each with the milliseconds since the request.
    pieces: Vec<(u64, String)>,
    /// The connection broke before the end.
    #[serde(default)]
    cut: bool,
}

impl Take {
    /// What makes two requests the same: not the order of keys, and not how long a model is to stay.
    fn key(&self) -> String {
        key(&self.method, &self.path, &self.request)
    }
}

fn key(method: &str, path: &str, request: &Value) -> String {
    let mut request = request.clone();
    if let Some(request) = request.as_object_mut() {
        request.remove("keep_alive");
    }
    format!("{method} {path} {}", sorted(&request))
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: std::collections::BTreeMap<_, _> =
                map.iter().map(|(name, value)| (name, sorted(value))).collect();
            ordered.into_iter().map(|(name, value)| (name.clone(), value)).collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// Writes takes down.
struct Recorder {
    http: reqwest::Client,
    server: String,
    folder: PathBuf,
}

/// A router that passes everything on to a server, and writes it down.
pub fn recorder(server: &str, folder: &Path) -> Result<Router, String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder()
        .no_proxy()
        .build()
        .map_err(|error| error.to_string())?;
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let recorder = Arc::new(Recorder {
        http,
        server: server.trim_end_matches('/').to_owned(),
        folder: folder.to_owned(),
    });
    Ok(Router::new().fallback(record).with_state(recorder))
}

async fn record(State(recorder): State<Arc<Recorder>>, request: Request<Body>) -> Response {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let Ok(body) = axum::body::to_bytes(request.into_body(), LARGEST).await else {
        return refusal(StatusCode::BAD_REQUEST, "the body of the request broke off");
    };
    let asked = recorder
        .http
        .request(method.clone(), format!("{}{path}", recorder.server))
        .header(CONTENT_TYPE, "application/json")
        .body(body.clone())
        .send()
        .await;
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => return refusal(StatusCode::BAD_GATEWAY, &format!("{}: {error}", recorder.server)),
    };
    let take = Take {
        method: method.to_string(),
        path,
        request: serde_json::from_slice(&body).unwrap_or_default(),
        status: answer.status().as_u16(),
        content_type: header(&answer),
        pieces: Vec::new(),
        cut: false,
    };
    let status = answer.status();
    let content_type = take.content_type.clone();
    let taping = Taping {
        take: Some(take),
        recorder,
        began,
    };
    let body = Body::from_stream(tape(answer.bytes_stream(), taping));
    (status, [(CONTENT_TYPE, content_type)], body).into_response()
}

fn header(answer: &reqwest::Response) -> String {
    let header = answer.headers().get(CONTENT_TYPE);
    header
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// A take in the making. An answer whose client left is no take.
struct Taping {
    take: Option<Take>,
    recorder: Arc<Recorder>,
    began: Instant,
}

impl Taping {
    fn write(&mut self) {
        let Some(take) = self.take.take() else { return };
        if let Err(error) = self.recorder.write(&take) {
            eprintln!("ollama-sim: {}: {error}", self.recorder.folder.display());
        }
    }
}

impl Recorder {
    /// The name says what it is; a number tells takes of one request apart.
    fn write(&self, take: &Take) -> io::Result<()> {
        let name: String = take
            .path
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let model = take.request["model"]
            .as_str()
            .unwrap_or_default()
            .replace(['/', ':', '\\'], "-");
        let text = serde_json::to_vec_pretty(take)?;
        for number in 1.. {
            let file = self
                .folder
                .join(format!("{}-{model}-{number:03}.json", name.trim_matches('-')));
            let opened = std::fs::OpenOptions::new().write(true).create_new(true).open(file);
            match opened {
                Ok(mut file) => return io::Write::write_all(&mut file, &text),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn tape(
    answer: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    taping: Taping,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some((Box::pin(answer), taping)), async |state| {
        let (mut answer, mut taping) = state?;
        match answer.next().await {
            Some(Ok(piece)) => {
                let at = u64::try_from(taping.began.elapsed().as_millis()).unwrap_or(u64::MAX);
                if let Some(take) = &mut taping.take {
                    take.pieces.push((at, String::from_utf8_lossy(&piece).into_owned()));
                }
                Some((Ok(piece), Some((answer, taping))))
            }
            Some(Err(error)) => {
                if let Some(take) = &mut taping.take {
                    take.cut = true;
                }
                taping.write();
                Some((Err(io::Error::other(error)), None))
            }
            None => {
                taping.write();
                None
            }
        }
    })
}

/// Plays takes.
pub struct Player {
    /// By request; several takes of one are played in turn, the last again and again.
    takes: Mutex<HashMap<String, VecDeque<Take>>>,
    /// How many times as fast as recorded; 0 makes no pauses.
    speed: f64,
    folder: PathBuf,
    stats: Arc<Stats>,
}

/// A router that plays the takes of a folder.
pub fn player(folder: &Path, speed: f64, stats: Arc<Stats>) -> Result<Router, String> {
    let wrong = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|error| wrong(folder, &error))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    files.sort();
    let mut takes: HashMap<String, VecDeque<Take>> = HashMap::new();
    for file in files {
        let text = std::fs::read(&file).map_err(|error| wrong(&file, &error))?;
        let take: Take = serde_json::from_slice(&text).map_err(|error| wrong(&file, &error))?;
        takes.entry(take.key()).or_default().push_back(take);
    }
    if takes.is_empty() {
        return Err(format!(
            "{} has no takes; record some with --record URL",
            folder.display()
        ));
    }
    let player = Player {
        takes: Mutex::new(takes),
        speed,
        folder: folder.to_owned(),
        stats,
    };
    Ok(Router::new().fallback(play).with_state(Arc::new(player)))
}

async fn play(State(player): State<Arc<Player>>, request: Request<Body>) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let headers = request.headers().clone();
    let Ok(body) = axum::body::to_bytes(request.into_body(), LARGEST).await else {
        return refusal(StatusCode::BAD_REQUEST, "the body of the request broke off");
    };
    let mut track = (method == Method::POST).then(|| player.stats.begin("cassette", headers, body.clone()));
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    if let Some(track) = &track {
        track.model(asked["model"].as_str().unwrap_or_default());
    }
    let Some(take) = player.take(&key(method.as_str(), &path, &asked)) else {
        if let Some(track) = &mut track {
            track.finish(Outcome::Error);
        }
        let text = format!(
            "no take of this {method} {path} in {}: record it with --record",
            player.folder.display()
        );
        return refusal(StatusCode::NOT_FOUND, &text);
    };
    let status = StatusCode::from_u16(take.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = take.content_type.clone();
    let speed = player.speed;
    // The status comes with the first piece, as it did.
    if let Some((at, _)) = take.pieces.first() {
        wait(*at, speed).await;
    }
    let began = Instant::now();
    let first = take.pieces.first().map_or(0, |(at, _)| *at);
    let cut = take.cut.then(|| Err(io::Error::other("cut as it was recorded")));
    let pieces = stream::iter(take.pieces).then(move |(at, piece)| async move {
        let due = scaled(at - first, speed);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        Ok(Bytes::from(piece))
    });
    let end = stream::once(async move {
        if let Some(track) = &mut track {
            track.finish(Outcome::Completed);
        }
        cut
    });
    let body = Body::from_stream(pieces.map(Some).chain(end).filter_map(async |piece| piece));
    (status, [(CONTENT_TYPE, content_type)], body).into_response()
}

impl Player {
    fn take(&self, key: &str) -> Option<Take> {
        let mut takes = self.takes.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = takes.get_mut(key)?;
        if takes.len() > 1 {
            takes.pop_front()
        } else {
            takes.front().cloned()
        }
    }
}

fn scaled(milliseconds: u64, speed: f64) -> Duration {
    if speed <= 0.0 {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(milliseconds as f64 / 1000.0 / speed).unwrap_or_default()
}

async fn wait(milliseconds: u64, speed: f64) {
    tokio::time::sleep(scaled(milliseconds, speed)).await;
}

fn refusal(status: StatusCode, text: &str) -> Response {
    (
        status,
        [(CONTENT_TYPE, "application/json; charset=utf-8")],
        json!({ "error": text }).to_string(),
    )
        .into_response()
}
