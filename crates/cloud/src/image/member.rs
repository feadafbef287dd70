//! Sharing: with whom, and what they say to it. And whether an image may be used at all.

use std::sync::Arc;

use nephos_ops::image::{
    AcceptImage, DeactivateImage, Image as View, ListImageMembers, Member, MemberStatus, ReactivateImage, RejectImage,
    ShareImage, UnshareImage, Visibility,
};
use nephos_types::{Error, Page, Reference, Result};

use super::{Image, Images, content, handlers::changeable};
use crate::session::Session;

/// The most projects that one image is shared with.
const MOST: usize = 64;

pub(super) async fn list(_: Arc<Images>, session: Session, input: ListImageMembers) -> Result<Page<Member>> {
    let record = session.find::<Image>(&input.image)?;
    let owned = record.meta.project.is_some_and(|project| session.sees(project));
    let members = record.body.shared_with.iter().filter(|project| owned || session.sees(**project));
    let items = members
        .map(|project| Member { project: *project, status: record.body.answer(*project).unwrap_or_default() })
        .collect();
    Ok(Page { items, next: None })
}

pub(super) async fn share(images: Arc<Images>, session: Session, input: ShareImage) -> Result<Member> {
    session
        .decide(|transaction| {
            let record = changeable(&session, &input.image)?;
            if images.store.get::<crate::identity::kinds::Project>(input.project).is_none() {
                return Err(Error::not_found("project", input.project));
            }
            if record.body.shared_with.len() >= MOST && !record.body.shared_with.contains(&input.project) {
                return Err(Error::invalid(
                    "too_many_members",
                    "The image is shared with as many projects as possible",
                )
                .detail(format!("at most {MOST}"))
                .next("let everybody find it: --visibility community", None));
            }
            let edit = record.edit().modify(|image| {
                image.shared_with.insert(input.project);
                if image.visibility == Visibility::Private {
                    image.visibility = Visibility::Shared;
                }
            });
            let status = record.body.answer(input.project).unwrap_or_default();
            Ok((transaction.save(edit), Member { project: input.project, status }))
        })
        .await
}

pub(super) async fn unshare(_: Arc<Images>, session: Session, input: UnshareImage) -> Result<()> {
    session
        .decide(|transaction| {
            let record = changeable(&session, &input.image)?;
            if !record.body.shared_with.contains(&input.project) {
                return Err(Error::not_found("member", input.project));
            }
            let edit = record.edit().modify(|image| {
                image.shared_with.remove(&input.project);
                image.answers.remove(&input.project);
            });
            Ok((transaction.save(edit), ()))
        })
        .await
}

pub(super) async fn accept(images: Arc<Images>, session: Session, input: AcceptImage) -> Result<View> {
    answer(&images, &session, &input.image, MemberStatus::Accepted).await
}

pub(super) async fn reject(images: Arc<Images>, session: Session, input: RejectImage) -> Result<View> {
    answer(&images, &session, &input.image, MemberStatus::Rejected).await
}

async fn answer(images: &Images, session: &Session, image: &Reference, answer: MemberStatus) -> Result<View> {
    let project = session.project()?;
    let id = session
        .decide(|transaction| {
            let record = session.find::<Image>(image)?;
            if !record.body.shared_with.contains(&project) {
                return Err(Error::conflict("image_not_shared", "The image is not shared with this project")
                    .next("only what others share can be accepted or rejected", None));
            }
            let edit = record.edit().modify(|image| {
                image.answers.insert(project, answer);
            });
            Ok((transaction.save(edit), record.meta.id))
        })
        .await?;
    images.shown(session, id)
}

pub(super) async fn deactivate(images: Arc<Images>, session: Session, input: DeactivateImage) -> Result<View> {
    set(&images, &session, &input.image, true).await
}

pub(super) async fn reactivate(images: Arc<Images>, session: Session, input: ReactivateImage) -> Result<View> {
    set(&images, &session, &input.image, false).await
}

async fn set(images: &Images, session: &Session, image: &Reference, deactivated: bool) -> Result<View> {
    let id = session
        .decide(|transaction| {
            let record = changeable(session, image)?;
            content(&record)?;
            let edit = record.edit().modify(|image| image.deactivated = deactivated);
            Ok((transaction.save(edit), record.meta.id))
        })
        .await?;
    images.shown(session, id)
}
