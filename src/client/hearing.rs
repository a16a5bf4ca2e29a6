//! Who waits for which result, and the subscriptions that this needs. One task makes and ends them all, in the order in
//! which they are wanted: a waiter that comes while another leaves keeps its subscription, and one that is dropped, by
//! a timeout or with its stream, leaves none behind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc, watch};

use crate::conn::{Endpoint, Error, Link, LinkOptions, Push};

/// Changes that are made together.
const TOGETHER: usize = 1000;

/// The results that somebody waits for.
#[derive(Debug)]
pub(super) struct Hearing {
    channels: Mutex<HashMap<String, Channel>>,
    /// Channels that somebody began or ceased to wait for.
    changed: mpsc::UnboundedSender<String>,
}

/// Those who wait for one result.
#[derive(Debug)]
struct Channel {
    waiters: usize,
    news: Arc<Notify>,
    /// Whether it is subscribed to, once that is known.
    listens: watch::Sender<Option<Result<(), Error>>>,
}

/// One who waits for a result, until it is dropped.
#[derive(Debug)]
pub(super) struct Waiter {
    hearing: Arc<Hearing>,
    channel: String,
    /// Something came.
    pub news: Arc<Notify>,
    listens: watch::Receiver<Option<Result<(), Error>>>,
}

impl Hearing {
    /// Connects. The connection ends with the last one who holds this.
    pub async fn start(endpoint: &Endpoint) -> Result<Arc<Self>, Error> {
        let link = Link::connect(endpoint, LinkOptions::default()).await?;
        let mut pushes = link.pushes();
        let (changed, changes) = mpsc::unbounded_channel();
        let hearing = Arc::new(Self {
            channels: Mutex::default(),
            changed,
        });
        let weak = Arc::downgrade(&hearing);
        tokio::spawn(async move {
            while let Some(Push { channel, .. }) = pushes.recv().await {
                let Some(hearing) = weak.upgrade() else { return };
                if let Some(channel) = lock(&hearing.channels).get(&channel) {
                    channel.news.notify_waiters();
                }
            }
        });
        let weak = Arc::downgrade(&hearing);
        let look = move |names: HashSet<String>| weak.upgrade().map(|hearing| hearing.sorted(names));
        let weak = Arc::downgrade(&hearing);
        let tell = move |names: &[String], listens: &Result<(), Error>| {
            if let Some(hearing) = weak.upgrade() {
                hearing.tell(names, listens);
            }
        };
        tokio::spawn(keep(link, changes, look, tell));
        Ok(hearing)
    }

    /// Begins to wait.
    pub fn wait_for(self: &Arc<Self>, channel: String) -> Waiter {
        let mut channels = lock(&self.channels);
        let entry = channels.entry(channel.clone()).or_insert_with(|| Channel {
            waiters: 0,
            news: Arc::default(),
            listens: watch::Sender::new(None),
        });
        entry.waiters += 1;
        if entry.waiters == 1 {
            // Fails only without a receiver, which ends with us.
            let _ = self.changed.send(channel.clone());
        }
        Waiter {
            hearing: self.clone(),
            channel,
            news: entry.news.clone(),
            listens: entry.listens.subscribe(),
        }
    }

    /// Which of these channels are waited for, and which are not.
    fn sorted(&self, names: HashSet<String>) -> (Vec<String>, Vec<String>) {
        let channels = lock(&self.channels);
        names.into_iter().partition(|name| channels.contains_key(name))
    }

    fn tell(&self, names: &[String], listens: &Result<(), Error>) {
        let channels = lock(&self.channels);
        for channel in names.iter().filter_map(|name| channels.get(name)) {
            channel.listens.send_replace(Some(listens.clone()));
        }
    }
}

impl Waiter {
    /// Until it is subscribed to.
    pub async fn listens(&mut self) -> Result<(), Error> {
        match self.listens.wait_for(Option::is_some).await {
            Ok(listens) => listens.clone().unwrap_or(Ok(())),
            // Nobody tells any more: the result is looked for all the same.
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut channels = lock(&self.hearing.channels);
        if let Some(entry) = channels.get_mut(&self.channel) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                channels.remove(&self.channel);
                let _ = self.hearing.changed.send(std::mem::take(&mut self.channel));
            }
        }
    }
}

/// Makes the subscriptions what they are to be, as long as there is somebody who may want some.
async fn keep(
    link: Link,
    mut changes: mpsc::UnboundedReceiver<String>,
    look: impl Fn(HashSet<String>) -> Option<(Vec<String>, Vec<String>)>,
    tell: impl Fn(&[String], &Result<(), Error>),
) {
    let mut subscribed: HashSet<String> = HashSet::new();
    let mut changed = Vec::new();
    while changes.recv_many(&mut changed, TOGETHER).await > 0 {
        let Some((wanted, unwanted)) = look(changed.drain(..).collect()) else {
            return;
        };
        let unwanted: Vec<&str> = unwanted
            .iter()
            .filter(|name| subscribed.remove(*name))
            .map(String::as_str)
            .collect();
        link.unsubscribe_from_all(&unwanted).await;
        let new: Vec<&str> = wanted
            .iter()
            .filter(|name| !subscribed.contains(*name))
            .map(String::as_str)
            .collect();
        // A Redis that is away for a while is waited for, and subscribed to when it is there again.
        let listens = match link.subscribe_to_all(&new).await {
            Err(error) if !error.is_transient() => Err(error),
            _ => Ok(()),
        };
        tell(&wanted, &listens);
        if listens.is_ok() {
            subscribed.extend(wanted);
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in between leaves a map that is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
