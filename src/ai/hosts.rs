//! Which servers `ai_http_hosts` allows: by name, by address, by network, and at which port.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::permits::Permits;

/// A server, or several, that may be asked.
#[derive(Clone, Debug)]
pub enum HttpHost {
    /// Those of a network.
    Network(Network),
    /// One address, with a port at that port only.
    Address(IpAddr, Option<u16>),
    /// A name, with a port at that port only.
    Name(String, Option<u16>),
    /// All names that end so (`.example.com`).
    Below(String, Option<u16>),
}

impl FromStr for HttpHost {
    type Err = String;

    /// # Errors
    /// It could never be a server that is asked; why.
    fn from_str(entry: &str) -> Result<Self, String> {
        if entry.contains("://") {
            return Err("is a URL; write the server alone, as api.example.com or api.example.com:8080".into());
        }
        if let Some((address, bits)) = entry.split_once('/') {
            return match address.parse::<IpAddr>() {
                Ok(address) => Network::of(address, bits).map(Self::Network),
                Err(_) => Err("has a path; write the server alone".into()),
            };
        }
        // Without brackets all colons of an address are its own.
        if let Ok(address) = entry.parse() {
            return Ok(Self::Address(address, None));
        }
        let bare = |name: &str| name.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) if bare(entry).is_none() => {
                let port = port.parse().map_err(|_| format!("has no port in {port:?}"))?;
                (name, Some(port))
            }
            _ => (entry, None),
        };
        if let Some(address) = bare(name) {
            return Ok(Self::Address(address.into(), port));
        }
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into(), port));
        }
        let name = name.to_ascii_lowercase();
        let is_name = |name: &str| {
            let fits = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
            !name.is_empty() && name.chars().all(fits)
        };
        match name.strip_prefix('*') {
            Some(rest) if rest.len() > 1 && rest.starts_with('.') && is_name(rest) => {
                Ok(Self::Below(rest.into(), port))
            }
            None if is_name(&name) => Ok(Self::Name(name, port)),
            _ => Err("is no name of a server, such as api.example.com or *.example.com".into()),
        }
    }
}

impl HttpHost {
    fn port(&self) -> Option<u16> {
        match self {
            Self::Network(_) => None,
            Self::Address(_, port) | Self::Name(_, port) | Self::Below(_, port) => *port,
        }
    }

    /// Whether it has an address, at any port.
    fn has(&self, other: IpAddr) -> bool {
        match self {
            Self::Network(network) => network.has(other),
            Self::Address(address, _) => *address == other,
            Self::Name(..) | Self::Below(..) => false,
        }
    }

    /// Whether it has a name, at any port.
    fn is_called(&self, other: &str) -> bool {
        match self {
            Self::Network(_) | Self::Address(..) => false,
            Self::Name(name, _) => name == other,
            Self::Below(end, _) => other.ends_with(end.as_str()),
        }
    }
}

impl Permits {
    /// Whether a server may be asked by that name and port.
    ///
    /// # Errors
    /// A text for people.
    pub(super) fn host(&self, host: &str, port: u16) -> Result<(), String> {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        let is_allowed = |entry: &HttpHost| {
            let named = entry.is_called(&host) || address.is_some_and(|address| entry.has(address));
            named && entry.port().is_none_or(|wanted| wanted == port)
        };
        if self.hosts.iter().any(is_allowed) {
            return Ok(());
        }
        Err(format!(
            "the server {host}:{port} is not allowed; the operator names servers in ai_http_hosts"
        ))
    }

    /// Whether an address may be connected to: a public one, or one that the operator named as address or network. A
    /// name that is allowed must not lead into the network behind the worker, nor to another service of a machine that
    /// was named with its port. `None` is a port that is not among [`ports`](Self::ports).
    pub(super) fn address(&self, address: IpAddr, port: Option<u16>) -> bool {
        let is_named = |entry: &HttpHost| entry.has(address) && entry.port().is_none_or(|wanted| Some(wanted) == port);
        self.hosts.iter().any(is_named) || is_public(address)
    }

    /// The ports at which other addresses may be connected to than at all others.
    pub(super) fn ports(&self) -> BTreeSet<u16> {
        let addresses = self.hosts.iter().filter(|entry| matches!(entry, HttpHost::Address(..)));
        addresses.filter_map(HttpHost::port).collect()
    }
}

/// A network such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn of(address: IpAddr, bits: &str) -> Result<Self, String> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        match bits.parse() {
            Ok(bits) if bits <= most => Ok(Self { address, bits }),
            _ => Err(format!(
                "is no network: {bits:?} is not a number of bits from 0 to {most}"
            )),
        }
    }

    fn has(&self, other: IpAddr) -> bool {
        let shift = |most: u32| most - self.bits;
        match (self.address, plain(other)) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                let differ = u64::from(mine.to_bits() ^ other.to_bits());
                differ >> shift(32) == 0
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                let differ = mine.to_bits() ^ other.to_bits();
                differ.checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// `::ffff:10.0.0.1` is 10.0.0.1.
fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

fn is_public(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(four) => {
            let [a, b, ..] = four.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let special = a == 0 || a >= 240 || (a == 192 && b == 0) || (a == 198 && (18..20).contains(&b));
            !(four.is_private()
                || four.is_loopback()
                || four.is_link_local()
                || four.is_multicast()
                || four.is_documentation()
                || shared
                || special)
        }
        IpAddr::V6(six) => {
            let first = six.segments()[0];
            // Addresses of today's internet are 2000::/3; what carries another address inside is not followed.
            (0x2000..0x4000).contains(&first) && first != 0x2002 && !(first == 0x2001 && six.segments()[1] == 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_allowed_by_name_and_names_do_not_lead_inside() {
        let permits = Permits {
            hosts: [
                "api.example.com",
                "*.example.org",
                "127.0.0.1:80",
                "[::2]:80",
                "::3",
                "10.1.0.0/16",
            ]
            .map(|entry| entry.parse().unwrap())
            .into(),
            ..Permits::default()
        };
        for (host, port) in [
            ("API.example.com", 443),
            ("a.b.example.org", 1),
            ("127.0.0.1", 80),
            ("[::2]", 80),
            ("[::3]", 1),
            ("10.1.2.3", 1),
        ] {
            assert_eq!(permits.host(host, port), Ok(()), "{host}");
        }
        for (host, port) in [
            ("example.org", 1),
            ("evilexample.org", 1),
            ("127.0.0.1", 81),
            ("[::2]", 81),
            ("10.2.0.1", 1),
            ("x", 1),
        ] {
            assert!(permits.host(host, port).is_err(), "{host}");
        }
        let allows = |address: &str, port| permits.address(address.parse().unwrap(), port);
        for inside in [
            "127.0.0.2",
            "10.2.0.1",
            "169.254.169.254",
            "::1",
            "::ffff:192.168.0.1",
            "fd00::1",
            "100.64.0.1",
            "0.0.0.0",
        ] {
            assert!(!allows(inside, None) && !allows(inside, Some(80)), "{inside}");
        }
        for outside in ["93.184.216.34", "2606:2800:220:1::1", "10.1.9.9", "::3"] {
            assert!(allows(outside, None), "{outside}");
        }
        // With a port, an address is opened at that port and at no other.
        for address in ["127.0.0.1", "::2"] {
            assert!(
                allows(address, Some(80)) && !allows(address, Some(6379)) && !allows(address, None),
                "{address}"
            );
        }
        assert_eq!(permits.ports(), BTreeSet::from([80]));
    }

    #[test]
    fn entries_that_no_server_could_ever_fit_are_refused() {
        for (entry, why) in [
            ("http://api.example.com", "is a URL"),
            ("http://api.example.com/x", "is a URL"),
            ("api.example.com/x", "has a path"),
            ("10.0.0.0/33", "is no network"),
            ("10.0.0.0/", "is no network"),
            ("::/129", "is no network"),
            ("api.example.com:http", "has no port"),
            ("api.example.com:65536", "has no port"),
            ("[::1]:", "has no port"),
            ("[::1", "is no name"),
            ("*", "is no name"),
            ("*.", "is no name"),
            ("*example.com", "is no name"),
            ("api.*.com", "is no name"),
            ("a b", "is no name"),
            ("", "is no name"),
        ] {
            let error = entry.parse::<HttpHost>().unwrap_err();
            assert!(error.starts_with(why), "{entry:?}: {error}");
        }
        for entry in [
            "[::1]",
            "0.0.0.0/0",
            "::/0",
            "*.example.com:80",
            "my_host:80",
            "LOCALHOST",
        ] {
            assert!(entry.parse::<HttpHost>().is_ok(), "{entry:?}");
        }
    }
}
