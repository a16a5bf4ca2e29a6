//! Compressed results: a script cannot see their state, so they are looked at from here before they are replaced. As in
//! Celery, who writes between the look and the write is not noticed.

use std::sync::atomic::Ordering;

use redis::cmd;

use super::{Backend, Error, Write};
use crate::wire::State;

/// Records read at once.
const BATCH: usize = 128;

impl Backend {
    /// Whether there are compressed results, as far as is known.
    pub fn looks(&self) -> bool {
        self.looks.load(Ordering::Relaxed)
    }

    /// Somebody else compresses results.
    pub fn look_from_now_on(&self) {
        self.looks.store(true, Ordering::Relaxed);
    }

    /// Leaves out of `writes` what must not replace what is there: nothing replaces a SUCCESS, and nothing that was
    /// started is revoked.
    ///
    /// # Errors
    /// The server cannot be reached or refuses; `writes` are then as they were.
    pub async fn look(&self, writes: &mut Vec<Write>) -> Result<(), Error> {
        let places: Vec<(usize, String)> = writes
            .iter()
            .enumerate()
            .filter_map(|(at, write)| match write {
                Write::Store { id, .. } | Write::Revoke { id, .. } => Some((at, self.result_key(id))),
                _ => None,
            })
            .collect();
        let mut stays = vec![true; writes.len()];
        for batch in places.chunks(BATCH) {
            let mut command = cmd("MGET");
            for (_, key) in batch {
                command.arg(key);
            }
            let stored: Vec<Option<Vec<u8>>> = self.link.query(&command).await?;
            for ((at, _), stored) in batch.iter().zip(stored) {
                let now = stored.and_then(|stored| self.options.format.state(stored));
                stays[*at] = match (&writes[*at], now) {
                    (_, None) => true,
                    (Write::Revoke { .. }, Some(now)) => {
                        ["PENDING", "RECEIVED", "RETRY", "REJECTED"].contains(&now.as_str())
                    }
                    (_, Some(now)) => now != State::Success,
                };
            }
        }
        let mut stays = stays.into_iter();
        writes.retain(|_| stays.next().unwrap_or(true));
        Ok(())
    }
}
