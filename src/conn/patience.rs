//! The start of a program in the moment when its Redis restarts.

use std::time::Duration;

use super::Error;
use crate::backoff::Backoff;
use crate::clock;

/// How long a start waits for a Redis that answered before.
const LONGEST: Duration = Duration::from_secs(10);

/// Tries until it succeeds: for what comes after a first connection, when a Redis that cannot be reached is one that
/// was just lost. One that was never there is somebody's mistake, and said at once.
///
/// # Errors
/// It is refused for good, or the Redis stays away.
pub async fn patiently<T, F: Future<Output = Result<T, Error>>>(step: impl FnMut() -> F) -> Result<T, Error> {
    patiently_where(|_| true, step).await
}

/// The same, as long as it is worth it; that is asked after each try that failed.
pub(super) async fn patiently_where<T, F: Future<Output = Result<T, Error>>>(
    is_worth_it: impl Fn(&Error) -> bool,
    mut step: impl FnMut() -> F,
) -> Result<T, Error> {
    let (began, mut backoff) = (clock::instant(), Backoff::default());
    loop {
        match step().await {
            Err(error)
                if error.is_transient()
                    && is_worth_it(&error)
                    && clock::instant().saturating_duration_since(began) < LONGEST =>
            {
                tokio::time::sleep(backoff.pause()).await;
            }
            ended => return ended,
        }
    }
}
