//! The file of `-f`. Whoever rotates logs gives it another name and expects a new one under the old: that is seen
//! within a second, in child processes as well, and at once when SIGHUP says so.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{self, Instant};

/// How often it is looked whether the file still has its name.
const LOOK: Duration = Duration::from_secs(1);

/// A file that is written to by its name. Clones write to the same one.
#[derive(Clone)]
pub(super) struct LogFile(Arc<Mutex<Opened>>);

struct Opened {
    path: PathBuf,
    file: File,
    looked: Instant,
    /// Whether stdout and stderr go there too.
    has_output: bool,
}

impl LogFile {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// One line.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        // A relative path must mean the same later.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self(Arc::new(Mutex::new(Opened {
            file: open(&path)?,
            path,
            looked: clock::instant(),
            has_output: false,
        }))))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.lock().path.clone()
    }

    /// Opens it again by its name.
    ///
    /// # Errors
    /// One line; what is open stays open.
    pub(super) fn reopen(&self) -> Result<(), String> {
        self.lock().reopen()
    }

    /// Makes it stdout and stderr of this process too.
    ///
    /// # Errors
    /// One line.
    pub(super) fn take_output(&self) -> Result<(), String> {
        let mut opened = self.lock();
        opened.has_output = true;
        opened.give_output()
    }

    fn lock(&self) -> MutexGuard<'_, Opened> {
        // A panic in between leaves a file that is open.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    fn reopen(&mut self) -> Result<(), String> {
        self.file = open(&self.path)?;
        if self.has_output {
            self.give_output()?;
        }
        Ok(())
    }

    fn give_output(&self) -> Result<(), String> {
        let moved = nix::unistd::dup2_stdout(&self.file).and_then(|()| nix::unistd::dup2_stderr(&self.file));
        moved.map_err(|error| format!("cannot leave the terminal: {error}"))
    }

    /// Whether the name is another file's by now, or nobody's.
    fn was_renamed(&self) -> bool {
        let Ok(ours) = self.file.metadata() else { return false };
        std::fs::metadata(&self.path).map_or(true, |named| (named.dev(), named.ino()) != (ours.dev(), ours.ino()))
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut opened = self.lock();
        let now = clock::instant();
        if now.saturating_duration_since(opened.looked) >= LOOK {
            opened.looked = now;
            if opened.was_renamed() {
                // A folder that is gone: the file that is open is as good a place as any.
                let _ = opened.reopen();
            }
        }
        opened.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().file.flush()
    }
}

fn open(path: &Path) -> Result<File, String> {
    let open = OpenOptions::new().create(true).append(true).open(path);
    open.map_err(|error| format!("cannot write the log file {}: {error}", path.display()))
}
