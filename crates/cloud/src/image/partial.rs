//! Uploads in parts: begun, continued from wherever they stand, and handed to a workflow at the end.

use std::{sync::Arc, time::Duration};

use nephos_ops::{
    Started,
    image::{
        CancelUpload, FinishUpload, Image as View, ImportImage, PartialUpload, ShowUpload, StartUpload, UploadPart,
    },
};
use nephos_store::{Bound, CommitError, Record};
use nephos_types::{Error, ErrorKind, Reference, Result, Timestamp};

use super::{
    Image, Images, fetch,
    files::FileName,
    handlers::changeable,
    inspect::{check_digits, too_large},
    kind::Incoming,
    upload::refuse_second,
    uploads_counter, work,
};
use crate::session::{Session, refusal};

/// An upload in parts, as its image's record has it.
struct Parts {
    file: FileName,
    size: Option<u64>,
    sha256: Option<String>,
    expires_at: Timestamp,
}

fn parts(record: &Record<Image>) -> Result<Parts> {
    match record.body.incoming.clone() {
        Some(Incoming::Parts { file, size, sha256, expires_at }) => Ok(Parts { file, size, sha256, expires_at }),
        _ => Err(Error::conflict("no_upload", "The image is not being uploaded in parts")
            .next("begin with that", Some(format!("nephos image upload-start {}", record.meta.id)))),
    }
}

fn shown(images: &Images, record: &Record<Image>) -> Result<PartialUpload> {
    let parts = parts(record)?;
    let offset = images.files.spool().length(&parts.file)?;
    Ok(PartialUpload { image: record.meta.id, offset, size: parts.size, expires_at: parts.expires_at })
}

fn expiry(images: &Images) -> Timestamp {
    Timestamp::now().plus(images.settings.uploads_kept)
}

pub(super) async fn start(images: Arc<Images>, session: Session, input: StartUpload) -> Result<PartialUpload> {
    check_digits(input.sha256.as_deref())?;
    if input.size.is_some_and(|size| size > images.settings.limits.size) {
        return Err(too_large(images.settings.limits.size));
    }
    let refused = |error| match error {
        CommitError::Exceeded { limit, .. } => {
            Error::new(ErrorKind::Quota, "too_many_uploads", "The project uploads too many images at once")
                .detail(format!("at most {limit:?} can be uploaded in parts at a time"))
                .next("finish or give up others", Some("nephos image list --status saving".to_owned()))
        }
        other => refusal(other),
    };
    let id = session
        .decide_or(
            |mut transaction| {
                let record = changeable(&session, &input.image)?;
                refuse_second(&record.body)?;
                let file = FileName::new(record.meta.id);
                let edit = record.edit().modify(|image| {
                    image.fault = None;
                    image.incoming = Some(Incoming::Parts {
                        file: file.clone(),
                        size: input.size,
                        sha256: input.sha256.clone(),
                        expires_at: expiry(&images),
                    });
                });
                if let Some(project) = record.meta.project {
                    let most = Bound::AtMost(images.settings.uploads_at_once);
                    transaction = transaction.add(uploads_counter(project), 1, most);
                }
                Ok((transaction.save(edit), record.meta.id))
            },
            refused,
        )
        .await?;
    let record = images.store.get::<Image>(id).ok_or_else(|| Error::not_found("image", id))?;
    // The record names it already, so it is nobody's left-over.
    images.files.spool().create(&parts(&record)?.file)?;
    shown(&images, &record)
}

pub(super) async fn part(images: Arc<Images>, session: Session, input: UploadPart) -> Result<PartialUpload> {
    let body = session.context().take_upload().ok_or_else(|| {
        Error::invalid("body_missing", "The part's content is missing").next("send it as the request's body", None)
    })?;
    let record = changeable(&session, &input.image)?;
    let id = record.meta.id;
    let Parts { file, size, .. } = parts(&record)?;
    let most = size.unwrap_or(u64::MAX).min(images.settings.limits.size);
    let written = images.files.spool().append(&file, input.offset, body, most).await;
    // Also what broke off shows that somebody is still at it.
    let longer = expiry(&images);
    session
        .decide(|transaction| {
            let record = images.store.get::<Image>(id).ok_or_else(|| Error::not_found("image", id))?;
            let edit = record.edit().modify(|image| {
                if let Some(Incoming::Parts { file: now, expires_at, .. }) = &mut image.incoming
                    && *now == file
                {
                    *expires_at = longer;
                }
            });
            Ok((transaction.save(edit), ()))
        })
        .await?;
    written?;
    let record = images.store.get::<Image>(id).ok_or_else(|| Error::not_found("image", id))?;
    shown(&images, &record)
}

pub(super) async fn show(images: Arc<Images>, session: Session, input: ShowUpload) -> Result<PartialUpload> {
    shown(&images, &*changeable(&session, &input.image)?)
}

pub(super) async fn finish(images: Arc<Images>, session: Session, input: FinishUpload) -> Result<Started<View>> {
    check_digits(input.sha256.as_deref())?;
    begin(&images, &session, &input.image, |record| {
        let Parts { file, size, sha256, .. } = parts(record)?;
        let arrived = images.files.spool().length(&file)?;
        if let Some(size) = size.filter(|size| *size != arrived) {
            return Err(Error::conflict("upload_incomplete", "Not all of the image has arrived")
                .detail(format!("{arrived} bytes of {size}"))
                .next(
                    "send the rest",
                    Some(format!("nephos image upload-part {} {arrived} --file FILE", input.image)),
                ));
        }
        Ok((file, None, input.sha256.clone().or(sha256)))
    })
    .await
}

pub(super) async fn import(images: Arc<Images>, session: Session, input: ImportImage) -> Result<Started<View>> {
    check_digits(input.sha256.as_deref())?;
    fetch::check(&input.url, input.sha256.is_some())?;
    begin(&images, &session, &input.image, |record| {
        refuse_second(&record.body)?;
        Ok((FileName::new(record.meta.id), Some(input.url.clone()), input.sha256.clone()))
    })
    .await
}

/// Hands an image to a workflow. What is handed over is decided on the record.
async fn begin(
    images: &Images,
    session: &Session,
    image: &Reference,
    decide: impl Fn(&Record<Image>) -> Result<(FileName, Option<String>, Option<String>)>,
) -> Result<Started<View>> {
    let (id, workflow) = session
        .decide(|mut transaction| {
            let record = changeable(session, image)?;
            let from = decide(&record)?;
            if let (Some(Incoming::Parts { .. }), Some(project)) = (&record.body.incoming, record.meta.project) {
                transaction = transaction.add(uploads_counter(project), -1, Bound::Any);
            }
            let (transaction, workflow) = work::start(images, session, transaction, &record, from)?;
            Ok((transaction, (record.meta.id, workflow)))
        })
        .await?;
    let resource = images.shown(session, id)?;
    images.engine.kick(workflow);
    Ok(Started { workflow, resource })
}

pub(super) async fn cancel(images: Arc<Images>, session: Session, input: CancelUpload) -> Result<()> {
    let file = session
        .decide(|mut transaction| {
            let record = changeable(&session, &input.image)?;
            let file = parts(&record)?.file;
            if let Some(project) = record.meta.project {
                transaction = transaction.add(uploads_counter(project), -1, Bound::Any);
            }
            Ok((transaction.save(record.edit().modify(|image| image.incoming = None)), file))
        })
        .await?;
    // What cannot be removed now is swept away later.
    if let Err(error) = images.files.spool().remove(&file).await {
        tracing::warn!(%file, error = %error.chain(), "an upload's file could not be removed; it will be tried again");
    }
    Ok(())
}

/// How long an upload in parts is kept when nothing comes.
pub(super) const KEPT: Duration = Duration::from_secs(24 * 3600);
