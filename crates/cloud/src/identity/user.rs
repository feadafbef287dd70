//! Handlers of the operations on users.

use std::sync::Arc;

use nephos_ops::identity::{
    CreateUser, DeleteUser, ListUsers, ResetPassword, SetPassword, ShowUser, UpdateUser, User as View,
};
use nephos_store::{Draft, Query, Record, Transaction};
use nephos_types::{Error, Page, ProjectId, Reference, Result, UserId};

use super::{
    Authority,
    kinds::{Actor, Domain, Project, User, UserSecret},
    listing::{self, page_limit, rename, text},
    project::managed_domain,
    removal,
};
use crate::{Named, Session, idempotency::Made, name_claim, resolve::name_of};

pub(super) fn view(session: &Session, record: &Record<User>) -> Result<View> {
    Ok(View {
        id: record.meta.id,
        name: name_of(record)?,
        domain: record.body.domain,
        description: record.body.description.clone(),
        email: record.body.email.clone(),
        enabled: record.body.enabled,
        default_project: record.body.default_project,
        has_password: session.store().get::<UserSecret>(record.meta.id).is_some(),
        created_at: record.meta.created_at,
    })
}

fn by_id(session: &Session, id: UserId) -> Result<View> {
    view(session, &*session.store().get::<User>(id).ok_or_else(|| Error::not_found("user", id))?)
}

/// The user that the caller means, with its name looked up in a domain.
pub(super) fn find(session: &Session, reference: &Reference, domain: Option<&Reference>) -> Result<Arc<Record<User>>> {
    session.find_in::<User>(&[session.domain_or(domain)?.to_string()], reference)
}

pub(super) async fn create(authority: Arc<Authority>, session: Session, input: CreateUser) -> Result<View> {
    // What can be refused is refused before the costly hash.
    managed_domain(&session, input.domain.as_ref())?;
    let hash = match input.password {
        Some(password) => Some(authority.passwords.hash(password).await?),
        None => None,
    };
    let id = UserId::new();
    session
        .decide(|transaction| {
            let domain = managed_domain(&session, input.domain.as_ref())?;
            let body = User {
                domain: domain.meta.id,
                description: text(input.description.clone()),
                email: email(input.email.as_ref().map(nephos_types::Text::as_str))?,
                enabled: input.enabled.unwrap_or(true),
                default_project: default_project(&session, input.default_project.as_ref())?,
                epoch: 0,
            };
            let mut transaction = transaction
                .expect(&*domain)
                .claim(name_claim::<User>(domain.meta.id, &input.name), id)
                .create(Draft::new(id, body).name(input.name.clone()));
            if let Some(password_hash) = hash.clone() {
                transaction = transaction.create(Draft::new(id, UserSecret { password_hash }));
            }
            Ok((session.remember::<User>(transaction, id, None), ()))
        })
        .await?;
    by_id(&session, id)
}

fn default_project(session: &Session, reference: Option<&Reference>) -> Result<Option<ProjectId>> {
    reference.map(|reference| session.find::<Project>(reference).map(|project| project.meta.id)).transpose()
}

fn email(text: Option<&str>) -> Result<Option<String>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let plausible = text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    if !plausible || text.chars().any(char::is_whitespace) {
        return Err(Error::invalid("invalid_email", "Not an e-mail address").detail("it has the form name@host"));
    }
    Ok(Some(text.to_owned()))
}

pub(super) async fn recall(_: Arc<Authority>, session: Session, made: Made) -> Result<View> {
    by_id(&session, made.id::<User>()?)
}

pub(super) async fn list(_: Arc<Authority>, session: Session, input: ListUsers) -> Result<Page<View>> {
    let mut query = Query::all();
    if let Some(domain) = &input.domain {
        query = query.index("domain", session.find::<Domain>(domain)?.meta.id);
    }
    let fits = |record: &Record<User>| {
        input.name.as_ref().is_none_or(|name| record.meta.name.as_ref() == Some(name))
            && input.enabled.is_none_or(|enabled| record.body.enabled == enabled)
    };
    listing::visible::<User, _>(&session, query, input.after, page_limit(input.limit), fits, |one| view(&session, one))
}

pub(super) async fn show(_: Arc<Authority>, session: Session, input: ShowUser) -> Result<View> {
    view(&session, &*find(&session, &input.user, input.domain.as_ref())?)
}

/// The user, if the caller may change it. That it may be seen is not enough.
fn managed(session: &Session, reference: &Reference) -> Result<Arc<Record<User>>> {
    let user = session.find::<User>(reference)?;
    if !session.manages(user.body.domain) {
        return Err(Error::not_found(User::NOUN, reference));
    }
    session.outranks(Actor::User(user.meta.id))?;
    Ok(user)
}

pub(super) async fn update(_: Arc<Authority>, session: Session, input: UpdateUser) -> Result<View> {
    let id = session
        .decide(|transaction| {
            let old = managed(&session, &input.user)?;
            let old_name = name_of(&old)?;
            let renamed = input.name.clone().filter(|name| *name != old_name);
            let mut body = old.body.clone();
            if let Some(description) = &input.description {
                body.description = description.as_str().to_owned();
            }
            if let Some(address) = &input.email {
                body.email = email(Some(address.as_str()))?;
            }
            if let Some(project) = default_project(&session, input.default_project.as_ref())? {
                body.default_project = Some(project);
            }
            if let Some(enabled) = input.enabled {
                if body.enabled && !enabled {
                    refuse_locking_out(&session, &old)?;
                    // Tokens from before stay void when the user is enabled again.
                    body.epoch = body.epoch.wrapping_add(1);
                }
                body.enabled = enabled;
            }
            let transaction = rename::<User>(transaction, old.body.domain, old.meta.id, &old_name, renamed.as_ref());
            Ok((transaction.save(old.edit().body(body).name(renamed.unwrap_or(old_name))), old.meta.id))
        })
        .await?;
    by_id(&session, id)
}

/// Whoever disables or deletes oneself cannot take it back.
fn refuse_locking_out(session: &Session, user: &Record<User>) -> Result<()> {
    if session.identity()?.user == user.meta.id {
        return Err(Error::conflict("own_user", "That would lock yourself out")
            .detail("another administrator can disable or delete your user"));
    }
    Ok(())
}

pub(super) async fn delete(_: Arc<Authority>, session: Session, input: DeleteUser) -> Result<()> {
    let user = managed(&session, &input.user)?;
    refuse_locking_out(&session, &user)?;
    let id = user.meta.id;
    let of_user = Query::all().index("user", id);
    let given = Query::all().index("actor", Actor::User(id).key());
    removal::all(&session, |store| removal::access_keys(store, &of_user)).await?;
    removal::all(&session, |store| removal::credentials(store, &of_user)).await?;
    removal::all(&session, |store| removal::assignments(store, &given)).await?;
    removal::all(&session, |store| removal::memberships(store, &of_user)).await?;
    session
        .decide(|mut transaction| {
            let Some(user) = session.store().get::<User>(id) else { return Ok((transaction, ())) };
            if let Some(secret) = session.store().get::<UserSecret>(id) {
                transaction = transaction.delete(&*secret);
            }
            let claim = name_claim::<User>(user.body.domain, name_of(&user)?);
            Ok((transaction.release(claim, id).delete(&*user), ()))
        })
        .await
}

pub(super) async fn set_password(authority: Arc<Authority>, session: Session, input: SetPassword) -> Result<()> {
    let id = session.identity()?.user;
    let kept = session.store().get::<UserSecret>(id);
    let kept = kept.as_ref().map(|kept| kept.body.password_hash.as_str());
    authority.check(&id.to_string(), &session.context().caller.address, &input.original_password, kept).await?;
    let hash = authority.passwords.hash(input.password).await?;
    session.decide(|transaction| Ok((put_password(&session, transaction, id, &hash)?, ()))).await
}

pub(super) async fn reset_password(authority: Arc<Authority>, session: Session, input: ResetPassword) -> Result<()> {
    managed(&session, &input.user)?;
    let hash = authority.passwords.hash(input.password).await?;
    session
        .decide(|transaction| {
            let user = managed(&session, &input.user)?;
            Ok((put_password(&session, transaction, user.meta.id, &hash)?, ()))
        })
        .await
}

/// A new password; tokens from before are void.
fn put_password(session: &Session, transaction: Transaction, id: UserId, hash: &str) -> Result<Transaction> {
    let user = session.store().get::<User>(id).ok_or_else(|| Error::not_found("user", id))?;
    let secret = UserSecret { password_hash: hash.to_owned() };
    let transaction = match session.store().get::<UserSecret>(id) {
        Some(old) => transaction.update(&*old, secret),
        None => transaction.create(Draft::new(id, secret)),
    };
    Ok(transaction.save(user.edit().modify(|body| body.epoch = body.epoch.wrapping_add(1))))
}
