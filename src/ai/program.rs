//! Runs a program of the host within bounds: no shell, an empty environment, limits on time, memory and what it prints,
//! and nothing of it left when the step ends.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::permits::ProgramLimits;

/// The word with which our programs start themselves to set limits and become another program.
pub const LIMITED: &str = "__limited";

/// What a program did.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// It printed more than it may.
    pub cut: bool,
}

/// What is run.
pub(super) struct Program {
    /// Its path.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where.
    pub folder: PathBuf,
    /// Environment beside the few variables that every program needs.
    pub environment: Vec<(String, String)>,
}

/// Ends all processes of a group when dropped: a step that is cancelled leaves nothing behind.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

/// Runs a program to its end.
///
/// # Errors
/// A text for people: it cannot be started, or takes too long.
pub(super) async fn run(program: Program, limits: ProgramLimits) -> Result<Ended, String> {
    let shown = program.path.display().to_string();
    let own = std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let mut command = tokio::process::Command::new(own);
    command
        .arg(LIMITED)
        .args([limits.cpu.as_secs().max(1), limits.memory, limits.file].map(|limit| limit.to_string()))
        .arg(&program.path)
        .args(&program.arguments)
        .current_dir(&program.folder)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .env("HOME", &program.folder)
        .env("TMPDIR", &program.folder)
        .envs(program.environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{shown}: {error}"))?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let group = id.map(|id| Group(Pid::from_raw(id)));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ending = async {
        let status = child.wait().await;
        // What it left behind would keep what it printed open.
        drop(group);
        status
    };
    let work = async { tokio::join!(ending, read(out, limits.output), read(err, limits.output)) };
    let (status, stdout, stderr) = tokio::time::timeout(limits.wall, work)
        .await
        .map_err(|_| format!("{shown}: takes longer than {} s", limits.wall.as_secs_f64()))?;
    let status = status.map_err(|error| format!("{shown}: {error}"))?;
    Ok(Ended {
        code: status.code(),
        cut: stdout.1 || stderr.1,
        stdout: stdout.0,
        stderr: stderr.0,
    })
}

/// Reads to the end, keeps so much, and says whether there was more.
async fn read(from: Option<impl AsyncRead + Unpin>, most: usize) -> (String, bool) {
    let Some(mut from) = from else {
        return (String::new(), false);
    };
    let (mut kept, mut cut, mut buffer) = (Vec::new(), false, [0; 8192]);
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let room = most.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
        cut |= count > room;
    }
    (String::from_utf8_lossy(&kept).into_owned(), cut)
}

/// The other end: sets the limits of this process and becomes the program. Returns only when that fails.
pub fn become_limited(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.collect();
    let number = |at: usize| words.get(at).and_then(|word| word.to_str()?.parse::<u64>().ok());
    let (Some(cpu), Some(memory), Some(file), Some(path)) = (number(0), number(1), number(2), words.get(3)) else {
        return ExitCode::from(2);
    };
    let limits = [
        (Resource::RLIMIT_CPU, cpu),
        (Resource::RLIMIT_AS, memory),
        (Resource::RLIMIT_FSIZE, file),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, 256),
    ];
    for (resource, limit) in limits {
        if let Err(error) = setrlimit(resource, limit, limit) {
            eprintln!("{resource:?} cannot be set: {error}");
            return ExitCode::from(126);
        }
    }
    // When the worker is killed, so is what it started.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let error = std::process::Command::new(path).args(&words[4..]).exec();
    eprintln!("{}: {error}", Path::new(path).display());
    ExitCode::from(127)
}

/// Words of a line, as a shell would part them; nothing in them means anything else.
pub(super) fn words(line: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match (char, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (char, Some(open)) if char == open => quote = None,
            (char, Some(_)) => word.get_or_insert_default().push(char),
            ('"' | '\'', None) => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (char, None) if char.is_whitespace() => found.extend(word.take()),
            (char, None) => word.get_or_insert_default().push(char),
        }
    }
    if quote.is_some() {
        return Err(format!("{line:?}: a quote is not closed"));
    }
    found.extend(word);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn lines_are_parted_into_words_and_nothing_else() {
        assert_eq!(
            words(r#"-a "b c" d\ e '' $x;"#).unwrap(),
            ["-a", "b c", "d e", "", "$x;"]
        );
        assert!(words("'a").is_err());
        assert!(words("  ").unwrap().is_empty());
    }
}
