//! Hearing: pub/sub, on a connection of its own, and news of keys (`CLIENT TRACKING`), on that which reads them.

use std::sync::atomic::Ordering;

use redis::{Cmd, FromRedisValue as _, PushInfo, PushKind, Value};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::warn;

use super::{Link, Shared};
use crate::conn::Error;
use crate::conn::patience::patiently;

/// A message that came by pub/sub.
#[derive(Debug)]
pub struct Push {
    /// Where it was published.
    pub channel: String,
    /// What.
    pub payload: Vec<u8>,
    /// Gives its bytes back when nobody needs it any more.
    pub(crate) share: Share,
}

/// The room that a message takes which came by pub/sub: as long as this is there it counts among those that wait.
#[derive(Debug)]
pub(crate) struct Share(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// Pub/sub messages that wait to be read; beyond them the newest are dropped, so that a flood cannot fill the memory.
pub(super) const PUSHES: usize = 4096;
/// Bytes of pub/sub messages that wait to be read.
pub(super) const PUSHED_BYTES: usize = 64 << 20;

/// Channels in one `SUBSCRIBE`: bounds how long it occupies Redis.
pub(super) const SUBSCRIBED: usize = 500;

impl Link {
    /// Asks for news of changed keys that begin with one of `prefixes` (`CLIENT TRACKING … BCAST`): each wakes
    /// [`woken`](Self::woken). Whether the server can do that; if not, callers have to look by themselves.
    pub async fn track(&self, prefixes: &[String]) -> bool {
        let mut command = tracking();
        command.arg("BCAST");
        for prefix in prefixes {
            command.arg("PREFIX").arg(prefix);
        }
        // Prefixes can be added but not changed; what is lost in between is seen by the next look at the keys.
        let _ = self
            .query::<Value>(redis::cmd("CLIENT").arg("TRACKING").arg("OFF"))
            .await;
        self.start_tracking(command).await
    }

    /// Asks for news of the keys that this connection reads: the next change of one wakes [`woken`](Self::woken), once.
    /// Redis counts all keys of a script that reads one; those of `quiet` are no news. Whether the server can do that.
    pub async fn track_reads(&self, quiet: Vec<String>) -> bool {
        self.shared.setup().quiet = quiet;
        self.start_tracking(tracking()).await
    }

    async fn start_tracking(&self, command: Cmd) -> bool {
        self.shared.setup().tracking = Some(command.clone());
        let started = patiently(|| self.query::<Value>(&command)).await;
        // A server that cannot be reached is asked again by the next connection.
        let starts = started.is_ok() || self.epoch() == 0;
        self.shared.is_told.store(starts, Ordering::Relaxed);
        starts
    }

    /// Whether news of changed keys come; they may not be allowed to this user.
    pub fn is_told(&self) -> bool {
        self.shared.is_told.load(Ordering::Relaxed)
    }

    /// Ends a wait for news: what this connection itself changes is no news to it.
    pub fn wake(&self) {
        self.shared.woken.notify_one();
    }

    /// Waits for news of a tracked key, or of a new connection, after which anything may have changed.
    pub async fn woken(&self) {
        self.shared.woken.notified().await;
    }

    /// Subscribes to one channel, now and on every later connection; messages come to [`pushes`](Self::pushes).
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn subscribe_to(&self, channel: &str) -> Result<(), Error> {
        self.subscribe_to_all(&[channel]).await
    }

    /// Subscribes to many channels, in few round trips; see [`subscribe_to`](Self::subscribe_to).
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn subscribe_to_all(&self, channels: &[&str]) -> Result<(), Error> {
        let ears = &self.ears().await.shared;
        let names = channels.iter().map(|channel| (*channel).to_owned());
        ears.setup().channels.extend(names);
        let Some((_, mut connection)) = ears.current.borrow().clone() else {
            return Ok(());
        };
        for some in channels.chunks(SUBSCRIBED) {
            if let Err(error) = connection.subscribe(some).await {
                let error = Error::from_redis(&error, &ears.endpoint.to_string());
                if !error.is_transient() {
                    // What is refused now is refused later, and would keep the next connection from being made.
                    let mut setup = ears.setup();
                    for channel in channels {
                        setup.channels.remove(*channel);
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Subscribes to all channels that match a pattern; see [`subscribe_to`](Self::subscribe_to).
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn subscribe_matching(&self, pattern: &str) -> Result<(), Error> {
        let ears = &self.ears().await.shared;
        ears.setup().patterns.insert(pattern.to_owned());
        let Some((_, mut connection)) = ears.current.borrow().clone() else {
            return Ok(());
        };
        connection.psubscribe(pattern).await.map_err(|error| {
            let error = Error::from_redis(&error, &ears.endpoint.to_string());
            if !error.is_transient() {
                ears.setup().patterns.remove(pattern);
            }
            error
        })
    }

    /// Ends a subscription to one channel.
    pub async fn unsubscribe_from(&self, channel: &str) {
        self.unsubscribe_from_all(&[channel]).await;
    }

    /// Ends subscriptions to channels.
    pub async fn unsubscribe_from_all(&self, channels: &[&str]) {
        let Some(ears) = self.shared.ears.get() else { return };
        for channel in channels {
            ears.shared.setup().channels.remove(*channel);
        }
        let current = ears.shared.current.borrow().clone();
        if let Some((_, mut connection)) = current {
            for some in channels.chunks(SUBSCRIBED) {
                // A connection that is gone has no subscriptions left.
                let _ = connection.unsubscribe(some).await;
            }
        }
    }

    /// Ends a subscription to all channels that match a pattern.
    pub async fn unsubscribe_matching(&self, pattern: &str) {
        let Some(ears) = self.shared.ears.get() else { return };
        ears.shared.setup().patterns.remove(pattern);
        let current = ears.shared.current.borrow().clone();
        if let Some((_, mut connection)) = current {
            // A connection that is gone has no subscriptions left.
            let _ = connection.punsubscribe(pattern).await;
        }
    }

    /// The pub/sub messages of this link; there is one reader, so the second call gives an empty channel.
    pub fn pushes(&self) -> mpsc::Receiver<Push> {
        let unread = self.shared.unread.lock().ok().and_then(|mut unread| unread.take());
        unread.unwrap_or_else(|| mpsc::channel(1).1)
    }
}

impl Shared {
    /// Puts a message where it is read, if there is room.
    fn pass_on(&self, channel: String, payload: Vec<u8>) -> bool {
        let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let share = self.room.clone().try_acquire_many_owned(bytes);
        share.is_ok_and(|share| {
            let push = Push {
                channel,
                payload,
                share: Share(share),
            };
            self.pushes.try_send(push).is_ok()
        })
    }

    /// Whether what was changed is of interest. A server that forgot all keys does not say which.
    fn is_news(&self, changed: &[Value]) -> bool {
        let Some(Value::Array(keys)) = changed.first() else {
            return true;
        };
        let quiet = &self.setup().quiet;
        let is_quiet =
            |key: &Value| matches!(key, Value::BulkString(key) if quiet.iter().any(|quiet| quiet.as_bytes() == key));
        !keys.iter().all(is_quiet)
    }

    pub(super) fn on_push(&self, push: PushInfo) {
        self.pulse.hear();
        match push.kind {
            PushKind::Invalidate if self.is_news(&push.data) => self.woken.notify_one(),
            PushKind::Message | PushKind::PMessage => {
                let mut parts = push.data.into_iter().rev();
                let (Some(payload), Some(channel)) = (parts.next(), parts.next()) else {
                    return;
                };
                if let (Ok(channel), Value::BulkString(payload)) = (String::from_redis_value(channel), payload)
                    && !self.pass_on(channel, payload)
                    && self.dropped.fetch_add(1, Ordering::Relaxed) == 0
                {
                    warn!("pub/sub messages come faster than they can be handled; some are dropped");
                }
            }
            PushKind::Disconnection => {
                let epoch = self.current.borrow().as_ref().map(|(epoch, _)| *epoch);
                if let Some(epoch) = epoch {
                    self.broken(epoch, "the server closed the connection");
                }
            }
            _ => {}
        }
    }
}

fn tracking() -> Cmd {
    let mut command = redis::cmd("CLIENT");
    command.arg("TRACKING").arg("ON").arg("NOLOOP");
    command
}
