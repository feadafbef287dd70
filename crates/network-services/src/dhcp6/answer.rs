//! What a message is answered: a pure function of the plan.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use dhcproto::{
    Decodable, Decoder, Encodable, Encoder,
    v6::{DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, IATA, Message, MessageType, OptionCode, Status, StatusCode},
};
use hickory_proto::rr::Name;
use nephos_driver::network::{Ipv6Mode, SubnetSpec};
use nephos_types::{Id, MacAddress};

use crate::{
    advertise::dns_servers,
    view::{NetworkView, PortView},
};

/// A message longer than this is no client's.
pub(super) const LONGEST: usize = 1500;
/// Most identity associations and addresses of one message that are looked at.
const MOST: usize = 16;
/// For how long what was told without an address holds, in seconds.
const REFRESH: u32 = 3600;

/// Answers a message of a client, which is sent back to where it came from; `None`: it is not answered.
#[must_use]
pub fn answer(view: &NetworkView, lease_time: Duration, bytes: &[u8], source: Ipv6Addr) -> Option<Vec<u8>> {
    let kind = MessageType::from(*bytes.first()?);
    // What relays and servers say to each other is looked at no further: it is not between a guest and its node.
    let of_clients = matches!(
        kind,
        MessageType::Solicit
            | MessageType::Request
            | MessageType::Confirm
            | MessageType::Renew
            | MessageType::Rebind
            | MessageType::Release
            | MessageType::Decline
            | MessageType::InformationRequest
    );
    if !of_clients || bytes.len() > LONGEST {
        return None;
    }
    let request = Message::decode(&mut Decoder::new(&sift(bytes)?)).ok()?;
    let server = server_id(view);
    let client = match request.opts().get(OptionCode::ClientId) {
        Some(DhcpOption::ClientId(client)) if (1..=130).contains(&client.len()) => Some(client.as_slice()),
        _ => None,
    };
    let named = match request.opts().get(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(named)) => Some(*named == server),
        _ => None,
    };
    // Whom a message has to name, and whom it must not (RFC 8415, section 16).
    let fits = match kind {
        MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => client.is_some() && named.is_none(),
        MessageType::InformationRequest => named != Some(false) && request.opts().get(OptionCode::IANA).is_none(),
        _ => client.is_some() && named == Some(true),
    };
    if !fits {
        return None;
    }
    let port = view.port_at(source.into()).or_else(|| view.port_with_mac(client.and_then(mac_of)?))?;
    let addresses = addresses(view, port);
    let asked = Asked::of(request.opts());
    let seconds = u32::try_from(lease_time.as_secs()).unwrap_or(u32::MAX);

    let mut reply = Message::new_with_id(MessageType::Reply, request.xid());
    reply.opts_mut().insert(DhcpOption::ServerId(server));
    if let Some(client) = client {
        reply.opts_mut().insert(DhcpOption::ClientId(client.to_vec()));
    }
    match kind {
        MessageType::Solicit => {
            if request.opts().get(OptionCode::RapidCommit).is_some() {
                reply.opts_mut().insert(DhcpOption::RapidCommit);
            } else {
                reply.set_msg_type(MessageType::Advertise);
                // There is no other server to wait for.
                reply.opts_mut().insert(DhcpOption::Preference(255));
            }
            grant(&mut reply, &asked, &addresses, seconds, Status::NoAddrsAvail);
            configure(&mut reply, view, port);
        }
        MessageType::Request => {
            grant(&mut reply, &asked, &addresses, seconds, Status::NoAddrsAvail);
            configure(&mut reply, view, port);
        }
        MessageType::Renew | MessageType::Rebind => {
            grant(&mut reply, &asked, &addresses, seconds, Status::NoBinding);
            configure(&mut reply, view, port);
        }
        MessageType::Confirm => {
            let mut has = asked.identities.iter().flat_map(|(_, has)| has).peekable();
            has.peek()?;
            let status =
                if has.all(|address| addresses.contains(address)) { Status::Success } else { Status::NotOnLink };
            reply.opts_mut().insert(said(status));
        }
        MessageType::Release | MessageType::Decline => {
            if kind == MessageType::Decline {
                tracing::warn!(network = %view.id(), port = %port.id, "a guest says that its address is in use by somebody else");
            }
            // The address stays the port's.
            reply.opts_mut().insert(said(Status::Success));
        }
        _ => {
            reply.opts_mut().insert(DhcpOption::InformationRefreshTime(REFRESH));
            configure(&mut reply, view, port);
        }
    }
    let mut message = Vec::with_capacity(256);
    reply.encode(&mut Encoder::new(&mut message)).ok()?;
    Some(message)
}

/// Only what is looked at, of the length that it has to have: the library trusts the lengths of some other options.
fn sift(bytes: &[u8]) -> Option<Vec<u8>> {
    let (head, options) = bytes.split_at_checked(4)?;
    let mut sifted = head.to_vec();
    each_option(options, |code, content| match code {
        1 | 2 => put(&mut sifted, code, content),
        14 => put(&mut sifted, code, &[]),
        // What is within: addresses, and nothing within those.
        3 if content.len() >= 12 => {
            let (fixed, within) = content.split_at(12);
            let mut identity = fixed.to_vec();
            each_option(within, |code, address| match address.get(..24) {
                Some(address) if code == 5 => put(&mut identity, code, address),
                _ => {}
            });
            put(&mut sifted, code, &identity);
        }
        4 if content.len() >= 4 => put(&mut sifted, code, content.get(..4).unwrap_or_default()),
        25 if content.len() >= 12 => put(&mut sifted, code, content.get(..12).unwrap_or_default()),
        _ => {}
    });
    Some(sifted)
}

fn put(to: &mut Vec<u8>, code: u16, content: &[u8]) {
    let Ok(length) = u16::try_from(content.len()) else { return };
    to.extend(code.to_be_bytes());
    to.extend(length.to_be_bytes());
    to.extend(content);
}

/// Calls with each option that is whole: its code and content.
fn each_option(mut bytes: &[u8], mut call: impl FnMut(u16, &[u8])) {
    while let [code_high, code_low, length_high, length_low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*length_high, *length_low]));
        let Some((content, further)) = rest.split_at_checked(length) else { return };
        call(u16::from_be_bytes([*code_high, *code_low]), content);
        bytes = further;
    }
}

/// The server's DUID (RFC 6355): of the network, whichever node answers.
fn server_id(view: &NetworkView) -> Vec<u8> {
    [&[0, 4], b"nephos\0\0".as_slice(), &view.id().bits().to_be_bytes()].concat()
}

/// The MAC address that a client's DUID is made of, if it is (RFC 8415, sections 11.2 and 11.4).
fn mac_of(client: &[u8]) -> Option<MacAddress> {
    let bytes = match client {
        [0, 1, 0, 1, _, _, _, _, mac @ ..] | [0, 3, 0, 1, mac @ ..] => mac,
        _ => return None,
    };
    MacAddress::new(bytes.try_into().ok()?)
}

/// A port's addresses that are given out here.
fn addresses(view: &NetworkView, port: &PortView) -> Vec<Ipv6Addr> {
    let stateful = |subnet: &&SubnetSpec| {
        subnet.dhcp && subnet.service.is_some() && subnet.ipv6_mode == Some(Ipv6Mode::DhcpStateful)
    };
    let told = port.addresses.iter().filter_map(|address| match address.address {
        IpAddr::V6(v6) => view.subnet(address.subnet).filter(stateful).map(|_| v6),
        IpAddr::V4(_) => None,
    });
    told.take(MOST).collect()
}

/// What a client asks for.
struct Asked {
    /// Identity associations, and the addresses that it has in them.
    identities: Vec<(u32, Vec<Ipv6Addr>)>,
    temporary: Vec<u32>,
    prefixes: Vec<u32>,
}

impl Asked {
    fn of(options: &DhcpOptions) -> Self {
        let mut asked = Self { identities: vec![], temporary: vec![], prefixes: vec![] };
        for option in options.iter() {
            match option {
                DhcpOption::IANA(identity) => {
                    let has = identity.opts.iter().filter_map(|option| match option {
                        DhcpOption::IAAddr(address) => Some(address.addr),
                        _ => None,
                    });
                    asked.identities.push((identity.id, has.take(MOST).collect()));
                }
                DhcpOption::IATA(identity) => asked.temporary.push(identity.id),
                DhcpOption::IAPD(identity) => asked.prefixes.push(identity.id),
                _ => {}
            }
        }
        asked.identities.truncate(MOST);
        asked.temporary.truncate(MOST);
        asked.prefixes.truncate(MOST);
        asked
    }
}

fn said(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: String::new() })
}

fn only(status: Status) -> DhcpOptions {
    [said(status)].into_iter().collect()
}

/// Gives the port's addresses to the identity association that has one of them, or to the first; the others get `none`.
/// What a client has and should not is taken back.
fn grant(reply: &mut Message, asked: &Asked, addresses: &[Ipv6Addr], seconds: u32, none: Status) {
    let holder = asked.identities.iter().position(|(_, has)| has.iter().any(|address| addresses.contains(address)));
    let holder = holder.unwrap_or(0);
    for (place, (id, has)) in asked.identities.iter().enumerate() {
        let given: &[Ipv6Addr] = if place == holder { addresses } else { &[] };
        let address = |addr: Ipv6Addr, life: u32| {
            DhcpOption::IAAddr(IAAddr { addr, preferred_life: life, valid_life: life, opts: DhcpOptions::new() })
        };
        let mut options: DhcpOptions = given.iter().map(|addr| address(*addr, seconds)).collect();
        for stale in has.iter().filter(|address| !given.contains(address)) {
            options.insert(address(*stale, 0));
        }
        if given.is_empty() {
            options.insert(said(none));
        }
        let (t1, t2) = if given.is_empty() { (0, 0) } else { (seconds / 2, seconds - seconds / 5) };
        reply.opts_mut().insert(DhcpOption::IANA(IANA { id: *id, t1, t2, opts: options }));
    }
    for id in &asked.temporary {
        reply.opts_mut().insert(DhcpOption::IATA(IATA { id: *id, opts: only(Status::NoAddrsAvail) }));
    }
    for id in &asked.prefixes {
        reply.opts_mut().insert(DhcpOption::IAPD(IAPD { id: *id, t1: 0, t2: 0, opts: only(Status::NoPrefixAvail) }));
    }
}

/// DNS: of the ranges that the port has addresses of.
fn configure(reply: &mut Message, view: &NetworkView, port: &PortView) {
    let mut servers: Vec<Ipv6Addr> = vec![];
    for subnet in view.subnets().iter().filter(|subnet| subnet.dhcp && subnet.cidr.is_ipv6()) {
        if port.addresses.iter().any(|address| address.subnet == subnet.id) {
            servers.extend(
                dns_servers(subnet).iter().filter(|server| !servers.contains(server)).copied().collect::<Vec<_>>(),
            );
        }
    }
    servers.truncate(MOST);
    if !servers.is_empty() {
        reply.opts_mut().insert(DhcpOption::DomainNameServers(servers));
    }
    if let Ok(mut domain) = Name::from_ascii(view.domain())
        && !view.domain().is_empty()
    {
        domain.set_fqdn(true);
        reply.opts_mut().insert(DhcpOption::DomainSearchList(vec![domain]));
    }
}
