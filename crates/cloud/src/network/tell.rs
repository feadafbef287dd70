//! Wakes the nodes whose networks should be something else, by following the store's feed: whoever changes something need
//! not think of it, and a change that was committed is never forgotten. Where servers are, compute follows.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use nephos_store::{Change, WatchError};
use nephos_types::{NetworkId, NodeId, SecurityGroupId};

use super::{
    Networks,
    kinds::{Network, Port, SecurityGroupRule, Subnet},
};
use crate::node::Nodes;

impl Networks {
    /// Begins to tell nodes of changes.
    pub(crate) fn tell_nodes(self: &Arc<Self>, nodes: &Arc<Nodes>) {
        let (networks, nodes): (Weak<Self>, Weak<Nodes>) = (Arc::downgrade(self), Arc::downgrade(nodes));
        let store = self.store.clone();
        let watch =
            move || store.watch(None).kind::<Network>().kind::<Subnet>().kind::<Port>().kind::<SecurityGroupRule>();
        let mut changes = watch();
        tokio::spawn(async move {
            loop {
                let change = changes.next().await;
                let (Some(networks), Some(nodes)) = (networks.upgrade(), nodes.upgrade()) else { return };
                match change {
                    Ok(change) => {
                        for node in networks.concerned(&change) {
                            nodes.wake(node);
                        }
                    }
                    Err(WatchError::Compacted { .. }) => {
                        changes = watch();
                        for node in nodes.summaries() {
                            nodes.wake(node.id);
                        }
                    }
                    Err(WatchError::Failed(_)) => return,
                }
            }
        });
    }

    /// The nodes whose plans a change is about.
    fn concerned(&self, change: &Change) -> BTreeSet<NodeId> {
        let mut networks: BTreeSet<NetworkId> = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        if change.is::<Network>() {
            networks.extend(change.id::<Network>());
        } else if change.is::<Subnet>() {
            let subnets = [change.before::<Subnet>(), change.after::<Subnet>()];
            networks.extend(subnets.into_iter().flatten().map(|subnet| subnet.body.network));
        } else if change.is::<Port>() {
            let ports = [change.before::<Port>(), change.after::<Port>()];
            let mut groups: BTreeSet<SecurityGroupId> = BTreeSet::new();
            for port in ports.into_iter().flatten() {
                networks.insert(port.body.network);
                groups.extend(&port.body.security_groups);
                nodes.extend(port.body.server().and_then(|server| self.place(server)?.node));
            }
            networks.extend(groups.into_iter().flat_map(|group| self.networks_minding(group)));
        } else {
            let rules = [change.before::<SecurityGroupRule>(), change.after::<SecurityGroupRule>()];
            for rule in rules.into_iter().flatten() {
                networks.extend(self.networks_minding(rule.body.group));
            }
        }
        nodes.extend(networks.into_iter().flat_map(|network| self.nodes_of(network)));
        nodes
    }
}
