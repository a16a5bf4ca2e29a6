//! Signals to stops (protocol 3.14).

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::worker::{Exit, Stop};

/// Done when the first SIGTERM, SIGINT or SIGQUIT comes, for programs that have nothing to finish.
pub(super) fn asked_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = quit.recv() => {}
        }
    })
}

/// Turns signals into stops: the first SIGTERM or SIGINT is warm, the second cold; SIGQUIT is cold.
pub(super) struct Signals {
    failed: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from now on.
    pub(super) fn listen(stop: Stop) -> std::io::Result<Self> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        let failed = Arc::new(AtomicBool::new(false));
        let seen = failed.clone();
        tokio::spawn(async move {
            let mut warm = false;
            loop {
                let (cold, by_hand) = tokio::select! {
                    _ = term.recv() => (warm, false),
                    _ = int.recv() => (warm, true),
                    _ = quit.recv() => (true, true),
                };
                seen.fetch_or(by_hand || cold, Ordering::Relaxed);
                if cold {
                    eprintln!("orchestra-worker: cold stop");
                    stop.cold();
                } else {
                    let how = if by_hand { "Ctrl-C again" } else { "a second signal" };
                    eprintln!("orchestra-worker: warm stop; {how} cancels what still runs");
                    stop.warm();
                    warm = true;
                }
            }
        });
        Ok(Self { failed })
    }

    /// The exit code that Celery has: 0 after SIGTERM or `shutdown`, 1 after SIGINT or a cold stop (P-115).
    pub(super) fn code(&self, exit: Exit) -> ExitCode {
        let failed = self.failed.load(Ordering::Relaxed) || exit == Exit::Cold;
        ExitCode::from(u8::from(failed))
    }
}
