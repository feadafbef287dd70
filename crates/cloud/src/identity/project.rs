//! Handlers of the operations on projects.

use std::sync::Arc;

use nephos_ops::identity::{CreateProject, DeleteProject, ListProjects, Project as View, ShowProject, UpdateProject};
use nephos_store::{Bound, CommitError, Draft, Query, Record};
use nephos_types::{DomainId, Error, ErrorKind, Page, ProjectId, Reference, Result};

use super::{
    Authority,
    kinds::{Domain, Project, Target},
    listing::{self, page_limit, rename, text},
    removal, roles,
};
use crate::{Named, Session, Visible, idempotency::Made, name_claim, resolve::name_of};

fn view(record: &Record<Project>) -> Result<View> {
    Ok(View {
        id: record.meta.id,
        name: name_of(record)?,
        domain: record.body.domain,
        parent: record.body.parent,
        description: record.body.description.clone(),
        enabled: record.body.enabled,
        labels: record.meta.labels.clone(),
        created_at: record.meta.created_at,
    })
}

fn by_id(session: &Session, id: ProjectId) -> Result<View> {
    view(&*session.store().get::<Project>(id).ok_or_else(|| Error::not_found("project", id))?)
}

/// The project that the caller means, with its name looked up in a domain.
pub(super) fn find(
    session: &Session,
    reference: &Reference,
    domain: Option<&Reference>,
) -> Result<Arc<Record<Project>>> {
    session.find_in::<Project>(&[session.domain_or(domain)?.to_string()], reference)
}

/// A domain in which the caller may make something: enabled, and the token's own unless it is for the system.
pub(super) fn managed_domain(session: &Session, reference: Option<&Reference>) -> Result<Arc<Record<Domain>>> {
    let id: DomainId = session.domain_or(reference)?;
    let domain = session.store().get::<Domain>(id).filter(|_| session.manages(id));
    let domain = domain.ok_or_else(|| match reference {
        Some(reference) => Error::not_found("domain", reference),
        None => Error::not_found("domain", id),
    })?;
    if !domain.body.enabled {
        return Err(Error::conflict("domain_disabled", format!("Domain `{}` is disabled", name_of(&domain)?))
            .next("enable it first", Some(format!("nephos domain update {id} --enabled true"))));
    }
    Ok(domain)
}

pub(super) async fn create(_: Arc<Authority>, session: Session, input: CreateProject) -> Result<View> {
    let id = ProjectId::new();
    session
        .decide(|mut transaction| {
            let domain = managed_domain(&session, input.domain.as_ref())?;
            transaction = transaction.expect(&*domain);
            let parent = match &input.parent {
                None => None,
                Some(reference) => {
                    let parent = session.find_in::<Project>(&[domain.meta.id.to_string()], reference)?;
                    check_parent(&session, &domain, &parent)?;
                    transaction = transaction.expect(&*parent);
                    Some(parent.meta.id)
                }
            };
            let body = Project {
                domain: domain.meta.id,
                parent,
                description: text(input.description.clone()),
                enabled: input.enabled.unwrap_or(true),
            };
            let transaction = transaction
                .claim(name_claim::<Project>(domain.meta.id, &input.name), id)
                .create(Draft::new(id, body).name(input.name.clone()).labels(input.labels.clone()));
            Ok((session.remember::<Project>(transaction, id, None), ()))
        })
        .await?;
    by_id(&session, id)
}

fn check_parent(session: &Session, domain: &Record<Domain>, parent: &Record<Project>) -> Result<()> {
    if parent.body.domain != domain.meta.id {
        return Err(Error::invalid("parent_elsewhere", "The project above must be in the same domain")
            .detail(format!("`{}` belongs to {}", parent.meta.id, parent.body.domain)));
    }
    if !parent.body.enabled {
        return Err(Error::conflict("project_disabled", format!("Project `{}` is disabled", name_of(parent)?)));
    }
    if roles::ancestors(session.store(), &parent.body).len() + 2 > roles::MAX_DEPTH {
        return Err(Error::invalid("too_deep", "Projects are nested too deeply")
            .detail(format!("at most {} below each other are accepted", roles::MAX_DEPTH)));
    }
    Ok(())
}

pub(super) async fn recall(_: Arc<Authority>, session: Session, made: Made) -> Result<View> {
    by_id(&session, made.id::<Project>()?)
}

pub(super) async fn list(_: Arc<Authority>, session: Session, input: ListProjects) -> Result<Page<View>> {
    let mut query = Query::all();
    if let Some(domain) = &input.domain {
        query = query.index("domain", session.find::<Domain>(domain)?.meta.id);
    }
    let mine = match session.visible() {
        Visible::Everything => input.mine,
        Visible::Domain(own) => {
            query = if input.mine { query } else { query.index("domain", own) };
            input.mine
        }
        Visible::Project(_) | Visible::Nothing => true,
    };
    // Once for the whole list: asking for each project whether the caller may see it would cost as many look-ups.
    let mine = if mine { Some(roles::projects_of(session.store(), session.identity()?.user)) } else { None };
    if let Some(parent) = &input.parent {
        query = query.index("parent", session.find::<Project>(parent)?.meta.id);
    }
    let fits = |record: &Record<Project>| {
        mine.as_ref().is_none_or(|mine| mine.contains(&record.meta.id))
            && input.name.as_ref().is_none_or(|name| record.meta.name.as_ref() == Some(name))
            && input.enabled.is_none_or(|enabled| record.body.enabled == enabled)
    };
    listing::filtered::<Project, _>(&session, query, input.after, page_limit(input.limit), fits, view)
}

pub(super) async fn show(_: Arc<Authority>, session: Session, input: ShowProject) -> Result<View> {
    view(&*find(&session, &input.project, input.domain.as_ref())?)
}

/// The project, if the caller may change it. That it may be seen is not enough.
fn managed(session: &Session, reference: &Reference) -> Result<Arc<Record<Project>>> {
    let project = session.find::<Project>(reference)?;
    if session.manages(project.body.domain) { Ok(project) } else { Err(Error::not_found(Project::NOUN, reference)) }
}

pub(super) async fn update(_: Arc<Authority>, session: Session, input: UpdateProject) -> Result<View> {
    let id = session
        .decide(|transaction| {
            let old = managed(&session, &input.project)?;
            let old_name = name_of(&old)?;
            let renamed = input.name.clone().filter(|name| *name != old_name);
            let mut edit = old.edit().modify(|body| {
                if let Some(description) = &input.description {
                    body.description = description.as_str().to_owned();
                }
                body.enabled = input.enabled.unwrap_or(body.enabled);
            });
            if let Some(labels) = &input.labels {
                edit = edit.labels(labels.clone());
            }
            let transaction = rename::<Project>(transaction, old.body.domain, old.meta.id, &old_name, renamed.as_ref());
            Ok((transaction.save(edit.name(renamed.unwrap_or(old_name))), old.meta.id))
        })
        .await?;
    by_id(&session, id)
}

pub(super) async fn delete(authority: Arc<Authority>, session: Session, input: DeleteProject) -> Result<()> {
    let project = managed(&session, &input.project)?;
    let id = project.meta.id;
    refuse_contents(&authority, &session, &project)?;
    // Disabled first: what is made in a project expects its record to be enabled, so nothing new appears from here on.
    let was_enabled = set_enabled(&session, id, false).await?;
    if let Err(error) = refuse_contents(&authority, &session, &project) {
        set_enabled(&session, id, was_enabled).await?;
        return Err(error);
    }
    let given = Query::all().index("target", Target::Project(id).key());
    removal::all(&session, |store| removal::assignments(store, &given)).await?;
    removal::all(&session, |store| removal::access_keys(store, &Query::all().project(id))).await?;
    removal::all(&session, |store| removal::credentials(store, &Query::all().project(id))).await?;

    let project = session.store().get::<Project>(id).ok_or_else(|| Error::not_found("project", id))?;
    let mut transaction = session
        .transaction()
        .release(name_claim::<Project>(project.body.domain, name_of(&project)?), id)
        .delete(&*project);
    for counter in authority.project_uses.iter().filter_map(|usage| usage.counter) {
        // Up and down again: refused if the counter is above zero at this very moment.
        transaction = transaction.add(counter(id), 1, Bound::AtMost(1)).add(counter(id), -1, Bound::Any);
    }
    match session.commit(transaction).await {
        Ok(_) => Ok(()),
        Err(CommitError::Exceeded { .. }) => {
            set_enabled(&session, id, was_enabled).await?;
            refuse_contents(&authority, &session, &project)?;
            Err(Error::new(ErrorKind::Conflict, "not_empty", "Something is being made in the project"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Enables or disables; returns how it was.
async fn set_enabled(session: &Session, id: ProjectId, enabled: bool) -> Result<bool> {
    session
        .decide(|transaction| {
            let project = session.store().get::<Project>(id).ok_or_else(|| Error::not_found("project", id))?;
            let was = project.body.enabled;
            if was == enabled {
                return Ok((transaction, was));
            }
            Ok((transaction.save(project.edit().modify(|body| body.enabled = enabled)), was))
        })
        .await
}

fn refuse_contents(authority: &Authority, session: &Session, project: &Record<Project>) -> Result<()> {
    let id = project.meta.id;
    let below = session.store().count::<Project>(&Query::all().index("parent", id)) as u64;
    let held = authority.project_uses.iter().map(|usage| (usage.what, (usage.count)(session.store(), id)));
    listing::refuse_contents("project", &name_of(project)?, [("projects", below)].into_iter().chain(held))
}
