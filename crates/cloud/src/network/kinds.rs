//! The stored forms.

use std::net::IpAddr;

use nephos_driver::network::Segment;
use nephos_ops::network::{AddressPair, AddressRange, Direction, IpVersion, Ipv6Mode, PortRange, Route};
use nephos_store::{Kind, Record};
use nephos_types::{
    Cidr, MacAddress, NetworkId, PortId, RouterId, SecurityGroupId, SecurityGroupRuleId, ServerId, SubnetId,
};
use serde::{Deserialize, Serialize};

use crate::{CLOUD, Named, Session};

/// Index of what belongs to a network, by its id.
pub(crate) const BY_NETWORK: &str = "network";
/// Index of ports by the id of their server.
pub(crate) const BY_SERVER: &str = "server";
/// Index of ports and rules by the id of a security group.
pub(super) const BY_GROUP: &str = "group";
/// Index of rules by the id of the security group that they name.
pub(super) const BY_REMOTE_GROUP: &str = "remote_group";
/// Index of networks that other projects may use: `yes`.
pub(super) const BY_OPEN: &str = "open";

/// A network as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) description: String,
    pub(crate) segment: Segment,
    /// Largest packet in bytes.
    pub(crate) mtu: u32,
    pub(crate) external: bool,
    pub(crate) shared: bool,
    pub(crate) up: bool,
    /// Whether its ports are checked unless they say otherwise.
    pub(crate) port_security: bool,
    pub(crate) dns_domain: String,
    /// Its subnets, oldest first. Here, so that two of them are never made at once without regard to each other.
    pub(crate) subnets: Vec<SubnetId>,
}

impl Kind for Network {
    type Id = NetworkId;
    const NAME: &'static str = "network";
    const INDEXES: &'static [&'static str] = &[BY_OPEN];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            BY_OPEN if record.body.shared || record.body.external => vec!["yes".to_owned()],
            _ => vec![],
        }
    }
}

impl Named for Network {
    const NOUN: &'static str = "network";

    /// Its own project's, then what all projects may use.
    fn spaces(session: &Session) -> Vec<String> {
        let own = session.identity().ok().and_then(|identity| identity.project());
        own.map(|id| id.to_string()).into_iter().chain([CLOUD.to_owned()]).collect()
    }

    fn visible(session: &Session, record: &Record<Self>) -> bool {
        record.body.shared || record.body.external || record.meta.project.is_some_and(|project| session.sees(project))
    }
}

/// A subnet as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subnet {
    pub(crate) network: NetworkId,
    pub(crate) cidr: Cidr,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) pools: Vec<AddressRange>,
    pub(crate) dhcp: bool,
    /// Where servers find DHCP, DNS and metadata.
    pub(crate) service: Option<IpAddr>,
    pub(crate) dns_servers: Vec<IpAddr>,
    pub(crate) host_routes: Vec<Route>,
    pub(crate) ipv6_mode: Option<Ipv6Mode>,
}

impl Kind for Subnet {
    type Id = SubnetId;
    const NAME: &'static str = "subnet";
    const INDEXES: &'static [&'static str] = &[BY_NETWORK];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        if index == BY_NETWORK { vec![record.body.network.to_string()] } else { vec![] }
    }
}

impl Named for Subnet {
    const NOUN: &'static str = "subnet";

    fn visible(session: &Session, record: &Record<Self>) -> bool {
        let network = session.store().get::<Network>(record.body.network);
        network.is_some_and(|network| Network::visible(session, &network))
    }
}

/// Whose a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub(crate) enum Owner {
    /// A server's.
    Server {
        server: ServerId,
        /// Made with the server, or by connecting it, so that it goes with it.
        together: bool,
    },
    /// A router's, on a network that it connects.
    RouterInterface { router: RouterId },
    /// A router's, on the network that leads outside.
    RouterGateway { router: RouterId },
}

/// An address of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fixed {
    pub(crate) subnet: SubnetId,
    pub(crate) address: IpAddr,
}

/// A port as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Port {
    pub(crate) network: NetworkId,
    pub(crate) mac: MacAddress,
    pub(crate) addresses: Vec<Fixed>,
    pub(crate) owner: Option<Owner>,
    pub(crate) security_groups: Vec<SecurityGroupId>,
    pub(crate) allowed_pairs: Vec<AddressPair>,
    pub(crate) port_security: bool,
    pub(crate) up: bool,
    pub(crate) dns_name: Option<String>,
    pub(crate) send_kbit: Option<u64>,
    pub(crate) receive_kbit: Option<u64>,
}

impl Port {
    /// The server that it is of.
    pub(crate) fn server(&self) -> Option<ServerId> {
        match self.owner {
            Some(Owner::Server { server, .. }) => Some(server),
            _ => None,
        }
    }
}

impl Kind for Port {
    type Id = PortId;
    const NAME: &'static str = "port";
    const INDEXES: &'static [&'static str] = &[BY_NETWORK, BY_SERVER, BY_GROUP];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            BY_NETWORK => vec![record.body.network.to_string()],
            BY_SERVER => record.body.server().iter().map(ToString::to_string).collect(),
            BY_GROUP => record.body.security_groups.iter().map(ToString::to_string).collect(),
            _ => vec![],
        }
    }
}

impl Named for Port {
    const NOUN: &'static str = "port";
}

/// A server's interface that is a port of a network: what of the port its guest knows from its first start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The port.
    pub port: PortId,
    /// The port's network.
    pub network: NetworkId,
    /// The port's MAC address.
    pub mac: MacAddress,
    /// Largest packet in bytes.
    pub mtu: u32,
}

/// A security group as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SecurityGroup {
    pub(crate) description: String,
}

impl Kind for SecurityGroup {
    type Id = SecurityGroupId;
    const NAME: &'static str = "security_group";
}

impl Named for SecurityGroup {
    const NOUN: &'static str = "security-group";
}

/// Which packets a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "snake_case")]
pub(crate) enum Matched {
    Any,
    Tcp { ports: Option<PortRange> },
    Udp { ports: Option<PortRange> },
    Icmp { kind: Option<u8>, code: Option<u8> },
    Number { number: u8 },
}

/// Whom a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "remote", rename_all = "snake_case")]
pub(crate) enum Remote {
    Any,
    Range { cidr: Cidr },
    Group { group: SecurityGroupId },
}

/// A rule of a security group as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SecurityGroupRule {
    pub(crate) group: SecurityGroupId,
    pub(crate) direction: Direction,
    pub(crate) version: IpVersion,
    pub(crate) matched: Matched,
    pub(crate) remote: Remote,
    pub(crate) description: String,
}

impl Kind for SecurityGroupRule {
    type Id = SecurityGroupRuleId;
    const NAME: &'static str = "security_group_rule";
    const INDEXES: &'static [&'static str] = &[BY_GROUP, BY_REMOTE_GROUP];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match (index, record.body.remote) {
            (BY_GROUP, _) => vec![record.body.group.to_string()],
            (BY_REMOTE_GROUP, Remote::Group { group }) => vec![group.to_string()],
            _ => vec![],
        }
    }
}

impl Named for SecurityGroupRule {
    const NOUN: &'static str = "security-group-rule";
}

/// The project of a record that always has one.
pub(super) fn project_of<K: Kind>(record: &Record<K>) -> nephos_types::ProjectId {
    record.meta.project.unwrap_or_else(crate::resolve::no_id)
}
