//! Operations on groups.

use nephos_types::{DomainId, GroupId, MembershipId, Name, Number, Page, Reference, Text, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    identity::User,
    operation::{Effect, Example, Grant, Method, Operation, Permission, Role, Spec},
};

/// Users who are given roles together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// Its name, unique in its domain.
    pub name: Name,
    /// The domain that owns it.
    pub domain: DomainId,
    /// Free text.
    pub description: String,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for Group {}

const COLUMNS: &[&str] = &["name", "description", "domain", "id"];

/// Make a group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// Name, unique in the domain.
    pub name: Name,
    /// Name or id of the domain; that of the token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
}
impl Operation for CreateGroup {
    type Output = Group;
    const SPEC: Spec = Spec {
        name: "group.create",
        method: Method::Post,
        path: "/v1/groups",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Creates,
        summary: "Make a group of users",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[Example { title: "In the default domain", command: "nephos group create developers" }],
        ..Spec::DEFAULT
    };
}

/// List groups.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListGroups {
    /// Only those of this domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
    /// Only those of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Only those that this user is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Reference>,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<GroupId>,
}
impl Operation for ListGroups {
    type Output = Page<Group>;
    const SPEC: Spec = Spec {
        name: "group.list",
        method: Method::Get,
        path: "/v1/groups",
        permission: Permission(&[Grant::System(Role::Reader), Grant::Domain(Role::Reader)]),
        summary: "List groups",
        columns: COLUMNS,
        examples: &[Example { title: "All", command: "nephos group list" }],
        ..Spec::DEFAULT
    };
}

/// Show a group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowGroup {
    /// Name or id.
    pub group: Reference,
}
impl Operation for ShowGroup {
    type Output = Group;
    const SPEC: Spec = Spec {
        name: "group.show",
        method: Method::Get,
        path: "/v1/groups/{group}",
        permission: Permission(&[Grant::System(Role::Reader), Grant::Domain(Role::Reader)]),
        summary: "Show one group",
        positional: &["group"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos group show developers" }],
        ..Spec::DEFAULT
    };
}

/// Change a group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateGroup {
    /// Name or id.
    pub group: Reference,
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
}
impl Operation for UpdateGroup {
    type Output = Group;
    const SPEC: Spec = Spec {
        name: "group.update",
        method: Method::Patch,
        path: "/v1/groups/{group}",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Rename or describe a group",
        positional: &["group"],
        columns: COLUMNS,
        examples: &[Example { title: "Rename", command: "nephos group update developers --name engineers" }],
        ..Spec::DEFAULT
    };
}

/// Delete a group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteGroup {
    /// Name or id.
    pub group: Reference,
}
impl Operation for DeleteGroup {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "group.delete",
        method: Method::Delete,
        path: "/v1/groups/{group}",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Delete a group; its roles go with it",
        positional: &["group"],
        examples: &[Example { title: "By name", command: "nephos group delete developers" }],
        ..Spec::DEFAULT
    };
}

/// Put a user into a group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddGroupUser {
    /// Name or id.
    pub group: Reference,
    /// Name or id of the user.
    pub user: Reference,
}
impl Operation for AddGroupUser {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "group.add-user",
        method: Method::Put,
        path: "/v1/groups/{group}/users/{user}",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Put a user into a group",
        positional: &["group", "user"],
        examples: &[Example { title: "By name", command: "nephos group add-user developers alice" }],
        ..Spec::DEFAULT
    };
}

/// Take a user out of a group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveGroupUser {
    /// Name or id.
    pub group: Reference,
    /// Name or id of the user.
    pub user: Reference,
}
impl Operation for RemoveGroupUser {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "group.remove-user",
        method: Method::Delete,
        path: "/v1/groups/{group}/users/{user}",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Take a user out of a group",
        positional: &["group", "user"],
        examples: &[Example { title: "By name", command: "nephos group remove-user developers alice" }],
        ..Spec::DEFAULT
    };
}

/// List the users of a group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListGroupUsers {
    /// Name or id.
    pub group: Reference,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this place: `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<MembershipId>,
}
impl Operation for ListGroupUsers {
    type Output = Page<User>;
    const SPEC: Spec = Spec {
        name: "group.users",
        method: Method::Get,
        path: "/v1/groups/{group}/users",
        permission: Permission(&[Grant::System(Role::Reader), Grant::Domain(Role::Reader)]),
        summary: "List the users of a group",
        positional: &["group"],
        columns: &["name", "enabled", "email", "domain", "id"],
        examples: &[Example { title: "By name", command: "nephos group users developers" }],
        ..Spec::DEFAULT
    };
}
