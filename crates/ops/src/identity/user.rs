//! Operations on users.

use nephos_types::{DomainId, Name, Number, Page, ProjectId, Reference, Secret, Text, Timestamp, UserId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Grant, Method, Operation, Permission, Role, Spec},
};

/// Somebody, or some program, that can log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Its name, unique in its domain.
    pub name: Name,
    /// The domain that owns it.
    pub domain: DomainId,
    /// Free text.
    pub description: String,
    /// An address for people to write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Whether it can log in.
    pub enabled: bool,
    /// Where a login without a scope leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_project: Option<ProjectId>,
    /// Whether it can log in with a password.
    pub has_password: bool,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for User {}

const COLUMNS: &[&str] = &["name", "enabled", "email", "domain", "id"];

/// Make a user.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// Name, unique in the domain.
    pub name: Name,
    /// Name or id of the domain; that of the token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
    /// The first password; without one, only other credentials can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// An address for people to write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<Text<254>>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
    /// Whether it can be used; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Name or id of the project to which a login without a scope leads; gives no role on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_project: Option<Reference>,
}
impl Operation for CreateUser {
    type Output = User;
    const SPEC: Spec = Spec {
        name: "user.create",
        method: Method::Post,
        path: "/v1/users",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Creates,
        summary: "Make a user",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[Example { title: "With a password", command: "nephos user create alice --password $PASSWORD" }],
        ..Spec::DEFAULT
    };
}

/// List users.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListUsers {
    /// Only those of this domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
    /// Only those of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Only those that are enabled, or disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<UserId>,
}
impl Operation for ListUsers {
    type Output = Page<User>;
    const SPEC: Spec = Spec {
        name: "user.list",
        method: Method::Get,
        path: "/v1/users",
        permission: Permission(&[Grant::System(Role::Reader), Grant::Domain(Role::Reader)]),
        summary: "List users",
        columns: COLUMNS,
        examples: &[Example { title: "All", command: "nephos user list" }],
        ..Spec::DEFAULT
    };
}

/// Show a user.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowUser {
    /// Name or id.
    pub user: Reference,
    /// Name or id of the domain in which to look for the name; that of the token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
}
impl Operation for ShowUser {
    type Output = User;
    const SPEC: Spec = Spec {
        name: "user.show",
        method: Method::Get,
        path: "/v1/users/{user}",
        permission: Permission::LOGGED_IN,
        summary: "Show a user: yourself, or those you manage",
        positional: &["user"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos user show alice" }],
        ..Spec::DEFAULT
    };
}

/// Change a user.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateUser {
    /// Name or id.
    pub user: Reference,
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// An address for people to write to; empty removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<Text<254>>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
    /// Whether it can log in; switching it off ends all its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Name or id of the project to which a login without a scope leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_project: Option<Reference>,
}
impl Operation for UpdateUser {
    type Output = User;
    const SPEC: Spec = Spec {
        name: "user.update",
        method: Method::Patch,
        path: "/v1/users/{user}",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Rename, describe, enable or disable a user",
        positional: &["user"],
        columns: COLUMNS,
        examples: &[Example { title: "Switch it off", command: "nephos user update alice --enabled false" }],
        ..Spec::DEFAULT
    };
}

/// Delete a user.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteUser {
    /// Name or id.
    pub user: Reference,
}
impl Operation for DeleteUser {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "user.delete",
        method: Method::Delete,
        path: "/v1/users/{user}",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Delete a user",
        description: "Its tokens, roles, memberships and credentials end with it; what it made stays with the projects.",
        positional: &["user"],
        examples: &[Example { title: "By name", command: "nephos user delete alice" }],
        ..Spec::DEFAULT
    };
}

/// Change one's own password.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPassword {
    /// The password until now.
    pub original_password: Secret,
    /// The new password.
    pub password: Secret,
}
impl Operation for SetPassword {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "user.set-password",
        method: Method::Post,
        path: "/v1/users/set-password",
        permission: Permission::LOGGED_IN,
        effect: Effect::Changes,
        summary: "Change your own password; ends all your tokens",
        examples: &[Example {
            title: "From variables",
            command: "nephos user set-password --original-password $OLD --password $NEW",
        }],
        ..Spec::DEFAULT
    };
}

/// Give a user a new password.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetPassword {
    /// Name or id.
    pub user: Reference,
    /// The new password.
    pub password: Secret,
}
impl Operation for ResetPassword {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "user.reset-password",
        method: Method::Post,
        path: "/v1/users/{user}/reset-password",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Give a user a new password; ends all its tokens",
        positional: &["user"],
        examples: &[Example {
            title: "From a variable",
            command: "nephos user reset-password alice --password $PASSWORD",
        }],
        ..Spec::DEFAULT
    };
}
