//! Operations that take nodes out of service and bring servers elsewhere.

use nephos_types::{Name, NodeId, ProjectId, Reference, ServerId, Text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::{Started, View},
    compute::Server,
    node::Node,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

const NODE_COLUMNS: &[&str] = &["name", "state", "enabled", "disabled_reason", "servers", "draining", "id"];

/// What the operations on one node have in common.
const NODE: Spec = Spec {
    method: Method::Post,
    permission: Permission::SYSTEM_ADMIN,
    effect: Effect::Changes,
    positional: &["node"],
    columns: NODE_COLUMNS,
    ..Spec::DEFAULT
};

/// Place nothing more on a node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CordonNode {
    /// Name or id.
    pub node: Reference,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<255>>,
}
impl Operation for CordonNode {
    type Output = Node;
    const SPEC: Spec = Spec {
        name: "node.cordon",
        path: "/v1/nodes/{node}/cordon",
        summary: "Place nothing more on a node; what runs there stays",
        examples: &[Example { title: "With a reason", command: "nephos node cordon rack1-a --reason \"new fans\"" }],
        ..NODE
    };
}

/// Take a node into service again.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UncordonNode {
    /// Name or id.
    pub node: Reference,
}
impl Operation for UncordonNode {
    type Output = Node;
    const SPEC: Spec = Spec {
        name: "node.uncordon",
        path: "/v1/nodes/{node}/uncordon",
        summary: "Take a node into service again",
        description: "Refused while it is being drained: cancel that first.",
        examples: &[Example { title: "By name", command: "nephos node uncordon rack1-a" }],
        ..NODE
    };
}

/// Empty a node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainNode {
    /// Name or id.
    pub node: Reference,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<255>>,
}
impl Operation for DrainNode {
    type Output = Started<Node>;
    const SPEC: Spec = Spec {
        name: "node.drain",
        path: "/v1/nodes/{node}/drain",
        summary: "Place nothing more on a node and move its servers to others",
        description: "Each server is stopped, its disk copied, and started again where there is room; servers that were \
            stopped stay so. A server that cannot be moved stays where it is, and the workflow's error says which and why. \
            The node stays out of service until `node uncordon`, also when the workflow is cancelled.",
        examples: &[Example { title: "Before new fans", command: "nephos node drain rack1-a --reason \"new fans\"" }],
        ..NODE
    };
}

/// A server of a node, and where it would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// The server.
    pub server: ServerId,
    /// Its name.
    pub name: Name,
    /// Its project.
    pub project: ProjectId,
    /// The name of the node that would take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<Name>,
    /// Why none would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What would become of a node's servers without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeLoss {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// How many servers are on it.
    pub servers: u64,
    /// How many of them would find a place.
    pub placed: u64,
    /// How many would not.
    pub unplaced: u64,
    /// Each of them, those without a place first; at most a thousand.
    pub losses: Vec<Loss>,
}
impl View for NodeLoss {}

/// Ask what would become of a node's servers without it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoseNode {
    /// Name or id.
    pub node: Reference,
}
impl Operation for LoseNode {
    type Output = NodeLoss;
    const SPEC: Spec = Spec {
        name: "node.what-if-lost",
        method: Method::Get,
        path: "/v1/nodes/{node}/what-if-lost",
        permission: Permission::SYSTEM_READER,
        effect: Effect::Reads,
        summary: "Show which of a node's servers would find a place elsewhere if it died, and which not",
        description: "Nothing is changed, and nothing is kept free for it. The largest servers are placed first.",
        columns: &[],
        examples: &[Example { title: "By name", command: "nephos node what-if-lost rack1-a" }],
        ..NODE
    };
}

/// Move a server to another node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveServer {
    /// Name or id.
    pub server: Reference,
    /// Name or id of the node; the best one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
}
impl Operation for MoveServer {
    type Output = Started<Server>;
    const SPEC: Spec = Spec {
        name: "server.move",
        method: Method::Post,
        path: "/v1/servers/{server}/move",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Move a server to another node",
        description: "Room is claimed there first. The server is stopped, its disk copied as an image, and it is started \
            there again; a stopped one stays so. Until its disk is on its way to the new node it can turn back.",
        positional: &["server"],
        columns: &["name", "state", "task", "node_name", "id"],
        examples: &[
            Example { title: "Wherever there is room", command: "nephos server move web-1" },
            Example { title: "To one node", command: "nephos server move web-1 --node rack1-b" },
        ],
        ..Spec::DEFAULT
    };
}
