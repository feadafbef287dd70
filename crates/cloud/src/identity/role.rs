//! Handlers of the operations on roles.

use std::sync::Arc;

use nephos_ops::{
    Role as BuiltIn,
    identity::{CreateRole, DeleteRole, ListRoles, Role as View, ShowRole, UpdateRole},
};
use nephos_store::{Draft, Query, Record, Store};
use nephos_types::{Error, Page, Reference, Result, RoleId};

use super::{
    Authority,
    kinds::{ApplicationCredential, Assignment, Role},
    listing::{self, page_limit, rename, text},
    roles,
};
use crate::{CLOUD, Session, idempotency::Made, name_claim, resolve::name_of};

fn view(store: &Store, record: &Record<Role>) -> Result<View> {
    let implied = record.body.implies.iter().filter_map(|id| store.get::<Role>(*id)?.meta.name.clone());
    Ok(View {
        id: record.meta.id,
        name: name_of(record)?,
        description: record.body.description.clone(),
        implies: implied.collect(),
        built_in: record.body.built_in,
        created_at: record.meta.created_at,
    })
}

fn by_id(session: &Session, id: RoleId) -> Result<View> {
    view(session.store(), &*session.store().get::<Role>(id).ok_or_else(|| Error::not_found("role", id))?)
}

/// The implied roles; `admin` is not among them, because who has it is meant to be seen in the assignments.
fn implied(session: &Session, of: Option<RoleId>, references: &[Reference]) -> Result<Vec<Arc<Record<Role>>>> {
    let implied: Vec<Arc<Record<Role>>> =
        references.iter().map(|reference| session.find::<Role>(reference)).collect::<Result<_>>()?;
    let all = roles::expand(session.store(), implied.iter().map(|role| role.meta.id));
    if of.is_some_and(|of| all.contains(&of)) {
        return Err(Error::invalid("role_cycle", "A role cannot imply itself")
            .detail("one of these roles implies the one that is to imply it"));
    }
    if roles::names(session.store(), &all).contains(BuiltIn::Admin.name()) {
        return Err(Error::invalid("role_implies_admin", "The role `admin` cannot be implied")
            .detail("whoever is to be the cloud's administrator is given `admin` itself"));
    }
    Ok(implied)
}

pub(super) async fn create(_: Arc<Authority>, session: Session, input: CreateRole) -> Result<View> {
    let id = RoleId::new();
    session
        .decide(|mut transaction| {
            let implied = implied(&session, None, input.implies.as_slice())?;
            for role in &implied {
                transaction = transaction.expect(&**role);
            }
            let body = Role {
                description: text(input.description.clone()),
                implies: implied.iter().map(|role| role.meta.id).collect(),
                built_in: false,
            };
            let transaction = transaction
                .claim(name_claim::<Role>(CLOUD, &input.name), id)
                .create(Draft::new(id, body).name(input.name.clone()));
            Ok((session.remember::<Role>(transaction, id, None), ()))
        })
        .await?;
    by_id(&session, id)
}

pub(super) async fn recall(_: Arc<Authority>, session: Session, made: Made) -> Result<View> {
    by_id(&session, made.id::<Role>()?)
}

pub(super) async fn list(_: Arc<Authority>, session: Session, input: ListRoles) -> Result<Page<View>> {
    let fits = |record: &Record<Role>| input.name.as_ref().is_none_or(|name| record.meta.name.as_ref() == Some(name));
    listing::visible::<Role, _>(&session, Query::all(), input.after, page_limit(input.limit), fits, |role| {
        view(session.store(), role)
    })
}

pub(super) async fn show(_: Arc<Authority>, session: Session, input: ShowRole) -> Result<View> {
    view(session.store(), &*session.find::<Role>(&input.role)?)
}

/// The role, if it is not part of the cloud.
fn own(session: &Session, reference: &Reference) -> Result<Arc<Record<Role>>> {
    let role = session.find::<Role>(reference)?;
    if role.body.built_in {
        return Err(Error::conflict("built_in_role", format!("Role `{}` is built in", name_of(&role)?))
            .detail("it is neither changed nor deleted, because the default policy rests on it")
            .next("make a role of your own", Some("nephos role create --help".to_owned())));
    }
    Ok(role)
}

pub(super) async fn update(_: Arc<Authority>, session: Session, input: UpdateRole) -> Result<View> {
    let id = session
        .decide(|mut transaction| {
            let old = own(&session, &input.role)?;
            let old_name = name_of(&old)?;
            let renamed = input.name.clone().filter(|name| *name != old_name);
            let mut body = old.body.clone();
            if let Some(description) = &input.description {
                body.description = description.as_str().to_owned();
            }
            if let Some(references) = &input.implies {
                let implied = implied(&session, Some(old.meta.id), references.as_slice())?;
                for role in &implied {
                    transaction = transaction.expect(&**role);
                }
                body.implies = implied.iter().map(|role| role.meta.id).collect();
            }
            let transaction = rename::<Role>(transaction, CLOUD, old.meta.id, &old_name, renamed.as_ref());
            Ok((transaction.save(old.edit().body(body).name(renamed.unwrap_or(old_name))), old.meta.id))
        })
        .await?;
    by_id(&session, id)
}

pub(super) async fn delete(_: Arc<Authority>, session: Session, input: DeleteRole) -> Result<()> {
    session
        .decide(|transaction| {
            let role = own(&session, &input.role)?;
            let id = role.meta.id;
            let name = name_of(&role)?;
            let uses = [
                ("assignments", session.store().count::<Assignment>(&Query::all().index("role", id))),
                (
                    "application credentials",
                    session.store().count::<ApplicationCredential>(&Query::all().index("role", id)),
                ),
                ("roles that imply it", session.store().count::<Role>(&Query::all().index("implies", id))),
            ];
            let mut error = Error::conflict("in_use", format!("Role `{name}` is in use"));
            for (what, count) in uses.into_iter().filter(|(_, count)| *count > 0) {
                error = error.reason(what, "unused", format!("{count} {what}"));
            }
            if !error.reasons.is_empty() {
                return Err(error.next("take it away first", Some(format!("nephos assignment list --role {id}"))));
            }
            Ok((transaction.release(name_claim::<Role>(CLOUD, &name), id).delete(&*role), ()))
        })
        .await
}
