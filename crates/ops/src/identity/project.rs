//! Operations on projects.

use nephos_types::{DomainId, Labels, Name, Number, Page, ProjectId, Reference, Text, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Grant, Method, Operation, Permission, Role, Spec},
};

/// What owns resources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its name, unique in its domain.
    pub name: Name,
    /// The domain that owns it.
    pub domain: DomainId,
    /// The project above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ProjectId>,
    /// Free text.
    pub description: String,
    /// Whether anybody can log in to it.
    pub enabled: bool,
    /// Labels.
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for Project {}

const COLUMNS: &[&str] = &["name", "enabled", "description", "domain", "id"];

/// Make a project.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateProject {
    /// Name, unique in the domain.
    pub name: Name,
    /// Name or id of the domain; that of the token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
    /// Name or id of the project above it, in the same domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Reference>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
    /// Whether it can be used; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}
impl Operation for CreateProject {
    type Output = Project;
    const SPEC: Spec = Spec {
        name: "project.create",
        method: Method::Post,
        path: "/v1/projects",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Creates,
        summary: "Make a project: an owner of resources",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[Example { title: "In the default domain", command: "nephos project create shop" }],
        ..Spec::DEFAULT
    };
}

/// List projects.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListProjects {
    /// Only those of this domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
    /// Only those directly below this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Reference>,
    /// Only those of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Only those that are enabled, or disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Only those that you can log in to.
    #[serde(default)]
    pub mine: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ProjectId>,
}
impl Operation for ListProjects {
    type Output = Page<Project>;
    const SPEC: Spec = Spec {
        name: "project.list",
        method: Method::Get,
        path: "/v1/projects",
        permission: Permission::LOGGED_IN,
        summary: "List the projects that you may see",
        description: "All with a token for the system, or the role admin; those of the domain with a token for a domain; else those you have a role on.",
        columns: COLUMNS,
        examples: &[Example { title: "All you can log in to", command: "nephos project list --mine" }],
        ..Spec::DEFAULT
    };
}

/// Show a project.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowProject {
    /// Name or id.
    pub project: Reference,
    /// Name or id of the domain in which to look for the name; that of the token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
}
impl Operation for ShowProject {
    type Output = Project;
    const SPEC: Spec = Spec {
        name: "project.show",
        method: Method::Get,
        path: "/v1/projects/{project}",
        permission: Permission::LOGGED_IN,
        summary: "Show one project",
        positional: &["project"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos project show demo" }],
        ..Spec::DEFAULT
    };
}

/// Change a project.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateProject {
    /// Name or id.
    pub project: Reference,
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
    /// Whether anybody can log in to it; switching it off ends its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// New labels instead of all there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}
impl Operation for UpdateProject {
    type Output = Project;
    const SPEC: Spec = Spec {
        name: "project.update",
        method: Method::Patch,
        path: "/v1/projects/{project}",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Rename, describe, label, enable or disable a project",
        positional: &["project"],
        columns: COLUMNS,
        examples: &[Example { title: "Rename", command: "nephos project update shop --name store" }],
        ..Spec::DEFAULT
    };
}

/// Delete a project.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteProject {
    /// Name or id.
    pub project: Reference,
}
impl Operation for DeleteProject {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "project.delete",
        method: Method::Delete,
        path: "/v1/projects/{project}",
        permission: Permission(&[Grant::System(Role::Admin), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Delete an empty project",
        description: "Its resources and the projects below it have to be deleted first. Roles on it and credentials for it go with it.",
        positional: &["project"],
        examples: &[Example { title: "By name", command: "nephos project delete shop" }],
        ..Spec::DEFAULT
    };
}
