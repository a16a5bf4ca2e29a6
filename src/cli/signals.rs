//! Signals to stops.

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

/// Turns signals into stops: the first SIGTERM or SIGINT is warm, the second cold; SIGQUIT is cold. Where a cold stop
/// has to wait (`worker_soft_shutdown_timeout`) it is the next signal that does not. `REMAP_SIGTERM=SIGQUIT` makes
/// SIGTERM cold.
pub(super) struct Signals {
    failed: Arc<AtomicBool>,
}

/// How far the signals have come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Nothing,
    Warm,
    Soft,
    Cold,
}

impl Asked {
    fn next(self, cold: bool, soft: bool) -> Self {
        match self {
            Self::Nothing if !cold => Self::Warm,
            Self::Nothing | Self::Warm if soft => Self::Soft,
            _ => Self::Cold,
        }
    }
}

impl Signals {
    /// Listens from now on; `soft` is whether a cold stop has to wait.
    pub(super) fn listen(stop: Stop, soft: bool) -> std::io::Result<Self> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        let remapped = std::env::var_os("REMAP_SIGTERM").is_some_and(|to| to == "SIGQUIT");
        let failed = Arc::new(AtomicBool::new(false));
        let seen = failed.clone();
        tokio::spawn(async move {
            let mut asked = Asked::Nothing;
            loop {
                let (cold, by_hand) = tokio::select! {
                    _ = term.recv() => (remapped, false),
                    _ = int.recv() => (false, true),
                    _ = quit.recv() => (true, true),
                };
                asked = asked.next(cold, soft);
                seen.fetch_or(by_hand || asked > Asked::Warm, Ordering::Relaxed);
                let how = if by_hand { "Ctrl-C again" } else { "a second signal" };
                match asked {
                    Asked::Nothing => {}
                    Asked::Warm => {
                        eprintln!("orchestra-worker: warm stop; {how} cancels what still runs");
                        stop.warm();
                    }
                    Asked::Soft => {
                        eprintln!("orchestra-worker: soft stop; {how} cancels what still runs at once");
                        stop.soft();
                    }
                    Asked::Cold => {
                        eprintln!("orchestra-worker: cold stop");
                        stop.cold();
                    }
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
