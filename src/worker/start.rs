//! Puts a worker together: connections, declarations, services, and the loop between them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::warn;

use super::Options;
use super::autoscale::Autoscaler;
use super::consumer::{Consumer, Inputs, Standstill};
use super::control::{self, Order, Panel};
use super::done::Succeeded;
use super::effects::{Scribe, Sender};
use super::errback::Errbacks;
use super::events::Events;
use super::fetcher::Fetcher;
use super::flood::{Flood, Waits};
use super::gossip::Gossip;
use super::joiner::Joiner;
use super::keeper::Keeper;
use super::left_out::LeftOut;
use super::line::Line;
use super::listener::Listener;
use super::metrics::{Metrics, Watch};
use super::mingle::Mingle;
use super::outbox::outbox;
use super::parked::{Parked, Recaller};
use super::pool::Pool;
use super::process::Children;
use super::rate_limit::RateLimits;
use super::revoke::Revoked;
use super::room::Room;
use super::sending::News;
use super::services::{ServiceKind, run_loop, spawn};
use super::state_db::{Saved, StateDb};
use super::stop::{Exit, Phase, Stop};
use super::timers::Timers;
use super::unique::Uniques;
use super::watchdog::{Progress, Watchdog};
use super::writer::Writer;
use crate::backend::Backend;
use crate::broker::Broker;
use crate::client::SentEvents;
use crate::clock;
use crate::conn::{self, Link, Push};
use crate::task::{Registry, builtins};
use crate::wire::{Lamport, Queue};

/// Notes of runs that wait for the consumer loop; beyond them stream entries are left out and `update_state` waits.
const NOTES: usize = 8192;
/// Control requests that wait.
const ORDERS: usize = 256;
/// Claims between fetcher and loop; what they brought is bounded by the prefetch count.
const FETCHED: usize = 4;

/// A worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis cannot be used.
    #[error(transparent)]
    Redis(#[from] conn::Error),
    /// An option makes no sense.
    #[error("{0}")]
    Option(String),
}

/// A worker that is connected and has not started to consume.
pub struct Worker {
    options: Options,
    registry: Registry,
    broker: Broker,
    backend: Option<Backend>,
    state: Option<(StateDb, Saved)>,
    metrics: Metrics,
    heard: Option<Heard>,
}

impl Worker {
    /// Connects and declares the queues.
    ///
    /// # Errors
    /// Redis cannot be reached or refuses, or an option makes no sense.
    pub async fn connect(mut options: Options, registry: Registry) -> Result<Self, Error> {
        if let Some((max, min)) = options.autoscale {
            if max == 0 || min > max {
                return Err(Error::Option(
                    "autoscale: max must be at least 1, and min not above it".into(),
                ));
            }
            options.concurrency = min.max(1);
        }
        if options.concurrency == 0 {
            return Err(Error::Option("concurrency must be at least 1".into()));
        }
        if options.queues.is_empty() {
            return Err(Error::Option("there is no queue to consume".into()));
        }
        if options.disable_prefetch {
            options.prefetch_multiplier = 1;
        }
        let first = registry.entries().find(|entry| entry.options.process);
        if let Some(task) = first
            && options.program.is_none()
        {
            return Err(Error::Option(format!(
                "task {:?} wants a process, and this program does not say how it is started as one \
                 (cli::worker_main does, or worker::Options::program)",
                task.name
            )));
        }
        if options.processes && options.program.is_none() {
            return Err(Error::Option(
                "a pool of processes needs to know how this program is started as one \
                 (cli::worker_main does, or worker::Options::program)"
                    .into(),
            ));
        }
        let registry = complete(registry, &options)?;
        let state = options.state_db.as_deref().map(StateDb::open).transpose();
        let state = state.map_err(Error::Option)?;
        options.broker_options.node.clone_from(&options.hostname);
        let broker = Broker::connect(&options.broker, options.broker_options.clone()).await?;
        let backend = match &options.backend {
            None => None,
            Some(endpoint) if endpoint.is_same_server_and_db(&options.broker) => {
                Some(Backend::new(broker.writer().clone(), options.backend_options.clone()).await?)
            }
            Some(endpoint) => {
                let connect = || Link::connect(endpoint, conn::LinkOptions::default());
                // A server that was there a moment ago is being started again.
                let link = if endpoint.is_same_server(&options.broker) {
                    conn::patiently(connect).await?
                } else {
                    connect().await?
                };
                Some(Backend::new(link, options.backend_options.clone()).await?)
            }
        };
        let queues: Vec<Arc<str>> = options.queues.iter().map(|queue| queue.as_str().into()).collect();
        conn::patiently(|| broker.declare(&queues)).await?;
        let mut advice = conn::advice(broker.writer()).await;
        if let Some((backend, endpoint)) = backend.as_ref().zip(options.backend.as_ref())
            && !endpoint.is_same_server(&options.broker)
        {
            advice.extend(conn::advice_on_results(backend.link()).await);
        }
        for line in advice {
            warn!("{line}");
        }
        let metrics = Metrics::new(registry.meters());
        // Who is told that it is ready may have something to say to it at once.
        let heard = match options.remote_control {
            true => hear(&broker, &options).await,
            false => None,
        };
        Ok(Self {
            heard,
            options,
            registry,
            broker,
            backend,
            state,
            metrics,
        })
    }

    /// Deletes all messages that wait in its queues; how many there were.
    ///
    /// # Errors
    /// Redis cannot be reached or refuses.
    pub async fn purge(&self) -> Result<u64, Error> {
        let queues: Vec<Arc<str>> = self.options.queues.iter().map(|queue| queue.as_str().into()).collect();
        Ok(self.broker.purge(&queues).await?)
    }

    /// Watches it from beside it; what happens is counted from now on.
    pub fn watch(&self) -> Watch {
        self.metrics.watch();
        self.look()
    }

    /// Watches whether it is well; nothing is counted for that.
    pub fn look(&self) -> Watch {
        Watch {
            metrics: self.metrics.clone(),
            broker: self.broker.clone(),
            backend: self.backend.clone(),
        }
    }

    /// Consumes until it is stopped, then returns how it ended.
    pub async fn run(self, stop: Stop) -> Exit {
        let Self {
            options,
            registry,
            broker,
            backend,
            state,
            metrics,
            heard,
        } = self;
        let hostname: Arc<str> = options.hostname.as_str().into();
        let (stays_to, stays) = mpsc::unbounded_channel();
        let (unsent_to, unsent) = mpsc::unbounded_channel();
        let news = News {
            stays: stays_to,
            unsent: unsent_to,
        };
        let (outbox, inbox) = outbox(options.backlog_bytes);
        let writer = Writer::new(
            broker.clone(),
            backend.clone(),
            hostname.clone(),
            options.event_exchange.clone(),
            metrics.clone(),
            news,
        );
        let writing = spawn(ServiceKind::Writer, &stop, writer.run(inbox));

        let clock = Lamport::default();
        let client = options.client(broker.clone(), backend.clone());
        let sent_events = options.sent_events.then(|| SentEvents {
            exchange: options.event_exchange.clone(),
            sender: client.origin().to_owned(),
            clock: clock.clone(),
        });
        let client = client.telling(sent_events);
        let sender = Sender {
            reply_to: client.oid(),
            origin: client.origin(),
            events: client.sent_events(),
        };
        let scribe = Arc::new(Scribe::new(&options, &registry, sender, metrics.clone()));

        let prefetch = match options.prefetch_multiplier as usize {
            0 => Semaphore::MAX_PERMITS >> 4,
            multiplier => options
                .autoscale
                .map_or(options.concurrency, |(max, _)| max)
                .saturating_mul(multiplier),
        };
        let ahead = options
            .fair
            .as_ref()
            .map_or(0, |fair| fair.lookahead.saturating_sub(prefetch));
        let credit = Arc::new(Semaphore::new(prefetch + ahead));
        let (queues, queues_seen) =
            watch::channel(options.queues.iter().map(|queue| Arc::from(queue.as_str())).collect());
        let (fetched_to, fetched) = mpsc::channel(FETCHED);
        let (looks, asked) = mpsc::channel(1);
        let room = Room::new(options.prefetch_bytes);
        let (recall, wanted) = mpsc::unbounded_channel();
        let (recalled_to, recalled) = mpsc::unbounded_channel();
        let recaller = Recaller {
            broker: broker.clone(),
            room: room.clone(),
            wanted,
            to: recalled_to,
        };
        spawn(ServiceKind::Recaller, &stop, recaller.run());
        if options.broker_options.queues.iter().any(Queue::is_broadcast) {
            let listener = Listener {
                broker: broker.clone(),
                credit: credit.clone(),
                room: room.clone(),
                queues: queues_seen.clone(),
                stop: stop.phases(),
                to: fetched_to.clone(),
            };
            spawn(ServiceKind::Listener, &stop, listener.run());
        }
        let progress = Progress::default();
        let watchdog = Watchdog {
            broker: broker.clone(),
            credit: credit.clone(),
            room: room.clone(),
            outbox: outbox.clone(),
            queues: queues_seen.clone(),
            stop: stop.phases(),
            progress: progress.clone(),
            metrics: metrics.clone(),
        };
        spawn(ServiceKind::Watchdog, &stop, watchdog.run());
        let (waits, idle) = (Waits::default(), Arc::new(AtomicBool::new(false)));
        let fetcher = Fetcher {
            broker: broker.clone(),
            credit: credit.clone(),
            room: room.clone(),
            queues: queues_seen,
            left_out: LeftOut::default(),
            stop: stop.phases(),
            outbox: outbox.clone(),
            metrics: metrics.clone(),
            progress,
            asked,
            flood: Flood::new(waits.clone()),
            idle: idle.clone(),
            to: fetched_to,
        };

        let (held, held_seen) = mpsc::channel(1);
        let (kept_to, kept) = mpsc::unbounded_channel();
        let lease = options.broker_options.lease();
        spawn(
            ServiceKind::Keeper,
            &stop,
            Keeper {
                broker: broker.clone(),
                held: held_seen,
                kept: kept_to,
                sweep: Keeper::sweep_pause(lease),
                fresh: Keeper::fresh(lease),
                grace: Keeper::grace(lease),
            }
            .run(),
        );

        let (orders_to, orders) = mpsc::channel::<Order>(ORDERS);
        let (mingled, is_mingled) = oneshot::channel();
        let mingle = Mingle {
            broker: broker.clone(),
            hostname: options.hostname.clone(),
            namespace: options.control_exchange.clone(),
            accept: options.accept.clone(),
            limits: options.limits,
            signer: options.signer.clone(),
            orders: orders_to.clone(),
            asks: options.mingle && heard.is_some(),
            done: mingled,
        };
        spawn(ServiceKind::Mingle, &stop, mingle.run());
        if let Some(heard) = heard {
            heard.listen(&options, &stop, orders_to, looks, &metrics);
        }
        let asked_to_stop = stop.clone();
        spawn(ServiceKind::Fetcher, &stop, async move {
            // No task is taken before it is known what was revoked. Nobody may ever learn that: Redis can be gone again.
            tokio::select! {
                _ = is_mingled => fetcher.run().await,
                () = asked_to_stop.asked() => {}
            }
        });

        let (notes, notes_seen) = mpsc::channel(NOTES);
        let (pool, ends) = Pool::new(options.concurrency);
        let children = Children::new(&options);
        let freq = options.heartbeat.map(|pause| pause.as_secs_f64());
        let (members, members_seen) = mpsc::unbounded_channel();
        let (joined_to, joined) = mpsc::unbounded_channel();
        let (uniques, told) = Uniques::new();
        spawn(
            ServiceKind::Joiner,
            &stop,
            Joiner {
                scribe: scribe.clone(),
                broker: broker.clone(),
                backend,
                outbox: outbox.clone(),
                members: members_seen,
                joined: joined_to,
                stop: stop.clone(),
            }
            .run(),
        );
        let mut phases = stop.phases();
        // A stop that was asked for before this was listened to is one all the same.
        phases.mark_changed();
        let inputs = Inputs {
            fetched,
            stays,
            unsent,
            ends,
            orders,
            kept,
            recalled,
            notes: notes_seen,
            joined,
            told,
            stop: phases,
        };
        let mut events = Events::new(
            hostname,
            options.event_exchange.clone(),
            clock,
            freq,
            options.task_events,
        );
        let gossip = Gossip::new(&options.limits);
        let mut revoked = Revoked::new(&options.limits);
        let state_db = state.map(|(db, saved)| {
            events.adjust(saved.clock);
            revoked.merge(saved.revoked.iter().map(String::as_str), clock::instant());
            db
        });
        let connection = client.connection();
        let waiting = options
            .eta_task_limit
            .map(|limit| Arc::new(Semaphore::new(limit.saturating_sub(prefetch))));
        let line = Line::new(options.fair.clone());
        let mut consumer = Consumer {
            scribe,
            uniques,
            members,
            ended: Vec::new(),
            joining: Vec::new(),
            kept: HashSet::new(),
            errbacks: Errbacks::default(),
            metrics,
            events,
            autoscaler: options
                .autoscale
                .map(|(max, min)| Autoscaler::new(max, min, clock::instant())),
            options,
            registry,
            client: Arc::new(client),
            pool,
            children,
            outbox,
            active: HashMap::new(),
            by_id: HashMap::new(),
            reserved: line,
            ahead,
            timers: Timers::default(),
            parked: Parked::default(),
            waits,
            recall,
            rate_limits: RateLimits::default(),
            revoked,
            untold: VecDeque::new(),
            done: Succeeded::default(),
            gossip,
            panel: Panel::default(),
            state_db,
            totals: HashMap::new(),
            processed: 0,
            running: 0,
            born: clock::instant(),
            credit,
            room,
            idle,
            staying: HashMap::new(),
            is_behind: false,
            standstill: Standstill::new(lease, clock::instant()),
            prefetch,
            queues,
            held,
            notes,
            shutdown: stop.clone(),
            connection,
            has_to_declare: false,
            waiting,
            next_key: 0,
            phase: Phase::Run,
            drained: false,
            out: Vec::new(),
            effects: Vec::new(),
            local: Vec::new(),
            streams: HashMap::new(),
        };
        if consumer.options.direct {
            consumer.add_direct();
        }
        let (exchange, node) = (
            consumer.options.control_exchange.clone(),
            consumer.options.hostname.clone(),
        );
        let exit = run_loop(consumer.run(inputs)).await;
        // Bounded: a Redis that is gone must not keep the worker from ending.
        let _ = tokio::time::timeout(Duration::from_secs(1), broker.unsubscribe_control(&exchange, &node)).await;
        writing.abort();
        exit
    }
}

/// What comes from others: remote control, and gossip beside it on the same connection.
struct Heard {
    messages: mpsc::Receiver<Push>,
    /// The channels of workers' events begin so.
    events: Option<String>,
}

/// Begins to hear others, if that can be. Tasks matter more: an ACL may allow the one and not the other.
async fn hear(broker: &Broker, options: &Options) -> Option<Heard> {
    let (exchange, node) = (&options.control_exchange, &options.hostname);
    let messages = conn::patiently(|| broker.subscribe_control(exchange, node)).await;
    let messages = match messages {
        Ok(messages) => messages,
        Err(error) => {
            warn!("no remote control: {error}");
            return None;
        }
    };
    let events = if options.gossip {
        let events = conn::patiently(|| broker.subscribe_workers(&options.event_exchange)).await;
        events.inspect_err(|error| warn!("no gossip: {error}")).ok()
    } else {
        None
    };
    Some(Heard { messages, events })
}

impl Heard {
    /// Reads it, also what came before.
    fn listen(
        self,
        options: &Options,
        stop: &Stop,
        orders: mpsc::Sender<Order>,
        looks: mpsc::Sender<oneshot::Sender<()>>,
        metrics: &Metrics,
    ) {
        let ear = control::Ear {
            hostname: options.hostname.clone(),
            events: self.events,
            accept: options.accept.clone(),
            limits: options.limits,
            orders,
            looks,
            metrics: metrics.clone(),
        };
        spawn(ServiceKind::Control, stop, ear.listen(self.messages));
    }
}

/// The tasks of a program and those that every worker has.
pub(super) fn complete(mut registry: Registry, options: &Options) -> Result<Registry, Error> {
    let own: Vec<Arc<str>> = registry.entries().map(|entry| entry.name.clone()).collect();
    let has_processes = registry.entries().any(|entry| entry.options.process);
    for name in own {
        registry.change(&name, |own| {
            own.rate_limit = own.rate_limit.or(options.task_defaults.rate_limit)
        });
    }
    builtins::register(&mut registry).map_err(|error| Error::Option(error.to_string()))?;
    // These two run other tasks in themselves.
    for name in ["celery.map", "celery.starmap"] {
        registry.change(name, |own| own.process = has_processes);
    }
    Ok(registry)
}
