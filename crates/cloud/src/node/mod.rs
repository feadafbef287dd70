//! Nodes: how they join, what they are told, what they say, and whether they are heard of.
//!
//! [`Nodes`] is the control plane's end of the node protocol. What nodes run is another family's business: it stands
//! behind [`Workload`].
//!
//! Invariants: only machines that used a token, each once, are nodes; a removed node is refused whatever certificate
//! it shows; what a node says of itself is written to the store only when it is news, so that heartbeats cost no disk;
//! a change of what one node should do wakes that node alone.
//!
//! Must not know: servers, images, how anything is run.

mod aggregate;
mod control;
mod enrol;
mod handlers;
mod live;
mod placing;
mod program;
mod record;
mod streams;
mod traits;
mod upgrade;
mod view;
mod wish;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use nephos_auth::Authority;
use nephos_driver::{Capabilities, DiskFormat, Feature, network::NetworkPlan};
use nephos_node_api::{Content, DesiredServer, ServerReport, SnapshotHeader};
use nephos_store::{CommitError, Draft, Kinds, Query, Record, Store, Transaction};
use nephos_types::{Error, ImageId, Name, NodeId, Result, Timestamp};
use nephos_workflow::Holders;

pub use aggregate::Aggregate;
use record::BY_NETWORKS;
pub use record::{BY_AGGREGATE, JoinToken, Node, Reachable};
pub use traits::check as check_traits;
pub(crate) use wish::StreamWish;

use self::{live::Live, record::NodeRecord};
use crate::{
    CLOUD,
    cluster::Peers,
    journal::Engine,
    name_claim,
    placement::{Amounts, Class, Policy},
};

/// The kinds that the store is opened with for this family.
#[must_use]
pub fn kinds(kinds: Kinds) -> Kinds {
    kinds.with::<Node>().with::<JoinToken>().with::<StreamWish>().with::<Aggregate>().with::<Policy>()
}

/// What nodes run.
pub trait Workload: Send + Sync + 'static {
    /// All servers that a node has or should have, those to be removed included.
    fn desired(&self, node: NodeId) -> Vec<DesiredServer>;

    /// Takes in what a node says of its servers; those that are not its own, or known to nobody, are passed over.
    fn report<'a>(&'a self, node: NodeId, reports: &'a [ServerReport]) -> BoxFuture<'a, Result<()>>;

    /// What a node's networks should be.
    fn networks(&self, _node: NodeId) -> NetworkPlan {
        NetworkPlan::default()
    }

    /// How many of a node's servers asked for this availability zone.
    fn asked_for_zone(&self, node: NodeId, zone: &Name) -> usize;

    /// Whether a node is to fetch an image that none of its servers needs.
    fn may_fetch(&self, _node: NodeId, _image: ImageId) -> bool {
        false
    }
}

/// Where nodes get images from.
pub trait ImageBytes: Send + Sync + 'static {
    /// The bytes of an image.
    fn open(&self, image: ImageId) -> BoxFuture<'_, Result<Content>>;

    /// Takes the bytes of an image from a node. Nothing happens if the image has its content already.
    fn receive(
        &self,
        node: NodeId,
        image: ImageId,
        header: SnapshotHeader,
        content: Content,
    ) -> BoxFuture<'_, Result<()>>;
}

/// How nodes are treated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `HOST:PORT` by which machines that want to join reach this control plane; `None` if none can.
    pub address: Option<String>,
    /// A node that says nothing for this long is down.
    pub silent_after: Duration,
    /// How often nodes have to report.
    pub report_every: Duration,
    /// How often nodes measure what their servers use, and keep it; zero for never.
    pub usage_every: Duration,
    /// How long a node's certificate is valid.
    pub certificate_valid: Duration,
    /// The other processes of the control plane, if there may be any.
    pub peers: Option<Arc<Peers>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: None,
            silent_after: Duration::from_secs(10),
            report_every: Duration::from_secs(3),
            usage_every: Duration::from_secs(1),
            certificate_valid: Duration::from_secs(30 * 24 * 3600),
            peers: None,
        }
    }
}

/// What others need to know of a node.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Whether it is heard of.
    pub up: bool,
    /// Why nothing new is placed on it; `None` when it is enabled.
    pub disabled: Option<String>,
    /// What it last said that it has.
    record: NodeRecord,
    /// What servers may have on it in sum.
    pub capacity: Amounts,
    /// What kind of node it is.
    pub class: Arc<Class>,
    /// Ports for forwards, both ends included.
    pub forward_ports: (u16, u16),
}

impl Summary {
    /// What its drivers can do, the preferred one first.
    #[must_use]
    pub fn drivers(&self) -> &[Capabilities] {
        self.record.body.inventory.as_ref().map(|inventory| &*inventory.compute).unwrap_or_default()
    }

    /// Where it receives what other nodes send (the outer address of VXLAN).
    #[must_use]
    pub fn underlay(&self) -> Option<IpAddr> {
        self.record.body.inventory.as_ref()?.network.as_ref()?.underlay
    }

    /// Whether servers on it can be on networks.
    #[must_use]
    pub fn has_networks(&self) -> bool {
        self.drivers().iter().any(|driver| driver.features.contains(&Feature::Network))
    }

    /// The driver of this name; the first one if the name is empty.
    #[must_use]
    pub fn driver(&self, name: &str) -> Option<&Capabilities> {
        self.drivers().iter().find(|driver| name.is_empty() || driver.driver == name)
    }

    /// The first driver that boots images of this format and can do all of this.
    #[must_use]
    pub fn driver_for(&self, format: Option<DiskFormat>, features: &[Feature]) -> Option<&Capabilities> {
        self.drivers().iter().find(|driver| {
            format.is_none_or(|format| driver.disk_formats.contains(&format))
                && features.iter().all(|feature| driver.features.contains(feature))
        })
    }

    /// The record that all of this is taken from.
    #[must_use]
    pub fn record(&self) -> &Record<Node> {
        &self.record
    }

    /// CPU architecture, e.g. `x86_64`, once the node has said it.
    #[must_use]
    pub fn architecture(&self) -> Option<&str> {
        self.record.body.inventory.as_ref().map(|inventory| inventory.architecture.as_str())
    }
}

/// The nodes of the cloud.
pub struct Nodes {
    store: Store,
    authority: Authority,
    settings: Settings,
    workload: OnceLock<Weak<dyn Workload>>,
    images: OnceLock<Arc<dyn ImageBytes>>,
    /// Whose steps wait for nodes.
    engine: OnceLock<Engine>,
    live: RwLock<HashMap<NodeId, Arc<Live>>>,
    classes: placing::Classes,
    /// Grows with each change of a node's record.
    version: AtomicU64,
}

impl Nodes {
    /// The nodes that the store knows.
    #[must_use]
    pub fn new(store: Store, authority: Authority, settings: Settings) -> Arc<Self> {
        let live = store
            .list::<Node>(&Query::all())
            .items
            .iter()
            .map(|record| (record.id(), Arc::new(Live::new(record.body.reachable))))
            .collect();
        Arc::new(Self {
            store,
            authority,
            settings,
            workload: OnceLock::new(),
            images: OnceLock::new(),
            engine: OnceLock::new(),
            live: RwLock::new(live),
            classes: placing::Classes::default(),
            version: AtomicU64::new(1),
        })
    }

    /// Connects what nodes run and boot from. Until then, nodes are asked to come back later.
    pub fn attach(&self, workload: &Arc<dyn Workload>, images: Arc<dyn ImageBytes>) {
        let _ = self.workload.set(Arc::downgrade(workload));
        let _ = self.images.set(images);
    }

    fn engine(&self) -> Result<&Engine> {
        self.engine.get().ok_or_else(|| Error::bug("nodes were not registered with the workflow engine"))
    }

    /// What steps wait for that wait for news of a node.
    fn signal_of(node: NodeId) -> String {
        format!("node/{node}")
    }

    /// There is news of a node.
    fn signal(&self, node: NodeId) {
        if let Some(engine) = self.engine.get() {
            engine.signal(&Self::signal_of(node));
        }
    }

    fn workload(&self) -> Result<Arc<dyn Workload>> {
        self.workload.get().and_then(Weak::upgrade).ok_or_else(|| {
            Error::new(nephos_types::ErrorKind::Unavailable, "starting", "The control plane is not ready yet")
        })
    }

    /// What a node should do has changed: tell it, if it waits. Cheap; may be called too often, never too early.
    pub fn wake(&self, node: NodeId) {
        if let Some(live) = self.live.read().unwrap_or_else(PoisonError::into_inner).get(&node) {
            live.change();
        }
    }

    /// Changes whenever a node's record does.
    #[must_use]
    pub fn version(&self) -> u64 {
        // What others changed or claimed is not counted here, but makes what was derived from memory old.
        self.version.load(Ordering::Acquire).wrapping_add(self.store.followed())
    }

    /// What is known of a node; `None` if it is none (any more).
    #[must_use]
    pub fn summary(&self, node: NodeId) -> Option<Summary> {
        self.store.get::<Node>(node).and_then(|record| self.summarize(&record))
    }

    /// What is known of all nodes.
    #[must_use]
    pub fn summaries(&self) -> Vec<Summary> {
        let records = self.store.list::<Node>(&Query::all());
        records.items.iter().filter_map(|record| self.summarize(record)).collect()
    }

    /// Whether there is a node whose servers can be on networks.
    #[must_use]
    pub fn have_networks(&self) -> bool {
        self.store.count::<Node>(&Query::all().index(BY_NETWORKS, "yes")) > 0
    }

    fn summarize(&self, record: &NodeRecord) -> Option<Summary> {
        let node = &record.body;
        let inventory = node.inventory.as_ref();
        Some(Summary {
            id: record.id(),
            name: record.meta.name.clone()?,
            up: node.reachable == Reachable::Up,
            disabled: node.disabled.clone(),
            record: Arc::clone(record),
            capacity: self.capacity(node),
            class: self.class(record).ok()?,
            forward_ports: inventory
                .map_or((0, 0), |inventory| (inventory.forward_ports.first, inventory.forward_ports.last)),
        })
    }

    /// The node that runs within this process under the name `local`; made at the first call, with `name` or, if that
    /// is taken, a similar one.
    pub async fn local(&self, local: &str, name: &str) -> Result<NodeId> {
        let known = self.store.owner(&record::local_claim(local)).and_then(|owner| owner.parse::<NodeId>().ok());
        match known {
            Some(node) if self.store.get::<Node>(node).is_some() => Ok(node),
            _ => {
                let author = nephos_store::Author::new("control plane").operation("node.join");
                let node = Node { local: Some(local.to_owned()), ..Node::new(Timestamp::now()) };
                let claim = |transaction: Transaction, id| transaction.claim(record::local_claim(local), id);
                self.admit(name, node, || Transaction::new(author.clone()), claim).await
            }
        }
    }

    /// Makes a node, with a free name.
    async fn admit(
        &self,
        wanted: &str,
        body: Node,
        begin: impl Fn() -> Transaction,
        finish: impl Fn(Transaction, NodeId) -> Transaction,
    ) -> Result<NodeId> {
        let wanted = usable_name(wanted);
        let mut attempt = 1;
        loop {
            let name: Name = if attempt == 1 { wanted.clone() } else { format!("{wanted}-{attempt}") }.parse()?;
            let id = NodeId::new();
            let draft = Draft::<Node>::new(id, body.clone()).name(name.clone());
            let transaction = begin().create(draft).claim(name_claim::<Node>(CLOUD, &name), id);
            match self.store.commit(finish(transaction, id)).await {
                Ok(_) => {
                    self.live
                        .write()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(id, Arc::new(Live::new(Reachable::Unknown)));
                    self.version.fetch_add(1, Ordering::AcqRel);
                    return Ok(id);
                }
                Err(CommitError::Taken { key, .. }) if key == name_claim::<Node>(CLOUD, &name) && attempt < 1000 => {
                    attempt += 1;
                }
                Err(CommitError::Exists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Changes a node's record if `change` makes a difference; tries again when others change it at the same time.
    async fn amend(&self, author: &str, id: NodeId, change: impl Fn(&mut Node)) -> Result<NodeRecord> {
        loop {
            let record = self.record(id)?;
            let mut body = record.body.clone();
            change(&mut body);
            if body == record.body {
                return Ok(record);
            }
            let author = nephos_store::Author::new(author);
            match self.store.commit(Transaction::new(author).update(&record, body)).await {
                Ok(_) => {
                    self.version.fetch_add(1, Ordering::AcqRel);
                    return self.record(id);
                }
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn record(&self, node: NodeId) -> Result<NodeRecord> {
        self.store.get::<Node>(node).ok_or_else(removed)
    }

    fn live(&self, node: NodeId) -> Result<Arc<Live>> {
        let known = self.live.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        // Another process may have admitted it.
        let record = self.record(node)?;
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        Ok(live.entry(node).or_insert_with(|| Arc::new(Live::new(record.body.reachable))).clone())
    }

    /// Makes sure that a node is refused only if it is known to be none: another process may just have admitted it.
    async fn certain(&self, node: NodeId) -> Result<()> {
        if self.store.get::<Node>(node).is_none() {
            self.store.catch_up().await?;
        }
        Ok(())
    }

    /// By what name this process hears nodes, where there are several processes.
    fn own_name(&self) -> Option<&str> {
        self.settings.peers.as_ref().map(|peers| &**peers.name())
    }

    /// Whether another process that is at work hears the node, and so decides whether it is up.
    fn is_heard_elsewhere(&self, node: &Node) -> bool {
        match (&self.settings.peers, &node.controller) {
            (Some(peers), Some(controller)) => **peers.name() != **controller && peers.may_live(controller),
            _ => false,
        }
    }

    /// Another process has changed a node's record.
    pub(crate) fn noticed(&self, node: NodeId) {
        match self.store.get::<Node>(node) {
            Some(record) => {
                let Ok(live) = self.live(node) else { return };
                if record.body.controller.as_deref() != self.own_name() {
                    let mut state = live.state();
                    // Should it come (back) here, it has to say everything anew.
                    state.greeted = false;
                    state.reachable = record.body.reachable;
                }
                // What it should be may have changed, and so may what steps wait for.
                live.change();
                self.signal(node);
            }
            None => {
                let live = self.live.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
                if let Some(live) = live {
                    // Its poll ends and is refused.
                    live.change();
                }
            }
        }
    }
}

fn removed() -> Error {
    Error::new(
        nephos_types::ErrorKind::Forbidden,
        nephos_node_api::NODE_REMOVED,
        "This machine is not, or no longer, a node of the cloud",
    )
    .next("make a join token and join again", Some("nephos node join-token".to_owned()))
}

/// What a machine calls itself, as far as it can be a name.
fn usable_name(wanted: &str) -> String {
    let name: String = wanted.chars().filter(|c| !c.is_control() && *c != '/').take(200).collect();
    let name = name.trim();
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}
