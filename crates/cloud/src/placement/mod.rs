//! Where a server goes: filters say which nodes can take it and why the others cannot, weights say which one is best.
//!
//! The decision is made on [`Candidates`], a dense picture of all nodes kept in memory so that deciding among 10,000
//! takes well under a millisecond: what a demand asks of a node's kind (zone, traits, drivers) is looked at once for each
//! [`Class`] of nodes, and only what changes with each server for each node. The picture may be a moment old; what makes
//! claims exact is the store, whose bounded counters refuse the transaction that would oversubscribe. The loser looks
//! again and decides again.
//!
//! Must not know: how nodes are reached, or what a server is beyond its demand.

mod amounts;
mod class;
mod decide;
mod explain;
mod filter;
mod picture;
mod policy;
#[cfg(test)]
mod tests;
mod weight;

use std::collections::{BTreeMap, BTreeSet};

use nephos_driver::{DiskFormat, Feature};
use nephos_ops::placement::GroupPolicy;
use nephos_types::{Name, NodeId};
use serde::{Deserialize, Serialize};

pub use amounts::Amounts;
pub use class::{Abilities, Class};
pub use decide::{Decision, Nodes, choose, fitting};
pub use picture::{Candidates, Look, Place};
pub use policy::Policy;
pub(crate) use policy::first_of;

/// The zone of nodes that were given none.
pub const DEFAULT_ZONE: &str = "default";

/// What a server asks of a node's kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// The availability zone; any if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Properties that the node's aggregates must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Traits that it must have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub required: BTreeSet<String>,
    /// Traits that it must not have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub forbidden: BTreeSet<String>,
}

impl Needs {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The group that a server belongs to, as it stands without that server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Together {
    /// How its servers are placed.
    pub policy: GroupPolicy,
    /// The most on one node, for anti-affinity.
    pub most: u64,
    /// How many of its other servers are on which nodes.
    pub on: BTreeMap<NodeId, u64>,
}

/// What a server needs of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// What it takes.
    pub amounts: Amounts,
    /// Format of its image, which one of the node's drivers must know.
    pub format: Option<DiskFormat>,
    /// What that driver must be able to do.
    pub features: Vec<Feature>,
    /// What it asks of the node's kind.
    pub needs: Needs,
    /// Its group.
    pub group: Option<Together>,
    /// The only node that will do.
    pub only: Option<NodeId>,
    /// A node that will not do.
    pub not: Option<NodeId>,
}

/// One node as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its name, for reasons.
    pub name: Name,
    /// Whether it is heard of.
    pub up: bool,
    /// Why nothing new is placed on it; `None` when it is enabled.
    pub disabled: Option<String>,
    /// What kind of node it is; nodes of one kind share it.
    pub class: std::sync::Arc<Class>,
    /// What it may give, overcommitment included.
    pub capacity: Amounts,
    /// What is claimed on it.
    pub used: Amounts,
}

impl Candidate {
    /// What it has left.
    #[must_use]
    pub fn free(&self) -> Amounts {
        self.capacity.minus(self.used)
    }

    /// Whether it takes new servers at all.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.up && self.disabled.is_none()
    }
}
