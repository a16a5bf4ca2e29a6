//! What is revoked, across restarts (`--statedb`, `celery.worker.state.Persistent`).
//!
//! The file is JSON, `{"orchestra_state": 1, "clock": 42, "revoked": ["id", …]}`, oldest id first. Celery's own is a
//! Python shelf with a pickle in it, which nobody else can read. It is written beside and moved into place, so that a
//! crash leaves the old one; every five seconds if something changed, and at the end.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::consumer::Consumer;
use super::services::spawn_blocking;
use crate::clock;

/// 50,000 ids of a length that no sane task id has.
const LARGEST: u64 = 64 << 20;

/// The file, and what was last written to it.
pub(crate) struct StateDb {
    path: PathBuf,
    written: u64,
}

/// What is in it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Saved {
    orchestra_state: u32,
    pub clock: u64,
    pub revoked: Vec<String>,
}

impl StateDb {
    /// Opens the file of an earlier life; one that does not exist is made later.
    pub(crate) fn open(path: &Path) -> Result<(Self, Saved), String> {
        let db = Self {
            path: path.to_owned(),
            written: 0,
        };
        let wrong = |what: String| format!("the state file {} cannot be used: {what}", path.display());
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Found out now rather than when there is something to lose.
                write(path, &Saved::default()).map_err(|error| wrong(format!("writing it failed: {error}")))?;
                return Ok((db, Saved::default()));
            }
            Err(error) => return Err(wrong(format!("reading it failed: {error}"))),
            Ok(file) if file.len() > LARGEST => return Err(wrong("it is larger than any of ours".into())),
            Ok(_) => {}
        }
        let text = std::fs::read(path).map_err(|error| wrong(format!("reading it failed: {error}")))?;
        match serde_json::from_slice::<Saved>(&text) {
            Ok(saved) if saved.orchestra_state <= 1 => Ok((db, saved)),
            _ => Err(wrong(
                "it is not one of ours; Celery's cannot be read, name another file".into(),
            )),
        }
    }
}

fn write(path: &Path, saved: &Saved) -> std::io::Result<()> {
    let beside = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4().simple()));
    let written = std::fs::File::create(&beside).and_then(|mut file| {
        serde_json::to_writer(&mut file, saved)?;
        file.flush()?;
        file.sync_all()
    });
    let moved = written.and_then(|()| std::fs::rename(&beside, path));
    if moved.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    moved
}

impl Consumer {
    /// Writes the state file, if there is one and something has changed; the disk is waited for elsewhere.
    pub(super) fn save_state(&mut self) -> Option<tokio::task::JoinHandle<()>> {
        let version = self.revoked.version();
        let db = self.state_db.as_mut().filter(|db| db.written != version)?;
        db.written = version;
        self.revoked.purge(clock::instant());
        let (path, saved) = (
            db.path.clone(),
            Saved {
                orchestra_state: 1,
                clock: self.events.clock(),
                revoked: self.revoked.ids().map(ToString::to_string).collect(),
            },
        );
        Some(spawn_blocking(async move {
            if let Err(error) = write(&path, &saved) {
                warn!("the state file {} cannot be written: {error}", path.display());
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_anything_else_is_refused() {
        let folder = std::env::temp_dir().join(format!("orchestra-state-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("worker.state");
        assert_eq!(StateDb::open(&path).unwrap().1, Saved::default());
        let saved = Saved {
            orchestra_state: 1,
            clock: 7,
            revoked: vec!["a".into(), "b".into()],
        };
        write(&path, &saved).unwrap();
        assert_eq!(StateDb::open(&path).unwrap().1, saved);
        for bad in [
            &b""[..],
            b"\x80\x04 a pickle",
            b"[]",
            br#"{"orchestra_state": 2, "clock": 1, "revoked": []}"#,
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(StateDb::open(&path).err().unwrap().contains("not one of ours"));
        }
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(LARGEST + 1).unwrap();
        assert!(StateDb::open(&path).err().unwrap().contains("larger than any of ours"));
        assert!(StateDb::open(&folder.join("missing").join("x")).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
