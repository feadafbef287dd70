//! Operations on subnets: ranges of addresses of networks.

use nephos_types::{Cidr, Labels, List, Name, NetworkId, Number, Page, ProjectId, Reference, SubnetId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::{AddressRange, Host, Route};
use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// How servers come to their IPv6 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6Mode {
    /// From router advertisements, by the MAC address.
    Slaac,
    /// Likewise; name servers by DHCPv6.
    DhcpStateless,
    /// By DHCPv6.
    DhcpStateful,
}

/// A range of addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// Its name, unique in the project.
    pub name: Name,
    /// The project that owns it.
    pub project: ProjectId,
    /// The network that it is of.
    pub network: NetworkId,
    /// The range.
    pub cidr: Cidr,
    /// The default gateway that servers are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Host>,
    /// Addresses that are given out by themselves.
    pub pools: Vec<AddressRange>,
    /// Whether servers are told their addresses.
    pub dhcp: bool,
    /// The address at which servers find DHCP, DNS and metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Host>,
    /// DNS servers that servers are told; with none, the cloud's own.
    pub dns_servers: Vec<Host>,
    /// Further routes that servers are told.
    pub host_routes: Vec<Route>,
    /// How servers come to their addresses, for IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_mode: Option<Ipv6Mode>,
    /// How many addresses are in use.
    pub used: u64,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
impl View for Subnet {}

const COLUMNS: &[&str] = &["name", "network", "cidr", "gateway", "dhcp", "used", "id"];

/// Make a subnet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSubnet {
    /// Name, unique in the project.
    pub name: Name,
    /// Name or id of the network.
    pub network: Reference,
    /// The range, e.g. `10.0.0.0/24`.
    pub cidr: Cidr,
    /// The default gateway that servers are told; the first address of the range when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Host>,
    /// No default gateway.
    #[serde(default)]
    pub no_gateway: bool,
    /// Addresses that are given out by themselves, at most 16 ranges; all but the gateway when absent.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub pools: List<AddressRange, 16>,
    /// Do not tell servers their addresses.
    #[serde(default)]
    pub no_dhcp: bool,
    /// DNS servers that servers are told, at most 5; the cloud's own when absent.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub dns_servers: List<Host, 5>,
    /// Further routes that servers are told, at most 20.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub host_routes: List<Route, 20>,
    /// How servers come to their addresses, for IPv6; `slaac` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_mode: Option<Ipv6Mode>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}
impl Operation for CreateSubnet {
    type Output = Subnet;
    const SPEC: Spec = Spec {
        name: "subnet.create",
        method: Method::Post,
        path: "/v1/subnets",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Give a network a range of addresses",
        positional: &["name"],
        seldom: &["host_routes", "ipv6_mode", "labels"],
        columns: COLUMNS,
        examples: &[
            Example {
                title: "A range for a network",
                command: "nephos subnet create backend-v4 --network backend --cidr 10.20.0.0/24",
            },
            Example {
                title: "One of IPv6 beside it",
                command: "nephos subnet create backend-v6 --network backend --cidr fd00:20::/64",
            },
        ],
        ..Spec::DEFAULT
    };
}

/// List subnets.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListSubnets {
    /// Of this network only, by name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Reference>,
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<SubnetId>,
}
impl Operation for ListSubnets {
    type Output = Page<Subnet>;
    const SPEC: Spec = Spec {
        name: "subnet.list",
        method: Method::Get,
        path: "/v1/subnets",
        permission: Permission::PROJECT_READER,
        summary: "List the subnets of networks that the project can use",
        columns: COLUMNS,
        examples: &[Example { title: "Of one network", command: "nephos subnet list --network demo" }],
        ..Spec::DEFAULT
    };
}

/// Show a subnet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowSubnet {
    /// Name or id.
    pub subnet: Reference,
}
impl Operation for ShowSubnet {
    type Output = Subnet;
    const SPEC: Spec = Spec {
        name: "subnet.show",
        method: Method::Get,
        path: "/v1/subnets/{subnet}",
        permission: Permission::PROJECT_READER,
        summary: "Show one subnet",
        positional: &["subnet"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos subnet show demo" }],
        ..Spec::DEFAULT
    };
}

/// Change a subnet. What is absent stays.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSubnet {
    /// Name or id.
    pub subnet: Reference,
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The default gateway that servers are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Host>,
    /// No default gateway any more.
    #[serde(default)]
    pub no_gateway: bool,
    /// Addresses that are given out by themselves, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<List<AddressRange, 16>>,
    /// Whether servers are told their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<bool>,
    /// DNS servers that servers are told, all of them; with none, the cloud's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_servers: Option<List<Host, 5>>,
    /// Further routes that servers are told, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_routes: Option<List<Route, 20>>,
    /// Labels, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}
impl Operation for UpdateSubnet {
    type Output = Subnet;
    const SPEC: Spec = Spec {
        name: "subnet.update",
        method: Method::Patch,
        path: "/v1/subnets/{subnet}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Change a subnet",
        positional: &["subnet"],
        columns: COLUMNS,
        examples: &[Example {
            title: "Other name servers",
            command: "nephos subnet update demo --dns-servers 10.0.0.53",
        }],
        ..Spec::DEFAULT
    };
}

/// Delete a subnet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteSubnet {
    /// Name or id.
    pub subnet: Reference,
}
impl Operation for DeleteSubnet {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "subnet.delete",
        method: Method::Delete,
        path: "/v1/subnets/{subnet}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Take a range of addresses from its network",
        description: "Refused while a port has an address of it.",
        positional: &["subnet"],
        examples: &[Example { title: "By name", command: "nephos subnet delete backend-v4" }],
        ..Spec::DEFAULT
    };
}
