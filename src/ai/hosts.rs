//! Which servers `ai_http_hosts` allows: by name, by address, by network, and at which port.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::permits::Permits;

impl Permits {
    /// Whether a server may be asked by that name and port.
    ///
    /// # Errors
    /// A text for people.
    pub(super) fn host(&self, host: &str, port: u16) -> Result<(), String> {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        let is_allowed = |entry: &String| match entry.parse::<Network>() {
            Ok(network) => address.is_some_and(|address| network.has(address)),
            Err(()) => {
                let (name, wanted) = parted(entry);
                let named = match name.strip_prefix("*.") {
                    Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
                    None => host == name || (address.is_some() && address == name.parse().ok()),
                };
                named && wanted.is_none_or(|wanted| wanted == port)
            }
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
        let named = self.hosts.iter().any(|entry| match entry.parse::<Network>() {
            Ok(network) => network.has(address),
            Err(()) => {
                let (name, wanted) = parted(entry);
                name.parse() == Ok(address) && wanted.is_none_or(|wanted| Some(wanted) == port)
            }
        });
        named || is_public(address)
    }

    /// The ports at which other addresses may be connected to than at all others.
    pub(super) fn ports(&self) -> BTreeSet<u16> {
        let entries = self.hosts.iter().map(|entry| parted(entry));
        let addresses = entries.filter(|(name, _)| name.parse::<IpAddr>().is_ok());
        addresses.filter_map(|(_, port)| port).collect()
    }
}

/// The name or address of an entry, in lower case and without brackets, and its port if it has one.
fn parted(entry: &str) -> (String, Option<u16>) {
    // Without brackets all colons of an address are its own.
    let ported = match entry.parse::<IpAddr>() {
        Ok(_) => None,
        Err(_) => entry.rsplit_once(':'),
    };
    let ported = ported.and_then(|(name, port)| Some((name, port.parse().ok()?)));
    let (name, port) = ported.map_or((entry, None), |(name, port)| (name, Some(port)));
    (name.trim_matches(['[', ']']).to_ascii_lowercase(), port)
}

/// A network such as `10.0.0.0/8`.
struct Network {
    address: IpAddr,
    bits: u32,
}

impl std::str::FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, bits) = text.split_once('/').ok_or(())?;
        let address: IpAddr = address.parse().map_err(drop)?;
        let bits: u32 = bits.parse().map_err(drop)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Self { address, bits }).ok_or(())
    }
}

impl Network {
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
            .map(str::to_owned)
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
}
