//! Operations on assignments: who has which role on what.

use nephos_types::{
    AssignmentId, DomainId, GroupId, Name, Number, Page, ProjectId, Reference, RoleId, Timestamp, UserId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Grant, Method, Operation, Permission, Role, Spec},
};

/// Who has a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "id", rename_all = "snake_case")]
pub enum Actor {
    /// A user.
    User(UserId),
    /// All users of a group.
    Group(GroupId),
}

/// What a role is held on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "id", rename_all = "snake_case")]
pub enum Target {
    /// A project.
    Project(ProjectId),
    /// A domain.
    Domain(DomainId),
    /// The cloud as a whole.
    System,
}

/// A role that somebody has on something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Assignment {
    /// Its id.
    pub id: AssignmentId,
    /// The role.
    pub role: RoleId,
    /// The role's name.
    pub role_name: Name,
    /// Who has it.
    pub actor: Actor,
    /// Name of that user or group.
    pub actor_name: Name,
    /// What it is held on.
    pub target: Target,
    /// Name of that project or domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_name: Option<Name>,
    /// Holds on the projects below the target, and not on the target itself.
    pub inherited: bool,
    /// When it was given.
    pub created_at: Timestamp,
}
impl View for Assignment {}

const COLUMNS: &[&str] = &["role_name", "actor_name", "target_name", "inherited", "id"];

/// Give a role.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAssignment {
    /// Name or id of the role.
    pub role: Reference,
    /// Name or id of the user who gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Reference>,
    /// Name or id of the group that gets it, instead of a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Reference>,
    /// Name or id of the domain in which to look for the user or group; that of the token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_domain: Option<Reference>,
    /// Name or id of the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Reference>,
    /// Name or id of the domain in which to look for the project; that of the token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_domain: Option<Reference>,
    /// Name or id of the domain, instead of a project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
    /// On the cloud as a whole, instead of a project.
    #[serde(default)]
    pub system: bool,
    /// On the projects below the target, and not on the target itself.
    #[serde(default)]
    pub inherited: bool,
}
impl Operation for CreateAssignment {
    type Output = Assignment;
    const SPEC: Spec = Spec {
        name: "assignment.create",
        method: Method::Post,
        path: "/v1/assignments",
        permission: Permission(&[
            Grant::System(Role::Admin),
            Grant::Domain(Role::Manager),
            Grant::Project(Role::Manager),
        ]),
        effect: Effect::Changes,
        summary: "Give a user or group a role on a project, a domain or the system",
        description: "Managers give only roles that they have, within their domain or project. Giving a role again changes nothing.",
        positional: &["role"],
        columns: COLUMNS,
        examples: &[Example {
            title: "On a project",
            command: "nephos assignment create member --user alice --project demo",
        }],
        ..Spec::DEFAULT
    };
}

/// List assignments.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListAssignments {
    /// Only of this role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Reference>,
    /// Only of this user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Reference>,
    /// Only of this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Reference>,
    /// Only on this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Reference>,
    /// Only on this domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
    /// Only on the cloud as a whole.
    #[serde(default)]
    pub system: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<AssignmentId>,
}
impl Operation for ListAssignments {
    type Output = Page<Assignment>;
    const SPEC: Spec = Spec {
        name: "assignment.list",
        method: Method::Get,
        path: "/v1/assignments",
        permission: Permission::LOGGED_IN,
        summary: "List who has which role on what",
        description: "All with a token for the system, or the role admin; those of the domain or project with the role reader there; one's own always.",
        columns: COLUMNS,
        examples: &[Example { title: "On a project", command: "nephos assignment list --project demo" }],
        ..Spec::DEFAULT
    };
}

/// Take a role away.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteAssignment {
    /// Id of the assignment.
    pub assignment: AssignmentId,
}
impl Operation for DeleteAssignment {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "assignment.delete",
        method: Method::Delete,
        path: "/v1/assignments/{assignment}",
        permission: Permission(&[
            Grant::System(Role::Admin),
            Grant::Domain(Role::Manager),
            Grant::Project(Role::Manager),
        ]),
        effect: Effect::Changes,
        summary: "Take a role away; works at once",
        positional: &["assignment"],
        examples: &[Example { title: "By id", command: "nephos assignment delete asg-01hzx3k7q9m2c" }],
        ..Spec::DEFAULT
    };
}
