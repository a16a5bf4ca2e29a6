//! The child's side: runs one task after the other that its worker gives it, and ends with the worker.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as Socket;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::CHILD_OF;
use super::frame::{Down, End, Ended, Frames, Up, decode, encode, frames};
use crate::backend::Backend;
use crate::broker::Broker;
use crate::canvas::ResultNode;
use crate::client::Client;
use crate::clock;
use crate::conn::{self, Link};
use crate::task::{Context, Failure, Note, Notes, Registry};
use crate::trace::Trace;
use crate::worker::request::Outcome;
use crate::worker::services::{spawn_blocking, spawn_run};
use crate::worker::start::complete;
use crate::worker::{Options, facts, strategy, tracer};

/// Notes of a run that wait to be written.
const NOTES: usize = 1024;
/// Between two tries to reach Redis.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a run that was told to end may take before the child is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// A child process of a worker, which runs tasks for it.
pub struct Child {
    socket: Socket,
}

impl Child {
    /// This process as the child of a worker, if it is one: what the worker says comes by the standard input, which
    /// is taken away from the tasks.
    pub fn of_worker() -> Option<Self> {
        // Inherited by what a task starts, which has another parent.
        let parent = std::env::var(CHILD_OF).ok()?.parse::<i32>().ok()?;
        let socket = Socket::from(std::io::stdin().as_fd().try_clone_to_owned().ok()?);
        // A worker that was killed meanwhile has left its socket, and this is no worker: it ends when it finds nobody
        // there.
        if nix::unistd::getppid().as_raw() != parent && socket.local_addr().is_err() {
            return None;
        }
        let nothing = std::fs::File::open("/dev/null").ok()?;
        nix::unistd::dup2_stdin(nothing).ok()?;
        keep_name();
        // Where memory runs out the kernel shall end a task and not the worker. Not every system has this.
        let _ = std::fs::write("/proc/self/oom_score_adj", "500");
        Some(Self { socket })
    }

    /// Runs tasks until the worker is gone.
    ///
    /// # Errors
    /// Redis cannot be used, or the worker cannot be heard.
    pub async fn serve(self, options: Options, registry: Registry) -> Result<(), conn::Error> {
        let unheard = |error: std::io::Error| conn::Error::Refused(format!("the worker cannot be heard: {error}"));
        self.socket.set_nonblocking(true).map_err(unheard)?;
        let socket = UnixStream::from_std(self.socket).map_err(unheard)?;
        let (up, down) = frames(socket).split();
        let current = Current::default();
        let (jobs_to, mut jobs) = mpsc::channel(1);
        // From the start: a child whose worker is gone ends, wherever it is.
        spawn_run(listen(down, current.clone(), jobs_to));
        let registry = complete(registry, &options).map_err(|error| conn::Error::Refused(error.to_string()))?;
        let client = connect_patiently(&options).await?;
        let (notes, notes_seen) = mpsc::channel(NOTES);
        let mut runner = Runner {
            options,
            registry,
            client: client.into(),
            current,
            notes,
            notes_seen,
            up,
        };
        while let Some(job) = jobs.recv().await {
            if runner.run(job).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// In lists of processes it has the name that its worker has, not that of the link it was started by.
fn keep_name() {
    #[cfg(target_os = "linux")]
    if let Some(program) = std::env::args_os().next()
        && let Some(name) = std::path::Path::new(&program).file_name()
        && let Ok(name) = std::ffi::CString::new(name.as_encoded_bytes())
    {
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// A task to run.
struct Job {
    raw: Bytes,
    hard: Option<Duration>,
    trace: Option<Trace>,
}

/// The context of the run there is.
type Current = Arc<Mutex<Option<Context>>>;

/// Listens to the worker. It is gone when the socket is: then nobody wants what runs here.
async fn listen(mut down: SplitStream<Frames>, current: Current, jobs: mpsc::Sender<Job>) {
    while let Some(Ok(frame)) = down.next().await {
        match decode(&frame) {
            Ok(Down::Run { hard, trace }) => {
                let Some(Ok(raw)) = down.next().await else { break };
                let raw = raw.freeze();
                let trace = trace.as_ref().and_then(Trace::of);
                if jobs.send(Job { raw, hard, trace }).await.is_err() {
                    break;
                }
            }
            Ok(Down::SoftLimit) => {
                let context = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(context) = context
                    && !context.reach_soft_limit()
                {
                    context.cancel();
                }
            }
            Err(_) => break,
        }
    }
    let runs = current.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    if !runs {
        // The program ends by itself, and takes leave of whoever it tells of its work. Not if it waits for Redis.
        drop(jobs);
        tokio::time::sleep(PATIENCE).await;
    }
    std::process::exit(0);
}

/// What tasks send their own tasks with. A Redis that is away is waited for, as the worker does.
async fn connect_patiently(options: &Options) -> Result<Client, conn::Error> {
    loop {
        match connect(options).await {
            Err(error) if error.is_transient() => tokio::time::sleep(PAUSE).await,
            ended => return ended,
        }
    }
}

async fn connect(options: &Options) -> Result<Client, conn::Error> {
    let broker = Broker::connect(&options.broker, options.broker_options.clone()).await?;
    let backend = match &options.backend {
        None => None,
        Some(endpoint) => {
            let link = Link::connect(endpoint, conn::LinkOptions::default()).await?;
            Some(Backend::new(link, options.backend_options.clone()).await?)
        }
    };
    Ok(options.client(broker, backend))
}

/// Runs tasks, one at a time.
struct Runner {
    options: Options,
    registry: Registry,
    client: Arc<Client>,
    current: Current,
    notes: Notes,
    notes_seen: mpsc::Receiver<Note>,
    up: SplitSink<Frames, Bytes>,
}

impl Runner {
    async fn run(&mut self, job: Job) -> std::io::Result<()> {
        self.say(&Up::Begun).await?;
        let request = match strategy::receive(job.raw, &self.registry, &self.options) {
            Ok(request) => Arc::new(request),
            Err(refusal) => {
                // The worker could read it: this is another program than the worker, or has other settings.
                let failure = Failure::value_error(format!("the child process cannot run it: {}", refusal.reason));
                return self.end(Outcome::Failed(failure), Vec::new(), true).await;
            }
        };
        let deadline = job.hard.and_then(|hard| clock::instant().checked_add(hard));
        let details = request.details(self.options.hostname.as_str().into(), deadline, job.trace);
        let context = Context::new(details, self.notes.clone(), Some(self.client.clone()));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.clone());
        // On a thread of its own, whatever it is: a run that never gives way must not keep this from listening.
        let mut run = spawn_blocking(tracer::perform(request, context.clone()));
        let outcome = loop {
            tokio::select! {
                biased;
                Some(note) = self.notes_seen.recv() => self.tell(note).await?,
                ended = &mut run => break Some(ended),
                () = context.cancelled() => break None,
            }
        };
        // At the soft limit the run ends where it stands, if it ever comes there.
        let (outcome, clean) = match outcome {
            Some(Ok(Some(outcome))) => (outcome, true),
            Some(Ok(None)) => (Outcome::SoftLimit, true),
            Some(Err(error)) => (Outcome::Panicked(error.to_string()), true),
            None => (Outcome::SoftLimit, tokio::time::timeout(PATIENCE, run).await.is_ok()),
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        while let Ok(note) = self.notes_seen.try_recv() {
            self.tell(note).await?;
        }
        self.end(outcome, context.children(), clean).await
    }

    async fn tell(&mut self, note: Note) -> std::io::Result<()> {
        let up = match note {
            Note::State(_, state, meta) => Up::State(state.as_str().to_owned(), meta),
            Note::Stream(_, entry) => Up::Stream(entry),
            Note::Event(_, kind, fields) => Up::Event(kind, fields),
        };
        self.say(&up).await
    }

    async fn end(&mut self, outcome: Outcome, children: Vec<ResultNode>, clean: bool) -> std::io::Result<()> {
        let (ended, traceback) = Ended::new(outcome);
        let children = children
            .iter()
            .filter_map(|child| serde_json::value::to_raw_value(child).ok())
            .collect();
        self.say(&Up::Ended(End {
            ended,
            traceback,
            children,
            resident: facts::resident_bytes(),
            clean,
        }))
        .await
    }

    async fn say(&mut self, up: &Up) -> std::io::Result<()> {
        self.up.send(encode(up)?).await
    }
}
