//! Which addresses an import may reach: those of the public Internet, and what the operator allows.
//!
//! Without this, whoever may import an image could read what the control plane can reach and they cannot.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nephos_types::{Error, Result};

/// What the operator allows besides: host names, addresses, networks (`10.1.0.0/16`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Host(String),
    Network(IpAddr, u8),
}

impl Allowed {
    /// From a configured list.
    pub fn parse(entries: &[String]) -> Result<Self> {
        entries.iter().map(|entry| Rule::parse(entry)).collect::<Result<_>>().map(Self)
    }

    fn covers(&self, host: &str, address: IpAddr) -> bool {
        self.0.iter().any(|rule| match rule {
            Rule::Host(name) => name.eq_ignore_ascii_case(host),
            Rule::Network(network, length) => within(address, *network, *length),
        })
    }

    /// Whether a host's address may be reached.
    pub(super) fn permits(&self, host: &str, address: IpAddr) -> bool {
        is_public(address) || self.covers(host, address)
    }
}

impl Rule {
    fn parse(entry: &str) -> Result<Self> {
        let refused = || {
            Error::invalid("config", format!("`{entry}` is no host, address or network that imports may reach"))
                .detail("for example: mirror.example.com, 10.1.2.3, 10.1.0.0/16")
        };
        if let Ok(address) = entry.parse::<IpAddr>() {
            return Ok(Self::Network(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        if let Some((network, length)) = entry.split_once('/') {
            let network: IpAddr = network.parse().map_err(|_| refused())?;
            let most = if network.is_ipv4() { 32 } else { 128 };
            let length = length.parse().ok().filter(|length| *length <= most).ok_or_else(refused)?;
            return Ok(Self::Network(network, length));
        }
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if entry.is_empty() || !entry.chars().all(sound) {
            return Err(refused());
        }
        Ok(Self::Host(entry.to_owned()))
    }
}

fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

fn within(address: IpAddr, network: IpAddr, length: u8) -> bool {
    let ((address, size), (network, other)) = (bits(address), bits(network));
    let shift = u32::from(size.saturating_sub(length));
    size == other && (length == 0 || address >> shift == network >> shift)
}

/// Networks that are not of the public Internet (IANA's special-purpose address registries).
const NOT_PUBLIC_V4: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];
/// Of IPv6 only the global unicast space is public; of that, these are not.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const NOT_PUBLIC_V6: &[(Ipv6Addr, u8)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    // 6to4: an IPv4 address inside, of whatever kind.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            !NOT_PUBLIC_V4.iter().any(|(network, length)| within(address.into(), (*network).into(), *length))
        }
        IpAddr::V6(address) => {
            within(address.into(), GLOBAL_V6.0.into(), GLOBAL_V6.1)
                && !NOT_PUBLIC_V6.iter().any(|(network, length)| within(address.into(), (*network).into(), *length))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_reached_by_default() {
        for inside in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
            "100::1",
        ] {
            assert!(!Allowed::default().permits("host", inside.parse().unwrap()), "{inside}");
        }
        for outside in ["1.1.1.1", "151.101.2.132", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a04:4e42::644"] {
            assert!(Allowed::default().permits("host", outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn what_is_allowed_is_allowed_and_no_more() {
        let entries = ["mirror.example", "10.1.0.0/16", "127.0.0.1", "fd00::/8"].map(str::to_owned);
        let allowed = Allowed::parse(&entries).unwrap();
        for (host, address, permitted) in [
            ("x", "10.1.2.3", true),
            ("x", "10.2.2.3", false),
            ("x", "127.0.0.1", true),
            ("x", "127.0.0.2", false),
            ("MIRROR.example", "192.168.0.1", true),
            ("other.example", "192.168.0.1", false),
            ("x", "fd00::1", true),
            ("x", "fe80::1", false),
        ] {
            assert_eq!(allowed.permits(host, address.parse().unwrap()), permitted, "{host} {address}");
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/x", "http://x", "a b", "fd00::/129"] {
            assert!(Allowed::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        let all = Allowed::parse(&["0.0.0.0/0".to_owned()]).unwrap();
        assert!(all.permits("x", "127.0.0.1".parse().unwrap()) && !all.permits("x", "::1".parse().unwrap()));
    }
}
