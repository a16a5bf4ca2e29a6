//! Keeps leases: what we hold stays ours however long it takes, and what the dead held comes back.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::broker::{Broker, Error, GivenUp, Restored, Strays, Sweep, Tag};
use crate::clock::{self, Instant};

/// Tags in one script call.
const BATCH: usize = 1000;

/// How often it is said that messages cannot be restored, or that dead letters have to make room.
const SAY: Duration = Duration::from_secs(60);

/// How often to look for held messages that stand in no index, and how soon again while there are some.
const LOOK: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long others take to renew their leases when Redis is there again, at most: they find out that they were cut
/// off, try each half second and renew at once.
const LONGEST_GRACE: Duration = Duration::from_secs(6);
/// What they are given where Redis has been up for long and nobody knows of an outage: it may have been cut off.
const SHORTEST_GRACE: Duration = Duration::from_secs(1);

/// What the consumer loop is told of held messages.
pub(crate) enum Kept {
    /// Others have them now.
    Lost(Vec<Tag>),
    /// All of what was held at that time, but for what was lost, is ours for another lease, as far as can be known.
    Renewed(Instant),
    /// It went to the dead-letter list.
    GivenUp(GivenUp),
    /// Leases may have run out while Redis was away or we stood still, and are to be renewed before others take them.
    Overdue,
    /// The same; and there is a connection again, maybe to a Redis that came back empty.
    Reconnected,
}

/// What is held.
pub(crate) struct Held {
    pub tags: Vec<Tag>,
    /// So many, the last of them, are on their way to Redis, or their acks are: that they are not there does not mean
    /// that others have them.
    pub new: usize,
    /// When that was so.
    pub at: Instant,
}

/// What follows a look at what is overdue.
enum Next {
    /// There is more of it.
    Now,
    Later,
    /// It may be ours: first our own leases are renewed.
    Renew,
}

/// The service that keeps leases. It is told what is held by the consumer loop, and tells it what was lost.
pub(crate) struct Keeper {
    pub broker: Broker,
    /// Everything held, each time the leases are due.
    pub held: mpsc::Receiver<Held>,
    pub kept: mpsc::UnboundedSender<Kept>,
    /// Pause between two looks for messages whose holder is gone.
    pub sweep: Duration,
    /// Leases that were renewed within that time hold for a while.
    pub fresh: Duration,
    /// How long others may take to renew their leases when the connection is there again: what cut us off probably cut
    /// them off as well, and their leases ran out without anybody having died.
    pub grace: Duration,
}

impl Keeper {
    /// How often leases are kept fresh: three times within each, and often enough that a server whose clock jumps does
    /// not matter.
    pub(crate) fn pause(lease: Duration) -> Duration {
        (lease / 3).clamp(Duration::from_millis(200), Duration::from_secs(60))
    }

    /// See [`fresh`](Self::fresh).
    pub(crate) fn fresh(lease: Duration) -> Duration {
        2 * Self::pause(lease)
    }

    /// How often to look for overdue messages: often enough that what a dead worker ran starts again within a second of
    /// the end of its lease.
    pub(crate) fn sweep_pause(lease: Duration) -> Duration {
        (lease / 20).clamp(Duration::from_millis(250), Duration::from_secs(30))
    }

    /// See [`grace`](Self::grace).
    pub(crate) fn grace(lease: Duration) -> Duration {
        (Self::pause(lease) + Duration::from_secs(1)).min(LONGEST_GRACE)
    }

    /// Runs until the consumer loop is gone.
    pub(crate) async fn run(mut self) {
        let mut renewal = tokio::time::interval(Broker::RENEWAL);
        let mut sweep = tokio::time::interval(self.sweep);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut connection = self.broker.connection();
        sweep.reset_after(self.first_grace().await);
        let (mut at, mut said, mut said_leases) = (Sweep::default(), None, None);
        let mut look = tokio::time::interval(LOOK);
        let mut strays = Some(Strays::default());
        let mut full = Full::default();
        // When our own leases were last renewed: who cannot do that takes nobody's for run out, not even his own.
        let mut renewed = clock::instant();
        loop {
            tokio::select! {
                held = self.held.recv() => match held {
                    Some(held) => {
                        let began = clock::instant();
                        match self.extend(&held).await {
                            Ok(at_server) => {
                                renewed = began;
                                let _ = self.kept.send(Kept::Renewed(held.at));
                                // This machine's clock may stand still with it.
                                at.trust_until(at_server + self.fresh.as_secs_f64());
                            }
                            Err(error) if error.is_transient() => {}
                            Err(error) => {
                                // Who waits for better news would wait for ever.
                                let _ = self.kept.send(Kept::Renewed(held.at));
                                if is_time(&mut said_leases) {
                                    error!(
                                        "leases cannot be renewed, so that what runs here for long is given to others \
                                         as well: {error}; see docs/redis.md#acl"
                                    );
                                }
                            }
                        }
                    }
                    None => return full.say(&self.broker),
                },
                again = self.broker.reconnected(connection) => {
                    connection = again;
                    sweep.reset_after(self.grace);
                    let _ = self.kept.send(Kept::Reconnected);
                }
                _ = sweep.tick() => {
                    full.look(&self.broker);
                    let since = clock::instant().saturating_duration_since(renewed);
                    // With a connection of which the above has not heard yet nothing is taken.
                    let stands = connection != 0 && self.broker.connection() == connection;
                    let next = match since > self.fresh {
                        true => Next::Renew,
                        false if stands => self.restore(&mut at, &mut said).await,
                        false => Next::Later,
                    };
                    match next {
                        // Redis is away, or this process, or all of this machine, stood still: what is overdue may be
                        // ours, or that of others who stood still with us.
                        Next::Renew => {
                            sweep.reset_after(self.grace);
                            let _ = self.kept.send(Kept::Overdue);
                        }
                        // Leases get their turn in between.
                        Next::Now => sweep.reset_immediately(),
                        Next::Later => {}
                    }
                }
                _ = look.tick() => {
                    if self.look(&mut strays).await {
                        look.reset_after(LOOK_AGAIN);
                    }
                }
                // What cannot be renewed now is renewed long before its deadline.
                _ = renewal.tick() => drop(self.broker.renew_bindings().await),
            }
        }
    }

    /// How long a worker that has just started leaves alone what is overdue. It may have been started because Redis was
    /// away, as supervisors do; what the others hold is overdue then, and they still run it.
    async fn first_grace(&self) -> Duration {
        match self.broker.uptime().await {
            Some(uptime) => self.grace.saturating_sub(uptime).max(SHORTEST_GRACE),
            None => self.grace,
        }
    }

    /// Renews leases; when that was, by the server's clock.
    async fn extend(&self, held: &Held) -> Result<f64, Error> {
        let (mut lost, mut at) = (Vec::new(), None);
        let (there, new) = held.tags.split_at(held.tags.len() - held.new);
        for tags in there.chunks(BATCH) {
            // A broker that cannot be reached is waited for by the next round; the lease may run out meanwhile, and
            // that is what it is for.
            let (now, ours) = self.broker.extend(tags).await?;
            at.get_or_insert(now);
            lost.extend(
                tags.iter()
                    .zip(ours)
                    .filter(|(_, ours)| !ours)
                    .map(|(tag, _)| tag.clone()),
            );
        }
        if !lost.is_empty() {
            let _ = self.kept.send(Kept::Lost(lost));
        }
        // Those of them that are there.
        for tags in new.chunks(BATCH) {
            at.get_or_insert(self.broker.extend(tags).await?.0);
        }
        match at {
            Some(at) => Ok(at),
            // Of what is taken from now on the server's clock is to be known as well.
            None => Ok(self.broker.extend(&[]).await?.0),
        }
    }

    /// A look for held messages that stand in no index; whether another is to follow soon.
    async fn look(&self, strays: &mut Option<Strays>) -> bool {
        let Some(looks) = strays else { return false };
        match self.broker.note_strays(looks).await {
            Ok(found) => {
                if found.noted > 0 {
                    warn!(
                        "{} message(s) of unacked stood in no index, and nobody would have restored them; unless \
                         somebody is done with them they are delivered again when the visibility timeout is over",
                        found.noted
                    );
                }
                found.more
            }
            Err(error) if error.is_transient() => false,
            Err(error) => {
                warn!("held messages that stand in no index cannot be looked for: {error}; see docs/redis.md#acl");
                *strays = None;
                false
            }
        }
    }

    /// Some of what is overdue.
    async fn restore(&self, at: &mut Sweep, said: &mut Option<Instant>) -> Next {
        match self.broker.restore_overdue(at).await {
            Ok(mut restored) => {
                if restored.requeued > 0 {
                    info!("restored {} message(s) whose worker is gone", restored.requeued);
                }
                for given_up in std::mem::take(&mut restored.dead) {
                    let _ = self.kept.send(Kept::GivenUp(given_up));
                }
                if let Some(refusal) = &restored.refusal
                    && is_time(said)
                {
                    warn!(
                        "overdue messages cannot be restored and stay in unacked, {} or more; the first is {refusal}",
                        restored.stay
                    );
                }
                match restored {
                    Restored { stale: true, .. } => Next::Renew,
                    Restored { more: true, .. } => Next::Now,
                    _ => Next::Later,
                }
            }
            Err(error) if error.is_transient() => Next::Later,
            Err(error) => {
                if is_time(said) {
                    warn!(%error, "overdue messages cannot be restored");
                }
                Next::Later
            }
        }
    }
}

/// Whether it is time to say it again; it counts as said then.
fn is_time(said: &mut Option<Instant>) -> bool {
    let now = clock::instant();
    let is_time = said.is_none_or(|said| now.saturating_duration_since(said) > SAY);
    if is_time {
        *said = Some(now);
    }
    is_time
}

/// What was said of dead letters that had to make room for newer ones: nobody can look at them any more.
#[derive(Default)]
struct Full {
    /// So many.
    letters: u64,
    at: Option<Instant>,
}

impl Full {
    /// Says it when it begins, and once a minute while it goes on.
    fn look(&mut self, broker: &Broker) {
        if broker.pushed_out() > self.letters && is_time(&mut self.at) {
            self.say(broker);
        }
    }

    fn say(&mut self, broker: &Broker) {
        let letters = broker.pushed_out();
        let (new, most) = (letters - self.letters, broker.options().dead_limit);
        if new > 0 {
            warn!(
                "a list of dead letters is full (dead_limit = {most}): its {new} oldest were removed to make room, and cannot be \
                 brought back; `orchestra dead list` shows the others"
            );
            self.letters = letters;
        }
    }
}
