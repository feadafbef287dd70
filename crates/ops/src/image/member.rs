//! With whom an image is shared, and whether they want it.

use nephos_types::{Page, ProjectId, Reference};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{COLUMNS, Image};
use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// What a project answered to an image that was shared with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemberStatus {
    /// Nothing yet: it can use the image by id or name, and does not see it in its list.
    #[default]
    Pending,
    /// It sees the image in its list.
    Accepted,
    /// As nothing, for good.
    Rejected,
}

/// A project that an image is shared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// The project.
    pub project: ProjectId,
    /// What it answered.
    pub status: MemberStatus,
}
impl View for Member {}

const MEMBER_COLUMNS: &[&str] = &["project", "status"];

/// List the projects that an image is shared with.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListImageMembers {
    /// Name or id.
    pub image: Reference,
}
impl Operation for ListImageMembers {
    type Output = Page<Member>;
    const SPEC: Spec = Spec {
        name: "image.members",
        method: Method::Get,
        path: "/v1/images/{image}/members",
        permission: Permission::PROJECT_READER,
        summary: "List the projects that an image is shared with",
        description: "Its own project sees all of them; another one only itself.",
        positional: &["image"],
        columns: MEMBER_COLUMNS,
        examples: &[Example { title: "By name", command: "nephos image members debian-13" }],
        ..Spec::DEFAULT
    };
}

/// Share an image with a project.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareImage {
    /// Name or id.
    pub image: Reference,
    /// The project's id.
    pub project: ProjectId,
}
impl Operation for ShareImage {
    type Output = Member;
    const SPEC: Spec = Spec {
        name: "image.share",
        method: Method::Put,
        path: "/v1/images/{image}/members/{project}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Share an image with a project",
        description: "A private image becomes a shared one. The project accepts it with `image accept`, and then has it \
                      in its list.",
        positional: &["image", "project"],
        columns: MEMBER_COLUMNS,
        ..Spec::DEFAULT
    };
}

/// Share an image with a project no longer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnshareImage {
    /// Name or id.
    pub image: Reference,
    /// The project's id.
    pub project: ProjectId,
}
impl Operation for UnshareImage {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "image.unshare",
        method: Method::Delete,
        path: "/v1/images/{image}/members/{project}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Share an image with a project no longer",
        positional: &["image", "project"],
        ..Spec::DEFAULT
    };
}

/// Accept an image that another project shares.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptImage {
    /// Id: its name is another project's.
    pub image: Reference,
}
impl Operation for AcceptImage {
    type Output = Image;
    const SPEC: Spec = Spec {
        name: "image.accept",
        method: Method::Post,
        path: "/v1/images/{image}/accept",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Accept an image that another project shares: it appears in the list",
        positional: &["image"],
        columns: COLUMNS,
        ..Spec::DEFAULT
    };
}

/// Reject an image that another project shares.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RejectImage {
    /// Id: its name is another project's.
    pub image: Reference,
}
impl Operation for RejectImage {
    type Output = Image;
    const SPEC: Spec = Spec {
        name: "image.reject",
        method: Method::Post,
        path: "/v1/images/{image}/reject",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Reject an image that another project shares: it is not in the list",
        positional: &["image"],
        columns: COLUMNS,
        ..Spec::DEFAULT
    };
}
