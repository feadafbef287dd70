//! Operations on flavors.

use std::collections::BTreeSet;

use nephos_types::{FlavorId, Labels, List, Name, Number, Page, Reference, Text, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    image::Properties,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// A size that servers are made in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flavor {
    /// Its id.
    pub id: FlavorId,
    /// Its name, unique in the cloud.
    pub name: Name,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Root disk in GiB; 0 means the image's own size.
    pub disk_gib: u64,
    /// Properties that the aggregates of a node must have.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
    /// Traits that a node must have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub required_traits: BTreeSet<String>,
    /// Traits that a node must not have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub forbidden_traits: BTreeSet<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for Flavor {}

/// Make a flavor.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateFlavor {
    /// Name, unique in the cloud.
    pub name: Name,
    /// Virtual CPUs, 1 to 512.
    pub vcpus: Number<1, 512>,
    /// Memory in MiB, 16 to 16777216.
    pub memory_mib: Number<16, 16_777_216>,
    /// Root disk in GiB, up to 65536; 0 means the image's own size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<Number<0, 65_536>>,
    /// Properties that the aggregates of a node must have.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
    /// Traits that a node must have, at most 50.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub required_traits: List<Text<100>, 50>,
    /// Traits that a node must not have, at most 50.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub forbidden_traits: List<Text<100>, 50>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}
impl Operation for CreateFlavor {
    type Output = Flavor;
    const SPEC: Spec = Spec {
        name: "flavor.create",
        method: Method::Post,
        path: "/v1/flavors",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Creates,
        summary: "Make a size that servers can be created in",
        positional: &["name"],
        columns: FLAVOR_COLUMNS,
        examples: &[
            Example {
                title: "A flavor with two CPUs and 2 GiB of memory",
                command: "nephos flavor create medium --vcpus 2 --memory-mib 2048 --disk-gib 10",
            },
            Example {
                title: "For nodes of an aggregate with fast disks, under KVM",
                command: "nephos flavor create fast --vcpus 2 --memory-mib 2048 --properties disk=nvme --required-trait COMPUTE_ACCEL_KVM",
            },
        ],
        ..Spec::DEFAULT
    };
}

const FLAVOR_COLUMNS: &[&str] = &["name", "vcpus", "memory_mib", "disk_gib", "id"];

/// List flavors.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListFlavors {
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<FlavorId>,
}
impl Operation for ListFlavors {
    type Output = Page<Flavor>;
    const SPEC: Spec = Spec {
        name: "flavor.list",
        method: Method::Get,
        path: "/v1/flavors",
        permission: Permission::LOGGED_IN,
        summary: "List the sizes that servers can be created in",
        columns: FLAVOR_COLUMNS,
        examples: &[Example { title: "All flavors", command: "nephos flavor list" }],
        ..Spec::DEFAULT
    };
}

/// Show a flavor.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowFlavor {
    /// Name or id.
    pub flavor: Reference,
}
impl Operation for ShowFlavor {
    type Output = Flavor;
    const SPEC: Spec = Spec {
        name: "flavor.show",
        method: Method::Get,
        path: "/v1/flavors/{flavor}",
        permission: Permission::LOGGED_IN,
        summary: "Show one flavor",
        positional: &["flavor"],
        columns: FLAVOR_COLUMNS,
        examples: &[Example { title: "By name", command: "nephos flavor show small" }],
        ..Spec::DEFAULT
    };
}

/// Delete a flavor.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteFlavor {
    /// Name or id.
    pub flavor: Reference,
}
impl Operation for DeleteFlavor {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "flavor.delete",
        method: Method::Delete,
        path: "/v1/flavors/{flavor}",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Delete a flavor",
        description: "Servers made from it keep their size.",
        positional: &["flavor"],
        examples: &[Example { title: "By name", command: "nephos flavor delete medium" }],
        ..Spec::DEFAULT
    };
}
