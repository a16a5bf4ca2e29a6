//! Chords: the finished members of a header are counted in Redis, by Python workers and by ours, and whoever counts the
//! last one sends the body (`celery.backends.redis.RedisBackend.on_chord_part_return`).

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use redis::{Pipeline, Value, cmd};

use super::{Backend, Error};
use crate::wire::Json;

/// How long one worker has, at least, to send the body before another may: twice the join timeout, as in Celery.
const CLAIM: Duration = Duration::from_secs(5);
/// The same where the join has no end.
const CLAIM_WITHOUT_END: Duration = Duration::from_secs(10);
/// How much more it has once the results are there and the body is about to be sent.
const TO_SEND: Duration = Duration::from_secs(15);
/// How long it is remembered that a chord has ended.
const DONE: Duration = Duration::from_secs(300);
/// How long the number of a run is kept: longer than a member that was counted waits to be delivered again.
const RUN: Duration = Duration::from_secs(86_400);

/// A finished member of a header.
#[derive(Clone, Debug)]
pub struct Part {
    /// Group id.
    pub group: String,
    /// Its place in the group.
    pub index: Option<i64>,
    /// Task id.
    pub task_id: String,
    /// Its state and result or exception, as JSON: `[1, id, state, value]`.
    pub entry: Json,
    /// The claim of whoever counts it: the same each time, so that one whose answer was lost is not another's.
    token: String,
}

impl Part {
    /// A part of that group.
    pub fn new(group: &str, index: Option<i64>, task_id: &str, state: &str, value: &Json) -> Self {
        let (id, state) = (Json::string(task_id), Json::string(state));
        Self {
            group: group.to_owned(),
            index,
            task_id: task_id.to_owned(),
            entry: Json::list([&Json::number(1), &id, &state, value]),
            token: uuid::Uuid::new_v4().simple().to_string(),
        }
    }
}

/// The right to end a chord.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Group id.
    pub group: String,
    token: String,
}

/// What counting a part gave.
#[derive(Debug)]
pub enum Counted {
    /// Other parts are missing, or the chord has ended already.
    Settled,
    /// It is complete, and another worker is about to end it.
    Taken,
    /// It is complete, and the caller ends it.
    Mine(Claim),
}

impl Backend {
    /// Counts parts, in one round trip; for each what that gave, or why it cannot be counted.
    ///
    /// # Errors
    /// The server cannot be reached. Counting a part again counts it once.
    pub async fn count_parts(&self, parts: &[Part]) -> Result<Vec<Result<Counted, Error>>, Error> {
        let mut pipe = Pipeline::with_capacity(parts.len());
        let mut claims = Vec::with_capacity(parts.len());
        for part in parts {
            let claim = Claim {
                group: part.group.clone(),
                token: part.token.clone(),
            };
            let index = part.index.map_or_else(|| "+inf".to_owned(), |index| index.to_string());
            let mut call = self.scripts.chord_part.prepare_invoke();
            for suffix in [".j", ".t", ".s", ".d", "", ".c"] {
                call.key(self.group_key(&part.group, suffix));
            }
            call.arg(format!("{}:{index}", part.task_id))
                .arg(&self.written_part(part)[..])
                .arg(index)
                .arg(self.options.result_expires.map_or(0, |keep| keep.as_secs().max(1)))
                .arg(self.claim().as_secs())
                .arg(&claim.token)
                .arg(u8::from(self.options.chord_ordered));
            pipe.invoke_script(&call);
            claims.push(claim);
        }
        let answers = self.pipeline(&pipe).await?;
        let counted = answers.into_iter().zip(claims).map(|(answer, claim)| match answer {
            Value::BulkString(word) => match &word[..] {
                b"mine" => Ok(Counted::Mine(claim)),
                b"taken" => Ok(Counted::Taken),
                _ => Ok(Counted::Settled),
            },
            Value::ServerError(error) => Err(Error::Refused(error.to_string())),
            other => Err(Error::Refused(format!(
                "unexpected answer to a chord's count: {other:?}"
            ))),
        });
        Ok(counted.collect())
    }

    /// The entries of the parts of a chord, in the order of their places or as they came; see [`Part::entry`].
    ///
    /// # Errors
    /// The server cannot be reached or refuses, or an entry is in no form that is read.
    pub async fn parts(&self, group: &str) -> Result<Vec<String>, Error> {
        let mut command = cmd(if self.options.chord_ordered { "ZRANGE" } else { "LRANGE" });
        command.arg(self.group_key(group, ".j")).arg(0).arg(-1);
        let entries: Vec<Vec<u8>> = self.query(&command).await?;
        entries.into_iter().map(|entry| self.read(entry)).collect()
    }

    /// An entry in the form of results; one that has no such form is a failure with the reason.
    fn written_part<'a>(&self, part: &'a Part) -> Cow<'a, [u8]> {
        let format = &self.options.format;
        format.write(part.entry.get().as_bytes()).unwrap_or_else(|error| {
            let failed = serde_json::json!([1, part.task_id, "FAILURE", super::write::encode_error(&error)]);
            format
                .write(failed.to_string().as_bytes())
                .unwrap_or_default()
                .into_owned()
                .into()
        })
    }

    /// The handle of a header whose results are nested, `{"result": …}`.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn group(&self, group: &str) -> Result<Option<String>, Error> {
        let stored: Option<Vec<u8>> = self.query(cmd("GET").arg(self.group_key(group, ""))).await?;
        stored.map(|stored| self.read(stored)).transpose()
    }

    /// Gives more time to send the body, on another server than this. The number of this run of the chord, the same
    /// for whoever sends it; `None` when the claim is somebody else's.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn keep_claim(&self, claim: &Claim) -> Result<Option<String>, Error> {
        let mut call = self.scripts.chord_claim.prepare_invoke();
        for suffix in [".c", ".s", ".d", ".r"] {
            call.key(self.group_key(&claim.group, suffix));
        }
        call.arg(&claim.token)
            .arg((self.claim() + TO_SEND).as_secs())
            .arg(uuid::Uuid::new_v4().to_string())
            .arg(RUN.as_secs());
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&call);
        match self.pipeline(&pipe).await?.pop() {
            Some(Value::BulkString(run)) => Ok(Some(String::from_utf8_lossy(&run).into_owned())),
            Some(Value::Nil) => Ok(None),
            other => Err(Error::Refused(format!(
                "unexpected answer to a chord's claim: {other:?}"
            ))),
        }
    }

    /// Puts the messages of a body into the lists of their queues, on this server, and ends the chord, in one step.
    /// Whether the chord has ended; `false` when the claim is somebody else's.
    ///
    /// # Errors
    /// The server cannot be reached or refuses. Asked again it sends nothing twice.
    pub async fn send_body(&self, claim: &Claim, messages: &[(String, Bytes)]) -> Result<bool, Error> {
        let mut call = self.scripts.chord_send.prepare_invoke();
        for suffix in [".c", ".j", ".t", ".s", ".d"] {
            call.key(self.group_key(&claim.group, suffix));
        }
        call.arg(&claim.token).arg(DONE.as_secs());
        for (key, message) in messages {
            call.key(key).arg(&message[..]);
        }
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&call);
        match self.pipeline(&pipe).await?.pop() {
            Some(Value::BulkString(word)) => Ok(word != b"lost"),
            other => Err(Error::Refused(format!("the body of a chord cannot be sent: {other:?}"))),
        }
    }

    /// Ends a chord whose body was sent.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn end_chord(&self, claim: &Claim) -> Result<(), Error> {
        let mut call = self.scripts.chord_end.prepare_invoke();
        for suffix in [".c", ".j", ".t", ".s", ".d", ".r"] {
            call.key(self.group_key(&claim.group, suffix));
        }
        call.arg(&claim.token).arg(DONE.as_secs());
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&call);
        self.insisted(&pipe).await.map(drop)
    }

    /// Ends a chord whose header failed: its size goes, so that a late part does not fail it again.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn fail_chord(&self, group: &str) -> Result<(), Error> {
        self.query(cmd("DEL").arg(self.group_key(group, ".s"))).await
    }

    /// One more part for a chord to wait for (`Task.add_to_chord`).
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn add_to_chord(&self, group: &str) -> Result<(), Error> {
        self.query::<i64>(cmd("INCRBY").arg(self.group_key(group, ".t")).arg(1))
            .await
            .map(drop)
    }

    fn claim(&self) -> Duration {
        match self.options.chord_join_timeout {
            Some(timeout) => timeout.saturating_mul(2).clamp(CLAIM, RUN),
            None => CLAIM_WITHOUT_END,
        }
    }

    pub(super) fn group_key(&self, group: &str, suffix: &str) -> String {
        format!("{}celery-taskset-meta-{group}{suffix}", self.prefix)
    }
}
