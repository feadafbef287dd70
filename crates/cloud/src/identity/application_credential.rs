//! Handlers of the operations on application credentials.

use std::{collections::BTreeSet, sync::Arc};

use nephos_auth::password::{generate_secret, hash_generated};
use nephos_ops::identity::{
    ApplicationCredential as View, CreateApplicationCredential, DeleteApplicationCredential,
    ListApplicationCredentials, NewApplicationCredential, ShowApplicationCredential,
};
use nephos_store::{Draft, Query, Record, Store};
use nephos_types::{ApplicationCredentialId, Error, ErrorKind, Page, Reference, Result, RoleId, Timestamp, UserId};

use super::{
    Authority,
    kinds::{ApplicationCredential, ApplicationCredentialSecret, Project, Role, User},
    listing::{self, page_limit, text},
    removal,
};
use crate::{Session, idempotency::Made, name_claim, resolve::name_of};

fn view(store: &Store, record: &Record<ApplicationCredential>) -> Result<View> {
    let roles = record.body.roles.iter().filter_map(|id| store.get::<Role>(*id)?.meta.name.clone());
    Ok(View {
        id: record.meta.id,
        name: name_of(record)?,
        user: record.body.user,
        project: record.meta.project.ok_or_else(|| Error::bug("an application credential has no project"))?,
        description: record.body.description.clone(),
        roles: roles.collect(),
        unrestricted: record.body.unrestricted,
        expires_at: record.body.expires_at,
        created_at: record.meta.created_at,
    })
}

/// Credentials made with a credential would outlive its being found out.
pub(super) fn refuse_restricted(session: &Session) -> Result<()> {
    if session.identity()?.login.restricted {
        return Err(Error::new(
            ErrorKind::Forbidden,
            "restricted_credential",
            "An application credential makes and deletes no credentials",
        )
        .detail("this token was made with one that is not `unrestricted`")
        .next("log in with a password", None));
    }
    Ok(())
}

pub(super) async fn create(
    authority: Arc<Authority>,
    session: Session,
    input: CreateApplicationCredential,
) -> Result<NewApplicationCredential> {
    refuse_restricted(&session)?;
    let identity = Arc::clone(session.identity()?);
    let project = session.project()?;
    if input.expires_at.is_some_and(|end| end <= Timestamp::now()) {
        return Err(Error::invalid("expires_in_the_past", "`expires_at` has passed already"));
    }
    let (secret, hash) = match input.secret {
        Some(secret) => {
            let hash = authority.passwords.hash(secret.clone()).await?;
            (secret, hash)
        }
        None => {
            let secret = generate_secret()?;
            let hash = hash_generated(&secret);
            (secret, hash)
        }
    };
    let id = ApplicationCredentialId::new();
    session
        .decide(|transaction| {
            let user =
                session.store().get::<User>(identity.user).ok_or_else(|| Error::not_found("user", identity.user))?;
            let owner = session.store().get::<Project>(project).ok_or_else(|| Error::not_found("project", project))?;
            let body = ApplicationCredential {
                user: identity.user,
                description: text(input.description.clone()),
                roles: roles(&session, &identity.roles, input.roles.as_ref().map(nephos_types::List::as_slice))?,
                unrestricted: input.unrestricted,
                expires_at: input.expires_at,
            };
            let transaction = transaction
                .expect(&*user)
                .expect(&*owner)
                .claim(name_claim::<ApplicationCredential>(identity.user, &input.name), id)
                .create(Draft::new(id, body).name(input.name.clone()).project(project))
                .create(Draft::new(id, ApplicationCredentialSecret { hash: hash.clone() }));
            Ok((session.remember::<ApplicationCredential>(transaction, id, None), ()))
        })
        .await?;
    let record = session.store().get::<ApplicationCredential>(id).ok_or_else(|| Error::not_found("credential", id))?;
    Ok(NewApplicationCredential { credential: view(session.store(), &record)?, secret })
}

/// The roles that the credential gives: those asked for, each of which the caller has, or all that the caller has.
fn roles(session: &Session, held: &BTreeSet<String>, wanted: Option<&[Reference]>) -> Result<Vec<RoleId>> {
    let references: Vec<Reference> = match wanted {
        Some(wanted) => wanted.to_vec(),
        None => held.iter().map(|name| name.parse()).collect::<Result<_>>()?,
    };
    if references.is_empty() {
        return Err(
            Error::invalid("no_roles", "A credential without roles is of no use").detail("name at least one role")
        );
    }
    let roles = references.iter().map(|reference| {
        let role = session.find::<Role>(reference)?;
        let name = name_of(&role)?;
        if held.contains(name.as_str()) {
            return Ok(role.meta.id);
        }
        Err(Error::new(ErrorKind::Forbidden, "role_not_held", format!("You do not have the role `{name}` here"))
            .detail("a credential gives no more than its owner has on the project"))
    });
    roles.collect::<Result<BTreeSet<_>>>().map(|roles| roles.into_iter().collect())
}

/// A repeated call cannot be answered: the secret was shown once and is not kept.
pub(super) async fn recall(_: Arc<Authority>, _: Session, made: Made) -> Result<NewApplicationCredential> {
    Err(secret_not_kept(&made))
}

pub(super) fn secret_not_kept(made: &Made) -> Error {
    Error::conflict("secret_not_repeated", "This was made by an earlier call with the same idempotency key")
        .detail(format!("it is {}; its secret was in that call's answer and is not shown twice", made.id))
        .next("if the answer was lost, delete it and make another with a new key", None)
}

/// Whose credentials are meant: the caller's, or somebody else's for the administrator.
pub(super) fn owner(session: &Session, user: Option<&Reference>) -> Result<UserId> {
    let own = session.identity()?.user;
    let Some(user) = user else { return Ok(own) };
    let id = session.find::<User>(user)?.meta.id;
    if session.acts_for(id) {
        Ok(id)
    } else {
        Err(Error::new(ErrorKind::Forbidden, "not_yours", "Credentials are seen by their owner only")
            .detail("others' need the role `admin`"))
    }
}

fn find(
    session: &Session,
    reference: &Reference,
    user: Option<&Reference>,
) -> Result<Arc<Record<ApplicationCredential>>> {
    session.find_in::<ApplicationCredential>(&[owner(session, user)?.to_string()], reference)
}

pub(super) async fn list(_: Arc<Authority>, session: Session, input: ListApplicationCredentials) -> Result<Page<View>> {
    let query = Query::all().index("user", owner(&session, input.user.as_ref())?);
    listing::filtered::<ApplicationCredential, _>(
        &session,
        query,
        input.after,
        page_limit(input.limit),
        |_| true,
        |record| view(session.store(), record),
    )
}

pub(super) async fn show(_: Arc<Authority>, session: Session, input: ShowApplicationCredential) -> Result<View> {
    view(session.store(), &*find(&session, &input.credential, input.user.as_ref())?)
}

pub(super) async fn delete(_: Arc<Authority>, session: Session, input: DeleteApplicationCredential) -> Result<()> {
    refuse_restricted(&session)?;
    let id = find(&session, &input.credential, input.user.as_ref())?.meta.id;
    let made_with_it = Query::all().index("credential", id);
    removal::all(&session, |store| removal::access_keys(store, &made_with_it)).await?;
    session
        .decide(|transaction| {
            let Some(record) = session.store().get::<ApplicationCredential>(id) else { return Ok((transaction, ())) };
            Ok((removal::credential(&record)(transaction, session.store()), ()))
        })
        .await
}
