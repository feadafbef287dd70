//! What a message is answered: a pure function of the plan.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use dhcproto::{
    Decodable, Decoder, Encodable, Encoder,
    v4::{DhcpOption, HType, Message, MessageType, Opcode, OptionCode},
};
use ipnet::{IpNet, Ipv4Net};
use nephos_driver::network::{METADATA_V4, SubnetSpec};
use nephos_types::MacAddress;

use crate::view::NetworkView;

/// A message longer than this is no client's.
pub(super) const LONGEST: usize = 1500;
/// Where the options begin, and the cookie before them.
const HEAD: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Old clients drop what is shorter (RFC 951).
const SHORTEST_ANSWER: usize = 300;
/// Most routes that fit into an option of 255 bytes, whatever their prefixes.
const MOST_ROUTES: usize = 28;

/// An answer, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The message.
    pub message: Vec<u8>,
    /// The address that it comes from.
    pub from: Ipv4Addr,
    /// Where it goes.
    pub to: Destination,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To everybody on the network: the client cannot take anything else yet, or asked for it.
    Broadcast,
    /// To a client that does not have the address yet, so that it cannot be asked for its MAC address.
    Hardware(MacAddress, Ipv4Addr),
    /// To a client that has the address.
    Address(Ipv4Addr),
}

/// What a client is told.
struct Lease<'a> {
    address: Ipv4Addr,
    subnet: &'a SubnetSpec,
    service: Ipv4Addr,
}

/// Answers a message of a client; `None`: it is not answered.
#[must_use]
pub fn answer(view: &NetworkView, lease_time: Duration, bytes: &[u8]) -> Option<Reply> {
    // The length of the hardware address is checked before the library sees it: it would trust it.
    if bytes.len() > LONGEST || bytes.get(2) != Some(&6) || bytes.get(HEAD..HEAD + 4) != Some(&COOKIE) {
        return None;
    }
    let request = Message::decode(&mut Decoder::new(&sift(bytes)?)).ok()?;
    // Relays (RFC 3046) are not between a guest and its node.
    if request.opcode() != Opcode::BootRequest || request.htype() != HType::Eth || !request.giaddr().is_unspecified() {
        return None;
    }
    let port = view.port_with_mac(MacAddress::new(request.chaddr().try_into().ok()?)?)?;
    let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
        _ => None,
    };
    let has = Some(request.ciaddr()).filter(|address| !address.is_unspecified());
    let leases: Vec<Lease<'_>> =
        view.told_v4(port).map(|(address, subnet, service)| Lease { address, subnet, service }).collect();
    let named = |address: Option<Ipv4Addr>| leases.iter().find(|lease| Some(lease.address) == address);
    let first = leases.first()?;
    let chosen_server = match request.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
        _ => None,
    };
    let writer = Writer { view, host_name: &port.host_name, request: &request, lease_time };
    match request.opts().msg_type()? {
        MessageType::Discover => {
            let lease = named(wanted).unwrap_or(first);
            let rapid = request.opts().get(OptionCode::RapidCommit).is_some();
            writer.lease(lease, if rapid { MessageType::Ack } else { MessageType::Offer }, rapid)
        }
        MessageType::Request => {
            if chosen_server.is_some_and(|server| leases.iter().all(|lease| lease.service != server)) {
                return None;
            }
            match named(if has.is_some() { has } else { wanted }) {
                Some(lease) => writer.lease(lease, MessageType::Ack, false),
                None => writer.refusal(first),
            }
        }
        MessageType::Inform => {
            let address = has?;
            let lease = named(Some(address))
                .or_else(|| leases.iter().find(|lease| lease.subnet.cidr.contains(address.into())))?;
            writer.information(lease, address)
        }
        MessageType::Decline => {
            tracing::warn!(network = %view.id(), port = %port.id, "a guest says that its address is in use by somebody else");
            None
        }
        // Releasing: the address stays the port's.
        _ => None,
    }
}

/// Only the options that are looked at, of the length that they have to have: the library trusts the lengths of some others.
fn sift(bytes: &[u8]) -> Option<Vec<u8>> {
    let (head, mut options) = bytes.split_at_checked(HEAD + COOKIE.len())?;
    let mut sifted = head.to_vec();
    loop {
        options = match options {
            [0, rest @ ..] => rest,
            [255, ..] | [] | [_] => break,
            [code, length, rest @ ..] => {
                let Some((content, further)) = rest.split_at_checked(usize::from(*length)) else { break };
                // Wanted address and server, kind of message, the client's name for itself, rapid commit.
                if matches!((code, length), (50 | 54, 4) | (53, 1) | (61, 1..) | (80, 0)) {
                    sifted.extend([*code, *length]);
                    sifted.extend(content);
                }
                further
            }
        };
    }
    sifted.push(255);
    Some(sifted)
}

struct Writer<'a> {
    view: &'a NetworkView,
    host_name: &'a str,
    request: &'a Message,
    lease_time: Duration,
}

impl Writer<'_> {
    fn lease(&self, lease: &Lease<'_>, kind: MessageType, rapid: bool) -> Option<Reply> {
        let mut answer = self.begin(kind, lease.service);
        answer.set_yiaddr(lease.address).set_siaddr(lease.service);
        let seconds = u32::try_from(self.lease_time.as_secs()).unwrap_or(u32::MAX);
        let options = answer.opts_mut();
        options.insert(DhcpOption::AddressLeaseTime(seconds));
        options.insert(DhcpOption::Renewal(seconds / 2));
        options.insert(DhcpOption::Rebinding(seconds - seconds / 8));
        if rapid {
            options.insert(DhcpOption::RapidCommit);
        }
        self.configure(&mut answer, lease);
        let to = if !self.request.ciaddr().is_unspecified() {
            Destination::Address(self.request.ciaddr())
        } else if self.request.flags().broadcast() {
            Destination::Broadcast
        } else {
            Destination::Hardware(self.mac()?, lease.address)
        };
        finish(&answer, lease.service, to)
    }

    fn information(&self, lease: &Lease<'_>, to: Ipv4Addr) -> Option<Reply> {
        let mut answer = self.begin(MessageType::Ack, lease.service);
        answer.set_ciaddr(to);
        self.configure(&mut answer, lease);
        finish(&answer, lease.service, Destination::Address(to))
    }

    fn refusal(&self, lease: &Lease<'_>) -> Option<Reply> {
        let mut answer = self.begin(MessageType::Nak, lease.service);
        answer.opts_mut().insert(DhcpOption::Message("this address is not this port's".to_owned()));
        // Always to everybody: a client that moved here has an address at which nothing reaches it.
        finish(&answer, lease.service, Destination::Broadcast)
    }

    fn mac(&self) -> Option<MacAddress> {
        MacAddress::new(self.request.chaddr().try_into().ok()?)
    }

    fn begin(&self, kind: MessageType, service: Ipv4Addr) -> Message {
        let mut answer = Message::default();
        answer
            .set_opcode(Opcode::BootReply)
            .set_htype(HType::Eth)
            .set_xid(self.request.xid())
            .set_flags(self.request.flags())
            .set_chaddr(self.request.chaddr());
        answer.opts_mut().insert(DhcpOption::MessageType(kind));
        answer.opts_mut().insert(DhcpOption::ServerIdentifier(service));
        // RFC 6842: a client that names itself is named in the answer.
        if let Some(client) = self.request.opts().get(OptionCode::ClientIdentifier) {
            answer.opts_mut().insert(client.clone());
        }
        answer
    }

    fn configure(&self, answer: &mut Message, lease: &Lease<'_>) {
        let subnet = lease.subnet;
        let options = answer.opts_mut();
        if let IpNet::V4(net) = subnet.cidr.net() {
            options.insert(DhcpOption::SubnetMask(net.netmask()));
            options.insert(DhcpOption::BroadcastAddr(net.broadcast()));
        }
        let gateway = match subnet.gateway {
            Some(IpAddr::V4(gateway)) => Some(gateway),
            _ => None,
        };
        if let Some(gateway) = gateway {
            options.insert(DhcpOption::Router(vec![gateway]));
        }
        let mut servers: Vec<Ipv4Addr> = v4_only(&subnet.dns_servers).take(16).collect();
        if subnet.dns_servers.is_empty() {
            servers.push(lease.service);
        }
        if !servers.is_empty() {
            options.insert(DhcpOption::DomainNameServer(servers));
        }
        if let Ok(mtu) = u16::try_from(self.view.mtu()) {
            options.insert(DhcpOption::InterfaceMtu(mtu));
        }
        if !self.host_name.is_empty() && self.host_name.len() < 256 {
            options.insert(DhcpOption::Hostname(self.host_name.to_owned()));
        }
        if !self.view.domain().is_empty() && self.view.domain().len() < 256 {
            options.insert(DhcpOption::DomainName(self.view.domain().to_owned()));
        }
        let routes = routes(subnet, gateway, lease.service);
        options.insert(DhcpOption::ClasslessStaticRoute(routes));
    }
}

/// Classless static routes (RFC 3442). Whoever takes them passes the router option over, so the default route is among
/// them. The metadata address is reached by the service address, whichever way the rest goes: by a router it would leave
/// the node, and with it what tells whose packet it is.
fn routes(subnet: &SubnetSpec, gateway: Option<Ipv4Addr>, service: Ipv4Addr) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let mut routes = vec![(Ipv4Net::from(METADATA_V4), service)];
    for route in subnet.host_routes.iter().take(MOST_ROUTES - 2) {
        if let (IpNet::V4(to), IpAddr::V4(by)) = (route.destination.net(), route.next_hop) {
            routes.push((to, by));
        }
    }
    if let Some(gateway) = gateway {
        routes.push((Ipv4Net::default(), gateway));
    }
    routes
}

fn v4_only(addresses: &[IpAddr]) -> impl Iterator<Item = Ipv4Addr> + '_ {
    addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

fn finish(answer: &Message, from: Ipv4Addr, to: Destination) -> Option<Reply> {
    let mut message = Vec::with_capacity(512);
    answer.encode(&mut Encoder::new(&mut message)).ok()?;
    if message.len() < SHORTEST_ANSWER {
        message.resize(SHORTEST_ANSWER, 0);
    }
    Some(Reply { message, from, to })
}
