//! A private folder of a run: made when the first step needs it, gone with the run. A worker that is killed leaves its
//! folders behind; the next one to start removes them.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tracing::info;

/// How the names of these folders begin.
const PREFIX: &str = "orchestra-run-";

/// The folder, if it was needed.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    folder: OnceLock<Owned>,
}

/// A folder, and the lock on it that says that somebody lives in it. The system opens the lock when that process is
/// gone, in whatever container it was.
#[derive(Debug)]
struct Owned {
    path: PathBuf,
    #[expect(dead_code, reason = "held, never read")]
    lock: File,
}

impl Workspace {
    /// The folder, which nobody else may enter.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn folder(&self) -> std::io::Result<&Path> {
        if self.folder.get().is_none()
            && let Err(late) = self.folder.set(Owned::make()?)
        {
            // Another step was faster.
            let _ = std::fs::remove_dir(late.path);
        }
        self.existing().ok_or_else(|| std::io::Error::other("no folder"))
    }

    /// The folder, if there is one.
    pub(super) fn existing(&self) -> Option<&Path> {
        self.folder.get().map(|folder| folder.path.as_path())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Some(folder) = self.existing() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

impl Owned {
    fn make() -> std::io::Result<Self> {
        // Between making it and locking it somebody who cleans up may take it for left behind.
        for _ in 0..10 {
            let path = std::env::temp_dir().join(format!("{PREFIX}{}", uuid::Uuid::new_v4()));
            std::fs::DirBuilder::new().mode(0o700).create(&path)?;
            if let Ok(lock) = File::open(&path)
                && lock.lock().is_ok()
                && let Ok(path) = path.canonicalize()
            {
                return Ok(Self { path, lock });
            }
        }
        Err(std::io::Error::other(
            "a private folder was removed as soon as it was made",
        ))
    }
}

/// Removes the folders of runs whose worker is gone.
pub(super) fn clean() {
    let own = nix::unistd::geteuid().as_raw();
    let entries = std::fs::read_dir(std::env::temp_dir());
    let removed = entries.into_iter().flatten().flatten().filter(|entry| {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        // Of the entry itself: a link is nobody's folder.
        let is_folder =
            |entry: &std::fs::DirEntry| entry.metadata().is_ok_and(|about| about.is_dir() && about.uid() == own);
        ours && is_folder(entry)
            && File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok())
            && std::fs::remove_dir_all(entry.path()).is_ok()
    });
    match removed.count() {
        0 => {}
        count => info!(
            "removed {} of template runs whose worker is gone",
            crate::text::count(count, "folder")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_dead_are_removed_and_no_others() {
        let alive = Workspace::default();
        let lives = alive.folder().unwrap().to_owned();
        std::fs::write(lives.join("kept"), "k").unwrap();
        // As a worker that was killed leaves it: nobody has the lock.
        let left = std::env::temp_dir().join(format!("{PREFIX}{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("secret"), "s").unwrap();
        let elsewhere = std::env::temp_dir().join(format!("orchestra-other-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&elsewhere).unwrap();
        let link = std::env::temp_dir().join(format!("{PREFIX}{}", uuid::Uuid::new_v4()));
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        clean();
        assert!(!left.exists() && elsewhere.exists() && link.is_symlink());
        assert_eq!(std::fs::read(lives.join("kept")).unwrap(), b"k");
        drop(alive);
        assert!(!lives.exists());
        std::fs::remove_file(link).unwrap();
        std::fs::remove_dir(elsewhere).unwrap();
    }
}
