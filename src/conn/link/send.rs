//! Sending: commands and pipelines over the connection that stands, each with its deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::ConnectionLike as _;
use redis::{Cmd, FromRedisValue, Pipeline, Script, Value};

use super::{Link, LinkOptions};
use crate::conn::Error;
use crate::conn::errand::{Errand, has_no_script, moved_to};
use crate::conn::error::{code, is_broken, needs_reconnect};
use crate::conn::patience::patiently;

/// The longest wait for one answer, however often it was tried.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// How often a command follows its slot to another node of a cluster.
const MOVES: usize = 3;

/// How long the answer to something is waited for: twice as long after each time that it did not come in time, so that
/// what is large gets through a slow network, and a dead connection is still found soon.
#[derive(Clone, Debug, Default)]
pub struct Patience(Arc<AtomicU32>);

impl Patience {
    fn wait(&self, options: &LinkOptions) -> Duration {
        let late = self.0.load(Ordering::Relaxed).min(8);
        (options.response_timeout * (1 << late)).min(LONGEST_WAIT)
    }

    fn grow(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pipelines that wait for their answer. They are answered in order, so each is given as much time as the most
/// patient of those before it.
#[derive(Default)]
pub(super) struct Waiting {
    count: AtomicUsize,
    patience_ms: AtomicU64,
}

impl Waiting {
    /// Joins with a patience; gives back the one to use.
    fn join(&self, patience: Duration) -> (Duration, WaitingGuard<'_>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let own = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let longest = self.patience_ms.fetch_max(own, Ordering::Relaxed).max(own);
        (Duration::from_millis(longest), WaitingGuard(self))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }
}

struct WaitingGuard<'a>(&'a Waiting);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.patience_ms.store(0, Ordering::Relaxed);
        }
    }
}

/// Why there is no answer.
struct Unanswered {
    error: Error,
    /// It was on its way: the server may have done it.
    sent: bool,
}

impl From<Unanswered> for Error {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.error
    }
}

impl Link {
    /// Runs one command.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut pipe = Pipeline::with_capacity(1);
        pipe.add_command(command.clone());
        let value = self.pipeline(&pipe).await?.pop().unwrap_or(Value::Nil);
        let refused = |error: &dyn std::fmt::Display| Error::Refused(format!("unexpected answer of Redis: {error}"));
        if let Value::ServerError(error) = &value {
            return Err(Error::from_server(error, &self.shared.endpoint.to_string()));
        }
        T::from_redis_value(value).map_err(|error| refused(&error))
    }

    /// Runs many commands. Errors of single commands come back as [`Value::ServerError`] in their place, unless they
    /// concern the server as a whole.
    ///
    /// # Errors
    /// The connection broke (some of the commands may have run), or the server answers none of them now.
    pub async fn pipeline(&self, pipe: &Pipeline) -> Result<Vec<Value>, Error> {
        self.pipeline_with(pipe, &Patience::default()).await
    }

    /// Runs many commands that were or will be tried again with the same patience.
    ///
    /// # Errors
    /// See [`pipeline`](Self::pipeline).
    pub async fn pipeline_with(&self, pipe: &Pipeline, patience: &Patience) -> Result<Vec<Value>, Error> {
        let mut errand = Errand::new(pipe);
        self.run(&mut errand, patience).await?;
        Ok(errand.into_answers())
    }

    /// Sends what is left of an errand; what the server did need not be sent again when the rest is tried again.
    ///
    /// # Errors
    /// See [`pipeline`](Self::pipeline).
    pub async fn run(&self, errand: &mut Errand<'_>, patience: &Patience) -> Result<(), Error> {
        self.send_rest(errand, patience).await?;
        for _ in 0..MOVES {
            // A node of a cluster that has not our slot did nothing of it.
            let Some(node) = errand.find(moved_to) else {
                break;
            };
            self.shared.move_to(node);
            let _ = tokio::time::timeout(self.shared.options.response_timeout, self.ready()).await;
            self.send_rest(errand, patience).await?;
        }
        // The scripts are gone from the server's cache: load them again, once.
        if errand.find(has_no_script).is_some() {
            self.load_scripts().await?;
            self.send_rest(errand, patience).await?;
        }
        errand.trouble(&self.shared.endpoint.to_string()).map_or(Ok(()), Err)
    }

    /// Sends what is left of an errand, which knows afterwards whether that was answered.
    async fn send_rest(&self, errand: &mut Errand<'_>, patience: &Patience) -> Result<(), Error> {
        match self.attempt(&errand.rest(), patience).await {
            Ok(answers) => errand.take(answers),
            Err(unanswered) => {
                errand.unanswered(unanswered.sent);
                return Err(unanswered.error);
            }
        }
        Ok(())
    }

    /// Sends, and waits for the answer, whatever it says.
    async fn attempt(&self, pipe: &Pipeline, patience: &Patience) -> Result<Vec<Value>, Unanswered> {
        let url = || self.shared.endpoint.to_string();
        let not_connected = || Unanswered {
            error: Error::Transient(format!("not connected to Redis at {}", url())),
            sent: false,
        };
        let current = self.shared.current.borrow().clone();
        let Some((epoch, mut connection)) = current else {
            return Err(not_connected());
        };
        if self.shared.endpoint.turn() != self.shared.pulse.turn() {
            self.shared.broken(epoch, "another broker of the list is used now");
            return Err(not_connected());
        }
        let (longest, _waiting) = self.shared.waiting.join(patience.wait(&self.shared.options));
        connection.set_response_timeout(longest);
        let mut standing = self.shared.current.subscribe();
        let answers = tokio::select! {
            biased;
            answers = connection.req_packed_commands(pipe, 0, pipe.len()) => answers,
            // Somebody with less patience found that it is dead, or what we asked was ended with it: waiting for longer
            // would only say that we are to have still more patience.
            _ = standing.wait_for(|standing| standing.as_ref().is_none_or(|(number, _)| *number != epoch)) => {
                return Err(Unanswered {
                    error: Error::Transient(format!("lost the connection to Redis at {}", url())),
                    sent: true,
                });
            }
        };
        match answers {
            Ok(values) => {
                self.shared.pulse.hear();
                for value in &values {
                    if let Value::ServerError(error) = value
                        && needs_reconnect(code(error))
                    {
                        self.shared.broken(epoch, &error.to_string());
                    }
                }
                Ok(values)
            }
            Err(error) => {
                if error.is_timeout() {
                    patience.grow();
                }
                if is_broken(&error) || error.code().is_some_and(needs_reconnect) {
                    self.shared.broken(epoch, &error.to_string());
                }
                Err(Unanswered {
                    error: Error::from_redis(&error, &url()),
                    sent: true,
                })
            }
        }
    }

    /// Makes scripts known, on this and every later connection.
    ///
    /// # Errors
    /// The server cannot be reached or refuses scripts.
    pub async fn register(&self, scripts: impl IntoIterator<Item = Script>) -> Result<(), Error> {
        self.shared.setup().scripts.extend(scripts);
        patiently(|| self.load_scripts()).await
    }

    async fn load_scripts(&self) -> Result<(), Error> {
        let mut pipe = Pipeline::new();
        for script in &self.shared.setup().scripts {
            pipe.load_script(script);
        }
        if pipe.is_empty() {
            return Ok(());
        }
        for value in self.attempt(&pipe, &Patience::default()).await? {
            if let Value::ServerError(error) = value {
                return Err(Error::from_server(&error, &self.shared.endpoint.to_string()));
            }
        }
        Ok(())
    }
}
