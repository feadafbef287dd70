//! By which addresses the cloud is reached that listens on one.
//!
//! Loopback speaks plain HTTP. Any other address speaks TLS, with a certificate for whatever people can dial. Who listens
//! on all addresses (`0.0.0.0`, `[::]`) is reached on this machine by its loopback, and from elsewhere by its others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How the APIs are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// The URL for whoever is on this machine.
    pub(crate) url: String,
    /// What a certificate has to be for; nothing where there is no TLS.
    pub(crate) names: Vec<String>,
}

/// How the APIs are reached that are served on this address.
pub(crate) fn api(address: SocketAddr) -> Reached {
    of(address, hostname(), &addresses())
}

/// Where agents dial that are to reach this address.
pub(crate) fn node(address: SocketAddr) -> SocketAddr {
    let ip = if address.ip().is_unspecified() { outside(address.ip(), &addresses()) } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

fn of(address: SocketAddr, hostname: Option<String>, machine: &[IpAddr]) -> Reached {
    let ip = address.ip();
    if ip.is_loopback() {
        return Reached { url: format!("http://{address}"), names: vec![] };
    }
    let everywhere = ip.is_unspecified();
    let dialled = if everywhere { loopback(ip) } else { ip };
    let mut names = vec![dialled.to_string()];
    if everywhere {
        names.extend(["127.0.0.1".to_owned(), "::1".to_owned(), "localhost".to_owned()]);
        names.extend(machine.iter().map(ToString::to_string));
    }
    names.extend(hostname);
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Reached { url: format!("https://{}", SocketAddr::new(dialled, address.port())), names }
}

const fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// An address that others can dial, as far as one is known; IPv4 first, as it is the one that is routed everywhere.
fn outside(like: IpAddr, machine: &[IpAddr]) -> IpAddr {
    let others = || machine.iter().copied().filter(|ip| !ip.is_loopback());
    let usable = |ip: &IpAddr| like.is_ipv6() || ip.is_ipv4();
    others().find(IpAddr::is_ipv4).or_else(|| others().find(usable)).unwrap_or_else(|| loopback(like))
}

fn hostname() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    // What is no DNS name cannot be dialled, and would be refused in a certificate.
    let usable = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (!name.is_empty() && name.len() <= 253 && name.chars().all(usable)).then_some(name)
}

/// The machine's addresses, but for those that mean something only together with an interface.
fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return vec![] };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(address: &str) -> Reached {
        let machine: Vec<IpAddr> = ["127.0.0.1", "192.0.2.7"].map(|ip| ip.parse().unwrap()).into();
        of(address.parse().unwrap(), Some("cloud.example".to_owned()), &machine)
    }

    #[test]
    fn what_is_written_down_can_be_dialled() {
        assert_eq!(reached("127.0.0.1:6780"), Reached { url: "http://127.0.0.1:6780".to_owned(), names: vec![] });
        assert_eq!(reached("[::1]:6780").url, "http://[::1]:6780");
        let one = reached("192.0.2.7:6780");
        assert_eq!(
            (one.url.as_str(), one.names),
            ("https://192.0.2.7:6780", vec!["192.0.2.7".to_owned(), "cloud.example".to_owned()])
        );
        let all = reached("0.0.0.0:6780");
        assert_eq!(all.url, "https://127.0.0.1:6780");
        assert_eq!(all.names, ["127.0.0.1", "::1", "localhost", "192.0.2.7", "cloud.example"]);
        assert_eq!(reached("[::]:6780").url, "https://[::1]:6780");
    }

    #[test]
    fn agents_dial_an_address_of_the_machine() {
        let machine: Vec<IpAddr> =
            ["::1", "127.0.0.1", "2001:db8::7", "192.0.2.7"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(outside(IpAddr::V4(Ipv4Addr::UNSPECIFIED), &machine).to_string(), "192.0.2.7");
        assert_eq!(outside(IpAddr::V6(Ipv6Addr::UNSPECIFIED), &machine[..3]).to_string(), "2001:db8::7");
        assert_eq!(outside(IpAddr::V4(Ipv4Addr::UNSPECIFIED), &machine[..3]).to_string(), "127.0.0.1");
        assert_eq!(node("192.0.2.9:1".parse().unwrap()).to_string(), "192.0.2.9:1");
    }
}
