//! Operations that say what there is room for.

use nephos_types::{Name, NodeId, Number, Page, Reference};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Example, Method, Operation, Permission, Spec},
};

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Room {
    /// What servers may have in sum, overcommitment included.
    pub total: u64,
    /// What servers have.
    pub used: u64,
    /// What new servers may have: on nodes that are up and take new servers.
    pub free: u64,
}

/// The room on some nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// Name of the zone or aggregate.
    pub name: String,
    /// How many nodes.
    pub nodes: u64,
    /// How many of them take new servers.
    pub usable_nodes: u64,
    /// Virtual CPUs.
    pub vcpus: Room,
    /// Memory in MiB.
    pub memory_mib: Room,
    /// Disk in GiB.
    pub disk_gib: Room,
    /// How many more servers of the flavor fit, if one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fits: Option<u64>,
}

/// The room in the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// How many nodes.
    pub nodes: u64,
    /// How many of them take new servers.
    pub usable_nodes: u64,
    /// Virtual CPUs.
    pub vcpus: Room,
    /// Memory in MiB.
    pub memory_mib: Room,
    /// Disk in GiB.
    pub disk_gib: Room,
    /// How many more servers of the flavor fit, if one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fits: Option<u64>,
    /// By zone.
    pub zones: Vec<Part>,
    /// By aggregate.
    pub aggregates: Vec<Part>,
}
impl View for Capacity {}

/// The room on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeCapacity {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Its zone.
    pub zone: Name,
    /// Whether it is up and takes new servers.
    pub usable: bool,
    /// Virtual CPUs.
    pub vcpus: Room,
    /// Memory in MiB.
    pub memory_mib: Room,
    /// Disk in GiB.
    pub disk_gib: Room,
    /// How many more servers of the flavor fit, if one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fits: Option<u64>,
    /// Why none of the flavor fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
impl View for NodeCapacity {}

/// Show the room in the cloud.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowCapacity {
    /// Name or id of a flavor: say how many more of it fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavor: Option<Reference>,
}
impl Operation for ShowCapacity {
    type Output = Capacity;
    const SPEC: Spec = Spec {
        name: "capacity.show",
        method: Method::Get,
        path: "/v1/capacity",
        permission: Permission::SYSTEM_READER,
        summary: "Show what there is room for: in all, by zone and by aggregate",
        examples: &[
            Example { title: "All", command: "nephos capacity show" },
            Example { title: "How many more of a flavor", command: "nephos capacity show --flavor small" },
        ],
        ..Spec::DEFAULT
    };
}

/// List the room on each node.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListCapacity {
    /// Name or id of a flavor: say how many more of it fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavor: Option<Reference>,
    /// Only nodes of this zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Only nodes of this aggregate (name or id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregate: Option<Reference>,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<NodeId>,
}
impl Operation for ListCapacity {
    type Output = Page<NodeCapacity>;
    const SPEC: Spec = Spec {
        name: "capacity.list",
        method: Method::Get,
        path: "/v1/capacity/nodes",
        permission: Permission::SYSTEM_READER,
        summary: "List what there is room for on each node",
        columns: &["name", "zone", "usable", "vcpus.free", "memory_mib.free", "disk_gib.free", "fits", "why"],
        examples: &[
            Example { title: "All nodes", command: "nephos capacity list" },
            Example { title: "Of one zone, for a flavor", command: "nephos capacity list --zone rack1 --flavor small" },
        ],
        ..Spec::DEFAULT
    };
}
