//! `--detach`: the worker goes on in the background. The program starts itself once more, shows what that says until it
//! is ready, and ends.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use super::log::Log;

/// Names the program that shows the start of a detached worker.
const DETACHED_BY: &str = "ORCHESTRA_DETACHED_BY";

/// Said on standard output when the start is done.
const READY: &[u8] = b"\x06";

/// A worker that was put into the background.
pub(super) struct Detached(());

impl Detached {
    /// This process, if it is one. It leaves the terminal for good.
    pub(super) fn this() -> Option<Self> {
        // Inherited by what a task starts, which has another parent.
        let shower = std::env::var(DETACHED_BY).ok()?.parse::<i32>().ok()?;
        if nix::unistd::getppid().as_raw() != shower {
            return None;
        }
        let _ = nix::unistd::setsid();
        Some(Self(()))
    }

    /// What is said from now on goes to the log file, or nowhere; whoever shows the start ends.
    pub(super) fn ready(&self, log: &Log) -> Result<(), String> {
        let _ = std::io::stdout()
            .write_all(READY)
            .and_then(|()| std::io::stdout().flush());
        log.leave_terminal()
    }
}

/// Starts this program in the background.
///
/// # Errors
/// One line: it cannot be started.
pub(super) fn start() -> Result<ExitCode, String> {
    let failed = |error: std::io::Error| format!("cannot start in the background: {error}");
    let program = std::env::current_exe().map_err(failed)?;
    let mut words = std::env::args_os();
    let mut worker = Command::new(program)
        .arg0(words.next().unwrap_or_default())
        .args(words)
        .env(DETACHED_BY, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut said) = worker.stderr.take() {
        let mut text = [0; 4096];
        // Until it says no more here: it is ready, or it has ended.
        while let Ok(count @ 1..) = said.read(&mut text) {
            eprint!("{}", String::from_utf8_lossy(&text[..count]));
        }
    }
    let mut said = Vec::new();
    if let Some(mut out) = worker.stdout.take() {
        // An error is no more to hear.
        let _ = out.read_to_end(&mut said);
    }
    if said.ends_with(READY) {
        return Ok(ExitCode::SUCCESS);
    }
    let code = worker.wait().map_err(failed)?.code();
    Ok(ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}
