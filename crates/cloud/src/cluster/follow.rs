//! What this process must do about changes that other processes made: nobody else tells its engine and its nodes.

use std::sync::Arc;

use nephos_store::{Change, Query, WatchError};

use super::Peers;
use crate::{
    compute::{Compute, server::Server, server::workflows::signal},
    journal::{self, WorkflowRun, open_runs},
    node::{Node, StreamWish},
    workflow::StoredSchedule,
};

/// Follows the others until the store is closed. Lives no longer than the family that it wakes.
pub(crate) fn follow(compute: &Arc<Compute>, peers: &Arc<Peers>) {
    let store = compute.store.clone();
    let watch = move || {
        store
            .watch(None)
            .kind::<WorkflowRun>()
            .kind::<Server>()
            .kind::<StoredSchedule>()
            .kind::<Node>()
            .kind::<StreamWish>()
    };
    let mut changes = watch();
    let follower = Arc::downgrade(compute);
    tokio::spawn(async move {
        loop {
            let change = changes.next().await;
            let Some(compute) = follower.upgrade() else { return };
            match change {
                Ok(change) if change.elsewhere => tell(&compute, &change).await,
                Ok(_) => {}
                Err(WatchError::Compacted { .. }) => {
                    changes = watch();
                    look_at_all(&compute).await;
                }
                Err(WatchError::Failed(_)) => return,
            }
        }
    });

    let (peers, heir) = (Arc::clone(peers), Arc::downgrade(compute));
    tokio::spawn(async move {
        loop {
            peers.death().await;
            let Some(compute) = heir.upgrade() else { return };
            match compute.engine.recover().await {
                Ok(recovered) => tracing::info!(taken = recovered.taken, "workflows were taken over"),
                // The engine looks again by itself.
                Err(error) => tracing::warn!(error = %error.chain(), "workflows could not be taken over yet"),
            }
        }
    });
}

async fn tell(compute: &Compute, change: &Change) {
    if let Some(run) = change.after::<WorkflowRun>() {
        compute.engine.noticed(journal::stored(&run)).await;
    } else if let Some(server) = change.id::<Server>() {
        compute.engine.signal(&signal(server));
    } else if change.is::<StoredSchedule>() {
        compute.engine.schedules_changed();
    } else if let Some(node) = change.id::<Node>() {
        compute.nodes.noticed(node);
    } else if let Some(wish) = change.after::<StreamWish>() {
        compute.nodes.wake(wish.body.node);
    }
}

/// When changes were missed: everything may have changed.
async fn look_at_all(compute: &Compute) {
    for run in compute.store.list::<WorkflowRun>(&open_runs()).items {
        compute.engine.noticed(journal::stored(&run)).await;
    }
    for server in compute.store.list::<Server>(&Query::all()).items {
        compute.engine.signal(&signal(server.meta.id));
    }
    compute.engine.schedules_changed();
    for node in compute.nodes.summaries() {
        compute.nodes.noticed(node.id);
    }
}
