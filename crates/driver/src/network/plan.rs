//! The plan: plain data, serialised on the way to the node and in its files.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::IpNet;
use nephos_types::{
    Cidr, FloatingIpId, MacAddress, NetworkId, NodeId, PortForwardingId, PortId, RouterId, SecurityGroupId,
    SecurityGroupRuleId, ServerId, SubnetId,
};
use serde::{Deserialize, Serialize};

use crate::Protocol;

/// Where guests ask who they are. Each node serves it to its own guests, in each network's service namespace.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Likewise by IPv6, on the link.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);

/// All that a node's networks should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// Networks that a port or a router of this node is on.
    pub networks: Vec<NetworkSpec>,
    /// Ports of the servers that this node runs.
    pub ports: Vec<PortSpec>,
    /// Security groups that those ports have, and those that their rules name.
    pub security_groups: Vec<SecurityGroupSpec>,
    /// Routers that this node carries.
    pub routers: Vec<RouterSpec>,
}

/// How a network's frames get from one node to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Segment {
    /// Inside UDP between the nodes (VXLAN, RFC 7348).
    Vxlan {
        /// The VXLAN network identifier, 24 bits.
        vni: u32,
    },
    /// On a wire of the nodes, as it is.
    Flat {
        /// Name of the physical network; the node's configuration says which interface it is.
        physical: String,
    },
    /// On a wire of the nodes, with a tag (IEEE 802.1Q).
    Vlan {
        /// Name of the physical network; the node's configuration says which interface it is.
        physical: String,
        /// The tag, 1 to 4094.
        tag: u16,
    },
    /// On this one node: the machine itself is the gateway, and what leaves for elsewhere bears the machine's address.
    Host,
}

/// One network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Which.
    pub id: NetworkId,
    /// How its frames travel.
    pub segment: Segment,
    /// Largest packet, in bytes; told to guests.
    pub mtu: u32,
    /// Its ranges of addresses.
    pub subnets: Vec<SubnetSpec>,
    /// What host names end with, without dots at the ends: `demo.internal`.
    pub dns_domain: String,
    /// Names that are resolved for its guests.
    pub names: Vec<HostName>,
    /// Its ports on other nodes: where frames to them go. Nodes that have none of its ports get nothing.
    pub remote: Vec<RemotePort>,
}

/// How guests come to their IPv6 addresses (Neutron's `ipv6_address_mode` and `ipv6_ra_mode`, set alike).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ipv6Mode {
    /// From router advertisements (RFC 4862), by the MAC address.
    Slaac,
    /// Likewise; the rest (DNS) by DHCPv6.
    DhcpStateless,
    /// By DHCPv6 (RFC 8415).
    DhcpStateful,
}

/// One range of addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec {
    /// Which.
    pub id: SubnetId,
    /// The range.
    pub cidr: Cidr,
    /// The default gateway that guests are told.
    pub gateway: Option<IpAddr>,
    /// The address at which each node serves DHCP, DNS and metadata to its own guests: the same on all nodes, seen by none
    /// but the node's own guests. `None`: nothing is served.
    pub service: Option<IpAddr>,
    /// Whether addresses are given out by DHCP or router advertisements.
    pub dhcp: bool,
    /// DNS servers that guests are told; empty: the service address.
    pub dns_servers: Vec<IpAddr>,
    /// Further routes that guests are told.
    pub host_routes: Vec<StaticRoute>,
    /// How guests come to addresses of this range, if it is of IPv6 and they are told.
    pub ipv6_mode: Option<Ipv6Mode>,
}

/// A route: packets for this range go there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StaticRoute {
    /// Where to.
    pub destination: Cidr,
    /// By which way.
    pub next_hop: IpAddr,
}

/// A name that the network's guests can resolve, both ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostName {
    /// The host's name, without the network's domain.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A port on another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemotePort {
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its addresses: the node answers for it when they are asked for (ARP, neighbour discovery), so nothing is flooded.
    pub addresses: Vec<IpAddr>,
    /// The node that has it.
    pub node: NodeId,
    /// Where that node receives (the outer address of VXLAN).
    pub at: IpAddr,
}

/// An address of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortAddress {
    /// The range that it is of.
    pub subnet: SubnetId,
    /// The address.
    pub address: IpAddr,
}

/// Addresses that a port may use besides its own (Neutron's allowed address pairs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AddressPair {
    /// Addresses.
    pub addresses: Cidr,
    /// With this MAC address; `None`: with the port's own.
    pub mac: Option<MacAddress>,
}

/// What a server is connected by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Attachment {
    /// A tap device, which the hypervisor opens.
    Tap,
    /// An interface in a network namespace, which is made at this path and configured with the port's addresses, routes
    /// and name servers: a container is started in it.
    Namespace {
        /// Where the namespace is kept.
        path: PathBuf,
        /// The interface's name in there, `eth0`.
        interface: String,
    },
}

/// How fast a port may be in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Thousand bits a second.
    pub kbit: u64,
    /// Thousand bits that may come at once.
    pub burst_kbit: u64,
}

/// One port of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// Which.
    pub id: PortId,
    /// The network that it is on.
    pub network: NetworkId,
    /// The server that it is of.
    pub server: ServerId,
    /// That server's host name.
    pub host_name: String,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its addresses.
    pub addresses: Vec<PortAddress>,
    /// What the server is connected by.
    pub attachment: Attachment,
    /// Addresses that it may use besides.
    pub allowed_pairs: Vec<AddressPair>,
    /// Whether the sender's addresses are checked and security groups hold. Without it everything passes; what the node
    /// itself serves is told ports apart by their addresses all the same.
    pub port_security: bool,
    /// Its security groups. With none, and port security, nothing passes but what the node itself serves.
    pub security_groups: Vec<SecurityGroupId>,
    /// Whether it is up; a port that is down passes nothing.
    pub up: bool,
    /// How much it may send.
    pub send_limit: Option<RateLimit>,
    /// How much it may receive.
    pub receive_limit: Option<RateLimit>,
}

/// Which way, as seen from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the server.
    Ingress,
    /// From the server.
    Egress,
}

/// Version of the Internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum IpVersion {
    V4,
    V6,
}

/// Which packets a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "lowercase")]
pub enum RuleProtocol {
    /// All.
    Any,
    /// TCP to these ports, both ends included; all ports when absent.
    Tcp {
        /// First and last.
        ports: Option<(u16, u16)>,
    },
    /// UDP, likewise.
    Udp {
        /// First and last.
        ports: Option<(u16, u16)>,
    },
    /// ICMP, or ICMPv6 in a rule for IPv6.
    Icmp {
        /// Only this type.
        kind: Option<u8>,
        /// Only this code of it.
        code: Option<u8>,
    },
    /// Another protocol by its number (IANA).
    Number {
        /// The number.
        number: u8,
    },
}

/// Whom a rule is about: the sender of what comes in, the receiver of what goes out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "peer", rename_all = "lowercase")]
pub enum RulePeer {
    /// Everybody.
    Any,
    /// These addresses.
    Range {
        /// The range.
        cidr: Cidr,
    },
    /// Ports that have this security group.
    Group {
        /// The group; it is in the plan. Written as `group`, beside the rule's own `id`.
        #[serde(rename = "group")]
        id: SecurityGroupId,
    },
}

/// What may pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SecurityRule {
    /// Which rule of the resource model it is.
    pub id: SecurityGroupRuleId,
    /// Which way.
    pub direction: Direction,
    /// Of which protocol.
    pub version: IpVersion,
    /// Which packets.
    #[serde(flatten)]
    pub protocol: RuleProtocol,
    /// From or to whom.
    #[serde(flatten)]
    pub peer: RulePeer,
}

/// A security group: what its rules do not allow does not pass; answers to what was allowed do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupSpec {
    /// Which.
    pub id: SecurityGroupId,
    /// What may pass.
    pub rules: Vec<SecurityRule>,
    /// Addresses of all ports that have this group, on whatever node, and of their allowed pairs.
    pub members: Vec<Cidr>,
}

/// Where a router is on a network that it connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterInterface {
    /// Its port.
    pub port: PortId,
    /// The network.
    pub network: NetworkId,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its addresses with the lengths of their ranges' prefixes.
    pub addresses: Vec<IpNet>,
    /// Subnets of IPv6 that it advertises itself on as their router.
    pub advertise: Vec<SubnetId>,
}

/// The way to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalGateway {
    /// Where it is on the external network.
    pub interface: RouterInterface,
    /// Default routes.
    pub next_hops: Vec<IpAddr>,
    /// Whether what leaves by it bears its address (IPv4; IPv6 is routed as it is).
    pub snat: bool,
}

/// An address of the external network that leads to one of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingIp {
    /// Which.
    pub id: FloatingIpId,
    /// Address on the external network.
    pub external: IpAddr,
    /// The server's address; `None` if only ports of it lead anywhere.
    pub fixed: Option<IpAddr>,
    /// Ports that lead to ports of servers.
    pub forwardings: Vec<Forwarding>,
}

/// A port of a floating IP that leads to a port of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarding {
    /// Which.
    pub id: PortForwardingId,
    /// Protocol.
    pub protocol: Protocol,
    /// First and last port outside.
    pub external_ports: (u16, u16),
    /// The server's address.
    pub fixed: IpAddr,
    /// First and last port of the server; as many as outside.
    pub fixed_ports: (u16, u16),
}

/// A router: networks that are connected, and perhaps a way to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterSpec {
    /// Which.
    pub id: RouterId,
    /// Whether it is up; a router that is down passes nothing.
    pub up: bool,
    /// Networks that it connects.
    pub interfaces: Vec<RouterInterface>,
    /// The way to the outside.
    pub gateway: Option<ExternalGateway>,
    /// Further routes.
    pub routes: Vec<StaticRoute>,
    /// Floating IPs that it carries.
    pub floating_ips: Vec<FloatingIp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        let rule = |protocol, peer| SecurityRule {
            id: SecurityGroupRuleId::new(),
            direction: Direction::Ingress,
            version: IpVersion::V4,
            protocol,
            peer,
        };
        let rules = [
            rule(RuleProtocol::Any, RulePeer::Any),
            rule(RuleProtocol::Tcp { ports: Some((80, 81)) }, RulePeer::Group { id: SecurityGroupId::new() }),
            rule(
                RuleProtocol::Icmp { kind: Some(8), code: None },
                RulePeer::Range { cidr: "10.0.0.0/8".parse().unwrap() },
            ),
            rule(RuleProtocol::Number { number: 112 }, RulePeer::Any),
        ];
        for rule in rules {
            let text = serde_json::to_string(&rule).unwrap();
            assert_eq!(serde_json::from_str::<SecurityRule>(&text).unwrap(), rule, "{text}");
        }
    }
}
