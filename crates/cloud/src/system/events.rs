//! Changes as they happen, as server-sent events: the store's feed, cut down to what the caller may see.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use nephos_ops::{Event, EventStream, system::WatchEvents};
use nephos_store::{Action, Change, Revision, Watch};
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
    follow(watch, input.kind.map(|kind| kind.as_str().to_owned()))
}

/// The feed from there on as events; refused if what follows is not known any more.
fn follow(watch: Watch, kind: Option<String>) -> Result<EventStream> {
    // Told before the stream begins, so that it is the answer's status.
    watch.is_kept()?;
    let events = stream::unfold(Some((watch, kind)), |state| async move {
        let (mut watch, kind) = state?;
        loop {
            match watch.next().await {
                Ok(change) if kind.as_ref().is_none_or(|kind| *kind == change.kind) => {
                    return Some((Ok(event(&change)), Some((watch, kind))));
                }
                Ok(_) => {}
                // The last that is sent: whoever was too slow must know that something is missing.
                Err(error) => return Some((Err(error.into()), None)),
            }
        }
    });
    Ok(EventStream(events.boxed()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nephos_store::{Author, Draft, Kinds, Options, Sqlite, Store, Transaction};
    use nephos_types::FlavorId;

    use super::*;
    use crate::compute::flavor::Flavor;

    /// A store that keeps three changes, after this many.
    async fn trimmed(folder: &tempfile::TempDir, changes: usize) -> Store {
        let backend = Sqlite::open(folder.path().join("db")).await.unwrap();
        let options = Options {
            keep_changes: 3,
            keep_audit_changes: 3,
            trim_every: Duration::from_secs(3600),
            ..Options::default()
        };
        let store = Store::open_with(backend, Kinds::new().with::<Flavor>(), options).await.unwrap();
        change(&store, changes).await;
        store.trim().await.unwrap();
        store
    }

    async fn change(store: &Store, times: usize) {
        for _ in 0..times {
            let body = Flavor::of_size(1, 1, 0);
            let draft = Draft::new(FlavorId::new(), body);
            store.commit(Transaction::new(Author::new("test")).create(draft)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_place_that_is_gone_is_refused_and_one_that_goes_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = trimmed(&folder, 10).await;
        let refused = follow(store.watch(Some(Revision(2))), None).map(|_| ()).unwrap_err();
        assert_eq!((refused.kind, refused.code.as_ref()), (ErrorKind::Precondition, "compacted"));
        assert!(refused.next[0].action.contains("from now"), "{refused:?}");
        assert!(follow(store.watch(Some(Revision(99))), None).is_err(), "from before a restore");

        let mut slow = follow(store.watch(Some(Revision(8))), None).unwrap().0;
        assert_eq!(slow.next().await.unwrap().unwrap().id.as_deref(), Some("9"));
        // More than are read ahead, so that it has to look for its place again.
        change(&store, 100).await;
        store.trim().await.unwrap();
        let mut last = None;
        while let Some(event) = slow.next().await {
            assert!(last.is_none(), "an error ends it");
            last = event.err();
        }
        assert_eq!(last.unwrap().code, "compacted");
    }
}
