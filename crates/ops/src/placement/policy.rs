//! Operations on how it is decided where servers go, and why one went where it is.

use nephos_types::{Name, NodeId, Number, Reference, ServerId, Timestamp, WorkflowId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Overcommit;
use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// What may stand against a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The node is not heard of.
    Up,
    /// It takes no new servers.
    Enabled,
    /// It is not the one that was asked for, or the one to be left.
    Target,
    /// It is in another zone.
    Zone,
    /// Its aggregates do not have a property that the flavor asks for.
    Properties,
    /// It lacks a required trait, or has a forbidden one.
    Traits,
    /// No driver of it boots the image's format.
    Format,
    /// No driver of it can do all that is asked for.
    Features,
    /// The server's group does not want it there.
    Group,
    /// Too few virtual CPUs are free.
    Vcpus,
    /// Too little memory is free.
    Memory,
    /// Too little disk is free.
    Disk,
}

/// What makes one of several possible nodes better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// The share of memory that stays free.
    Memory,
    /// The share of virtual CPUs that stay free.
    Vcpus,
    /// The share of disk that stays free.
    Disk,
    /// What a soft server group wishes.
    Group,
}

/// A filter as it is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FilterSetting {
    /// Which.
    pub name: Filter,
    /// Whether it stands.
    pub enabled: bool,
    /// Whether it can be switched off.
    pub optional: bool,
    /// What it refuses.
    pub summary: String,
}

/// A weight as it is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WeightSetting {
    /// Which.
    pub name: Weight,
    /// How much it counts: 0 not at all, below 0 the other way round.
    pub multiplier: i32,
    /// What it prefers.
    pub summary: String,
}

/// How it is decided where servers go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    /// What stands against a node, in the order of asking.
    pub filters: Vec<FilterSetting>,
    /// What makes a node better. Each gives a share of its multiplier; the greatest sum wins.
    pub weights: Vec<WeightSetting>,
    /// What nodes give out, in percent of what they have, unless they or their aggregates say otherwise.
    pub overcommit: Overcommit,
}
impl View for Placement {}

/// What most operations on placement have in common.
const PLACEMENT: Spec =
    Spec { permission: Permission::SYSTEM_ADMIN, effect: Effect::Changes, method: Method::Put, ..Spec::DEFAULT };

/// Show how it is decided where servers go.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowPlacement {}
impl Operation for ShowPlacement {
    type Output = Placement;
    const SPEC: Spec = Spec {
        name: "placement.show",
        method: Method::Get,
        path: "/v1/placement",
        permission: Permission::SYSTEM_READER,
        effect: Effect::Reads,
        summary: "Show by which filters and weights servers are placed",
        examples: &[Example { title: "All", command: "nephos placement show" }],
        ..PLACEMENT
    };
}

/// Switch a filter on or off.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetFilter {
    /// Which.
    pub filter: Filter,
    /// Whether it stands.
    pub enabled: bool,
}
impl Operation for SetFilter {
    type Output = Placement;
    const SPEC: Spec = Spec {
        name: "placement.set-filter",
        path: "/v1/placement/filters/{filter}",
        summary: "Switch a filter of placement on or off",
        description: "Only `zone`, `properties` and `traits` can be off.",
        positional: &["filter"],
        examples: &[Example {
            title: "Pass over what flavors ask of aggregates",
            command: "nephos placement set-filter properties --enabled false",
        }],
        ..PLACEMENT
    };
}

/// Say how much a weight counts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetWeight {
    /// Which.
    pub weight: Weight,
    /// How much, -10000 to 10000: 0 not at all, below 0 the other way round.
    #[schemars(range(min = -10_000, max = 10_000))]
    pub multiplier: i32,
}
impl Operation for SetWeight {
    type Output = Placement;
    const SPEC: Spec = Spec {
        name: "placement.set-weight",
        path: "/v1/placement/weights/{weight}",
        summary: "Say how much a weight of placement counts",
        positional: &["weight"],
        examples: &[
            Example {
                title: "Fill nodes one after the other",
                command: "nephos placement set-weight memory --multiplier=-1000",
            },
            Example { title: "Spread them again", command: "nephos placement set-weight memory --multiplier 1000" },
        ],
        ..PLACEMENT
    };
}

/// Say how much of what nodes have is given out.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetOvercommit {
    /// Virtual CPUs, in percent of the CPUs, 10 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<Number<10, 10_000>>,
    /// Memory, in percent, 10 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Number<10, 10_000>>,
    /// Disk, in percent, 10 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Number<10, 10_000>>,
}
impl Operation for SetOvercommit {
    type Output = Placement;
    const SPEC: Spec = Spec {
        name: "placement.set-overcommit",
        path: "/v1/placement/overcommit",
        summary: "Say how much of what nodes have is given out",
        description: "Of all nodes that neither say it themselves (`node assign`) nor by an aggregate. Less than what \
            servers have already takes nothing away.",
        examples: &[Example {
            title: "Two virtual CPUs for each CPU",
            command: "nephos placement set-overcommit --vcpus 200",
        }],
        ..PLACEMENT
    };
}

/// How many nodes a filter refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// The filter: of several that refuse a node, the first.
    pub filter: Filter,
    /// How many nodes.
    pub nodes: u64,
}

/// What a weight gave a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Weighed {
    /// The weight.
    pub weight: Weight,
    /// How much it counts.
    pub multiplier: i32,
    /// What the node has of it, in millionths.
    pub share: u32,
}

/// Another node that would have taken a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunnerUp {
    /// Its name.
    pub name: Name,
    /// Its sum of weights.
    pub score: i64,
}

/// Why a server was placed on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementReasons {
    /// How many nodes there were.
    pub nodes: u64,
    /// How many of them could take it.
    pub fitting: u64,
    /// Why the others could not.
    pub refused: Vec<Refused>,
    /// What made it the best of those.
    pub weights: Vec<Weighed>,
    /// Their sum: each share times its multiplier.
    pub score: i64,
    /// The next best.
    pub runners_up: Vec<RunnerUp>,
}

/// Where a server is, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerPlacement {
    /// The server.
    pub server: ServerId,
    /// The node that was chosen.
    pub node: NodeId,
    /// Its name at that time.
    pub node_name: Name,
    /// When.
    pub decided_at: Timestamp,
    /// The workflow that decided.
    pub workflow: WorkflowId,
    /// In a sentence.
    pub summary: String,
    /// The reasons.
    pub reasons: PlacementReasons,
}
impl View for ServerPlacement {}

/// Ask why a server is where it is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainPlacement {
    /// Name or id.
    pub server: Reference,
}
impl Operation for ExplainPlacement {
    type Output = ServerPlacement;
    const SPEC: Spec = Spec {
        name: "server.placement",
        method: Method::Get,
        path: "/v1/servers/{server}/placement",
        permission: Permission::PROJECT_READER,
        effect: Effect::Reads,
        summary: "Show why a server was placed where it is",
        description: "Known as long as the workflow that placed it is kept.",
        positional: &["server"],
        examples: &[Example { title: "By name", command: "nephos server placement web-1" }],
        ..PLACEMENT
    };
}
