//! What the operator allows templates to do with the host: which folders, which programs, which servers. Nothing, until
//! it is named in the settings.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;

use super::hosts::HttpHost;

/// What is allowed, and within which bounds.
#[derive(Clone, Debug, Default)]
pub struct Permits {
    /// Folders whose files may be read.
    pub read: Vec<PathBuf>,
    /// Folders in which files may be written.
    pub write: Vec<PathBuf>,
    /// Programs that may be run, by name or path.
    pub programs: Vec<String>,
    /// Servers that may be asked: `api.example.com`, `*.example.com`, `host:port`, `10.0.0.0/8`.
    pub hosts: Vec<HttpHost>,
    /// Bounds on a program.
    pub limits: ProgramLimits,
    /// Bounds on what is read.
    pub sizes: Sizes,
}

/// Bounds on what steps read.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Largest file, in bytes; all of a step have four times as many at most.
    pub file: usize,
    /// Most files of a step.
    pub files: usize,
    /// Largest answer of a server, in bytes.
    pub http: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            file: 16 << 20,
            files: 1000,
            http: 16 << 20,
        }
    }
}

/// Bounds on a program.
#[derive(Clone, Copy, Debug)]
pub struct ProgramLimits {
    /// Time it may compute.
    pub cpu: Duration,
    /// Memory it may ask for, in bytes.
    pub memory: u64,
    /// How many processes and threads it may have, all that it has started included.
    pub processes: usize,
    /// Largest file it may write, in bytes.
    pub file: u64,
    /// What it prints, in bytes.
    pub output: usize,
    /// All of its time.
    pub wall: Duration,
}

impl Default for ProgramLimits {
    fn default() -> Self {
        Self {
            cpu: Duration::from_secs(60),
            memory: 1 << 30,
            processes: 256,
            file: 256 << 20,
            output: 1 << 20,
            wall: Duration::from_secs(300),
        }
    }
}

/// Directories in which programs are looked for, whatever `PATH` says.
const PROGRAMS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

impl Permits {
    /// What was named and is not there, in words: steps that need it fail.
    pub fn missing(&self) -> Vec<String> {
        let folders = [("ai_read_paths", &self.read), ("ai_write_paths", &self.write)];
        let named = folders
            .iter()
            .flat_map(|(setting, named)| named.iter().map(move |path| (setting, path)));
        let paths = named
            .filter(|(_, path)| !path.exists())
            .map(|(setting, path)| format!("{setting}: {} is not there", path.display()));
        let programs = self.programs.iter().filter_map(|name| match self.program(name) {
            Ok(path) if path.exists() => None,
            Ok(path) => Some(format!("ai_programs: {} is not there", path.display())),
            Err(error) => Some(format!("ai_programs: {error}")),
        });
        paths.chain(programs).collect()
    }

    /// Opens a file to read it, in an allowed folder or in `own`, a folder of the run's.
    ///
    /// # Errors
    /// A text for people: it is not allowed, or not there.
    pub(super) fn open(&self, path: &Path, own: Option<&Path>) -> Result<File, String> {
        let shown = path.display();
        let place = self.place(path, own)?;
        let roots = self.roots(&self.read, own);
        let inside = |path: &Path| roots.iter().any(|root| path.starts_with(root));
        let refused = || self.no_reading(path, own);
        let real = real(&place, inside).map_err(|error| match error {
            Some(error) => format!("{shown}: {error}"),
            None => refused(),
        })?;
        // A FIFO to which nobody writes would keep this thread for ever.
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&real)
            .map_err(|error| format!("{shown}: {error}"))?;
        // What was opened, not what the path was a moment ago: somebody may have put a link in between.
        if opened(&file).is_some_and(|opened| !inside(&opened)) {
            return Err(refused());
        }
        let about = file.metadata().map_err(|error| format!("{shown}: {error}"))?;
        if !about.is_file() {
            return Err(format!("{shown}: is no file"));
        }
        Ok(file)
    }

    /// Where a path leads that is relative to the run's folder or to one that may be read. Whether it may be read is
    /// not said by that.
    ///
    /// # Errors
    /// A text for people: it leads nowhere.
    pub(super) fn place(&self, path: &Path, own: Option<&Path>) -> Result<PathBuf, String> {
        let place = absolute(path, own, &self.read)?;
        // A folder in the settings may be relative to the worker's own.
        std::path::absolute(&place).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The real path of a folder whose files may be read.
    ///
    /// # Errors
    /// A text for people: it is not allowed, whatever is there, or not there.
    pub(super) fn folder(&self, path: &Path, own: Option<&Path>) -> Result<PathBuf, String> {
        let roots = self.roots(&self.read, own);
        let inside = |path: &Path| roots.iter().any(|root| path.starts_with(root));
        real(&self.place(path, own)?, inside).map_err(|error| match error {
            Some(error) => format!("{}: {error}", path.display()),
            None => self.no_reading(path, own),
        })
    }

    fn no_reading(&self, path: &Path, own: Option<&Path>) -> String {
        let shown = path.display();
        if self.read.is_empty() && own.is_none() {
            format!("{shown}: reading files is not allowed; the operator names folders in ai_read_paths")
        } else {
            format!("{shown}: is in no folder that ai_read_paths allows")
        }
    }

    /// Reads a file of at most `most` bytes.
    ///
    /// # Errors
    /// See [`open`](Self::open); or it is larger.
    pub(super) fn read(&self, path: &Path, own: Option<&Path>, most: u64) -> Result<Vec<u8>, String> {
        let file = self.open(path, own)?;
        let mut bytes = Vec::new();
        file.take(most + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        if bytes.len() as u64 > most {
            return Err(format!(
                "{}: is larger than {most} bytes (ai_max_file_bytes)",
                path.display()
            ));
        }
        Ok(bytes)
    }

    /// Writes a file in an allowed folder, whole or not at all; its path.
    ///
    /// # Errors
    /// A text for people: it is not allowed, or cannot be written.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> Result<PathBuf, String> {
        let shown = path.display();
        if self.write.is_empty() {
            return Err(format!(
                "{shown}: writing files is not allowed; the operator names folders in ai_write_paths"
            ));
        }
        let place = absolute(path, None, &self.write)?;
        let name = place
            .file_name()
            .ok_or_else(|| format!("{shown}: is no name of a file"))?;
        let folder = place.parent().unwrap_or(Path::new("/"));
        let roots = self.roots(&self.write, None);
        let inside = |path: &Path| roots.iter().any(|root| path.starts_with(root));
        let refused = || format!("{shown}: is in no folder that ai_write_paths allows");
        let folder = real(folder, inside).map_err(|error| match error {
            Some(error) => format!("{shown}: {error}"),
            None => refused(),
        })?;
        let target = folder.join(name);
        if target.is_symlink() || target.is_dir() {
            return Err(format!("{shown}: is a link or a folder, and is not replaced"));
        }
        let aside = folder.join(format!(".{}.part", uuid::Uuid::new_v4()));
        let wrong = |error: std::io::Error| format!("{shown}: {error}");
        let mut file = File::create_new(&aside).map_err(wrong)?;
        let written = if opened(&file).is_some_and(|opened| !inside(&opened)) {
            Err(refused())
        } else {
            std::io::Write::write_all(&mut file, bytes)
                .and_then(|()| std::fs::rename(&aside, &target))
                .map_err(wrong)
        };
        if written.is_err() {
            let _ = std::fs::remove_file(&aside);
        }
        written.map(|()| target)
    }

    /// The path of an allowed program.
    ///
    /// # Errors
    /// A text for people: it is not allowed, or not there.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf, String> {
        let base = Path::new(name)
            .file_name()
            .and_then(|base| base.to_str())
            .unwrap_or(name);
        let allowed = self.programs.iter().find(|allowed| {
            // A path allows that program; a name allows the one the system has.
            if allowed.contains('/') {
                *allowed == name || (!name.contains('/') && allowed.ends_with(&format!("/{name}")))
            } else {
                *allowed == base
            }
        });
        let Some(allowed) = allowed else {
            return Err(format!(
                "the program {name:?} is not allowed; the operator names programs in ai_programs"
            ));
        };
        if allowed.contains('/') {
            return Ok(PathBuf::from(allowed));
        }
        let found = PROGRAMS
            .iter()
            .map(|folder| Path::new(folder).join(base))
            .find(|path| path.is_file());
        found.ok_or_else(|| format!("the program {base:?} is not in {}", PROGRAMS.join(", ")))
    }

    fn roots(&self, allowed: &[PathBuf], own: Option<&Path>) -> Vec<PathBuf> {
        let allowed = allowed.iter().filter_map(|folder| folder.canonicalize().ok());
        allowed.chain(own.map(Path::to_owned)).collect()
    }
}

/// A relative path is one in the run's own folder, or else in the first allowed one.
fn absolute(path: &Path, own: Option<&Path>, allowed: &[PathBuf]) -> Result<PathBuf, String> {
    if path.as_os_str().is_empty() {
        return Err("a path is empty".into());
    }
    // `..` is taken back by the words alone: on the way through a folder that is not allowed it would tell what is
    // there.
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if plain.file_name().is_some() => drop(plain.pop()),
            Component::ParentDir if !plain.has_root() => {
                return Err(format!("{}: leads out of the folder it begins in", path.display()));
            }
            Component::ParentDir | Component::CurDir => {}
            part => plain.push(part),
        }
    }
    let path = plain.as_path();
    if path.is_absolute() {
        return Ok(plain);
    }
    let places = own.map(Path::to_owned).into_iter().chain(allowed.iter().cloned());
    let mut places = places.map(|folder| folder.join(path));
    let first = places.next();
    let existing = first.clone().into_iter().chain(places).find(|place| place.exists());
    existing.or(first).ok_or_else(|| {
        format!(
            "{}: is not allowed; the operator names folders in ai_read_paths and ai_write_paths",
            path.display()
        )
    })
}

/// Where a path really leads, if that is inside. For one that leads nowhere the reason is told only if what there is of
/// it is inside: whoever asks for other folders learns nothing of them.
fn real(place: &Path, inside: impl Fn(&Path) -> bool) -> Result<PathBuf, Option<std::io::Error>> {
    match place.canonicalize() {
        Ok(real) if inside(&real) => Ok(real),
        Ok(_) => Err(None),
        Err(error) => {
            let mut exists = place.ancestors().filter_map(|place| place.canonicalize().ok());
            Err(exists.next().is_some_and(|place| inside(&place)).then_some(error))
        }
    }
}

/// The path of an open file, as the system knows it.
fn opened(file: &File) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        let path = std::env::temp_dir().join(format!("orchestra-permits-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(path.join("in/deep")).unwrap();
        std::fs::create_dir_all(path.join("out")).unwrap();
        std::fs::write(path.join("in/a.txt"), "a").unwrap();
        std::fs::write(path.join("out/secret"), "s").unwrap();
        path.canonicalize().unwrap()
    }

    #[test]
    fn only_files_in_allowed_folders_are_read() {
        let root = folder();
        let permits = Permits {
            read: vec![root.join("in")],
            ..Permits::default()
        };
        std::os::unix::fs::symlink(root.join("out/secret"), root.join("in/link")).unwrap();
        std::os::unix::fs::symlink(root.join("out"), root.join("in/deep/way")).unwrap();
        assert_eq!(permits.read(&root.join("in/a.txt"), None, 10).unwrap(), b"a");
        assert_eq!(permits.read(Path::new("a.txt"), None, 10).unwrap(), b"a");
        assert!(
            permits
                .read(&root.join("in/a.txt"), None, 0)
                .unwrap_err()
                .contains("larger than 0")
        );
        for escape in ["in/../out/secret", "in/link", "in/deep/way/secret", "out/secret"] {
            let error = permits.read(&root.join(escape), None, 10).unwrap_err();
            assert!(error.contains("ai_read_paths"), "{escape}: {error}");
        }
        nix::unistd::mkfifo(&root.join("in/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for no_file in ["in", "in/fifo"] {
            let error = permits.open(&root.join(no_file), None).unwrap_err();
            assert!(error.contains("is no file"), "{no_file}: {error}");
        }
        // What is not there is said inside; outside, it is no other answer than for what is there.
        assert!(
            permits
                .read(Path::new("b.txt"), None, 10)
                .unwrap_err()
                .contains("No such file")
        );
        let asked = |path: &str| {
            let error = permits.read(&root.join(path), None, 10).unwrap_err();
            error.replace(&root.join(path).display().to_string(), "")
        };
        for missing in [
            "out/missing",
            "in/deep/way/missing",
            "missing/at/all",
            "in/../out/missing",
        ] {
            assert_eq!(asked(missing), asked("out/secret"), "{missing}");
        }
        for through in ["out/../in/a.txt", "out/missing/../../in/a.txt"] {
            assert!(permits.read(&root.join(through), None, 10).is_ok(), "{through}");
        }
        let error = permits.read(Path::new("../out/secret"), None, 10).unwrap_err();
        assert!(error.contains("leads out"), "{error}");
        assert!(
            Permits::default()
                .open(&root.join("in/a.txt"), None)
                .unwrap_err()
                .contains("not allowed")
        );
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn only_files_in_allowed_folders_are_written() {
        let root = folder();
        let permits = Permits {
            write: vec![root.join("in")],
            ..Permits::default()
        };
        std::os::unix::fs::symlink(root.join("out/secret"), root.join("in/link")).unwrap();
        std::os::unix::fs::symlink(root.join("out"), root.join("in/way")).unwrap();
        let written = permits.write(Path::new("b.txt"), b"b").unwrap();
        assert_eq!(std::fs::read(&written).unwrap(), b"b");
        for escape in ["in/../out/x", "in/way/x", "out/x", "in/link", "missing/x"] {
            assert!(permits.write(&root.join(escape), b"x").is_err(), "{escape}");
        }
        let refusal = |path: &str| permits.write(&root.join(path), b"x").unwrap_err();
        for missing in ["missing/x", "out/missing/x", "in/way/missing/x"] {
            assert!(refusal(missing).contains("ai_write_paths"), "{}", refusal(missing));
        }
        assert!(refusal("in/missing/x").contains("No such file"));
        assert_eq!(std::fs::read(root.join("out/secret")).unwrap(), b"s");
        assert_eq!(std::fs::read_dir(root.join("out")).unwrap().count(), 1);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn programs_are_allowed_by_name() {
        let permits = Permits {
            programs: ["env", "/opt/tool"].map(str::to_owned).into(),
            ..Permits::default()
        };
        assert!(permits.program("env").unwrap().ends_with("bin/env"));
        assert!(permits.program("/usr/bin/env").unwrap().ends_with("bin/env"));
        assert_eq!(permits.program("tool").unwrap(), Path::new("/opt/tool"));
        assert!(permits.program("/elsewhere/tool").is_err());
        assert!(permits.program("sh").unwrap_err().contains("ai_programs"));
    }
}
