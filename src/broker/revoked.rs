//! What is revoked, kept for workers that are not there to hear it. Celery tells it to whoever listens, and to nobody
//! else: a task whose worker was killed, or that no worker was up for, would run all the same.

use std::time::Duration;

use redis::{Pipeline, ScriptInvocation};

use super::{Broker, Error};

/// As many are kept, and for as long, as a worker keeps (`celery.worker.state.REVOKES_MAX` and `REVOKE_EXPIRES`).
pub const REVOKES_MAX: usize = 50_000;
/// How long they are kept.
pub const REVOKE_EXPIRES: Duration = Duration::from_secs(10_800);

/// Ids in one script call: bounds how long it occupies Redis.
const BATCH: usize = 512;

impl Broker {
    /// Notes that tasks are revoked.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn note_revoked(&self, ids: &[&str]) -> Result<(), Error> {
        for ids in ids.chunks(BATCH) {
            let mut pipe = Pipeline::with_capacity(1);
            self.append_revoked(&mut pipe, ids.iter().copied());
            self.answered(&pipe).await?;
        }
        Ok(())
    }

    /// What was noted, oldest first.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn noted_revoked(&self) -> Result<Vec<String>, Error> {
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&self.revoked_call());
        let ids = redis::from_redis_value(self.answered(&pipe).await?);
        ids.map_err(|error| Error::Refused(format!("what is revoked cannot be read: {error}")))
    }

    pub(super) fn append_revoked<'a>(&self, pipe: &mut Pipeline, ids: impl Iterator<Item = &'a str>) {
        let mut call = self.revoked_call();
        for id in ids {
            call.arg(id);
        }
        pipe.invoke_script(&call);
    }

    fn revoked_call(&self) -> ScriptInvocation<'_> {
        let mut call = self.scripts.revoked.prepare_invoke();
        call.key(self.keys.name("orchestra:revoked"));
        call.arg(REVOKES_MAX).arg(REVOKE_EXPIRES.as_secs());
        call
    }

    async fn answered(&self, pipe: &Pipeline) -> Result<redis::Value, Error> {
        match self.writer.pipeline(pipe).await?.into_iter().next() {
            Some(redis::Value::ServerError(error)) => Err(Error::Refused(error.to_string())),
            Some(answer) => Ok(answer),
            None => Err(Error::Refused("no answer".into())),
        }
    }
}
