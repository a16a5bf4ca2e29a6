//! Redis URLs as Celery users write them (kombu's and redis-py's forms).

use std::fmt;
use std::path::{Path, PathBuf};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, TlsCertificates,
};

use super::plain::speaks_plainly;
use super::secret::Secret;
use super::sentinel::{Login, Sentinels};
use super::several::Several;
use super::{Error, LinkOptions};

/// Where a Redis is. Shown without its password.
#[derive(Clone)]
pub struct Endpoint {
    /// The server; behind Sentinels only its database and credentials are meant.
    info: ConnectionInfo,
    shown: String,
    certificates: Certificates,
    /// Whether a certificate may be for another host.
    any_host: bool,
    sentinels: Option<Sentinels>,
    /// It is a list, and this is the first.
    several: Option<Several>,
    /// The file in which it stands, if it does.
    secret: Option<Secret>,
}

/// Files of a TLS connection.
#[derive(Clone, Debug, Default)]
struct Certificates {
    authority: Option<PathBuf>,
    own: Option<(PathBuf, PathBuf)>,
}

/// The option of a URL whose value is never shown.
const PASSWORD: &str = "password";

/// Options behind the question mark of a URL.
struct Query<'a>(&'a str);

impl Query<'_> {
    fn get(&self, name: &str) -> Option<String> {
        self.pairs()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| unquote(&value.replace('+', " ")))
    }

    /// Who logs in, and with what. It goes before what stands in front of the `@`, as in Celery's result backend; kombu
    /// fails at such a broker.
    fn log_in(&self, info: ConnectionInfo) -> ConnectionInfo {
        let given = |name: &str| self.get(name).filter(|word| !word.is_empty());
        let login = Login {
            username: given("username"),
            password: given(PASSWORD),
        };
        with_login(info, login)
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split('&').filter_map(|pair| pair.split_once('='))
    }
}

impl Endpoint {
    /// Reads `redis://[user[:password]@]host[:port][/db]`, all with `?username=…&password=…` as well,
    /// `rediss://…?ssl_cert_reqs=…&ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…`,
    /// `redis+socket:///path?virtual_host=db`, `socket://…`, `unix://…`,
    /// `sentinel://host[:port][/db][?master_name=…];sentinel://…`.
    ///
    /// # Errors
    /// One line that says what is wrong with the URL; never the password.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let url = url.trim();
        let shown: Vec<String> = pieces(url).into_iter().map(mask).collect();
        let shown = shown.join(";");
        Self::read(url, &shown).map_err(|what| Error::Url(format!("{shown:?} is no Redis URL: {what}")))
    }

    fn read(url: &str, shown: &str) -> Result<Self, String> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or("it has no scheme; write redis://host:6379/0")?;
        if scheme == "sentinel" {
            return Self::read_sentinels(url, shown);
        }
        if pieces(url).len() > 1 {
            return Self::read_several(url, shown);
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query = Query(query);
        let mut certificates = Certificates::default();
        let mut any_host = false;
        let (plain, login) = match scheme {
            "redis" => (format!("redis://{place}"), None),
            "rediss" => {
                certificates = Certificates::read(&query)?;
                any_host = query.get("ssl_check_hostname").is_some_and(|text| is_no(&text));
                let insecure = match query.get("ssl_cert_reqs").as_deref() {
                    None | Some("CERT_REQUIRED" | "required" | "CERT_OPTIONAL" | "optional") => "",
                    Some("CERT_NONE" | "none") => "#insecure",
                    Some(_) => return Err("ssl_cert_reqs must be required, optional or none".into()),
                };
                let db = if place.contains('/') { "" } else { "/0" };
                (format!("rediss://{place}{db}{insecure}"), None)
            }
            "redis+socket" | "socket" | "unix" | "redis+unix" => {
                let (login, path) = place.split_at(place.find('/').unwrap_or(0));
                let db = query.get("virtual_host").or_else(|| query.get("db"));
                // kombu takes `/2` for the database as well.
                let db = db.map_or_else(|| "0".to_owned(), |db| db.trim_start_matches('/').to_owned());
                (format!("redis+unix://{path}?db={db}"), login.strip_suffix('@'))
            }
            "amqp" | "amqps" | "pyamqp" => return Err("only Redis brokers are supported".into()),
            other => {
                return Err(format!(
                    "unknown scheme {other:?}; use redis://, rediss://, redis+socket:// or sentinel://"
                ));
            }
        };
        let mut info = server(&plain, url, shown)?;
        if let Some((user, password)) = login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            let word = |word: &str| Some(unquote(word)).filter(|word| !word.is_empty());
            let login = Login {
                username: word(user),
                password: word(password),
            };
            info = with_login(info, login);
        }
        info = query.log_in(info);
        if any_host {
            info = trust_any_host(info);
        }
        Ok(Self {
            info,
            any_host,
            shown: shown.to_owned(),
            certificates,
            sentinels: None,
            several: None,
            secret: None,
        })
    }

    /// Each stands for the others when one cannot be reached.
    fn read_several(urls: &str, shown: &str) -> Result<Self, String> {
        let all: Result<Vec<Self>, String> = pieces(urls)
            .into_iter()
            .map(str::trim)
            .filter(|url| !url.is_empty())
            .map(|url| Self::read(url, &mask(url)))
            .collect();
        let all = all?;
        if all.iter().any(|endpoint| endpoint.sentinels.is_some()) {
            return Err("each of several URLs must begin with sentinel://".into());
        }
        let mut first = all.first().cloned().ok_or("it names no broker")?;
        shown.clone_into(&mut first.shown);
        first.several = (all.len() > 1).then(|| Several::new(all)).transpose()?;
        Ok(first)
    }

    /// How many servers it names, any of which will do.
    pub(super) fn count(&self) -> usize {
        self.several.as_ref().map_or(1, Several::count)
    }

    /// Of a list: the number of the one that is used now; the same number means the same server.
    pub(super) fn turn(&self) -> usize {
        self.several.as_ref().map_or(0, Several::turn)
    }

    /// Of a list: the one of that number could not be reached.
    pub(super) fn leave(&self, turn: usize) {
        if let Some(several) = &self.several {
            several.leave(turn);
        }
    }

    /// Database and credentials are those of the first URL and concern the master (kombu's `SentinelChannel`).
    fn read_sentinels(urls: &str, shown: &str) -> Result<Self, String> {
        let mut first = None;
        let mut addresses = Vec::new();
        let mut master = None;
        for url in pieces(urls).into_iter().map(str::trim).filter(|url| !url.is_empty()) {
            let rest = url
                .strip_prefix("sentinel://")
                .ok_or("each of several URLs must begin with sentinel://")?;
            let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
            master = master.or_else(|| Query(query).get("master_name"));
            let info = Query(query).log_in(server(&format!("redis://{}", with_port(place)), url, shown)?);
            addresses.push(info.addr().clone());
            first.get_or_insert(info);
        }
        Ok(Self {
            info: first.ok_or("it names no Sentinel")?,
            shown: shown.to_owned(),
            certificates: Certificates::default(),
            any_host: false,
            sentinels: Some(Sentinels::new(addresses, master)),
            several: None,
            secret: None,
        })
    }

    /// For Sentinels: which master is meant, and how to log in to them. Others have no use for it.
    ///
    /// # Errors
    /// It is behind Sentinels and nobody said which master.
    pub fn with_master(mut self, name: Option<&str>, login: Login) -> Result<Self, Error> {
        if let Some(sentinels) = &mut self.sentinels {
            sentinels.set_login(login);
            if let Some(name) = name {
                sentinels.set_master(name);
            }
            if sentinels.master().is_none() {
                return Err(Error::Url(format!(
                    "{:?} does not say which master: set master_name in the transport options",
                    self.shown
                )));
            }
        }
        Ok(self)
    }

    /// It stands in that file, which is read again when the server knows its login no more.
    #[must_use]
    pub fn standing_in(mut self, path: PathBuf) -> Self {
        self.secret = Some(Secret::new(path, self.clone()));
        self
    }

    /// The server knows its login no more.
    pub(super) fn read_again(&self) {
        if let Some(secret) = &self.secret {
            secret.read_again();
        }
    }

    /// Whether both are the same, with the same login.
    pub(super) fn has_login_of(&self, other: &Self) -> bool {
        let login = |endpoint: &Self| {
            let each = |one: &Self| {
                let settings = one.info.redis_settings();
                [settings.username(), settings.password()].map(|word| word.map(str::to_owned))
            };
            let several = endpoint
                .several
                .iter()
                .flat_map(|several| (0..several.count()).map(|at| each(several.get(at))));
            several.chain([each(endpoint)]).collect::<Vec<_>>()
        };
        self.is_place_of(other) && login(self) == login(other)
    }

    /// Whether both lead to the same place, whoever logs in.
    pub(super) fn is_place_of(&self, other: &Self) -> bool {
        let addresses = |endpoint: &Self| {
            endpoint
                .sentinels
                .as_ref()
                .map(|sentinels| sentinels.addresses().to_vec())
        };
        let count = self.count();
        let same = |one: &Self, other: &Self| one.info.addr() == other.info.addr() && one.db() == other.db();
        let all = |at: usize| match (&self.several, &other.several) {
            (Some(one), Some(other)) => same(one.get(at), other.get(at)),
            (None, None) => same(self, other),
            _ => false,
        };
        addresses(self) == addresses(other) && count == other.count() && (0..count).all(all)
    }

    /// With what no URL says of the other.
    pub(super) fn in_place_of(mut self, other: &Self) -> Self {
        self.sentinels.clone_from(&other.sentinels);
        self.shown.clone_from(&other.shown);
        self
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
        let settings = self.info.redis_settings();
        let open = !self.is_tls() && settings.username().is_none() && settings.password().is_none();
        let local = matches!(self.host().as_str(), "localhost" | "127.0.0.1");
        self.port().filter(|_| open && local && self.sentinels.is_none())
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
        self.is_same_server(other) && self.db() == other.db() && self.username() == other.username()
    }

    /// Whether both name the same server.
    pub fn is_same_server(&self, other: &Self) -> bool {
        self.info.addr() == other.info.addr() && self.sentinels == other.sentinels && self.several == other.several
    }

    /// What makes a connection, to another node of its cluster if one is named. Certificates are read, and Sentinels
    /// asked, each time: both change while we run.
    pub(super) async fn client(
        &self,
        turn: usize,
        node: Option<&(String, u16)>,
        options: &LinkOptions,
    ) -> Result<Client, Error> {
        let newest = self.secret.as_ref().map(Secret::last);
        let own = newest.as_ref().unwrap_or(self);
        match &own.several {
            Some(several) => several.get(turn).client_of_one(node, options).await,
            None => own.client_of_one(node, options).await,
        }
    }

    async fn client_of_one(&self, node: Option<&(String, u16)>, options: &LinkOptions) -> Result<Client, Error> {
        let tcp = self
            .info
            .tcp_settings()
            .clone()
            .set_nodelay(true)
            .set_user_timeout(std::time::Duration::from_secs(10));
        let mut info = self.info.clone().set_tcp_settings(tcp);
        if let Some(sentinels) = &self.sentinels {
            info = info.set_addr(sentinels.find(options.connect_timeout).await?);
        }
        if let Some((name, at)) = node {
            let mut addr = info.addr().clone();
            if let ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } = &mut addr {
                // A node that does not know its own name means the one that was asked.
                if !name.is_empty() {
                    host.clone_from(name);
                }
                *port = *at;
            }
            info = info.set_addr(addr);
        }
        let wrong = |error: redis::RedisError| Error::Url(format!("{}: {error}", self.shown));
        let Some(certificates) = self.certificates.load()? else {
            return Client::open(info).map_err(wrong);
        };
        let client = Client::build_with_tls(info, certificates).map_err(wrong)?;
        if !self.any_host {
            return Ok(client);
        }
        // Certificates make new parameters, which check the name again.
        let info = client.get_connection_info().clone();
        Client::open(trust_any_host(info)).map_err(wrong)
    }

    /// Whether TLS is meant, and the server has none.
    pub(super) async fn lacks_tls(&self, options: &LinkOptions) -> bool {
        match self.port() {
            Some(port) if self.is_tls() && self.several.is_none() => {
                speaks_plainly(&self.host(), port, options.connect_timeout).await
            }
            _ => false,
        }
    }

    /// Whether the server may turn out to be a replica.
    pub(super) fn is_behind_sentinels(&self) -> bool {
        self.sentinels.is_some()
    }
}

impl Certificates {
    fn read(query: &Query<'_>) -> Result<Self, String> {
        const KNOWN: [&str; 5] = [
            "ssl_cert_reqs",
            "ssl_ca_certs",
            "ssl_certfile",
            "ssl_keyfile",
            "ssl_check_hostname",
        ];
        let unknown = |name: &&str| name.starts_with("ssl_") && !KNOWN.contains(name);
        if let Some(name) = query.pairs().map(|(name, _)| name).find(unknown) {
            return Err(format!(
                "there is no option {name}; those of TLS are {}",
                KNOWN.join(", ")
            ));
        }
        let path = |name: &str| query.get(name).map(PathBuf::from);
        let own = match (path("ssl_certfile"), path("ssl_keyfile")) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => return Err("ssl_certfile and ssl_keyfile go together".into()),
        };
        Ok(Self {
            authority: path("ssl_ca_certs"),
            own,
        })
    }

    fn load(&self) -> Result<Option<TlsCertificates>, Error> {
        let load = |name: &str, path: &Path| {
            std::fs::read(path).map_err(|error| Error::Url(format!("cannot read {name} {}: {error}", path.display())))
        };
        if self.authority.is_none() && self.own.is_none() {
            return Ok(None);
        }
        let root_cert = match &self.authority {
            None => None,
            Some(path) => Some(load("ssl_ca_certs", path)?),
        };
        let client_tls = match &self.own {
            None => None,
            Some((certificate, key)) => Some(ClientTlsConfig {
                client_cert: load("ssl_certfile", certificate)?,
                client_key: load("ssl_keyfile", key)?,
            }),
        };
        Ok(Some(TlsCertificates { client_tls, root_cert }))
    }
}

/// With what is given of it in the place of what it has.
fn with_login(info: ConnectionInfo, login: Login) -> ConnectionInfo {
    let mut settings = info.redis_settings().clone();
    if let Some(username) = login.username {
        settings = settings.set_username(username);
    }
    if let Some(password) = login.password {
        settings = settings.set_password(password);
    }
    info.set_redis_settings(settings)
}

fn trust_any_host(info: ConnectionInfo) -> ConnectionInfo {
    let mut addr = info.addr().clone();
    addr.set_danger_accept_invalid_hostnames(true);
    info.set_addr(addr)
}

/// A URL that the Redis client understands, made of one that somebody wrote.
fn server(plain: &str, url: &str, shown: &str) -> Result<ConnectionInfo, String> {
    let info = plain.into_connection_info().map_err(|error| {
        let error = error.to_string();
        if let Some(what) = cut_login(url) {
            what.to_owned()
        } else if error.contains("database number") {
            "what stands behind the last / is the number of a database, such as 0".to_owned()
        } else if let Some(port) = wrong_port(plain) {
            format!("{port:?} is no port; one is a number from 1 to 65535")
        } else {
            error.replace(plain, shown)
        }
    })?;
    // RESP3 for pushes: news of messages and of remote control come without being asked for.
    let settings = info
        .redis_settings()
        .clone()
        .set_protocol(ProtocolVersion::RESP3)
        .set_lib_name("orchestra", env!("CARGO_PKG_VERSION"));
    Ok(info.set_redis_settings(settings))
}

/// What is wrong with a URL that is read only to the middle of its login: these characters end it.
fn cut_login(url: &str) -> Option<&'static str> {
    let (_, rest) = url.split_once("://")?;
    let (_, behind) = rest.split_once(['/', '#', '?'])?;
    behind
        .contains('@')
        .then_some("write special characters of a password as %2F (/), %23 (#), %3F (?) and %40 (@)")
}

/// What stands where the port does, and is none.
fn wrong_port(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let address = rest.split('/').next()?.rsplit('@').next()?;
    let (_, port) = address.rsplit(']').next()?.rsplit_once(':')?;
    port.parse::<u16>().is_err().then_some(port)
}

/// A Sentinel's place with its port, if it has none.
fn with_port(place: &str) -> String {
    let (host, db) = place.split_at(place.find('/').unwrap_or(place.len()));
    let after_login = host.rsplit('@').next().unwrap_or(host);
    let after_address = after_login.rsplit(']').next().unwrap_or(after_login);
    if after_address.contains(':') {
        place.to_owned()
    } else {
        format!("{host}:26379{db}")
    }
}

fn is_no(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "false" | "0" | "no" | "off")
}

/// `%2F` and its like, decoded.
fn unquote(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
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

/// The URLs of a list. A `;` after which no other begins is part of one: of a password, for example.
fn pieces(urls: &str) -> Vec<&str> {
    let begins = |rest: &str| {
        let is_scheme = |scheme: &str| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+');
        rest.trim().is_empty()
            || rest
                .split_once("://")
                .is_some_and(|(scheme, _)| is_scheme(scheme.trim()))
    };
    let (mut pieces, mut start) = (Vec::new(), 0);
    for (at, _) in urls.match_indices(';') {
        if begins(&urls[at + 1..]) {
            pieces.push(&urls[start..at]);
            start = at + 1;
        }
    }
    pieces.push(&urls[start..]);
    pieces
}

/// The URL with its password replaced, as Celery shows it, wherever it stands.
fn mask(url: &str) -> String {
    mask_login(&mask_query(url))
}

fn mask_query(url: &str) -> String {
    let Some((place, query)) = url.split_once('?') else {
        return url.to_owned();
    };
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if name.ends_with(PASSWORD) => format!("{name}=**"),
        _ => pair.to_owned(),
    };
    let pairs: Vec<String> = query.split('&').map(pair).collect();
    format!("{place}?{}", pairs.join("&"))
}

fn mask_login(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // Somebody forgot the scheme: what stands before the `@` may be a password.
        return url
            .rsplit_once('@')
            .map_or_else(|| url.to_owned(), |(_, place)| format!("**@{place}"));
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
    fn a_login_in_the_query_is_used_and_its_password_not_shown() {
        for url in [
            "redis://old:old@h:1/2?username=me&password=se%40cret+1",
            "sentinel://h:1/2?master_name=m&username=me&password=se%40cret+1",
            "redis+socket:///run/r.sock?username=me&password=se%40cret+1&virtual_host=2",
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            let settings = endpoint.info.redis_settings();
            assert_eq!(
                (settings.username(), settings.password(), endpoint.db()),
                (Some("me"), Some("se@cret 1"), 2),
                "{url}"
            );
            assert!(!endpoint.to_string().contains("cret"), "{endpoint}");
        }
        let odd = Endpoint::parse("redis://h:1/0?password=se@cret&timeout=3").unwrap();
        assert_eq!(odd.to_string(), "redis://h:1/0?password=**&timeout=3");
    }

    #[test]
    fn files_of_tls_are_named_as_celery_names_them() {
        let both = Endpoint::parse("rediss://h?ssl_ca_certs=%2Fca.pem&ssl_certfile=/c%20c.pem&ssl_keyfile=/k.pem");
        let certificates = both.unwrap().certificates;
        assert_eq!(certificates.authority, Some("/ca.pem".into()));
        assert_eq!(certificates.own, Some(("/c c.pem".into(), "/k.pem".into())));
        for (option, word) in [
            ("ssl_ca_cert=/x", "ssl_ca_certs"),
            ("ssl_certfile=/x", "go together"),
            ("ssl_cert_reqs=maybe", "required, optional or none"),
        ] {
            let error = Endpoint::parse(&format!("rediss://h?{option}"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_socket_has_a_database_and_a_login() {
        let socket = Endpoint::parse("redis+socket://me:se%40cret@/run/r.sock?virtual_host=/3").unwrap();
        assert_eq!((socket.host(), socket.db()), ("/run/r.sock".into(), 3));
        assert_eq!(socket.username(), Some("me"));
        assert_eq!(socket.info.redis_settings().password(), Some("se@cret"));
        assert_eq!(socket.to_string(), "redis+socket://me:**@/run/r.sock?virtual_host=/3");
    }

    #[test]
    fn sentinels_are_several_urls_with_one_database() {
        let urls = "sentinel://u:secret@a:1/2;sentinel://b;sentinel://[::1]/7";
        let endpoint = Endpoint::parse(urls).unwrap();
        assert_eq!(
            endpoint.to_string(),
            "sentinel://u:**@a:1/2;sentinel://b;sentinel://[::1]/7"
        );
        assert_eq!((endpoint.db(), endpoint.username()), (2, Some("u")));
        let nameless = endpoint
            .clone()
            .with_master(None, Login::default())
            .unwrap_err()
            .to_string();
        assert!(
            nameless.contains("master_name") && !nameless.contains("secret"),
            "{nameless}"
        );
        let named = endpoint
            .clone()
            .with_master(Some("mymaster"), Login::default())
            .unwrap();
        assert!(!named.is_same_server_and_db(&endpoint));
        let in_url = Endpoint::parse("sentinel://a?master_name=m").unwrap();
        assert!(in_url.with_master(None, Login::default()).is_ok());
        assert_eq!(
            with_port("u:p@h/1") + &with_port("[::1]") + &with_port("[::1]:5/1"),
            "u:p@h:26379/1[::1]:26379[::1]:5/1"
        );
        assert!(Endpoint::parse("sentinel://a;redis://b").is_err());
        assert!(Endpoint::parse("redis://b;sentinel://a").is_err());
    }

    #[test]
    fn p_048_a_list_of_brokers_is_one_after_the_other() {
        let list = Endpoint::parse("redis://u:secret@a:1/2; rediss://b/2").unwrap();
        assert_eq!(list.to_string(), "redis://u:**@a:1/2; rediss://b/2");
        let other = list.clone();
        list.leave(0);
        list.leave(0);
        assert_eq!(
            (other.turn(), list.turn()),
            (1, 1),
            "clones agree, and a turn is left once"
        );
        let odd = Endpoint::parse("redis://u:a;b@h:1/2;redis://c/2").unwrap();
        assert_eq!(
            (odd.count(), odd.host().as_str(), odd.to_string().as_str()),
            (2, "h", "redis://u:**@h:1/2;redis://c/2")
        );
        let error = Endpoint::parse("redis://a/1;redis://b/2").unwrap_err().to_string();
        assert!(error.contains("same database number"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_login_or_a_port_is_said() {
        for (url, word) in [
            (
                "redis://user:p@secret/w0rd@h:1/0",
                "write special characters of a password as %2F",
            ),
            ("redis://user:p#secret@h/0", "%23"),
            ("redis://user:p?secret@h/0", "%3F"),
            ("redis://h:99999/0", "\"99999\" is no port"),
            ("rediss://[::1]:x/0", "\"x\" is no port"),
            ("sentinel://me:secret@h:99999/0", "\"99999\" is no port"),
        ] {
            let error = Endpoint::parse(url).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_wrong_url_is_explained_without_its_password() {
        for url in [
            "localhost",
            "amqp://u:secret@h",
            "u:secret@h:6379/0",
            "amqp://u:a;secret@h",
            "redis://u:a;secret@h:port/0;redis://b",
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
