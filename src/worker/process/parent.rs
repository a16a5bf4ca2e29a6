//! The worker's side: starts children, gives them tasks, kills them, and takes their death for what it is.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream as Socket;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::process::{Child as Process, Command};
use tracing::{error, info, warn};

use super::frame::{Down, End, Frames, Up, decode, encode, frames};
use super::{CHILD_OF, Program};
use crate::canvas::ResultNode;
use crate::task::{Context, Note};
use crate::trace::Trace;
use crate::wire::State;
use crate::worker::Options;
use crate::worker::request::{Outcome, Request, SIGTERM};
use crate::worker::services::spawn_run;

/// How long a child may take to begin: it waits for a Redis that is away.
const BIRTH: Duration = Duration::from_secs(300);
/// How long a child may take to end by a signal, or when its socket is closed, before it is killed.
const DEATH: Duration = Duration::from_secs(10);

/// How long a child may take to end a run at its soft time limit, where the hard one is the same.
const OBEDIENCE: Duration = Duration::from_secs(1);
/// How long those that are idle may take when the worker ends.
const GOODBYE: Duration = Duration::from_secs(2);

/// The children of a worker.
pub(crate) struct Children {
    shared: Arc<Shared>,
    program: Option<Program>,
    /// All tasks run in children: as many as there are places are kept ready.
    ready: bool,
    /// None could be started when that was last tried.
    failing: bool,
}

struct Shared {
    idle: Mutex<Vec<Running>>,
    pids: Mutex<BTreeSet<u32>>,
    /// How many may live.
    size: AtomicUsize,
    /// Children of an earlier one are replaced.
    generation: AtomicU64,
    jobs: AtomicU64,
    max_tasks: Option<u64>,
    max_bytes: Option<u64>,
}

impl Children {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            program: options.program.clone(),
            ready: options.processes,
            failing: false,
            shared: Arc::new(Shared {
                idle: Mutex::default(),
                pids: Mutex::default(),
                size: AtomicUsize::new(options.concurrency),
                generation: AtomicU64::new(0),
                jobs: AtomicU64::new(0),
                max_tasks: options.max_tasks_per_child,
                max_bytes: options.max_memory_per_child.map(|kib| kib.saturating_mul(1024)),
            }),
        }
    }

    /// A child for a task: one that is idle, or a new one.
    pub(crate) fn take(&self) -> std::io::Result<Running> {
        // The one that ran last has the warmest memory.
        loop {
            let Some(mut child) = lock(&self.shared.idle).pop() else {
                break;
            };
            if matches!(child.process.try_wait(), Ok(None)) {
                return Ok(child);
            }
            warn!("child process {} ended while it was idle", child.pid);
        }
        Running::start(self.program.as_ref(), &self.shared)
    }

    /// In a pool of processes a child for each place, also in place of those that have ended.
    pub(crate) fn fill(&mut self) {
        if !self.ready {
            return;
        }
        lock(&self.shared.idle).retain_mut(|child| {
            let lives = matches!(child.process.try_wait(), Ok(None));
            if !lives {
                warn!("child process {} ended while it was idle", child.pid);
            }
            lives
        });
        while lock(&self.shared.pids).len() < self.shared.size.load(Ordering::Relaxed) {
            match Running::start(self.program.as_ref(), &self.shared) {
                // Those that have run something come first.
                Ok(child) => lock(&self.shared.idle).insert(0, child),
                Err(error) => {
                    // It is tried again and again; once is enough to be told.
                    if !std::mem::replace(&mut self.failing, true) {
                        error!("child processes cannot be started: {error}");
                    }
                    return;
                }
            }
        }
        self.failing = false;
    }

    /// Whether all tasks run in children.
    pub(crate) fn are_the_pool(&self) -> bool {
        self.ready
    }

    /// A child that was taken in vain.
    pub(crate) fn give_back(child: Running) {
        let shared = child.shared.clone();
        lock(&shared.idle).push(child);
    }

    /// As many places to run as there are now; idle children beyond them end.
    pub(crate) fn resize(&mut self, size: usize) {
        self.shared.size.store(size, Ordering::Relaxed);
        let beyond = {
            let mut idle = lock(&self.shared.idle);
            let beyond = lock(&self.shared.pids).len().saturating_sub(size).min(idle.len());
            idle.drain(..beyond).collect::<Vec<_>>()
        };
        beyond.into_iter().for_each(Running::retire);
        self.fill();
    }

    /// Replaces all: those that are idle now, the others when they have done their task.
    pub(crate) fn restart(&self) {
        self.shared.generation.fetch_add(1, Ordering::Relaxed);
        let idle = std::mem::take(&mut *lock(&self.shared.idle));
        idle.into_iter().for_each(Running::retire);
    }

    /// The worker ends, and those that are idle with it, in peace.
    pub(crate) async fn end(&self) {
        self.shared.size.store(0, Ordering::Relaxed);
        let idle = std::mem::take(&mut *lock(&self.shared.idle));
        let leaving = idle.into_iter().map(Running::leave);
        let _ = tokio::time::timeout(GOODBYE, futures_util::future::join_all(leaving)).await;
    }

    /// The ids of those that live.
    pub(crate) fn pids(&self) -> Vec<u32> {
        lock(&self.shared.pids).iter().copied().collect()
    }

    /// How many tasks a child runs before it is replaced.
    pub(crate) fn max_tasks(&self) -> Option<u64> {
        self.shared.max_tasks
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.shared.size.store(0, Ordering::Relaxed);
        // Killed when they are dropped: they have nothing to do.
        lock(&self.shared.idle).clear();
    }
}

/// A child that lives.
pub(crate) struct Running {
    process: Process,
    socket: Frames,
    pub pid: u32,
    generation: u64,
    done: u64,
    program: Program,
    shared: Arc<Shared>,
}

/// What came of waiting for a run.
enum Said {
    Ended(Box<End>),
    /// The socket is closed: it died.
    Gone,
    Cancelled,
    HardLimit(Duration),
    NotBegun,
}

impl Running {
    fn start(program: Option<&Program>, shared: &Arc<Shared>) -> std::io::Result<Self> {
        let program = program.ok_or_else(|| std::io::Error::other("this program cannot be started as a child"))?;
        let (ours, theirs) = Socket::pair()?;
        ours.set_nonblocking(true)?;
        let executable = if cfg!(target_os = "linux") {
            // The very file that runs, even if another has taken its name.
            "/proc/self/exe".into()
        } else {
            std::env::current_exe()?
        };
        let process = Command::new(executable)
            .arg0(std::env::args_os().next().unwrap_or_default())
            .args(&program.arguments)
            .env(CHILD_OF, std::process::id().to_string())
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            // Ctrl-C is for the worker, which lets its tasks end.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = process.id().unwrap_or_default();
        lock(&shared.pids).insert(pid);
        Ok(Self {
            process,
            socket: frames(UnixStream::from_std(ours)?),
            pid,
            generation: shared.generation.load(Ordering::Relaxed),
            done: 0,
            program: program.clone(),
            shared: shared.clone(),
        })
    }

    /// Runs a task; `None` when it was cancelled. The child is dead then, or back among the idle ones.
    pub(crate) async fn run(mut self, request: &Request, context: &Context) -> Option<Outcome> {
        let job = self.shared.jobs.fetch_add(1, Ordering::Relaxed);
        let mut said = self.converse(request, context).await;
        if matches!(said, Said::NotBegun) && self.done > 0 {
            // It died while it was idle, and nobody had seen it: the task is none the worse for it.
            match Self::start(Some(&self.program), &self.shared) {
                Ok(next) => self = next,
                Err(error) => return Some(Outcome::Lost(format!("Worker could not be started: {error}."))),
            }
            said = self.converse(request, context).await;
        }
        match said {
            Said::Ended(end) => {
                let End {
                    ended,
                    traceback,
                    children,
                    resident,
                    clean,
                } = *end;
                context.add_children(children.iter().filter_map(|child| ResultNode::read(child.get())));
                self.done += 1;
                let outcome = ended.outcome(traceback);
                if clean {
                    self.keep(resident);
                } else {
                    self.slay(Signal::SIGKILL as i32).await;
                }
                Some(outcome)
            }
            Said::Cancelled => {
                let signal = context.signal();
                self.slay(if signal == 0 { SIGTERM } else { signal }).await;
                None
            }
            Said::HardLimit(limit) => {
                context.cancel();
                self.slay(Signal::SIGKILL as i32).await;
                Some(Outcome::HardLimit(limit))
            }
            Said::Gone | Said::NotBegun => {
                let how = human_status(self.ended().await);
                error!(
                    "child process {} ended with {how} while it ran {}[{}]",
                    self.pid, request.entry.name, request.id
                );
                Some(Outcome::Lost(format!("Worker exited prematurely: {how} Job: {job}.")))
            }
        }
    }

    /// Gives it the task and listens to it.
    async fn converse(&mut self, request: &Request, context: &Context) -> Said {
        let (hard, soft) = request.limits();
        let trace = context.details().trace.as_ref().map(Trace::headers);
        let Ok(run) = encode(&Down::Run { hard, trace }) else {
            return Said::NotBegun;
        };
        let beginning = async {
            self.socket.feed(run).await.ok()?;
            self.socket.send(request.raw.clone()).await.ok()?;
            let frame = self.socket.next().await?.ok()?;
            matches!(decode(&frame), Ok(Up::Begun)).then_some(())
        };
        tokio::select! {
            begun = tokio::time::timeout(BIRTH, beginning) => match begun {
                Ok(Some(())) => {}
                _ => return Said::NotBegun,
            },
            () = context.cancelled() => return Said::Cancelled,
        }
        // Where both are one, the soft one comes first, as it does in this process: it takes a moment to be obeyed.
        let grace = if soft == hard { OBEDIENCE } else { Duration::ZERO };
        let hard = async {
            let limit = after(hard).await;
            tokio::time::sleep(grace).await;
            limit
        };
        let (mut soft, mut hard) = (std::pin::pin!(after(soft)), std::pin::pin!(hard));
        let mut told = false;
        loop {
            let frame = tokio::select! {
                // A result that is there wins over a limit that passed in the same moment.
                biased;
                frame = self.socket.next() => frame,
                () = context.cancelled() => return Said::Cancelled,
                _ = &mut soft, if !told => {
                    told = true;
                    // If it cannot be told it is dead, which the next round sees.
                    if let Ok(frame) = encode(&Down::SoftLimit) {
                        let _ = self.socket.send(frame).await;
                    }
                    continue;
                }
                limit = &mut hard => return Said::HardLimit(limit),
            };
            let Some(Ok(frame)) = frame else { return Said::Gone };
            let id = &context.details().id;
            match decode(&frame) {
                Ok(Up::State(state, meta)) => {
                    context
                        .forward(Note::State(id.clone(), State::parse(&state), meta))
                        .await;
                }
                Ok(Up::Stream(entry)) => context.forward_stream(entry),
                Ok(Up::Event(kind, fields)) => context.forward(Note::Event(id.clone(), kind, fields)).await,
                Ok(Up::Ended(end)) => return Said::Ended(Box::new(end)),
                Ok(Up::Begun) => {}
                Err(error) => {
                    error!("child process {} cannot be understood: {error}", self.pid);
                    return Said::Gone;
                }
            }
        }
    }

    /// Back among the idle ones, unless it has had its day.
    fn keep(self, resident: u64) {
        let shared = self.shared.clone();
        let worn = shared.max_tasks.is_some_and(|max| self.done >= max);
        let fat = shared.max_bytes.is_some_and(|max| resident > max);
        if fat {
            info!(
                "child process {} takes {} KiB: it is replaced (worker_max_memory_per_child)",
                self.pid,
                resident / 1024
            );
        }
        let old = self.generation != shared.generation.load(Ordering::Relaxed);
        let beyond = lock(&shared.pids).len() > shared.size.load(Ordering::Relaxed);
        if worn || fat || old || beyond {
            self.retire();
        } else {
            lock(&shared.idle).push(self);
        }
    }

    /// Ends it in peace, beside everything else.
    fn retire(self) {
        spawn_run(self.leave());
    }

    /// Ends it in peace: it exits when its socket is closed, and has told what it had to tell.
    async fn leave(mut self) {
        // Written out: the codec takes frames of several types.
        let _ = SinkExt::<Bytes>::close(&mut self.socket).await;
        // What does not end is killed when this is dropped.
        let _ = tokio::time::timeout(DEATH, self.process.wait()).await;
    }

    /// Ends it, and what it has started, by that signal; by SIGKILL when that is not enough.
    async fn slay(mut self, signal: i32) {
        self.signal_all(Signal::try_from(signal).unwrap_or(Signal::SIGKILL));
        if tokio::time::timeout(DEATH, self.process.wait()).await.is_err() {
            warn!("child process {} does not end by signal {signal}; killing it", self.pid);
            self.signal_all(Signal::SIGKILL);
            let _ = self.process.wait().await;
        }
    }

    /// How it ended; who has closed the socket and lives on is killed.
    async fn ended(&mut self) -> Option<ExitStatus> {
        if let Ok(status) = tokio::time::timeout(DEATH, self.process.wait()).await {
            return status.ok();
        }
        self.signal_all(Signal::SIGKILL);
        self.process.wait().await.ok()
    }

    /// To it and its process group. Its id is its own as long as nobody has waited for it.
    fn signal_all(&self, signal: Signal) {
        if let Some(pid) = self.process.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself in between.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.shared.pids).remove(&self.pid);
    }
}

/// After that time, which it gives back; never when there is none.
async fn after(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// As billiard words it (`billiard.common.human_status`).
fn human_status(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "exitcode None".to_owned();
    };
    match status.signal() {
        Some(number) => match Signal::try_from(number) {
            Ok(signal) => format!("signal {number} ({signal})"),
            Err(_) => format!("signal {number}"),
        },
        None => format!("exitcode {}", status.code().unwrap_or_default()),
    }
}

/// Nobody panics while holding one of these; a list is a list whatever happened.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
