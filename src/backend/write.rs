//! What is stored, many at a time, in one pipeline.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Pipeline;
use serde_json::{Map, Value};

use super::Backend;
use super::unique::{Holder, Settled};
use crate::conn::invocation;
use crate::wire::{Exception, State};

/// Records in one script call: bounds how long it occupies Redis.
const BATCH: usize = 128;

/// A record that is hardly larger than the message that goes with it.
const SMALL: usize = 1024;

/// Records that become one script call.
struct Records<'a> {
    list: Vec<(&'a str, &'a State, &'a Bytes, bool)>,
    /// They are small, and so is all before them: they are stored also when the memory is full.
    make_room: bool,
}

/// One change. Each may be repeated after a lost reply: a record overwrites itself. Stream entries are then there
/// twice.
#[derive(Debug)]
pub enum Write {
    /// The state of a task.
    Store {
        /// Task id.
        id: Arc<str>,
        /// Its state.
        status: State,
        /// The record, JSON.
        record: Bytes,
        /// The end of a task that a worker has sent: who waits for it may begin to only now. When nobody hears of it
        /// the answer says so.
        late: bool,
    },
    /// A task that nobody has started is revoked; what has a result, or runs elsewhere, is left alone (P-100).
    Revoke {
        /// Task id.
        id: Arc<str>,
        /// The record, JSON.
        record: Bytes,
    },
    /// What becomes of a key that a task had.
    Unique {
        /// Who had it.
        holder: Holder,
        /// What becomes of it.
        settled: Settled,
    },
    /// Entries of a token stream.
    Stream {
        /// Task id.
        id: Arc<str>,
        /// JSON objects.
        entries: Vec<Bytes>,
    },
    /// How many parts a chord waits for. Comes before the messages of its header.
    ChordSize {
        /// Group id.
        group: String,
        /// Parts.
        size: u64,
    },
    /// The handle of a group, `{"result": …}` (`GroupResult.save`).
    Group {
        /// Group id.
        group: String,
        /// JSON.
        record: Bytes,
    },
}

impl Write {
    /// What it holds beside a few words.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Store { record, .. } | Self::Revoke { record, .. } | Self::Group { record, .. } => record.len(),
            Self::Stream { entries, .. } => entries.iter().map(Bytes::len).sum(),
            Self::Unique { settled, .. } => settled.bytes(),
            Self::ChordSize { .. } => 0,
        }
    }

    /// Whether it must be known before the members of a header are there.
    pub(crate) fn is_group(&self) -> bool {
        matches!(self, Self::ChordSize { .. } | Self::Group { .. })
    }

    /// Whether somebody waits for what it brings; tokens of a stream are no loss.
    pub(crate) fn matters(&self) -> bool {
        !matches!(self, Self::Stream { .. })
    }
}

impl Backend {
    /// Appends the commands of `writes`, in order; neighbouring records become one script call.
    pub fn append(&self, pipe: &mut Pipeline, writes: &[Write]) {
        let mut records = Records {
            list: Vec::new(),
            make_room: self.ends_messages,
        };
        for write in writes {
            match write {
                Write::Store {
                    id,
                    status,
                    record,
                    late,
                } => {
                    // Nothing overtakes what is refused.
                    if records.make_room && record.len() > SMALL {
                        self.append_records(pipe, &mut records);
                        records.make_room = false;
                    }
                    records.list.push((id, status, record, *late));
                }
                Write::Revoke { id, record } => {
                    self.append_records(pipe, &mut records);
                    let mut call = self.scripts.revoke.prepare_invoke();
                    call.key(self.result_key(id))
                        .arg(self.ttl(&State::Revoked))
                        .arg(&self.written(record)[..])
                        .arg(u8::from(self.looks()));
                    pipe.invoke_script(&call);
                }
                Write::Unique { holder, settled } => {
                    self.append_records(pipe, &mut records);
                    self.append_unique(pipe, holder, settled);
                }
                Write::Stream { id, entries } => {
                    self.append_records(pipe, &mut records);
                    self.append_stream(pipe, id, entries);
                }
                Write::ChordSize { group, size } => {
                    // A claim that is left is one of an earlier run of the same frozen chord.
                    pipe.del(self.group_key(group, ".c"));
                    self.append_group(pipe, self.group_key(group, ".s"), size.to_string().as_bytes());
                }
                Write::Group { group, record } => {
                    self.append_group(pipe, self.group_key(group, ""), &self.written(record));
                }
            }
        }
        self.append_records(pipe, &mut records);
    }

    /// Tells once more of the results with these keys.
    pub fn append_again(&self, pipe: &mut Pipeline, keys: &[Vec<u8>]) {
        for batch in keys.chunks(BATCH) {
            let mut call = invocation(&self.scripts.tell, batch.len());
            for key in batch {
                call.arg(key);
            }
            pipe.add_command(call);
        }
    }

    fn append_records(&self, pipe: &mut Pipeline, records: &mut Records<'_>) {
        for batch in records.list.chunks(BATCH) {
            let mut call = invocation(&self.scripts.store, batch.len());
            for (id, ..) in batch {
                call.arg(self.result_key(id));
            }
            let how = u8::from(self.looks()) + 2 * u8::from(records.make_room);
            match batch.iter().any(|(.., late)| *late) {
                false => call.arg(how),
                true => {
                    let late = batch.iter().map(|(.., late)| if *late { '1' } else { '0' });
                    call.arg(std::iter::once(char::from(b'0' + how)).chain(late).collect::<String>())
                }
            };
            for (_, status, record, _) in batch {
                call.arg(self.ttl(status)).arg(&self.written(record)[..]);
            }
            pipe.add_command(call);
        }
        records.list.clear();
    }

    /// A record in the form of results; one that has no such form is a failure with the reason (P-074).
    pub(super) fn written<'a>(&self, record: &'a [u8]) -> Cow<'a, [u8]> {
        self.options.format.write(record).unwrap_or_else(|error| {
            let mut failed: Map<String, Value> = serde_json::from_slice(record).unwrap_or_default();
            failed.insert("status".into(), State::Failure.as_str().into());
            failed.insert("result".into(), encode_error(&error));
            let failed = Value::Object(failed).to_string();
            let written = self.options.format.write(failed.as_bytes());
            written.unwrap_or_default().into_owned().into()
        })
    }

    fn append_group(&self, pipe: &mut Pipeline, key: String, value: &[u8]) {
        match self.options.result_expires {
            Some(ttl) => pipe.set_ex(key, value, ttl.as_secs().max(1)),
            None => pipe.set(key, value),
        };
    }

    /// Seconds a record is kept; 0 is for ever.
    fn ttl(&self, status: &State) -> u64 {
        let expires = match status {
            State::Failure => self
                .options
                .result_failure_expires
                .or(self.options.result_expires)
                .filter(|kept| !kept.is_zero()),
            _ => self.options.result_expires,
        };
        expires.map_or(0, |ttl| if ttl.is_zero() { 0 } else { ttl.as_secs().max(1) })
    }

    fn append_stream(&self, pipe: &mut Pipeline, id: &str, entries: &[Bytes]) {
        let key = self.stream_key(id);
        for entry in entries {
            let mut command = redis::cmd("XADD");
            command.arg(&key).arg("MAXLEN").arg("~").arg(self.options.stream_length);
            command.arg("*").arg("e").arg(&entry[..]);
            pipe.add_command(command);
        }
        let ttl = self.options.stream_expires.max(Duration::from_secs(1)).as_secs();
        pipe.expire(&key, i64::try_from(ttl).unwrap_or(i64::MAX));
    }
}

/// What Celery stores for a result that its serializer cannot write.
pub(super) fn encode_error(why: &str) -> Value {
    let exception = Exception::new("kombu.exceptions", "EncodeError", why);
    serde_json::to_value(exception).unwrap_or_default()
}
