//! An Ollama-compatible HTTP front for demos and tests. See README.md.

mod answer;
mod api;
mod backend;
mod cassette;
mod cli;
mod control;
mod engine;
mod error;
mod frames;
mod keep_alive;
mod line;
mod loads;
mod names;
mod options;
mod runners;
mod script;
mod stats;
mod wire;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use axum::serve::ListenerExt;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::App;
use crate::backend::Backend;
use crate::cli::{Args, BackendKind};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ollama-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal comes. Connections are cut at once, without draining, as the real server does; the engine's
/// process goes with the last reference to it.
async fn run(args: Args) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = serve(args) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn serve(args: Args) -> io::Result<()> {
    let app = App::new(backend(&args).map_err(io::Error::other)?, &args);
    let taped = taped(&args, &app).map_err(io::Error::other)?;
    let listener = listen(args.host).await?;
    let address = listener.local_addr()?;
    let control = match args.control {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let wire = match args.wire {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    if let Some(control) = &control {
        eprintln!("ollama-sim control on http://{}", control.local_addr()?);
    }
    // The reader of this line connects to the address that it names.
    writeln!(io::stdout(), "ollama-sim listening on http://{address}")?;
    io::stdout().flush()?;
    let listener = listener.tap_io(|stream| {
        // Frames are small and must not wait for each other; a socket that refuses is only slower.
        let _ = stream.set_nodelay(true);
    });
    let expiry = Arc::clone(&app.runners).expire();
    let watched = Arc::clone(&app);
    let router = taped.unwrap_or_else(|| api::router(app, address));
    tokio::select! {
        ended = async { axum::serve(listener, router).await } => ended,
        ended = control::serve(control, watched) => ended,
        ended = wire::serve(wire, address) => ended,
        () = expiry => Ok(()),
    }
}

/// What answers in place of the API, where answers are recorded or played.
fn taped(args: &Args, app: &App) -> Result<Option<axum::Router>, String> {
    match (&args.record, &args.cassette, args.backend) {
        (Some(server), Some(folder), _) => cassette::recorder(server, folder).map(Some),
        (None, Some(folder), BackendKind::Cassette) => {
            cassette::player(folder, args.speed, Arc::clone(&app.stats)).map(Some)
        }
        _ => Ok(None),
    }
}

fn backend(args: &Args) -> Result<Arc<dyn Backend>, String> {
    Ok(match args.backend {
        BackendKind::Script | BackendKind::Cassette => Arc::new(script::Script::new(args)?),
        BackendKind::Engine => Arc::new(engine::Engine::new(args)?),
    })
}

async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let name = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    TcpListener::bind(address).await.map_err(name)
}
