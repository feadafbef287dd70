//! Operations on availability zones and traits, and what a node is to placement.

use nephos_types::{List, Name, Number, Reference, Text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    node::Node,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// Nodes that fail together, and not with others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Zone {
    /// Its name.
    pub name: Name,
    /// Whether some node of it takes new servers.
    pub available: bool,
    /// How many nodes it has.
    pub nodes: u64,
    /// How many of them take new servers.
    pub usable_nodes: u64,
}
impl View for Zone {}

/// List availability zones.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListZones {}
impl Operation for ListZones {
    type Output = Vec<Zone>;
    const SPEC: Spec = Spec {
        name: "zone.list",
        method: Method::Get,
        path: "/v1/zones",
        permission: Permission::LOGGED_IN,
        summary: "List the availability zones that servers can be created in",
        description: "A zone is there as long as a node belongs to it; nodes that were given none are in `default`.",
        columns: &["name", "available", "nodes", "usable_nodes"],
        examples: &[Example { title: "All", command: "nephos zone list" }],
        ..Spec::DEFAULT
    };
}

/// Something that a node is or has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trait {
    /// Its name: `HW_CPU_X86_AVX2`, `COMPUTE_ACCEL_KVM`, `CUSTOM_GOLD`.
    pub name: String,
    /// Whether nodes were found to have it; else an administrator says so.
    pub detected: bool,
    /// How many nodes have it.
    pub nodes: u64,
}
impl View for Trait {}

/// List traits.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListTraits {}
impl Operation for ListTraits {
    type Output = Vec<Trait>;
    const SPEC: Spec = Spec {
        name: "trait.list",
        method: Method::Get,
        path: "/v1/traits",
        permission: Permission::LOGGED_IN,
        summary: "List what nodes are and have, for flavors and images to require or forbid",
        description: "Flavors say it with `--required-trait` and `--forbidden-trait`, images with the property \
            `trait:NAME` of value `required` or `forbidden`.",
        columns: &["name", "detected", "nodes"],
        examples: &[Example { title: "All", command: "nephos trait list" }],
        ..Spec::DEFAULT
    };
}

/// Say what a node is to placement.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignNode {
    /// Name or id.
    pub node: Reference,
    /// The availability zone that it belongs to. Refused while servers are on it that asked for another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Traits besides the detected ones, instead of all that were set: `CUSTOM_` and capitals, digits or `_`; at most 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traits: Option<List<Text<100>, 50>>,
    /// Virtual CPUs that it gives out, in percent of its CPUs, up to 10000; 0 leaves it to its aggregates and the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_vcpus: Option<Number<0, 10_000>>,
    /// Memory that it gives out, in percent, up to 10000; 0 leaves it to its aggregates and the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_memory: Option<Number<0, 10_000>>,
    /// Disk that it gives out, in percent, up to 10000; 0 leaves it to its aggregates and the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_disk: Option<Number<0, 10_000>>,
}
impl Operation for AssignNode {
    type Output = Node;
    const SPEC: Spec = Spec {
        name: "node.assign",
        method: Method::Post,
        path: "/v1/nodes/{node}/assign",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Say a node's zone, traits and overcommitment",
        description: "Only what is given changes. Servers that are placed stay where they are.",
        positional: &["node"],
        columns: &["name", "zone", "traits", "vcpus", "memory_mib", "disk_gib", "id"],
        examples: &[
            Example { title: "Its zone", command: "nephos node assign rack1-a --zone rack1" },
            Example {
                title: "A trait, and twice the CPUs",
                command: "nephos node assign rack1-a --trait CUSTOM_GOLD --overcommit-vcpus 200",
            },
        ],
        ..Spec::DEFAULT
    };
}
