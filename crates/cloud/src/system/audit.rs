//! The audit trail: the store's change log as people read it.

use std::sync::Arc;

use nephos_ops::system::{AuditEntry, AuditTrail, ListAudit};
use nephos_store::{Action, Change, ChangeQuery, Revision};
use nephos_types::{PageRequest, Result};

use super::System;
use crate::session::Session;

fn entry(change: &Change) -> Result<AuditEntry> {
    Ok(AuditEntry {
        revision: change.revision.0,
        at: change.at,
        actor: change.author.actor.clone(),
        source: change.author.source.clone(),
        operation: change.author.operation.clone(),
        request: Some(change.author.request.clone()).filter(|request| !request.is_empty()),
        change: match change.action {
            Action::Created => "create",
            Action::Updated => "update",
            Action::Deleted => "delete",
        }
        .to_owned(),
        kind: change.kind.clone(),
        id: change.id.clone(),
        project: change.project,
        before: change.before_json()?,
        after: change.after_json()?,
    })
}

pub(super) async fn list(system: Arc<System>, _: Session, input: ListAudit) -> Result<AuditTrail> {
    let limit = PageRequest { limit: input.limit, after: None }.limit();
    let mut query = ChangeQuery::new().after(Revision(input.after.map_or(0, nephos_types::Number::get))).limit(limit);
    if let Some(kind) = &input.kind {
        query = query.kind(kind.as_str());
    }
    if let Some(id) = &input.id {
        query = query.id(id.as_str());
    }
    let changes = system.store.changes(&query).await?;
    let next = (changes.len() == limit).then(|| changes.last().map(|last| last.revision.0)).flatten();
    Ok(AuditTrail { items: changes.iter().map(entry).collect::<Result<_>>()?, next })
}
