//! Gives an image its content: claims the image for this upload, writes the file, then records it.
//!
//! Whatever ends it early (the client leaves, the content is refused, the disk is full) gives the image back as it was.

use std::sync::Arc;

use nephos_driver::DiskFormat;
use nephos_node_api::{Content as Bulk, SnapshotHeader};
use nephos_ops::{
    ByteStream,
    image::{Image as View, ImageFormat, UploadImage},
};
use nephos_store::{Author, Bound, CommitError, Transaction};
use nephos_types::{Error, ErrorKind, ImageId, NodeId, Reference, Result, WorkflowId};
use tracing::Instrument;

use super::{
    Image, Images, Inspector, bytes_counter, files::FileName, handlers::changeable, inspect::check_digits,
    kind::Content, signature, work,
};
use crate::session::Session;

pub(super) async fn upload(images: Arc<Images>, session: Session, input: UploadImage) -> Result<View> {
    check_digits(input.sha256.as_deref())?;
    let body = session.context().take_upload().ok_or_else(|| {
        Error::invalid("body_missing", "The image's content is missing").next("send it as the request's body", None)
    })?;
    // On a task of its own: were this future dropped while the commit is on its way, nobody would give the image back.
    let take = take(Arc::clone(&images), session.clone(), input.image);
    let (taken, claim) = tokio::spawn(take.in_current_span())
        .await
        .map_err(|error| Error::internal("An upload could not begin", error))??;
    let id = taken.file.image();
    let inspector = Inspector::new(claim, input.sha256, images.settings.limits.size);
    match complete(&images, &session, &taken, body, inspector).await {
        Ok(Arrived::Published(content)) => taken.keep(content).await?,
        Ok(Arrived::HandedOver(workflow)) => {
            taken.handed_over();
            images.engine.kick(workflow);
        }
        Err(error) => {
            taken.give_back().await;
            return Err(error);
        }
    }
    images.shown(&session, id)
}

/// What became of a file that arrived.
enum Arrived {
    /// It is the image's content.
    Published(Content),
    /// A workflow makes the content of it.
    HandedOver(WorkflowId),
}

async fn complete(
    images: &Images,
    session: &Session,
    taken: &Taken,
    body: ByteStream,
    inspector: Inspector,
) -> Result<Arrived> {
    let content = images.files.spool().receive(taken.file.clone(), body, inspector).await?;
    let current = || {
        let record = images.store.get::<Image>(taken.file.image());
        record
            .filter(|record| record.body.upload.as_ref() == Some(&taken.file))
            .ok_or_else(|| Error::conflict("image_deleted", "The image was deleted during the upload"))
    };
    if content.format.is_converted() {
        let decide = |transaction| {
            let from = (content.file.clone(), None, Some(content.sha256.clone()));
            work::start(images, session, transaction, &*current()?, from)
        };
        return session.decide(decide).await.map(Arrived::HandedOver);
    }
    let (keys, properties) = (images.settings.trusted_keys.clone(), current()?.body.properties.clone());
    let path = images.files.spool().path(&content.file);
    tokio::task::spawn_blocking(move || signature::check(&keys, &properties, &path))
        .await
        .map_err(|error| Error::internal("A signature was not checked", error))??;
    let store = Some(images.files.publish(&content.file).await?);
    Ok(Arrived::Published(Content { store, ..content }))
}

/// Takes an image's content from a node that was asked for a copy of a disk.
pub(super) async fn receive(
    images: Arc<Images>,
    node: NodeId,
    id: ImageId,
    header: SnapshotHeader,
    content: Bulk,
) -> Result<()> {
    let format = match header.format {
        DiskFormat::Qcow2 => ImageFormat::Qcow2,
        DiskFormat::Raw => ImageFormat::Raw,
        DiskFormat::Tar => ImageFormat::Tar,
        format => {
            return Err(Error::new(ErrorKind::Unsupported, "unsupported_format", "The copy cannot be an image")
                .detail(format!("its format is {format:?}")));
        }
    };
    let author = Author::new(node).operation("server.snapshot");
    let file = FileName::new(id);
    loop {
        let record = images.store.get::<Image>(id).ok_or_else(|| Error::not_found("image", id))?;
        if record.body.content.is_some() {
            return Ok(());
        }
        if record.body.upload.is_some() || record.body.incoming.is_some() {
            // The node has lost its connection, and this end has not noticed yet.
            return Err(Error::new(
                ErrorKind::Unavailable,
                "image_upload_goes_on",
                "An earlier upload is not over yet",
            ));
        }
        let edit = record.edit().modify(|image| image.upload = Some(file.clone()));
        match images.store.commit(Transaction::new(author.clone()).save(edit)).await {
            Ok(_) => break,
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let taken = Taken { images: Arc::clone(&images), author, file: file.clone(), held: true };
    let inspector = Inspector::new(Some(format), None, images.settings.limits.size);
    let written = async {
        let written = images.files.spool().receive(file, content.body, inspector).await?;
        let store = Some(images.files.publish(&written.file).await?);
        Ok::<_, Error>(Content { store, ..written })
    };
    match written.await {
        Ok(written) if written.size == content.length => {
            taken.keep(Content { frozen: Some(header.frozen), ..written }).await
        }
        Ok(_) => {
            taken.give_back().await;
            Err(Error::new(ErrorKind::Unavailable, "image_broke_off", "The copy did not arrive whole"))
        }
        Err(error) => {
            taken.give_back().await;
            // A connection that broke off is worth another attempt.
            Err(if error.code == "upload_broken_off" {
                Error::new(ErrorKind::Unavailable, "image_broke_off", "The copy did not arrive whole").source(error)
            } else {
                error
            })
        }
    }
}

/// Takes the image for this upload; one upload has it at a time.
async fn take(images: Arc<Images>, session: Session, image: Reference) -> Result<(Taken, Option<ImageFormat>)> {
    let (file, claim) = session
        .decide(|transaction| {
            let record = changeable(&session, &image)?;
            refuse_second(&record.body)?;
            let file = FileName::new(record.meta.id);
            let edit = record.edit().modify(|image| image.upload = Some(file.clone()));
            Ok((transaction.save(edit), (file, record.body.claimed)))
        })
        .await?;
    Ok((Taken { images, author: session.author(), file, held: true }, claim))
}

pub(super) fn refuse_second(image: &Image) -> Result<()> {
    if image.content.is_some() {
        return Err(Error::conflict("image_has_content", "The image has its content already")
            .detail("an image gets its content once, so that a name always means the same bytes")
            .next("create another image", Some("nephos image create NAME".to_owned())));
    }
    if image.upload.is_some() || image.incoming.is_some() {
        return Err(Error::conflict("image_upload_goes_on", "The image is being uploaded by somebody else")
            .next("wait for that upload, or create another image", None));
    }
    Ok(())
}

/// An image that is taken for an upload. Dropped before its end, it gives the image back.
struct Taken {
    images: Arc<Images>,
    author: Author,
    file: FileName,
    held: bool,
}

impl Taken {
    /// The file is there: the image holds it from now on.
    async fn keep(mut self, content: Content) -> Result<()> {
        loop {
            let record = self.images.store.get::<Image>(self.file.image());
            let Some(record) = record.filter(|record| record.body.upload.as_ref() == Some(&self.file)) else {
                self.give_back().await;
                return Err(Error::conflict("image_deleted", "The image was deleted during the upload"));
            };
            let size = i64::try_from(content.size).unwrap_or(i64::MAX);
            let mut transaction = Transaction::new(self.author.clone()).save(record.edit().modify(|image| {
                image.min_disk_gib = image.min_disk_gib.max(content.disk_gib());
                image.upload = None;
                image.fault = None;
                image.content = Some(content.clone());
            }));
            if let Some(project) = record.meta.project {
                let most = Bound::AtMost(self.images.settings.limits.project_bytes);
                transaction = transaction.add(bytes_counter(project), size, most);
            }
            match self.images.store.commit(transaction).await {
                Ok(_) => {
                    self.held = false;
                    return Ok(());
                }
                // Its name or the like was changed during the upload.
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => {
                    self.give_back().await;
                    return Err(error.into());
                }
            }
        }
    }

    /// A workflow has it now.
    fn handed_over(mut self) {
        self.held = false;
    }

    async fn give_back(mut self) {
        self.held = false;
        release(&self.images, &self.author, &self.file).await;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Outside a runtime the process ends; its next start finds the image and gives it back.
        let Some(runtime) = self.held.then(tokio::runtime::Handle::try_current).and_then(Result::ok) else { return };
        let (images, author, file) = (Arc::clone(&self.images), self.author.clone(), self.file.clone());
        runtime.spawn(async move { release(&images, &author, &file).await });
    }
}

/// Makes the image queued again if this upload has it, then removes the file. In this order: a record never names a
/// file that is gone. A file that appears later, from a writer that had been told everything, is swept away.
async fn release(images: &Images, author: &Author, file: &FileName) {
    loop {
        let record = images.store.get::<Image>(file.image());
        if record.as_ref().and_then(|record| record.body.content.as_ref()).is_some_and(|content| content.file == *file)
        {
            // The last commit went through although its answer was not waited for.
            return;
        }
        if record.as_ref().is_some_and(|record| record.body.names(file, None) && record.body.upload.is_none()) {
            // Likewise: a workflow has the file now.
            return;
        }
        let Some(record) = record.filter(|record| record.body.upload.as_ref() == Some(file)) else { break };
        let edit = record.edit().modify(|image| image.upload = None);
        match images.store.commit(Transaction::new(author.clone()).save(edit)).await {
            Ok(_) => break,
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => {
                tracing::warn!(%file, error = %error, "an upload that broke off could not be given up");
                return;
            }
        }
    }
    let removed = images.files.spool().remove(file).await;
    if let Err(error) = removed.and(images.files.remove(file).await) {
        tracing::warn!(%file, error = %error.chain(), "an upload's file could not be removed; it will be tried again");
    }
}
