//! Images: what servers' disks are made from.
//!
//! The record is in the database, the bytes in one of several [`ImageStore`]s, which the record names. Invariants: an active image's file is there, whole,
//! and has the recorded checksums, because a file is complete on disk before a record names it; a file that no record
//! names goes away, because a record lets go of its file before that is removed, and [`sweep`] removes what a crash
//! left. Content is judged by what it is ([`format`]), never by what it is said to be, before any tool opens it.
//!
//! Must not know: servers, how nodes are reached, any front end.

pub(crate) mod bootable;
pub mod fetch;
pub mod files;
pub mod format;
mod handlers;
mod inspect;
pub mod kind;
mod member;
mod partial;
mod relocate;
pub mod s3;
mod signature;
pub mod spool;
pub mod stores;
mod sweep;
mod upload;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use nephos_driver::DiskFormat;
use nephos_node_api::{Content as Bulk, ImageSource, SnapshotHeader};
use nephos_ops::{
    ByteStream,
    image::{ImageFormat, Properties, StoreKind, Visibility},
};
use nephos_store::{Bound, Draft, Kinds, Record, Store, Transaction};
use nephos_types::{Bytes, Error, ErrorKind, ImageId, Labels, Name, NodeId, ProjectId, Result};

pub use self::{
    bootable::Bootable,
    files::{Folder, ImageStore},
    inspect::Inspector,
    kind::Image,
};
use crate::{
    core::{BoxFuture, Handlers},
    identity::ProjectUse,
    journal::Engine,
    node::ImageBytes,
    resolve::name_claim,
};
use kind::Content;
use stores::Stores;

/// What is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest file, in bytes.
    pub size: u64,
    /// The most images of one project.
    pub project_images: i64,
    /// The most bytes that the images of one project take.
    pub project_bytes: i64,
}

impl Default for Limits {
    /// A file of 1 TiB; 1000 images and 8 TiB a project.
    fn default() -> Self {
        Self { size: 1 << 40, project_images: 1000, project_bytes: 8 << 40 }
    }
}

/// How images come in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is accepted.
    pub limits: Limits,
    /// Keep what was uploaded beside what it was converted to.
    pub keep_originals: bool,
    /// Which addresses imports may reach besides those of the public Internet.
    pub import: fetch::address::Allowed,
    /// The folder of the keys that signatures are checked with.
    pub trusted_keys: PathBuf,
    /// How long an upload in parts is kept when nothing comes.
    pub uploads_kept: Duration,
    /// The most uploads in parts of one project at a time.
    pub uploads_at_once: i64,
    /// A bucket that images can be in.
    pub s3: Option<s3::Settings>,
    /// Where new images go; in the bucket, if there is one, when nothing is said.
    pub store: Option<StoreKind>,
}

impl Settings {
    /// The usual ones, with trusted keys in this folder.
    #[must_use]
    pub fn new(trusted_keys: PathBuf) -> Self {
        Self {
            limits: Limits::default(),
            keep_originals: false,
            import: fetch::address::Allowed::default(),
            trusted_keys,
            uploads_kept: partial::KEPT,
            uploads_at_once: 16,
            s3: None,
            store: None,
        }
    }
}

/// The kinds that this family keeps.
#[must_use]
pub fn kinds(kinds: Kinds) -> Kinds {
    kinds.with::<Image>()
}

/// What of this family stands against deleting a project.
#[must_use]
pub fn project_use() -> ProjectUse {
    ProjectUse {
        what: "images",
        count: |store, project| u64::try_from(store.counter(&images_counter(project))).unwrap_or(0),
        counter: Some(images_counter),
    }
}

/// The counter of a project's images.
fn images_counter(project: ProjectId) -> String {
    format!("quota/{project}/images")
}

/// The counter of the bytes that a project's images take.
fn bytes_counter(project: ProjectId) -> String {
    format!("quota/{project}/image_bytes")
}

/// The counter of a project's uploads in parts.
fn uploads_counter(project: ProjectId) -> String {
    format!("quota/{project}/image_uploads")
}

/// The counter of those that still have to fetch an image's bytes, or may have to; while it is above zero, the image
/// stays.
fn wanted_counter(image: ImageId) -> String {
    format!("image/{image}/wanted")
}

/// Keeps an image from being deleted, until it is let go. The image's record must be `expect`ed along with it.
#[must_use]
pub(crate) fn hold(transaction: Transaction, image: ImageId) -> Transaction {
    transaction.add(wanted_counter(image), 1, Bound::Any)
}

/// Ends one [`hold`].
#[must_use]
pub(crate) fn let_go(transaction: Transaction, image: ImageId) -> Transaction {
    transaction.add(wanted_counter(image), -1, Bound::Any)
}

/// Keeps several images from being deleted.
#[must_use]
pub(crate) fn hold_all(transaction: Transaction, images: &[ImageId]) -> Transaction {
    images.iter().fold(transaction, |transaction, image| hold(transaction, *image))
}

/// Ends one [`hold`] of each of them.
#[must_use]
pub(crate) fn let_go_all(transaction: Transaction, images: &[ImageId]) -> Transaction {
    images.iter().fold(transaction, |transaction, image| let_go(transaction, *image))
}

/// The family's state.
pub struct Images {
    store: Store,
    engine: Engine,
    files: Stores,
    settings: Settings,
}

/// The family as its workflows hold it: not owning, because the engine that holds them is part of it.
#[derive(Clone)]
struct Held(Weak<Images>);

impl Held {
    fn of(images: &Arc<Images>) -> Self {
        Self(Arc::downgrade(images))
    }

    /// A stopping process is no reason to fail.
    fn get(&self) -> Result<Arc<Images>> {
        self.0.upgrade().ok_or_else(|| Error::new(ErrorKind::Unavailable, "stopping", "The control plane is stopping"))
    }
}

impl Images {
    /// Registers the family's operations, on images as files in a folder, or in a bucket by way of it. What uploads that a
    /// crash ended have left is removed only if this process is `alone`: otherwise it may be another one's that goes on.
    pub(crate) async fn register(
        handlers: &mut Handlers,
        store: &Store,
        engine: &Engine,
        folder: &Path,
        alone: bool,
        settings: Settings,
    ) -> Result<Arc<Self>> {
        let files = Stores::open(folder, alone, &settings)?;
        Self::register_with(handlers, store, engine, files, alone, settings).await
    }

    /// Registers the family's operations and workflows; first, if this process is `alone`, brings records and files into
    /// agreement after whatever ended the last one.
    pub(crate) async fn register_with(
        handlers: &mut Handlers,
        store: &Store,
        engine: &Engine,
        files: Stores,
        alone: bool,
        settings: Settings,
    ) -> Result<Arc<Self>> {
        let images = Arc::new(Self { store: store.clone(), engine: engine.clone(), files, settings });
        if alone {
            images.give_up_uploads().await?;
            images.sweep_if_it_can().await;
        }
        sweep::keep_sweeping(&images);
        work::register(&images)?;
        relocate::register(handlers, &images)?;
        handlers::register(handlers, &images);
        Ok(images)
    }

    /// What a project's images use of what they may: their number, and their bytes.
    #[must_use]
    pub(crate) fn usage(&self, project: ProjectId) -> [(i64, i64); 2] {
        [
            (self.store.counter(&images_counter(project)), self.settings.limits.project_images),
            (self.store.counter(&bytes_counter(project)), self.settings.limits.project_bytes),
        ]
    }
}

impl Images {
    /// An image of a node's making, to be given its content later.
    pub(crate) fn draft(
        &self,
        transaction: Transaction,
        project: ProjectId,
        id: ImageId,
        draft: SnapshotDraft<'_>,
    ) -> Transaction {
        let image = Image {
            claimed: None,
            upload: None,
            incoming: None,
            content: None,
            original: None,
            moving: None,
            deactivated: false,
            fault: None,
            visibility: Visibility::Private,
            shared_with: BTreeSet::new(),
            answers: BTreeMap::new(),
            protected: draft.protected,
            min_disk_gib: draft.min_disk_gib,
            min_memory_mib: draft.min_memory_mib,
            properties: Properties(draft.properties),
            tags: BTreeSet::new(),
        };
        transaction
            .create(Draft::new(id, image).project(project).name(draft.name.clone()).labels(draft.labels))
            .add(images_counter(project), 1, Bound::AtMost(self.settings.limits.project_images))
            .claim(name_claim::<Image>(project, draft.name), id)
    }

    /// Reads a part of an image's content, also if that is moved to another store at this very moment.
    async fn read(&self, content: &Content, range: Range<u64>) -> Result<ByteStream> {
        let mut content = content.clone();
        loop {
            let error = match self.files.get(&content, range.clone()).await {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            self.store.catch_up().await?;
            let record = self.store.get::<Image>(content.file.image());
            let contents = record.iter().flat_map(|record| [&record.body.content, &record.body.original]);
            let now = contents.flatten().find(|now| now.file == content.file && now.store != content.store);
            content = now.ok_or(error)?.clone();
        }
    }

    /// Adds the deletion of an image to a transaction; nothing is added if there is none. Its file is swept up later.
    pub(crate) fn discard(&self, transaction: Transaction, id: ImageId) -> Transaction {
        match self.store.get::<Image>(id) {
            Some(record) => handlers::deletion(transaction, &record),
            None => transaction,
        }
    }

    /// What nodes are told of an image, and the disk that it needs in GiB; `None` as long as it has no content.
    ///
    /// # Errors
    /// If there is no such image, or it is no root disk.
    pub(crate) fn source(&self, id: ImageId) -> Result<Option<(ImageSource, u64)>> {
        let record = self.store.get::<Image>(id).ok_or_else(|| Error::not_found("image", id))?;
        let Some(content) = &record.body.content else { return Ok(None) };
        let format = disk_format(content.format).ok_or_else(|| Error::bug("a copy of a disk is no root disk"))?;
        let source = ImageSource { id, format, size: Bytes(content.size), sha256: content.sha256.clone() };
        Ok(Some((source, content.disk_gib())))
    }
}

/// An image of a node's making.
pub(crate) struct SnapshotDraft<'a> {
    /// Its name.
    pub(crate) name: &'a Name,
    /// Its labels.
    pub(crate) labels: Labels,
    /// Its properties.
    pub(crate) properties: BTreeMap<String, String>,
    /// Whether people cannot delete it.
    pub(crate) protected: bool,
    /// Least root disk, in GiB.
    pub(crate) min_disk_gib: u64,
    /// Least memory, in MiB.
    pub(crate) min_memory_mib: u64,
}

/// Images as nodes see them.
pub struct NodeImages(pub Arc<Images>);

impl ImageBytes for NodeImages {
    fn open(&self, id: ImageId) -> BoxFuture<'_, Result<Bulk>> {
        Box::pin(async move {
            let record = self.0.store.get::<Image>(id).ok_or_else(|| Error::not_found("image", id))?;
            let content = content(&record)?;
            let body = self.0.read(content, 0..content.size).await?;
            Ok(Bulk { length: content.size, body })
        })
    }

    fn receive(
        &self,
        node: NodeId,
        image: ImageId,
        header: SnapshotHeader,
        content: Bulk,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(upload::receive(Arc::clone(&self.0), node, image, header, content))
    }
}

/// As what nodes take an image of this format for a server's root; `None` if they do not.
fn disk_format(format: ImageFormat) -> Option<DiskFormat> {
    match format {
        ImageFormat::Qcow2 => Some(DiskFormat::Qcow2),
        ImageFormat::Raw | ImageFormat::Ami => Some(DiskFormat::Raw),
        ImageFormat::Iso => Some(DiskFormat::Iso),
        ImageFormat::Tar => Some(DiskFormat::Tar),
        ImageFormat::Oci => Some(DiskFormat::Oci),
        ImageFormat::Vmdk | ImageFormat::Vdi | ImageFormat::Vhd | ImageFormat::Vhdx | ImageFormat::Ova => None,
        ImageFormat::Aki | ImageFormat::Ari => None,
    }
}

/// What an image holds; an error that says what to do if it holds nothing.
fn content(record: &Record<Image>) -> Result<&Content> {
    record.body.content.as_ref().ok_or_else(|| {
        let name = record.meta.name.as_ref().map_or_else(|| record.meta.id.to_string(), ToString::to_string);
        Error::conflict("image_not_active", format!("Image `{name}` has no content yet"))
            .next("upload its content", Some(format!("nephos image upload {name} --file FILE")))
    })
}

/// The refusal of an image that may not be used.
fn deactivated(record: &Record<Image>) -> Error {
    let name = record.meta.name.as_ref().map_or_else(|| record.meta.id.to_string(), ToString::to_string);
    Error::new(ErrorKind::Forbidden, "image_deactivated", format!("Image `{name}` is deactivated"))
        .next("choose another, or have it reactivated", Some(format!("nephos image reactivate {name}")))
}

#[cfg(test)]
mod tests;
