//! Where images' bytes are kept, and moving them.

use nephos_types::{Reference, WorkflowId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{COLUMNS, Image};
use crate::{
    call::{Started, View},
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// A store of images' bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// The folder of images.
    Files,
    /// The bucket that the configuration names.
    S3,
}

impl StoreKind {
    /// Its name in requests, answers and configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::S3 => "s3",
        }
    }
}

/// Move an image's content to another store.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveImageContent {
    /// Name or id.
    pub image: Reference,
    /// The store.
    pub to: StoreKind,
}
impl Operation for MoveImageContent {
    type Output = Started<Image>;
    const SPEC: Spec = Spec {
        name: "image.move-content",
        method: Method::Post,
        path: "/v1/images/{image}/move-content",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Move an image's content to another store",
        description: "The image can be used meanwhile. It is read from the new store once the copy there is complete and \
                      has its checksum; then the old one is removed.",
        positional: &["image"],
        columns: COLUMNS,
        examples: &[Example { title: "Into the bucket", command: "nephos image move-content debian-13 --to s3" }],
        ..Spec::DEFAULT
    };
}

/// Move the content of all images to another store.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveImages {
    /// The store.
    pub to: StoreKind,
}
impl Operation for MoveImages {
    type Output = MovedImages;
    const SPEC: Spec = Spec {
        name: "image.move-all",
        method: Method::Post,
        path: "/v1/image-moves",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Move the content of all images, of all projects, to another store",
        description: "Starts a workflow as `image move-content` does for each image whose content is elsewhere, 100 at \
                      most; `left` says how many more there are: call it again for those.",
        columns: &["left", "workflows"],
        examples: &[Example { title: "Out of the bucket", command: "nephos image move-all --to files" }],
        ..Spec::DEFAULT
    };
}

/// Moves of images that were started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MovedImages {
    /// The workflows, one for each image.
    pub workflows: Vec<WorkflowId>,
    /// How many images are still elsewhere and not on the way.
    pub left: u64,
}
impl View for MovedImages {}
