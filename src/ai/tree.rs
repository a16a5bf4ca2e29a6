//! The processes of a program and of all that it has started, counted again and again. Limits of a process are for each
//! one alone: a program that starts a thousand would have a thousand times its memory, and the kernel's own bound on
//! processes (`RLIMIT_NPROC`) counts all of a user's, the worker's and those of others, and does not hold for root.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked for what still runs: who cannot be ended is left.
const ROUNDS: usize = 100;

/// What a program may have together with all that it has started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Together {
    /// Processes and threads.
    pub tasks: usize,
    /// Bytes in memory.
    pub memory: u64,
}

/// Counts until there is too much, and tells what.
pub(super) fn outgrown(root: u32, most: Together) -> String {
    loop {
        std::thread::sleep(PAUSE);
        let (tasks, memory) = size(root, most.tasks);
        if tasks > most.tasks {
            return format!("more than {} processes and threads (ai_program_processes)", most.tasks);
        }
        if memory > most.memory {
            return format!("more than {} bytes of memory together (ai_program_memory)", most.memory);
        }
    }
}

/// Threads below a process, and what they have in memory; it is counted no further than to too many.
fn size(root: u32, most: usize) -> (usize, u64) {
    let (mut tasks, mut memory) = (0, 0);
    for process in below(root) {
        let status = status(process);
        let number = |name: &str| field(&status, name).and_then(|value| value.parse::<u64>().ok());
        tasks += number("Threads:").map_or(0, |threads| usize::try_from(threads).unwrap_or(usize::MAX));
        memory += number("RssAnon:").unwrap_or(0) << 10;
        if tasks > most {
            break;
        }
    }
    (tasks, memory)
}

/// Ends all that a process has started, but not the process.
pub(super) fn end_below(root: u32) {
    for _ in 0..ROUNDS {
        let all: Vec<u32> = below(root).collect();
        for process in &all {
            let _ = kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL);
        }
        // Who has ended stands there until its parent asks, which may be stopped.
        let has_ended = |process: &u32| field(&status(*process), "State:").is_none_or(|state| state == "Z");
        if all.iter().all(has_ended) {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// What the system says of a process; nothing if there is none.
fn status(process: u32) -> String {
    std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    let rest = lines.find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()
}

/// All processes below a process.
fn below(root: u32) -> impl Iterator<Item = u32> {
    let mut open = children(root);
    std::iter::from_fn(move || {
        let process = open.pop()?;
        open.extend(children(process));
        Some(process)
    })
}

/// What the threads of a process have started, and what became its own because its parent is gone.
fn children(process: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(Path::new("/proc").join(process.to_string()).join("task"));
    let threads = threads.into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let children = list.split_whitespace().filter_map(|child| child.parse().ok());
            children.collect::<Vec<u32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_was_started_is_counted_with_its_children() {
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 60 & sh -c 'sleep 60 & sleep 60' & wait"])
            .spawn()
            .unwrap();
        let end = crate::clock::instant() + Duration::from_secs(20);
        // Two shells and three of `sleep`; the root itself is not below it.
        while size(shell.id(), 100).0 < 4 {
            assert!(crate::clock::instant() < end, "{:?}", size(shell.id(), 100));
            std::thread::sleep(PAUSE);
        }
        let (tasks, memory) = size(shell.id(), 100);
        assert!(tasks >= 4 && memory > 100_000, "{tasks} {memory}");
        let most = Together {
            tasks: 2,
            memory: u64::MAX,
        };
        assert!(outgrown(shell.id(), most).contains("more than 2 processes"));
        let most = Together { tasks: 100, memory: 1 };
        assert!(outgrown(shell.id(), most).contains("ai_program_memory"));
        end_below(shell.id());
        assert!(below(shell.id()).all(|process| field(&status(process), "State:").is_none_or(|state| state == "Z")));
        shell.wait().unwrap();
    }
}
