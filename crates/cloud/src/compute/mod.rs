//! Flavors, key pairs, quotas and servers: what runs where, and the workflows that make it so.
//!
//! Invariants: a server's claims (name, quota, capacity, forwarded ports) change only in the transaction that makes or
//! ends what they stand for; a server is changed by one workflow at a time; what its node should make of it is written
//! down before the node is told.
//!
//! Must not know: how nodes are reached, how guests are run, any front end.

pub mod capacity;
mod drain;
pub mod flavor;
pub mod group;
pub mod keypair;
mod policy;
mod prefetch;
pub mod quota;
pub mod server;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use nephos_store::{Kinds, Store};
use nephos_types::{Error, Result};

use crate::{
    core::Handlers,
    identity::ProjectUse,
    image::Images,
    journal::Engine,
    network::{Networks, Whereabouts},
    node::Nodes,
    placement,
};

/// The family's state: handles to what it works with, and the picture that placement decides on.
pub struct Compute {
    pub(crate) store: Store,
    pub(crate) engine: Engine,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) images: Arc<Images>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) candidates: placement::Candidates,
    pub(crate) settings: Settings,
    pub(crate) questions: server::Questions,
}

/// What operators decide about servers.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How long deleted servers are kept in the trash; `None` for not at all, unless somebody asks for it.
    pub trash: Option<Duration>,
    /// When a resize confirms itself; `None` for never.
    pub confirm_resize_after: Option<Duration>,
    /// What first-boot software is to do in every server besides what its owner wants; as cloud-init's user data.
    pub vendor_data: Option<String>,
}

impl Compute {
    /// Registers the family's workflows with the engine and its operations with the core, and begins to tell nodes of
    /// changes.
    pub(crate) fn register(
        handlers: &mut Handlers,
        store: &Store,
        engine: &Engine,
        nodes: &Arc<Nodes>,
        images: &Arc<Images>,
        networks: &Arc<Networks>,
        settings: Settings,
    ) -> Result<Arc<Self>> {
        let compute = Arc::new(Self {
            store: store.clone(),
            engine: engine.clone(),
            nodes: Arc::clone(nodes),
            images: Arc::clone(images),
            networks: Arc::clone(networks),
            candidates: placement::Candidates::default(),
            questions: server::Questions::default(),
            settings,
        });
        server::workflows::register(&compute)?;
        flavor::register(handlers, &compute);
        keypair::register(handlers, &compute);
        prefetch::register(handlers, &compute)?;
        quota::register(handlers, &compute);
        group::register(handlers, &compute);
        policy::register(handlers, &compute);
        capacity::register(handlers, &compute);
        drain::register(handlers, &compute)?;
        server::register(handlers, &compute);
        let whereabouts: Arc<dyn Whereabouts> = compute.clone();
        networks.attach(&whereabouts);
        networks.tell_nodes(nodes);
        server::tell_nodes(&compute);
        server::keep_deadlines(&compute);
        Ok(compute)
    }
}

/// The kinds that this family keeps.
#[must_use]
pub fn kinds(kinds: Kinds) -> Kinds {
    kinds
        .with::<flavor::Flavor>()
        .with::<group::ServerGroup>()
        .with::<keypair::KeyPair>()
        .with::<quota::Quota>()
        .with::<quota::DomainQuota>()
        .with::<server::Server>()
}

/// What of this family stands against deleting a project.
#[must_use]
pub fn project_uses() -> [ProjectUse; 2] {
    let servers = ProjectUse {
        what: "servers",
        count: |store, project| u64::try_from(store.counter(&quota::counter(project, "servers"))).unwrap_or(0),
        counter: Some(|project| quota::counter(project, "servers")),
    };
    [servers, group::project_use()]
}

/// The family as its own workflows hold it: not owning, because the engine that holds them is part of it.
#[derive(Clone)]
pub(crate) struct Held(Weak<Compute>);

impl Held {
    pub(crate) fn of(compute: &Arc<Compute>) -> Self {
        Self(Arc::downgrade(compute))
    }

    /// The family; an error only while the process ends.
    pub(crate) fn get(&self) -> Result<Arc<Compute>> {
        self.0.upgrade().ok_or_else(|| {
            Error::new(nephos_types::ErrorKind::Unavailable, "stopping", "The control plane is stopping")
        })
    }
}
