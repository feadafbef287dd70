//! Operations on roles.

use nephos_types::{List, Name, Number, Page, Reference, RoleId, Text, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// A named set of permissions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Role {
    /// Its id.
    pub id: RoleId,
    /// Its name, unique in the cloud.
    pub name: Name,
    /// Free text.
    pub description: String,
    /// Names of the roles that whoever has this one has too, directly.
    pub implies: Vec<Name>,
    /// Part of the cloud: neither changed nor deleted.
    pub built_in: bool,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for Role {}

const COLUMNS: &[&str] = &["name", "implies", "built_in", "description", "id"];

/// Make a role.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRole {
    /// Name, unique in the cloud.
    pub name: Name,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
    /// Names or ids of roles that whoever has this one has too.
    #[serde(default)]
    pub implies: List<Reference, 32>,
}
impl Operation for CreateRole {
    type Output = Role;
    const SPEC: Spec = Spec {
        name: "role.create",
        method: Method::Post,
        path: "/v1/roles",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Creates,
        summary: "Make a role of your own, for use in the policy file",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[Example { title: "One that may also look", command: "nephos role create auditor" }],
        ..Spec::DEFAULT
    };
}

/// List roles.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRoles {
    /// Only the one of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<RoleId>,
}
impl Operation for ListRoles {
    type Output = Page<Role>;
    const SPEC: Spec = Spec {
        name: "role.list",
        method: Method::Get,
        path: "/v1/roles",
        permission: Permission::LOGGED_IN,
        summary: "List roles",
        columns: COLUMNS,
        examples: &[Example { title: "All", command: "nephos role list" }],
        ..Spec::DEFAULT
    };
}

/// Show a role.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowRole {
    /// Name or id.
    pub role: Reference,
}
impl Operation for ShowRole {
    type Output = Role;
    const SPEC: Spec = Spec {
        name: "role.show",
        method: Method::Get,
        path: "/v1/roles/{role}",
        permission: Permission::LOGGED_IN,
        summary: "Show one role",
        positional: &["role"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos role show member" }],
        ..Spec::DEFAULT
    };
}

/// Change a role.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateRole {
    /// Name or id.
    pub role: Reference,
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
    /// Names or ids of roles that it implies, instead of those there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub implies: Option<List<Reference, 32>>,
}
impl Operation for UpdateRole {
    type Output = Role;
    const SPEC: Spec = Spec {
        name: "role.update",
        method: Method::Patch,
        path: "/v1/roles/{role}",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Rename or describe a role, or change what it implies",
        positional: &["role"],
        columns: COLUMNS,
        examples: &[Example {
            title: "Describe",
            command: "nephos role update auditor --description \"May read the audit trail\"",
        }],
        ..Spec::DEFAULT
    };
}

/// Delete a role.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteRole {
    /// Name or id.
    pub role: Reference,
}
impl Operation for DeleteRole {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "role.delete",
        method: Method::Delete,
        path: "/v1/roles/{role}",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Delete a role that nobody has",
        positional: &["role"],
        examples: &[Example { title: "By name", command: "nephos role delete auditor" }],
        ..Spec::DEFAULT
    };
}
