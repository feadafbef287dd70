//! Operations on networks.

use nephos_types::{Labels, Name, NetworkId, Number, Page, ProjectId, Reference, SubnetId, Text, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// How a network's frames get from one node to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SegmentType {
    /// Inside UDP between the nodes.
    Vxlan,
    /// On a wire of the nodes, as it is.
    Flat,
    /// On a wire of the nodes, with a tag.
    Vlan,
    /// On one node: the machine itself is the gateway, and what leaves for elsewhere bears the machine's address.
    Host,
}

/// What servers' ports are on: whoever is on one network reaches each other as on a wire of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique in the project.
    pub name: Name,
    /// The project that owns it.
    pub project: ProjectId,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its subnets.
    pub subnets: Vec<SubnetId>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether it leads outside: routers have their gateways and floating IPs on it.
    pub external: bool,
    /// Whether all projects may use it.
    pub shared: bool,
    /// Whether it is up; a network that is down passes nothing.
    pub up: bool,
    /// Whether its ports are checked unless they say otherwise.
    pub port_security: bool,
    /// What host names end with.
    pub dns_domain: String,
    /// How its frames travel; shown to administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<SegmentType>,
    /// The physical network that it is on; shown to administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical: Option<String>,
    /// The tag of its frames, or the identifier of its VXLAN; shown to administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_id: Option<u32>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
impl View for Network {}

const COLUMNS: &[&str] = &["name", "subnets", "external", "shared", "mtu", "id"];

/// Make a network.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Name, unique in the project.
    pub name: Name,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<255>>,
    /// Largest packet in bytes, 576 to 9216; what the nodes' wire has room for when absent, and at most that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Number<576, 9216>>,
    /// Leave the ports unchecked unless they say otherwise: any address may send, and no security group holds.
    #[serde(default)]
    pub no_port_security: bool,
    /// What host names end with, e.g. `lab.internal`; the network's name and `internal` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_domain: Option<Text<200>>,
    /// Leads outside: routers have their gateways on it. For administrators.
    #[serde(default)]
    pub external: bool,
    /// All projects may use it. For administrators.
    #[serde(default)]
    pub shared: bool,
    /// How its frames travel; `vxlan` when absent. For administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<SegmentType>,
    /// The physical network that it is on, for `flat` and `vlan`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical: Option<Name>,
    /// The tag, for `vlan`; or the identifier, for `vxlan`: any that is free when absent. For administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_id: Option<Number<1, 16_777_215>>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}
impl Operation for CreateNetwork {
    type Output = Network;
    const SPEC: Spec = Spec {
        name: "network.create",
        method: Method::Post,
        path: "/v1/networks",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Make a network",
        description: "It has no addresses yet: give it a subnet.",
        positional: &["name"],
        seldom: &["no_port_security", "physical", "segment_id", "labels"],
        columns: COLUMNS,
        examples: &[
            Example { title: "A network of the project", command: "nephos network create backend" },
            Example {
                title: "One that leads outside by a wire of the nodes",
                command: "nephos network create outside --external --segment flat --physical uplink",
            },
        ],
        ..Spec::DEFAULT
    };
}

/// List networks.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListNetworks {
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
    /// Only those that lead outside, or only those that do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<bool>,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<NetworkId>,
}
impl Operation for ListNetworks {
    type Output = Page<Network>;
    const SPEC: Spec = Spec {
        name: "network.list",
        method: Method::Get,
        path: "/v1/networks",
        permission: Permission::PROJECT_READER,
        summary: "List networks that the project can use",
        columns: COLUMNS,
        examples: &[Example { title: "Those that lead outside", command: "nephos network list --external true" }],
        ..Spec::DEFAULT
    };
}

/// Show a network.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowNetwork {
    /// Name or id.
    pub network: Reference,
}
impl Operation for ShowNetwork {
    type Output = Network;
    const SPEC: Spec = Spec {
        name: "network.show",
        method: Method::Get,
        path: "/v1/networks/{network}",
        permission: Permission::PROJECT_READER,
        summary: "Show one network",
        positional: &["network"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos network show demo" }],
        ..Spec::DEFAULT
    };
}

/// Change a network. What is absent stays.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateNetwork {
    /// Name or id.
    pub network: Reference,
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<255>>,
    /// Whether it is up; a network that is down passes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<bool>,
    /// Largest packet in bytes, 576 to 9216; servers learn of it when they ask again for their address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Number<576, 9216>>,
    /// Whether ports made from now on are checked unless they say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_security: Option<bool>,
    /// What host names end with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_domain: Option<Text<200>>,
    /// Leads outside. For administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<bool>,
    /// All projects may use it. For administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// Labels, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}
impl Operation for UpdateNetwork {
    type Output = Network;
    const SPEC: Spec = Spec {
        name: "network.update",
        method: Method::Patch,
        path: "/v1/networks/{network}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Change a network",
        positional: &["network"],
        columns: COLUMNS,
        examples: &[Example { title: "Another name", command: "nephos network update backend --name storage" }],
        ..Spec::DEFAULT
    };
}

/// Delete a network.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteNetwork {
    /// Name or id.
    pub network: Reference,
}
impl Operation for DeleteNetwork {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "network.delete",
        method: Method::Delete,
        path: "/v1/networks/{network}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Delete a network and its subnets",
        description: "Refused while it has ports.",
        positional: &["network"],
        examples: &[Example { title: "By name", command: "nephos network delete backend" }],
        ..Spec::DEFAULT
    };
}
