//! Redis URLs as Celery users write them (kombu's and redis-py's forms; protocol 1.19).

use std::fmt;
use std::path::PathBuf;

use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, TlsCertificates};

use super::Error;

/// Where a Redis is. Shown without its password.
#[derive(Clone)]
pub struct Endpoint {
    info: ConnectionInfo,
    shown: String,
    ca_file: Option<PathBuf>,
}

impl Endpoint {
    /// Reads `redis://[user[:password]@]host[:port][/db]`, `rediss://…?ssl_cert_reqs=…&ssl_ca_certs=…`,
    /// `redis+socket:///path?virtual_host=db`, `socket://…`, `unix://…`.
    ///
    /// # Errors
    /// One line that says what is wrong with the URL; never the password.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let url = url.trim();
        let shown = mask(url);
        let wrong = |what: &str| Error::Url(format!("{shown:?} is no Redis URL: {what}"));
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| wrong("it has no scheme; write redis://host:6379/0"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let option = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
                .map(|(_, value)| value)
        };
        let mut ca_file = None;
        let plain = match scheme {
            "redis" => format!("redis://{place}"),
            "rediss" => {
                ca_file = option("ssl_ca_certs").map(PathBuf::from);
                let insecure = match option("ssl_cert_reqs") {
                    None | Some("CERT_REQUIRED" | "required" | "CERT_OPTIONAL" | "optional") => "",
                    Some("CERT_NONE" | "none") => "#insecure",
                    Some(_) => return Err(wrong("ssl_cert_reqs must be required, optional or none")),
                };
                format!(
                    "rediss://{place}{}{insecure}",
                    if place.contains('/') { "" } else { "/0" }
                )
            }
            "redis+socket" | "socket" | "unix" | "redis+unix" => {
                let db = option("virtual_host").or_else(|| option("db")).unwrap_or("0");
                format!("redis+unix://{place}?db={db}")
            }
            "sentinel" => return Err(wrong("Sentinel is not supported in this version")),
            "amqp" | "amqps" | "pyamqp" => return Err(wrong("only Redis brokers are supported")),
            other => {
                return Err(wrong(&format!(
                    "unknown scheme {other:?}; use redis://, rediss:// or redis+socket://"
                )));
            }
        };
        let info = plain
            .as_str()
            .into_connection_info()
            .map_err(|error| wrong(&error.to_string().replace(&plain, &shown)))?;
        // RESP3 for pushes: news of messages and of remote control come on the same connection.
        let settings = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("orchestra", env!("CARGO_PKG_VERSION"));
        let info = info.set_redis_settings(settings);
        Ok(Self { info, shown, ca_file })
    }

    /// Database number.
    pub fn db(&self) -> i64 {
        self.info.redis_settings().db()
    }

    /// Host name, or the path of the socket.
    pub fn host(&self) -> String {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
            ConnectionAddr::Unix(path) => path.display().to_string(),
            _ => String::new(),
        }
    }

    /// Port; `None` for a socket.
    pub fn port(&self) -> Option<u16> {
        match self.info.addr() {
            ConnectionAddr::Tcp(_, port) | ConnectionAddr::TcpTls { port, .. } => Some(*port),
            _ => None,
        }
    }

    /// The port, if it is a server without TLS and credentials on this machine: one that can be started here.
    pub fn loopback_port(&self) -> Option<u16> {
        let open = !self.is_tls() && self.username().is_none() && self.info.redis_settings().password().is_none();
        let local = matches!(self.host().as_str(), "localhost" | "127.0.0.1");
        self.port().filter(|_| open && local)
    }

    /// ACL user.
    pub fn username(&self) -> Option<&str> {
        self.info.redis_settings().username()
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// Whether both name the same database of the same server.
    pub fn is_same_server_and_db(&self, other: &Self) -> bool {
        self.info.addr() == other.info.addr() && self.db() == other.db() && self.username() == other.username()
    }

    pub(super) fn client(&self) -> Result<Client, Error> {
        let tcp = self
            .info
            .tcp_settings()
            .clone()
            .set_nodelay(true)
            .set_user_timeout(std::time::Duration::from_secs(10));
        let info = self.info.clone().set_tcp_settings(tcp);
        let client = match &self.ca_file {
            None => Client::open(info),
            Some(path) => {
                let root_cert = std::fs::read(path)
                    .map_err(|error| Error::Url(format!("cannot read ssl_ca_certs {}: {error}", path.display())))?;
                Client::build_with_tls(
                    info,
                    TlsCertificates {
                        client_tls: None,
                        root_cert: Some(root_cert),
                    },
                )
            }
        };
        client.map_err(|error| Error::Url(format!("{}: {error}", self.shown)))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.shown).finish()
    }
}

/// The URL with its password replaced, as Celery shows it.
fn mask(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let Some((credentials, place)) = rest.rsplit_once('@') else {
        return url.to_owned();
    };
    let user = credentials.split(':').next().unwrap_or_default();
    if credentials.contains(':') {
        format!("{scheme}://{user}:**@{place}")
    } else {
        format!("{scheme}://{user}@{place}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_046_the_forms_of_a_url_are_read() {
        let plain = Endpoint::parse("redis://localhost").unwrap();
        assert_eq!(
            (plain.host(), plain.port(), plain.db()),
            ("localhost".into(), Some(6379), 0)
        );
        let full = Endpoint::parse("redis://user:se%40cret@h:7000/3").unwrap();
        assert_eq!(
            (full.host(), full.port(), full.db(), full.username()),
            ("h".into(), Some(7000), 3, Some("user"))
        );
        assert_eq!(full.to_string(), "redis://user:**@h:7000/3");
        let socket = Endpoint::parse("redis+socket:///run/redis.sock?virtual_host=2").unwrap();
        assert_eq!(
            (socket.host(), socket.port(), socket.db()),
            ("/run/redis.sock".into(), None, 2)
        );
        assert!(
            Endpoint::parse("rediss://h:7000/1?ssl_cert_reqs=required")
                .unwrap()
                .is_tls()
        );
    }

    #[test]
    fn a_wrong_url_is_explained_without_its_password() {
        for url in [
            "localhost",
            "amqp://u:secret@h",
            "redis://u:secret@h:port/0",
            "rediss://h?ssl_cert_reqs=maybe",
            "x://h",
        ] {
            let error = Endpoint::parse(url).unwrap_err().to_string();
            assert!(
                error.contains("is no Redis URL") && !error.contains("secret"),
                "{error}"
            );
        }
    }
}
