//! The file that holds the number of this process, so that one worker is not started twice
//! (`celery.platforms.Pidfile`).

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// A pidfile of ours; it goes with this.
pub(super) struct Pidfile {
    path: PathBuf,
}

impl Pidfile {
    /// Writes it. One that a process has left behind that is gone is replaced.
    ///
    /// # Errors
    /// One line: the process in it is running, or it cannot be written.
    pub(super) fn write(path: &Path) -> Result<Self, String> {
        // A relative path must mean the same at the end.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let failed = |error: io::Error| format!("cannot write the pidfile {}: {error}", path.display());
        let draft = Draft::write(&path).map_err(failed)?;
        // Twice: another worker may be about to do the same with a stale one.
        for _ in 0..2 {
            match std::fs::hard_link(&draft.path, &path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => remove_stale(&path)?,
                // Not every file system has such links, nor may every process make them.
                Err(_) => match create(&path) {
                    Ok(()) => return Ok(Self { path }),
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => remove_stale(&path)?,
                    Err(error) => return Err(failed(error)),
                },
            }
        }
        Err(format!(
            "the pidfile {} is written by another worker as well",
            path.display()
        ))
    }
}

/// A pidfile under a name of its own: it gets the other name when it is written, so that nobody finds it empty. Goes
/// with this.
struct Draft {
    path: PathBuf,
}

impl Draft {
    fn write(path: &Path) -> io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        // In a container the number of the process is mostly the same as that of the one before.
        name.push(format!(".{}", uuid::Uuid::new_v4()));
        let path = PathBuf::from(name);
        create(&path)?;
        Ok(Self { path })
    }
}

/// A new file with the number of this process; none stays that could not be written.
fn create(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    writeln!(file, "{}", std::process::id()).inspect_err(|_| drop(std::fs::remove_file(path)))
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
    if let Some(pid) = pid.filter(|pid| i64::from(*pid) != i64::from(std::process::id()))
        && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
    {
        return Err(format!(
            "the pidfile {} exists, and process {pid} in it is running: stop it, or remove the file if that is \
             another program",
            path.display()
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(format!("cannot remove the stale pidfile {}: {error}", path.display()))
        }
        _ => {
            tracing::warn!("the pidfile {} is stale and replaced", path.display());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_pidfile_is_replaced_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("orchestra-pid-{}", std::process::id()));
        std::fs::write(&path, "999999999\n").unwrap();
        let pidfile = Pidfile::write(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{}\n", std::process::id())
        );
        drop(pidfile);
        assert!(!path.exists());
        let parent = nix::unistd::getppid();
        std::fs::write(&path, format!("{parent}\n")).unwrap();
        let error = Pidfile::write(&path).err().unwrap();
        assert!(error.contains("is running"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}
