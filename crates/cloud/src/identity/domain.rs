//! Handlers of the operations on domains.

use std::sync::Arc;

use nephos_ops::identity::{CreateDomain, DeleteDomain, Domain as View, ListDomains, ShowDomain, UpdateDomain};
use nephos_store::{Draft, Query, Record};
use nephos_types::{DomainId, Error, Page, Result};

use super::{
    Authority,
    bootstrap::DEFAULT_DOMAIN,
    kinds::{Domain, Group, Project, Target, User},
    listing::{self, page_limit, rename, text},
    removal,
};
use crate::{CLOUD, Session, idempotency::Made, name_claim, resolve::name_of};

fn view(record: &Record<Domain>) -> Result<View> {
    Ok(View {
        id: record.meta.id,
        name: name_of(record)?,
        description: record.body.description.clone(),
        enabled: record.body.enabled,
        created_at: record.meta.created_at,
    })
}

fn by_id(session: &Session, id: DomainId) -> Result<View> {
    view(&*session.store().get::<Domain>(id).ok_or_else(|| Error::not_found("domain", id))?)
}

pub(super) async fn create(_: Arc<Authority>, session: Session, input: CreateDomain) -> Result<View> {
    let id = DomainId::new();
    let body = Domain { description: text(input.description), enabled: input.enabled.unwrap_or(true) };
    session
        .decide(|transaction| {
            let transaction = transaction
                .claim(name_claim::<Domain>(CLOUD, &input.name), id)
                .create(Draft::new(id, body.clone()).name(input.name.clone()));
            Ok((session.remember::<Domain>(transaction, id, None), ()))
        })
        .await?;
    by_id(&session, id)
}

pub(super) async fn recall(_: Arc<Authority>, session: Session, made: Made) -> Result<View> {
    by_id(&session, made.id::<Domain>()?)
}

pub(super) async fn list(_: Arc<Authority>, session: Session, input: ListDomains) -> Result<Page<View>> {
    listing::visible::<Domain, _>(&session, Query::all(), input.after, page_limit(input.limit), |_| true, view)
}

pub(super) async fn show(_: Arc<Authority>, session: Session, input: ShowDomain) -> Result<View> {
    view(&*session.find::<Domain>(&input.domain)?)
}

pub(super) async fn update(_: Arc<Authority>, session: Session, input: UpdateDomain) -> Result<View> {
    let id = session
        .decide(|transaction| {
            let old = session.find::<Domain>(&input.domain)?;
            let old_name = name_of(&old)?;
            let renamed = input.name.clone().filter(|name| *name != old_name);
            if old_name.as_str() == DEFAULT_DOMAIN && (renamed.is_some() || input.enabled == Some(false)) {
                return Err(default_domain());
            }
            let edit = old.edit().modify(|body| {
                if let Some(description) = &input.description {
                    body.description = description.as_str().to_owned();
                }
                body.enabled = input.enabled.unwrap_or(body.enabled);
            });
            let transaction = rename::<Domain>(transaction, CLOUD, old.meta.id, &old_name, renamed.as_ref());
            Ok((transaction.save(edit.name(renamed.unwrap_or(old_name))), old.meta.id))
        })
        .await?;
    by_id(&session, id)
}

pub(super) async fn delete(_: Arc<Authority>, session: Session, input: DeleteDomain) -> Result<()> {
    let domain = session.find::<Domain>(&input.domain)?;
    let id = domain.meta.id;
    refuse_deletion(&session, &domain)?;
    let given = Query::all().index("target", Target::Domain(id).key());
    removal::all(&session, |store| removal::assignments(store, &given)).await?;
    session
        .decide(|transaction| {
            let domain = session.find::<Domain>(&input.domain)?;
            refuse_deletion(&session, &domain)?;
            let name = name_of(&domain)?;
            Ok((transaction.release(name_claim::<Domain>(CLOUD, &name), id).delete(&domain), ()))
        })
        .await
}

/// A disabled domain cannot be logged in to, so nothing new appears in it while it is looked at.
fn refuse_deletion(session: &Session, domain: &Record<Domain>) -> Result<()> {
    let name = name_of(domain)?;
    if name.as_str() == DEFAULT_DOMAIN {
        return Err(default_domain());
    }
    if domain.body.enabled {
        return Err(Error::conflict("domain_enabled", format!("Domain `{name}` is enabled"))
            .detail("a domain is disabled before it is deleted, so that nobody works in it meanwhile")
            .next("disable it", Some(format!("nephos domain update {} --enabled false", domain.meta.id))));
    }
    let inside = Query::all().index("domain", domain.meta.id);
    let counts = [
        ("projects", session.store().count::<Project>(&inside)),
        ("users", session.store().count::<User>(&inside)),
        ("groups", session.store().count::<Group>(&inside)),
    ];
    listing::refuse_contents("domain", &name, counts.map(|(what, count)| (what, count as u64)))
}

fn default_domain() -> Error {
    Error::conflict("default_domain", "The domain `default` stays as it is")
        .detail("logins that name no domain are looked up in it; it can only be described")
}
