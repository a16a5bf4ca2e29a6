//! A Redis that tasks write to, beside the broker's.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisError};
use tokio::sync::Mutex;

/// One connection, made when it is first used and again after an error.
#[derive(Clone)]
pub struct Store {
    url: Arc<str>,
    connection: Arc<Mutex<Option<MultiplexedConnection>>>,
}

impl Store {
    /// The Redis at that URL.
    pub fn new(url: &str) -> Self {
        Self {
            url: url.into(),
            connection: Arc::default(),
        }
    }

    /// Sends a command once: a task that counts must not count twice.
    ///
    /// # Errors
    /// Redis cannot be reached or refuses.
    pub async fn run(&self, command: &Cmd) -> Result<(), RedisError> {
        let mut connection = self.connection().await?;
        let answer = command.exec_async(&mut connection).await;
        if answer.as_ref().is_err_and(RedisError::is_unrecoverable_error) {
            *self.connection.lock().await = None;
        }
        answer
    }

    /// `RPUSH key value`.
    ///
    /// # Errors
    /// See [`run`](Self::run).
    pub async fn push(&self, key: &str, value: &str) -> Result<(), RedisError> {
        self.run(redis::cmd("RPUSH").arg(key).arg(value)).await
    }

    /// `INCR key`.
    ///
    /// # Errors
    /// See [`run`](Self::run).
    pub async fn count(&self, key: &str) -> Result<(), RedisError> {
        self.run(redis::cmd("INCR").arg(key)).await
    }

    async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(5)))
            .set_response_timeout(Some(Duration::from_secs(10)));
        let client = Client::open(&*self.url)?;
        let made = client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(connection.insert(made).clone())
    }
}
