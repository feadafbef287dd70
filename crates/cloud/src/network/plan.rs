//! What a node's networks should be: drawn from the records each time that somebody asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use nephos_driver::network::{
    AddressPair, Attachment, Direction, HostName, IpVersion, Ipv6Mode, NetworkPlan, NetworkSpec, PortAddress, PortSpec,
    RateLimit, RemotePort, RulePeer, RuleProtocol, SecurityGroupSpec, SecurityRule, StaticRoute, SubnetSpec,
};
use nephos_ops::network::{self as ops, PortState, PortTrouble};
use nephos_store::{Query, Record};
use nephos_types::{Cidr, NetworkId, NodeId, PortId, Reference, Result, SecurityGroupId, ServerId};

use super::{
    Networks,
    kinds::{BY_GROUP, BY_SERVER, Matched, Network, Port, Remote, SecurityGroupRule, Subnet},
    networks::ports_of,
    security_groups::naming,
};
use crate::session::Session;

/// Where a server is, as far as its ports are concerned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// Its node.
    pub(crate) node: Option<NodeId>,
    /// Where that node receives what other nodes send.
    pub(crate) at: Option<IpAddr>,
    /// What it calls itself.
    pub(crate) host_name: String,
    /// What its node says of its ports.
    pub(crate) ports: Vec<(PortId, Option<PortTrouble>)>,
}

impl Place {
    /// What a port of it is.
    pub(crate) fn port(&self, id: PortId) -> (PortState, Option<PortTrouble>) {
        match self.ports.iter().find(|(port, _)| *port == id) {
            None => (PortState::Down, None),
            Some((_, None)) => (PortState::Active, None),
            Some((_, trouble)) => (PortState::Error, trouble.clone()),
        }
    }
}

/// Who knows where servers are.
pub(crate) trait Whereabouts: Send + Sync {
    /// Where this one is.
    fn place(&self, server: ServerId) -> Option<Place>;
    /// Those with ports that are on this node.
    fn servers_on(&self, node: NodeId) -> Vec<ServerId>;
    /// The one that a caller means.
    fn server(&self, session: &Session, reference: &Reference) -> Result<ServerId>;
}

impl Networks {
    /// What a node's networks should be.
    pub(crate) fn plan(&self, node: NodeId) -> NetworkPlan {
        let Some(whereabouts) = self.whereabouts.get().and_then(std::sync::Weak::upgrade) else {
            return NetworkPlan::default();
        };
        let mut plan = NetworkPlan::default();
        let mut networks: BTreeSet<NetworkId> = BTreeSet::new();
        let mut groups: BTreeSet<SecurityGroupId> = BTreeSet::new();
        for server in whereabouts.servers_on(node) {
            let Some(place) = whereabouts.place(server) else { continue };
            for port in self.store.list::<Port>(&Query::all().index(BY_SERVER, server)).items {
                networks.insert(port.body.network);
                groups.extend(&port.body.security_groups);
                let up = self.store.get::<Network>(port.body.network).is_some_and(|network| network.body.up);
                plan.ports.push(port_spec(&port, server, &place.host_name, up));
            }
        }
        plan.networks = networks
            .into_iter()
            .filter_map(|id| self.network_spec(&*whereabouts, &*self.store.get::<Network>(id)?, node))
            .collect();
        plan.security_groups = self.group_specs(&groups);
        plan
    }

    fn network_spec(
        &self,
        whereabouts: &dyn Whereabouts,
        network: &Record<Network>,
        node: NodeId,
    ) -> Option<NetworkSpec> {
        let mut names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let mut remote = vec![];
        for port in ports_of(self, network.meta.id) {
            let Some(place) = port.body.server().and_then(|server| whereabouts.place(server)) else { continue };
            let addresses: Vec<IpAddr> = port.body.addresses.iter().map(|fixed| fixed.address).collect();
            let name = port.body.dns_name.clone().unwrap_or_else(|| place.host_name.clone());
            names.entry(name).or_default().extend(&addresses);
            if let (Some(other), Some(at)) = (place.node.filter(|other| *other != node), place.at) {
                remote.push(RemotePort { mac: port.body.mac, addresses, node: other, at });
            }
        }
        let subnets = network.body.subnets.iter().filter_map(|id| self.store.get::<Subnet>(*id));
        Some(NetworkSpec {
            id: network.meta.id,
            segment: network.body.segment.clone(),
            mtu: network.body.mtu,
            subnets: subnets.map(|subnet| subnet_spec(&subnet)).collect(),
            dns_domain: network.body.dns_domain.clone(),
            names: names.into_iter().map(|(name, addresses)| HostName { name, addresses }).collect(),
            remote,
        })
    }

    /// The groups that a node's ports have, and those that their rules name, whose members have to be known.
    fn group_specs(&self, own: &BTreeSet<SecurityGroupId>) -> Vec<SecurityGroupSpec> {
        let rules: BTreeMap<SecurityGroupId, Vec<Arc<Record<SecurityGroupRule>>>> =
            own.iter().map(|id| (*id, self.rules_of(*id))).collect();
        let named: BTreeSet<SecurityGroupId> = rules
            .values()
            .flatten()
            .filter_map(|rule| match rule.body.remote {
                Remote::Group { group } => Some(group),
                _ => None,
            })
            .collect();
        own.union(&named)
            .map(|id| SecurityGroupSpec {
                id: *id,
                rules: rules.get(id).into_iter().flatten().map(|rule| rule_spec(rule)).collect(),
                members: if named.contains(id) { self.members(*id) } else { vec![] },
            })
            .collect()
    }

    /// The addresses of all ports that have a group.
    fn members(&self, group: SecurityGroupId) -> Vec<Cidr> {
        let ports = self.store.list::<Port>(&Query::all().index(BY_GROUP, group)).items;
        let of_port = |port: &Arc<Record<Port>>| {
            let own = port.body.addresses.iter().map(|fixed| Cidr::from(fixed.address)).collect::<Vec<_>>();
            own.into_iter().chain(port.body.allowed_pairs.iter().map(|pair| pair.addresses).collect::<Vec<_>>())
        };
        let members: BTreeSet<Cidr> = ports.iter().flat_map(of_port).collect();
        members.into_iter().collect()
    }

    /// The networks whose nodes' plans change when this group's members or rules do: those of ports that have it, or a group
    /// whose rules name it.
    pub(super) fn networks_minding(&self, group: SecurityGroupId) -> BTreeSet<NetworkId> {
        let groups: BTreeSet<SecurityGroupId> =
            naming(&self.store, group).iter().map(|rule| rule.body.group).chain([group]).collect();
        groups
            .iter()
            .flat_map(|group| self.store.list::<Port>(&Query::all().index(BY_GROUP, group)).items)
            .map(|port| port.body.network)
            .collect()
    }

    /// The nodes that a network's ports are on.
    pub(crate) fn nodes_of(&self, network: NetworkId) -> BTreeSet<NodeId> {
        ports_of(self, network).iter().filter_map(|port| self.place(port.body.server()?)?.node).collect()
    }
}

fn subnet_spec(record: &Record<Subnet>) -> SubnetSpec {
    let body = &record.body;
    SubnetSpec {
        id: record.meta.id,
        cidr: body.cidr,
        gateway: body.gateway,
        service: body.service,
        dhcp: body.dhcp,
        dns_servers: body.dns_servers.clone(),
        host_routes: body
            .host_routes
            .iter()
            .map(|route| StaticRoute { destination: route.destination, next_hop: route.next_hop })
            .collect(),
        ipv6_mode: body.ipv6_mode.filter(|_| body.dhcp).map(|mode| match mode {
            ops::Ipv6Mode::Slaac => Ipv6Mode::Slaac,
            ops::Ipv6Mode::DhcpStateless => Ipv6Mode::DhcpStateless,
            ops::Ipv6Mode::DhcpStateful => Ipv6Mode::DhcpStateful,
        }),
    }
}

fn port_spec(record: &Record<Port>, server: ServerId, host_name: &str, network_up: bool) -> PortSpec {
    let body = &record.body;
    // A tenth of a second's worth, and at least what one large segment takes.
    let limit = |kbit: Option<u64>| kbit.map(|kbit| RateLimit { kbit, burst_kbit: (kbit / 10).max(600) });
    PortSpec {
        id: record.meta.id,
        network: body.network,
        server,
        host_name: body.dns_name.clone().unwrap_or_else(|| host_name.to_owned()),
        mac: body.mac,
        addresses: body
            .addresses
            .iter()
            .map(|fixed| PortAddress { subnet: fixed.subnet, address: fixed.address })
            .collect(),
        // The node knows what the server's driver connects by.
        attachment: Attachment::Tap,
        allowed_pairs: body
            .allowed_pairs
            .iter()
            .map(|pair| AddressPair { addresses: pair.addresses, mac: pair.mac })
            .collect(),
        port_security: body.port_security,
        security_groups: body.security_groups.clone(),
        up: body.up && network_up,
        send_limit: limit(body.send_kbit),
        receive_limit: limit(body.receive_kbit),
    }
}

fn rule_spec(record: &Record<SecurityGroupRule>) -> SecurityRule {
    let body = &record.body;
    SecurityRule {
        id: record.meta.id,
        direction: match body.direction {
            ops::Direction::Ingress => Direction::Ingress,
            ops::Direction::Egress => Direction::Egress,
        },
        version: match body.version {
            ops::IpVersion::Ipv4 => IpVersion::V4,
            ops::IpVersion::Ipv6 => IpVersion::V6,
        },
        protocol: match body.matched {
            Matched::Any => RuleProtocol::Any,
            Matched::Tcp { ports } => RuleProtocol::Tcp { ports: ports.map(ops::PortRange::ends) },
            Matched::Udp { ports } => RuleProtocol::Udp { ports: ports.map(ops::PortRange::ends) },
            Matched::Icmp { kind, code } => RuleProtocol::Icmp { kind, code },
            Matched::Number { number } => RuleProtocol::Number { number },
        },
        peer: match body.remote {
            Remote::Any => RulePeer::Any,
            Remote::Range { cidr } => RulePeer::Range { cidr },
            Remote::Group { group } => RulePeer::Group { id: group },
        },
    }
}
