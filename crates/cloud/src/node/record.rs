//! Nodes and join tokens as they are stored.

use std::sync::Arc;

use nephos_driver::Feature;
use nephos_node_api::Inventory;
use nephos_store::{Kind, Record, Store};
use nephos_types::{JoinTokenId, NodeId, Timestamp, WorkflowId};
use serde::{Deserialize, Serialize};

use super::placing::Placing;
use crate::{CLOUD, Named, Session};

/// Whether a node is heard of, as last written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reachable {
    /// It has not said anything yet.
    Unknown,
    /// It reports.
    Up,
    /// It is silent.
    Down,
}

/// Something about a node that somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// A word for it.
    pub code: String,
    /// What is so.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// A machine that runs an agent. Written when something about it changes, not when it reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Whether it is heard of.
    pub reachable: Reachable,
    /// Since when.
    pub reachable_since: Timestamp,
    /// Why nothing new is placed on it; `None` when it is enabled.
    #[serde(default)]
    pub disabled: Option<String>,
    /// Where its agent calls from.
    #[serde(default)]
    pub address: Option<String>,
    /// Version of its agent.
    #[serde(default)]
    pub agent_version: Option<String>,
    /// What the machine has, once it has said hello.
    #[serde(default)]
    pub inventory: Option<Inventory>,
    /// When its certificate expires; `None` within the control plane's own process.
    #[serde(default)]
    pub certificate_expires_at: Option<Timestamp>,
    /// Which process of the control plane hears it, where there are several.
    #[serde(default)]
    pub controller: Option<String>,
    /// What it is called within the control plane's own process, if that is where it runs.
    #[serde(default)]
    pub local: Option<String>,
    /// What it is to placement.
    #[serde(default)]
    pub placing: Placing,
    /// What somebody should look at.
    #[serde(default)]
    pub health: Vec<Condition>,
    /// SHA-256 of the program that its agent is, if it can take up another one.
    #[serde(default)]
    pub program: Option<String>,
    /// The program that its agent should be, while a workflow makes it so.
    #[serde(default)]
    pub wanted_program: Option<WantedProgram>,
}

/// A program that an agent should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedProgram {
    /// SHA-256 of its file, in hexadecimal.
    pub sha256: String,
    /// Size of its file.
    pub size: u64,
    /// The workflow that wants it.
    pub workflow: WorkflowId,
}

impl Node {
    /// One that has not said anything yet.
    pub(super) fn new(at: Timestamp) -> Self {
        Self {
            reachable: Reachable::Unknown,
            reachable_since: at,
            disabled: None,
            address: None,
            agent_version: None,
            inventory: None,
            certificate_expires_at: None,
            controller: None,
            local: None,
            placing: Placing::default(),
            health: vec![],
            program: None,
            wanted_program: None,
        }
    }

    /// Notes what it says that somebody should look at, and since when what is news.
    pub(super) fn note(&mut self, said: &[(String, String)]) {
        let same =
            |condition: &Condition, code: &str, message: &str| condition.code == code && condition.message == message;
        let mut health = vec![];
        for (code, message) in said {
            let before = self.health.iter().find(|condition| same(condition, code, message));
            let since = before.map_or_else(Timestamp::now, |condition| condition.since);
            health.push(Condition { code: code.clone(), message: message.clone(), since });
        }
        self.health = health;
    }

    /// Notes whether it is heard of, and if that is news, since when.
    pub(super) fn reach(&mut self, reachable: Reachable) {
        if self.reachable != reachable {
            self.reachable = reachable;
            self.reachable_since = Timestamp::now();
        }
    }
}

/// Index of nodes by the ids of the aggregates that they are in.
pub const BY_AGGREGATE: &str = "aggregate";
/// Index of nodes whose servers can be on networks: `yes`.
pub(super) const BY_NETWORKS: &str = "networks";

impl Kind for Node {
    type Id = NodeId;
    const NAME: &'static str = "node";
    const INDEXES: &'static [&'static str] = &["reachable", BY_AGGREGATE, BY_NETWORKS];
    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            BY_AGGREGATE => record.body.placing.aggregates.iter().map(ToString::to_string).collect(),
            BY_NETWORKS => {
                let drivers = record.body.inventory.iter().flat_map(|inventory| &inventory.compute);
                let able = drivers.into_iter().any(|driver| driver.features.contains(&Feature::Network));
                able.then(|| "yes".to_owned()).into_iter().collect()
            }
            _ => vec![index_of(record.body.reachable).to_owned()],
        }
    }
}

/// The value of the index `reachable`.
pub(super) fn index_of(reachable: Reachable) -> &'static str {
    match reachable {
        Reachable::Unknown => "unknown",
        Reachable::Up => "up",
        Reachable::Down => "down",
    }
}

impl Named for Node {
    const NOUN: &'static str = "node";
    fn spaces(_: &Session) -> Vec<String> {
        vec![CLOUD.to_owned()]
    }
}

/// A permission for one machine to join; deleted when it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// SHA-256 of the secret, in hexadecimal. The secret has 256 random bits, so it needs no slow hash.
    pub hash: String,
    /// Until when it can be used.
    pub expires_at: Timestamp,
}

impl Kind for JoinToken {
    type Id = JoinTokenId;
    const NAME: &'static str = "join_token";
    const INDEXES: &'static [&'static str] = &["hash"];
    fn index(record: &Record<Self>, _: &str) -> Vec<String> {
        vec![record.body.hash.clone()]
    }
}

/// The claim by which a node in the control plane's own process is found again.
pub(super) fn local_claim(name: &str) -> String {
    format!("node/local/{name}")
}

/// The counter of what servers have on a node: `vcpus`, `memory_mib`, `disk_gib`, `servers`.
pub(super) fn used(store: &Store, node: NodeId, what: &str) -> u64 {
    u64::try_from(store.counter(&format!("capacity/{node}/{what}"))).unwrap_or(0)
}

/// A node's record.
pub(super) type NodeRecord = Arc<Record<Node>>;
