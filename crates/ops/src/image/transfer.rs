//! Content that comes in parts or from elsewhere, and what an image may be used for.

use nephos_types::{List, Reference, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{COLUMNS, Image};
use crate::{
    call::{Started, View},
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// An upload in parts, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PartialUpload {
    /// The image.
    pub image: nephos_types::ImageId,
    /// Where the next part begins: so many bytes have arrived and are safe.
    pub offset: u64,
    /// How many there will be, if that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The upload is given up when nothing has come until then.
    pub expires_at: Timestamp,
}
impl View for PartialUpload {}

const UPLOAD_COLUMNS: &[&str] = &["image", "offset", "size", "expires_at"];

/// Begin to upload an image in parts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartUpload {
    /// Name or id.
    pub image: Reference,
    /// How many bytes there will be; said early, what is too large is refused early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// SHA-256 that the whole must have, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
}
impl Operation for StartUpload {
    type Output = PartialUpload;
    const SPEC: Spec = Spec {
        name: "image.upload-start",
        method: Method::Post,
        path: "/v1/images/{image}/upload",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Begin to upload an image in parts",
        description: "Send parts with `image upload-part`, each from the offset that the one before answered, and end \
                      with `image upload-finish`. What has arrived outlives broken connections and restarts of the \
                      control plane; `image upload-show` says where to go on.",
        positional: &["image"],
        columns: UPLOAD_COLUMNS,
        examples: &[Example {
            title: "With the size",
            command: "nephos image upload-start debian-13 --size 2147483648",
        }],
        ..Spec::DEFAULT
    };
}

/// Send the next part of an image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadPart {
    /// Name or id.
    pub image: Reference,
    /// Where the part begins: the offset that the upload has reached.
    pub offset: u64,
}
impl Operation for UploadPart {
    type Output = PartialUpload;
    const SPEC: Spec = Spec {
        name: "image.upload-part",
        method: Method::Put,
        path: "/v1/images/{image}/upload",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Send the next part of an image",
        description: "Of a part that breaks off, what arrived is kept.",
        positional: &["image", "offset"],
        columns: UPLOAD_COLUMNS,
        upload: true,
        ..Spec::DEFAULT
    };
}

/// Show how far an upload in parts has come.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowUpload {
    /// Name or id.
    pub image: Reference,
}
impl Operation for ShowUpload {
    type Output = PartialUpload;
    const SPEC: Spec = Spec {
        name: "image.upload-show",
        method: Method::Get,
        path: "/v1/images/{image}/upload",
        permission: Permission::PROJECT_MEMBER,
        summary: "Show how far an upload in parts has come",
        positional: &["image"],
        columns: UPLOAD_COLUMNS,
        examples: &[Example { title: "By name", command: "nephos image upload-show debian-13" }],
        ..Spec::DEFAULT
    };
}

/// End an upload in parts: all have been sent.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FinishUpload {
    /// Name or id.
    pub image: Reference,
    /// SHA-256 that the whole must have, in hexadecimal; instead of the one that was said at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
}
impl Operation for FinishUpload {
    type Output = Started<Image>;
    const SPEC: Spec = Spec {
        name: "image.upload-finish",
        method: Method::Post,
        path: "/v1/images/{image}/upload/finish",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "End an upload in parts, and make the image of them",
        description: "The content is checked, converted if servers cannot run from it as it is, and published.",
        positional: &["image"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos image upload-finish debian-13" }],
        ..Spec::DEFAULT
    };
}

/// Give up an upload in parts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelUpload {
    /// Name or id.
    pub image: Reference,
}
impl Operation for CancelUpload {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "image.upload-cancel",
        method: Method::Delete,
        path: "/v1/images/{image}/upload",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Give up an upload in parts; the image is queued again",
        positional: &["image"],
        examples: &[Example { title: "By name", command: "nephos image upload-cancel debian-13" }],
        ..Spec::DEFAULT
    };
}

/// Give an image its content from a URL.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    /// Name or id.
    pub image: Reference,
    /// Where the content is: `https://…`, or `http://…` along with a checksum.
    #[schemars(length(max = 2048))]
    pub url: String,
    /// SHA-256 that the content must have, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
}
impl Operation for ImportImage {
    type Output = Started<Image>;
    const SPEC: Spec = Spec {
        name: "image.import",
        method: Method::Post,
        path: "/v1/images/{image}/import",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Give an image its content from a URL",
        description: "The control plane fetches it. Addresses inside the cloud's own networks are refused unless the \
                      operator allows them.",
        positional: &["image", "url"],
        columns: COLUMNS,
        examples: &[Example {
            title: "A distribution's own image",
            command: "nephos image import debian-13 https://cloud.debian.org/images/cloud/trixie/latest/debian-13-generic-amd64.qcow2",
        }],
        ..Spec::DEFAULT
    };
}

/// Brings an image to nodes before servers need it there.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrefetchImage {
    /// The image.
    pub image: Reference,
    /// The nodes; none for all that are up and could boot it.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub nodes: List<Reference, 100>,
}
impl Operation for PrefetchImage {
    type Output = Started<Image>;
    const SPEC: Spec = Spec {
        name: "image.prefetch",
        method: Method::Post,
        path: "/v1/images/{image}/prefetch",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Bring an image to nodes before servers need it there",
        description: "Into the nodes' caches, where it stays until there is no room for what servers need.",
        positional: &["image"],
        columns: COLUMNS,
        examples: &[Example { title: "To all nodes", command: "nephos image prefetch debian-13" }],
        ..Spec::DEFAULT
    };
}

/// Keep an image from being used.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeactivateImage {
    /// Name or id.
    pub image: Reference,
}
impl Operation for DeactivateImage {
    type Output = Image;
    const SPEC: Spec = Spec {
        name: "image.deactivate",
        method: Method::Post,
        path: "/v1/images/{image}/deactivate",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Keep an image from being used",
        description: "No server can be made from it, and only administrators can read its content, until it is \
                      reactivated. Servers that were made from it go on.",
        positional: &["image"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos image deactivate debian-13" }],
        ..Spec::DEFAULT
    };
}

/// Let an image be used again.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReactivateImage {
    /// Name or id.
    pub image: Reference,
}
impl Operation for ReactivateImage {
    type Output = Image;
    const SPEC: Spec = Spec {
        name: "image.reactivate",
        method: Method::Post,
        path: "/v1/images/{image}/reactivate",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Let an image be used again",
        positional: &["image"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos image reactivate debian-13" }],
        ..Spec::DEFAULT
    };
}
