//! Changes as they happen, as server-sent events: the store's feed, cut down to what the caller may see.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use nephos_ops::{Event, EventStream, system::WatchEvents};
use nephos_store::{Action, Change, Revision};
use nephos_types::{Error, ErrorKind, Result};

use super::System;
use crate::session::{Session, Visible};

fn event(change: &Change) -> Event {
    let name = match change.action {
        Action::Created => "create",
        Action::Updated => "update",
        Action::Deleted => "delete",
    };
    // No content: a stored form may hold what its reader must not see; who wants the resource asks for it.
    let data = serde_json::json!({
        "revision": change.revision.0,
        "at": change.at,
        "kind": change.kind,
        "id": change.id,
        "project": change.project,
        "operation": change.author.operation,
        "actor": change.author.actor,
    });
    Event { id: Some(change.revision.0.to_string()), name: name.into(), data: data.to_string() }
}

pub(super) async fn watch(system: Arc<System>, session: Session, input: WatchEvents) -> Result<EventStream> {
    let visible = session.listed(input.all_projects);
    let mut watch = system.store.watch(input.after.map(|after| Revision(after.get())));
    if let Visible::Project(project) = visible {
        watch = watch.project(project);
    } else if visible != Visible::Everything {
        return Err(Error::new(
            ErrorKind::Forbidden,
            "no_project",
            "Events are followed in a project, or in all of them",
        )
        .next("log in to a project", None));
    }
    let kind = input.kind.map(|kind| kind.as_str().to_owned());
    let events = stream::unfold((watch, kind), |(mut watch, kind)| async move {
        loop {
            match watch.next().await {
                Ok(change) if kind.as_ref().is_none_or(|kind| *kind == change.kind) => {
                    return Some((Ok(event(&change)), (watch, kind)));
                }
                Ok(_) => {}
                // The stream ends; the client asks again after the last event it has, and is told if that is gone.
                Err(_) => return None,
            }
        }
    });
    Ok(EventStream(events.boxed()))
}
