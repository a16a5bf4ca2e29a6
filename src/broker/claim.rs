//! Taking messages.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use redis::{Pipeline, ScriptInvocation, Value};
use serde_json::Value as Json;
use uuid::Uuid;

use super::{Broker, Error, QueueOrder, Tag};
use crate::clock::{self, Timestamp};
use crate::conn::{Errand, Patience, invocation, refusal};

/// A claim takes no further message once it has this many bytes: bounds how long it occupies Redis and the network.
const MOST_BYTES: usize = 8 << 20;

/// The same for messages that are read again: others wait behind them on the same connection.
const RECALLED_BYTES: usize = 1 << 20;

/// So many earlier tries are asked about: each may have taken messages that nobody told us of. A connection that lost
/// more than that in a row has been away for a minute.
const TRIES: usize = 16;

/// Names one attempt to take messages, which may need several tries. Asked again, after a lost reply, the broker gives
/// what that reply carried.
#[derive(Clone, Debug)]
pub struct ClaimId {
    /// What the tags of each try begin with, the last try's last.
    prefixes: Arc<Mutex<Vec<String>>>,
    patience: Patience,
}

impl ClaimId {
    /// A new name.
    #[expect(clippy::new_without_default, reason = "each is different from every other")]
    pub fn new() -> Self {
        Self {
            prefixes: Arc::default(),
            patience: Patience::default(),
        }
    }

    /// Tags that its tries may have written down, if each took no more than so many messages; none when none was sent.
    pub(crate) fn tags(&self, most: usize) -> Vec<Tag> {
        let prefixes = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        let tags = prefixes
            .iter()
            .flat_map(|prefix| (1..=most).map(move |number| Tag(format!("{prefix}{number}").into())));
        tags.collect()
    }

    /// The prefix of the next try, and those of earlier ones.
    fn next(&self) -> (String, String) {
        let mut prefixes = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = prefixes.join(",");
        let next = format!("{}.", Uuid::new_v4().simple());
        prefixes.push(next.clone());
        if prefixes.len() > TRIES {
            prefixes.remove(0);
        }
        (next, earlier)
    }

    /// The server said that it will not do that try now: it took nothing.
    fn forget(&self, prefix: &str) {
        let mut prefixes = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        prefixes.retain(|known| known != prefix);
    }
}

/// A message that is ours now.
#[derive(Debug)]
pub struct Claimed {
    /// Its field in `unacked`.
    pub tag: Tag,
    /// Where it was.
    pub queue: Arc<str>,
    /// The list element, exactly.
    pub raw: Bytes,
    /// It was taken beyond the count, because it has to wait.
    pub waits: bool,
}

/// An element that is no message; it is in the dead-letter list `<queue>.dead` now.
#[derive(Debug)]
pub struct Dead {
    /// Where it was.
    pub queue: Arc<str>,
    /// Why.
    pub reason: String,
    /// The task's id, where it can be told of one that is too large.
    pub id: Option<String>,
}

/// What a claim brought.
#[derive(Debug, Default)]
pub struct Claims {
    /// Messages, in order.
    pub messages: Vec<Claimed>,
    /// Elements that are none.
    pub dead: Vec<Dead>,
    /// Why nothing can be taken from one of the queues: its key holds something else than a list.
    pub unusable: Option<String>,
    /// How many dead letters had to make room for these.
    pub pushed_out: u64,
    /// Nothing is left, and [`Broker::wait`] hears of the next message.
    pub drained: bool,
}

impl Broker {
    /// Takes up to `count` messages from `queues`, and none beyond the first that reaches `bytes`: higher priorities
    /// first, queues in their order.
    ///
    /// # Errors
    /// The server cannot be reached or refuses. Messages may have been taken: ask again with the same `id`.
    pub async fn claim(&self, id: &ClaimId, queues: &[Arc<str>], count: usize, bytes: usize) -> Result<Claims, Error> {
        let claims = self.take(id, queues, (count, 0), bytes, "").await?;
        if let Some(last) = claims.messages.last() {
            self.rotate(queues, &last.queue);
        }
        Ok(claims)
    }

    /// The same for queues that are full of what has to wait: up to `waiting` messages that are due later than that
    /// time are taken beyond the count. With 0 none of them is taken, and others only from among the newest, the oldest
    /// of those first.
    ///
    /// # Errors
    /// See [`claim`](Self::claim).
    pub async fn claim_past(
        &self,
        id: &ClaimId,
        queues: &[Arc<str>],
        (count, waiting): (usize, usize),
        bytes: usize,
        due_by: Timestamp,
    ) -> Result<Claims, Error> {
        if self.options.queue_order_strategy == QueueOrder::RoundRobin {
            // Each may be full of what has to wait.
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        self.take(id, queues, (count, waiting), bytes, &clock::iso(due_by))
            .await
    }

    async fn take(
        &self,
        id: &ClaimId,
        queues: &[Arc<str>],
        (count, waiting): (usize, usize),
        bytes: usize,
        due_by: &str,
    ) -> Result<Claims, Error> {
        if queues.is_empty() || count == 0 {
            return Ok(Claims::default());
        }
        if self.main.epoch() == 0 {
            // A try that is not sent takes nothing.
            return Err(Error::Transient("not connected".into()));
        }
        let (prefix, earlier) = id.next();
        let (call, keys) = self.call((&prefix, &earlier), queues, (count, waiting), bytes, due_by);
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&call);
        let mut errand = Errand::new(&pipe);
        if let Err(error) = self.main.run(&mut errand, &id.patience).await {
            if error.is_transient() && !errand.is_unsure() {
                id.forget(&prefix);
            }
            return Err(error);
        }
        let reply = errand.into_answers().pop();
        let claims = read(reply, &prefix, &keys, queues)?;
        self.note_pushed_out(claims.pushed_out);
        self.main
            .carried(claims.messages.iter().map(|message| message.raw.len()).sum());
        Ok(claims)
    }

    /// The call of the script, and the lists that it looks at.
    fn call(
        &self,
        (prefix, earlier): (&str, &str),
        queues: &[Arc<str>],
        (count, waiting): (usize, usize),
        bytes: usize,
        due_by: &str,
    ) -> (ScriptInvocation<'_>, Vec<(String, usize)>) {
        let order = self.order(queues);
        let keys = self.keys.all(order.iter().map(|index| (*index, &*queues[*index])));
        let mut call = self.scripts.claim.prepare_invoke();
        call.key(self.keys.name("unacked")).key(self.keys.name("unacked_index"));
        call.arg(prefix).arg(count).arg(earlier);
        call.arg(self.options.max_message_bytes)
            .arg(self.options.dead_limit)
            .arg(bytes.clamp(1, MOST_BYTES))
            .arg(self.keys.name(""))
            .arg(Json::from(&*self.options.node).to_string())
            .arg(self.options.lease_shift())
            .arg(due_by)
            .arg(waiting);
        for (key, index) in &keys {
            call.key(key).arg(in_json(&queues[*index]).as_bytes());
        }
        (call, keys)
    }

    /// Those of the queues of which Redis gives nothing at all, and why: it refuses a claim as a whole, whichever queue
    /// it refuses. Nothing is taken.
    ///
    /// # Errors
    /// The server cannot be reached, or answers nothing now.
    pub async fn refused(&self, queues: &[Arc<str>]) -> Result<Vec<(Arc<str>, String)>, Error> {
        let mut pipe = Pipeline::with_capacity(queues.len());
        for queue in queues.chunks(1) {
            pipe.invoke_script(&self.call(("", ""), queue, (0, 0), 1, "").0);
        }
        let answers = self.main.pipeline(&pipe).await?;
        let refused = |(queue, answer): (&Arc<str>, Value)| match answer {
            Value::ServerError(error) => Some((queue.clone(), refusal(error))),
            _ => None,
        };
        Ok(queues.iter().zip(answers).filter_map(refused).collect())
    }

    /// Indices of the queues in the order in which they are looked at (P-007, P-008).
    fn order(&self, queues: &[Arc<str>]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..queues.len()).collect();
        match self.options.queue_order_strategy {
            QueueOrder::Priority => {}
            QueueOrder::Sorted => order.sort_by(|a, b| queues[*a].cmp(&queues[*b])),
            QueueOrder::RoundRobin => order.rotate_left(self.turn.load(Ordering::Relaxed) % queues.len()),
        }
        order
    }

    /// The queue that gave a message comes last next time; idle looks rotate nothing.
    fn rotate(&self, queues: &[Arc<str>], gave: &Arc<str>) {
        if let Some(at) = queues.iter().position(|queue| queue == gave) {
            self.turn.store(at + 1, Ordering::Relaxed);
        }
    }

    /// Reads held messages again, and renews their leases: for each tag what `unacked` has, if it is still ours. Of
    /// large ones only the first few; at least one.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub(crate) async fn recall(&self, tags: &[Tag], patience: &Patience) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let mut call = invocation(&self.scripts.recall, 2);
        call.arg(self.keys.name("unacked")).arg(self.keys.name("unacked_index"));
        call.arg(self.options.lease_shift()).arg(RECALLED_BYTES);
        for tag in tags {
            call.arg(&*tag.0);
        }
        let mut pipe = Pipeline::with_capacity(1);
        pipe.add_command(call);
        match self.main.pipeline_with(&pipe, patience).await?.pop() {
            Some(Value::Array(held)) if held.is_empty() == tags.is_empty() => Ok(held
                .into_iter()
                .map(|held| match held {
                    Value::BulkString(held) => Some(held),
                    _ => None,
                })
                .collect()),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// Keeps leases fresh: when that was, in seconds by the server's clock, and for each tag whether it is still ours.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn extend(&self, tags: &[Tag]) -> Result<(f64, Vec<bool>), Error> {
        let mut call = self.scripts.extend.prepare_invoke();
        call.key(self.keys.name("unacked_index")).key(self.keys.name("unacked"));
        call.arg(self.options.lease_shift());
        for tag in tags {
            call.arg(&*tag.0);
        }
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&call);
        match self.main.pipeline(&pipe).await?.pop() {
            Some(Value::Array(answer)) => match &answer[..] {
                [Value::Int(seconds), Value::Int(micros), ours @ ..] => Ok((
                    *seconds as f64 + *micros as f64 / 1e6,
                    ours.iter().map(|ours| *ours == Value::Int(1)).collect(),
                )),
                _ => Err(unexpected(None)),
            },
            other => Err(unexpected(other.as_ref())),
        }
    }
}

fn read(reply: Option<Value>, prefix: &str, keys: &[(String, usize)], queues: &[Arc<str>]) -> Result<Claims, Error> {
    let parts = match reply {
        Some(Value::Array(parts)) => parts,
        other => return Err(unexpected(other.as_ref())),
    };
    let mut claims = Claims::default();
    claims.messages.reserve(parts.len() / 3);
    let mut parts = parts.into_iter();
    claims.drained = parts.next() == Some(Value::Int(1));
    while let (Some(number), Some(key), Some(body)) = (parts.next(), parts.next(), parts.next()) {
        let (Value::Int(key), Value::BulkString(body)) = (key, body) else {
            return Err(unexpected(None));
        };
        let waits = key < 0;
        let key = usize::try_from(key.unsigned_abs())
            .ok()
            .and_then(|key| keys.get(key.checked_sub(1)?));
        let Some((key, queue)) = key.map(|(key, index)| (key, queues[*index].clone())) else {
            return Err(unexpected(None));
        };
        let tag = match number {
            Value::Int(number @ -3..=0) => Err(number),
            Value::Int(number) => Ok(format!("{prefix}{number}")),
            Value::BulkString(tag) => Ok(String::from_utf8_lossy(&tag).into_owned()),
            _ => return Err(unexpected(None)),
        };
        match tag {
            Err(0) => {
                let reason = String::from_utf8_lossy(&body).into_owned();
                let id = None;
                claims.dead.push(Dead { queue, reason, id });
            }
            Err(-2) => {
                if let Some(dead) = claims.dead.last_mut() {
                    dead.id = String::from_utf8(body).ok();
                }
            }
            Err(-3) => {
                let letters = std::str::from_utf8(&body).ok().and_then(|text| text.parse().ok());
                claims.pushed_out += letters.unwrap_or(0);
            }
            Err(_) => {
                let reason = String::from_utf8_lossy(&body);
                claims.unusable = Some(if reason.starts_with("WRONGTYPE") {
                    format!("the key {key:?} of queue {queue:?} holds no list; delete or rename that key")
                } else {
                    format!("messages of queue {queue:?} cannot be taken: {}", refusal(reason))
                });
            }
            Ok(tag) => claims.messages.push(Claimed {
                tag: Tag(tag.into()),
                queue,
                raw: Bytes::from(body),
                waits,
            }),
        }
    }
    Ok(claims)
}

/// A text as it stands in JSON, without its quotes: what is held says whose it is, and names may have quotes.
pub(crate) fn in_json(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let quoted = Json::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned().into()
}

pub(super) fn unexpected(value: Option<&Value>) -> Error {
    match value {
        Some(Value::ServerError(error)) => Error::Refused(format!("Redis refused: {}", refusal(error))),
        _ => Error::Refused("Redis answered a script in a way it cannot".into()),
    }
}
