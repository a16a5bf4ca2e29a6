//! What a run knows about itself, and what it may tell the world while it runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::flag::Flag;
use super::{Failure, Hides};
use crate::canvas::{Parent, ResultNode};
use crate::client::{Applied, Client};
use crate::clock::Instant;
use crate::trace::{Trace, carried};
use crate::wire::floats::to_raw;
use crate::wire::{Embed, Exception, Json, Message, Signature, State};

/// The facts of one run.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Task id.
    pub id: Arc<str>,
    /// Task name.
    pub name: Arc<str>,
    /// The worker's node name.
    pub hostname: Arc<str>,
    /// Retries so far.
    pub retries: u32,
    /// First task of the workflow.
    pub root_id: Option<String>,
    /// The task that sent this one.
    pub parent_id: Option<String>,
    /// The group it belongs to.
    pub group: Option<String>,
    /// The message was delivered before.
    pub redelivered: bool,
    /// See [`Context::deliveries`].
    pub deliveries: u32,
    /// When the hard time limit ends the run.
    pub deadline: Option<Instant>,
    /// The message it came with; `None` outside a worker.
    pub message: Option<Arc<Message>>,
    /// What follows the task.
    pub embed: Option<Arc<Embed>>,
    /// What of the task is not shown.
    pub hides: Arc<Hides>,
    /// The trace that it is part of.
    pub trace: Option<Trace>,
    /// The envelope as it came; `None` outside a worker.
    pub envelope: Option<Bytes>,
}

/// What a run says while it runs. The worker turns it into result records and stream entries.
#[derive(Debug)]
pub enum Note {
    /// A state with its meta data, for the result record.
    State(Arc<str>, State, Box<RawValue>),
    /// An entry of the token stream.
    Stream(Arc<str>, Box<RawValue>),
    /// An event of the task's own, with its type and fields.
    Event(Arc<str>, String, Map<String, Value>),
}

/// Where notes go.
pub type Notes = mpsc::Sender<Note>;

/// Given to every run.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    details: Details,
    cancel: Flag,
    /// The signal that somebody wants it to be ended by; 0 when nobody does.
    signal: AtomicI32,
    soft: Flag,
    watches_soft: AtomicBool,
    notes: Notes,
    dropped: AtomicU64,
    tokens: AtomicU64,
    client: Option<Arc<Client>>,
    children: Mutex<Vec<ResultNode>>,
}

impl Context {
    /// A context whose notes go to `notes`. The worker makes one for each run; a test of a task makes its own.
    pub fn new(details: Details, notes: Notes, client: Option<Arc<Client>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                details,
                cancel: Flag::default(),
                signal: AtomicI32::new(0),
                soft: Flag::default(),
                watches_soft: AtomicBool::new(false),
                notes,
                dropped: AtomicU64::new(0),
                tokens: AtomicU64::new(0),
                client,
                children: Mutex::default(),
            }),
        }
    }

    /// The task's id.
    pub fn id(&self) -> &str {
        &self.inner.details.id
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        &self.inner.details.name
    }

    /// How often it was retried.
    pub fn retries(&self) -> u32 {
        self.inner.details.retries
    }

    /// Which delivery of its message this is: 1, and one more for each that came to no end, because its worker or its
    /// process was gone or its hard time limit ended it. That a worker which stops gave it back is not counted. Beyond
    /// `max_deliveries` there is none. A retry is another message, and begins with 1.
    pub fn deliveries(&self) -> u32 {
        self.inner.details.deliveries.max(1)
    }

    /// All facts of the run.
    pub fn details(&self) -> &Details {
        &self.inner.details
    }

    /// When the hard time limit ends the run.
    pub fn deadline(&self) -> Option<Instant> {
        self.inner.details.deadline
    }

    /// The time left before the hard limit.
    pub fn time_left(&self) -> Option<Duration> {
        let deadline = self.deadline()?;
        Some(deadline.saturating_duration_since(crate::clock::instant()))
    }

    /// Completes when the run is to end: revoked, over its hard limit, or the worker stops cold. An async run need
    /// not watch it, since its future is dropped; a blocking one should, between two pieces of work.
    pub async fn cancelled(&self) {
        self.inner.cancel.wait().await;
    }

    /// Whether the run is to end; see [`cancelled`](Self::cancelled).
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancel.is_up()
    }

    /// Completes at the soft time limit. A run that has called this is not ended at the soft limit but at the hard
    /// one: catching `SoftTimeLimitExceeded`, in Python's terms.
    pub async fn soft_limit(&self) {
        self.inner.watches_soft.store(true, Ordering::Release);
        self.inner.soft.wait().await;
    }

    /// Stores a state of the task's own, such as `PROGRESS`, with meta data (`Task.update_state`). Waits while the
    /// worker's outgoing queue is full.
    ///
    /// # Errors
    /// `meta` cannot be serialized.
    pub async fn update_state(&self, state: &str, meta: &impl Serialize) -> Result<(), Failure> {
        let meta = to_raw(meta)?;
        self.forward(Note::State(self.inner.details.id.clone(), State::parse(state), meta))
            .await;
        Ok(())
    }

    /// Appends an entry to the task's token stream. Never waits: while Redis cannot be reached, entries beyond the
    /// worker's bounded queue are left out of the stream (the result is whole).
    pub fn stream(&self, entry: &impl Serialize) {
        let Ok(entry) = serde_json::value::to_raw_value(entry) else {
            return;
        };
        self.forward_stream(entry);
    }

    /// Hands on an entry of the token stream, if there is room.
    pub(crate) fn forward_stream(&self, entry: Box<RawValue>) {
        let note = Note::Stream(self.inner.details.id.clone(), entry);
        if self.inner.notes.try_send(note).is_err() {
            self.inner.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells the monitors something of the task's own (`Task.send_event`): an event of the type `kind`, such as
    /// `task-progress`, with the task's id and these fields. It is sent whether or not task events are on.
    ///
    /// # Errors
    /// `fields` cannot be serialized, or are no object.
    pub async fn send_event(&self, kind: &str, fields: &impl Serialize) -> Result<(), Failure> {
        let Value::Object(fields) = serde_json::to_value(fields)? else {
            return Err(Failure::type_error("the fields of an event must be an object"));
        };
        self.forward(Note::Event(self.inner.details.id.clone(), kind.to_owned(), fields))
            .await;
        Ok(())
    }

    /// Hands on what was said of this run.
    pub(crate) async fn forward(&self, note: Note) {
        // A closed channel is a worker that is gone: the run is about to be dropped.
        let _ = self.inner.notes.send(note).await;
    }

    /// Notes tokens that a model read and wrote for this task: what it used, where tenants get their turns by that.
    pub fn add_tokens(&self, tokens: u64) {
        self.inner.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Tokens of models so far.
    pub fn tokens(&self) -> u64 {
        self.inner.tokens.load(Ordering::Relaxed)
    }

    /// How many stream entries were left out.
    pub fn stream_dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }

    /// Sends a call, a chain, a group or a chord on behalf of this task: it becomes one of its children.
    ///
    /// # Errors
    /// There is no worker around this run, or Redis cannot be reached.
    pub async fn apply(&self, signature: Signature) -> Result<Applied, Failure> {
        let details = &self.inner.details;
        let parent = Parent {
            id: details.id.to_string(),
            root_id: details.root_id.clone().unwrap_or_else(|| details.id.to_string()),
            priority: details
                .message
                .as_ref()
                .and_then(|message| message.properties.own_priority()),
            carried: carried(details.trace.as_ref()),
        };
        let applied = self.sender()?.apply_for(Some(&parent), signature).await?;
        let mut children = self.inner.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.extend_from_slice(applied.children());
        Ok(applied)
    }

    /// Adds a call to the chord whose header this task is in; its body waits for one more (`Task.add_to_chord`).
    ///
    /// # Errors
    /// `ValueError` when this task is in no chord; or Redis cannot be reached.
    pub async fn add_to_chord(&self, mut signature: Signature) -> Result<Applied, Failure> {
        let details = &self.inner.details;
        let chord = details.embed.as_ref().and_then(|embed| embed.chord.clone());
        let (Some(chord), Some(group)) = (chord, details.group.as_deref()) else {
            return Err(Failure::value_error("Current task is not member of any chord"));
        };
        let backend = self.sender()?.backend().ok_or(crate::client::Error::NoBackend)?;
        let options = &mut signature.options;
        options.set_str("group_id", group);
        let index = details.message.as_ref().and_then(|message| message.headers.group_index);
        if let Some(index) = index {
            options.rest.insert("group_index".into(), Json::new(&index)?);
        }
        options.chord = Some(Arc::new(chord));
        backend.add_to_chord(group).await?;
        self.apply(signature).await
    }

    /// Keeps a value under a name for later deliveries of this task: what is kept need not be done again when the
    /// worker dies or the task is retried. Bounded, and gone after `time`; whether there was room. Outside a worker
    /// nothing is kept.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn keep(&self, name: &str, value: &impl Serialize, time: Duration) -> Result<bool, Failure> {
        let value = serde_json::value::to_raw_value(value)?;
        match self.client() {
            Some(client) if client.backend().is_some() => Ok(client.keep(self.id(), name, &value, time).await?),
            _ => Ok(false),
        }
    }

    /// What earlier deliveries of this task kept, and what was written down for it since, by name.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn kept(&self) -> Result<HashMap<String, Value>, Failure> {
        match self.client() {
            Some(client) if client.backend().is_some() => Ok(client.kept_of(self.id()).await?),
            _ => Ok(HashMap::new()),
        }
    }

    /// Puts the task down until somebody writes down one of `names` with
    /// [`Client::resume`](crate::client::Client::resume), at most for `time`. When it says `true`, return
    /// [`Failure::Park`]; `false` when one of them is there already: look at [`kept`](Self::kept) again.
    ///
    /// # Errors
    /// Redis cannot be reached, or there is no worker around this run.
    pub async fn park(&self, names: &[String], time: Duration) -> Result<bool, Failure> {
        let envelope = self.inner.details.envelope.as_deref();
        let envelope =
            envelope.ok_or_else(|| Exception::runtime_error("there is no message that could be put down"))?;
        Ok(self.sender()?.park(self.id(), envelope, names, time).await?)
    }

    fn sender(&self) -> Result<&Client, Failure> {
        let none = || Failure::Fail(Exception::runtime_error("there is no worker to send with"));
        self.client().ok_or_else(none)
    }

    /// The handles of what was sent, for the task's record.
    pub(crate) fn children(&self) -> Vec<ResultNode> {
        let children = self.inner.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.clone()
    }

    /// A client for sub-tasks; `None` outside a worker.
    pub fn client(&self) -> Option<&Client> {
        self.inner.client.as_deref()
    }

    /// What a run elsewhere has sent on behalf of this task.
    pub(crate) fn add_children(&self, new: impl IntoIterator<Item = ResultNode>) {
        let mut children = self.inner.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.extend(new);
    }

    pub(crate) fn cancel(&self) {
        self.inner.cancel.raise();
    }

    /// Ends the run; where it has a process of its own, by this signal.
    pub(crate) fn cancel_by(&self, signal: i32) {
        self.inner.signal.store(signal, Ordering::Release);
        self.cancel();
    }

    /// The signal that is to end the run.
    pub(crate) fn signal(&self) -> i32 {
        self.inner.signal.load(Ordering::Acquire)
    }

    /// Tells the run of its soft limit; whether it watches for it.
    pub(crate) fn reach_soft_limit(&self) -> bool {
        self.inner.soft.raise();
        self.inner.watches_soft.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Context").field(&self.inner.details).finish()
    }
}

/// A stream entry that is only text, for tasks that have nothing else to say.
impl Context {
    /// Streams a piece of text as a `token` entry.
    pub fn stream_text(&self, text: &str) {
        self.stream(&serde_json::json!({"type": "token", "text": text, "attempt": 0}));
    }

    /// Reports progress as Python tasks do: state `PROGRESS` with `current` and `total`.
    ///
    /// # Errors
    /// Never in practice.
    pub async fn progress(&self, current: u64, total: u64) -> Result<(), Failure> {
        let meta: Value = serde_json::json!({"current": current, "total": total});
        self.update_state("PROGRESS", &meta).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_stream_that_find_no_room_are_left_out_and_counted() {
        let (notes, mut seen) = mpsc::channel(2);
        let context = Context::new(Details::default(), notes, None);
        for _ in 0..5 {
            context.stream_text("x");
        }
        assert_eq!(context.stream_dropped(), 3);
        assert_eq!(std::iter::from_fn(|| seen.try_recv().ok()).count(), 2);
    }
}
