//! A URL that stands in a file (`ORCHESTRA_BROKER_URL_FILE`), because there is a password in it: whoever changes the
//! password writes the file anew, and what runs reads it again when it is refused.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::Endpoint;

/// The file, and what it said last. Clones share it.
#[derive(Clone)]
pub(super) struct Secret {
    path: PathBuf,
    last: Arc<Mutex<Endpoint>>,
}

impl Secret {
    /// `last` is what was read from the file.
    pub(super) fn new(path: PathBuf, last: Endpoint) -> Self {
        Self {
            path,
            last: Arc::new(Mutex::new(last)),
        }
    }

    /// The endpoint with the credentials that are known to be newest.
    pub(super) fn last(&self) -> Endpoint {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again. Only credentials may be others: what is held, and what waits to be written, belongs to one
    /// place.
    pub(super) fn read_again(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.display();
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) => return warn!("the login for Redis at {last} cannot be read again from {path}: {error}"),
        };
        match Endpoint::parse(&text) {
            Ok(now) if now.has_login_of(&last) => {}
            Ok(now) if now.is_place_of(&last) => {
                info!("Redis at {last} is asked with the login that stands in {path} now");
                *last = now.in_place_of(&last);
            }
            Ok(now) => {
                warn!("{path} names another Redis now, {now}; this program stays with {last} until it is started again")
            }
            Err(error) => warn!("the login for Redis at {last} cannot be read again from {path}: {error}"),
        }
    }
}
