//! Handlers of the operations on groups.

use std::sync::Arc;

use nephos_ops::identity::{
    AddGroupUser, CreateGroup, DeleteGroup, Group as View, ListGroupUsers, ListGroups, RemoveGroupUser, ShowGroup,
    UpdateGroup, User as UserView,
};
use nephos_store::{Draft, Query, Record};
use nephos_types::{Error, GroupId, MembershipId, Page, Reference, Result};

use super::{
    Authority,
    kinds::{Actor, Domain, Group, Membership, User},
    listing::{self, page_limit, rename, text},
    project::managed_domain,
    removal, user,
};
use crate::{Named, Session, idempotency::Made, name_claim, resolve::name_of};

fn view(record: &Record<Group>) -> Result<View> {
    Ok(View {
        id: record.meta.id,
        name: name_of(record)?,
        domain: record.body.domain,
        description: record.body.description.clone(),
        created_at: record.meta.created_at,
    })
}

fn by_id(session: &Session, id: GroupId) -> Result<View> {
    view(&*session.store().get::<Group>(id).ok_or_else(|| Error::not_found("group", id))?)
}

pub(super) async fn create(_: Arc<Authority>, session: Session, input: CreateGroup) -> Result<View> {
    let id = GroupId::new();
    session
        .decide(|transaction| {
            let domain = managed_domain(&session, input.domain.as_ref())?;
            let body = Group { domain: domain.meta.id, description: text(input.description.clone()) };
            let transaction = transaction
                .expect(&*domain)
                .claim(name_claim::<Group>(domain.meta.id, &input.name), id)
                .create(Draft::new(id, body).name(input.name.clone()));
            Ok((session.remember::<Group>(transaction, id, None), ()))
        })
        .await?;
    by_id(&session, id)
}

pub(super) async fn recall(_: Arc<Authority>, session: Session, made: Made) -> Result<View> {
    by_id(&session, made.id::<Group>()?)
}

pub(super) async fn list(_: Arc<Authority>, session: Session, input: ListGroups) -> Result<Page<View>> {
    let mut query = Query::all();
    if let Some(domain) = &input.domain {
        query = query.index("domain", session.find::<Domain>(domain)?.meta.id);
    }
    let member = input.user.as_ref().map(|user| session.find::<User>(user)).transpose()?;
    let fits = |record: &Record<Group>| {
        input.name.as_ref().is_none_or(|name| record.meta.name.as_ref() == Some(name))
            && member
                .as_ref()
                .is_none_or(|user| session.store().owner(&Membership::claim(record.meta.id, user.meta.id)).is_some())
    };
    listing::visible::<Group, _>(&session, query, input.after, page_limit(input.limit), fits, view)
}

pub(super) async fn show(_: Arc<Authority>, session: Session, input: ShowGroup) -> Result<View> {
    view(&*session.find::<Group>(&input.group)?)
}

/// The group, if the caller may change it.
fn managed(session: &Session, reference: &Reference) -> Result<Arc<Record<Group>>> {
    let group = session.find::<Group>(reference)?;
    if !session.manages(group.body.domain) {
        return Err(Error::not_found(Group::NOUN, reference));
    }
    session.outranks(Actor::Group(group.meta.id))?;
    Ok(group)
}

pub(super) async fn update(_: Arc<Authority>, session: Session, input: UpdateGroup) -> Result<View> {
    let id = session
        .decide(|transaction| {
            let old = managed(&session, &input.group)?;
            let old_name = name_of(&old)?;
            let renamed = input.name.clone().filter(|name| *name != old_name);
            let edit = old.edit().modify(|body| {
                if let Some(description) = &input.description {
                    body.description = description.as_str().to_owned();
                }
            });
            let transaction = rename::<Group>(transaction, old.body.domain, old.meta.id, &old_name, renamed.as_ref());
            Ok((transaction.save(edit.name(renamed.unwrap_or(old_name))), old.meta.id))
        })
        .await?;
    by_id(&session, id)
}

pub(super) async fn delete(_: Arc<Authority>, session: Session, input: DeleteGroup) -> Result<()> {
    let id = managed(&session, &input.group)?.meta.id;
    let given = Query::all().index("actor", Actor::Group(id).key());
    let inside = Query::all().index("group", id);
    removal::all(&session, |store| removal::assignments(store, &given)).await?;
    removal::all(&session, |store| removal::memberships(store, &inside)).await?;
    session
        .decide(|transaction| {
            let Some(group) = session.store().get::<Group>(id) else { return Ok((transaction, ())) };
            let claim = name_claim::<Group>(group.body.domain, name_of(&group)?);
            Ok((transaction.release(claim, id).delete(&*group), ()))
        })
        .await
}

pub(super) async fn add_user(_: Arc<Authority>, session: Session, input: AddGroupUser) -> Result<()> {
    session
        .decide(|transaction| {
            let group = managed(&session, &input.group)?;
            let user = session.find::<User>(&input.user)?;
            let claim = Membership::claim(group.meta.id, user.meta.id);
            if session.store().owner(&claim).is_some() {
                return Ok((transaction, ()));
            }
            let id = MembershipId::new();
            let body = Membership { group: group.meta.id, user: user.meta.id };
            let transaction = transaction.expect(&*group).expect(&*user).claim(claim, id).create(Draft::new(id, body));
            Ok((transaction, ()))
        })
        .await
}

pub(super) async fn remove_user(_: Arc<Authority>, session: Session, input: RemoveGroupUser) -> Result<()> {
    session
        .decide(|transaction| {
            let group = managed(&session, &input.group)?;
            let user = session.find::<User>(&input.user)?;
            let claim = Membership::claim(group.meta.id, user.meta.id);
            let membership = session
                .store()
                .owner(&claim)
                .and_then(|id| session.store().get::<Membership>(id.parse().ok()?))
                .ok_or_else(|| {
                    Error::new(
                        nephos_types::ErrorKind::NotFound,
                        "not_a_member",
                        format!("User `{}` is not in group `{}`", input.user, input.group),
                    )
                })?;
            Ok((transaction.release(claim, membership.meta.id).delete(&*membership), ()))
        })
        .await
}

pub(super) async fn users(_: Arc<Authority>, session: Session, input: ListGroupUsers) -> Result<Page<UserView>> {
    let group = session.find::<Group>(&input.group)?;
    let query = Query::all().index("group", group.meta.id);
    let user = |record: &Record<Membership>| session.store().get::<User>(record.body.user);
    listing::filtered::<Membership, _>(
        &session,
        query,
        input.after,
        page_limit(input.limit),
        |record| user(record).is_some(),
        |record| {
            let user = user(record).ok_or_else(|| Error::not_found("user", record.body.user))?;
            user::view(&session, &user)
        },
    )
}
