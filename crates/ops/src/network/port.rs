//! Operations on ports: where servers and routers are connected to networks.

use nephos_types::{
    Labels, List, MacAddress, Name, NetworkId, NodeId, Number, Page, PortId, ProjectId, Reference, RouterId,
    SecurityGroupId, ServerId, SubnetId, Text, Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::{AddressPair, PortAddress};
use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// What a port is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// It is on no node, or not made there yet.
    Down,
    /// It is made, and passes what it may.
    Active,
    /// Its node could not make it; `trouble` says why.
    Error,
}

/// Why a port could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortTrouble {
    /// A stable word.
    pub code: String,
    /// A sentence.
    pub message: String,
}

/// Whose a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum PortOwner {
    /// A server's.
    Server {
        /// The server.
        server: ServerId,
    },
    /// A router's, on a network that it connects.
    RouterInterface {
        /// The router.
        router: RouterId,
    },
    /// A router's, on the network that leads outside.
    RouterGateway {
        /// The router.
        router: RouterId,
    },
}

/// Where a server or router is connected to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Port {
    /// Its id.
    pub id: PortId,
    /// Its name, unique in the project, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The project that owns it.
    pub project: ProjectId,
    /// The network that it is on.
    pub network: NetworkId,
    /// What it is.
    pub state: PortState,
    /// Why its node could not make it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<PortTrouble>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<PortOwner>,
    /// The node that it is on; shown to administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its addresses, each with its subnet.
    pub addresses: Vec<PortAddress>,
    /// Addresses that it may use besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_pairs: Vec<AddressPair>,
    /// Whether the sender's addresses are checked and security groups hold.
    pub port_security: bool,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Whether it is up.
    pub up: bool,
    /// The name by which others on the network find it; the server's host name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_name: Option<String>,
    /// How much it may send, in kilobits a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_kbit: Option<u64>,
    /// How much it may receive, in kilobits a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_kbit: Option<u64>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
impl View for Port {}

const COLUMNS: &[&str] = &["name", "state", "addresses", "mac", "network", "id"];

/// Make a port.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePort {
    /// Name or id of the network.
    pub network: Reference,
    /// Name, unique in the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Its addresses, at most 16: an address, a subnet's id, or SUBNET=ADDRESS; one of each IP version when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<List<PortAddress, 16>>,
    /// Its MAC address; made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Security groups by name or id, at most 16; the project's `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_groups: Option<List<Reference, 16>>,
    /// Addresses that it may use besides, at most 32: ADDRESSES or ADDRESSES=MAC.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub allowed_pairs: List<AddressPair, 32>,
    /// Whether the sender's addresses are checked and security groups hold; as the network says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_security: Option<bool>,
    /// The name by which others on the network find it; the server's host name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_name: Option<Text<63>>,
    /// How much it may send, in kilobits a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_kbit: Option<Number<64, 400_000_000>>,
    /// How much it may receive, in kilobits a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_kbit: Option<Number<64, 400_000_000>>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}
impl Operation for CreatePort {
    type Output = Port;
    const SPEC: Spec = Spec {
        name: "port.create",
        method: Method::Post,
        path: "/v1/ports",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Make a port on a network, to connect a server by",
        positional: &["network"],
        seldom: &["allowed_pairs", "send_kbit", "receive_kbit", "labels"],
        columns: COLUMNS,
        examples: &[
            Example { title: "With any free address", command: "nephos port create demo" },
            Example { title: "With a certain one", command: "nephos port create demo --addresses 10.0.0.50" },
        ],
        ..Spec::DEFAULT
    };
}

/// List ports.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListPorts {
    /// On this network only, by name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Reference>,
    /// Of this server only, by name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Reference>,
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<PortId>,
}
impl Operation for ListPorts {
    type Output = Page<Port>;
    const SPEC: Spec = Spec {
        name: "port.list",
        method: Method::Get,
        path: "/v1/ports",
        permission: Permission::PROJECT_READER,
        summary: "List ports",
        columns: COLUMNS,
        examples: &[Example { title: "Of a network", command: "nephos port list --network demo" }],
        ..Spec::DEFAULT
    };
}

/// Show a port.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowPort {
    /// Name or id.
    pub port: Reference,
}
impl Operation for ShowPort {
    type Output = Port;
    const SPEC: Spec = Spec {
        name: "port.show",
        method: Method::Get,
        path: "/v1/ports/{port}",
        permission: Permission::PROJECT_READER,
        summary: "Show one port",
        positional: &["port"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos port show front" }],
        ..Spec::DEFAULT
    };
}

/// Change a port. What is absent stays.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdatePort {
    /// Name or id.
    pub port: Reference,
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Its addresses, all of them, as for `port create`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<List<PortAddress, 16>>,
    /// Security groups by name or id, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_groups: Option<List<Reference, 16>>,
    /// Addresses that it may use besides, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_pairs: Option<List<AddressPair, 32>>,
    /// Whether the sender's addresses are checked and security groups hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_security: Option<bool>,
    /// Whether it is up; a port that is down passes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<bool>,
    /// The name by which others on the network find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_name: Option<Text<63>>,
    /// How much it may send, in kilobits a second; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_kbit: Option<Number<0, 400_000_000>>,
    /// How much it may receive, in kilobits a second; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_kbit: Option<Number<0, 400_000_000>>,
    /// Labels, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}
impl Operation for UpdatePort {
    type Output = Port;
    const SPEC: Spec = Spec {
        name: "port.update",
        method: Method::Patch,
        path: "/v1/ports/{port}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Change a port",
        positional: &["port"],
        columns: COLUMNS,
        examples: &[Example {
            title: "Other security groups",
            command: "nephos port update front --security-groups default --security-groups web",
        }],
        ..Spec::DEFAULT
    };
}

/// Delete a port.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeletePort {
    /// Name or id.
    pub port: Reference,
}
impl Operation for DeletePort {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "port.delete",
        method: Method::Delete,
        path: "/v1/ports/{port}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Delete a port",
        description: "Refused while a server or router has it.",
        positional: &["port"],
        examples: &[Example { title: "By name", command: "nephos port delete front" }],
        ..Spec::DEFAULT
    };
}

/// The subnet of an address that a port has; ports always show both.
impl PortAddress {
    /// An address with its subnet.
    #[must_use]
    pub fn fixed(subnet: SubnetId, address: std::net::IpAddr) -> Self {
        Self { subnet: Some(subnet), address: Some(address) }
    }
}
