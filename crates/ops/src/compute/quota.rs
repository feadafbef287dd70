//! Operations on quotas: how much of the cloud a project may use.

use nephos_types::{DomainId, Number, ProjectId, Reference};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Grant, Method, Operation, Permission, Role, Spec},
};

/// One limited thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Allowance {
    /// The most that the project may use.
    pub limit: u64,
    /// What it uses now.
    pub used: u64,
}

/// A project's limits and use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quota {
    /// The project.
    pub project: ProjectId,
    /// Servers.
    pub servers: Allowance,
    /// Virtual CPUs of all servers.
    pub vcpus: Allowance,
    /// Memory of all servers, in MiB.
    pub memory_mib: Allowance,
    /// Images; this limit is the same for all projects.
    pub images: Allowance,
    /// Bytes of all images, in MiB; this limit is the same for all projects.
    pub image_mib: Allowance,
    /// Schedules; this limit is the same for all projects.
    pub schedules: Allowance,
    /// Key pairs of whoever asks, which belong to no project; this limit is the same for all users.
    pub keypairs: Allowance,
}
impl View for Quota {}

/// Show a project's quota.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowQuota {
    /// Name or id; the project logged in to when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Reference>,
}
impl Operation for ShowQuota {
    type Output = Quota;
    const SPEC: Spec = Spec {
        name: "quota.show",
        method: Method::Get,
        path: "/v1/quota",
        permission: Permission::PROJECT_READER,
        summary: "Show what a project may use and uses",
        description: "Servers, CPUs and memory are changed with `quota update`; the other limits are fixed.",
        positional: &["project"],
        examples: &[Example { title: "Of the project logged in to", command: "nephos quota show" }],
        ..Spec::DEFAULT
    };
}

/// Change a project's quota.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateQuota {
    /// Name or id.
    pub project: Reference,
    /// Servers, at most 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<Number<0, 1_000_000>>,
    /// Virtual CPUs of all servers, at most 10000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<Number<0, 10_000_000>>,
    /// Memory of all servers in MiB, at most 10000000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<Number<0, 10_000_000_000>>,
}
impl Operation for UpdateQuota {
    type Output = Quota;
    const SPEC: Spec = Spec {
        name: "quota.update",
        method: Method::Patch,
        path: "/v1/quotas/{project}",
        permission: Permission(&[Grant::System(Role::Manager), Grant::Domain(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Change what a project may use",
        description: "A limit below what is used now refuses more, and takes nothing away.",
        positional: &["project"],
        examples: &[Example {
            title: "Room for fifty servers",
            command: "nephos quota update demo --servers 50 --vcpus 100 --memory-mib 204800",
        }],
        ..Spec::DEFAULT
    };
}

/// A limit that may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainAllowance {
    /// The most that the domain's projects may use in sum; absent for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// What they use now.
    pub used: u64,
}

/// A domain's limits and use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainQuota {
    /// The domain.
    pub domain: DomainId,
    /// Servers.
    pub servers: DomainAllowance,
    /// Virtual CPUs of all servers.
    pub vcpus: DomainAllowance,
    /// Memory of all servers, in MiB.
    pub memory_mib: DomainAllowance,
}
impl View for DomainQuota {}

/// Show a domain's quota.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowDomainQuota {
    /// Name or id.
    pub domain: Reference,
}
impl Operation for ShowDomainQuota {
    type Output = DomainQuota;
    const SPEC: Spec = Spec {
        name: "quota.show-domain",
        method: Method::Get,
        path: "/v1/domain-quotas/{domain}",
        permission: Permission(&[Grant::System(Role::Reader), Grant::Domain(Role::Reader)]),
        summary: "Show what the projects of a domain may use and use in sum",
        positional: &["domain"],
        examples: &[Example { title: "By name", command: "nephos quota show-domain default" }],
        ..Spec::DEFAULT
    };
}

/// Change a domain's quota.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateDomainQuota {
    /// Name or id.
    pub domain: Reference,
    /// Servers, at most 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<Number<0, 1_000_000>>,
    /// Virtual CPUs of all servers, at most 10000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<Number<0, 10_000_000>>,
    /// Memory of all servers in MiB, at most 10000000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<Number<0, 10_000_000_000>>,
    /// Take all limits away that are not given along with it.
    #[serde(default)]
    pub unlimited: bool,
}
impl Operation for UpdateDomainQuota {
    type Output = DomainQuota;
    const SPEC: Spec = Spec {
        name: "quota.update-domain",
        method: Method::Patch,
        path: "/v1/domain-quotas/{domain}",
        permission: Permission(&[Grant::System(Role::Manager)]),
        effect: Effect::Changes,
        summary: "Change what the projects of a domain may use in sum",
        description: "Beside the quotas of its projects, which may be more in sum. A limit below what is used now refuses \
            more, and takes nothing away.",
        positional: &["domain"],
        examples: &[
            Example {
                title: "A hundred servers in all",
                command: "nephos quota update-domain default --servers 100 --vcpus 400",
            },
            Example { title: "No limits any more", command: "nephos quota update-domain default --unlimited" },
        ],
        ..Spec::DEFAULT
    };
}
