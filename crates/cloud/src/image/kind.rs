//! The stored form of an image, and who sees it.

use std::collections::BTreeSet;

use nephos_ops::image::{self as ops, ImageFormat, ImageStatus, Properties, Visibility};
use nephos_store::{Kind, Record};
use nephos_types::{Error, ImageId, ProjectId, Result};
use serde::{Deserialize, Serialize};

use super::files::FileName;
use crate::{
    resolve::{CLOUD, Named},
    session::{Session, Visible},
};

/// One GiB, in bytes.
const GIB: u64 = 1 << 30;
/// The longest name that is indexed whole, in bytes.
const INDEXED_NAME: usize = 256;

/// Index: who finds the image in their list: ids of projects, and the names of [`Visibility::Public`] and
/// [`Visibility::Community`].
pub(super) const BY_VIEWER: &str = "viewer";
/// Index: by visibility.
pub(super) const BY_VISIBILITY: &str = "visibility";
/// Index: by status.
pub(super) const BY_STATUS: &str = "status";
/// Index: by name (its beginning, if it is long).
pub(super) const BY_NAME: &str = "name";

/// An image as stored. It is queued, saving or active by which of `upload` and `content` is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The format that the owner announced.
    pub claimed: Option<ImageFormat>,
    /// The file that an upload is writing.
    pub upload: Option<FileName>,
    /// What it holds.
    pub content: Option<Content>,
    /// Who sees it besides its project.
    pub visibility: Visibility,
    /// Projects that see it if it is shared.
    pub shared_with: BTreeSet<ProjectId>,
    /// Whether it cannot be deleted.
    pub protected: bool,
    /// Least root disk, in GiB.
    pub min_disk_gib: u64,
    /// Least memory, in MiB.
    pub min_memory_mib: u64,
    /// Free properties.
    pub properties: Properties,
}

/// What an active image holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The file.
    pub file: FileName,
    /// What it is.
    pub format: ImageFormat,
    /// Its size in bytes.
    pub size: u64,
    /// Size of the disk that a server sees, in bytes.
    pub virtual_size: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
    /// MD5, in hexadecimal.
    pub md5: String,
}

impl Content {
    /// The root disk that it needs, in GiB.
    pub(super) fn disk_gib(&self) -> u64 {
        self.virtual_size.div_ceil(GIB)
    }
}

impl Image {
    /// What it is, in one word.
    #[must_use]
    pub fn status(&self) -> ImageStatus {
        match (&self.content, &self.upload) {
            (Some(_), _) => ImageStatus::Active,
            (None, Some(_)) => ImageStatus::Saving,
            (None, None) => ImageStatus::Queued,
        }
    }

    /// The file that must be kept.
    #[must_use]
    pub fn file(&self) -> Option<&FileName> {
        self.content.as_ref().map(|content| &content.file).or(self.upload.as_ref())
    }
}

impl Kind for Image {
    type Id = ImageId;
    const NAME: &'static str = "image";
    const INDEXES: &'static [&'static str] = &[BY_VIEWER, BY_VISIBILITY, BY_STATUS, BY_NAME];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        let body = &record.body;
        match index {
            BY_VIEWER => {
                let mut viewers: Vec<String> = record.meta.project.iter().map(ToString::to_string).collect();
                match body.visibility {
                    Visibility::Private => {}
                    Visibility::Shared => viewers.extend(body.shared_with.iter().map(ToString::to_string)),
                    Visibility::Community | Visibility::Public => {
                        viewers.push(visibility_key(body.visibility).to_owned());
                    }
                }
                viewers
            }
            BY_VISIBILITY => vec![visibility_key(body.visibility).to_owned()],
            BY_STATUS => vec![status_key(body.status()).to_owned()],
            BY_NAME => record.meta.name.iter().map(|name| name_key(name.as_str())).collect(),
            _ => vec![],
        }
    }
}

/// A visibility's value in indexes.
pub(super) const fn visibility_key(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Private => "private",
        Visibility::Shared => "shared",
        Visibility::Community => "community",
        Visibility::Public => "public",
    }
}

/// A status' value in the index.
pub(super) const fn status_key(status: ImageStatus) -> &'static str {
    match status {
        ImageStatus::Queued => "queued",
        ImageStatus::Saving => "saving",
        ImageStatus::Active => "active",
    }
}

/// A name's value in the index.
pub(super) fn name_key(name: &str) -> String {
    name.get(..name.floor_char_boundary(INDEXED_NAME)).unwrap_or(name).to_owned()
}

impl Named for Image {
    const NOUN: &'static str = "image";

    /// The caller's project first, then the names of public images.
    fn spaces(session: &Session) -> Vec<String> {
        let own = session.identity().ok().and_then(|identity| identity.project());
        own.map(|project| project.to_string()).into_iter().chain([CLOUD.to_owned()]).collect()
    }

    fn visible(session: &Session, record: &Record<Self>) -> bool {
        match record.body.visibility {
            Visibility::Public | Visibility::Community => session.visible() != Visible::Nothing,
            Visibility::Shared if record.body.shared_with.iter().any(|project| session.sees(*project)) => true,
            Visibility::Shared | Visibility::Private => {
                record.meta.project.is_some_and(|project| session.sees(project))
            }
        }
    }
}

/// What a caller is shown.
pub(super) fn view(session: &Session, record: &Record<Image>) -> Result<ops::Image> {
    let (meta, body) = (&record.meta, &record.body);
    let lacks = |what: &str| Error::bug(format!("image `{}` has no {what}", meta.id));
    let project = meta.project.ok_or_else(|| lacks("project"))?;
    let content = body.content.as_ref();
    Ok(ops::Image {
        id: meta.id,
        name: meta.name.clone().ok_or_else(|| lacks("name"))?,
        project,
        status: body.status(),
        format: content.map(|content| content.format).or(body.claimed),
        size: content.map(|content| content.size),
        virtual_size: content.map(|content| content.virtual_size),
        sha256: content.map(|content| content.sha256.clone()),
        md5: content.map(|content| content.md5.clone()),
        visibility: body.visibility,
        shared_with: if session.sees(project) { body.shared_with.iter().copied().collect() } else { vec![] },
        protected: body.protected,
        min_disk_gib: body.min_disk_gib,
        min_memory_mib: body.min_memory_mib,
        properties: body.properties.clone(),
        labels: meta.labels.clone(),
        created_at: meta.created_at,
        updated_at: meta.updated_at,
    })
}
