//! The engine's process: a Python launcher around llama.cpp's server, gone when this value is.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::backend::Settings;
use crate::error::Error;

const LAUNCHER: &str = include_str!("launcher.py");

/// How long a load may take.
const LOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// What to start.
#[derive(Debug, Clone)]
pub struct Config {
    pub python: PathBuf,
    pub model_file: PathBuf,
    pub threads: i64,
    pub parallel: usize,
}

/// A running engine. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    pub url: String,
    pub key: String,
    /// Held open: its end tells the launcher that we are gone, even if we were killed.
    _stdin: ChildStdin,
}

impl Process {
    /// Starts the engine and waits until it has loaded the model.
    pub async fn start(config: &Config, settings: Settings) -> Result<Self, Error> {
        let mut child = Command::new(&config.python)
            .args(["-u", "-c", LAUNCHER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| cannot_start(&config.python, &error))?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::new(500, "error starting llama-server: no pipes"));
        };
        // Any program on this machine can reach the port: only the front knows the key.
        let key = format!("{:032x}", rand::random::<u128>());
        let line = format!("{}\n", launch(config, settings, &key));
        // If it has died already, the wait below says so.
        let _ = stdin.write_all(line.as_bytes()).await;
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(url) = line.strip_prefix("ready ") {
                    return Some(url.to_owned());
                }
            }
            None
        };
        match timeout(LOAD_TIMEOUT, ready).await {
            Ok(Some(url)) => Ok(Self {
                child: Mutex::new(child),
                url,
                key,
                _stdin: stdin,
            }),
            Ok(None) => Err(terminated(child.wait().await.ok())),
            Err(_) => Err(Error::new(
                500,
                "timed out waiting for llama-server to start - no progress",
            )),
        }
    }

    pub fn is_alive(&self) -> bool {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(child.try_wait(), Ok(None))
    }
}

fn launch(config: &Config, settings: Settings, key: &str) -> serde_json::Value {
    let given = |value: i64, default: i64| if value > 0 { value } else { default };
    json!({
        "model": config.model_file,
        "parallel": config.parallel,
        "num_ctx": settings.num_ctx,
        "num_batch": given(settings.num_batch, settings.num_ctx.min(512)),
        "shift": settings.shift,
        "threads": given(settings.num_thread, config.threads),
        "key": key,
    })
}

fn cannot_start(python: &Path, error: &std::io::Error) -> Error {
    Error::new(
        500,
        format!("error starting llama-server: {}: {error}", python.display()),
    )
}

fn terminated(status: Option<ExitStatus>) -> Error {
    let status = status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string());
    Error::new(500, format!("llama-server process has terminated: {status}"))
}
