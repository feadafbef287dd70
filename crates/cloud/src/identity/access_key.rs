//! Handlers of the operations on access keys.

use std::sync::Arc;

use nephos_auth::password::generate_secret;
use nephos_ops::identity::{
    AccessKey as View, CreateAccessKey, DeleteAccessKey, ListAccessKeys, NewAccessKey, ShowAccessKey,
};
use nephos_store::{Draft, Query, Record};
use nephos_types::{AccessKeyId, Error, Page, Result};

use super::{
    Authority,
    application_credential::{owner, refuse_restricted},
    kinds::{AccessKey, AccessKeySecret, Project, User},
    listing::{self, page_limit, text},
    removal,
};
use crate::{Session, idempotency::Made};

fn view(record: &Record<AccessKey>) -> Result<View> {
    Ok(View {
        id: record.meta.id,
        user: record.body.user,
        project: record.meta.project.ok_or_else(|| Error::bug("an access key has no project"))?,
        description: record.body.description.clone(),
        created_at: record.meta.created_at,
    })
}

pub(super) async fn create(
    authority: Arc<Authority>,
    session: Session,
    input: CreateAccessKey,
) -> Result<NewAccessKey> {
    refuse_restricted(&session)?;
    let identity = Arc::clone(session.identity()?);
    let project = session.project()?;
    let id = AccessKeyId::new();
    let secret = generate_secret()?;
    let sealed = authority.vault.seal(&id.to_string(), &secret)?;
    session
        .decide(|transaction| {
            let user =
                session.store().get::<User>(identity.user).ok_or_else(|| Error::not_found("user", identity.user))?;
            let owner = session.store().get::<Project>(project).ok_or_else(|| Error::not_found("project", project))?;
            let body = AccessKey {
                user: identity.user,
                description: text(input.description.clone()),
                application_credential: identity.login.application_credential,
            };
            let transaction = transaction
                .expect(&*user)
                .expect(&*owner)
                .create(Draft::new(id, body).project(project))
                .create(Draft::new(id, AccessKeySecret { sealed: sealed.clone() }));
            Ok((session.remember::<AccessKey>(transaction, id, None), ()))
        })
        .await?;
    let record = session.store().get::<AccessKey>(id).ok_or_else(|| Error::not_found("access-key", id))?;
    Ok(NewAccessKey { key: view(&record)?, secret })
}

/// A repeated call gets the same answer: the secret is kept, sealed, because it signs requests.
pub(super) async fn recall(authority: Arc<Authority>, session: Session, made: Made) -> Result<NewAccessKey> {
    let id = made.id::<AccessKey>()?;
    let absent = || Error::not_found("access-key", id);
    let record = session.store().get::<AccessKey>(id).ok_or_else(absent)?;
    let sealed = session.store().get::<AccessKeySecret>(id).ok_or_else(absent)?;
    Ok(NewAccessKey { key: view(&record)?, secret: authority.vault.open(&id.to_string(), &sealed.body.sealed)? })
}

fn find(session: &Session, id: AccessKeyId) -> Result<Arc<Record<AccessKey>>> {
    session
        .store()
        .get::<AccessKey>(id)
        .filter(|key| session.acts_for(key.body.user))
        .ok_or_else(|| Error::not_found("access-key", id))
}

pub(super) async fn list(_: Arc<Authority>, session: Session, input: ListAccessKeys) -> Result<Page<View>> {
    let query = Query::all().index("user", owner(&session, input.user.as_ref())?);
    listing::filtered::<AccessKey, _>(&session, query, input.after, page_limit(input.limit), |_| true, view)
}

pub(super) async fn show(_: Arc<Authority>, session: Session, input: ShowAccessKey) -> Result<View> {
    view(&*find(&session, input.key)?)
}

pub(super) async fn delete(_: Arc<Authority>, session: Session, input: DeleteAccessKey) -> Result<()> {
    refuse_restricted(&session)?;
    session
        .decide(|transaction| {
            let record = find(&session, input.key)?;
            Ok((removal::access_key(&record)(transaction, session.store()), ()))
        })
        .await
}
