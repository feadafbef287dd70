//! Between servers and their nodes: what a node should have, and what it says it has.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::BoxFuture;
use nephos_driver::network::NetworkPlan;
use nephos_node_api::{
    DesiredServer, PortReport, ServerReport,
    metadata::{MetadataAccess, PublicKey, ServerMetadata},
};
use nephos_ops::network::PortTrouble;
use nephos_store::{Author, Change, CommitError, Query, Record, Transaction, WatchError};
use nephos_types::{ImageId, Name, NetworkId, NodeId, Reference, Result, ServerId, Timestamp};

use super::{BY_NODE, Server, config_drive::Recipient, workflows};
use crate::{
    compute::Compute,
    network::{Networks, Place, Whereabouts},
    node::{Nodes, Workload},
    session::Session,
};

/// The region that servers are told they are in: a cloud is one.
const REGION: &str = "nephos";
/// The zone that servers are told they are in if they asked for none.
const ZONE: &str = "nova";

impl Workload for Compute {
    fn desired(&self, node: NodeId) -> Vec<DesiredServer> {
        let records = self.store.list::<Server>(&Query::all().index(BY_NODE, node));
        let vendor_data = self.settings.vendor_data.as_deref();
        let desired = |record: &Arc<Record<Server>>| {
            let metadata = self.metadata(record);
            record.body.desired(Recipient { id: record.meta.id, project: record.meta.project, vendor_data }, metadata)
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

    fn networks(&self, node: NodeId) -> NetworkPlan {
        self.networks.plan(node)
    }

    fn asked_for_zone(&self, node: NodeId, zone: &Name) -> usize {
        let records = self.store.list::<Server>(&Query::all().index(BY_NODE, node));
        records.items.iter().filter(|record| record.body.placing.zone.as_ref() == Some(zone)).count()
    }

    fn may_fetch(&self, node: NodeId, image: ImageId) -> bool {
        self.prefetches(node, image)
    }
}

impl Whereabouts for Compute {
    fn place(&self, server: ServerId) -> Option<Place> {
        let record = self.store.get::<Server>(server)?;
        let trouble = |report: &PortReport| {
            let trouble = report.trouble.as_ref();
            trouble.map(|error| PortTrouble { code: error.code.to_string(), message: error.to_string() })
        };
        let observed = record.body.observed.as_ref();
        Some(Place {
            node: record.body.node,
            at: record.body.node.and_then(|node| self.nodes.summary(node)?.underlay()),
            host_name: record.body.hostname.clone(),
            ports: observed
                .map(|observed| observed.ports.iter().map(|port| (port.port, trouble(port))).collect())
                .unwrap_or_default(),
        })
    }

    fn servers_on(&self, node: NodeId) -> Vec<ServerId> {
        let records = self.store.list::<Server>(&Query::all().index(BY_NODE, node));
        records.items.iter().filter(|record| !record.body.nics.is_empty()).map(|record| record.meta.id).collect()
    }

    fn server(&self, session: &Session, reference: &Reference) -> Result<ServerId> {
        Ok(session.find::<Server>(reference)?.meta.id)
    }
}

impl Compute {
    /// What a server is told about itself, if it is on a network.
    fn metadata(&self, record: &Record<Server>) -> Option<ServerMetadata> {
        let body = &record.body;
        let first = body.nics.first()?;
        let name = body.keypair.as_ref().map(ToString::to_string);
        let key = |(place, key): (usize, &String)| PublicKey {
            name: name.clone().unwrap_or_else(|| format!("key-{place}")),
            key: key.clone(),
        };
        Some(ServerMetadata {
            id: record.meta.id,
            name: record.meta.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            host_name: body.hostname.clone(),
            domain: self.networks.domain(first.network).unwrap_or_default(),
            project: record.meta.project,
            image: Some(body.image.id),
            flavor: body.flavor_name.to_string(),
            created: record.meta.created_at,
            region: REGION.to_owned(),
            zone: body.placing.zone.as_ref().map_or_else(|| ZONE.to_owned(), ToString::to_string),
            launch_index: 0,
            keys: body.public_keys.iter().enumerate().map(key).collect(),
            metadata: body.metadata.clone(),
            user_data: body.user_data.clone(),
            vendor_data: self.settings.vendor_data.clone(),
            files: body.files.clone(),
            interfaces: self.networks.interfaces(&body.nics),
            access: MetadataAccess::default(),
        })
    }

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
    let networks = Arc::downgrade(&compute.networks);
    tokio::spawn(async move {
        let mut changes = store.watch(None).kind::<Server>();
        loop {
            let change = changes.next().await;
            let (Some(nodes), Some(networks)) = (nodes.upgrade(), networks.upgrade()) else { return };
            match change {
                Ok(change) => wake(&nodes, &networks, &change),
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

fn wake(nodes: &Nodes, networks: &Networks, change: &Change) {
    let (before, after) = (change.before::<Server>(), change.after::<Server>());
    // The others on its networks send there what is for it.
    let place = |server: &Option<Arc<Record<Server>>>| {
        server.as_ref().map(|record| (record.body.node, record.body.hostname.clone(), record.body.nics.clone()))
    };
    if place(&before) != place(&after) {
        let nics = [&before, &after].into_iter().flatten().flat_map(|record| &record.body.nics);
        let concerned: BTreeSet<NetworkId> = nics.map(|nic| nic.network).collect();
        for node in concerned.into_iter().flat_map(|network| networks.nodes_of(network)) {
            nodes.wake(node);
        }
    }
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
