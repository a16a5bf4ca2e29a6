//! The processes of a program and of all that it has started, counted again and again. Limits of a process are for each
//! one alone: a program that starts a thousand would have a thousand times its memory, and the kernel's own bound on
//! processes (`RLIMIT_NPROC`) counts all of a user's, the worker's and those of others, and does not hold for root.

use std::path::Path;
use std::time::Duration;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

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
    let mut open = children(root);
    while let Some(process) = open.pop() {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        };
        tasks += field("Threads:").map_or(0, |threads| usize::try_from(threads).unwrap_or(usize::MAX));
        memory += field("RssAnon:").unwrap_or(0) << 10;
        if tasks > most {
            break;
        }
        open.extend(children(process));
    }
    (tasks, memory)
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
        let mut open = children(shell.id());
        while let Some(process) = open.pop() {
            open.extend(children(process));
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(process.cast_signed()),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        shell.wait().unwrap();
    }
}
