//! Finding a master through its Sentinels (`kombu.transport.redis.SentinelChannel`): they are asked before each
//! connection, so that the one after a failover goes to the new master.

use std::time::Duration;

use futures_util::future::{FutureExt, select_ok};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};

use super::Error;

/// Credentials of Sentinels themselves (`sentinel_kwargs`).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// ACL user.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
}

/// Shown without its password.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Those who know where a master is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sentinels {
    addresses: Vec<ConnectionAddr>,
    master: Option<String>,
    login: Login,
}

impl Sentinels {
    pub(super) fn new(addresses: Vec<ConnectionAddr>, master: Option<String>) -> Self {
        Self {
            addresses,
            master,
            login: Login::default(),
        }
    }

    pub(super) fn addresses(&self) -> &[ConnectionAddr] {
        &self.addresses
    }

    pub(super) fn master(&self) -> Option<&str> {
        self.master.as_deref()
    }

    pub(super) fn set_master(&mut self, name: &str) {
        self.master = Some(name.to_owned());
    }

    pub(super) fn set_login(&mut self, login: Login) {
        self.login = login;
    }

    /// Where the master is. All are asked at once, and the first that knows is believed: the connection itself finds
    /// out whether it is a master that answers.
    pub(super) async fn find(&self, timeout: Duration) -> Result<ConnectionAddr, Error> {
        let Some(master) = &self.master else {
            return Err(Error::Url(
                "a Sentinel URL needs master_name in the transport options".into(),
            ));
        };
        let asked = self
            .addresses
            .iter()
            .map(|address| self.ask(address, master, timeout).boxed());
        match select_ok(asked).await {
            Ok(((host, port), _)) => Ok(ConnectionAddr::Tcp(host, port)),
            Err(last) => Err(Error::Transient(format!(
                "no Sentinel knows where the master {master:?} is; the last one asked: {last}"
            ))),
        }
    }

    async fn ask(&self, address: &ConnectionAddr, master: &str, timeout: Duration) -> Result<(String, u16), String> {
        let mut settings = RedisConnectionInfo::default();
        if let Some(username) = &self.login.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.login.password {
            settings = settings.set_password(password);
        }
        let info = address
            .clone()
            .into_connection_info()
            .map_err(|error| error.to_string())?;
        let client = Client::open(info.set_redis_settings(settings)).map_err(|error| error.to_string())?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        let known: Option<(String, u16)> = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let mut question = redis::cmd("SENTINEL");
            question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
            question.query_async(&mut connection).await
        }
        .await
        .map_err(|error: redis::RedisError| format!("{address}: {error}"))?;
        known.ok_or_else(|| format!("{address} watches no such master"))
    }
}
