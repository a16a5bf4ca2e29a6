//! What can go wrong between us and a Redis, by what the caller does about it.

use redis::{ErrorKind, RedisError, ServerError};

/// Trouble with a Redis.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The URL is wrong. The text says how.
    #[error("{0}")]
    Url(String),
    /// It may go away: the connection is being made again, or the server is busy with itself.
    #[error("{0}")]
    Transient(String),
    /// Redis refused, and will refuse again.
    #[error("{0}")]
    Refused(String),
}

/// Replies that mean "not now" or "not me": wait, and ask again on a new connection.
const TRANSIENT: [&str; 16] = [
    "LOADING",
    "READONLY",
    "UNBLOCKED",
    "MASTERDOWN",
    "BUSY",
    "OOM",
    "NOAUTH",
    "WRONGPASS",
    "NOSCRIPT",
    "MISCONF",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "EXECABORT",
    "NOREPLICAS",
];
/// Those of them that say that this connection itself is no good.
const RECONNECT: [&str; 5] = ["READONLY", "UNBLOCKED", "MASTERDOWN", "NOAUTH", "WRONGPASS"];

/// Those that a server that is being started, or takes over, says for a while.
const COMING: [&str; 6] = ["LOADING", "MASTERDOWN", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "READONLY"];

impl Error {
    /// Whether trying again later can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_))
    }

    pub(super) fn from_redis(error: &RedisError, url: &str) -> Self {
        if is_broken(error) {
            return Self::Transient(format!("lost the connection to Redis at {url}: {error}"));
        }
        match error.code() {
            Some(code) if is_transient_code(code) => Self::Transient(format!("Redis at {url} says: {error}")),
            _ if error.to_string().contains("max number of clients") => {
                Self::Transient(format!("Redis at {url} has no room for another client: {error}"))
            }
            _ => Self::Refused(format!("Redis at {url} refused: {error}")),
        }
    }

    pub(super) fn from_server(error: &ServerError, url: &str) -> Self {
        if is_transient_code(code(error)) {
            let details = error.details().unwrap_or_default().trim_end_matches('.');
            Self::Transient(format!("Redis at {url} says: {} {details}", error.code()))
        } else {
            Self::Refused(format!("Redis at {url} refused: {error}"))
        }
    }

    /// TLS was tried with a server that has none.
    pub(super) fn without_tls(url: &str) -> Self {
        Self::Refused(format!(
            "Redis at {url} answers without TLS: write redis:// instead of rediss://, or name its port with TLS"
        ))
    }

    /// The one line for a person whose worker cannot start.
    pub(super) fn unreachable(error: &RedisError, url: &str) -> Self {
        let text = error.to_string().replace('\n', " ");
        let (reason, hint) = match error.code() {
            Some("NOAUTH") => ("it wants a password".to_owned(), "write redis://:PASSWORD@host:port/db"),
            Some("WRONGPASS") => ("it knows no such user and password".to_owned(), "check them in the URL"),
            Some("LOADING") => ("it is loading its data".to_owned(), "try again in a moment"),
            Some(code) if COMING.contains(&code) => (text, "try again in a moment"),
            _ if matches!(error.kind(), ErrorKind::AuthenticationFailed) => {
                (text, "check the user and password in the URL")
            }
            _ if matches!(error.kind(), ErrorKind::Parse) => (
                "something else than Redis answers there".to_owned(),
                "check host and port in the URL",
            ),
            _ if text.contains("DB index") => (
                "there is no such database".to_owned(),
                "check the number at the end of the URL",
            ),
            // What it says itself has the words that it does not know, a password among them.
            _ if matches!(error.kind(), ErrorKind::RESP3NotSupported) || text.contains("unknown command") => (
                "it does not know what it is asked".to_owned(),
                "this Redis is too old: 6.2 or later is needed",
            ),
            _ if text.contains("os error 24") => (text, "let this process open more of them (`ulimit -n`)"),
            _ if text.contains("certificate") => (
                text,
                "name its authority with ssl_ca_certs, our own with ssl_certfile and ssl_keyfile",
            ),
            _ if text.contains("lookup address") => {
                ("there is no host of that name".to_owned(), "check the host in the URL")
            }
            _ if error.is_connection_dropped() && !error.is_connection_refusal() => {
                (text, "is it Redis, and does it want TLS (rediss://)?")
            }
            _ if error.is_timeout() => (
                "no answer within the time limit".to_owned(),
                "is it Redis, and does it want TLS (rediss://)?",
            ),
            _ => (
                text,
                "is it running? start it with `redis-server`, or name another one with --broker",
            ),
        };
        Self::Transient(format!("cannot reach Redis at {url}: {reason}; {hint}"))
    }
}

/// What Redis says to a command that it refuses, and what a person can do about that.
pub(crate) fn refusal(words: impl std::fmt::Display) -> String {
    let words = words.to_string();
    // Of what a script may not do it says: The user executing the script can't run this command.
    if ["NOPERM", "NoPerm", "can't run", "can't access"]
        .iter()
        .any(|about| words.contains(about))
    {
        return format!("{words}; what a user needs is in docs/redis.md#acl");
    }
    words
}

/// The code of a refusal. Redis before 7 puts what a script was refused into words of its own:
/// `ERR Error running script (…): …: -OOM command not allowed`.
pub(super) fn code(error: &ServerError) -> &str {
    let inner = || {
        // What a script gives back that it was told begins with the place in it: `@user_script: 75: -OOM command …`.
        let text = match error.code() {
            place if place.starts_with("@user_script") => error.details()?,
            _ => error.details()?.strip_prefix("Error running script")?,
        };
        text.rsplit_once(": -")?.1.split_whitespace().next()
    };
    inner().unwrap_or_else(|| error.code())
}

pub(super) fn is_transient_code(code: &str) -> bool {
    TRANSIENT.contains(&code)
}

/// Whether a Redis is there that will be well in a moment: it took the connection and dropped it, does not come to
/// answer, or says so itself.
pub(super) fn is_about_to_come(error: &RedisError) -> bool {
    let dropped = error.is_connection_dropped() && !error.is_connection_refusal();
    dropped
        || error.is_timeout()
        || error.code().is_some_and(|code| COMING.contains(&code))
        || error.to_string().contains("max number of clients")
}

/// Whether a server does not know who we are.
pub(super) fn is_refused_login(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::AuthenticationFailed) || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

/// Whether a reply of that code means that another connection is needed.
pub(super) fn needs_reconnect(code: &str) -> bool {
    RECONNECT.contains(&code)
}

/// Whether the connection is gone, or must be taken for gone.
pub(super) fn is_broken(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || matches!(error.kind(), ErrorKind::Parse | ErrorKind::Io)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Redis 6.2 says in three ways what Redis 7 says in one.
    #[test]
    fn the_code_of_what_a_script_was_refused_is_found() {
        for said in [
            "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
            "-ERR Error running script (call to f_1f): @user_script:9: @user_script: 9: -OOM command not allowed\r\n",
            "-@user_script: 75: -OOM command not allowed when used memory > 'maxmemory'.\r\n",
        ] {
            let answer = redis::parse_redis_value(said.as_bytes());
            let Ok(redis::Value::ServerError(error)) = answer else {
                panic!("{answer:?}")
            };
            assert_eq!(code(&error), "OOM", "{said}");
        }
    }
}
