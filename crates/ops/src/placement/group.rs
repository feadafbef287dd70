//! Operations on server groups.

use nephos_types::{Labels, Name, Number, Page, ProjectId, Reference, ServerGroupId, ServerId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// How the servers of a group are placed with regard to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupPolicy {
    /// All on one node.
    Affinity,
    /// At most so many on one node.
    AntiAffinity,
    /// On one node where that is possible.
    SoftAffinity,
    /// On different nodes where that is possible.
    SoftAntiAffinity,
}

/// A server of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupMember {
    /// The server.
    pub server: ServerId,
    /// Its name.
    pub name: Name,
    /// The name of the node it is on, if it is on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<Name>,
    /// What stands against the group's policy; absent when nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub violation: Option<String>,
}

/// Servers that are placed with regard to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerGroup {
    /// Its id.
    pub id: ServerGroupId,
    /// Its name, unique in the project.
    pub name: Name,
    /// The project that owns it.
    pub project: ProjectId,
    /// How its servers are placed.
    pub policy: GroupPolicy,
    /// The most of its servers that one node takes, for `anti-affinity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_node: Option<u64>,
    /// Whether its servers are placed as the policy wants at this moment.
    pub satisfied: bool,
    /// How many of its servers stand against the policy.
    pub violators: u64,
    /// How many servers it has.
    pub servers: u64,
    /// Its servers.
    pub members: Vec<GroupMember>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for ServerGroup {}

const COLUMNS: &[&str] = &["name", "policy", "servers", "satisfied", "violators", "id"];

/// Make a server group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateServerGroup {
    /// Name, unique in the project.
    pub name: Name,
    /// How its servers are placed.
    pub policy: GroupPolicy,
    /// The most of its servers that one node takes, 1 to 1000; 1 when absent. For `anti-affinity` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_node: Option<Number<1, 1000>>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}
impl Operation for CreateServerGroup {
    type Output = ServerGroup;
    const SPEC: Spec = Spec {
        name: "server-group.create",
        method: Method::Post,
        path: "/v1/server-groups",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Make a group of servers that are placed with regard to each other",
        description: "Servers join a group when they are created, and stay in it. `affinity` and `anti-affinity` are kept \
            whatever happens; the soft ones are wishes.",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[
            Example {
                title: "No two of them on one machine",
                command: "nephos server-group create databases --policy anti-affinity",
            },
            Example { title: "All on one machine", command: "nephos server-group create cluster --policy affinity" },
        ],
        ..Spec::DEFAULT
    };
}

/// List server groups.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListServerGroups {
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ServerGroupId>,
}
impl Operation for ListServerGroups {
    type Output = Page<ServerGroup>;
    const SPEC: Spec = Spec {
        name: "server-group.list",
        method: Method::Get,
        path: "/v1/server-groups",
        permission: Permission::PROJECT_READER,
        summary: "List server groups, and whether they are placed as wanted",
        columns: COLUMNS,
        examples: &[Example { title: "Those of the project", command: "nephos server-group list" }],
        ..Spec::DEFAULT
    };
}

/// Show a server group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowServerGroup {
    /// Name or id.
    pub server_group: Reference,
}
impl Operation for ShowServerGroup {
    type Output = ServerGroup;
    const SPEC: Spec = Spec {
        name: "server-group.show",
        method: Method::Get,
        path: "/v1/server-groups/{server_group}",
        permission: Permission::PROJECT_READER,
        summary: "Show one server group, its servers, and who stands against its policy",
        positional: &["server_group"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos server-group show databases" }],
        ..Spec::DEFAULT
    };
}

/// Delete a server group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteServerGroup {
    /// Name or id.
    pub server_group: Reference,
}
impl Operation for DeleteServerGroup {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "server-group.delete",
        method: Method::Delete,
        path: "/v1/server-groups/{server_group}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Delete a server group",
        description: "Refused while servers are in it.",
        positional: &["server_group"],
        examples: &[Example { title: "By name", command: "nephos server-group delete databases" }],
        ..Spec::DEFAULT
    };
}
