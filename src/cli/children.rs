//! Processes that `orchestra up` started. They are stopped in reverse order, and nothing else is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// One process of ours.
pub(super) struct Running {
    /// What people call it.
    pub name: &'static str,
    /// Whether the others can go on without it.
    pub optional: bool,
    child: Child,
}

/// How a process is started.
pub(super) struct Start<'a> {
    pub name: &'static str,
    /// Whether the others can go on without it.
    pub optional: bool,
    /// Whether its output is thrown away.
    pub quiet: bool,
    pub program: &'a Path,
    pub arguments: &'a [&'a OsStr],
    pub environment: &'a [(&'a str, &'a str)],
}

impl Running {
    /// Starts a program in a process group of its own, so that Ctrl-C reaches it only through us.
    pub(super) fn start(start: Start<'_>) -> Result<Self, String> {
        let Start {
            name,
            optional,
            quiet,
            program,
            arguments,
            environment,
        } = start;
        let output = || if quiet { Stdio::null() } else { Stdio::inherit() };
        let child = Command::new(program)
            .args(arguments)
            // URLs hold passwords; command lines are seen by everybody on the machine.
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let child = child.map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        Ok(Self { name, optional, child })
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => format!("{} ended: {status}", self.name),
            Err(error) => format!("{} is lost: {error}", self.name),
        }
    }

    /// Whether it has ended already.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to stop, and ends it if it takes longer than `patience`.
    pub(super) async fn stop(mut self, patience: Duration) {
        let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) else {
            return;
        };
        // It may have ended by itself in between.
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            eprintln!("orchestra: {} does not stop; ending it", self.name);
            let _ = self.child.kill().await;
        }
    }
}

/// Finds a program beside this one, in the project's virtual environment, or on PATH.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.to_owned()));
    let environment = std::env::current_dir().ok().map(|path| path.join(".venv/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(environment)
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
