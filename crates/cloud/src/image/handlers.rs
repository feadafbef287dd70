//! What people may ask of images.

use std::{collections::BTreeMap, sync::Arc};

use nephos_ops::{
    Download,
    image::{
        self as ops, CreateImage, DeleteImage, DownloadImage, ListImages, MemberStatus, ShowImage, UpdateImage,
        Visibility,
    },
};
use nephos_store::{Bound, CommitError, Draft, Query, Record, Transaction};
use nephos_types::{Error, ErrorKind, Id, ImageId, Name, Number, Page, PageRequest, ProjectId, Reference, Result};

use super::{
    Image, Images, bytes_counter, content, deactivated, images_counter,
    kind::{
        BY_NAME, BY_STATUS, BY_TAG, BY_VIEWER, BY_VISIBILITY, Incoming, member_key, name_key, status_key, view,
        visibility_key,
    },
    member, partial,
    upload::upload,
    uploads_counter, wanted_counter,
};
use crate::{
    core::Handlers,
    idempotency::Made,
    resolve::{CLOUD, name_claim},
    session::{Session, Visible, refusal},
};

pub(super) fn register(handlers: &mut Handlers, images: &Arc<Images>) {
    handlers.handle_creation(images, create, |images: Arc<Images>, session: Session, made: Made| async move {
        images.shown(&session, made.id::<Image>()?)
    });
    handlers.handle(images, upload);
    handlers.handle(images, download);
    handlers.handle(images, list);
    handlers.handle(images, show);
    handlers.handle(images, update);
    handlers.handle(images, delete);
    handlers.handle(images, partial::start);
    handlers.handle(images, partial::part);
    handlers.handle(images, partial::show);
    handlers.handle(images, partial::finish);
    handlers.handle(images, partial::cancel);
    handlers.handle(images, partial::import);
    handlers.handle(images, member::list);
    handlers.handle(images, member::share);
    handlers.handle(images, member::unshare);
    handlers.handle(images, member::accept);
    handlers.handle(images, member::reject);
    handlers.handle(images, member::deactivate);
    handlers.handle(images, member::reactivate);
}

/// The image that the caller means and may change: their project's own, or any for the administrator.
pub(super) fn changeable(session: &Session, reference: &Reference) -> Result<Arc<Record<Image>>> {
    let record = session.find::<Image>(reference)?;
    let own = session.identity()?.project();
    if session.is_admin() || (own.is_some() && record.meta.project == own) {
        return Ok(record);
    }
    Err(Error::new(ErrorKind::Forbidden, "image_not_yours", "The image belongs to another project")
        .detail("it may be used, but only its own project changes it")
        .next("copy it: nephos image download, then nephos image create and upload", None))
}

fn check_publishing(session: &Session, visibility: Visibility) -> Result<()> {
    if visibility == Visibility::Public && !session.is_admin() {
        return Err(Error::new(ErrorKind::Forbidden, "publishing_denied", "Only an administrator makes images public")
            .next("share it with single projects: --visibility shared, or with whoever knows its id: --visibility community", None));
    }
    Ok(())
}

/// The claims on an image's name: in its project, and among the public images if it is one.
fn claims(project: Option<ProjectId>, visibility: Visibility, name: &Name) -> Vec<String> {
    let project = project.map(|project| name_claim::<Image>(project, name));
    let public = (visibility == Visibility::Public).then(|| name_claim::<Image>(CLOUD, name));
    project.into_iter().chain(public).collect()
}

impl Images {
    pub(crate) fn shown(&self, session: &Session, id: ImageId) -> Result<ops::Image> {
        view(session, &*self.store.get::<Image>(id).ok_or_else(|| Error::not_found("image", id))?)
    }
}

async fn create(images: Arc<Images>, session: Session, input: CreateImage) -> Result<ops::Image> {
    let project = session.project()?;
    check_publishing(&session, input.visibility)?;
    let id = ImageId::new();
    let image = Image {
        claimed: input.format,
        upload: None,
        incoming: None,
        content: None,
        original: None,
        moving: None,
        deactivated: false,
        fault: None,
        visibility: input.visibility,
        shared_with: input.shared_with.into_vec().into_iter().collect(),
        answers: BTreeMap::new(),
        protected: input.protected,
        min_disk_gib: input.min_disk_gib.map_or(0, Number::get),
        min_memory_mib: input.min_memory_mib.map_or(0, Number::get),
        properties: input.properties,
        tags: input.tags.into_vec().into_iter().collect(),
    };
    let draft = Draft::new(id, image).project(project).name(input.name.clone()).labels(input.labels);
    session
        .decide(|transaction| {
            let most = Bound::AtMost(images.settings.limits.project_images);
            let mut transaction = transaction.create(draft.clone()).add(images_counter(project), 1, most);
            for claim in claims(Some(project), input.visibility, &input.name) {
                transaction = transaction.claim(claim, id);
            }
            Ok((session.remember::<Image>(transaction, id, None), ()))
        })
        .await?;
    images.shown(&session, id)
}

async fn show(_: Arc<Images>, session: Session, input: ShowImage) -> Result<ops::Image> {
    view(&session, &*session.find::<Image>(&input.image)?)
}

async fn list(images: Arc<Images>, session: Session, input: ListImages) -> Result<Page<ops::Image>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let limit = request.limit();
    let mut query = Query::all().page::<Image>(&request)?;
    if let Some(status) = input.status {
        query = query.index(BY_STATUS, status_key(status));
    }
    if let Some(name) = &input.name {
        query = query.index(BY_NAME, name_key(name.as_str()));
    }
    if let Some(tag) = &input.tag {
        query = query.index(BY_TAG, name_key(tag.as_str()));
    }
    for (key, value) in &input.labels.0 {
        query = query.label(key, value);
    }
    if let Some(visibility) = input.visibility {
        query = query.index(BY_VISIBILITY, visibility_key(visibility));
    }
    // Who sees an image is several values of one index, so a list is the union of the pages for each.
    let public = || visibility_key(Visibility::Public).to_owned();
    let viewers: Vec<Option<String>> = match (session.listed(input.all_projects), input.visibility) {
        _ if let Some(answer) = input.member_status => vec![Some(member_key(session.project()?, answer))],
        (Visible::Nothing, _) => vec![],
        (Visible::Everything, _) => vec![None],
        (_, Some(Visibility::Community)) => vec![Some(visibility_key(Visibility::Community).to_owned())],
        (Visible::Project(project), _) => {
            vec![Some(project.to_string()), Some(public()), Some(member_key(project, MemberStatus::Accepted))]
        }
        (Visible::Domain(_), _) => vec![Some(public())],
    };
    let mut found = BTreeMap::new();
    let mut more = false;
    for viewer in viewers {
        let query = match viewer {
            Some(viewer) => query.clone().index(BY_VIEWER, viewer),
            None => query.clone(),
        };
        let page = images.store.list::<Image>(&query);
        more |= page.next.is_some();
        found.extend(page.items.into_iter().map(|record| (record.meta.id.bits(), record)));
    }
    more |= found.len() > limit;
    let last = found.keys().nth(limit.saturating_sub(1)).copied();
    let items = found
        .values()
        .take(limit)
        .filter(|record| input.name.as_ref().is_none_or(|name| record.meta.name.as_ref() == Some(name)))
        .filter(|record| input.tag.as_ref().is_none_or(|tag| record.body.tags.contains(tag)))
        .map(|record| view(&session, record))
        .collect::<Result<_>>()?;
    Ok(Page { items, next: last.filter(|_| more).map(|bits| ImageId::from_bits(bits).to_string()) })
}

async fn update(images: Arc<Images>, session: Session, input: UpdateImage) -> Result<ops::Image> {
    let id = session
        .decide(|mut transaction| {
            let record = changeable(&session, &input.image)?;
            let (meta, old) = (&record.meta, &record.body);
            let name = input.name.as_ref().or(meta.name.as_ref()).ok_or_else(|| Error::bug("an image has no name"))?;
            let visibility = input.visibility.unwrap_or(old.visibility);
            if visibility != old.visibility {
                check_publishing(&session, visibility)?;
            }
            let min_disk_gib = input.min_disk_gib.map_or(old.min_disk_gib, Number::get);
            if let Some(content) = &old.content
                && min_disk_gib < content.disk_gib()
            {
                return Err(Error::invalid("min_disk_too_small", "The image's own disk is larger than that")
                    .detail(format!("min_disk_gib is at least {}", content.disk_gib())));
            }
            let new = claims(meta.project, visibility, name);
            for claim in meta.name.iter().flat_map(|name| claims(meta.project, old.visibility, name)) {
                if !new.contains(&claim) {
                    transaction = transaction.release(claim, meta.id);
                }
            }
            for claim in new {
                transaction = transaction.claim(claim, meta.id);
            }
            let mut edit = record.edit().name(name.clone()).modify(|image| {
                image.visibility = visibility;
                image.min_disk_gib = min_disk_gib;
                image.min_memory_mib = input.min_memory_mib.map_or(old.min_memory_mib, Number::get);
                image.protected = input.protected.unwrap_or(old.protected);
                if let Some(projects) = &input.shared_with {
                    image.shared_with = projects.as_slice().iter().copied().collect();
                    let members = &image.shared_with;
                    image.answers.retain(|project, _| members.contains(project));
                }
                if let Some(tags) = &input.tags {
                    image.tags = tags.as_slice().iter().cloned().collect();
                }
                if let Some(properties) = &input.properties {
                    image.properties = properties.clone();
                }
            });
            if let Some(labels) = &input.labels {
                edit = edit.labels(labels.clone());
            }
            Ok((transaction.save(edit), meta.id))
        })
        .await?;
    images.shown(&session, id)
}

/// Adds an image's deletion to a transaction.
pub(super) fn deletion(transaction: Transaction, record: &Record<Image>) -> Transaction {
    let (meta, body) = (&record.meta, &record.body);
    let mut transaction = transaction.delete(record);
    for claim in meta.name.iter().flat_map(|name| claims(meta.project, body.visibility, name)) {
        transaction = transaction.release(claim, meta.id);
    }
    if let Some(project) = meta.project {
        transaction = transaction.add(images_counter(project), -1, Bound::Any).add(
            bytes_counter(project),
            -body.charged_bytes(),
            Bound::Any,
        );
        if matches!(body.incoming, Some(Incoming::Parts { .. })) {
            transaction = transaction.add(uploads_counter(project), -1, Bound::Any);
        }
    }
    transaction
}

async fn delete(images: Arc<Images>, session: Session, input: DeleteImage) -> Result<()> {
    let refused = |error| match error {
        CommitError::Exceeded { ref counter, value, .. } if counter.starts_with("image/") => Error::conflict(
            "image_in_use",
            "Servers need the image",
        )
        .detail(format!(
            "{value} of them: they are still being made from it, boot with it as their kernel or RAM disk, or are \
                     shelved as it"
        ))
        .next("wait until they run, or delete those that need it", Some("nephos server list".to_owned())),
        other => refusal(other),
    };
    let decide = |transaction: Transaction| {
        let record = changeable(&session, &input.image)?;
        let (meta, body) = (&record.meta, &record.body);
        if body.protected {
            return Err(Error::conflict("image_protected", "The image is protected from deletion").next(
                "take the protection away first",
                Some(format!("nephos image update {} --protected false", input.image)),
            ));
        }
        // Up and down again: refused if it is above zero at this very moment.
        let wanted = wanted_counter(meta.id);
        let mut transaction = transaction.add(wanted.clone(), 1, Bound::AtMost(1)).add(wanted, -1, Bound::Any);
        transaction = deletion(transaction, &record);
        // The file of an upload or a workflow that goes on is its own business: it ends when it finds the record gone.
        let contents = [&body.content, &body.original].into_iter().flatten().cloned();
        let moving_to = body.moving.as_ref().map(|moving| moving.to);
        let parts = match &body.incoming {
            Some(Incoming::Parts { file, .. }) => Some(file.clone()),
            _ => None,
        };
        Ok((transaction, (contents.collect::<Vec<_>>(), moving_to, parts)))
    };
    let (contents, moving_to, parts) = session.decide_or(decide, refused).await?;
    for content in &contents {
        if let Err(error) = images.files.remove_content(content, moving_to).await {
            // The image is gone as far as anyone can tell; the next sweep tries again.
            tracing::warn!(file = %content.file, error = %error.chain(), "a deleted image's file could not be removed");
        }
    }
    if let Some(file) = parts
        && let Err(error) = images.files.spool().remove(&file).await
    {
        tracing::warn!(%file, error = %error.chain(), "a deleted image's file could not be removed");
    }
    Ok(())
}

async fn download(images: Arc<Images>, session: Session, input: DownloadImage) -> Result<Download> {
    let record = session.find::<Image>(&input.image)?;
    let mut content = content(&record)?;
    if record.body.deactivated && !session.is_admin() {
        return Err(deactivated(&record));
    }
    if input.original {
        content = record.body.original.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "original_not_found", "The image has no original")
                .detail("it was not converted, or what it was converted from was not kept")
        })?;
    }
    let start = input.offset.unwrap_or(0);
    if start > content.size {
        return Err(Error::invalid("offset_past_end", "The image is shorter than that")
            .detail(format!("it has {} bytes", content.size)));
    }
    let length = input.length.unwrap_or(u64::MAX).min(content.size - start);
    let body = images.read(content, start..start + length).await?;
    Ok(Download { body, length: Some(length), content_type: "application/octet-stream" })
}
