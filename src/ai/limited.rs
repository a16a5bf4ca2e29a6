//! The other end of a program that runs within bounds: two processes of ours between the worker and the program. One
//! watches: it ends all that the program started, when that ends and when the worker does not want it any more or is
//! gone. The other sets the limits of its own process and becomes the program.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, close};

use super::tree::{Together, outgrown};

/// The word with which our programs start themselves to watch over a program within limits.
pub const LIMITED: &str = "__limited";
/// The word after it of the process that becomes the program.
const BECOME: &str = "become";
/// What the names of a program's variables begin with until it is there: a loader that reads `LD_PRELOAD` is to find it
/// in the program alone, not in our own processes before it, which have no limits yet.
pub(super) const VARIABLE: &str = "ORCHESTRA_PROGRAM_";
/// How often it is looked for what a program left behind, some milliseconds apart: who cannot be ended is left.
const ROUNDS: u64 = 120;

/// The whole of such a process. Returns what it exits with.
pub fn become_limited(words: impl Iterator<Item = OsString>) -> ExitCode {
    close_inherited();
    let words: Vec<OsString> = words.collect();
    match words.split_first() {
        Some((first, rest)) if first == BECOME => become_program(rest),
        _ => watch(&words),
    }
}

/// Closes what the worker was started with beside its input, output and errors, such as a pipe of the shell: nobody has
/// given that to a program.
fn close_inherited() {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // All of them first: one of them is the list itself, which is closed when it has been read.
    for number in numbers.filter(|number| *number > 2).collect::<Vec<_>>() {
        let _ = close(number);
    }
}

/// Runs the program in a process of its own, and ends what is left of it with it. Its input is nothing but a sign of
/// life: it ends with the worker, or when the worker wants no more.
fn watch(words: &[OsString]) -> ExitCode {
    // It has no limits: what it watches must not trace it and have it run something.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_dumpable(false);
    // Who leaves the group (`setsid`) and loses its parent becomes our child, and no other process's.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_child_subreaper(true);
    // Were it stopped by what it watches, it would not see that the worker is gone.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGCONT);
    let child = std::env::current_exe().and_then(|own| {
        let mut command = Command::new(own);
        command.arg(LIMITED).arg(BECOME).args(words);
        command.stdin(Stdio::null()).process_group(0).spawn()
    });
    let most = together(words);
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            eprintln!("this program cannot start itself: {error}");
            return ExitCode::from(126);
        }
    };
    let group = i32::try_from(child.id()).ok().map(Pid::from_raw);
    let watched = std::thread::Builder::new().spawn(move || {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1)) {}
        end_all(group);
        std::process::exit(0);
    });
    if let Err(error) = watched {
        eprintln!("this program cannot watch: {error}");
        end_all(group);
        return ExitCode::from(126);
    }
    // It is counted with all that it has started, whoever of them is its child still: they are all below us.
    if let Some(most) = most {
        let counted = std::thread::Builder::new().spawn(move || {
            eprintln!("{}", outgrown(std::process::id(), most));
            end_all(group);
            let _ = kill(Pid::this(), Signal::SIGKILL);
        });
        if let Err(error) = counted {
            eprintln!("this program cannot count: {error}");
            end_all(group);
            return ExitCode::from(126);
        }
    }
    let status = child.wait();
    end_all(group);
    status.map_or(ExitCode::FAILURE, same_end)
}

/// What all of its processes may have, from the words of its limits.
fn together(words: &[OsString]) -> Option<Together> {
    let number = |at: usize| words.get(at)?.to_str()?.parse::<u64>().ok();
    Some(Together {
        memory: number(1)?,
        tasks: usize::try_from(number(3)?).ok()?,
    })
}

/// Ends as another process did.
fn same_end(status: ExitStatus) -> ExitCode {
    if status.signal().is_some() {
        // Whichever it was: a limit that ends a program ends us the same way for whoever looks.
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Ends the group, and then, one generation after the other, whoever has become our child.
fn end_all(group: Option<Pid>) {
    if let Some(group) = group {
        let _ = killpg(group, Signal::SIGKILL);
    }
    for round in 1..=ROUNDS {
        for child in children() {
            let _ = kill(child, Signal::SIGKILL);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
        std::thread::sleep(Duration::from_millis(round.min(50)));
    }
}

/// The processes whose parent we are, where the system tells.
fn children() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_ours = |process: &i32| {
        let about = std::fs::read(format!("/proc/{process}/stat")).unwrap_or_default();
        let about = String::from_utf8_lossy(&about);
        // After the name, which may hold anything: the state, and the parent.
        let parent = about.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        parent == Some(own.as_str())
    };
    processes.filter(is_ours).map(Pid::from_raw).collect()
}

/// Sets the limits of this process and becomes the program. Returns only when that fails.
fn become_program(words: &[OsString]) -> ExitCode {
    let number = |at: usize| words.get(at).and_then(|word| word.to_str()?.parse::<u64>().ok());
    // The fourth is for who watches.
    let (Some(cpu), Some(memory), Some(file), Some(path)) = (number(0), number(1), number(2), words.get(4)) else {
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
    // `sudo`, `su` and whatever else has rights of its own gives it none.
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        eprintln!("rights cannot be given up: {error}");
        return ExitCode::from(126);
    }
    // When whoever watches is killed, so is what it started.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let mut command = Command::new(path);
    command.args(&words[5..]);
    for (name, value) in std::env::vars_os() {
        if let Some(own) = name.as_bytes().strip_prefix(VARIABLE.as_bytes()) {
            command.env_remove(&name).env(OsStr::from_bytes(own), value);
        }
    }
    let error = command.exec();
    eprintln!("{}: {error}", Path::new(path).display());
    ExitCode::from(127)
}
