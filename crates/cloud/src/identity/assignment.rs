//! Handlers of the operations on assignments.

use std::sync::Arc;

use nephos_ops::{
    Role as BuiltIn, Scope,
    identity::{
        Actor as ActorView, Assignment as View, CreateAssignment, DeleteAssignment, ListAssignments,
        Target as TargetView,
    },
};
use nephos_store::{Draft, Query, Record, Store, Transaction};
use nephos_types::{AssignmentId, Error, Name, Page, Result};

use super::{
    Authority,
    kinds::{Actor, Assignment, Domain, Group, Project, Role, Target, User},
    listing::{self, page_limit},
    project, roles,
};
use crate::Session;

/// The names in an assignment; `None` while one of its ends is being deleted.
fn names(store: &Store, body: &Assignment) -> Option<(Name, Name, Option<Name>)> {
    let role = store.get::<Role>(body.role)?.meta.name.clone()?;
    let actor = match body.actor {
        Actor::User(id) => store.get::<User>(id)?.meta.name.clone()?,
        Actor::Group(id) => store.get::<Group>(id)?.meta.name.clone()?,
    };
    let target = match body.target {
        Target::Project(id) => Some(store.get::<Project>(id)?.meta.name.clone()?),
        Target::Domain(id) => Some(store.get::<Domain>(id)?.meta.name.clone()?),
        Target::System => None,
    };
    Some((role, actor, target))
}

fn view(store: &Store, record: &Record<Assignment>) -> Result<View> {
    let (role_name, actor_name, target_name) = names(store, &record.body).ok_or_else(|| gone(record.meta.id))?;
    Ok(View {
        id: record.meta.id,
        role: record.body.role,
        role_name,
        actor: match record.body.actor {
            Actor::User(id) => ActorView::User(id),
            Actor::Group(id) => ActorView::Group(id),
        },
        actor_name,
        target: match record.body.target {
            Target::Project(id) => TargetView::Project(id),
            Target::Domain(id) => TargetView::Domain(id),
            Target::System => TargetView::System,
        },
        target_name,
        inherited: record.body.inherited,
        created_at: record.meta.created_at,
    })
}

fn gone(id: AssignmentId) -> Error {
    Error::not_found("assignment", id)
}

pub(super) async fn create(_: Arc<Authority>, session: Session, input: CreateAssignment) -> Result<View> {
    let id = session
        .decide(|transaction| {
            let role = session.find::<Role>(&input.role)?;
            let (transaction, actor) = actor(&session, transaction, &input)?;
            let (transaction, target) = target(&session, transaction, &input)?;
            if input.inherited && target == Target::System {
                return Err(Error::invalid("not_inheritable", "Nothing is below the system")
                    .detail("`inherited` goes with a project or a domain"));
            }
            session.may_pass_on(role.meta.id)?;
            let body = Assignment { role: role.meta.id, actor, target, inherited: input.inherited };
            let claim = body.claim();
            if let Some(known) = session.store().owner(&claim) {
                return Ok((transaction, known.parse()?));
            }
            let id = AssignmentId::new();
            Ok((transaction.expect(&*role).claim(claim, id).create(Draft::new(id, body)), id))
        })
        .await?;
    view(session.store(), &*session.store().get::<Assignment>(id).ok_or_else(|| gone(id))?)
}

/// Who gets the role; must still exist when it is given.
fn actor(session: &Session, transaction: Transaction, input: &CreateAssignment) -> Result<(Transaction, Actor)> {
    let domain = [session.domain_or(input.actor_domain.as_ref())?.to_string()];
    match (&input.user, &input.group) {
        (Some(user), None) => {
            let user = session.find_in::<User>(&domain, user)?;
            Ok((transaction.expect(&*user), Actor::User(user.meta.id)))
        }
        (None, Some(group)) => {
            let group = session.find_in::<Group>(&domain, group)?;
            Ok((transaction.expect(&*group), Actor::Group(group.meta.id)))
        }
        _ => Err(Error::invalid("actor_unclear", "It is not clear who gets the role")
            .detail("give either `user` or `group`")),
    }
}

/// What the role is given on; must still exist when it is given.
fn target(session: &Session, transaction: Transaction, input: &CreateAssignment) -> Result<(Transaction, Target)> {
    let (transaction, target, shown) = match (&input.project, &input.domain, input.system) {
        (Some(reference), None, false) => {
            let project = project::find(session, reference, input.project_domain.as_ref())?;
            (transaction.expect(&*project), Target::Project(project.meta.id), ("project", reference.as_str()))
        }
        (None, Some(reference), false) => {
            let domain = session.find::<Domain>(reference)?;
            (transaction.expect(&*domain), Target::Domain(domain.meta.id), ("domain", reference.as_str()))
        }
        (None, None, true) => (transaction, Target::System, ("system", "system")),
        _ => {
            return Err(Error::invalid("target_unclear", "It is not clear what the role is given on")
                .detail("give one of `project`, `domain` and `system`"));
        }
    };
    if session.may_give_on(target) { Ok((transaction, target)) } else { Err(Error::not_found(shown.0, shown.1)) }
}

pub(super) async fn list(_: Arc<Authority>, session: Session, input: ListAssignments) -> Result<Page<View>> {
    let store = session.store();
    let mut query = Query::all();
    if let Some(role) = &input.role {
        query = query.index("role", session.find::<Role>(role)?.meta.id);
    }
    if let Some(user) = &input.user {
        query = query.index("actor", session.find::<User>(user)?.meta.id);
    }
    if let Some(group) = &input.group {
        query = query.index("actor", session.find::<Group>(group)?.meta.id);
    }
    if let Some(project) = &input.project {
        query = query.index("target", session.find::<Project>(project)?.meta.id);
    }
    if let Some(domain) = &input.domain {
        query = query.index("target", session.find::<Domain>(domain)?.meta.id);
    }
    if input.system {
        query = query.index("target", Target::System.key());
    }
    let identity = session.identity()?;
    let own = roles::actors(store, identity.user);
    let sees_scope = identity.has(BuiltIn::Reader) || session.is_admin();
    let fits = |record: &Record<Assignment>| {
        let body = &record.body;
        let visible = own.contains(&body.actor)
            || (sees_scope && (session.may_give_on(body.target) || identity.scope == Scope::System));
        visible && names(store, body).is_some()
    };
    listing::filtered::<Assignment, _>(&session, query, input.after, page_limit(input.limit), fits, |record| {
        view(store, record)
    })
}

pub(super) async fn delete(_: Arc<Authority>, session: Session, input: DeleteAssignment) -> Result<()> {
    session
        .decide(|transaction| {
            let record = session
                .store()
                .get::<Assignment>(input.assignment)
                .filter(|record| session.may_give_on(record.body.target))
                .ok_or_else(|| gone(input.assignment))?;
            session.may_pass_on(record.body.role)?;
            refuse_the_last_administrator(&session, &record)?;
            Ok((transaction.release(record.body.claim(), record.meta.id).delete(&*record), ()))
        })
        .await
}

/// Without anybody who has `admin` on the system, nobody could give it again.
fn refuse_the_last_administrator(session: &Session, record: &Record<Assignment>) -> Result<()> {
    let store = session.store();
    let is_admin = store
        .get::<Role>(record.body.role)
        .and_then(|role| role.meta.name.clone())
        .is_some_and(|name| name.as_str() == BuiltIn::Admin.name());
    if !is_admin || record.body.target != Target::System {
        return Ok(());
    }
    let query = Query::all().index("role", record.body.role).index("target", Target::System.key());
    if store.count::<Assignment>(&query) > 1 {
        return Ok(());
    }
    Err(Error::conflict("last_administrator", "Nobody else has the role `admin` on the system")
        .detail("without it, nobody could give it again")
        .next("give it to somebody else first", None))
}
