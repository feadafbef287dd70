//! Operations on domains.

use nephos_types::{DomainId, Name, Number, Page, Reference, Text, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// The outermost owner of projects, users and groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Domain {
    /// Its id.
    pub id: DomainId,
    /// Its name, unique in the cloud.
    pub name: Name,
    /// Free text.
    pub description: String,
    /// Whether its people can log in, and anybody to its projects.
    pub enabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for Domain {}

const COLUMNS: &[&str] = &["name", "enabled", "description", "id"];

/// Make a domain.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDomain {
    /// Name, unique in the cloud.
    pub name: Name,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
    /// Whether it can be used; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}
impl Operation for CreateDomain {
    type Output = Domain;
    const SPEC: Spec = Spec {
        name: "domain.create",
        method: Method::Post,
        path: "/v1/domains",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Creates,
        summary: "Make a domain: an owner of projects, users and groups",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[Example { title: "For a department", command: "nephos domain create research" }],
        ..Spec::DEFAULT
    };
}

/// List domains.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListDomains {
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<DomainId>,
}
impl Operation for ListDomains {
    type Output = Page<Domain>;
    const SPEC: Spec = Spec {
        name: "domain.list",
        method: Method::Get,
        path: "/v1/domains",
        permission: Permission::LOGGED_IN,
        summary: "List the domains that you may see",
        columns: COLUMNS,
        examples: &[Example { title: "All", command: "nephos domain list" }],
        ..Spec::DEFAULT
    };
}

/// Show a domain.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowDomain {
    /// Name or id.
    pub domain: Reference,
}
impl Operation for ShowDomain {
    type Output = Domain;
    const SPEC: Spec = Spec {
        name: "domain.show",
        method: Method::Get,
        path: "/v1/domains/{domain}",
        permission: Permission::LOGGED_IN,
        summary: "Show one domain",
        positional: &["domain"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos domain show default" }],
        ..Spec::DEFAULT
    };
}

/// Change a domain.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateDomain {
    /// Name or id.
    pub domain: Reference,
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
    /// Whether it can be used; switching it off ends all tokens of its people and projects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}
impl Operation for UpdateDomain {
    type Output = Domain;
    const SPEC: Spec = Spec {
        name: "domain.update",
        method: Method::Patch,
        path: "/v1/domains/{domain}",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Rename, describe, enable or disable a domain",
        positional: &["domain"],
        columns: COLUMNS,
        examples: &[Example { title: "Switch it off", command: "nephos domain update research --enabled false" }],
        ..Spec::DEFAULT
    };
}

/// Delete a domain.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteDomain {
    /// Name or id.
    pub domain: Reference,
}
impl Operation for DeleteDomain {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "domain.delete",
        method: Method::Delete,
        path: "/v1/domains/{domain}",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Delete a disabled, empty domain",
        description: "Disable it, and delete its projects, users and groups first.",
        positional: &["domain"],
        examples: &[Example { title: "By name", command: "nephos domain delete research" }],
        ..Spec::DEFAULT
    };
}
