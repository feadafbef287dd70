//! Whom the machine itself asks for names.

use std::net::{IpAddr, SocketAddr};

/// The DNS servers of the machine's `/etc/resolv.conf`; none if it has none.
#[must_use]
pub fn system_forwarders() -> Vec<SocketAddr> {
    // Some systems write a file of megabytes there; what counts is at its beginning.
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    parse(text.get(..text.len().min(65536)).unwrap_or_default())
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A link-local server needs the link, which only the resolver's own socket could name.
        address.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53))
    };
    text.lines().filter_map(server).take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_a_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 10.0.0.2 \nnameserver fd00::1\nnameserver fe80::1%eth0\n";
        assert_eq!(parse(text), ["10.0.0.2:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
        assert_eq!(parse(""), []);
    }
}
