//! Operations on nodes and how they join.

mod hardware;

use std::collections::BTreeSet;

use nephos_types::{JoinTokenId, Labels, Name, NodeId, Number, Page, Reference, Secret, Text, Timestamp, WorkflowId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::{Started, View},
    operation::{Effect, Example, Method, Operation, Permission, Spec},
    placement::Overcommit,
};
pub use hardware::{NodeCondition, NodeDevice, NodeDisk, NodeHardware, NodeInterface, NodeNuma};

/// Whether a node is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It reports.
    Up,
    /// It has been silent for longer than it may.
    Down,
    /// It has joined, and has not said anything yet.
    Unknown,
}

/// Something that can run servers on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeDriver {
    /// Its name: `qemu`, `container`, `simulated`.
    pub name: String,
    /// Version of the engine behind it.
    pub version: String,
    /// Image formats that it boots.
    pub formats: Vec<String>,
    /// What else it can do: `pause`, `suspend`, `snapshot`, `rescue`, `ask`, …
    pub features: Vec<String>,
}

/// Something that could run servers on a node, and does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeMissingDriver {
    /// Its name: `qemu`, `container`.
    pub name: String,
    /// What is missing.
    pub reason: String,
}

/// A machine that runs an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name, unique in the cloud.
    pub name: Name,
    /// Whether it is heard of.
    pub state: NodeState,
    /// Since when it is in that state.
    pub state_since: Timestamp,
    /// Whether new servers are placed on it.
    pub enabled: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
    /// The workflow that moves its servers elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<WorkflowId>,
    /// The availability zone that it belongs to.
    pub zone: Name,
    /// Names of the aggregates that it is in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aggregates: Vec<Name>,
    /// What it is and has, by detection and by an administrator's word.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub traits: BTreeSet<String>,
    /// What it gives out, in percent of what it has, if it does not leave that to its aggregates and the cloud.
    #[serde(default, skip_serializing_if = "Overcommit::is_empty")]
    pub overcommit: Overcommit,
    /// Where its agent calls from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Version of its agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Whether its agent is the same program as the control plane that answers; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_current: Option<bool>,
    /// Host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// CPU architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// CPU model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// What runs its servers, if they need nothing else: `qemu`, `simulated`, with version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// All that can run servers on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drivers: Vec<NodeDriver>,
    /// What could run servers on it, if the machine let it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_drivers: Vec<NodeMissingDriver>,
    /// How guests' instructions are executed: `kvm`, or `tcg` and why not better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// What somebody should look at; empty when all is well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<NodeCondition>,
    /// What it is made of; only where one node is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<NodeHardware>,
    /// Logical CPUs of the machine.
    pub cpus: u32,
    /// Virtual CPUs that servers may have in sum.
    pub vcpus: u64,
    /// Virtual CPUs that servers have.
    pub vcpus_used: u64,
    /// Memory for servers in MiB.
    pub memory_mib: u64,
    /// Memory that servers have, in MiB.
    pub memory_mib_used: u64,
    /// Disk for servers in GiB.
    pub disk_gib: u64,
    /// Disk that servers have, in GiB.
    pub disk_gib_used: u64,
    /// Servers on it.
    pub servers: u64,
    /// When its certificate expires; its agent renews it long before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires_at: Option<Timestamp>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it joined.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
impl View for Node {}

const COLUMNS: &[&str] =
    &["name", "state", "enabled", "servers", "vcpus_used", "vcpus", "memory_mib_used", "memory_mib", "driver", "id"];

/// List nodes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListNodes {
    /// Only nodes in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NodeState>,
    /// Only those with all these labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<NodeId>,
}
impl Operation for ListNodes {
    type Output = Page<Node>;
    const SPEC: Spec = Spec {
        name: "node.list",
        method: Method::Get,
        path: "/v1/nodes",
        permission: Permission::SYSTEM_READER,
        summary: "List the machines of the cloud",
        columns: COLUMNS,
        examples: &[
            Example { title: "All nodes", command: "nephos node list" },
            Example { title: "Those that are not heard of", command: "nephos node list --state down" },
        ],
        ..Spec::DEFAULT
    };
}

/// Show a node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowNode {
    /// Name or id.
    pub node: Reference,
}
impl Operation for ShowNode {
    type Output = Node;
    const SPEC: Spec = Spec {
        name: "node.show",
        method: Method::Get,
        path: "/v1/nodes/{node}",
        permission: Permission::SYSTEM_READER,
        summary: "Show one machine of the cloud",
        positional: &["node"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos node show rack1-a" }],
        ..Spec::DEFAULT
    };
}

/// Enable, disable, rename or label a node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateNode {
    /// Name or id.
    pub node: Reference,
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Whether new servers are placed on it. What runs on it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Why it is disabled; only together with `enabled` false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<255>>,
    /// New labels instead of all there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}
impl Operation for UpdateNode {
    type Output = Node;
    const SPEC: Spec = Spec {
        name: "node.update",
        method: Method::Patch,
        path: "/v1/nodes/{node}",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Enable, disable, rename or label a machine of the cloud",
        positional: &["node"],
        columns: COLUMNS,
        examples: &[Example {
            title: "Place nothing more on it",
            command: "nephos node update rack1-a --enabled false --reason \"new fans\"",
        }],
        ..Spec::DEFAULT
    };
}

/// Remove a node from the cloud.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteNode {
    /// Name or id.
    pub node: Reference,
    /// Remove it although servers are on it; only when it is not up. The servers stay known as being on no node that
    /// is heard of, and can be deleted.
    #[serde(default)]
    pub force: bool,
}
impl Operation for DeleteNode {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "node.delete",
        method: Method::Delete,
        path: "/v1/nodes/{node}",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Remove a machine from the cloud",
        description: "Its certificate is refused from then on. Refused while servers are on it.",
        positional: &["node"],
        examples: &[Example { title: "A machine that burnt down", command: "nephos node delete rack1-a --force" }],
        ..Spec::DEFAULT
    };
}

/// What makes a machine join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinToken {
    /// The token's id.
    pub id: JoinTokenId,
    /// What to run on the machine that is to join.
    pub command: String,
    /// The token itself, with the fingerprint of the cloud's certificate authority; not shown again.
    pub token: Secret,
    /// Until when it can be used, once.
    pub expires_at: Timestamp,
}
impl View for JoinToken {}

/// Allow one machine to join.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJoinToken {
    /// `HOST:PORT` by which the machine reaches the control plane, if not by the address that is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Text<255>>,
    /// For how many seconds the token can be used, up to a week; an hour when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<Number<1, 604_800>>,
}
impl Operation for CreateJoinToken {
    type Output = JoinToken;
    const SPEC: Spec = Spec {
        name: "node.join-token",
        method: Method::Post,
        path: "/v1/nodes/join-token",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Creates,
        summary: "Allow one machine to join, and print the command to run there",
        description: "The token is good for one machine and is shown this once.",
        columns: &["command", "expires_at"],
        examples: &[Example { title: "For the next hour", command: "nephos node join-token" }],
        ..Spec::DEFAULT
    };
}

/// Make a node's agent the program that the control plane is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeNode {
    /// Name or id.
    pub node: Reference,
}
impl Operation for UpgradeNode {
    type Output = Started<Node>;
    const SPEC: Spec = Spec {
        name: "node.upgrade",
        method: Method::Post,
        path: "/v1/nodes/{node}/upgrade",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Make a node's agent the same program as the control plane",
        description: "The agent fetches the program, tries whether it would work there, replaces its own file and goes on as \
                      the new one. Servers go on running. If the program does not work there, the agent stays what it is.",
        positional: &["node"],
        columns: COLUMNS,
        examples: &[Example { title: "After the control plane was upgraded", command: "nephos node upgrade rack1-a" }],
        ..Spec::DEFAULT
    };
}
