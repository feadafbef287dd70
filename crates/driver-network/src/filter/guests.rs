//! What servers may send and receive: the rules of the namespace of all bridges.
//!
//! A frame from a server is first held against the addresses that the server may bear (`prerouting`), then against what
//! its security groups let out (`egress`), then against what the receiver's let in (`ingress`). Each is looked up by the
//! name of the device, so the number of ports costs nothing. A device of a port that is in no table passes nothing.
//!
//! The kernel does not follow connections among bridged frames in every configuration, but br_netfilter shows them to the
//! Internet protocols' hooks, where it does: there the packet gets a mark, which it still has when it is filtered.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nephos_driver::network::{
    Direction, IpVersion, NetworkPlan, NetworkSpec, PortSpec, RulePeer, RuleProtocol, SecurityGroupSpec, SecurityRule,
};
use nephos_types::{NetworkId, SecurityGroupId};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    Chain, Family, Hook, Ruleset, Table,
    expression::{
        accept, any_of, ct, drop, has, is, is_not, jump, mac, mangle, mark, marked, meta, number_range, payload, range,
        set, transport, verdict_by,
    },
    ruleset::Set,
};
use crate::{
    names::{self, SERVICE_MAC, short},
    netlink::Mac,
};

/// Mark of packets of connections that were allowed to begin.
const ESTABLISHED: u32 = 1;
/// Mark of packets of connections that may not go on, and of those that fit none.
const CUT: u32 = 2;
/// Mark of frames that what serves guests may not see: their sender is not who it says, and may be so elsewhere.
const UNSERVED: u32 = 4;
/// Mark of a connection that was allowed and no longer is.
pub(crate) const CONNECTION_CUT: u32 = 1;

/// Where guests ask for what they are.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Messages of ICMPv6 without which there is no IPv6 (RFC 4890): those that a server may send and receive anyway.
const SENT: [u8; 7] = [130, 131, 132, 133, 135, 136, 143];
const RECEIVED: [u8; 7] = [130, 131, 132, 134, 135, 136, 143];

fn bridge() -> Table {
    Table { family: Family::Bridge, name: "nephos".into() }
}

fn inet() -> Table {
    Table { family: Family::Inet, name: "nephos".into() }
}

fn filter(hook: &'static str, priority: i32) -> Option<Hook> {
    Some(Hook { kind: "filter", hook, priority })
}

fn rule(expressions: impl IntoIterator<Item = Value>) -> Value {
    expressions.into_iter().collect::<Vec<_>>().into()
}

fn devices_of(letter: char) -> String {
    format!("{letter}*")
}

/// The rules for a plan. `zones` tells networks apart that have the same addresses.
pub(crate) fn guests(plan: &NetworkPlan, zones: &BTreeMap<NetworkId, u16>) -> Ruleset {
    let mut rules = Ruleset { tables: vec![inet(), bridge()], ..Ruleset::default() };
    connections(&mut rules, zones);
    frame(&mut rules);
    let networks: BTreeMap<NetworkId, &NetworkSpec> =
        plan.networks.iter().map(|network| (network.id, network)).collect();
    let groups: BTreeMap<SecurityGroupId, &SecurityGroupSpec> =
        plan.security_groups.iter().map(|group| (group.id, group)).collect();
    for group in groups.values() {
        for direction in [Direction::Egress, Direction::Ingress] {
            let allowed = group.rules.iter().filter(|rule| rule.direction == direction);
            rules.chain(
                group_chain(direction, group.id),
                allowed.filter_map(|rule| permission(rule, &groups)).collect(),
            );
        }
    }
    for group in groups.values().flat_map(|group| &group.rules).filter_map(|rule| match &rule.peer {
        RulePeer::Group { id } => groups.get(id),
        _ => None,
    }) {
        members(&mut rules, group);
    }
    let mut verdicts: [BTreeSet<String>; 3] = Default::default();
    for port in &plan.ports {
        let Some(network) = networks.get(&port.network) else { continue };
        let device = names::port(port.id);
        let served = network.subnets.iter().any(|subnet| subnet.service.is_some());
        let chain = format!("from-{}", short(port.id));
        rules.chain(chain.clone(), if port.port_security { checked(port, served) } else { unchecked(port, served) });
        let mut groups_of: Vec<_> = port.security_groups.iter().copied().filter(|id| groups.contains_key(id)).collect();
        groups_of.sort_unstable();
        groups_of.dedup();
        let [out, into] = [Direction::Egress, Direction::Ingress].map(|direction| {
            if port.port_security { jump(&combination(&mut rules, direction, &groups_of)) } else { accept() }
        });
        for (verdicts, verdict) in verdicts.iter_mut().zip([jump(&chain), out, into]) {
            verdicts.insert(json!([device, verdict]).to_string());
        }
    }
    for (name, elements) in ["from", "egress", "ingress"].into_iter().zip(verdicts) {
        let map = Set { kind: "ifname", interval: false, verdicts: true, elements };
        rules.sets.insert((bridge(), name.into()), map);
    }
    rules
}

impl Ruleset {
    fn chain(&mut self, name: String, rules: Vec<Value>) {
        self.chains.insert((bridge(), name), Chain { hook: None, rules });
    }
}

/// Marks packets by the connection that they are of.
fn connections(rules: &mut Ruleset, zones: &BTreeMap<NetworkId, u16>) {
    if !zones.is_empty() {
        let zones = zones.iter().map(|(network, zone)| json!([names::bridge(*network), zone])).collect();
        let zone = json!({ "map": { "key": meta("iifname"), "data": set(zones) } });
        let chain = Chain { hook: filter("prerouting", -300), rules: vec![rule([mangle(ct("zone"), zone)])] };
        rules.chains.insert((inet(), "zone".into()), chain);
    }
    let cut = is(json!({ "&": [ct("mark"), CONNECTION_CUT] }), CONNECTION_CUT);
    let chain = Chain {
        hook: filter("prerouting", -150),
        rules: vec![
            rule([has(ct("state"), json!(["established", "related"])), mark(ESTABLISHED)]),
            rule([has(ct("state"), json!("invalid")), mark(CUT)]),
            rule([cut, mark(CUT)]),
        ],
    };
    rules.chains.insert((inet(), "state".into()), chain);
}

/// The chains that the kernel begins with.
fn frame(rules: &mut Ruleset) {
    let port = devices_of(names::PORT);
    let service = devices_of(names::SERVICE);
    let arp = || is(meta("protocol"), "arp");
    let goes_on = || rule([marked(ESTABLISHED | CUT, ESTABLISHED), accept()]);
    let mut base = |name: &str, hook, list| rules.chains.insert((bridge(), name.into()), Chain { hook, rules: list });
    base(
        "prerouting",
        filter("prerouting", -300),
        vec![rule([verdict_by(meta("iifname"), "from")]), rule([is(meta("iifname"), port.clone()), drop()])],
    );
    base(
        "egress",
        filter("forward", 10),
        vec![
            rule([is(meta("oifname"), service.clone()), marked(UNSERVED, UNSERVED), drop()]),
            rule([is(meta("oifname"), service.clone()), accept()]),
            goes_on(),
            rule([arp(), accept()]),
            rule([verdict_by(meta("iifname"), "egress")]),
            rule([is(meta("iifname"), port.clone()), drop()]),
        ],
    );
    base(
        "ingress",
        filter("forward", 20),
        vec![
            rule([is(meta("iifname"), service), accept()]),
            goes_on(),
            rule([arp(), accept()]),
            rule([verdict_by(meta("oifname"), "ingress")]),
            rule([is(meta("oifname"), port), drop()]),
        ],
    );
    // What only the network itself may say: answers of DHCP servers, router advertisements, redirects.
    rules.chain(
        "impostor".into(),
        vec![
            rule([is(payload("udp", "sport"), 67), is(payload("udp", "dport"), 68), drop()]),
            rule([is(payload("udp", "sport"), 547), is(payload("udp", "dport"), 546), drop()]),
            rule([is(payload("icmpv6", "type"), set(vec![134.into(), 137.into()])), drop()]),
            // Asking whether an address is free is no claim to it (RFC 4862).
            rule([
                is(payload("ip6", "saddr"), "::"),
                is(payload("icmpv6", "type"), set(vec![131.into(), 135.into(), 143.into()])),
                accept(),
            ]),
        ],
    );
}

fn group_chain(direction: Direction, group: SecurityGroupId) -> String {
    let way = match direction {
        Direction::Egress => "out",
        Direction::Ingress => "in",
    };
    format!("{way}-{}", short(group))
}

/// The chain of all ports that have the same groups.
fn combination(rules: &mut Ruleset, direction: Direction, groups: &[SecurityGroupId]) -> String {
    let names: Vec<String> = groups.iter().map(|group| group_chain(direction, *group)).collect();
    let (way, always) = match direction {
        Direction::Egress => ("outs", SENT),
        Direction::Ingress => ("ins", RECEIVED),
    };
    // By its groups, as far as a chain's name holds them.
    let which = if groups.len() <= 5 {
        groups.iter().map(short).collect::<Vec<_>>().join("-")
    } else {
        Sha256::digest(names.join(" ")).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    };
    let name = format!("{way}-{which}");
    if rules.chains.contains_key(&(bridge(), name.clone())) {
        return name;
    }
    let always = set(always.iter().map(|kind| (*kind).into()).collect());
    let mut list = vec![rule([marked(CUT, CUT), drop()]), rule([is(payload("icmpv6", "type"), always), accept()])];
    if direction == Direction::Egress {
        // Servers of DHCP of networks that are not the cloud's own are asked whatever the groups say.
        list.push(rule([is(payload("udp", "sport"), 68), is(payload("udp", "dport"), 67), accept()]));
        list.push(rule([is(payload("udp", "sport"), 546), is(payload("udp", "dport"), 547), accept()]));
    } else {
        list.push(rule([is(payload("udp", "sport"), 67), is(payload("udp", "dport"), 68), accept()]));
        list.push(rule([is(payload("udp", "sport"), 547), is(payload("udp", "dport"), 546), accept()]));
    }
    list.extend(names.iter().map(|name| rule([jump(name)])));
    list.push(rule([drop()]));
    rules.chain(name.clone(), list);
    name
}

fn member_set(group: SecurityGroupId, version: IpVersion) -> String {
    let version = match version {
        IpVersion::V4 => 4,
        IpVersion::V6 => 6,
    };
    format!("members{version}-{}", short(group))
}

/// The sets of a group's addresses, whole ranges joined so that no element overlaps another.
fn members(rules: &mut Ruleset, group: &SecurityGroupSpec) {
    let (mut v4, mut v6) = (vec![], vec![]);
    for member in &group.members {
        match member.net() {
            IpNet::V4(net) => v4.push(net),
            IpNet::V6(net) => v6.push(net),
        }
    }
    let v4 = Ipv4Net::aggregate(&v4).into_iter().map(|net| range(net.into()).to_string()).collect();
    let v6 = Ipv6Net::aggregate(&v6).into_iter().map(|net| range(net.into()).to_string()).collect();
    for (version, kind, elements) in [(IpVersion::V4, "ipv4_addr", v4), (IpVersion::V6, "ipv6_addr", v6)] {
        let set = Set { kind, interval: true, verdicts: false, elements };
        rules.sets.insert((bridge(), member_set(group.id, version)), set);
    }
}

/// The rule of nftables that lets pass what a rule of a security group does; `None` if that is nothing.
fn permission(allowed: &SecurityRule, groups: &BTreeMap<SecurityGroupId, &SecurityGroupSpec>) -> Option<Value> {
    let (ip, icmp, number) = match allowed.version {
        IpVersion::V4 => ("ip", "icmp", 1),
        IpVersion::V6 => ("ip6", "icmpv6", 58),
    };
    let mut list = vec![is(meta("protocol"), ip)];
    let field = match allowed.direction {
        Direction::Egress => "daddr",
        Direction::Ingress => "saddr",
    };
    match &allowed.peer {
        RulePeer::Any => {}
        RulePeer::Range { cidr } => {
            if cidr.is_ipv6() != (allowed.version == IpVersion::V6) {
                return None;
            }
            if cidr.net().prefix_len() > 0 {
                list.push(is(payload(ip, field), range(cidr.net())));
            }
        }
        // One that the plan does not have has no members.
        RulePeer::Group { id } if !groups.contains_key(id) => return None,
        RulePeer::Group { id } => {
            list.push(is(payload(ip, field), format!("@{}", member_set(*id, allowed.version))));
        }
    }
    if let RuleProtocol::Tcp { ports: Some((first, last)) } | RuleProtocol::Udp { ports: Some((first, last)) } =
        &allowed.protocol
        && first > last
    {
        return None;
    }
    let ports = |protocol: &str, ports: &Option<(u16, u16)>| {
        ports.map(|(first, last)| {
            let right = if first == last { json!(first) } else { json!({ "range": [first, last] }) };
            is(payload(protocol, "dport"), right)
        })
    };
    match &allowed.protocol {
        RuleProtocol::Any => {}
        RuleProtocol::Tcp { ports: None } => list.push(is(meta("l4proto"), 6)),
        RuleProtocol::Tcp { ports: some } => list.extend(ports("tcp", some)),
        RuleProtocol::Udp { ports: None } => list.push(is(meta("l4proto"), 17)),
        RuleProtocol::Udp { ports: some } => list.extend(ports("udp", some)),
        RuleProtocol::Icmp { kind: None, .. } => list.push(is(meta("l4proto"), number)),
        RuleProtocol::Icmp { kind: Some(kind), code } => {
            list.push(is(payload(icmp, "type"), *kind));
            list.extend(code.map(|code| is(payload(icmp, "code"), code)));
        }
        RuleProtocol::Number { number } => list.push(is(meta("l4proto"), *number)),
    }
    list.push(accept());
    Some(rule(list))
}

/// What a server may call itself: for each MAC address, which addresses.
struct Identity {
    own: Mac,
    /// Its own addresses; of IPv6 also the one that follows from its MAC address.
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
    /// With allowed pairs.
    by_mac: BTreeMap<Mac, (Vec<Ipv4Net>, Vec<Ipv6Net>)>,
}

/// The address on its link that follows from a MAC address (RFC 4291, appendix A).
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, ((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f)
}

impl Identity {
    fn of(port: &PortSpec) -> Self {
        let own = port.mac.bytes();
        let (mut v4, mut v6) = (vec![], vec![]);
        let nets = port.addresses.iter().map(|address| IpNet::from(address.address));
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push(net),
                IpNet::V6(net) => v6.push(net),
            }
        }
        v6.push(link_local(own).into());
        let mut by_mac = BTreeMap::from([(own, (v4.clone(), v6.clone()))]);
        for pair in &port.allowed_pairs {
            let mac = pair.mac.map_or(own, nephos_types::MacAddress::bytes);
            let (v4, v6) = by_mac.entry(mac).or_insert_with(|| (vec![], vec![link_local(mac).into()]));
            match pair.addresses.net() {
                IpNet::V4(net) => v4.push(net),
                IpNet::V6(net) => v6.push(net),
            }
        }
        for (v4, v6) in by_mac.values_mut() {
            *v4 = Ipv4Net::aggregate(v4);
            *v6 = Ipv6Net::aggregate(v6);
        }
        Self { own, v4: Ipv4Net::aggregate(&v4), v6: Ipv6Net::aggregate(&v6), by_mac }
    }
}

fn ranges4(nets: &[Ipv4Net]) -> Value {
    any_of(nets.iter().map(|net| range((*net).into())).collect())
}

fn ranges6(nets: &[Ipv6Net]) -> Value {
    any_of(nets.iter().map(|net| range((*net).into())).collect())
}

/// Whose lease a DHCP message is about (`chaddr`, RFC 2131).
fn client() -> Value {
    transport((8 + 28) * 8, 48)
}

fn client_is(mac: Mac) -> Value {
    let number = mac.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    is(client(), number)
}

/// What the node itself is asked goes to what serves guests, wherever the server thinks that it lives.
fn to_service(served: bool) -> Option<Value> {
    served.then(|| mangle(payload("ether", "daddr"), mac(SERVICE_MAC)))
}

/// A question for an address, or a renewal.
fn dhcp(identity: &Identity, served: bool) -> Vec<Value> {
    let sender = [is(payload("ether", "saddr"), mac(identity.own)), is(meta("protocol"), "ip")];
    let request = [is(payload("udp", "dport"), 67), client_is(identity.own)];
    // A rule each rather than a set: nft reads all sets whenever it changes one.
    let from = [Ipv4Net::from(Ipv4Addr::UNSPECIFIED)].into_iter().chain(identity.v4.iter().copied());
    from.map(|net| {
        let sender = sender.iter().cloned().chain([is(payload("ip", "saddr"), range(net.into()))]);
        let whole = sender.chain(request.iter().cloned()).chain(to_service(served)).chain([accept()]);
        whole.collect::<Vec<_>>().into()
    })
    .collect()
}

fn metadata(identity: &Identity, served: bool) -> Vec<Value> {
    if identity.v4.is_empty() || !served {
        return vec![];
    }
    let whole: Vec<Value> = [
        is(payload("ether", "saddr"), mac(identity.own)),
        is(payload("ip", "saddr"), ranges4(&identity.v4)),
        is(payload("ip", "daddr"), METADATA.to_string()),
    ]
    .into_iter()
    .chain(to_service(served))
    .chain([accept()])
    .collect();
    vec![whole.into()]
}

/// The rules for what a server with port security sends.
fn checked(port: &PortSpec, served: bool) -> Vec<Value> {
    let identity = Identity::of(port);
    let macs = any_of(identity.by_mac.keys().map(|known| mac(*known).into()).collect());
    let mut list = vec![rule([is_not(payload("ether", "saddr"), macs), drop()]), rule([jump("impostor")])];
    list.extend(dhcp(&identity, served));
    list.push(rule([is(meta("protocol"), "ip"), is(payload("udp", "dport"), 67), drop()]));
    list.extend(metadata(&identity, served));
    if served {
        list.push(rule([is(payload("ip", "daddr"), METADATA.to_string()), drop()]));
    }
    let all6: Vec<Ipv6Net> =
        Ipv6Net::aggregate(&identity.by_mac.values().flat_map(|(_, v6)| v6.iter().copied()).collect());
    let targets = any_of(all6.iter().map(|net| number_range(*net)).collect());
    list.push(rule([is(payload("icmpv6", "type"), 136), is_not(transport(64, 128), targets), drop()]));
    for (known, (v4, v6)) in &identity.by_mac {
        let mut senders = v4.clone();
        senders.push(Ipv4Addr::UNSPECIFIED.into());
        list.extend(Ipv4Net::aggregate(&senders).into_iter().map(|sender| {
            rule([
                is(payload("ether", "saddr"), mac(*known)),
                is(payload("arp", "saddr ether"), mac(*known)),
                is(payload("arp", "saddr ip"), range(sender.into())),
                accept(),
            ])
        }));
        if !v4.is_empty() {
            list.push(rule([
                is(payload("ether", "saddr"), mac(*known)),
                is(payload("ip", "saddr"), ranges4(v4)),
                accept(),
            ]));
        }
        list.push(rule([
            is(payload("ether", "saddr"), mac(*known)),
            is(payload("ip6", "saddr"), ranges6(v6)),
            accept(),
        ]));
    }
    list.push(rule([drop()]));
    list
}

/// The rules for what a server without port security sends: all passes, but what serves guests hears it only under its own
/// addresses.
fn unchecked(port: &PortSpec, served: bool) -> Vec<Value> {
    let identity = Identity::of(port);
    let own = || is(payload("ether", "saddr"), mac(identity.own));
    let mut list = dhcp(&identity, served);
    list.push(rule([is(meta("protocol"), "ip"), is(payload("udp", "dport"), 67), mark(UNSERVED), accept()]));
    list.extend(metadata(&identity, served));
    if !identity.v4.is_empty() {
        list.push(rule([own(), is(payload("ip", "saddr"), ranges4(&identity.v4)), accept()]));
        list.push(rule([
            own(),
            is(payload("arp", "saddr ether"), mac(identity.own)),
            is(payload("arp", "saddr ip"), ranges4(&identity.v4)),
            accept(),
        ]));
    }
    list.push(rule([own(), is(payload("ip6", "saddr"), ranges6(&identity.v6)), accept()]));
    list.push(rule([mark(UNSERVED), accept()]));
    list
}
