//! The loop (`celery.beat.Service`): have the lock, know the schedule, send what is due, sleep until the next.

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use jiff::tz::TimeZone;
use redis::Pipeline;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::agenda::{Agenda, Step};
use super::lease::Lease;
use super::store::{Advanced, Held, Store};
use super::{Entry, control};
use crate::broker::{self, Broker, Error, Write};
use crate::client::{Client, Message, Sending};
use crate::clock::{self, Instant, Timestamp};
use crate::conn::Endpoint;

/// The pause before something is tried again that Redis refused.
const REFUSED: Duration = Duration::from_secs(5);

/// The pause before the schedule is read again because it was not as we knew it. News of the change come sooner.
const CHANGED: Duration = Duration::from_secs(1);

/// How often the schedule is looked at where Redis tells nobody that it was changed.
const LOOK: Duration = Duration::from_secs(1);

/// How beat works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Node name, for remote control and for people.
    pub hostname: String,
    /// The time zone of crontabs that name none (`timezone`).
    pub zone: TimeZone,
    /// The longest sleep (`beat_max_loop_interval`).
    pub max_interval: Duration,
    /// How old a missed due time of a crontab may be to be made up for (`beat_cron_starting_deadline`).
    pub cron_starting_deadline: Option<Duration>,
    /// After this long without a sign of life, another beat takes over.
    pub lock_timeout: Duration,
    /// Answer `celery inspect ping` (`beat_enable_remote_control`).
    pub remote_control: bool,
    /// Exchange of remote control, without `.pidbox`.
    pub control_exchange: String,
}

impl Options {
    /// Celery's defaults.
    pub fn new(hostname: impl Into<String>) -> Self {
        Self {
            hostname: hostname.into(),
            zone: TimeZone::UTC,
            max_interval: Duration::from_secs(300),
            cron_starting_deadline: None,
            lock_timeout: Duration::from_secs(15),
            remote_control: false,
            control_exchange: "celery".into(),
        }
    }
}

/// Sends periodic tasks. Any number may run; one of them sends.
#[derive(Debug)]
pub struct Beat {
    options: Options,
    broker: Broker,
    client: Client,
    store: Store,
    files: Vec<Entry>,
    token: String,
    /// While we have the lock.
    leading: Option<(Lease, Agenda)>,
    /// When the lock is asked for and the schedule read again.
    refresh_at: Instant,
    declared: HashSet<String>,
    ticked: watch::Sender<Instant>,
}

impl Beat {
    /// Connects. It sends as `sending` says; `files` are the entries that come from files.
    ///
    /// # Errors
    /// Redis cannot be reached or refuses.
    pub async fn connect(
        endpoint: &Endpoint,
        broker_options: broker::Options,
        sending: Sending,
        options: Options,
        files: Vec<Entry>,
    ) -> Result<Self, Error> {
        let broker = Broker::connect(endpoint, broker_options).await?;
        let store = Store::new(broker.clone()).await?;
        store.watch(LOOK).await;
        Ok(Self {
            token: format!("{} {}", options.hostname, Uuid::new_v4()),
            client: Client::new(broker.clone(), None).sending(sending),
            options,
            broker,
            store,
            files,
            leading: None,
            refresh_at: clock::instant(),
            declared: HashSet::new(),
            ticked: watch::Sender::new(clock::instant()),
        })
    }

    /// Sends what is due until `stop` is done, then lets another beat take over.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let (store, token) = (self.store.clone(), self.token.clone());
        let (broker, options, ticked) = (self.broker.clone(), self.options.clone(), self.ticked.subscribe());
        let listening = async {
            if options.remote_control {
                // Celery's `beat_remote_control_max_tick_age`.
                let longest = (options.max_interval * 2).max(Duration::from_secs(60));
                control::listen(&broker, &options.control_exchange, &options.hostname, ticked, longest).await;
            }
            std::future::pending::<()>().await;
        };
        let (stop, listening) = (pin!(stop), pin!(listening));
        tokio::select! {
            () = stop => {}
            () = listening => {}
            () = self.tick_for_ever() => {}
        }
        // Bounded: a Redis that is gone must not keep the program from ending. The lock expires then.
        let ended = async {
            let _ = store.release(&token).await;
            if options.remote_control {
                broker
                    .unsubscribe_control(&options.control_exchange, &options.hostname)
                    .await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
        info!("beat: stopped");
    }

    async fn tick_for_ever(&mut self) {
        let mut in_trouble = false;
        loop {
            self.ticked.send_replace(clock::instant());
            match self.tick().await {
                Ok(pause) => {
                    in_trouble = false;
                    debug!("beat: waking up in {:.2} seconds", pause.as_secs_f64());
                    let until = clock::instant() + pause;
                    self.broker.wait_or_look(pause, LOOK).await;
                    if clock::instant() < until {
                        // Somebody changed something.
                        self.refresh_at = clock::instant();
                    }
                }
                Err(trouble) => {
                    // The connection says for itself that it is lost, and that it is there again.
                    if !in_trouble {
                        warn!("beat: {trouble}");
                    }
                    in_trouble = true;
                    self.refresh_at = clock::instant();
                    if trouble.is_transient() {
                        let _ = tokio::time::timeout(Duration::from_secs(1), self.broker.writer().ready()).await;
                    } else {
                        tokio::time::sleep(REFUSED).await;
                    }
                }
            }
        }
    }

    /// Does what is to be done now; how long there is nothing more to do.
    async fn tick(&mut self) -> Result<Duration, Error> {
        if clock::instant() >= self.refresh_at {
            self.refresh().await?;
        }
        while clock::instant() < self.refresh_at {
            let Some((lease, agenda)) = &mut self.leading else {
                break;
            };
            if !lease.stands() {
                warn!("beat: the lock could not be renewed in time; nothing is sent until it is ours again");
                self.leading = None;
                self.refresh_at = clock::instant();
                break;
            }
            let now = lease.now();
            let Some(step) = agenda.step(now) else {
                let due = agenda.next().map_or(Duration::MAX, |next| clock::until(next, now));
                let refresh = self.refresh_at.saturating_duration_since(clock::instant());
                return Ok(due.min(refresh).min(self.options.max_interval));
            };
            self.apply(step, now).await?;
        }
        Ok(self.refresh_at.saturating_duration_since(clock::instant()))
    }

    /// Asks for the lock, and reads the schedule when it is ours.
    async fn refresh(&mut self) -> Result<(), Error> {
        let asked = clock::instant();
        let (held, now) = self.store.hold(&self.token, self.options.lock_timeout).await?;
        let lease = Lease::new(asked, self.options.lock_timeout, now);
        self.refresh_at = asked + self.options.lock_timeout / 3;
        if let Held::ByAnother(left) = held {
            // Never at once: a lock that somebody made without an end would keep us busy.
            self.refresh_at = asked + left.clamp(Duration::from_millis(50), self.options.lock_timeout / 3);
            if self.leading.take().is_some() {
                warn!("beat: another beat has the lock now; nothing is sent from here");
            }
            return Ok(());
        }
        if held == Held::Taken || self.leading.is_none() {
            info!("beat: this beat sends from now on");
            self.declared.clear();
            if !self.store.sync(&self.token, &self.files).await? {
                self.leading = None;
                return Ok(());
            }
        }
        let stored = self.store.entries().await?;
        let deadline = self.options.cron_starting_deadline;
        let mut agenda = self
            .leading
            .take()
            .map_or_else(|| Agenda::new(deadline), |(_, agenda)| agenda);
        agenda.load(stored, &self.options.zone);
        self.leading = Some((lease, agenda));
        Ok(())
    }

    async fn apply(&mut self, step: Step, now: Timestamp) -> Result<(), Error> {
        let (name, due_at) = match step {
            Step::Send { name, due_at } => (name, Some(due_at)),
            Step::Begin { name } => (name, None),
        };
        let advanced = match self.advance(&name, due_at, now).await {
            Ok(advanced) => advanced,
            Err(Error::Refused(why)) => {
                error!("beat: {name:?} could not be sent: {why}");
                if let Some((_, agenda)) = &mut self.leading {
                    agenda.later(name, clock::after(now, REFUSED));
                }
                return Ok(());
            }
            Err(other) => return Err(other),
        };
        match (advanced, &mut self.leading) {
            (Advanced::Done, Some((_, agenda))) => agenda.ran(name, now),
            (Advanced::NotOurs, leading) => {
                warn!("beat: the lock was lost; nothing is sent until it is ours again");
                *leading = None;
                self.refresh_at = clock::instant();
            }
            // Not at once: something that never is as we read it must not keep us busy.
            (Advanced::Changed, _) => self.refresh_at = self.refresh_at.min(clock::instant() + CHANGED),
            (Advanced::Done, None) => {}
        }
        Ok(())
    }

    /// Sends an entry, or begins to count its time, in one step in Redis.
    async fn advance(&mut self, name: &str, due_at: Option<Timestamp>, now: Timestamp) -> Result<Advanced, Error> {
        let Some((entry, stored)) = self.leading.as_ref().and_then(|(_, agenda)| agenda.get(name)) else {
            return Ok(Advanced::Changed);
        };
        if due_at.is_none() {
            if !stored.last_run_at.is_empty() {
                warn!(
                    "beat: {name:?} was last sent at {:?}, by a clock that was wrong; it counts from now",
                    stored.last_run_at
                );
            }
            return self.store.advance(&self.token, name, stored, now, None).await;
        }
        let call = entry.call(due_at);
        let made = self.client.message(&call);
        let Message {
            message, queue, event, ..
        } = made.map_err(|error| Error::Refused(error.to_string()))?;
        if let Some(queue) = queue.filter(|queue| !self.declared.contains(queue)) {
            let mut pipe = Pipeline::new();
            self.broker.append(&mut pipe, &[Write::Declare(queue.as_str().into())]);
            // What is told to everybody leaves nothing to declare.
            if !pipe.is_empty() {
                self.broker.writer().pipeline(&pipe).await?;
            }
            self.declared.insert(queue);
        }
        let sent = Some(&message);
        let advanced = self.store.advance(&self.token, name, stored, now, sent).await?;
        if advanced == Advanced::Done {
            info!("beat: sent due task {name} ({}[{}])", entry.definition.task, call.id());
            let mut pipe = Pipeline::new();
            self.broker.append_after(&mut pipe, &message);
            self.broker.append(&mut pipe, event.as_slice());
            // The message is sent, whatever comes of this.
            if !pipe.is_empty()
                && let Err(error) = self.broker.writer().pipeline(&pipe).await
            {
                debug!("beat: {name} was sent, and nobody told: {error}");
            }
        } else {
            debug!(?advanced, "beat: {name} was not sent");
        }
        Ok(advanced)
    }
}
