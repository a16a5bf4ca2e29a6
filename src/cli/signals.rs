//! Signals to stops.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::log::Log;
use crate::worker::{Exit, Stop};

/// What a program that goes on for long is told by signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Term,
    Int,
    Quit,
    /// The terminal is gone.
    Gone,
    /// Whoever rotates logs has been here.
    Reopen,
    /// Somebody wants to know what it does.
    Report,
}

struct Ears {
    term: Signal,
    int: Signal,
    quit: Signal,
    hup: Signal,
    usr1: Signal,
    at_terminal: bool,
}

impl Ears {
    fn open() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            at_terminal: std::io::stdin().is_terminal(),
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Term,
            _ = self.int.recv() => Told::Int,
            _ = self.quit.recv() => Told::Quit,
            _ = self.hup.recv() => if self.at_terminal { Told::Gone } else { Told::Reopen },
            _ = self.usr1.recv() => Told::Report,
        }
    }
}

/// Done when somebody presses Ctrl-C, for what waits and has nothing to put in order.
pub(super) async fn interrupted() {
    let _ = tokio::signal::ctrl_c().await;
}

/// For a child of the worker, which has the worker's name and may be meant by `pkill`: what the worker hears ends no
/// child. Its log sees for itself that the file was renamed.
pub(super) fn ignore() -> Vec<Signal> {
    let kinds = [SignalKind::hangup(), SignalKind::user_defined1()];
    kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect()
}

/// Done when the first signal comes that asks to stop, for programs that have nothing to finish. What has a log says
/// there how to see `what` it does; SIGHUP ends what has none.
pub(super) fn asked_to_stop(log: Option<(Log, &'static str)>) -> std::io::Result<impl Future<Output = ()>> {
    let mut ears = Ears::open()?;
    Ok(async move {
        loop {
            match (ears.next().await, &log) {
                (Told::Reopen, Some((log, _))) => log.reopen("SIGHUP"),
                (Told::Report, Some((log, what))) => log.say(format_args!("SIGUSR1: {what}")),
                (Told::Report, None) => {}
                (Told::Term | Told::Int | Told::Quit | Told::Gone | Told::Reopen, _) => return,
            }
        }
    })
}

/// Turns signals into stops: the first SIGTERM or SIGINT is warm, the second cold; SIGQUIT is cold. Where a cold stop
/// has to wait (`worker_soft_shutdown_timeout`) it is the next signal that does not. `REMAP_SIGTERM=SIGQUIT` makes
/// SIGTERM cold. SIGHUP opens the log file again, or, where stdin is a terminal, says that it was closed: a warm stop.
/// SIGUSR1 says where to see what runs.
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
    /// Listens from now on; `soft` is whether a cold stop has to wait, `node` what the worker is called.
    pub(super) fn listen(stop: Stop, soft: bool, log: Log, node: String) -> std::io::Result<Self> {
        let mut ears = Ears::open()?;
        let remapped = std::env::var_os("REMAP_SIGTERM").is_some_and(|to| to == "SIGQUIT");
        let failed = Arc::new(AtomicBool::new(false));
        let seen = failed.clone();
        tokio::spawn(async move {
            let mut asked = Asked::Nothing;
            loop {
                let (cold, by_hand) = match ears.next().await {
                    Told::Term => (remapped, false),
                    Told::Int => (false, true),
                    Told::Quit => (true, true),
                    // Once: nobody asks for a second one in that way.
                    Told::Gone if asked > Asked::Nothing => continue,
                    Told::Gone => (false, false),
                    Told::Reopen => {
                        log.reopen("SIGHUP");
                        continue;
                    }
                    Told::Report => {
                        log.say(format_args!(
                            "SIGUSR1: `orchestra inspect active -d {node}` shows what runs, `stats` the numbers"
                        ));
                        continue;
                    }
                };
                asked = asked.next(cold, soft);
                seen.fetch_or(by_hand || asked > Asked::Warm, Ordering::Relaxed);
                let how = if by_hand { "Ctrl-C again" } else { "a second signal" };
                match asked {
                    Asked::Nothing => {}
                    Asked::Warm => {
                        log.say(format_args!("warm stop; {how} cancels what still runs"));
                        stop.warm();
                    }
                    Asked::Soft => {
                        log.say(format_args!("soft stop; {how} cancels what still runs at once"));
                        stop.soft();
                    }
                    Asked::Cold => {
                        log.say("cold stop");
                        stop.cold();
                    }
                }
            }
        });
        Ok(Self { failed })
    }

    /// The exit code that Celery has: 0 after SIGTERM or `shutdown`, 1 after SIGINT or a cold stop (P-115); and 1 when
    /// something that ended is not in Redis.
    pub(super) fn code(&self, exit: Exit) -> ExitCode {
        let failed = self.failed.load(Ordering::Relaxed) || exit != Exit::Warm;
        ExitCode::from(u8::from(failed))
    }
}
