//! Between servers and their nodes: what a node should have, and what it says it has.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use nephos_node_api::{DesiredServer, ServerReport};
use nephos_store::{Author, Change, CommitError, Query, Record, Transaction, WatchError};
use nephos_types::{ImageId, Name, NodeId, Result, Timestamp};

use super::{BY_NODE, Server, config_drive::Recipient, workflows};
use crate::{
    compute::Compute,
    node::{Nodes, Workload},
};

impl Workload for Compute {
    fn desired(&self, node: NodeId) -> Vec<DesiredServer> {
        let records = self.store.list::<Server>(&Query::all().index(BY_NODE, node));
        let vendor_data = self.settings.vendor_data.as_deref();
        let desired = |record: &Arc<Record<Server>>| {
            record.body.desired(Recipient { id: record.meta.id, project: record.meta.project, vendor_data })
        };
        records.items.iter().map(desired).collect()
    }

    fn report<'a>(&'a self, node: NodeId, reports: &'a [ServerReport]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            // All at once, so that they share a group commit.
            let all = reports.iter().map(|report| self.take_in(node, report));
            futures_util::future::try_join_all(all).await?;
            Ok(())
        })
    }

    fn asked_for_zone(&self, node: NodeId, zone: &Name) -> usize {
        let records = self.store.list::<Server>(&Query::all().index(BY_NODE, node));
        records.items.iter().filter(|record| record.body.placing.zone.as_ref() == Some(zone)).count()
    }

    fn may_fetch(&self, node: NodeId, image: ImageId) -> bool {
        self.prefetches(node, image)
    }
}

impl Compute {
    /// Writes down what a node says of a server, if it is news, and wakes what waits for it.
    async fn take_in(&self, node: NodeId, report: &ServerReport) -> Result<()> {
        loop {
            let Some(record) = self.store.get::<Server>(report.id) else { return Ok(()) };
            // A node speaks only of servers that are placed on it.
            if record.body.node != Some(node) {
                return Ok(());
            }
            let mut body = record.body.clone();
            if !body.observe(report, Timestamp::now()) {
                return Ok(());
            }
            let author = Author::new(node);
            match self.store.commit(Transaction::new(author).update(&record, body)).await {
                Ok(_) => {
                    self.engine.signal(&workflows::signal(report.id));
                    return Ok(());
                }
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Wakes nodes whose servers should be something else, by following the store's feed: whoever changes a server need not
/// think of it, and a change that was committed is never forgotten.
pub(crate) fn tell_nodes(compute: &Arc<Compute>) {
    let (store, nodes) = (compute.store.clone(), Arc::downgrade(&compute.nodes));
    tokio::spawn(async move {
        let mut changes = store.watch(None).kind::<Server>();
        loop {
            let change = changes.next().await;
            let Some(nodes) = nodes.upgrade() else { return };
            match change {
                Ok(change) => wake(&nodes, &change),
                Err(WatchError::Compacted { .. }) => {
                    changes = store.watch(None).kind::<Server>();
                    for node in nodes.summaries() {
                        nodes.wake(node.id);
                    }
                }
                Err(WatchError::Failed(_)) => return,
            }
        }
    });
}

fn wake(nodes: &Nodes, change: &Change) {
    let (before, after) = (change.before::<Server>(), change.after::<Server>());
    let asked = |server: &Option<Arc<Record<Server>>>| {
        server
            .as_ref()
            .and_then(|record| Some((record.body.node?, record.body.generation, record.body.snapshots.clone())))
    };
    let (before, after) = (asked(&before), asked(&after));
    // What a node itself reports changes the record, too, but nothing that the node should do.
    if before != after {
        for (node, ..) in before.into_iter().chain(after) {
            nodes.wake(node);
        }
    }
}
