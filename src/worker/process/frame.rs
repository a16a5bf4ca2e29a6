//! What a worker and its child processes say to each other: frames of a length and JSON, over one socket.

use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::task::Failure;
use crate::wire::{Arguments, Exception, Signature, json};
use crate::worker::request::Outcome;

/// Largest frame: a message with what JSON adds to it, or a result.
const LARGEST: usize = 1 << 30;

/// The socket between the two.
pub(super) type Frames = Framed<UnixStream, LengthDelimitedCodec>;

/// Frames over a socket.
pub(super) fn frames(socket: UnixStream) -> Frames {
    let codec = LengthDelimitedCodec::builder().max_frame_length(LARGEST).new_codec();
    Framed::new(socket, codec)
}

/// What a child is told.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Down {
    /// Run the task of the message in the next frame.
    Run {
        /// What is left of its life.
        hard: Option<Duration>,
        /// Where the run stands in a trace, as headers of a message tell it.
        trace: Option<Map<String, Value>>,
    },
    /// The run has reached its soft time limit.
    SoftLimit,
}

/// What a child says.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Up {
    /// It has the task; its time counts from now on.
    Begun,
    /// A state of the task's own.
    State(String, Box<RawValue>),
    /// An entry of the token stream.
    Stream(Box<RawValue>),
    /// An event of the task's own.
    Event(String, Map<String, Value>),
    /// The run is over.
    Ended(End),
}

/// How a run in a child ended.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct End {
    pub ended: Ended,
    /// The traceback of the exception in it, which is no part of the exception.
    pub traceback: Option<String>,
    /// Handles of what the run has sent.
    pub children: Vec<Box<RawValue>>,
    /// Memory of the child in bytes.
    pub resident: u64,
    /// Nothing of the run is left; the child can take another.
    pub clean: bool,
}

/// An [`Outcome`] that can come from a child.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Ended {
    Success(Box<RawValue>),
    Fail(Exception),
    Retry {
        after: Option<Duration>,
        cause: Option<Exception>,
        arguments: Option<(Vec<Value>, Map<String, Value>)>,
    },
    Reject {
        requeue: bool,
        reason: String,
    },
    Ignore,
    Park,
    Later(Duration),
    Replace(Box<Signature>),
    Panicked(String),
    SoftLimit,
}

impl Ended {
    /// From the outcome of a run, with the traceback of its exception.
    pub(super) fn new(outcome: Outcome) -> (Self, Option<String>) {
        match outcome {
            Outcome::Success(value) => (Self::Success(value), None),
            Outcome::Failed(Failure::Fail(exception)) => {
                let traceback = exception.traceback.clone();
                (Self::Fail(exception), traceback)
            }
            Outcome::Failed(Failure::Retry {
                after,
                cause,
                arguments,
            }) => {
                let traceback = cause.as_ref().and_then(|cause| cause.traceback.clone());
                let arguments = arguments.map(|arguments| (arguments.args, arguments.kwargs));
                let retry = Self::Retry {
                    after,
                    cause,
                    arguments,
                };
                (retry, traceback)
            }
            Outcome::Failed(Failure::Reject { requeue, reason }) => (Self::Reject { requeue, reason }, None),
            Outcome::Failed(Failure::Replace(signature)) => (Self::Replace(signature), None),
            Outcome::Failed(Failure::Park) => (Self::Park, None),
            Outcome::Failed(Failure::Later(after)) => (Self::Later(after), None),
            Outcome::Panicked(text) => (Self::Panicked(text), None),
            Outcome::SoftLimit | Outcome::HardLimit(_) => (Self::SoftLimit, None),
            // The last three are for the worker to find out.
            Outcome::Failed(Failure::Ignore) | Outcome::Done { .. } | Outcome::Known | Outcome::Lost(_) => {
                (Self::Ignore, None)
            }
        }
    }

    /// As the outcome that it was.
    pub(super) fn outcome(self, traceback: Option<String>) -> Outcome {
        let told = |exception: Exception| Exception { traceback, ..exception };
        match self {
            Self::Success(value) => {
                json::note_carried(value.get());
                Outcome::Success(value)
            }
            Self::Fail(exception) => Outcome::Failed(Failure::Fail(told(exception))),
            Self::Retry {
                after,
                cause,
                arguments,
            } => Outcome::Failed(Failure::Retry {
                after,
                cause: cause.map(told),
                arguments: arguments.map(|(args, kwargs)| Box::new(Arguments { args, kwargs })),
            }),
            Self::Reject { requeue, reason } => Outcome::Failed(Failure::Reject { requeue, reason }),
            Self::Ignore => Outcome::Failed(Failure::Ignore),
            Self::Park => Outcome::Failed(Failure::Park),
            Self::Later(after) => Outcome::Failed(Failure::Later(after)),
            Self::Replace(signature) => Outcome::Failed(Failure::Replace(signature)),
            Self::Panicked(text) => Outcome::Panicked(text),
            Self::SoftLimit => Outcome::SoftLimit,
        }
    }
}

pub(super) fn encode(value: &impl Serialize) -> std::io::Result<Bytes> {
    Ok(serde_json::to_vec(value)?.into())
}

pub(super) fn decode<T: DeserializeOwned>(frame: &[u8]) -> std::io::Result<T> {
    Ok(serde_json::from_slice(frame)?)
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt as _, StreamExt as _};

    use super::*;
    use crate::wire::CallOptions;

    /// Its length says so, before anything is read of it or room is made for it.
    #[tokio::test]
    async fn a_frame_beyond_the_limit_is_refused_by_its_length() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut from, length) = (frames(other), u32::try_from(LARGEST + 1).unwrap());
        one.try_write(&length.to_be_bytes()).unwrap();
        drop(one);
        let error = from.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
        assert!(from.read_buffer().capacity() < 1 << 20);
        // The largest arguments and results of the settings go through.
        let (one, other) = UnixStream::pair().unwrap();
        let (mut to, mut from, large) = (frames(one), frames(other), Bytes::from(vec![b'x'; 65 << 20]));
        let (sent, received) = tokio::join!(to.send(large.clone()), from.next());
        sent.unwrap();
        assert!(received.unwrap().unwrap() == large);
    }

    #[test]
    fn every_outcome_comes_through_a_socket_unchanged() {
        let raw = |text: &str| RawValue::from_string(text.into()).unwrap();
        let exception = Exception::new("myapp.errors", "Busy", "so").with_traceback("line 1");
        let arguments = Arguments {
            args: vec![1.into()],
            kwargs: Map::from_iter([("x".to_owned(), Value::from("y"))]),
        };
        let mut signature = Signature::new("next").arg(1.5).kwarg("k", [1, 2]).option("queue", "q");
        signature.options = CallOptions {
            link: vec![Signature::new("after")],
            ..signature.options
        };
        let failures = [
            Failure::Fail(exception.clone()),
            Failure::Retry {
                after: Some(Duration::from_millis(1500)),
                cause: Some(exception),
                arguments: Some(Box::new(arguments)),
            },
            Failure::Reject {
                requeue: true,
                reason: "why".into(),
            },
            Failure::Ignore,
            Failure::Later(Duration::from_millis(2500)),
            Failure::Replace(Box::new(signature)),
        ];
        let outcomes = failures.map(Outcome::Failed).into_iter().chain([
            Outcome::Success(raw(r#"{"b":1.50,"a":[null]}"#)),
            Outcome::Panicked("x".into()),
            Outcome::SoftLimit,
        ]);
        for outcome in outcomes {
            let before = format!("{outcome:?}");
            let (ended, traceback) = Ended::new(outcome);
            let end = End {
                ended,
                traceback,
                children: Vec::new(),
                resident: 1,
                clean: true,
            };
            let Up::Ended(end) = decode(&encode(&Up::Ended(end)).unwrap()).unwrap() else {
                panic!("{before}")
            };
            assert_eq!(format!("{:?}", end.ended.outcome(end.traceback)), before);
        }
    }
}
