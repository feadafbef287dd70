//! Router advertisements (RFC 4861, RFC 4862, RFC 8106): what is said, and when.
//!
//! Two kinds say the same of prefixes. Each node's service side tells its own guests how they come to addresses, and that
//! it is no router (lifetime 0), so that a network without a router has addresses, too. A router tells, from its own
//! namespace and thus from its own link-local address, that it is one.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use ipnet::{IpNet, Ipv6Net};
use nephos_driver::network::{Ipv6Mode, NetworkSpec, SubnetSpec};
use nephos_types::SubnetId;
use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::serve::breathe;

/// How long a prefix may be used from the last advertisement on, and preferred, in seconds.
const VALID: u32 = 86400;
const PREFERRED: u32 = 14400;
/// How long a router is one from the last advertisement on, in seconds.
const ROUTER_LIFETIME: u16 = 1800;
/// Between two that nobody asked for: at least and at most, and at most for the first ones.
const AT_LEAST: Duration = Duration::from_secs(200);
const AT_MOST: Duration = Duration::from_secs(600);
const AT_FIRST: Duration = Duration::from_secs(16);
const FIRST_ONES: u32 = 3;
/// Between two to everybody (`MIN_DELAY_BETWEEN_RAS`).
const APART: Duration = Duration::from_secs(3);

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What is advertised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertisement {
    /// Whether the sender is a router.
    pub router: bool,
    /// Addresses come by DHCPv6.
    pub managed: bool,
    /// The rest comes by DHCPv6.
    pub other: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Prefixes, and whether guests make addresses of them by themselves.
    pub prefixes: Vec<(Ipv6Net, bool)>,
    /// DNS servers.
    pub dns_servers: Vec<Ipv6Addr>,
    /// What names are completed with.
    pub domain: String,
}

impl Advertisement {
    /// What is said of those of a network's ranges that `includes` says; `None`: nothing.
    pub(crate) fn of(network: &NetworkSpec, router: bool, includes: impl Fn(&SubnetSpec) -> bool) -> Option<Self> {
        let mut said = Self { router, mtu: network.mtu, domain: network.dns_domain.clone(), ..Self::default() };
        for subnet in network.subnets.iter().filter(|subnet| subnet.dhcp && includes(subnet)) {
            let (IpNet::V6(prefix), Some(mode)) = (subnet.cidr.net(), subnet.ipv6_mode) else { continue };
            said.managed |= mode == Ipv6Mode::DhcpStateful;
            said.other |= mode != Ipv6Mode::Slaac;
            // Interface identifiers have 64 bits: from any other prefix nobody makes an address.
            said.prefixes.push((prefix, mode != Ipv6Mode::DhcpStateful && prefix.prefix_len() == 64));
            said.dns_servers.extend(dns_servers(subnet));
        }
        (!said.prefixes.is_empty()).then_some(said)
    }

    /// What a network's service side says.
    pub(crate) fn of_service(network: &NetworkSpec) -> Option<Self> {
        Self::of(network, false, |subnet| subnet.service.is_some())
    }

    /// What a router says of the ranges that it is the router of.
    pub(crate) fn of_router(network: &NetworkSpec, subnets: &[SubnetId]) -> Option<Self> {
        Self::of(network, true, |subnet| subnets.contains(&subnet.id))
    }

    /// The message, whose checksum the kernel writes.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let flags = (u8::from(self.managed) << 7) | (u8::from(self.other) << 6);
        let lifetime = if self.router { ROUTER_LIFETIME } else { 0 };
        let mut bytes = vec![ADVERTISEMENT, 0, 0, 0, 64, flags];
        bytes.extend(lifetime.to_be_bytes());
        // Reachable time and retransmission timer: unspecified.
        bytes.extend([0; 8]);
        bytes.extend([5, 1, 0, 0]);
        bytes.extend(self.mtu.to_be_bytes());
        for (prefix, autonomous) in &self.prefixes {
            bytes.extend([3, 4, prefix.prefix_len(), 0x80 | (u8::from(*autonomous) << 6)]);
            bytes.extend(VALID.to_be_bytes());
            bytes.extend(PREFERRED.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(prefix.network().octets());
        }
        let servers = self.dns_servers.get(..8).unwrap_or(&self.dns_servers);
        if !servers.is_empty() {
            bytes.extend([25, u8::try_from(servers.len() * 2 + 1).unwrap_or(17), 0, 0]);
            bytes.extend(lasting().to_be_bytes());
            bytes.extend(servers.iter().flat_map(Ipv6Addr::octets));
        }
        bytes.extend(search_list(&self.domain));
        bytes
    }
}

/// DNS servers of IPv6 that a subnet's guests are told.
pub(crate) fn dns_servers(subnet: &SubnetSpec) -> Vec<Ipv6Addr> {
    let v6 = |address: &IpAddr| match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    };
    if subnet.dns_servers.is_empty() {
        subnet.service.iter().filter_map(v6).collect()
    } else {
        subnet.dns_servers.iter().filter_map(v6).collect()
    }
}

/// Three times the longest silence, as RFC 8106 has it.
fn lasting() -> u32 {
    u32::try_from(AT_MOST.as_secs() * 3).unwrap_or(u32::MAX)
}

/// The option with the domain; nothing for none, or for one that DNS could not carry.
fn search_list(domain: &str) -> Vec<u8> {
    let mut name = vec![];
    for label in domain.split('.').filter(|label| !label.is_empty()) {
        let Some(length) = u8::try_from(label.len()).ok().filter(|length| *length < 64) else { return vec![] };
        name.push(length);
        name.extend(label.as_bytes());
    }
    if name.is_empty() || name.len() > 254 {
        return vec![];
    }
    name.push(0);
    name.resize(name.len().next_multiple_of(8), 0);
    let mut option = vec![31, u8::try_from(name.len() / 8 + 1).unwrap_or(u8::MAX), 0, 0];
    option.extend(lasting().to_be_bytes());
    option.extend(name);
    option
}

/// Whether these bytes, received in an ICMPv6 message, ask for an advertisement.
#[must_use]
pub fn is_solicitation(bytes: &[u8]) -> bool {
    if bytes.len() < 8 || bytes.first() != Some(&SOLICITATION) || bytes.get(1) != Some(&0) {
        return false;
    }
    // Options without length would be read for ever; a message with one is to be passed over (RFC 4861, section 6.1.1).
    let mut options = bytes.get(8..).unwrap_or_default();
    while let [_, length, ..] = options {
        match options.get(usize::from(*length) * 8..) {
            Some(rest) if *length > 0 => options = rest,
            _ => return false,
        }
    }
    options.is_empty()
}

/// Advertises, until it is dropped, what is current. The socket is one for ICMPv6; to Tokio it is like any that datagrams
/// come by.
pub(crate) async fn advertise(socket: UdpSocket, interface: u32, mut current: watch::Receiver<Option<Advertisement>>) {
    let mut sent = 0_u32;
    let mut last: Option<Instant> = None;
    let mut next = Instant::now();
    let mut buffer = [0; 1500];
    loop {
        tokio::select! {
            () = sleep_until(next) => {
                let said = current.borrow_and_update().clone();
                if let Some(said) = said {
                    send(&socket, &said, ALL_NODES, interface).await;
                }
                sent = sent.saturating_add(1);
                last = Some(Instant::now());
                next = Instant::now() + pause(sent);
            }
            changed = current.changed() => {
                if changed.is_err() {
                    return;
                }
                // What changed is said at once, and again, as at first.
                sent = 0;
                next = soonest(last);
            }
            asked = receive(&socket, &mut buffer) => match asked {
                Ok(Some(from)) if from.is_unspecified() => next = next.min(soonest(last)),
                Ok(Some(from)) => {
                    let said = current.borrow().clone();
                    if let Some(said) = said {
                        send(&socket, &said, from, interface).await;
                    }
                }
                Ok(None) => {}
                Err(error) => breathe("router advertisements", &error).await,
            },
        }
    }
}

/// When the next one to everybody may be sent.
fn soonest(last: Option<Instant>) -> Instant {
    last.map_or_else(Instant::now, |last| (last + APART).max(Instant::now()))
}

fn pause(sent: u32) -> Duration {
    let random = rand::random_range(AT_LEAST..=AT_MOST);
    if sent < FIRST_ONES { random.min(AT_FIRST) } else { random }
}

/// The address of somebody who asks, `::` for one who has none yet; `None` if the message is something else.
async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Ipv6Addr>> {
    let (length, from) = socket.recv_from(buffer).await?;
    let IpAddr::V6(from) = from.ip() else { return Ok(None) };
    let asked = buffer.get(..length).is_some_and(is_solicitation);
    Ok(Some(from).filter(|from| asked && (from.is_unspecified() || from.is_unicast_link_local())))
}

async fn send(socket: &UdpSocket, said: &Advertisement, to: Ipv6Addr, interface: u32) {
    if let Err(error) = socket.send_to(&said.message(), SocketAddrV6::new(to, 0, 0, interface)).await {
        // Without a link-local address yet; the next one will do.
        tracing::debug!(%error, "a router advertisement could not be sent");
    }
}
