//! `image.move-content`: moves an image's content from one store to another while it is in use.
//!
//! The record says where it is being moved before anything is there, so that a sweep leaves the copy alone, and says where
//! it is only when the copy is complete and has the recorded checksum. Whoever reads the old file meanwhile asks again.

use std::{sync::Arc, time::Duration};

use nephos_ops::{
    Started,
    image::{Image as View, MoveImageContent, MoveImages, MovedImages, StoreKind},
};
use nephos_store::{Query, Record, Transaction};
use nephos_types::{Error, ErrorKind, ImageId, Result, WorkflowId};
use nephos_workflow::{Definition, Done, Failure, Retry, StepContext};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{
    Held, Image, Images, Inspector,
    files::FileName,
    kind::{BY_STATUS, Content, Moving, status_key},
};
use crate::{
    core::Handlers,
    journal::{self, Effects},
    session::Session,
};

pub(super) const NAME: &str = "image.move-content";
/// How long one image may take.
const WITHIN: Duration = Duration::from_secs(6 * 3600);
/// Copies that one process makes at the same time; the others wait.
const AT_ONCE: usize = 2;
static COPYING: Semaphore = Semaphore::const_new(AT_ONCE);
const WAIT: Duration = Duration::from_secs(2);
/// Moves that one call of `image.move-all` starts.
const STARTED: usize = 100;
/// Records read at a time.
const CHUNK: usize = 500;

/// What a run is given.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) image: ImageId,
    pub(super) to: StoreKind,
}

type Answer<T> = Result<Done<T, Effects>, Failure>;

pub(super) fn register(handlers: &mut Handlers, images: &Arc<Images>) -> Result<()> {
    handlers.handle(images, move_one);
    handlers.handle(images, move_all);
    images.engine.register(definition(images))
}

/// Adds the start of a move to a transaction.
fn start(
    images: &Images,
    session: &Session,
    transaction: Transaction,
    record: &Record<Image>,
    to: StoreKind,
) -> Result<(Transaction, WorkflowId)> {
    let (id, workflow) = (record.meta.id, WorkflowId::new());
    let run = images
        .engine
        .prepare(NAME, workflow, &Input { image: id, to })?
        .subject(id.to_string())
        .project(record.meta.project)
        .author(journal::asked_by(session));
    let edit = record.edit().modify(|image| image.moving = Some(Moving { to, workflow }));
    Ok((journal::start(transaction.save(edit), run), workflow))
}

async fn move_one(images: Arc<Images>, session: Session, input: MoveImageContent) -> Result<Started<View>> {
    images.files.named(input.to)?;
    let (id, workflow) = session
        .decide(|transaction| {
            let record = session.find::<Image>(&input.image)?;
            super::content(&record)?;
            if record.body.moving.is_some() {
                return Err(Error::conflict("image_moves", "The image's content is being moved already")
                    .next("see how far it is", Some("nephos workflow list --open".to_owned())));
            }
            let (transaction, workflow) = start(&images, &session, transaction, &record, input.to)?;
            Ok((transaction, (record.meta.id, workflow)))
        })
        .await?;
    images.engine.kick(workflow);
    Ok(Started { workflow, resource: images.shown(&session, id)? })
}

async fn move_all(images: Arc<Images>, session: Session, input: MoveImages) -> Result<MovedImages> {
    images.files.named(input.to)?;
    let (mut started, mut left) = (vec![], 0);
    let elsewhere = |image: &Image| {
        let contents = [&image.content, &image.original];
        image.moving.is_none() && contents.into_iter().flatten().any(|content| content.store != Some(input.to))
    };
    for id in images.having_content() {
        if started.len() == STARTED {
            left += u64::from(images.store.get::<Image>(id).is_some_and(|record| elsewhere(&record.body)));
            continue;
        }
        let workflow = session
            .decide(|transaction| {
                match images.store.get::<Image>(id).filter(|record| elsewhere(&record.body)) {
                    Some(record) => {
                        let (transaction, workflow) = start(&images, &session, transaction, &record, input.to)?;
                        Ok((transaction, Some(workflow)))
                    }
                    // Deleted, or somebody else moves it.
                    None => Ok((transaction, None)),
                }
            })
            .await?;
        if let Some(workflow) = workflow {
            images.engine.kick(workflow);
            started.push(workflow);
        }
    }
    Ok(MovedImages { workflows: started, left })
}

impl Images {
    /// All images that have content.
    fn having_content(&self) -> Vec<ImageId> {
        use nephos_ops::image::ImageStatus::{Active, Deactivated};
        let mut found = vec![];
        for status in [Active, Deactivated] {
            let mut query = Query::all().index(BY_STATUS, status_key(status)).limit(CHUNK);
            loop {
                let page = self.store.list::<Image>(&query);
                found.extend(page.items.iter().map(|record| record.meta.id));
                match page.items.last() {
                    Some(last) if page.next.is_some() => query = query.after(last.meta.id),
                    _ => break,
                }
            }
        }
        found
    }
}

pub(super) fn definition(images: &Arc<Images>) -> Definition<Effects> {
    let held = Held::of(images);
    let mut definition = Definition::builder::<Input>(NAME);
    let (doing, undoing) = (held.clone(), held.clone());
    let from = definition
        .step("copy", move |context| {
            let held = doing.clone();
            async move { copy(&*held.get()?, &context).await }
        })
        .undo(move |context, _: Option<Vec<(FileName, StoreKind)>>| {
            let held = undoing.clone();
            async move { give_back(&*held.get()?, &context).await }
        })
        .retry(Retry::attempts(3))
        .call_limit(WITHIN)
        .add();
    let doing = held.clone();
    definition
        .step("switch", move |context| {
            let held = doing.clone();
            async move { switch(&*held.get()?, &context) }
        })
        .no_return()
        .add();
    definition
        .step("remove old content", move |context: StepContext<Input>| {
            let held = held.clone();
            async move { remove_old(&*held.get()?, &context, &context.get(from)?).await }
        })
        .add();
    definition.build()
}

/// The image, if this run still moves it.
fn own(images: &Images, context: &StepContext<Input>) -> Option<Arc<Record<Image>>> {
    let record = images.store.get::<Image>(context.input().image)?;
    let ours = record.body.moving.as_ref().is_some_and(|moving| moving.workflow == context.run_id());
    ours.then_some(record)
}

fn contents(image: &Image) -> impl Iterator<Item = &Content> {
    [&image.content, &image.original].into_iter().flatten()
}

/// Copies what is not there yet; answers where each content was.
async fn copy(images: &Images, context: &StepContext<Input>) -> Answer<Vec<(FileName, StoreKind)>> {
    let gone = || Failure::fatal(Error::conflict("image_deleted", "The image was deleted meanwhile"));
    let record = own(images, context).ok_or_else(gone)?;
    if contents(&record.body).any(|content| content.store.is_none()) {
        // Written down first: until then a copy could not be told from the only one.
        let mut body = record.body.clone();
        for content in [&mut body.content, &mut body.original].into_iter().flatten() {
            content.store = Some(images.files.kind_of(content).await?);
        }
        let effects = journal::effects(NAME, context.run_id()).update(&record, body);
        return Ok(Done::after(Duration::ZERO).with(Some(effects)));
    }
    let Ok(_turn) = COPYING.try_acquire() else {
        context.progress(None, "waiting for other moves");
        return Ok(Done::after(WAIT));
    };
    let to = context.input().to;
    let target = images.files.named(to)?;
    let mut from = vec![];
    for content in contents(&record.body) {
        let at = images.files.kind_of(content).await?;
        from.push((content.file.clone(), at));
        if at == to {
            continue;
        }
        context.progress(None, format!("copying {}", nephos_types::Bytes(content.size)));
        // Of an earlier attempt, which it begins anew; what that has published is written over.
        images.files.spool().remove(&content.file).await?;
        let body = images.files.named(at)?.get(&content.file, 0..content.size).await?;
        let inspector = Inspector::new(Some(content.format), Some(content.sha256.clone()), images.settings.limits.size);
        target.put(content.file.clone(), body, inspector).await.map_err(|error| match error.kind {
            // The old store broke off, or lost a bit on the way.
            ErrorKind::Invalid => {
                Error::new(ErrorKind::Unavailable, "image_broke_off", "The content did not arrive whole")
                    .detail(error.to_string())
                    .source(error)
            }
            _ => error,
        })?;
    }
    Ok(Done::value(from))
}

/// From now on it is read from the new store.
fn switch(images: &Images, context: &StepContext<Input>) -> Answer<()> {
    let Some(record) = own(images, context) else { return Ok(Done::value(())) };
    let mut body = record.body.clone();
    body.moving = None;
    for content in [&mut body.content, &mut body.original].into_iter().flatten() {
        content.store = Some(context.input().to);
    }
    Ok(Done::value(()).with(Some(journal::effects(NAME, context.run_id()).update(&record, body))))
}

/// Removes what no record names. Failing to is no reason to stand still: a sweep does the same.
async fn remove_old(images: &Images, context: &StepContext<Input>, from: &[(FileName, StoreKind)]) -> Answer<()> {
    let Input { image, to } = *context.input();
    let record = images.store.get::<Image>(image);
    for (file, at) in from {
        // If the image was deleted meanwhile, the copy goes, too.
        for place in [*at, to] {
            if record.as_ref().is_none_or(|record| !record.body.names(file, Some(place)))
                && let Err(error) = images.files.named(place)?.remove(file).await
            {
                tracing::warn!(%file, error = %error.chain(), "an image's old file could not be removed; it will be tried again");
            }
        }
    }
    Ok(Done::value(()))
}

/// The image stays where it was; what was copied goes.
async fn give_back(images: &Images, context: &StepContext<Input>) -> Answer<()> {
    if let Some(record) = own(images, context) {
        let edit = record.edit().modify(|image| image.moving = None);
        return Ok(Done::after(Duration::ZERO).with(Some(journal::effects(NAME, context.run_id()).save(edit))));
    }
    let to = context.input().to;
    if let Some(record) = images.store.get::<Image>(context.input().image) {
        for content in contents(&record.body) {
            images.files.spool().remove(&content.file).await?;
            if !record.body.names(&content.file, Some(to)) {
                images.files.named(to)?.remove(&content.file).await?;
            }
        }
    }
    Ok(Done::value(()))
}

#[cfg(test)]
mod tests;
