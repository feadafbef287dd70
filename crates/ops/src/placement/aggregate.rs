//! Operations on aggregates: named sets of nodes with properties that flavors ask for.

use nephos_types::{AggregateId, Name, Number, Page, Reference, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    image::Properties,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// How much of what a node has is given out, in percent: 400 gives four virtual CPUs for each CPU. What is absent is
/// decided by somebody else: a node's aggregates, then the cloud.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Overcommit {
    /// Virtual CPUs for the CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// Disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u32>,
}

impl Overcommit {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Nodes that have something in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Aggregate {
    /// Its id.
    pub id: AggregateId,
    /// Its name, unique in the cloud.
    pub name: Name,
    /// What its nodes have in common; flavors ask for it.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
    /// What its nodes give out, in percent, unless they say themselves. Of several aggregates the least counts.
    #[serde(default, skip_serializing_if = "Overcommit::is_empty")]
    pub overcommit: Overcommit,
    /// Names of its nodes, the first thousand.
    pub nodes: Vec<Name>,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for Aggregate {}

const COLUMNS: &[&str] = &["name", "properties", "nodes", "id"];

/// What most operations on aggregates have in common.
const AGGREGATE: Spec = Spec {
    permission: Permission::SYSTEM_ADMIN,
    effect: Effect::Changes,
    positional: &["aggregate"],
    columns: COLUMNS,
    ..Spec::DEFAULT
};

/// Make an aggregate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAggregate {
    /// Name, unique in the cloud.
    pub name: Name,
    /// What its nodes have in common.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
    /// Virtual CPUs that its nodes give out, in percent of their CPUs, 10 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_vcpus: Option<Number<10, 10_000>>,
    /// Memory that its nodes give out, in percent, 10 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_memory: Option<Number<10, 10_000>>,
    /// Disk that its nodes give out, in percent, 10 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_disk: Option<Number<10, 10_000>>,
}
impl Operation for CreateAggregate {
    type Output = Aggregate;
    const SPEC: Spec = Spec {
        name: "aggregate.create",
        method: Method::Post,
        path: "/v1/aggregates",
        effect: Effect::Creates,
        summary: "Make a named set of nodes",
        positional: &["name"],
        examples: &[
            Example { title: "Nodes with fast disks", command: "nephos aggregate create fast --properties disk=nvme" },
            Example {
                title: "Nodes that give out no more CPUs than they have",
                command: "nephos aggregate create pinned --overcommit-vcpus 100",
            },
        ],
        ..AGGREGATE
    };
}

/// List aggregates.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListAggregates {
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<AggregateId>,
}
impl Operation for ListAggregates {
    type Output = Page<Aggregate>;
    const SPEC: Spec = Spec {
        name: "aggregate.list",
        method: Method::Get,
        path: "/v1/aggregates",
        permission: Permission::SYSTEM_READER,
        summary: "List the named sets of nodes",
        columns: COLUMNS,
        examples: &[Example { title: "All", command: "nephos aggregate list" }],
        ..Spec::DEFAULT
    };
}

/// Show an aggregate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowAggregate {
    /// Name or id.
    pub aggregate: Reference,
}
impl Operation for ShowAggregate {
    type Output = Aggregate;
    const SPEC: Spec = Spec {
        name: "aggregate.show",
        method: Method::Get,
        path: "/v1/aggregates/{aggregate}",
        permission: Permission::SYSTEM_READER,
        effect: Effect::Reads,
        summary: "Show one aggregate and its nodes",
        examples: &[Example { title: "By name", command: "nephos aggregate show fast" }],
        ..AGGREGATE
    };
}

/// Change an aggregate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateAggregate {
    /// Name or id.
    pub aggregate: Reference,
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// New properties instead of all there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<Properties>,
    /// Virtual CPUs that its nodes give out, in percent, up to 10000; 0 leaves it to the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_vcpus: Option<Number<0, 10_000>>,
    /// Memory that its nodes give out, in percent, up to 10000; 0 leaves it to the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_memory: Option<Number<0, 10_000>>,
    /// Disk that its nodes give out, in percent, up to 10000; 0 leaves it to the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_disk: Option<Number<0, 10_000>>,
}
impl Operation for UpdateAggregate {
    type Output = Aggregate;
    const SPEC: Spec = Spec {
        name: "aggregate.update",
        method: Method::Patch,
        path: "/v1/aggregates/{aggregate}",
        summary: "Change an aggregate's name, properties or overcommitment",
        description: "Servers that are placed stay where they are.",
        examples: &[Example {
            title: "Other properties",
            command: "nephos aggregate update fast --properties disk=nvme --properties net=100g",
        }],
        ..AGGREGATE
    };
}

/// Delete an aggregate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteAggregate {
    /// Name or id.
    pub aggregate: Reference,
}
impl Operation for DeleteAggregate {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "aggregate.delete",
        method: Method::Delete,
        path: "/v1/aggregates/{aggregate}",
        summary: "Delete an aggregate; its nodes stay",
        examples: &[Example { title: "By name", command: "nephos aggregate delete fast" }],
        ..AGGREGATE
    };
}

macro_rules! membership {
    ($(#[$doc:meta])* $type:ident, { $($spec:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $type {
            /// Name or id of the aggregate.
            pub aggregate: Reference,
            /// Name or id of the node.
            pub node: Reference,
        }
        impl Operation for $type {
            type Output = Aggregate;
            const SPEC: Spec = Spec { positional: &["aggregate", "node"], $($spec)* ..AGGREGATE };
        }
    };
}

membership! {
    /// Put a node into an aggregate.
    AddAggregateNode, {
        name: "aggregate.add-node",
        method: Method::Put,
        path: "/v1/aggregates/{aggregate}/nodes/{node}",
        summary: "Put a node into an aggregate",
        description: "A node is in at most 32 aggregates.",
        examples: &[Example { title: "By name", command: "nephos aggregate add-node fast rack1-a" }],
    }
}

membership! {
    /// Take a node out of an aggregate.
    RemoveAggregateNode, {
        name: "aggregate.remove-node",
        method: Method::Delete,
        path: "/v1/aggregates/{aggregate}/nodes/{node}",
        summary: "Take a node out of an aggregate",
        examples: &[Example { title: "By name", command: "nephos aggregate remove-node fast rack1-a" }],
    }
}
