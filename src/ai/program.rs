//! Runs a program of the host within bounds: no shell, an empty environment, limits on time, memory and what it prints,
//! and nothing of it left when the step ends.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::sync::oneshot;

use super::limited::{LIMITED, VARIABLE};
use super::permits::{Permits, ProgramLimits};
use super::tree::end_below;

/// How long whoever watches over a program may take to end it.
const LAST: Duration = Duration::from_secs(5);

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
    /// Its home, and where it puts what is temporary: a folder that is ours alone. What was cloned is never one, or its
    /// authors would write the settings of every program that looks for them at home (`.gitconfig`).
    pub home: PathBuf,
    /// Environment beside the few variables that every program needs.
    pub environment: Vec<(String, String)>,
}

/// Closes this process to programs that templates may run, where they may: they have its user, to whom the system would
/// show its environment, with passwords, and its memory. It leaves no core either, and lets nobody debug it but root.
///
/// # Errors
/// A text for people: the system does not do it.
pub fn close_to_programs(permits: &Permits) -> Result<(), String> {
    #[cfg(target_os = "linux")]
    if !permits.programs.is_empty() {
        nix::sys::prctl::set_dumpable(false)
            .map_err(|error| format!("this process cannot be closed to the programs of ai_programs: {error}"))?;
    }
    Ok(())
}

/// Runs a program to its end.
///
/// # Errors
/// A text for people: it cannot be started, or takes too long.
pub(super) async fn run(program: Program, limits: ProgramLimits) -> Result<Ended, String> {
    let shown = program.path.display().to_string();
    let own = std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let variables = variables(program.environment)?;
    let mut command = tokio::process::Command::new(own);
    command
        .arg(LIMITED)
        .args([limits.cpu.as_secs().max(1), limits.memory, limits.file].map(|limit| limit.to_string()))
        .arg(limits.processes.to_string())
        .arg(&program.path)
        .args(&program.arguments)
        .current_dir(&program.folder)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .env("HOME", &program.home)
        .env("TMPDIR", &program.home)
        .envs(variables)
        // Nothing is written there: who watches over the program ends all of it when this end is closed, as it is when
        // the step is cancelled or the worker killed.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().map_err(|error| format!("{shown}: {error}"))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (wanted, unwanted) = oneshot::channel();
    let mut gone = tokio::spawn(end(child, unwanted));
    let work = async { tokio::join!(&mut gone, read(out, limits.output), read(err, limits.output)) };
    let ended = tokio::time::timeout(limits.wall, work).await;
    drop(wanted);
    let Ok((status, stdout, stderr)) = ended else {
        // The run's folder goes after that: nobody is to be in it.
        if !gone.is_finished() {
            let _ = gone.await;
        }
        return Err(format!("{shown}: takes longer than {} s", limits.wall.as_secs_f64()));
    };
    let status = status.map_err(std::io::Error::from).flatten();
    let status = status.map_err(|error| format!("{shown}: {error}"))?;
    Ok(Ended {
        code: status.code(),
        cut: stdout.1 || stderr.1,
        stdout: stdout.0,
        stderr: stderr.0,
    })
}

/// The end of a program: its own, or ours when it is not `wanted` any more, as when its step is cancelled. Then whoever
/// watches over it ends it, unless the program, whose user is ours, has stopped that process (`SIGSTOP`).
async fn end(mut child: Child, unwanted: oneshot::Receiver<()>) -> std::io::Result<ExitStatus> {
    // Taken, since `wait` closes it.
    let watched = child.stdin.take();
    tokio::select! {
        status = child.wait() => return status,
        _ = unwanted => drop(watched),
    }
    if let Ok(status) = tokio::time::timeout(LAST, child.wait()).await {
        return status;
    }
    if let Some(watching) = child.id() {
        tokio::task::spawn_blocking(move || end_below(watching)).await?;
    }
    child.kill().await?;
    child.wait().await
}

/// The variables of a program as they are handed on: set where it begins, and not before.
///
/// # Errors
/// A name is none, or would have the loader run what is no allowed program.
fn variables(given: Vec<(String, String)>) -> Result<Vec<(String, String)>, String> {
    let checked = given.into_iter().map(|(name, value)| {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!(
                "env: {name:?} is no variable: a name has no =, and neither it nor its value a NUL"
            ));
        }
        if name.starts_with("LD_") || name.starts_with("DYLD_") {
            return Err(format!(
                "env: {name} is not allowed: it would run other code than the program's"
            ));
        }
        Ok((format!("{VARIABLE}{name}"), value))
    });
    checked.collect()
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
    use super::{variables, words};

    #[test]
    fn variables_are_set_where_the_program_begins_and_none_is_the_loaders() {
        let one = |name: &str| variables(vec![(name.to_owned(), "v".to_owned())]);
        assert_eq!(one("A").unwrap(), [("ORCHESTRA_PROGRAM_A".to_owned(), "v".to_owned())]);
        for wrong in ["LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES"] {
            assert!(one(wrong).unwrap_err().contains("is not allowed"), "{wrong}");
        }
        for wrong in ["", "A=B", "A\0"] {
            assert!(one(wrong).unwrap_err().contains("is no variable"), "{wrong:?}");
        }
    }

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
