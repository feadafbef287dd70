//! Operations on disk images.

mod member;
mod relocate;
mod transfer;

use std::{borrow::Cow, collections::BTreeMap};

pub use self::{
    member::{AcceptImage, ListImageMembers, Member, MemberStatus, RejectImage, ShareImage, UnshareImage},
    relocate::{MoveImageContent, MoveImages, MovedImages, StoreKind},
    transfer::{
        CancelUpload, DeactivateImage, FinishUpload, ImportImage, PartialUpload, PrefetchImage, ReactivateImage,
        ShowUpload, StartUpload, UploadPart,
    },
};
use nephos_types::{ImageId, Labels, List, Name, Number, Page, ProjectId, Reference, Timestamp, WorkflowId};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    call::{Download, View},
    compute::Fault,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// How an image's bytes are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// A disk byte for byte.
    Raw,
    /// An ISO 9660 file system, as on a CD.
    Iso,
    /// A VMware disk in one file: monolithicSparse or streamOptimized. Converted to qcow2.
    Vmdk,
    /// A VirtualBox disk. Converted to qcow2.
    Vdi,
    /// A disk of Hyper-V and Azure, fixed or growing. Converted to qcow2.
    Vhd,
    /// A disk of Hyper-V. Converted to qcow2.
    Vhdx,
    /// A virtual appliance with one disk. Its disk is converted to qcow2.
    Ova,
    /// A disk byte for byte, to be booted with a kernel (aki) and an initial RAM disk (ari).
    Ami,
    /// A Linux kernel.
    Aki,
    /// An initial RAM disk.
    Ari,
    /// A root file system as a tar archive, plain or compressed by gzip or zstd. For containers.
    Tar,
    /// An OCI image layout in a tar archive. For containers.
    Oci,
}

impl ImageFormat {
    /// The format's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Iso => "iso",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Ova => "ova",
            Self::Ami => "ami",
            Self::Aki => "aki",
            Self::Ari => "ari",
            Self::Tar => "tar",
            Self::Oci => "oci",
        }
    }

    /// Whether servers run from something else that it is converted to.
    #[must_use]
    pub const fn is_converted(self) -> bool {
        matches!(self, Self::Vmdk | Self::Vdi | Self::Vhd | Self::Vhdx | Self::Ova)
    }
}

/// Who sees an image besides its own project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Nobody.
    #[default]
    Private,
    /// The projects in `shared_with`.
    Shared,
    /// Everybody, but it is listed only when asked for.
    Community,
    /// Everybody.
    Public,
}

/// What an image is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageStatus {
    /// It has no content yet.
    Queued,
    /// Its content is being uploaded.
    Saving,
    /// Its content is being fetched, checked or converted.
    Importing,
    /// It can be used.
    Active,
    /// It has its content, and cannot be used.
    Deactivated,
}

/// Free properties: at most 64 keys of at most 255 characters with values of at most 1024.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Properties(pub BTreeMap<String, String>);

impl Properties {
    /// The most properties one image may have.
    pub const MAX: usize = 64;
    /// The longest key, in characters.
    pub const MAX_KEY: usize = 255;
    /// The longest value, in characters.
    pub const MAX_VALUE: usize = 1024;

    /// Whether there are none; used to leave the field out of answers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(deserializer)?;
        if map.len() > Self::MAX {
            return Err(de::Error::custom(format!("at most {} properties are accepted", Self::MAX)));
        }
        for (key, value) in &map {
            let key_chars = key.chars().count();
            if key_chars == 0 || key_chars > Self::MAX_KEY || key.chars().any(char::is_control) {
                return Err(de::Error::custom(format!(
                    "a property's key has 1 to {} characters, none of them a control character",
                    Self::MAX_KEY
                )));
            }
            if value.chars().count() > Self::MAX_VALUE || value.chars().any(|c| c.is_control() && c != '\n') {
                return Err(de::Error::custom(format!(
                    "a property's value has at most {} characters, none of them a control character",
                    Self::MAX_VALUE
                )));
            }
        }
        Ok(Self(map))
    }
}

impl JsonSchema for Properties {
    fn schema_name() -> Cow<'static, str> {
        "Properties".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object", "maxProperties": Self::MAX,
            "propertyNames": { "minLength": 1, "maxLength": Self::MAX_KEY },
            "additionalProperties": { "type": "string", "maxLength": Self::MAX_VALUE }
        })
    }
}

/// A disk image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name, unique in the project; a public image's also among the public ones.
    pub name: Name,
    /// The project that owns it.
    pub project: ProjectId,
    /// What it is.
    pub status: ImageStatus,
    /// Its format: what its content is, or what it is said to be as long as it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// Size of the file in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Size of the disk that a server sees, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    /// SHA-256 of the file, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// MD5 of the file, in hexadecimal. For clients that want it; it protects against nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// For an image of a server's disk: whether the server held its file systems still while the disk was copied. If not,
    /// what starts from it finds them as after a power failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
    /// The store that its content is in; shown to administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreKind>,
    /// Who sees it besides its own project.
    pub visibility: Visibility,
    /// Projects that see it if its visibility is `shared`; shown to its own project only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<ProjectId>,
    /// Whether it cannot be deleted.
    pub protected: bool,
    /// Servers made from it need a root disk of at least this many GiB.
    pub min_disk_gib: u64,
    /// Servers made from it need at least this much memory, in MiB.
    pub min_memory_mib: u64,
    /// The format of the original that was converted and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_format: Option<ImageFormat>,
    /// The workflow that works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowId>,
    /// Why its content could not be taken, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Free properties.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
    /// Tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Name>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
impl View for Image {}

const COLUMNS: &[&str] = &["name", "status", "format", "size", "visibility", "created_at", "id"];

/// Create an image, still without content.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImage {
    /// Name, unique in the project; for a public image also among the public ones.
    pub name: Name,
    /// What its content will be; content of another format is then refused. Recognised from the content when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// Who sees it besides the project. `public` needs the role admin.
    #[serde(default)]
    pub visibility: Visibility,
    /// Ids of the projects that see it if its visibility is `shared`, at most 64.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub shared_with: List<ProjectId, 64>,
    /// Whether it cannot be deleted.
    #[serde(default)]
    pub protected: bool,
    /// Servers made from it need a root disk of at least this many GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_disk_gib: Option<Number<0, 65_536>>,
    /// Servers made from it need at least this much memory, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory_mib: Option<Number<0, 16_777_216>>,
    /// Free properties.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
    /// Tags, at most 128.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub tags: List<Name, 128>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}
impl Operation for CreateImage {
    type Output = Image;
    const SPEC: Spec = Spec {
        name: "image.create",
        method: Method::Post,
        path: "/v1/images",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Create an image, still without content",
        description: "Give it its content with `image upload`.",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[Example { title: "For a qcow2 file", command: "nephos image create debian-13 --format qcow2" }],
        ..Spec::DEFAULT
    };
}

/// Give an image its content.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadImage {
    /// Name or id.
    pub image: Reference,
    /// SHA-256 that the content must have, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
}
impl Operation for UploadImage {
    type Output = Image;
    const SPEC: Spec = Spec {
        name: "image.upload",
        method: Method::Put,
        path: "/v1/images/{image}/data",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Give an image its content",
        description: "The format is recognised from the content. An image gets its content once; an upload \
                      that breaks off leaves it without, and can be repeated. Disks of other makers (vmdk, vdi, vhd, \
                      vhdx, ova) are converted to qcow2 by a workflow, which the answer names.",
        positional: &["image"],
        columns: COLUMNS,
        upload: true,
        ..Spec::DEFAULT
    };
}

/// Read an image's content.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DownloadImage {
    /// Name or id.
    pub image: Reference,
    /// Start at this byte; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// At most this many bytes; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// What was uploaded, instead of what it was converted to; if the cloud keeps that.
    #[serde(default)]
    pub original: bool,
}
impl Operation for DownloadImage {
    type Output = Download;
    const SPEC: Spec = Spec {
        name: "image.download",
        method: Method::Get,
        path: "/v1/images/{image}/data",
        permission: Permission::PROJECT_READER,
        summary: "Read an image's content",
        positional: &["image"],
        ..Spec::DEFAULT
    };
}

/// List images.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListImages {
    /// Only those with this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Only those with this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ImageStatus>,
    /// Only those with this visibility; `community` lists those of other projects, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<Visibility>,
    /// Only those with this tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Name>,
    /// Instead of the usual ones, those that others share with the project and to which it answered this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_status: Option<MemberStatus>,
    /// Only those with all these labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ImageId>,
}
impl Operation for ListImages {
    type Output = Page<Image>;
    const SPEC: Spec = Spec {
        name: "image.list",
        method: Method::Get,
        path: "/v1/images",
        permission: Permission::PROJECT_READER,
        summary: "List images, oldest first",
        description: "Those of the project, those shared with it, and the public ones.",
        columns: COLUMNS,
        examples: &[
            Example { title: "All that can be used", command: "nephos image list" },
            Example { title: "The public ones", command: "nephos image list --visibility public" },
        ],
        ..Spec::DEFAULT
    };
}

/// Show an image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowImage {
    /// Name or id.
    pub image: Reference,
}
impl Operation for ShowImage {
    type Output = Image;
    const SPEC: Spec = Spec {
        name: "image.show",
        method: Method::Get,
        path: "/v1/images/{image}",
        permission: Permission::PROJECT_READER,
        summary: "Show one image",
        positional: &["image"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos image show debian-13" }],
        ..Spec::DEFAULT
    };
}

/// Change what is said about an image; its content never changes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateImage {
    /// Name or id.
    pub image: Reference,
    /// A new name, unique in the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Who sees it besides the project. `public` needs the role admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<Visibility>,
    /// Ids of the projects that see it if its visibility is `shared`, instead of all old ones, at most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_with: Option<List<ProjectId, 64>>,
    /// Whether it cannot be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// Servers made from it need a root disk of at least this many GiB; not less than the image's own disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_disk_gib: Option<Number<0, 65_536>>,
    /// Servers made from it need at least this much memory, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory_mib: Option<Number<0, 16_777_216>>,
    /// New properties, instead of all old ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<Properties>,
    /// New tags, instead of all old ones, at most 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<List<Name, 128>>,
    /// New labels, instead of all old ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}
impl Operation for UpdateImage {
    type Output = Image;
    const SPEC: Spec = Spec {
        name: "image.update",
        method: Method::Patch,
        path: "/v1/images/{image}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Change an image's name, visibility, protection, needs, properties or labels",
        positional: &["image"],
        columns: COLUMNS,
        examples: &[Example {
            title: "Protect it from deletion",
            command: "nephos image update debian-13 --protected true",
        }],
        ..Spec::DEFAULT
    };
}

/// Delete an image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteImage {
    /// Name or id.
    pub image: Reference,
}
impl Operation for DeleteImage {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "image.delete",
        method: Method::Delete,
        path: "/v1/images/{image}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Delete an image",
        description: "Servers made from it go on. An upload that still goes on ends.",
        positional: &["image"],
        examples: &[Example { title: "By name", command: "nephos image delete debian-13" }],
        ..Spec::DEFAULT
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_bounded() {
        let parse = |key: &str, value: &str| {
            serde_json::from_value::<Properties>(serde_json::json!({ key: value })).map(|properties| properties.0.len())
        };
        assert_eq!(parse("os_distro", "debian").unwrap(), 1);
        assert!(parse("", "x").is_err());
        assert!(parse(&"k".repeat(256), "x").is_err());
        assert!(parse("k", &"x".repeat(1025)).is_err());
        assert!(parse("k\u{7}", "x").is_err());
        let many: BTreeMap<String, String> = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(serde_json::from_value::<Properties>(serde_json::to_value(many).unwrap()).is_err());
    }
}
