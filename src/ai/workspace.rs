//! A private folder of a run: made when the first step needs it, gone with the run.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The folder, if it was needed.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    folder: OnceLock<PathBuf>,
}

impl Workspace {
    /// The folder, which nobody else may enter.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn folder(&self) -> std::io::Result<&Path> {
        if let Some(folder) = self.folder.get() {
            return Ok(folder);
        }
        let path = std::env::temp_dir().join(format!("orchestra-{}", uuid::Uuid::new_v4()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let path = path.canonicalize()?;
        if let Err(path) = self.folder.set(path) {
            // Another step was faster.
            let _ = std::fs::remove_dir(path);
        }
        self.folder
            .get()
            .map(PathBuf::as_path)
            .ok_or_else(|| std::io::Error::other("no folder"))
    }

    /// The folder, if there is one.
    pub(super) fn existing(&self) -> Option<&Path> {
        self.folder.get().map(PathBuf::as_path)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Some(folder) = self.folder.get() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
