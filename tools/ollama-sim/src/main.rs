//! An Ollama-compatible HTTP front for demos and tests. See README.md.

mod answer;
mod api;
mod backend;
mod cli;
mod control;
mod error;
mod frames;
mod keep_alive;
mod names;
mod options;
mod runners;
mod script;
mod stats;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::serve::ListenerExt;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::App;
use crate::backend::Backend;
use crate::cli::{Args, BackendKind};

#[tokio::main]
async fn main() -> io::Result<()> {
    let args = Args::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Connections are cut at once, without draining, as the real server does. The engine's process goes with the
    // last reference to it.
    tokio::select! {
        ended = serve(args) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn serve(args: Args) -> io::Result<()> {
    let backend = backend(&args).map_err(io::Error::other)?;
    let app = App::new(backend, &args);
    let listener = listen(args.host).await?;
    let address = listener.local_addr()?;
    let control = async {
        match args.control {
            Some(address) => control::serve(listen(address).await?, Arc::clone(&app.stats)).await,
            None => std::future::pending().await,
        }
    };
    // The reader of this line connects to the address that it names.
    writeln!(io::stdout(), "ollama-sim listening on http://{address}")?;
    io::stdout().flush()?;
    let listener = listener.tap_io(|stream| {
        // Frames are small and must not wait for each other; a socket that refuses is only slower.
        let _ = stream.set_nodelay(true);
    });
    let expiry = Arc::clone(&app.runners).expire();
    tokio::select! {
        ended = async { axum::serve(listener, api::router(app, address)).await } => ended,
        ended = control => ended,
        () = expiry => Ok(()),
    }
}

fn backend(args: &Args) -> Result<Arc<dyn Backend>, String> {
    Ok(match args.backend {
        BackendKind::Script => Arc::new(script::Script::new(args)?),
        BackendKind::Engine => Arc::new(script::Script::new(args)?),
    })
}

async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let name = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    TcpListener::bind(address).await.map_err(name)
}
