//! Opening: the supervisor of a link, which makes its connections and looks after the one that stands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Pipeline, PushInfo, PushKind, Value};
use tracing::{info, warn};

use super::former::{Answer, Former};
use super::hear::SUBSCRIBED;
use super::{Setup, Shared};
use crate::backoff::Backoff;
use crate::clock;
use crate::conn::Error;
use crate::conn::error::{code, is_about_to_come, is_broken, is_refused_login, is_transient_code};

/// Between two looks at a connection.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at whether an outage is over.
const LOOK: Duration = Duration::from_millis(200);

/// Where a new connection goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// There is none.
    Free,
    /// It follows one that stands, and that answers what it was asked.
    Taken,
}

/// A connection that was made.
pub(super) struct Opened {
    pub connection: MultiplexedConnection,
    /// What it was told.
    told: Setup,
}

impl Shared {
    pub(super) async fn open(self: &Arc<Self>, place: Place) -> Result<Opened, Error> {
        let node = self.node().clone();
        let turn = match place {
            Place::Free => self.endpoint.turn(),
            Place::Taken => self.pulse.turn(),
        };
        let client = self.endpoint.client(turn, node.as_ref(), &self.options).await?;
        let opened = self.open_with(&client, place).await;
        self.pulse.turn_to(turn);
        if let Err(error) = &opened {
            if error.is_timeout() && self.endpoint.lacks_tls(&self.options).await {
                return Err(Error::without_tls(&self.endpoint.to_string()));
            }
            if is_about_to_come(error) {
                self.is_coming.store(true, Ordering::Relaxed);
            }
            if is_refused_login(error) {
                if self.outage.is_first_refusal() {
                    warn!("{}", Error::unreachable(error, &self.endpoint.to_string()));
                }
                self.endpoint.read_again();
            }
            if place == Place::Free {
                self.look_elsewhere(turn);
            }
        }
        opened.map_err(|error| Error::unreachable(&error, &self.endpoint.to_string()))
    }

    /// There is no connection to that broker of a list, and none can be made: the next one goes to another, if that is
    /// so for all of us. A broker that merely has no room for one more holds what the others took there.
    fn look_elsewhere(&self, turn: usize) {
        // A node that is gone: the one of the URL knows who has our slot now.
        *self.node() = None;
        let sign_of_life = self.options.health_check + self.options.sign_of_life;
        if !self.outage.is_there(turn, sign_of_life) {
            self.endpoint.leave(turn);
        }
    }

    async fn open_with(self: &Arc<Self>, client: &Client, place: Place) -> redis::RedisResult<Opened> {
        let weak = Arc::downgrade(self);
        let stands = Arc::new(AtomicBool::new(true));
        let is_last = stands.clone();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.connect_timeout))
            .set_response_timeout(Some(self.options.response_timeout))
            .set_push_sender(move |push: PushInfo| -> Result<(), redis::aio::SendError> {
                let is_news = push.kind != PushKind::Disconnection || is_last.load(Ordering::Relaxed);
                if let Some(shared) = weak.upgrade().filter(|_| is_news) {
                    shared.on_push(push);
                }
                Ok(())
            });
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        if self.endpoint.is_behind_sentinels() {
            // Sentinels may not have noticed yet that it is none any more.
            let role: Value = redis::cmd("ROLE").query_async(&mut connection).await?;
            if !is_master(&role) {
                return Err((redis::ErrorKind::Io, "it is a replica").into());
            }
        }
        let question = match place {
            Place::Free => self.former().ask(),
            Place::Taken => Former::default().ask(),
        };
        let known = Answer::of(&mut connection, &question).await?;
        let setup = self.setup().clone();
        let mut pipe = Pipeline::new();
        for script in &setup.scripts {
            pipe.load_script(script);
        }
        if let Some(command) = &setup.tracking {
            pipe.add_command(command.clone());
        }
        if !pipe.is_empty() {
            let mut answers = connection.req_packed_commands(&pipe, 0, pipe.len()).await?;
            let told = setup.tracking.as_ref().and_then(|_| answers.pop());
            // Without news of keys it is a connection nevertheless.
            let is_refused = |error: &redis::ServerError| !is_transient_code(code(error));
            let is_told = !matches!(&told, Some(Value::ServerError(error)) if is_refused(error));
            self.is_told.store(told.is_some() && is_told, Ordering::Relaxed);
            // A server that is loading refuses these: the connection is not ready, so try again.
            for value in answers.into_iter().chain(told.filter(|_| is_told)) {
                if let Value::ServerError(error) = value {
                    return Err(error.into());
                }
            }
        }
        subscribe(&mut connection, &setup.patterns, &setup.channels).await?;
        redis::cmd("PING").exec_async(&mut connection).await?;
        self.pulse.hear();
        match place {
            Place::Free => self.former().ended(known),
            Place::Taken => self.former().followed(known),
        }
        let mut last = self.stands.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::replace(&mut *last, stands).store(false, Ordering::Relaxed);
        Ok(Opened {
            connection,
            told: setup,
        })
    }

    /// Subscribes the connection that stands now to what was asked for while it was made: whoever asked found none, or
    /// the one before it.
    async fn catch_up(&self, epoch: u64, mut opened: Opened) {
        let now = self.setup().clone();
        let patterns = now.patterns.difference(&opened.told.patterns);
        let channels = now.channels.difference(&opened.told.channels);
        if let Err(error) = subscribe(&mut opened.connection, patterns, channels).await {
            self.broken(epoch, &error.to_string());
        }
    }

    /// Makes a connection that takes the place of the one that stands. What waits for an answer of the old one gets it.
    async fn follow(self: &Arc<Self>, epoch: u64) {
        // Should it fail, the old one is as good as it was.
        let Ok(opened) = self.open(Place::Taken).await else {
            return;
        };
        let follows = self.current.send_if_modified(|current| {
            let stands = current.as_ref().is_some_and(|(number, _)| *number == epoch);
            if stands {
                *current = Some((epoch, opened.connection.clone()));
            }
            stands
        });
        if follows {
            self.catch_up(epoch, opened).await;
        }
        // It has not read the keys that news are wanted of.
        self.woken.notify_one();
    }
}

async fn subscribe(
    connection: &mut MultiplexedConnection,
    patterns: impl IntoIterator<Item = &String>,
    channels: impl IntoIterator<Item = &String>,
) -> redis::RedisResult<()> {
    for pattern in patterns {
        connection.psubscribe(pattern).await?;
    }
    let channels: Vec<&String> = channels.into_iter().collect();
    for some in channels.chunks(SUBSCRIBED) {
        connection.subscribe(some).await?;
    }
    Ok(())
}

fn is_master(role: &Value) -> bool {
    match role {
        Value::Array(parts) => parts.first() == Some(&Value::BulkString(b"master".to_vec())),
        _ => false,
    }
}

/// Makes connections as long as somebody holds the link.
pub(super) async fn supervise(shared: Weak<Shared>) {
    let mut epoch = 1;
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let health_check = strong.options.health_check;
        let standing = strong.current.borrow().clone();
        match standing {
            Some((epoch, mut connection)) => {
                let mut changes = strong.current.subscribe();
                let mut pause = health_check.saturating_sub(strong.pulse.silence());
                if let Some(long) = strong.outage.over(clock::instant()) {
                    info!(
                        "connected to Redis at {} again after {:.1} s",
                        strong.endpoint,
                        long.as_secs_f64()
                    );
                }
                if strong.outage.lasts() {
                    pause = pause.min(LOOK);
                }
                let weak = Arc::downgrade(&strong);
                drop(strong);
                // Wake up at once when the connection is taken for gone, else look after it when it was silent.
                let broke = tokio::time::timeout(pause.max(SHORTEST_PAUSE), changes.wait_for(Option::is_none))
                    .await
                    .is_ok();
                drop(changes);
                let Some(strong) = weak.upgrade() else { return };
                if strong.endpoint.turn() != strong.pulse.turn() {
                    strong.broken(epoch, "another broker of the list is used now");
                    continue;
                }
                if !broke && strong.bulky.swap(false, Ordering::Relaxed) {
                    strong.follow(epoch).await;
                    continue;
                }
                // Whoever waits for an answer finds out by itself.
                if broke || !strong.waiting.is_empty() || strong.pulse.silence() < health_check {
                    continue;
                }
                connection.set_response_timeout(strong.options.sign_of_life);
                match redis::cmd("PING").exec_async(&mut connection).await {
                    Err(error) if is_broken(&error) => strong.broken(epoch, "no sign of life"),
                    _ => strong.pulse.hear(),
                }
            }
            None => {
                let mut backoff = Backoff::default();
                let weak = Arc::downgrade(&strong);
                drop(strong);
                loop {
                    let Some(strong) = weak.upgrade() else { return };
                    if let Ok(opened) = strong.open(Place::Free).await {
                        epoch += 1;
                        strong.again.fetch_add(1, Ordering::Relaxed);
                        strong.outage.returned(&strong.pulse, clock::instant());
                        strong.current.send_replace(Some((epoch, opened.connection.clone())));
                        strong.catch_up(epoch, opened).await;
                        strong.woken.notify_one();
                        // Whoever is asked to listen again does so at once: what is said meanwhile is not heard.
                        if let Some(ears) = strong.ears.get() {
                            ears.shared.hurry.notify_one();
                        }
                        break;
                    }
                    let hurry = strong.hurry.clone();
                    drop(strong);
                    let _ = tokio::time::timeout(backoff.pause(), hurry.notified()).await;
                }
            }
        }
    }
}
