//! The stored form of an image, and who sees it.

use std::collections::{BTreeMap, BTreeSet};

use nephos_ops::{
    compute::Fault,
    image::{self as ops, ImageFormat, ImageStatus, MemberStatus, Properties, StoreKind, Visibility},
};
use nephos_store::{Kind, Record};
use nephos_types::{Error, ImageId, Name, ProjectId, Result, Timestamp, WorkflowId};
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

/// Index: by tag.
pub(super) const BY_TAG: &str = "tag";

/// An image as stored. What it is follows from which of `upload`, `incoming` and `content` is there; at most one is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The format that the owner announced.
    pub claimed: Option<ImageFormat>,
    /// The file that one request is writing.
    pub upload: Option<FileName>,
    /// What takes more than one request.
    #[serde(default)]
    pub incoming: Option<Incoming>,
    /// What it holds.
    pub content: Option<Content>,
    /// What was uploaded, if that was converted and is kept.
    #[serde(default)]
    pub original: Option<Content>,
    /// Where a workflow is bringing all of that.
    #[serde(default)]
    pub moving: Option<Moving>,
    /// Whether it may not be used.
    #[serde(default)]
    pub deactivated: bool,
    /// Why the last workflow that should have given it its content failed.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// Who sees it besides its project.
    pub visibility: Visibility,
    /// Projects that see it if it is shared.
    pub shared_with: BTreeSet<ProjectId>,
    /// What those answered; nothing yet if they are missing here.
    #[serde(default)]
    pub answers: BTreeMap<ProjectId, MemberStatus>,
    /// Whether it cannot be deleted.
    pub protected: bool,
    /// Least root disk, in GiB.
    pub min_disk_gib: u64,
    /// Least memory, in MiB.
    pub min_memory_mib: u64,
    /// Free properties.
    pub properties: Properties,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeSet<Name>,
}

/// Content that comes in more than one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Incoming {
    /// In parts.
    Parts {
        /// The file that they are put together in.
        file: FileName,
        /// The length of the whole, if it was announced.
        size: Option<u64>,
        /// The checksum of the whole, if it was announced.
        sha256: Option<String>,
        /// When it is given up.
        expires_at: Timestamp,
    },
    /// A workflow fetches, checks, converts and publishes it.
    Work {
        /// The file as it came.
        file: FileName,
        /// The file that it may be converted to.
        output: FileName,
        /// The workflow.
        workflow: WorkflowId,
        /// The bytes that the project's quota was charged with already.
        #[serde(default)]
        charged: i64,
    },
}

/// A move of an image's content to another store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// The store where it will be.
    pub to: StoreKind,
    /// The workflow.
    pub workflow: WorkflowId,
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
    /// For a copy of a server's disk: whether the server held its file systems still meanwhile.
    #[serde(default)]
    pub frozen: Option<bool>,
    /// The store that the file is in; not told of what was published when there was one at a time.
    #[serde(default)]
    pub store: Option<StoreKind>,
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
        match self {
            Self { content: Some(_), deactivated: true, .. } => ImageStatus::Deactivated,
            Self { content: Some(_), .. } => ImageStatus::Active,
            Self { incoming: Some(Incoming::Work { .. }), .. } => ImageStatus::Importing,
            Self { incoming: Some(Incoming::Parts { .. }), .. } | Self { upload: Some(_), .. } => ImageStatus::Saving,
            _ => ImageStatus::Queued,
        }
    }

    /// Whether a file must be kept, in a store or (`None`) in the spool.
    #[must_use]
    pub fn names(&self, file: &FileName, at: Option<StoreKind>) -> bool {
        let incoming = match &self.incoming {
            Some(Incoming::Parts { file: only, .. }) => [Some(only), None],
            Some(Incoming::Work { file, output, .. }) => [Some(file), Some(output)],
            None => [None, None],
        };
        let arriving = self.moving.as_ref().map(|moving| moving.to);
        let is_there =
            |content: &&Content| at.is_none() || content.store.is_none() || [content.store, arriving].contains(&at);
        let contents = [&self.content, &self.original]
            .map(|content| content.as_ref().filter(is_there).map(|content| &content.file));
        incoming.into_iter().chain(contents).chain([self.upload.as_ref()]).flatten().any(|named| named == file)
    }

    /// The bytes that the project's quota is charged with for it.
    #[must_use]
    pub fn charged_bytes(&self) -> i64 {
        if let Some(Incoming::Work { charged, .. }) = self.incoming {
            return charged;
        }
        let sizes = [&self.content, &self.original].into_iter().flatten().map(|content| content.size);
        i64::try_from(sizes.fold(0, u64::saturating_add)).unwrap_or(i64::MAX)
    }

    /// What a project answered; `None` if the image is not shared with it.
    #[must_use]
    pub fn answer(&self, project: ProjectId) -> Option<MemberStatus> {
        self.shared_with.contains(&project).then(|| self.answers.get(&project).copied().unwrap_or_default())
    }
}

impl Kind for Image {
    type Id = ImageId;
    const NAME: &'static str = "image";
    const INDEXES: &'static [&'static str] = &[BY_VIEWER, BY_VISIBILITY, BY_STATUS, BY_NAME, BY_TAG];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        let body = &record.body;
        match index {
            BY_VIEWER => {
                let mut viewers: Vec<String> = record.meta.project.iter().map(ToString::to_string).collect();
                match body.visibility {
                    Visibility::Private => {}
                    Visibility::Shared => viewers.extend(
                        body.shared_with
                            .iter()
                            .map(|project| member_key(*project, body.answer(*project).unwrap_or_default())),
                    ),
                    Visibility::Community | Visibility::Public => {
                        viewers.push(visibility_key(body.visibility).to_owned());
                    }
                }
                viewers
            }
            BY_VISIBILITY => vec![visibility_key(body.visibility).to_owned()],
            BY_STATUS => vec![status_key(body.status()).to_owned()],
            BY_TAG => body.tags.iter().map(|tag| name_key(tag.as_str())).collect(),
            BY_NAME => record.meta.name.iter().map(|name| name_key(name.as_str())).collect(),
            _ => vec![],
        }
    }
}

/// A member's value in the index of viewers.
pub(super) fn member_key(project: ProjectId, answer: MemberStatus) -> String {
    match answer {
        MemberStatus::Accepted => format!("accepted/{project}"),
        MemberStatus::Pending => format!("pending/{project}"),
        MemberStatus::Rejected => format!("rejected/{project}"),
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
        ImageStatus::Importing => "importing",
        ImageStatus::Deactivated => "deactivated",
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
        frozen: content.and_then(|content| content.frozen),
        store: content.and_then(|content| content.store).filter(|_| session.is_admin()),
        visibility: body.visibility,
        shared_with: if session.sees(project) { body.shared_with.iter().copied().collect() } else { vec![] },
        protected: body.protected,
        min_disk_gib: body.min_disk_gib,
        min_memory_mib: body.min_memory_mib,
        original_format: body.original.as_ref().map(|content| content.format),
        workflow: match body.incoming {
            Some(Incoming::Work { workflow, .. }) => Some(workflow),
            _ => body.moving.as_ref().map(|moving| moving.workflow),
        },
        fault: body.fault.clone(),
        properties: body.properties.clone(),
        tags: body.tags.iter().cloned().collect(),
        labels: meta.labels.clone(),
        created_at: meta.created_at,
        updated_at: meta.updated_at,
    })
}
