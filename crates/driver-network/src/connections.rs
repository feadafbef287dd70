//! What a change of the rules means for connections that are there: those that were allowed to begin and no longer are go
//! no further.
//!
//! They are marked and stay, rather than be forgotten: of one that is forgotten the next packet of the server itself would
//! look like the beginning of a new one, which most groups let out.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use nephos_driver::network::{
    Direction, IpVersion, NetworkPlan, PortSpec, RulePeer, RuleProtocol, SecurityGroupSpec, SecurityRule,
};
use nephos_types::{NetworkId, SecurityGroupId};

use crate::{
    filter::CONNECTION_CUT,
    netlink::{Flow, Space, Tuple},
    network::METADATA,
};

/// What rules say about connections.
struct Judge<'a> {
    groups: BTreeMap<SecurityGroupId, &'a SecurityGroupSpec>,
    ports: BTreeMap<(NetworkId, IpAddr), &'a PortSpec>,
    networks: BTreeMap<u16, NetworkId>,
    served: BTreeSet<(NetworkId, IpAddr)>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    GoesOn,
    Cut,
    /// Nobody here has it: whoever gets its addresses must not inherit it.
    Forgotten,
}

impl Judge<'_> {
    fn fate(&self, flow: &Flow) -> Fate {
        let Some(network) = self.networks.get(&flow.zone) else { return Fate::Forgotten };
        let (from, to) = (flow.original.source, flow.original.destination);
        let sender = self.ports.get(&(*network, from));
        let receiver = self.ports.get(&(*network, to));
        if sender.is_none() && receiver.is_none() {
            return Fate::Forgotten;
        }
        if [from, to].iter().any(|address| self.served.contains(&(*network, *address))) {
            return Fate::GoesOn;
        }
        let out = sender.is_none_or(|port| self.allows(port, Direction::Egress, &flow.original));
        let into = receiver.is_none_or(|port| self.allows(port, Direction::Ingress, &flow.original));
        if out && into { Fate::GoesOn } else { Fate::Cut }
    }

    fn allows(&self, port: &PortSpec, direction: Direction, packet: &Tuple) -> bool {
        let dhcp = packet.protocol == 17
            && match direction {
                Direction::Egress => matches!(packet.destination_port, 67 | 547),
                Direction::Ingress => matches!(packet.destination_port, 68 | 546),
            };
        !port.port_security
            || dhcp
            || port
                .security_groups
                .iter()
                .filter_map(|group| self.groups.get(group))
                .flat_map(|group| &group.rules)
                .any(|rule| rule.direction == direction && self.matches(rule, packet))
    }

    fn matches(&self, rule: &SecurityRule, packet: &Tuple) -> bool {
        let peer = match rule.direction {
            Direction::Egress => packet.destination,
            Direction::Ingress => packet.source,
        };
        if peer.is_ipv4() != (rule.version == IpVersion::V4) {
            return false;
        }
        let within = |ports: &Option<(u16, u16)>| {
            ports.is_none_or(|(first, last)| (first..=last).contains(&packet.destination_port))
        };
        let protocol = match &rule.protocol {
            RuleProtocol::Any => true,
            RuleProtocol::Tcp { ports } => packet.protocol == 6 && within(ports),
            RuleProtocol::Udp { ports } => packet.protocol == 17 && within(ports),
            RuleProtocol::Icmp { kind, code } => {
                let number = if rule.version == IpVersion::V4 { 1 } else { 58 };
                packet.protocol == number
                    && kind.is_none_or(|kind| packet.icmp.is_some_and(|(of, _)| of == kind))
                    && code.is_none_or(|code| packet.icmp.is_some_and(|(_, of)| of == code))
            }
            RuleProtocol::Number { number } => packet.protocol == *number,
        };
        protocol
            && match &rule.peer {
                RulePeer::Any => true,
                RulePeer::Range { cidr } => cidr.contains(peer),
                RulePeer::Group { id } => {
                    self.groups.get(id).is_some_and(|group| group.members.iter().any(|member| member.contains(peer)))
                }
            }
    }
}

/// Holds all connections against the plan.
pub(crate) fn judge(fabric: &mut Space, plan: &NetworkPlan, zones: &BTreeMap<NetworkId, u16>) -> io::Result<()> {
    let served = plan.networks.iter().flat_map(|network| {
        let own = network.subnets.iter().filter_map(|subnet| subnet.service);
        own.chain(METADATA).map(|address| (network.id, address))
    });
    let ports = plan.ports.iter().flat_map(|port| {
        // Single addresses of pairs, too: they may be the ends of connections.
        let pairs = port.allowed_pairs.iter().map(|pair| pair.addresses.net());
        let pairs = pairs.filter(|net| net.prefix_len() == net.max_prefix_len()).map(|net| net.addr());
        let own = port.addresses.iter().map(|address| address.address);
        own.chain(pairs).map(move |address| ((port.network, address), port))
    });
    let judge = Judge {
        groups: plan.security_groups.iter().map(|group| (group.id, group)).collect(),
        ports: ports.collect(),
        networks: zones.iter().map(|(network, zone)| (*zone, *network)).collect(),
        served: served.collect(),
    };
    for flow in fabric.flows()? {
        let cut = flow.mark & CONNECTION_CUT != 0;
        match judge.fate(&flow) {
            Fate::GoesOn if cut => fabric.mark_flow(&flow, flow.mark & !CONNECTION_CUT)?,
            Fate::Cut if !cut => fabric.mark_flow(&flow, flow.mark | CONNECTION_CUT)?,
            Fate::GoesOn | Fate::Cut => {}
            Fate::Forgotten => fabric.delete_flow(&flow)?,
        }
    }
    Ok(())
}
