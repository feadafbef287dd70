//! Networks, subnets, ports and security groups: what servers are connected by, with which addresses, and what may pass.
//!
//! Invariants: an address of a network is some port's, or the network's own, exactly as long as the claim
//! `ip/<network>/<address>` is held; it changes hands only in the transaction that makes or ends what it stands for. Which node
//! a port is on is not written down: it is where its server is.
//!
//! Must not know: how nodes make networks, servers but for what [`Whereabouts`] says of them, any front end.

mod address;
mod kinds;
mod networks;
mod plan;
mod ports;
pub(crate) mod quota;
mod security_groups;
mod segment;
mod servers;
mod subnets;
mod tell;

use std::sync::{Arc, OnceLock, Weak};

use nephos_store::{Kinds, Store};
use nephos_types::{Error, Reference, Result, ServerId};

pub use self::kinds::Nic;
use self::kinds::{Network, Port};
pub(crate) use self::{
    networks::explain,
    plan::{Place, Whereabouts},
    servers::{collided, connect, connections, disconnect},
};
use crate::{core::Handlers, session::Session};

/// The family's state.
pub struct Networks {
    pub(crate) store: Store,
    cursors: address::Cursors,
    /// Where servers are; given once compute is there.
    whereabouts: OnceLock<Weak<dyn Whereabouts>>,
}

impl Networks {
    /// Registers the family's operations with the core.
    pub(crate) fn register(handlers: &mut Handlers, store: &Store) -> Arc<Self> {
        let networks =
            Arc::new(Self { store: store.clone(), cursors: address::Cursors::default(), whereabouts: OnceLock::new() });
        networks::register(handlers, &networks);
        subnets::register(handlers, &networks);
        ports::register(handlers, &networks);
        security_groups::register(handlers, &networks);
        networks
    }

    /// Says who knows where servers are.
    pub(crate) fn attach(&self, whereabouts: &Arc<dyn Whereabouts>) {
        // A second one would be the same one.
        let _ = self.whereabouts.set(Arc::downgrade(whereabouts));
    }

    /// The server that a caller means.
    fn server(&self, session: &Session, reference: &Reference) -> Result<ServerId> {
        let whereabouts = self.whereabouts.get().and_then(Weak::upgrade);
        whereabouts.ok_or_else(|| Error::bug("nobody knows servers"))?.server(session, reference)
    }

    /// Where a server is.
    fn place(&self, server: ServerId) -> Option<Place> {
        self.whereabouts.get()?.upgrade()?.place(server)
    }
}

/// The kinds that this family keeps.
#[must_use]
pub(crate) fn kinds(kinds: Kinds) -> Kinds {
    kinds
        .with::<Network>()
        .with::<kinds::Subnet>()
        .with::<Port>()
        .with::<kinds::SecurityGroup>()
        .with::<kinds::SecurityGroupRule>()
}
